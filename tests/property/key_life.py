"""Every state of one key at two nodes, enumerated: both ends are real vaults, the wire and the applications are free.

What a vault does with an input depends on the state of its file alone. So each vault's automaton is found by doing
every input once in every state that it can be in, on a database in memory that is put back between; the product of both
automata, with a wire that loses, repeats and reorders all that was ever sent, is then searched whole. Trusted time of
each end goes on in steps of its own, past one end of the key after the other.
"""

import hashlib
import hmac
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import apsw
import msgspec
from approving import application_of, policy
from signing import SIGNING
from virtual_disk import VirtualDisk

from qkdnode.errors import QkdnodeError
from qkdnode.ids import ALICE, BOB, Association, BatchId, binding_digest, other_role
from qkdnode.lifecycle.clockguard import Standing
from qkdnode.lifecycle.policy.decision import terms_digest
from qkdnode.lifecycle.policy.document import parse
from qkdnode.lifecycle.reasons import Reason
from qkdnode.lifecycle.states import STAGE_OF_LETTER, STAGES, Stage
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import requests as ask
from qkdnode.vault.core import VaultCore
from qkdnode.vault.disk import Disk
from qkdnode.vault.entitlements import Allotment
from qkdnode.vault.fetches import FetchKeys
from qkdnode.vault.holdings import HoldingsNode
from qkdnode.vault.journal import Mark
from qkdnode.vault.retirement import FollowRetired, RetireKeys
from qkdnode.vault.revocations import FollowRevoked, RevokeKeys
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.scopes import Compromise, FollowCompromise, MoveRows
from qkdnode.wire.messages import (
    Allocate,
    Allocated,
    Compromised,
    Delivered,
    KeysRetired,
    KeysRevoked,
    Message,
    Received,
)

