"""Two scratch vaults at the ends of a link, and a wire between them: real requests, random keys that nobody gets.

Messages are handed over at once, in the order of the outbox. Rehearsals and benchmarks drive rotations through them.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

from qkdnode.channel.identity import make_identity
from qkdnode.errors import LocalProtocolError
from qkdnode.ids import ALICE, BOB, Association, BatchId, other_role
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import requests as ask
from qkdnode.vault.revocations import FollowRevoked
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.rotations import FollowRotation
from qkdnode.vault.segments import GREETING_PADS
from qkdnode.vault.service import Vault
from qkdnode.vault.stock import CHUNK_BITS
from qkdnode.wire.messages import (
    NOT_SETTLED,
    Allocate,
    Delivered,
    KeysRevoked,
    Message,
    RotationGivenUp,
    RotationProposed,
    RotationStands,
    RotationWanted,
)

Call = Callable[[Any], Any]
IN_MEMORY = Path("/dev/shm")
LINK, PURPOSE, KEY_CLASS = "shadow", "rehearsal", "shadow"
PADS = 16
FILLER = ("filler", "filler")  # the association whose keys stand for stock that is not there
FILLER_BITS = CHUNK_BITS  # larger keys leave the last chunk of a Batch alone


# --- the wire --------------------------------------------------------------------------------------------------------


def split(packed: bytes) -> tuple[UUID, ...]:
    """Ids one by one."""
    return tuple(UUID(bytes=packed[i : i + 16]) for i in range(0, len(packed), 16))


def hear(link: str, sender: Call, receiver: Call, message: Message) -> None:
    """Hand a message of an outbox to the other vault, and what it answers back."""
    match message:
        case Allocate():
            outcome = receiver(ask.AcceptAllocation(link=link, allocate=message))
            if outcome != NOT_SETTLED:
                sender(ask.AllocationAnswered(link=link, request=message.request, outcome=outcome))
            return
        case Delivered(notice=number):
            receiver(ask.PeerDelivered(link=link, application=message.application, key_ids=split(message.key_ids)))
        case KeysRevoked(notice=number):
            receiver(FollowRevoked(link=link, message=message))
        case RotationWanted() | RotationProposed() | RotationStands() | RotationGivenUp():
            number = message.notice
            if not receiver(FollowRotation(link=link, message=message)):
                return
        case _:
            raise ValueError(message)
    sender(ask.OutboxCleared(link=link, numbers=(number,)))


def outbox(link: str, call: Call) -> list[Message]:
    """What waits for the neighbour."""
    return [entry.message for entry in call(ask.NeighbourOutbox(link=link, limit=1000))]


def carry(link: str, alice: Call, bob: Call, rounds: int = 20) -> None:
    """Carry everything until nothing waits. LocalProtocolError if something waits for ever."""
    for _ in range(rounds):
        waiting = [(alice, bob, message) for message in outbox(link, alice)]
        waiting += [(bob, alice, message) for message in outbox(link, bob)]
        if not waiting:
            return
        for sender, receiver, message in waiting:
            hear(link, sender, receiver, message)
    kinds = sorted({type(message).__name__ for call in (alice, bob) for message in outbox(link, call)})
    raise LocalProtocolError(f"these messages of link {link!r} wait for ever: {', '.join(kinds)}")


# --- the vaults ------------------------------------------------------------------------------------------------------


class End:
    """One scratch vault. `ahead_ns` is what its clock is said to have gone on by."""

    def __init__(self, directory: Path, role: str) -> None:
        self.role, self.ahead_ns = role, 0
        self._identity = make_identity("node", role)  # signs its log
        home = directory / role
        home.mkdir(mode=0o700)
        secret = os.open(home / "credential", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(secret, "wb") as file:
            file.write(os.urandom(32))
        self.vault = Vault.open(
            home / "vault.db",
            root=CredentialFile("credential", home),
            node=role,
            draw_into=draw_into,
            signer=self._identity,
            clock_ns=lambda: time.time_ns() + self.ahead_ns,
            create=True,
        )
        peer, pads = other_role(role), SecretBuffer.copy_of(bytes(32 * (PADS + GREETING_PADS)))
        self.call(ask.ProvisionLink(link=LINK, role=role, peer=peer, pair=b"shadow", material=pads))
        self.call(ask.OpenLink(link=LINK, role=role, peer=peer)).greeting_key.release()

    def call(self, request: Any) -> Any:
        """Ask its vault."""
        return self.vault.call(request)

    def close(self) -> None:
        """Close its vault; its keys go with it."""
        try:
            self.vault.close()
        finally:
            self._identity.release()

    def cut(self, association: Association, keys: int, size_bits: int, generation: int | None = None) -> None:
        """Cut keys from this end's half."""
        if keys > 0:
            entropy = os.urandom(16 * keys)
            its: dict[str, Any] = {"association": association, "count": keys, "size_bits": size_bits}
            self.call(ask.AllocateKeys(**its, entropy=entropy, generation=generation))


