"""What must hold of two nodes whatever their wire, their disks and their crashes do."""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from qkdnode.errors import AccessDeniedError, VaultError
from qkdnode.ids import ALICE, BOB, ROLES, Association, BatchId, PadAddress, other_role
from qkdnode.lifecycle.rotation import Phase
from qkdnode.vault import requests as ask
from qkdnode.vault.decoys import WhichDecoys
from qkdnode.vault.endings import EndedKeys
from qkdnode.vault.fetches import FetchKeys
from qkdnode.vault.holdings import HoldingsNode
from qkdnode.vault.inventory import ShowKey
from qkdnode.vault.retirement import FollowRetired
from qkdnode.vault.revocations import FollowRevoked, RevokeKeys
from qkdnode.vault.rotations import (
    AdvanceRotations,
    GenerationAcknowledged,
    GenerationPrepared,
    Rotations,
    RotationState,
    ShowRotation,
)
from qkdnode.vault.scopes import Compromise, FollowCompromise, Scopes
from qkdnode.wire import codec
from qkdnode.wire.messages import (
    ACCEPTED,
    DENIED,
    REFUSED,
    Allocate,
    BatchAnswer,
    BatchClaim,
    BatchCommit,
    Hello,
    KeysRetired,
    Message,
    Protection,
)


class Life(Protocol):
    """One run of a node, as the rules look at it."""

    @property
    def link(self) -> Any: ...
    @property
    def vault(self) -> Any: ...  # with `call`
    @property
    def association(self) -> Association: ...  # of its application
    def batches(self) -> dict[BatchId, tuple[str, int]]:
        """State and usability of every Batch in its vault."""
        ...


# The whole life of a Batch in each end's log.
HISTORIES = {
    ALICE: re.compile(r"pending( ready( announced)?( compromised)?| ready compromised( announced)?| abandoned)?"),
    BOB: re.compile(r"ready( settled( compromised)?)?|abandoned"),
}


class Now(NamedTuple):
    """A moment at one node."""

    run: int  # of the node
    elapsed_s: float  # by a clock that nothing sets
    trusted_s: float  # as the node has it


class Terms(NamedTuple):
    """What the policy says of every key, in seconds."""

    age: float
    lifetime: float
    grace: float


SLEWED = 1.002  # trusted time may run so much faster


