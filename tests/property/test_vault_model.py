"""Two vaults at the ends of a channel that loses, repeats and reorders, and ends that crash: a model says what holds.

No key is supplied again once acknowledged, none to another application, no bit of stock is in two keys, no pad is
reserved twice; and when the channel is good again both ends hold the same keys and the same stock.
"""

import random
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from signing import SIGNING

from qkdnode.errors import OutOfStockError, PoolExhaustedError
from qkdnode.ids import ALICE, BOB, Association, BatchId, KeyId, other_role
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.requests import (
    AcceptAllocation,
    AllocateKeys,
    AllocationAnswered,
    ApplicationOutbox,
    Associate,
    BatchRecord,
    FindAnswer,
    GrantPads,
    KeysDelivered,
    NeighbourOutbox,
    OpenKey,
    OpenLink,
    OutboxCleared,
    PeerDelivered,
    PeerReady,
    ProvisionLink,
    ReadyAnnounced,
    Request,
    ReservePads,
    SettlePending,
    StateLink,
    Status,
    StoreAbandoned,
    StorePending,
    StoreReady,
    UnannouncedReady,
)
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.service import Vault
from qkdnode.wire.messages import (
    ACCEPTED,
    Allocate,
    Allocated,
    BatchAnswer,
    BatchCommit,
    Delivered,
    Message,
    Received,
    Settled,
)

LINK = "metro"
NODES = {ALICE: "a", BOB: "b"}
PAIRS = (Association("payroll", "ledger", LINK), Association("mail", "post", LINK))
BITS, REFILL = 12_000, 1024
MEMORY = Path("/dev/shm")  # a kill is modelled, not a power loss: the disk would only cost time
ROLES = st.sampled_from((ALICE, BOB))
FATES = ("arrives", "arrives", "arrives", "repeats", "is lost")


