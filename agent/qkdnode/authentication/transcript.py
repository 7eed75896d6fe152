"""What the settling tags of one Batch cover: every message that any of its bits depends on."""

import struct

from qkdnode.ids import ALICE, BOB, ROLES
from qkdnode.native.polyval import Polyval

LENGTHS = struct.Struct("<QQ")


class Transcript:
    """Running hashes over both directions of one Batch, each in its sender's order.

    A tag of either end covers both directions, so each direction is hashed under both ends' hash keys. An entry is
    header, body and a length block, which makes the sequence of entries self-delimiting.
    """

    def __init__(self, keys: dict[str, memoryview]) -> None:
        self._hashes = {(tagger, sender): Polyval(keys[tagger]) for tagger in ROLES for sender in ROLES}

    def add(self, sender: str, header: bytes, body: bytes) -> None:
        """Append one message of `sender`, in the order of its counters."""
        lengths = LENGTHS.pack(len(body), 0)
        for tagger in ROLES:
            running = self._hashes[tagger, sender]
            running.update(header)
            running.update(body)
            running.update(lengths)

    def absorb_into(self, running: Polyval, tagger: str) -> None:
        """Append Alice's direction, Bob's direction and the block that says where they part."""
        alice, bob = self._hashes[tagger, ALICE], self._hashes[tagger, BOB]
        running.append(alice)
        running.append(bob)
        running.update(LENGTHS.pack(alice.blocks, bob.blocks))

    def close(self) -> None:
        """Wipe the hash states."""
        for running in self._hashes.values():
            running.close()
