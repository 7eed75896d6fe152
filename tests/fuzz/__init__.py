"""Fuzzing of every parser: `python -m fuzz` with tests/ on the path. docs/fuzzing.md says how it works."""

import sys
from pathlib import Path

# Two ends of a link or a vault already stand in the helpers of other test folders, which pytest puts on the path.
_TESTS = Path(__file__).resolve().parents[1]
for _folder in (
    _TESTS,
    _TESTS / "protocol",
    _TESTS / "property",
    _TESTS / "unit" / "device",
    _TESTS / "unit" / "vault",
):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))