class Shadow:
    """A link of two scratch vaults. An association is named as this end, of `role`, names it."""

    def __init__(self, directory: Path, role: str) -> None:
        self.here, self.there = End(directory, role), End(directory, other_role(role))
        self._batches = 0
        self.associate(Association(*FILLER, LINK))

    @property
    def ends(self) -> tuple[End, End]:
        """This one and the other one."""
        return self.here, self.there

    @property
    def alice(self) -> End:
        """The end that decides."""
        return self.here if self.here.role == ALICE else self.there

    @property
    def bob(self) -> End:
        """The other."""
        return self.here if self.here.role == BOB else self.there

    def named_by(self, end: End, association: Association) -> Association:
        """An association as an end names it."""
        return association if end is self.here else association.mirrored()

    def associate(self, association: Association) -> None:
        """Make an association known to both."""
        for end in self.ends:
            nodes = (end.role, other_role(end.role))
            its = self.named_by(end, association)
            end.call(ask.Associate(association=its, nodes=nodes, link=LINK, purpose=PURPOSE, key_class=KEY_CLASS))

    def carry(self) -> None:
        """Carry everything between both."""
        carry(LINK, self.alice.call, self.bob.call)

    def stock(self, here: int, there: int, batches: int = 1) -> None:
        """Lay in random stock, so many bits of each half, whole bytes, in at most so many Batches.

        Halves of a Batch are equal: what one has too much is cut for nobody. The vaults must hold no other stock.
        """
        most = max(here, there)
        if not most:
            return
        batches = max(1, min(batches, most // FILLER_BITS))
        each = most // batches // FILLER_BITS * FILLER_BITS if batches > 1 else most
        for number in range(batches):
            self._lay_in(each if number < batches - 1 else most - each * (batches - 1))
        filler = Association(*FILLER, LINK)
        for end, wanted in ((self.here, here), (self.there, there)):
            keys, rest = divmod(most - wanted, FILLER_BITS)
            end.cut(self.named_by(end, filler), keys, FILLER_BITS)
            if rest:
                end.cut(self.named_by(end, filler), 1, rest)
        self.carry()

    def _lay_in(self, half_bits: int) -> None:
        self._batches += 1
        batch, bits = BatchId(1, self._batches), os.urandom(2 * half_bits // 8)  # of this shadow, and of nothing else
        record = ask.BatchRecord(
            batch=batch, bits_in=16 * len(bits), bits_out=8 * len(bits), refill_bits=0, method="rehearsal",
            booking="rehearsal", family="rehearsal", eps_sec=1.0, eps_cor=1.0, qber_z=0.0, disclosed_bits=0,
            devices=(), details={},
        )  # fmt: skip
        key = SecretBuffer.copy_of(bits)
        self.alice.call(ask.StorePending(link=LINK, record=record, key=key, commit=b"shadow"))
        self.bob.call(ask.StoreReady(link=LINK, record=record, key=SecretBuffer.copy_of(bits), answer=b"shadow"))
        self.alice.call(ask.SettlePending(link=LINK, batch=batch, ready=True))
        self.bob.call(ask.PeerReady(link=LINK, batches=(batch,)))
        self.alice.call(ask.ReadyAnnounced(link=LINK, batches=(batch,)))

    def close(self) -> None:
        """Close both."""
        for end in self.ends:
            end.close()


@contextmanager
def shadow(role: str, where: Path | None = None) -> Iterator[Shadow]:
    """A shadow in a directory of its own that only its owner may enter, and that is gone afterwards."""
    with TemporaryDirectory(prefix="qkdnode-rehearsal-", dir=where or scratch()) as name:
        made = Shadow(Path(name), role)
        try:
            yield made
        finally:
            made.close()


def scratch() -> Path | None:
    """Where files are in memory, if there is such a place; None: where temporary files are."""
    return IN_MEMORY if IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK | os.X_OK) else None


def draw_into(buffer: SecretBuffer) -> None:
    """The operating system's random numbers: they are for nothing that is kept."""
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))