class Rules:
    """Watches every frame that is sealed and every change that is journalled, over all restarts.

    With `now` keys have terms: none is released past its end, or ended before it, by the time of the end that does so.
    """

    def __init__(
        self,
        now: Callable[[str], Now | None] = lambda role: None,
        terms: Terms | None = None,
        *,
        notices: bool = False,
    ) -> None:
        self._now, self._terms = now, terms
        self._cut_at: dict[tuple[str, UUID], Now] = {}
        self._delivered_at: dict[tuple[str, UUID], Now] = {}
        self.ended: dict[str, set[UUID]] = {role: set() for role in ROLES}  # by a timer, as far as it was told
        self.breaches: list[str] = []
        self._notices = notices  # whether applications note what they are told of ended keys
        self.decoys: set[UUID] = set()
        self.sent_to: dict[str, set[UUID]] = {role: set() for role in ROLES}
        self.heard: dict[str, set[UUID]] = {role: set() for role in ROLES}  # what applications were told the end of
        self.supplied_to: dict[str, dict[UUID, bytes]] = {role: {} for role in ROLES}
        self.acknowledged: dict[str, set[UUID]] = {role: set() for role in ROLES}
        self.cut: dict[str, set[UUID]] = {role: set() for role in ROLES}
        self.refused: set[UUID] = set()
        self.ready: dict[str, set[BatchId]] = {role: set() for role in ROLES}
        self.revoked: dict[str, set[UUID]] = {role: set() for role in ROLES}
        self.scopes: dict[str, list[tuple[BatchId, BatchId]]] = {role: [] for role in ROLES}
        self.generation_of: dict[UUID, int] = {}
        self.supplied_generation: dict[str, int] = dict.fromkeys(ROLES, 1)  # that applications were told to be the one
        self.given_up: set[int] = set()
        self._batch_of: dict[UUID, BatchId] = {}
        self._pads: dict[tuple[str, PadAddress], bytes] = {}
        self._altered: set[BatchId] = set()
        self._journalled: set[bytes] = set()
        self._sessions: dict[str, set[int]] = {role: set() for role in ROLES}

    def pads_used(self, role: str) -> int:
        """Pads of an end's half that have protected something."""
        return sum(1 for end, _ in self._pads if end == role)

    def _demand(self, held: bool, otherwise: str) -> None:
        if not held:
            self.breaches.append(otherwise)

    # --- while it runs ---

    def altered(self, frame: codec.Frame) -> None:
        """A frame of a transcript does not arrive as it was sent: its Batch can make no key."""
        batch = getattr(frame.message, "batch", None)
        if isinstance(frame.message, BatchClaim):
            self._altered.add(frame.message.batch)
        elif isinstance(batch, int) and frame.kind.protection in (Protection.TRANSCRIPT, Protection.TAG):
            self._altered.add(BatchId(frame.header.session, batch))

    def sealed(self, role: str, frame: codec.Frame) -> None:
        """No pad protects two different frames, and none is a mask and a key."""
        if frame.trailer is None:
            return
        pads = [frame.trailer.pad]
        if isinstance(frame.message, Hello):
            first = frame.message.vault_key
            pads += [frame.trailer.hash_key, first, PadAddress(first.segment, first.index + 1)]
        for pad in pads:
            same = self._pads.setdefault((role, pad), frame.raw) == frame.raw
            self._demand(same, f"{role} used pad {pad} again, for {type(frame.message).__name__}")

    def sent(self, role: str, frame: codec.Frame) -> None:
        """What settles a Batch stands in the vault before the wire has it."""
        self.sealed(role, frame)
        if isinstance(frame.message, BatchCommit | BatchAnswer):
            known = frame.raw in self._journalled
            self._demand(known, f"{role} sent {type(frame.message).__name__} before it was journalled")
        if isinstance(frame.message, Hello):
            new = frame.header.session not in self._sessions[role]
            self._demand(new, f"{role} says Hello twice in session {frame.header.session:016x}")
            self._sessions[role].add(frame.header.session)
        if isinstance(frame.message, Allocate):
            self._batch_of.update(dict.fromkeys(_split(frame.message.key_ids), frame.message.batch))
            self.generation_of.update(dict.fromkeys(_split(frame.message.key_ids), frame.message.generation))
            ready = frame.message.batch in self.ready[other_role(role)]
            self._demand(ready, f"{role} allocates from Batch {frame.message.batch} before the peer is READY")
        if isinstance(frame.message, KeysRetired):
            for key_id in _split(frame.message.key_ids):
                self.ended[role].add(key_id)
                self._demand_due(role, key_id, frame.message.rule)

    def journalled(self, role: str, request: Any, answer: Any) -> None:
        """One request of a node stands in its vault."""
        match request:
            case ask.StorePending(record=record, commit=raw) | ask.StoreReady(record=record, answer=raw):
                self._journalled.add(raw)
                intact = record.batch not in self._altered
                self._demand(intact, f"{role} made key of Batch {record.batch}, a frame of which was altered")
                if role == BOB:
                    self.ready[BOB].add(record.batch)
            case ask.StoreAbandoned(answer=raw):
                self._journalled.add(raw)
            case ask.SettlePending(batch=batch, ready=True):
                self._demand(batch in self.ready[BOB], f"alice is READY with Batch {batch}, bob is not")
                self.ready[ALICE].add(batch)
            case ask.PeerReady(batches=batches):
                for batch in self.ready[BOB] & set(batches):
                    self._demand(batch in self.ready[ALICE], f"bob uses Batch {batch} before alice is READY")
            case ask.AllocateKeys():
                self.cut[role].update(answer)
                if request.generation is not None:
                    self.generation_of.update(dict.fromkeys(answer, request.generation))
                self._note(self._cut_at, role, answer)
            case ask.KeepDecoys():
                self.decoys.update(answer)
            case FetchKeys():
                for delivery in answer.deliveries:
                    self._opened(role, delivery.key_id)
            case ask.AcceptAllocation(allocate=allocate):
                ids = set(_split(allocate.key_ids))
                if answer == ACCEPTED:
                    self.cut[role] |= ids - self.decoys
                    self._note(self._cut_at, role, ids - self.decoys)
                elif answer in (REFUSED, DENIED):
                    self.refused |= ids
            case ask.OpenKey(key_id=key_id):
                self._opened(role, key_id)
            case ask.OpenKeys():
                newest = max(self.supplied_generation.values())
                over = f"{role} supplies keys of generation {answer.generation}, and applications know of {newest}"
                self._demand(answer.generation >= newest, over)
                for key_id in answer.key_ids:
                    self._opened(role, key_id)
            case RevokeKeys():
                self.revoked[role].update(answer.revoked)
            case FollowRevoked(message=message):
                self.revoked[role].update(_split(message.key_ids))
            case Compromise():
                self.scopes[role] += [(scope.first, scope.last) for scope in answer]
            case FollowCompromise(message=message):
                self.scopes[role].append((message.first, message.last))
            case GenerationPrepared() | GenerationAcknowledged() | ShowRotation():
                self._rotated(role, answer)
            case AdvanceRotations():
                for state in answer:
                    self._rotated(role, state)
            case FollowRetired(message=message):
                self.ended[role].update(_split(message.key_ids))
            case ask.KeysDelivered(key_ids=ids):
                self.acknowledged[role].update(ids)
                self._note(self._delivered_at, role, ids)

    def _rotated(self, role: str, state: RotationState) -> None:
        """How far an end is: it goes on, and no application is asked before keys are there."""
        before = self.supplied_generation[role]
        self._demand(state.current >= before, f"{role} supplies generation {state.current} after {before}")
        self.supplied_generation[role] = state.current
        if state.phase in (Phase.PREPARED, Phase.OFFERED, Phase.ACKNOWLEDGED):
            lost = self.revoked[role] or self.scopes[role]
            self._demand(bool(state.prepared or lost), f"{role} is {state.phase}, and no new key is there")

    def is_out_of_use(self, role: str, key_id: UUID) -> bool:
        """Whether an end has journalled that a key is revoked, reached by a compromise, or of a generation that is not
        supplied any more, or never was."""
        its = self.generation_of.get(key_id)
        if its is not None and its < self.supplied_generation[role]:
            return True
        if its in self.given_up:
            return True
        batch = self._batch_of.get(key_id)
        reached = batch is not None and any(first <= batch <= last for first, last in self.scopes[role])
        return reached or key_id in self.revoked[role] or key_id in self.ended[role]

    def _note(self, times: dict[tuple[str, UUID], Now], role: str, ids: Iterable[UUID]) -> None:
        now = self._now(role)
        if now is not None:
            for key_id in ids:
                times.setdefault((role, key_id), now)

    def _demand_young(self, role: str, key_id: UUID) -> None:
        """A key that goes out is not past its end, by trusted time and, in one run, by what elapsed."""
        cut, now = self._cut_at.get((role, key_id)), self._now(role)
        if self._terms is None or cut is None or now is None:
            return
        old = now.trusted_s - cut.trusted_s > self._terms.age + 1
        old |= now.run == cut.run and now.elapsed_s - cut.elapsed_s > self._terms.age + 1
        self._demand(not old, f"{role} supplies key {key_id} past its end: cut at {cut}, now {now}")

    def _demand_due(self, role: str, key_id: UUID, rule: str) -> None:
        """A key that a timer has ended was past its end."""
        now, terms = self._now(role), self._terms
        since = {"age-at-release": self._cut_at, "lifetime": self._delivered_at}.get(rule, {}).get((role, key_id))
        if terms is None or now is None or since is None:
            return
        span = terms.lifetime if rule == "lifetime" else terms.age
        early = now.trusted_s - since.trusted_s < span + terms.grace
        early |= now.run == since.run and (now.elapsed_s - since.elapsed_s) * SLEWED < span + terms.grace
        self._demand(not early, f"{role} has ended key {key_id} by {rule} before its end: since {since}, now {now}")

    def told_of_the_end(self, role: str, key_ids: Iterable[UUID]) -> None:
        """An application hears that keys are out of use."""
        for key_id in key_ids:
            self._demand(key_id in self.sent_to[role], f"{role} is told of the end of key {key_id}, which it never had")
            self.heard[role].add(key_id)

    def _opened(self, role: str, key_id: UUID) -> None:
        self.sent_to[role].add(key_id)
        self._demand(key_id not in self.decoys, f"{role} supplies {key_id}, which is a decoy")
        both = all(key_id in self.cut[end] for end in ROLES)
        self._demand(both, f"{role} supplies key {key_id}, which {other_role(role)} does not hold")
        self._demand(key_id not in self.acknowledged[role], f"{role} supplies key {key_id} after its delivery")
        self._demand(not self.is_out_of_use(role, key_id), f"{role} supplies key {key_id}, which is out of use")
        self._demand_young(role, key_id)

    def supplied(self, role: str, key_id: UUID, digest: bytes) -> None:
        """An application has a key in its hands."""
        for end in ROLES:
            same = self.supplied_to[end].get(key_id, digest) == digest
            self._demand(same, f"key {key_id} is another one at {end} than at {role}")
        self.supplied_to[role][key_id] = digest

    # --- once it has settled ---

    def settled(self, lives: dict[str, Life]) -> bool:
        """Whether nothing waits for anything."""
        for life in lives.values():
            status = life.vault.call(ask.Status())
            states = life.vault.call(Rotations())
            if any(state.phase is not Phase.STEADY or state.ending for state in states):
                return False
            waits = status.application_outbox or status.neighbour_outbox or status.keys.get("allocated", 0)
            moving = any(scope.moving for scope in life.vault.call(Scopes()))
            untold = self._notices and life.vault.call(EndedKeys(association=life.association))
            if waits or moving or untold or not life.link.is_open:
                return False
        return all(usable or state == "abandoned" for role in ROLES for state, usable in lives[role].batches().values())

    def check(self, lives: dict[str, Life]) -> None:
        """Both ends have the same Batches, keys and stock, each key once and in the right hands."""
        if self.breaches:
            return
        self._demand(self.settled(lives), f"the ends never settled: {self._unsettled(lives)}")
        for role, life in lives.items():
            self._check_histories(role, life)
        self._check_generations(lives)
        if not self.breaches:
            self._check_batches(lives)
            self._check_keys()
            self._check_deliveries(lives)
            self._check_revoked(lives)
            self._check_holdings(lives)
            self._check_decoys(lives)
            self._check_endings(lives)
        if not self.breaches and not self.refused:
            self._check_stock(lives)

    def _check_generations(self, lives: dict[str, Life]) -> None:
        """Both ends supply the same one, and have given the same numbers."""
        found = {}
        for role, life in lives.items():
            state = life.vault.call(ShowRotation(association=life.association))
            self._rotated(role, state)
            found[role] = (state.current, state.newest)
            self.given_up |= set(range(state.current + 1, state.newest + 1))
            self.given_up |= {its for its in self.generation_of.values() if its > state.current}
        self._demand(len(set(found.values())) == 1, f"the ends supply different generations: {found}")

    def _unsettled(self, lives: dict[str, Life]) -> str:
        found = []
        for role, life in lives.items():
            status = life.vault.call(ask.Status())
            waiting = [f"{batch} {state}" for batch, (state, usable) in life.batches().items() if not usable]
            found.append(
                f"{role} {life.link.statistics.state} batches {waiting} keys {status.keys} "
                f"outboxes {status.neighbour_outbox} {status.application_outbox} pads {status.pads}"
            )
        return "; ".join(found)

    def _check_histories(self, role: str, life: Life) -> None:
        histories: dict[str, list[str]] = {}
        position = 0
        while events := life.vault.call(ask.EventsAfter(position=position, limit=4096)):
            position = events[-1][0] + 1
            for _, event in events:
                if event.kind.startswith("batch."):
                    histories.setdefault(event.subject, []).append(event.kind.removeprefix("batch."))
        for subject, history in histories.items():
            right = HISTORIES[role].fullmatch(" ".join(history)) is not None
            self._demand(right, f"{role}: {subject} went through {history}")

    def _check_batches(self, lives: dict[str, Life]) -> None:
        found = {role: lives[role].batches() for role in ROLES}
        kept = ("ready", "compromised")
        ready = {role: {batch for batch, (state, _) in found[role].items() if state in kept} for role in ROLES}
        self._demand(ready[ALICE] == ready[BOB], f"READY differs: {ready}")
        for role in ROLES:
            self._demand(ready[role] == self.ready[role], f"{role} has lost READY Batches, or has found some")
        for batch, (state, _) in found[ALICE].items():
            other = found[BOB].get(batch, ("unknown", 0))[0]
            self._demand(state == other, f"Batch {batch} is {state} at alice and {other} at bob")

    def _check_keys(self) -> None:
        alice, bob = self._in_use(self.acknowledged[ALICE]), self._in_use(self.acknowledged[BOB])
        self._demand(alice == bob, f"delivered at one end only: {alice ^ bob}")
        for role in ROLES:
            supplied = self._in_use(self.supplied_to[role])
            self._demand(supplied == self._in_use(self.acknowledged[role]), f"{role} lost an acknowledgement")
        allocated = self._in_use(self.cut[ALICE] | self.cut[BOB])
        self._demand(allocated - self.refused == alice, f"lost: {allocated - self.refused - alice}")
        self._demand(not self.refused & (alice | bob), "a refused key was delivered")

    def _check_deliveries(self, lives: dict[str, Life]) -> None:
        """Each end knows that the other has delivered."""
        for role, life in lives.items():
            both = life.vault.call(ask.Status()).keys_delivered_both
            known = len(self._in_use(self.acknowledged[role]))
            self._demand(both == known, f"{role} knows of {both} keys delivered at both ends, of {known} that are")

    def _in_use(self, keys: Iterable[UUID]) -> set[UUID]:
        return {key_id for key_id in keys if not any(self.is_out_of_use(role, key_id) for role in ROLES)}

    def _check_revoked(self, lives: dict[str, Life]) -> None:
        """Both ends have a key that is out of use at the same stage, and none has bits of it."""
        for role in ROLES:
            there = other_role(role)
            same = set(self.scopes[role]) == set(self.scopes[there])
            self._demand(same, f"the ends compromise different Batches: {self.scopes}")
        for key_id in sorted((self.cut[ALICE] | self.cut[BOB]) - self._in_use(self.cut[ALICE] | self.cut[BOB])):
            stages = [_stage(lives[role], key_id) for role in ROLES]
            known = [stage for stage in stages if stage is not None]
            ended = all(stage not in ("allocated", "ready", "delivered") for stage in known)
            self._demand(ended, f"key {key_id} is revoked, and {stages}")
            self._demand(len(known) < 2 or known[0] == known[1], f"key {key_id} is at different stages: {stages}")

    def _check_holdings(self, lives: dict[str, Life]) -> None:
        """The roots over all that each end holds are one; and no comparison on the way has found a difference."""
        roots = {role: _root(life) for role, life in lives.items()}
        self._demand(roots[ALICE] == roots[BOB], f"the ends hold different things: {roots}")
        for role, life in lives.items():
            for alarm in life.vault.call(ask.Alarms()):
                self.compared(role, alarm.code, alarm.detail)

    def compared(self, role: str, code: str, detail: str) -> None:
        """An alarm was raised at an end whose neighbour is honest and whose vault is no older copy."""
        self._demand(code != "INVENTORY", f"{role} finds a difference: {detail}")

    def _check_decoys(self, lives: dict[str, Life]) -> None:
        """Both ends have the same decoys at the same stages, and know them as such."""
        for key_id in sorted(self.decoys):
            stages = [_stage(lives[role], key_id) for role in ROLES]
            known = [stage for stage in stages if stage is not None]
            self._demand(len(known) < 2 or known[0] == known[1], f"decoy {key_id} is at different stages: {stages}")
            self._demand("ready" not in known or len(known) == 2, f"decoy {key_id} is at one end only: {stages}")
            for role, stage in zip(ROLES, stages, strict=True):
                suspects = lives[role].vault.call(WhichDecoys(key_ids=(key_id,))).names
                self._demand(bool(suspects) == (stage is not None), f"{role} takes decoy {key_id} for a key")

    def _check_endings(self, lives: dict[str, Life]) -> None:
        """Who had a key that is out of use has heard of it."""
        if not self._notices:
            return
        for role, life in lives.items():
            for key_id in sorted(self.acknowledged[role] - self.heard[role]):
                stage = _stage(life, key_id)
                self._demand(stage in (None, "ready", "delivered"), f"{role} does not hear that {key_id} is {stage}")

    def _check_stock(self, lives: dict[str, Life]) -> None:
        """Cut all that is left at both ends, and compare it."""
        for role in ROLES:
            ours, theirs = lives[role], lives[other_role(role)]
            association = ours.association
            bits = {end: life.vault.call(ask.Status()) for end, life in lives.items()}
            own = bits[role].stock_bits_own[ours.link.name]
            self._demand(own == bits[other_role(role)].stock_bits_peer[ours.link.name], f"{role}'s half differs")
            size = 256
            count = own // size
            if not count or self.breaches:
                continue
            entropy = hashlib.shake_256(role.encode()).digest(16 * count)
            ours.vault.call(ask.AllocateKeys(association=association, count=count, size_bits=size, entropy=entropy))
            ids: list[UUID] = []
            for entry in ours.vault.call(ask.NeighbourOutbox(link=ours.link.name)):
                message: Message = entry.message
                outcome = theirs.vault.call(ask.AcceptAllocation(link=theirs.link.name, allocate=message))
                self._demand(outcome == ACCEPTED, f"stock of {role} is refused at the other end")
                ids += ours.vault.call(
                    ask.AllocationAnswered(link=ours.link.name, request=entry.number, outcome=outcome)
                )
            for key_id in ids:
                a, b = (opened(life, key_id, life.association.local) for end, life in lives.items())
                self._demand(a == b, f"stock of {role} differs between the ends")
            self._demand(len(ids) == count, f"{count} keys of stock at {role}, {len(ids)} agreed")
            try:
                opened(ours, ids[0], association.remote)
                self.breaches.append("a key was opened for another application")
            except AccessDeniedError:
                pass


def _root(life: Life) -> str:
    node = life.vault.call(HoldingsNode(link=life.link.name))
    while node.stale:
        node = life.vault.call(HoldingsNode(link=life.link.name))
    digest: str = node.digest.hex()
    return digest


def _split(key_ids: bytes) -> list[UUID]:
    return [UUID(bytes=key_ids[at : at + 16]) for at in range(0, len(key_ids), 16)]


def _stage(life: Life, key_id: UUID) -> str | None:
    try:
        stage: str = life.vault.call(ShowKey(key_id=key_id)).state
    except VaultError:
        return None
    return stage


def opened(life: Life, key_id: UUID, application: str) -> bytes:
    """A digest of a key."""
    with life.vault.call(ask.OpenKey(key_id=key_id, application=application)) as key:
        return hashlib.sha256(key).digest()
