"""A pair of vaults at the two ends of the link `metro`, with one association, and what the tests do to them."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
from signing import SIGNING, Signing

from qkdnode.ids import ALICE, BOB, PROVISIONED, Association, BatchId, KeyId
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.entitlements import Allotment
from qkdnode.vault.requests import (
    AcceptAllocation,
    AllocateKeys,
    AllocationAnswered,
    Associate,
    BatchRecord,
    Entitle,
    NeighbourOutbox,
    OpenKey,
    OpenLink,
    PeerReady,
    PolicyVersion,
    ProvisionLink,
    ReadyAnnounced,
    SettledBatch,
    SettlePending,
    StorePending,
    StoreReady,
)
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.segments import GREETING_PADS
from qkdnode.vault.service import Vault
from qkdnode.wire.messages import Allocate, PadSpan

LINK = "metro"
HERE = Association("payroll", "ledger", LINK)
NODES = {ALICE: "a", BOB: "b"}
FIRST = BatchId(1, 1)
EVERYWHERE = tuple(PadSpan(segment, 0, 2**20) for segment in (PROVISIONED, FIRST))  # what a generous peer has granted
SECOND_NS = 10**9
START_NS = 1_700_000_000_000_000_000


class Counter:
    """A deterministic source for keys and times: each draw is new."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.days = 0  # that the wall clock is ahead
        self.ahead_ns = 0  # what a test has let pass

    def draw_into(self, buffer: SecretBuffer) -> None:
        number = next(self._numbers)
        with memoryview(buffer) as view:
            for i in range(0, len(view), 8):
                piece = (number << 32 | i).to_bytes(8, "little")
                view[i : i + 8] = piece[: len(view) - i]

    def clock_ns(self) -> int:
        return START_NS + self.days * 86_400 * 10**9 + self.ahead_ns + next(self._numbers)


class End:
    """One end: where its vault is, and how to open it again."""

    def __init__(self, directory: Path, role: str) -> None:
        self.role = role
        self.directory = directory / NODES[role]
        self.path = self.directory / "vault.db"
        self.association = HERE if role == ALICE else HERE.mirrored()
        self.counter = Counter()
        self.vault = self.open(create=True)

    def root(self) -> CredentialFile:
        secret = self.directory / "credential"
        if not secret.exists():
            self.directory.mkdir(mode=0o700, exist_ok=True)
            secret.write_bytes(b"0123456789abcdef" + self.role.encode())
        return CredentialFile("credential", self.directory)

    def open(self, *, create: bool = False, node: str | None = None, signer: Signing = SIGNING) -> Vault:
        self.vault = Vault.open(
            self.path,
            root=self.root(),
            node=node or NODES[self.role],
            draw_into=self.counter.draw_into,
            signer=signer,
            clock_ns=self.counter.clock_ns,
            create=create,
        )
        return self.vault

    def reopen(self) -> Vault:
        self.vault.close()
        return self.open()

    def call(self, request: Any) -> Any:
        return self.vault.call(request)

    def provision(self, pads: int = 256) -> None:
        material = SecretBuffer.copy_of(bytes(i % 251 for i in range(32 * (pads + GREETING_PADS))))
        self.call(
            ProvisionLink(link=LINK, role=self.role, peer=NODES[_other(self.role)], pair=b"pair", material=material)
        )

    def open_link(self) -> Any:
        state = self.call(OpenLink(link=LINK, role=self.role, peer=NODES[_other(self.role)]))
        if state.greeting_key is not None:
            state.greeting_key.release()
        return state

    def associate(self, association: Association | None = None) -> None:
        nodes = (NODES[self.role], NODES[_other(self.role)])
        wanted = association or self.association
        self.call(Associate(association=wanted, nodes=nodes, link=LINK, purpose="test", key_class="qkd"))

    def agreed(self, size_bits: int = 256) -> bytes:
        """What an Allocate for the association must say that both ends agree on."""
        its = self.call(Entitle(association=self.association, size_bits=size_bits))
        return Allotment(its.key_class, its.policy, its.terms, its.binding).agreed

    @property
    def now_ns(self) -> int:
        """About the time of the vault."""
        return START_NS + self.counter.ahead_ns

    def approvals(self, document: bytes, **changes: Any) -> tuple[bytes, ...]:
        """What people sign for its next policy, or for another."""
        from approving import approvals  # beside tests/unit: benchmarks that use this module have not got it

        return approvals(self.call, NODES[self.role], self.now_ns, document, **changes)

    def apply(self, approved: bytes, /, **changes: Any) -> PolicyVersion:
        """Have a policy applied, approved by both; or something else asked under these approvals."""
        from approving import application_of

        version: PolicyVersion = self.call(
            application_of(self.call, NODES[self.role], self.now_ns, approved, **changes)
        )
        return version

    @contextmanager
    def tampering(self) -> Iterator[apsw.Connection]:
        """The vault's file through a second connection."""
        connection = apsw.Connection(str(self.path))
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def _other(role: str) -> str:
    return BOB if role == ALICE else ALICE