class Ends(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.random = random.Random(5)
        self.time_ns = 1_700_000_000_000_000_000
        self.places = {role: self.root / f"{NODES[role]}-0" for role in (ALICE, BOB)}
        (self.root / "credential").write_bytes(bytes(32))
        self.vaults = {role: self.open(role, create=True) for role in (ALICE, BOB)}
        self.sent: list[tuple[str, Message]] = []  # (receiver, message)
        self.batches: dict[BatchId, bytes] = {}
        self.cuts: dict[KeyId, tuple[BatchId, str, int, int]] = {}
        self.applications: dict[KeyId, Association] = {}  # as Alice sees it
        self.keys: dict[KeyId, bytes] = {}
        self.accepted: set[bytes] = set()
        self.outcomes: dict[tuple[str, int], str] = {}
        self.acknowledged: dict[str, set[KeyId]] = {ALICE: set(), BOB: set()}
        self.pads: dict[str, set[Any]] = {ALICE: set(), BOB: set()}
        for role in (ALICE, BOB):
            material = SecretBuffer.copy_of(bytes(32 * 64))
            self.ask(
                role, ProvisionLink(link=LINK, role=role, peer=NODES[other_role(role)], pair=b"pair", material=material)
            )
            self.open_link(role)
            for pair in PAIRS:
                nodes = (NODES[role], NODES[other_role(role)])
                mine = self.seen_by(role, pair)
                self.ask(role, Associate(association=mine, nodes=nodes, link=LINK, purpose="t", key_class="qkd"))
        self.distil()
        while self.settle_round():
            pass

    # --- the two ends ---

    def open(self, role: str, *, create: bool = False) -> Vault:
        return Vault.open(
            self.places[role] / "vault.db",
            root=CredentialFile("credential", self.root),
            node=NODES[role],
            draw_into=self.draw_into,
            signer=SIGNING,
            clock_ns=self.clock_ns,
            create=create,
        )

    def draw_into(self, buffer: SecretBuffer) -> None:
        with memoryview(buffer) as view:
            view[:] = self.random.randbytes(len(view))

    def clock_ns(self) -> int:
        self.time_ns += 10**9
        return self.time_ns

    def ask(self, role: str, request: Request) -> Any:
        return self.vaults[role].call(request)

    def open_link(self, role: str) -> Any:
        return self.ask(role, OpenLink(link=LINK, role=role, peer=NODES[other_role(role)]))

    @staticmethod
    def seen_by(role: str, pair: Association) -> Association:
        return pair if role == ALICE else pair.mirrored()

    # --- what may happen ---

    @precondition(lambda self: len(self.batches) < 4)
    @rule()
    def distil(self) -> None:
        batch = BatchId(1, len(self.batches) + 1)
        self.batches[batch] = self.random.randbytes(BITS // 8)
        self.ask(ALICE, StorePending(link=LINK, record=self.record(batch), key=self.key(batch), commit=b"commit"))
        self.send_all(ALICE)

    @rule(role=ROLES, pair=st.sampled_from(PAIRS), count=st.integers(1, 6), size=st.sampled_from((8, 256, 2048)))
    def allocate(self, role: str, pair: Association, count: int, size: int) -> None:
        entropy = self.random.randbytes(16 * count)
        request = AllocateKeys(association=self.seen_by(role, pair), count=count, size_bits=size, entropy=entropy)
        try:
            ids = self.ask(role, request)
        except OutOfStockError:
            return
        self.applications.update(dict.fromkeys(ids, pair))
        for entry in self.ask(role, NeighbourOutbox(link=LINK, limit=1000)):
            if isinstance(entry.message, Allocate):
                self.note_cuts(role, entry.message)
        self.send_all(role)

    @rule(role=ROLES)
    def send_all(self, role: str) -> None:
        """Everything that a link sends again on reconnecting."""
        there = other_role(role)
        for unsettled in self.open_link(role).unsettled:
            self.sent.append((there, BatchCommit(unsettled.batch, bytes(16), BITS, REFILL)))
        ready = self.ask(role, UnannouncedReady(link=LINK))
        if ready:
            self.sent.append((there, Settled(ready)))
        self.sent.extend((there, entry.message) for entry in self.ask(role, NeighbourOutbox(link=LINK)))

    @precondition(lambda self: self.sent)
    @rule(
        place=st.integers(0, 10**6),
        fate=st.sampled_from(("arrives", "arrives", "arrives", "repeats", "is lost")),
        lost=st.booleans(),
    )
    def channel(self, place: int, fate: str, lost: bool) -> None:
        place %= len(self.sent)
        receiver, message = self.sent[place]
        if fate != "repeats":
            del self.sent[place]
        if fate != "is lost":
            self.receive(receiver, message, loses_bits=lost)

    @rule(role=ROLES, pair=st.sampled_from(PAIRS), acknowledge=st.booleans())
    def supply(self, role: str, pair: Association, acknowledge: bool) -> None:
        application = self.seen_by(role, pair).local
        for row in self.ask(role, ApplicationOutbox(application=application)):
            assert row.key_id not in self.acknowledged[role], "supplied again"
            assert self.applications[row.key_id] == pair, "supplied to another application"
            assert row.key_id.bytes in self.accepted, "supplied before the peer has it"
            with self.ask(role, OpenKey(key_id=row.key_id, application=application)) as key, memoryview(key) as view:
                self.check_key(row.key_id, view.tobytes())
            if acknowledge:
                self.ask(role, KeysDelivered(application=application, key_ids=(row.key_id,), details={}))
                self.acknowledged[role].add(row.key_id)

    @rule(role=ROLES, count=st.integers(1, 20), contiguous=st.booleans())
    def reserve(self, role: str, count: int, contiguous: bool) -> None:
        try:
            sending = self.ask(role, StateLink(link=LINK)).sending
            spans = self.ask(other_role(role), GrantPads(link=LINK, count=count, sending=sending))
            pads = self.ask(role, ReservePads(link=LINK, count=count, within=spans, contiguous=contiguous))
        except PoolExhaustedError:
            return
        assert self.pads[role].isdisjoint(pads), "a pad reserved twice"
        self.pads[role].update(pads)

    @rule(role=ROLES)
    def crash(self, role: str) -> None:
        """The files as a kill leaves them are opened again; nothing of the old process remains."""
        old, vault = self.places[role], self.vaults[role]
        name, _, number = old.name.partition("-")
        new = self.root / f"{name}-{int(number) + 1}"
        new.mkdir(mode=0o700)
        for file in ("vault.db", "vault.db-wal"):
            shutil.copy(old / file, new / file)
        vault.close()
        shutil.rmtree(old)
        self.places[role] = new
        self.vaults[role] = self.open(role)
        self.open_link(role)

    # --- how an end answers ---

    def receive(self, role: str, message: Message, *, loses_bits: bool = False) -> None:
        back = other_role(role)
        match message:
            case BatchCommit(batch=batch):
                answer = self.ask(BOB, FindAnswer(link=LINK, batch=batch))
                if answer is None:
                    answer = b"abandoned" if loses_bits else b"ready"
                    if loses_bits:
                        self.ask(BOB, StoreAbandoned(link=LINK, batch=batch, reason="lost", answer=answer))
                    else:
                        record = self.record(batch)
                        self.ask(BOB, StoreReady(link=LINK, record=record, key=self.key(batch), answer=answer))
                self.sent.append((back, BatchAnswer(batch, answer == b"ready")))
            case BatchAnswer(batch=batch, ready=ready):
                self.ask(ALICE, SettlePending(link=LINK, batch=batch, ready=ready))
            case Settled(ready=batches):
                self.ask(role, PeerReady(link=LINK, batches=batches))
                self.sent.append((back, Received(tuple(batch.number for batch in batches))))
            case Allocate():
                outcome = self.ask(role, AcceptAllocation(link=LINK, allocate=message))
                answered = self.outcomes.setdefault((role, message.request), outcome)
                assert outcome == answered, "a repeated request is answered otherwise"
                if outcome == ACCEPTED:
                    self.accepted.update(message.key_ids[i : i + 16] for i in range(0, len(message.key_ids), 16))
                self.sent.append((back, Allocated(message.request, outcome)))
            case Allocated(request=request, outcome=outcome):
                self.ask(role, AllocationAnswered(link=LINK, request=request, outcome=outcome))
            case Delivered(notice=notice, application=application, key_ids=packed):
                ids = tuple(UUID(bytes=packed[i : i + 16]) for i in range(0, len(packed), 16))
                self.ask(role, PeerDelivered(link=LINK, application=application, key_ids=ids))
                self.sent.append((back, Received((notice,))))
            case Received(notices=notices):
                numbers = tuple(number for number in notices if number > 4)  # those up to 4 are Batches here
                self.ask(role, OutboxCleared(link=LINK, numbers=numbers))
                known = tuple(BatchId(1, number) for number in notices if number <= 4)
                self.ask(role, ReadyAnnounced(link=LINK, batches=known))

    def record(self, batch: BatchId) -> BatchRecord:
        return BatchRecord(
            batch=batch, bits_in=BITS, bits_out=BITS, refill_bits=REFILL, method="m", booking="both", family="f",
            eps_sec=1e-10, eps_cor=1e-15, qber_z=0.02, disclosed_bits=5, devices=(), details={},
        )  # fmt: skip

    def key(self, batch: BatchId) -> SecretBuffer:
        return SecretBuffer.copy_of(self.batches[batch])

    def note_cuts(self, role: str, message: Allocate) -> None:
        for i in range(len(message.key_ids) // 16):
            key = UUID(bytes=message.key_ids[16 * i : 16 * i + 16])
            start = message.offset_bits + i * message.size_bits
            cut = (message.batch, role, start, start + message.size_bits)
            if self.cuts.setdefault(key, cut) != cut:
                raise AssertionError("a key is cut anew")
        taken = sorted(self.cuts.values())
        for before, after in pairwise(taken):
            assert before[:2] != after[:2] or before[3] <= after[2], "bits of stock in two keys"

    def check_key(self, key: KeyId, material: bytes) -> None:
        batch, owner, start, end = self.cuts[key]
        origin = REFILL // 8 + (0 if owner == ALICE else (BITS - REFILL) // 16)
        assert material == self.batches[batch][origin + start // 8 : origin + end // 8], "not the bits that were cut"
        assert self.keys.setdefault(key, material) == material, "another key under the same id"

    @invariant()
    def each_end_counts_its_acknowledged_keys(self) -> None:
        for role in (ALICE, BOB):
            status = self.ask(role, Status())
            assert status.keys.get("delivered", 0) == len(self.acknowledged[role])
            assert status.keys.get("damaged", 0) == 0

    def teardown(self) -> None:
        """The channel is good again: both ends come to hold the same."""
        try:
            while self.settle_round():
                pass
            for pair in PAIRS:
                held = []
                for role in (ALICE, BOB):
                    application = self.seen_by(role, pair).local
                    waiting = {
                        row.key_id for row in self.ask(role, ApplicationOutbox(application=application, limit=10**6))
                    }
                    held.append(waiting | {k for k in self.acknowledged[role] if self.applications[k] == pair})
                    self.supply(role, pair, True)
                assert held[0] == held[1], "one end holds a key that the other has not"
            alice, bob = (self.ask(role, Status()) for role in (ALICE, BOB))
            assert alice.stock_bits_own == bob.stock_bits_peer
            assert alice.stock_bits_peer == bob.stock_bits_own
            assert {**alice.keys, "burnt": 0} == {**bob.keys, "burnt": 0}
        finally:
            for vault in self.vaults.values():
                vault.close()
            shutil.rmtree(self.root)

    def settle_round(self) -> bool:
        for role in (ALICE, BOB):
            self.send_all(role)
        moved = bool(self.sent)
        while self.sent:
            self.receive(*self.sent.pop(0))
        return moved


TestEnds = Ends.TestCase
TestEnds.settings = settings(
    max_examples=35,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
