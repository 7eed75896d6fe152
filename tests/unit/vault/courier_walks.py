"""Walks of a rotation by files: both ends are real vaults, and couriers lose, repeat, swap and alter what they carry.

At each step somebody writes a file, or one of all that were ever written comes to an end, whole or altered, with the
approvals of two people or without; or a vault is opened anew. At the end couriers are reliable, and both ends must come
to the same.
"""

import itertools
import random
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from approving import KEYS
from couriers import accept_offered, imported, signed, written
from vaults import LINK, Pair

from qkdnode.errors import QkdnodeError
from qkdnode.lifecycle.rotation import GRACE_NS, Phase
from qkdnode.node.shadow import carry
from qkdnode.vault import requests as ask
from qkdnode.vault.rotations import ShowRotation
from qkdnode.wire.courier import KEY_BITS, decode_file, encode_file

STEPS = 14
MOST_FILES = 24  # until both ends have come to the same


class Violation(Exception):
    """What must never be."""


class Carried(NamedTuple):
    """A file that was written, and by which end."""

    file: bytes
    sender: int


class Walk:
    """One walk, given by its seed."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.pair = Pair(directory)
        self.ends = self.pair.ends
        self.ends[1].counter._numbers = itertools.count(10**6)  # both draw different ids
        self.pair.stock()
        self.files: list[Carried] = []
        self.heard = [0, 0]  # the newest file of the other end that an end has taken
        self.spots: set[tuple[int, Any, int]] = set()

    def run(self) -> None:
        """Walk, then come to the end. Violation if something is as it must not be."""
        self.write(self.rng.randrange(2))
        for _ in range(STEPS):
            self.step()
        self.settle()

    def step(self) -> None:
        choice, end = self.rng.random(), self.rng.randrange(2)
        if choice < 0.3:
            self.write(end)
        elif choice < 0.7:
            self.carry(self.rng.choice(self.files), end)
        elif choice < 0.85:
            self.alter(self.rng.choice(self.files))
        elif choice < 0.93:
            self.unapproved(self.rng.choice(self.files))
        else:
            self.reopen(end)
        for its in self.ends:
            accept_offered(its)
            its.counter.ahead_ns += self.rng.choice((0, GRACE_NS // 20, GRACE_NS))

    def write(self, end: int) -> None:
        """A file more; its bits were never used before."""
        before = self.stock(end)[0]
        try:
            its = written(self.ends[end], begin=not self.files)
        except QkdnodeError:
            return  # nothing waits
        spot = decode_file(its.file).heading.spot
        named = (end, spot.batch, spot.offset_bits)
        if named in self.spots:
            raise Violation("two files are sealed with the same bits")
        if before - self.stock(end)[0] < KEY_BITS:
            raise Violation("what seals a file is still in stock")
        self.spots.add(named)
        self.files.append(Carried(its.file, end))

    def carry(self, carried: Carried, end: int) -> None:
        """Any file, to any end, any number of times."""
        number, before = decode_file(carried.file).heading.number, self.view(end)
        try:
            done = imported(self.ends[end], carried.file)
        except QkdnodeError:
            if end != carried.sender and number > self.heard[end]:
                raise Violation("a newer file of the other end is refused") from None
            if end != carried.sender and number == self.heard[end]:
                raise Violation("a file that comes again is not known") from None
            if self.view(end) != before:
                raise Violation("what was refused has changed something") from None
            return
        if end == carried.sender:
            raise Violation("an end has taken what it wrote itself")
        if number < self.heard[end] or done.again != (number == self.heard[end]):
            raise Violation("an old file was taken")
        if done.again and self.view(end)[:2] != before[:2]:
            raise Violation("a file that came twice has changed something")
        self.heard[end] = max(self.heard[end], number)

    def alter(self, carried: Carried) -> None:
        """Another byte, or another heading, that two people were made to approve."""
        end, file = 1 - carried.sender, decode_file(carried.file)
        before = self.view(end)
        heading, number = file.heading, file.heading.number
        if self.rng.random() < 0.5:
            changed = bytearray(carried.file)
            changed[self.rng.randrange(len(changed))] ^= 1 << self.rng.randrange(8)
            altered = bytes(changed)
        else:
            changes: dict[str, Any] = self.rng.choice(
                [{"number": number + 1}, {"generation": heading.generation + 1}, {"nonce": bytes(12)}]
            )
            altered = encode_file(msgspec.structs.replace(file, heading=msgspec.structs.replace(heading, **changes)))
        try:
            imported(self.ends[end], altered)
        except QkdnodeError:
            if self.view(end) != before:
                raise Violation("an altered file has changed something") from None
            return
        raise Violation("an altered file was taken")

    def unapproved(self, carried: Carried) -> None:
        """By one person, by one twice, or with what was given for another file."""
        end = 1 - carried.sender
        one = self.rng.choice(sorted(KEYS))
        other = self.rng.choice(self.files)
        if other.file == carried.file:
            approvals = signed(self.ends[end], carried.file, self.rng.choice([(), (one,), (one, one)]))
        else:
            approvals = signed(self.ends[end], other.file)
        before = self.view(end)
        try:
            imported(self.ends[end], carried.file, approvals)
        except QkdnodeError:
            if self.view(end) != before:
                raise Violation("a file without approval has changed something") from None
            return
        raise Violation("a file was taken that nobody approved")

    def reopen(self, end: int) -> None:
        """As after a crash: between the commit and the file, the vault has the file."""
        self.ends[end].reopen()
        mine = [its.file for its in self.files if its.sender == end]
        if mine and written(self.ends[end], again=True).file != mine[-1]:
            raise Violation("the last file is not what it was")

    def settle(self) -> None:
        """Reliable couriers: both ends come to the next generation, the same keys, and the same stock."""
        end = 0
        for _ in range(MOST_FILES):
            count = len(self.files)
            self.write(end)
            if len(self.files) > count:
                self.carry(self.files[-1], 1 - end)
            for its in self.ends:
                accept_offered(its)
                its.counter.ahead_ns += GRACE_NS
            end = 1 - end
        states = [its.call(ShowRotation(association=its.association)) for its in self.ends]
        if [(state.phase, state.current) for state in states] != [(Phase.STEADY, 2)] * 2:
            raise Violation(f"they do not come to the same: {[(str(its.phase), its.current) for its in states]}")
        carry(LINK, self.ends[0].call, self.ends[1].call)  # the link is back for a while
        # One file each of the next rotation: what lost ones were sealed with is known at the other end too.
        for end in (0, 1):
            imported(self.ends[1 - end], written(self.ends[end], begin=end == 0).file)
        (own, peer), (theirs, ours) = self.stock(0), self.stock(1)
        if (own, peer) != (ours, theirs):
            raise Violation("what sealed files is gone at one end alone")
        keys = [self.keys(its) for its in self.ends]
        if keys[0] != keys[1] or not keys[0]:
            raise Violation("the keys of both ends are not the same")

    def view(self, end: int) -> tuple[Any, ...]:
        """What a file could change."""
        its = self.ends[end]
        state = its.call(ShowRotation(association=its.association))
        waiting = its.call(ask.NeighbourOutbox(link=LINK, limit=1000))
        return self.stock(end), waiting, (state.phase, state.peer, state.current, state.newest)

    def stock(self, end: int) -> tuple[int, int]:
        its = self.ends[end].call(ask.Status())
        return its.stock_bits_own.get(LINK, 0), its.stock_bits_peer.get(LINK, 0)

    def keys(self, end: Any) -> dict[Any, bytes]:
        rows = end.call(ask.ApplicationOutbox(application=end.association.local, limit=1000))
        found = {}
        for row in rows:
            opened = end.call(ask.OpenKey(key_id=row.key_id, application=end.association.local))
            with opened, memoryview(opened) as view:
                found[row.key_id] = view.tobytes()
        return found