def record_of(batch: BatchId, bits_out: int, refill_bits: int) -> BatchRecord:
    return BatchRecord(
        batch=batch,
        bits_in=3 * bits_out,
        bits_out=bits_out,
        refill_bits=refill_bits,
        method="rusca2018/1",
        booking="both",
        family="toeplitz",
        eps_sec=1e-10,
        eps_cor=1e-15,
        qber_z=0.02,
        disclosed_bits=bits_out,
        devices=("TX-1",),
        details={"blocks": 2},
    )


def material_of(batch: BatchId, bits_out: int) -> bytes:
    """What both ends distilled."""
    seed = batch.number * 7919 + batch.session
    return bytes((seed + i * 31 + (i >> 8) * 17) & 255 for i in range((bits_out + 7) // 8))


class Pair:
    """Alice's and Bob's vaults, provisioned and associated."""

    def __init__(self, directory: Path) -> None:
        self.alice, self.bob = End(directory, ALICE), End(directory, BOB)
        for end in self.ends:
            end.provision()
            end.open_link()
            end.associate()

    @property
    def ends(self) -> tuple[End, End]:
        return self.alice, self.bob

    def close(self) -> None:
        for end in self.ends:
            end.vault.close()

    def journal(self, batch: BatchId = FIRST, bits_out: int = 70_000, refill_bits: int = 4096) -> None:
        """PENDING at Alice's, READY at Bob's."""
        record, material = record_of(batch, bits_out, refill_bits), material_of(batch, bits_out)
        key = SecretBuffer.copy_of(material)
        self.alice.call(StorePending(link=LINK, record=record, key=key, commit=b"commit %d" % batch.number))
        key = SecretBuffer.copy_of(material)
        self.bob.call(StoreReady(link=LINK, record=record, key=key, answer=b"answer %d" % batch.number))

    def settle(self, batch: BatchId = FIRST) -> SettledBatch:
        settled: SettledBatch = self.alice.call(SettlePending(link=LINK, batch=batch, ready=True))
        self.bob.call(PeerReady(link=LINK, batches=(batch,)))
        self.alice.call(ReadyAnnounced(link=LINK, batches=(batch,)))
        return settled

    def stock(self, batch: BatchId = FIRST, bits_out: int = 70_000, refill_bits: int = 4096) -> None:
        self.journal(batch, bits_out, refill_bits)
        self.settle(batch)

    def allocate(self, end: End, count: int = 3, size_bits: int = 256) -> tuple[KeyId, ...]:
        ids: tuple[KeyId, ...] = end.call(
            AllocateKeys(association=end.association, count=count, size_bits=size_bits, entropy=os.urandom(16 * count))
        )
        return ids

    def exchange(self) -> None:
        """Carry every waiting Allocate over and its answer back."""
        for end, other in (self.ends, self.ends[::-1]):
            for allocate in waiting(end):
                outcome = other.call(AcceptAllocation(link=LINK, allocate=allocate))
                end.call(AllocationAnswered(link=LINK, request=allocate.request, outcome=outcome))

    def ready(self, end: End | None = None, count: int = 3, size_bits: int = 256) -> tuple[KeyId, ...]:
        ids = self.allocate(end or self.alice, count, size_bits)
        self.exchange()
        return ids


def waiting(end: End) -> list[Allocate]:
    entries = end.call(NeighbourOutbox(link=LINK, limit=1000))
    return [entry.message for entry in entries if isinstance(entry.message, Allocate)]


def contents(end: End, key_id: KeyId, application: str | None = None) -> bytes:
    """The key in the clear: for comparisons in tests alone."""
    opened = end.call(OpenKey(key_id=key_id, application=application or end.association.local))
    with opened, memoryview(opened) as view:
        return view.tobytes()