LINK, BATCH, REFILL, BITS = "metro", BatchId(1, 1), 4096, 4096 + 512
MATERIAL = hashlib.shake_256(b"batch").digest(BITS // 8)
NODES = {ALICE: "a", BOB: "b"}
HERE = Association("payroll", "ledger", LINK)
KEY = UUID(bytes=bytes(range(16)), version=4)
PATH = Path("/vault.db")
USED_UP = frozenset(stage for stage in Stage if stage not in (Stage.ALLOCATED, Stage.READY, Stage.QUARANTINED))
OUT_OF_USE = USED_UP - {Stage.DELIVERED}

SECOND_NS = 10**9
BASE_NS = 1_700_000_000 * SECOND_NS
AGE_S, LIFETIME_S, RETAIN_S, GRACE_S = 100, 5000, 5000, 60
# After the start at each level of time: at once, past the key's age, so far that both ends end it, past its lifetime,
# past the time that it is kept.
LEVELS_S = (0, AGE_S + GRACE_S // 2, 1000, 20_000, 60_000)
LAST = len(LEVELS_S) - 1
TERMS = f"max_age_at_release_s = {AGE_S}\nlifetime_s = {LIFETIME_S}\nretain_key_s = {RETAIN_S}"
TIMED = policy(TERMS, name="qkd", purpose="session")
DECOY = policy("decoys = 1", name="qkd", purpose="session")
HELD = policy(f"{TERMS}\nlegal_hold = true", name="qkd", purpose="session")

E = TypeVar("E", bound="End")
Token = tuple[str, ...]  # a message without its number
Input = tuple[str, ...]


class Violation(Exception):
    """What must not be, and the inputs that lead there."""


class View(NamedTuple):
    """All of one vault that has to do with the key."""

    stage: Stage | None
    far: bool
    sealed: bool  # its ciphertext is there
    offered: bool  # in the application's outbox
    opens: bool
    outstanding: int
    outbox: frozenset[Token]
    answered: str | None  # what the neighbour's Allocate was answered
    buried: bool  # a tombstone
    scope: str
    batch: str
    stock: int
    level: int  # of trusted time
    waits_s: int | None  # since when it is cut and not used, in trusted time from the start
    used_s: int | None
    kept_s: int | None
    root: bytes  # over all that it holds
    told: tuple[str, ...] = ()  # stages of the notices that wait for the application


class Applications(NamedTuple):
    """What each application has and has acknowledged: Alice's, Bob's."""

    has: tuple[bool, bool]
    acknowledged: tuple[bool, bool]


class World(NamedTuple):
    """Both vaults, all that was ever sent, both applications."""

    views: tuple[View, View]
    sent: tuple[frozenset[Token], frozenset[Token]]  # by Alice, by Bob
    applications: Applications
    revoked: bool  # somebody has revoked the key, or it may have come to its end


class MemoryDisk(Disk):
    """One database in memory."""

    def __init__(self, image: bytes) -> None:
        self._image = image

    def demand_private_directory(self, directory: Path, create: bool) -> None: ...
    def demand_private_file(self, path: Path) -> None: ...
    def unlock(self, held: int) -> None: ...

    def lock(self, path: Path) -> int:
        return 0

    def exists(self, path: Path) -> bool:
        return True

    def connect(self, path: Path) -> apsw.Connection:
        connection = apsw.Connection(":memory:")
        connection.deserialize("main", self._image)
        return connection


class Moment(msgspec.Struct):
    """A vault as it can be put back."""

    image: bytes
    mark: Mark


class End:
    """One vault, its states so far, and what each input does in each of them."""

    def __init__(self, role: str, directory: Path, document: bytes) -> None:
        self.document = document
        self.decoy = document == DECOY
        self.level = 0
        self.role, self.there = role, other_role(role)
        self._draws = 0
        self._now_ns = 1_700_000_000_000_000_000
        self._root = CredentialFile("credential", directory)
        self.association = HERE if role == ALICE else HERE.mirrored()
        self._core = self._open(MemoryDisk(self._stocked()), create=False)
        self._store = self._core._store
        self._moments: dict[View, Moment] = {}
        self._numbers: dict[View, dict[Token, int]] = {}
        self._known: dict[tuple[View, Input], tuple[View, tuple[Token, ...]]] = {}
        self.bits = b""  # of the key, once it was opened
        self.first = self._look()

    # --- the real vault ---

    def _open(self, disk: Disk, *, create: bool) -> VaultCore:
        return VaultCore.open(
            PATH,
            root=self._root,
            node=NODES[self.role],
            draw_into=self._draw_into,
            signer=SIGNING,
            clock_ns=self._clock_ns,
            create=create,
            disk=disk,
            trusted_from=lambda known_ns, withheld_ns: self._standing,
        )

    def _draw_into(self, buffer: SecretBuffer) -> None:
        self._draws += 1
        with memoryview(buffer) as view:
            view[:] = hashlib.shake_256(b"%d" % self._draws).digest(len(view))

    def _clock_ns(self) -> int:
        self._now_ns += 1000
        return self._now_ns

    def _standing(self) -> Standing:
        return Standing(BASE_NS + LEVELS_S[self.level] * SECOND_NS, 0, None)

    def _stocked(self) -> bytes:
        """The file of a vault with one settled Batch."""
        disk = VirtualDisk()
        core = self._open(disk, create=True)

        def call(request: ask.Request) -> Any:
            (outcome,) = core.group([request])
            if outcome.error is not None:
                raise outcome.error
            return outcome.value

        peer = NODES[self.there]
        with SecretBuffer.copy_of(bytes(32 * 64)) as pads:
            call(ask.ProvisionLink(link=LINK, role=self.role, peer=peer, pair=b"pair", material=pads))
        state = call(ask.OpenLink(link=LINK, role=self.role, peer=peer))
        for buffer in (state.greeting_key, *(segment.material for segment in state.segments)):
            buffer.release()
        nodes = (NODES[self.role], peer)
        call(ask.Associate(association=self.association, nodes=nodes, link=LINK, purpose="t", key_class="qkd"))
        call(application_of(call, NODES[self.role], self._now_ns, self.document))
        record = ask.BatchRecord(
            batch=BATCH, bits_in=BITS, bits_out=BITS, refill_bits=REFILL, method="m", booking="both", family="f",
            eps_sec=1e-10, eps_cor=1e-15, qber_z=0.02, disclosed_bits=5, devices=("D",), details={},
        )  # fmt: skip
        with SecretBuffer.copy_of(MATERIAL) as key:
            if self.role == ALICE:
                call(ask.StorePending(link=LINK, record=record, key=key, commit=b"commit"))
                settled = call(ask.SettlePending(link=LINK, batch=BATCH, ready=True))
                call(ask.ReadyAnnounced(link=LINK, batches=(BATCH,)))
                opened = [settled.segment]
            else:
                opened = [call(ask.StoreReady(link=LINK, record=record, key=key, answer=b"answer")).segment]
                opened += call(ask.PeerReady(link=LINK, batches=(BATCH,)))
        for segment in opened:
            segment.material.release()
        core.finish()
        core.close()
        image = bytearray(disk.after_kill()[str(PATH)])
        disk.close()
        image[18:20] = b"\x01\x01"  # a database in memory has no write-ahead log
        return bytes(image)

    def _call(self, request: ask.Request) -> Any:
        (outcome,) = self._core.group([request])
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def _put_back(self, view: View) -> None:
        self.level = view.level
        moment = self._moments[view]
        mark = moment.mark
        self._core._connection.deserialize("main", moment.image)
        self._store.journal.rewind(
            msgspec.structs.replace(mark, frontier=mark.frontier.copy(), topics=dict(mark.topics))
        )
        self._store.forget()
        self._store.decoys = None  # of another file

    def _look(self) -> View:
        """The state that the vault is in, remembered if it is new."""
        rows = self._core._connection.execute
        bundles = rows("SELECT states, far, outstanding, waits_ns, used_ns, kept_ns FROM bundles").fetchall()
        if len(bundles) > 1:
            raise Violation(f"{self.role} has cut the key {len(bundles)} times")
        tokens = {token_of(entry.message): entry.number for entry in self._outbox()}
        scopes = rows("SELECT moving FROM scopes").fetchall()
        stage, far, outstanding = None, False, 0
        times: list[int | None] = [None, None, None]
        if bundles:
            ((states, far_bytes, outstanding, *times_ns),) = bundles
            times = [None if ns is None else (ns - BASE_NS) // SECOND_NS for ns in times_ns]
            stage, far = STAGE_OF_LETTER[states[0]], bool(far_bytes[0])
        offered = bool(self._call(ask.ApplicationOutbox(application=self.association.local)))
        answers = [row[0] for row in rows("SELECT outcome FROM requests")]
        view = View(
            stage=stage,
            far=far,
            sealed=bool(rows("SELECT 1 FROM keys").fetchall()),
            offered=offered,
            opens=self._opens(),
            outstanding=self._call(ask.Outstanding(association=self.association)) if self.decoy else outstanding,
            outbox=frozenset(tokens),
            answered=answers[0] if answers else None,
            buried=bool(rows("SELECT 1 FROM tombstones").fetchall()),
            scope="none" if not scopes else "moving" if scopes[0][0] else "done",
            batch=rows("SELECT state FROM batches").fetchall()[0][0],
            stock=rows("SELECT coalesce(sum(bits), 0) FROM chunks WHERE half = 'alice'").fetchall()[0][0],
            level=self.level,
            waits_s=times[0],
            used_s=times[1],
            kept_s=times[2],
            root=self._call(HoldingsNode(link=LINK)).digest,
            told=tuple(stage for (stage,) in rows("SELECT stage FROM endings ORDER BY number")),
        )
        if view not in self._moments:
            self._moments[view] = Moment(self._core._connection.serialize("main"), self._store.journal.mark())
            self._numbers[view] = tokens
        return view

    def _outbox(self) -> tuple[ask.OutboxEntry, ...]:
        entries: tuple[ask.OutboxEntry, ...] = self._call(ask.NeighbourOutbox(link=LINK))
        for entry in entries:
            if (
                self.decoy
                and isinstance(entry.message, Allocate)
                and entry.message.mark != allocation(self.document).mark
            ):
                raise Violation("a decoy goes to the other end as a key")
        return entries

    def _opens(self) -> bool:
        """Whether the key may be had, as it is pushed and as it is fetched by its id, which must be the same."""
        given = self._is_fetched()
        try:
            opened = self._call(ask.OpenKeys(key_ids=(KEY,), application=self.association.local))
        except QkdnodeError:
            if given:
                raise Violation(f"{self.role} gives a key to who fetches it, and opens it for nobody") from None
            return False
        if not given:
            opened.material.release()
            raise Violation(f"{self.role} opens a key, and refuses it to who fetches it")
        with opened.material as material, memoryview(material) as view:
            bits = view.tobytes()
        if self.bits not in (b"", bits):
            raise Violation(f"{self.role} opens other bits than before")
        self.bits = bits
        return True

    def _is_fetched(self) -> bool:
        try:
            fetched = self._call(FetchKeys(key_ids=(KEY,), association=self.association, size_bits=256))
        except QkdnodeError:
            return False
        if fetched.opened is not None:
            fetched.opened.material.release()
        return fetched.opened is not None

    # --- its automaton ---

    @property
    def views(self) -> list[View]:
        """Every state that was met."""
        return list(self._moments)

    def step(self, view: View, what: Input) -> tuple[View, tuple[Token, ...]]:
        """What an input leads to, and what is answered at once."""
        known = self._known.get((view, what))
        if known is None:
            self._put_back(view)
            said = tuple(token_of(message) for message in self._do(view, what))
            known = self._known[view, what] = (self._look(), said)
        return known

    def survives_restart(self, view: View) -> bool:
        """Whether the vault is in the same state when it is opened anew from its file."""
        before, store = self._core, self._store
        self.level = view.level
        try:
            self._core = self._open(MemoryDisk(self._moments[view].image), create=False)
            self._store = self._core._store
            return self._look() == view
        finally:
            self._core.close()
            self._core, self._store = before, store

    def close(self) -> None:
        """Wipe its keys."""
        self._core.close()

    def _do(self, view: View, what: Input) -> list[Message]:
        kind, *rest = what
        match kind:
            case "allocate":
                kind_ = ask.KeepDecoys if self.decoy else ask.AllocateKeys
                self._call(kind_(association=HERE, count=1, size_bits=256, entropy=KEY.bytes))
            case "acknowledge":
                local = self.association.local
                self._call(ask.KeysDelivered(application=local, key_ids=(KEY,), details={}))
            case "revoke":
                self._call(RevokeKeys(key_ids=(KEY,), reason=rest[0], by="olga"))
            case "compromise":
                self._call(Compromise(kind="link", value=LINK, reason=Reason.KEY_COMPROMISE.value, by="olga"))
            case "move":
                self._call(MoveRows())
            case "late":
                self.level += 1
            case "retire":
                self._call(RetireKeys())
            case "Allocate":
                outcome = self._call(ask.AcceptAllocation(link=LINK, allocate=allocation(self.document)))
                return [Allocated(allocation(self.document).request, outcome)]
            case "Allocated":
                number = self._numbers[view].get(("Allocate",), 10**9)
                self._call(ask.AllocationAnswered(link=LINK, request=number, outcome=rest[0]))
            case "Delivered":
                far = self.association.remote
                self._call(ask.PeerDelivered(link=LINK, application=far, key_ids=(KEY,)))
                return [receipt(what)]
            case "KeysRevoked":
                message = KeysRevoked(0, rest[0], KEY.bytes, rest[1].encode())  # type: ignore[arg-type]
                self._call(FollowRevoked(link=LINK, message=message))
                return [receipt(what)]
            case "KeysRetired":
                retired = KeysRetired(0, rest[0], KEY.bytes, rest[1].encode())  # type: ignore[arg-type]
                self._call(FollowRetired(link=LINK, message=retired))
                return [receipt(what)]
            case "Compromised":
                first, last = (BatchId(int(rest[i]), int(rest[i + 1])) for i in (0, 2))
                message_ = Compromised(0, Reason.KEY_COMPROMISE.value, first, last, "")  # type: ignore[arg-type]
                self._call(FollowCompromise(link=LINK, message=message_))
                return [receipt(what)]
            case "Received":
                number = self._numbers[view].get(tuple(rest), 10**9)
                self._call(ask.OutboxCleared(link=LINK, numbers=(number,)))
            case _:
                raise ValueError(what)
        return []


@cache
def allocation(document: bytes) -> Allocate:
    """Alice's one request, from the beginning of her half."""
    (terms,) = parse(document).classes
    applications = (HERE.local, HERE.remote)
    binding = binding_digest(
        nodes=(NODES[ALICE], NODES[BOB]), applications=applications, source=LINK, purpose="session"
    )
    agreed = Allotment("qkd", 1, terms_digest(terms), binding).agreed
    bits = MATERIAL[REFILL // 8 :][:32]
    mark = hmac.digest(bits, b"qkdnode decoy/1\0" + KEY.bytes, "sha256")[:16] if document == DECOY else bytes(16)
    return Allocate(77, HERE.local, HERE.remote, BATCH, 0, 256, KEY.bytes, "qkd", agreed, mark=mark)


_RECEIPTS: dict[int, Token] = {}


def receipt(token: Token) -> Received:
    """The receipt of a message: its number stands for the token."""
    number = int.from_bytes(hashlib.sha256(repr(token).encode()).digest()[:7])
    _RECEIPTS[number] = token
    return Received((number,))


def token_of(message: Message) -> Token:
    """A message without its number."""
    match message:
        case Allocate():
            if (message.offset_bits, message.size_bits, message.key_ids) != (0, 256, KEY.bytes):
                raise Violation("another key than the one that was asked for is allocated")
            return ("Allocate",)
        case Allocated(outcome=outcome):
            return ("Allocated", outcome)
        case Delivered():
            return ("Delivered",)
        case KeysRevoked(reason=reason, stages=stages):
            return ("KeysRevoked", reason, stages.decode())
        case KeysRetired(rule=rule, stages=stages):
            return ("KeysRetired", rule, stages.decode())
        case Compromised(first=first, last=last):
            return ("Compromised", *map(str, (first.session, first.number, last.session, last.number)))
        case Received(notices=(number,)):
            return ("Received", *_RECEIPTS[number])
    raise ValueError(message)


ORDERS: tuple[Input, ...] = (
    ("revoke", Reason.SUPERSEDED.value),
    ("revoke", Reason.KEY_COMPROMISE.value),
    ("compromise",),
)
TIME: Input = ("late",)
EVERYTHING = (ORDERS, ORDERS)


@contextmanager
def both_ends(document: bytes = TIMED, kind: type[E] = End) -> Iterator[tuple[E, E]]:  # type: ignore[assignment]
    """Both vaults, stocked, under a policy."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "credential").write_bytes(bytes(range(32)))
        ends = (kind(ALICE, directory, document), kind(BOB, directory, document))
        try:
            yield ends
        finally:
            for end in ends:
                end.close()


class Search:
    """Looks at every world that can come about with these orders of Alice's and Bob's operators."""

    def __init__(
        self,
        ends: tuple[End, End],
        orders: tuple[tuple[Input, ...], tuple[Input, ...]] = EVERYTHING,
        last: int = LAST,
    ) -> None:
        self.ends, self._orders, self._last = ends, orders, last
        self._decoy = ends[0].decoy
        self.worlds = self.transitions = 0
        self._timed = any(TIME in some for some in orders)
        self._settled: dict[tuple[tuple[View, View], Applications, bool], None] = {}

    def run(self) -> None:
        """Search all; Violation with the way to the first thing that must not be."""
        nobody = Applications((False, False), (False, False))
        first = World((self.ends[0].first, self.ends[1].first), (frozenset(), frozenset()), nobody, False)
        came: dict[World, tuple[World, Input] | None] = {first: None}
        todo = deque([first])
        while todo:
            world = todo.popleft()
            self.worlds += 1
            for what, following in self._following(world, came):
                self.transitions += 1
                if following not in came:
                    came[following] = (world, what)
                    todo.append(following)
            if self._decoy and any(view.outstanding or view.told for view in world.views):
                raise Violation(f"somebody waits for a decoy, or is told of it; after {_way(came, world)}")
            try:
                self._demand_settling(world)
            except Violation as fault:
                raise Violation(f"{fault}; after {_way(came, world)}") from None

    def _following(self, world: World, came: dict[World, Any]) -> Iterator[tuple[Input, World]]:
        for side in (0, 1):
            for what in self._inputs(world, side):
                try:
                    yield (NODES[ALICE] if side == 0 else NODES[BOB], *what), self._after(world, side, what)
                except (Violation, QkdnodeError) as fault:
                    raise Violation(f"{fault}; after {_way(came, world)} {side}:{what}") from None

    def _inputs(self, world: World, side: int) -> Iterator[Input]:
        view, applications = world.views[side], world.applications
        if side == 0 and view.stage is None and not world.revoked:
            yield ("allocate",)
        if view.offered or view.opens:
            if self._decoy:
                raise Violation(f"a decoy is supplied by {self.ends[side].role}")
            yield ("take",)
        if applications.has[side]:
            yield ("acknowledge",)
        for order in self._orders[side]:
            if order == TIME:
                if view.level < self._last:
                    yield order
                if view.level:
                    yield ("retire",)
            elif order[0] != "revoke" or view.stage is not None:
                yield order
        if view.scope == "moving":
            yield ("move",)
        yield from world.sent[1 - side]

    def _after(self, world: World, side: int, what: Input) -> World:
        """The world once one end has had an input. Checks the step."""
        before = world.views[side]
        applications = world.applications
        if what == ("take",):
            self._demand_release(world, side)
            return world._replace(applications=applications._replace(has=_with(applications.has, side)))
        then, said = self.ends[side].step(before, what)
        self._demand_sound(side, before, then)
        if what == ("retire",):
            self._demand_due(side, before, then)
        if what == ("acknowledge",):
            applications = applications._replace(acknowledged=_with(applications.acknowledged, side))
        if applications.acknowledged[side] and (then.offered or then.opens):
            raise Violation("a key is supplied again after its application has acknowledged it")
        sent = [set(world.sent[0]), set(world.sent[1])]
        sent[side].update(said, then.outbox)
        views = (then, world.views[1]) if side == 0 else (world.views[0], then)
        revoked = world.revoked or what[0] in ("revoke", "compromise", "late")
        return World(views, (frozenset(sent[0]), frozenset(sent[1])), applications, revoked)

    def _demand_release(self, world: World, side: int) -> None:
        view, other = world.views[side], world.views[1 - side]
        if view.stage is not Stage.READY:
            raise Violation(f"a key is released that is {view.stage}")
        if view.scope != "none":
            raise Violation("a key is released that a compromise reaches")
        if other.stage is None:
            raise Violation("a key is released that the other end has not got")
        if view.waits_s is None or LEVELS_S[view.level] > view.waits_s + AGE_S:
            raise Violation("a key is released past its end")
        if self.ends[0].bits and self.ends[1].bits and self.ends[0].bits != self.ends[1].bits:
            raise Violation("the ends release different bits")

    def _demand_due(self, side: int, before: View, then: View) -> None:
        """A timer ends nothing before its time, and nothing that is on hold."""
        if then.stage is before.stage or before.stage is None:
            return
        now_s, since_s, span_s = LEVELS_S[then.level], before.waits_s, AGE_S
        if before.stage is Stage.DELIVERED:
            since_s, span_s = before.used_s, LIFETIME_S
        elif before.stage is Stage.DEACTIVATED:
            since_s, span_s = before.kept_s, RETAIN_S
        grace_s = GRACE_S if span_s == AGE_S else 0
        if since_s is None or now_s < since_s + span_s + grace_s:
            raise Violation(f"a key that is {before.stage} ends before its time")
        if self.ends[side].document == HELD and then.stage is Stage.DESTROYED:
            raise Violation("a timer destroys a key that is on hold")

    @staticmethod
    def _demand_sound(side: int, before: View, then: View) -> None:
        if then.stage is not None and then.sealed != STAGES[then.stage].holds:
            raise Violation(f"a key is {then.stage} and its bits are {'there' if then.sealed else 'gone'}")
        if before.stage in OUT_OF_USE and then.stage not in OUT_OF_USE:
            raise Violation(f"a key that was {before.stage} is {then.stage} again")
        if before.stage in USED_UP and then.stage not in USED_UP:
            raise Violation(f"a key that was {before.stage} is to be supplied again: it is {then.stage}")
        now_s = LEVELS_S[then.level]
        if None not in (before.waits_s, then.waits_s) and before.waits_s != then.waits_s:
            raise Violation("a key was cut at another time than before")
        if before.stage is None and then.stage is not None and then.waits_s != now_s:
            raise Violation(f"a key that was cut at {now_s} s has another time: {then.waits_s}")
        if then.stage is not before.stage and then.stage is Stage.DELIVERED and then.used_s != now_s:
            raise Violation(f"a key that was delivered at {now_s} s has another time: {then.used_s}")
        if then.stage is not before.stage and then.stage is Stage.DEACTIVATED and then.kept_s != now_s:
            raise Violation(f"a key that was deactivated at {now_s} s has another time: {then.kept_s}")
        if before.scope != "none" and then.scope == "none":
            raise Violation("a compromise is forgotten")
        if then.scope == "done" and then.stage not in (None, *OUT_OF_USE):
            raise Violation(f"a compromise is done with, and its key is {then.stage}")
        if before.far and not then.far:
            raise Violation("what the other application has is forgotten")
        if side == 0 and then.stage is not None and then.stock > before.stock:
            raise Violation("bits of a key come back into stock")

    def _demand_settling(self, world: World) -> None:
        """With a wire that works both ends come to the same, and nothing waits for ever."""
        key = (world.views, world.applications, world.revoked)
        if key in self._settled:
            return
        self._settled[key] = None
        was_ready = any(view.stage is Stage.READY for view in world.views)
        for _ in range(80):
            after = self._fair_round(world)
            if after.views == world.views and after.applications == world.applications:
                if not self._timed or all(view.level == self._last for view in world.views):
                    break
                after = self._later(after)
            world = after
        else:
            raise Violation("the ends never settle")
        here, there = world.views
        for view in world.views:
            self._demand_ended(view)
        if self.ends[0].document == HELD:
            return  # what is on hold has no end, the same or another
        if here.outbox or there.outbox:
            raise Violation(f"messages wait for ever: {here.outbox or there.outbox}")
        if there.stage is None:
            if here.stage is not None and here.stage not in OUT_OF_USE:
                raise Violation(f"a key is {here.stage} at one end, and the other has none")
        elif (here.stage, here.far) != (there.stage, there.far) and here.stage is not there.stage:
            raise Violation(f"a key is {here.stage} at one end and {there.stage} at the other")
        if not world.revoked:
            end = (Stage.READY, False) if self._decoy else (Stage.DELIVERED, True)
            if there.stage is not None and ((here.stage, here.far), (there.stage, there.far)) != (end, end):
                raise Violation(f"a key is lost: {here.stage} and {there.stage}, and nobody has revoked it")
            if was_ready and there.stage is None:
                raise Violation("a key that was ready is lost")
        if here.stock != there.stock:
            raise Violation("the ends hold different stock")
        if here.root != there.root and "moving" not in (here.scope, there.scope):
            raise Violation(f"both ends have settled, and their roots differ: {here.stage} and {there.stage}")
        for side, view in enumerate(world.views):
            if not world.applications.acknowledged[side] and view.told:
                raise Violation(f"an application that never had the key is told that it is {view.told[-1]}")
            ended = world.applications.acknowledged[side] and view.stage in OUT_OF_USE
            is_known = any("compromised" in told for told in view.told)
            if ended and (not view.told or is_known != ("compromised" in str(view.stage))):
                raise Violation(f"an application is not told that its key is {view.stage}, but {view.told}")

    def _demand_ended(self, view: View) -> None:
        """Nothing stays that is past its end at both ends' time; what is on hold stays, but is not waited for."""
        if self.ends[0].document == HELD and view.stage is not Stage.READY:
            return
        for what, since_s, span_s in (
            ("not used", view.waits_s, AGE_S), ("in use", view.used_s, LIFETIME_S), ("kept", view.kept_s, RETAIN_S),
        ):  # fmt: skip
            if since_s is not None and LEVELS_S[view.level] >= since_s + span_s + 2 * GRACE_S:
                raise Violation(f"a key that is {view.stage} is {what} past its end for ever")

    def _later(self, world: World) -> World:
        for side in (0, 1):
            if world.views[side].level < self._last:
                world = self._after(world, side, TIME)
        return world

    def _fair_round(self, world: World) -> World:
        for side in (0, 1):
            if world.views[side].offered and world.views[side].opens:
                world = self._after(world, side, ("take",))
            if world.applications.has[side] and not world.applications.acknowledged[side]:
                world = self._after(world, side, ("acknowledge",))
            if world.views[side].scope == "moving":
                world = self._after(world, side, ("move",))
            if world.views[side].level:
                world = self._after(world, side, ("retire",))
            for token in sorted(world.views[side].outbox):
                there = 1 - side
                before = world.sent[there]
                world = self._after(world, there, token)
                fresh = self.ends[there].step(world.views[there], token)[1] if world.sent[there] == before else ()
                for answer in sorted((world.sent[there] - before) | set(fresh)):
                    if answer[0] in ("Allocated", "Received"):
                        world = self._after(world, side, answer)
        return world


def _with(flags: tuple[bool, bool], side: int) -> tuple[bool, bool]:
    return (True, flags[1]) if side == 0 else (flags[0], True)


def _way(came: dict[World, tuple[World, Input] | None], world: World) -> str:
    way: list[str] = []
    step = came[world]
    while step is not None:
        way.append("/".join(step[1]))
        step = came[step[0]]
    return " ".join(reversed(way)) or "nothing"


ALL_TIMES = (
    (TIMED, ((TIME,), (TIME,))),
    (TIMED, ((TIME, ORDERS[0]), (TIME,))),
    (TIMED, ((TIME,), (TIME, ORDERS[0]))),
    (TIMED, ((TIME,), (TIME, ORDERS[1]))),
    (HELD, ((TIME,), (TIME,))),
)

if __name__ == "__main__":
    for document, orders in ((TIMED, EVERYTHING), *ALL_TIMES):
        with both_ends(document) as both:
            whole = Search(both, orders)
            whole.run()
            states = " and ".join(str(len(end.views)) for end in both)
            print(
                f"{whole.worlds} worlds, {whole.transitions} transitions, {states} states of the vaults: no violation"
            )
