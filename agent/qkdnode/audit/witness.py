"""What a witness makes of a checkpoint of somebody's log: the rules of C2SP tlog-witness. No I/O.

A witness remembers one checkpoint of a log, the one that it signed last, and signs another only if that one goes on
from it. So who shows one log to some and another to others, or takes entries back, needs every witness to help.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from qkdnode.audit.checkpoint import Checkpoint
from qkdnode.audit.merkle import EMPTY_ROOT, consistency_holds


class Finding(StrEnum):
    """What is found of a checkpoint."""

    GOES_ON = "goes-on"  # from what was signed last: it may be signed
    SIZE = "size"  # the proof is not from what was signed last: it may be made from there
    FORK = "fork"  # it contradicts what was signed last
    ROLLBACK = "rollback"  # it has fewer entries than what was signed last


class Seen(msgspec.Struct, frozen=True):
    """The checkpoint that a witness has signed last."""

    size: int
    root: bytes


NOTHING = Seen(0, EMPTY_ROOT)


def judge(seen: Seen, old_size: int, proof: Sequence[bytes], checkpoint: Checkpoint) -> Finding:
    """What is found of a checkpoint whose log's signatures were verified, with its proof from `old_size`."""
    if checkpoint.size < seen.size:
        return Finding.ROLLBACK
    if checkpoint.size == seen.size:  # told again, as its answer may have been lost
        return Finding.GOES_ON if checkpoint.root == seen.root else Finding.FORK
    if old_size != seen.size:
        return Finding.SIZE
    follows = consistency_holds(seen.size, seen.root, checkpoint.size, checkpoint.root, proof)
    return Finding.GOES_ON if follows else Finding.FORK
