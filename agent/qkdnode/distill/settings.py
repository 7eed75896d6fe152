"""How one end distils: what both ends have agreed, and what each may choose."""

import msgspec

from qkdnode.distill.quality.link import Limits
from qkdnode.wire.messages import Parameters

SECOND = 10**9


class Settings(msgspec.Struct, frozen=True):
    """The agreed parameters, and this end's own choices."""

    agreed: Parameters
    profile: str = "lan"
    lists_in_flight: int = 8  # fewer than the 16 tags that may be out unanswered
    batches_in_flight: int = 4
    frame_bits_max: int = 1 << 14
    block_fill_s: float = 1.0  # frame size follows the rate so that a Block fills in about this time
    batch_deadline_s: float = 900.0
    windows_kept: int = 48  # Alice's, until asked for
    window_wait_s: float = 5.0  # how long Alice waits for a Window that Bob lists before she has it
    click_share_limit: float = 0.005  # double and crossed clicks among all of a Window
    limits: Limits = Limits()  # of what the counts of the link may show
    batch_stall_s: float = 60.0  # without progress a Batch is given up

    @property
    def intensities(self) -> int:
        """How many intensities the link uses."""
        return len(self.agreed.intensities)

    @property
    def window_s(self) -> float:
        """Length of a Window in seconds."""
        return self.agreed.window_slots / self.agreed.slot_rate_hz
