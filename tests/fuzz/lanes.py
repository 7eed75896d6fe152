"""What a part of a run that goes on beside the search hands to the summary."""

import msgspec


class Lane(msgspec.Struct, kw_only=True):
    """One engine's share of the run."""

    engine: str  # its name, or why it did not run
    inputs: int = 0
    findings: int = 0
    planted: int = 0
    missed: int = 0
    failed: bool = False  # it could not do its work
