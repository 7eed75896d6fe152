"""Rotations in the vault: each phase is a row, a leaf and what the neighbour is told, in one transaction.

`qkdnode.lifecycle.rotation` says which way is taken when. What an ended generation leaves is moved behind it in pages:
its keys are out of reach from the moment on that its row says so.
"""

from collections import defaultdict
from typing import Any

import msgspec

from qkdnode.audit.events import Detail
from qkdnode.errors import LocalProtocolError, VaultError
from qkdnode.ids import ALICE, BOB, Association
from qkdnode.lifecycle import rotation
from qkdnode.lifecycle.policy.document import KeyClass
from qkdnode.lifecycle.reasons import Reason, revocation
from qkdnode.lifecycle.rotation import FIRST, GIVEN_UP_IN, ORDER, PHASES, WAITS_FOR, Fact, Phase
from qkdnode.lifecycle.states import LETTERS, Stage, Step
from qkdnode.vault import bundles, entitlements, generations, outbox, policies
from qkdnode.vault.batches import known_link
from qkdnode.vault.bundles import Chosen, Why
from qkdnode.vault.records import Bundle, Generations, KnownAssociation, Notice
from qkdnode.vault.requests import Request
from qkdnode.vault.retirement import terms_of
from qkdnode.vault.store import Store
from qkdnode.wire.messages import (
    KIND_OF_BODY,
    KeysRevoked,
    RotationGivenUp,
    RotationProposed,
    RotationReason,
    RotationStands,
    RotationWanted,
)

DONE = "done"
RotationMessage = RotationWanted | RotationProposed | RotationStands | RotationGivenUp
_REASONS = frozenset(RotationReason.__args__)  # type: ignore[attr-defined]


class BeginRotation(Request, frozen=True):
    """Rotate an association to its next generation; one that is on the way stays. Answer: RotationState."""

    association: Association
    reason: str
    by: str


class GiveUpRotation(Request, frozen=True):
    """Give a rotation up; Bob wishes that Alice does. Answer: RotationState. VaultError if there is none, or no way
    back."""

    association: Association
    reason: str


class FollowRotation(Request, frozen=True):
    """What the peer says of a rotation. Idempotent. Answer: bool; False if it cannot be followed yet: say it again."""

    link: str
    message: RotationMessage


class GenerationPrepared(Request, frozen=True):
    """This end has cut so many keys of the next generation, at both ends. Nothing happens if it has not.

    Answer: RotationState.
    """

    association: Association
    keys: int


class GenerationAcknowledged(Request, frozen=True):
    """The application here is ready for a generation. Idempotent. Answer: RotationState."""

    association: Association
    number: int


class AdvanceRotations(Request, frozen=True):
    """Do what the time has come for. Answer: tuple[RotationState, ...], of a link's rotations that are on the way.

    `cut`: the link is; nothing expires then, for couriers may be on their way.
    """

    link: str
    cut: bool = False


class ShowRotation(Request, frozen=True):
    """How an association stands; as at its beginning if it is unknown. Answer: RotationState."""

    association: Association


class Rotations(Request, frozen=True):
    """Every association, in the order in which they became known. Answer: tuple[RotationState, ...]."""


class EndGenerations(Request, frozen=True):
    """Move at most so many Bundles behind the generations that are over. Answer: bool, whether some are left."""

    rows: int = 16


class RotateDue(Request, frozen=True):
    """Begin the rotations that the terms of classes ask for. Answer: tuple[Association, ...], of those begun.

    `deprecated` has the moments from which algorithms are deprecated, `degraded` since when, by the wall clock, a link
    is.
    """

    deprecated: dict[str, int]
    degraded: dict[str, int]


class RotationState(msgspec.Struct, frozen=True):
    """How an association stands. Without a rotation `number` is 0."""

    association: Association
    current: int
    newest: int
    number: int
    phase: Phase
    peer: Phase
    reason: str
    by: str
    since_ns: int  # the current generation is supplied; 0: from the beginning
    begun_ns: int
    phase_ns: int
    now_ns: int
    prepared: int  # keys of the next generation that this end has cut and that both ends hold
    outstanding: int  # and those that it has cut
    result: str  # of the last one
    ending: int  # a generation whose rows are moved; 0: none
    ended: int  # keys that were, of all generations


# --- asked for by an operator or a term of the policy ----------------------------------------------------------------


def begin(store: Store, request: BeginRotation) -> RotationState:
    """BeginRotation."""
    if request.reason not in _REASONS:
        raise LocalProtocolError(f"{request.reason!r} is no reason to rotate: one of {', '.join(sorted(_REASONS))}")
    known = entitlements.demand_association(store, request.association)
    row = _row(store, known)
    if row.phase == Phase.STEADY:
        by = request.by if request.by == "policy" else f"operator/{store.sealing.pseudonym(request.by.encode())}"
        row = _start(store, known, row, request.reason, by)
    return _state(store, known, row)


def give_up(store: Store, request: GiveUpRotation) -> RotationState:
    """GiveUpRotation."""
    known = entitlements.demand_association(store, request.association)
    row = _row(store, known)
    if row.phase == Phase.WANTED:
        row = _unwant(store, row, request.reason)
    elif Phase(row.phase) not in GIVEN_UP_IN:
        raise VaultError(
            f"association {request.association} is {row.phase}: "
            + ("no rotation is on the way" if not row.number else "its next generation is supplied already, and stays")
        )
    elif known_link(store, known.link).role == ALICE:
        row = _given_up(store, known, row, request.reason)
    elif not _waits(store, known):
        row = _change(store, row, "rotation.unwanted", {"reason": request.reason})
        _post(store, known, row.leaf, RotationGivenUp, row.number, request.reason)
    return _state(store, known, row)


def prepared(store: Store, request: GenerationPrepared) -> RotationState:
    """GenerationPrepared."""
    known = entitlements.demand_association(store, request.association)
    row = _row(store, known)
    if row.phase == Phase.AGREED and generations.prepared(store, known.number, row.number) >= max(1, request.keys):
        row = _advance(store, known, row, Fact.PREPARED)
    return _state(store, known, row)


def acknowledged(store: Store, request: GenerationAcknowledged) -> RotationState:
    """GenerationAcknowledged."""
    known = entitlements.demand_association(store, request.association)
    row = _row(store, known)
    if row.phase == Phase.OFFERED and row.number == request.number:
        row = _advance(store, known, row, Fact.ACKNOWLEDGED)
    return _state(store, known, row)


def advance_all(store: Store, request: AdvanceRotations) -> tuple[RotationState, ...]:
    """AdvanceRotations."""
    states = []
    for row in store.every(Generations):
        known = store.get_association(row.association)
        if row.link != request.link or row.phase == Phase.STEADY or known is None:
            continue
        row = _by_fact(store, known, row, cut=True) if request.cut else _by_time(store, known, row)
        if row.phase != Phase.STEADY:
            states.append(_state(store, known, row))
    return tuple(states)


def show(store: Store, request: ShowRotation) -> RotationState:
    """ShowRotation."""
    known = entitlements.known_association(store, request.association)
    if known is None:
        its = (FIRST, FIRST, 0, Phase.STEADY, Phase.STEADY, "", "", 0, 0, 0, store.trusted_ns, 0, 0, "", 0, 0)
        return RotationState(request.association, *its)
    return _state(store, known, _row(store, known))


def all_of_them(store: Store, request: Rotations) -> tuple[RotationState, ...]:
    """Rotations."""
    found = store.find_sound(KnownAssociation, "true ORDER BY number")
    return tuple(_state(store, known, _row(store, known)) for known in found)


def rotate_due(store: Store, request: RotateDue) -> tuple[Association, ...]:
    """RotateDue."""
    begun = []
    for known in store.find_sound(KnownAssociation, "true ORDER BY number"):
        row, terms = _row(store, known), _terms(store, known)
        if row.phase != Phase.STEADY or terms is None or terms.rotation is None:
            continue
        usage = _usage(store, known, row, terms, request)
        reason = None if usage is None else rotation.due(terms.rotation, usage)
        if reason is not None:
            _start(store, known, row, reason, "policy")
            begun.append(known.association)
    return tuple(begun)


def _usage(
    store: Store, known: KnownAssociation, row: Generations, terms: KeyClass, request: RotateDue
) -> rotation.Usage | None:
    """What has become of the generation that is supplied; None if no key was cut of it."""
    its = f"{known.number}/{row.current}"
    oldest = store.rows(
        "SELECT allocated_ns FROM bundles WHERE association = ? AND key_generation = ? ORDER BY number LIMIT 1",
        known.number, row.current,
    )  # fmt: skip
    if not (row.since_ns or oldest):
        return None
    deprecated = request.deprecated
    moments = [deprecated[name] for name in (*(terms.algorithms or ()), store.wrap_algorithm) if name in deprecated]
    degraded = request.degraded.get(known.link)
    return rotation.Usage(
        now_ns=store.trusted_ns,
        since_ns=row.since_ns or int(oldest[0][0]),
        keys=store.tallied(f"keys cut of {its}"),
        bits=store.tallied(f"bits cut of {its}"),
        deprecated_ns=max(moments, default=None),
        degraded_ns=None if degraded is None else store.trusted_ns - (store.now_ns - degraded),
        given_up_ns=row.phase_ns if row.result not in ("", DONE) else None,
    )


# --- said by the neighbour -------------------------------------------------------------------------------------------


def follow(store: Store, request: FollowRotation) -> bool:
    """FollowRotation."""
    link, message = known_link(store, request.link), request.message
    known = entitlements.known_association(store, Association(message.remote, message.local, link.link))
    if known is None:
        return _unknown(store, link.link, message)
    row = _row(store, known)
    match message:
        case RotationWanted():
            if row.phase == Phase.STEADY and row.newest == message.above:
                _start(store, known, row, message.reason, "neighbour")
            return True
        case RotationProposed():
            return _proposed(store, known, row, message)
        case RotationStands():
            return _stands(store, known, row, message, link.role)
        case RotationGivenUp():
            return _heard_given_up(store, known, row, message, link.role)


def _unknown(store: Store, link: str, message: RotationMessage) -> bool:
    """Alice proposes a rotation of what this end has not configured: it wishes that she gives it up."""
    if isinstance(message, RotationProposed):
        leaf = store.alarm("rotation.unknown", f"rotation/{link}", "refused", reason="unknown association")
        its = RotationGivenUp(leaf, message.remote, message.local, message.number, "unknown association")
        outbox.post(store, link, leaf, its)
    return True


def _proposed(store: Store, known: KnownAssociation, row: Generations, message: RotationProposed) -> bool:
    if message.number <= row.newest:
        return True  # it is on the way, or over
    if message.replaces != row.current or Phase(row.phase) not in (Phase.STEADY, Phase.WANTED):
        return False  # what Alice has seen ending has not ended here yet
    by = row.by if row.phase == Phase.WANTED else "neighbour"
    _enter(store, known, row, Phase.AGREED, newest=message.number, number=message.number, peer=Phase.PROPOSED.value,
           reason=message.reason, by=by, begun_ns=store.trusted_ns)  # fmt: skip
    return True


def _stands(store: Store, known: KnownAssociation, row: Generations, message: RotationStands, role: str) -> bool:
    if message.number != row.number:
        return message.number <= row.newest
    heard = Phase(message.phase)
    if not rotation.may_follow(role, Phase(row.phase), heard):
        raise LocalProtocolError(
            f"the peer says {heard} of generation {message.number} of {known.association}, which is {row.phase} here"
        )
    if ORDER[heard] > ORDER[Phase(row.peer)]:
        row = _change(store, row, f"rotation.peer_{heard}", {}, peer=heard.value)
        _advance(store, known, row)
    return True


def _heard_given_up(
    store: Store, known: KnownAssociation, row: Generations, message: RotationGivenUp, role: str
) -> bool:
    if role == ALICE:  # Bob's wish
        if message.number == row.number and Phase(row.phase) in GIVEN_UP_IN:
            _given_up(store, known, row, message.reason)
        return True
    if message.number == row.number:
        if Phase(row.phase) not in GIVEN_UP_IN:
            raise LocalProtocolError(f"the peer gives up generation {message.number}, which it has cut over to")
        _given_up(store, known, row, message.reason)
    elif message.number > row.newest:  # its proposal was not heard, and is not taken up any more
        changes: dict[str, Any] = {"newest": message.number, "result": message.reason}
        if row.phase == Phase.WANTED:
            changes |= {"phase": Phase.STEADY.value, "phase_ns": store.trusted_ns}
        _change(store, row, "rotation.given_up", {"number": message.number, "reason": message.reason}, **changes)
    return True


# --- the ways --------------------------------------------------------------------------------------------------------


def _start(store: Store, known: KnownAssociation, row: Generations, reason: str, by: str) -> Generations:
    """Alice proposes; Bob asks her to."""
    now = store.trusted_ns
    if known_link(store, known.link).role == BOB:
        row = _change(
            store, row, "rotation.wanted", {"reason": reason, "by": by},
            phase=Phase.WANTED.value, phase_ns=now, begun_ns=now, reason=reason, by=by,
        )  # fmt: skip
        _post(store, known, row.leaf, RotationWanted, row.newest, reason)
        return row
    number = row.newest + 1
    row = _change(
        store, row, "rotation.proposed", {"number": number, "reason": reason, "by": by},
        phase=Phase.PROPOSED.value, peer=Phase.STEADY.value, phase_ns=now, begun_ns=now, newest=number, number=number,
        reason=reason, by=by,
    )  # fmt: skip
    _post(store, known, row.leaf, RotationProposed, number, row.current, reason)
    return row


def _advance(store: Store, known: KnownAssociation, row: Generations, fact: Fact | None = None) -> Generations:
    """Go as far as the table says."""
    role = known_link(store, known.link).role
    while (end := rotation.following(role, Phase(row.phase), Phase(row.peer), fact)) is not None:
        row, fact = _enter(store, known, row, end), None
    return row


def _enter(store: Store, known: KnownAssociation, row: Generations, phase: Phase, **changes: Any) -> Generations:
    """Write a phase, and tell the other end if it is to know."""
    number, now = changes.get("number", row.number), store.trusted_ns
    happened = "rotation.ended" if phase is Phase.STEADY else f"rotation.{phase}"
    if phase is Phase.STEADY:
        changes |= {"current": number, "number": 0, "peer": Phase.STEADY.value, "since_ns": now, "result": DONE}
        changes |= _to_end(row, row.current)
    details: dict[str, Detail] = {"number": number, "replaces": row.current}
    row = _change(store, row, happened, details, phase=phase.value, phase_ns=now, **changes)
    if known_link(store, known.link).role in PHASES[phase].tellers:
        _post(store, known, row.leaf, RotationStands, number, phase.value)
    return row


def _given_up(store: Store, known: KnownAssociation, row: Generations, reason: str) -> Generations:
    """The old generation goes on; keys of the new one are never released."""
    number = row.number
    row = _change(
        store, row, "rotation.given_up", {"number": number, "reason": reason},
        phase=Phase.STEADY.value, peer=Phase.STEADY.value, number=0, phase_ns=store.trusted_ns, result=reason,
        **_to_end(row, number),
    )  # fmt: skip
    if known_link(store, known.link).role == ALICE:
        _post(store, known, row.leaf, RotationGivenUp, number, reason)
    return row


def _unwant(store: Store, row: Generations, reason: str) -> Generations:
    """Bob waits for Alice no more; a proposal that comes all the same is taken up."""
    changes: dict[str, Any] = {"phase": Phase.STEADY, "phase_ns": store.trusted_ns, "result": reason}
    return _change(store, row, "rotation.given_up", {"reason": reason}, **changes)


def go_on(store: Store, known: KnownAssociation) -> RotationState:
    """Go on without the link, where time brings a fact; nothing expires while messages are carried by hand."""
    return _state(store, known, _by_fact(store, known, _row(store, known), cut=True))


def _by_fact(store: Store, known: KnownAssociation, row: Generations, *, cut: bool) -> Generations:
    """What an end does by itself when a fact is there, or is waited for no more. Over a link that is cut the first keys
    are waited for."""
    phase, waited = Phase(row.phase), store.trusted_ns - row.phase_ns
    if phase is Phase.CUT and rotation.is_quiet(waited, generations.unpaired(store, known.number, row.current)):
        return _advance(store, known, row, Fact.QUIET)
    waits = phase in WAITS_FOR and not (cut and phase is Phase.AGREED)
    if waits and waited >= rotation.PATIENCE_NS and _goes_without(store, known):
        return _advance(store, known, row, WAITS_FOR[phase])
    return row


def _by_time(store: Store, known: KnownAssociation, row: Generations) -> Generations:
    """What an end does by itself when its time has come."""
    before, row = row, _by_fact(store, known, row, cut=False)
    if row is not before:
        return row
    phase, now = Phase(row.phase), store.trusted_ns
    is_over = now - row.begun_ns >= rotation.EXPIRES_NS
    if is_over and phase is Phase.WANTED:
        return _unwant(store, row, "expired")
    if is_over and phase in GIVEN_UP_IN and known_link(store, known.link).role == ALICE:
        return _given_up(store, known, row, "expired")
    return row


def _goes_without(store: Store, known: KnownAssociation) -> bool:
    """Whether the class of the newest keys lets a rotation go on without their application."""
    its = _terms(store, known)
    return its is not None and its.rotate_without_acknowledgement


def _terms(store: Store, known: KnownAssociation) -> KeyClass | None:
    """The terms of the class of an association's newest keys, as the policy in force has them."""
    newest = store.find_sound(Bundle, "association = ? ORDER BY key_generation DESC, number DESC LIMIT 1", known.number)
    return policies.in_force(store).document.key_class(newest[0].class_) if newest else None


# --- rows that follow -------------------------------------------------------------------------------------------------


def end_generations(store: Store, request: EndGenerations) -> bool:
    """EndGenerations."""
    ending = [row for row in store.every(Generations) if row.ending]
    if not ending:
        return False
    row = ending[0]
    rows = store.find_sound(
        Bundle,
        "association = ? AND (key_generation, number) > (?, ?) AND key_generation NOT IN (?, ?) "
        "ORDER BY key_generation, number LIMIT ?",
        row.association, row.ending, row.reached, row.current, row.number, request.rows,
    )  # fmt: skip
    keys = sum(_end(store, bundle) for bundle in rows)
    if rows:
        its, reached = rows[-1].key_generation, rows[-1].number
        details: dict[str, Detail] = {"keys": keys, "of": its, "bundle": reached}
        _change(store, row, "rotation.moved", details, ending=its, reached=reached, ended=row.ended + keys)
        return True
    _change(store, row, "rotation.finished", {"keys": row.ended}, ending=0, reached=-1)
    return len(ending) > 1


def _end(store: Store, bundle: Bundle) -> int:
    """Take the keys of an ended generation out of use; how many. What the far end may take for active it is told of."""
    by_step: dict[Step, list[int]] = defaultdict(list)
    alone = []
    for place in range(bundle.count):
        stage = bundle.stage(place)
        step = revocation(Reason.SUPERSEDED, stage, bool(bundle.far[place]))
        if step is not None:
            by_step[step].append(place)
            if stage is Stage.DELIVERED and step is Step.DESTROY:
                alone.append(bundle.key_id(place))
    why = Why("rotation", Reason.SUPERSEDED.value)
    link, held = bundle.link, terms_of(store, bundle.class_).held
    if held:  # nothing of the class is destroyed: kept, and given to nobody
        by_step.pop(Step.DESTROY, None)
        alone.clear()
        if bundle.places(Stage.ALLOCATED, Stage.READY, Stage.QUARANTINED):
            bundle = bundles.hold(store, bundle, why)
    for step, places in by_step.items():
        bundle = bundles.move(store, Chosen(bundle, places), step, why)
    if alone:
        stages = bytes([LETTERS[Stage.DESTROYED]]) * len(alone)
        told = KeysRevoked(bundle.leaf, Reason.SUPERSEDED.value, b"".join(alone), stages)
        outbox.post(store, link, bundle.leaf, told)
    return sum(map(len, by_step.values()))


def _to_end(row: Generations, generation: int) -> dict[str, Any]:
    """From where on rows are moved: the pass goes by rising generations, so an older one begins it anew."""
    return {"ending": generation, "reached": -1} if not row.ending or generation < row.ending else {}


# --- parts -----------------------------------------------------------------------------------------------------------


def _row(store: Store, known: KnownAssociation) -> Generations:
    """The row of an association; not yet written, with leaf -1, if there is none."""
    found = generations.of(store, known.number)
    return found or Generations(
        known.number, known.link, FIRST, FIRST, 0, Phase.STEADY.value, Phase.STEADY.value, "", "",
        0, 0, 0, "", 0, -1, 0, leaf=-1,
    )  # fmt: skip


def _change(store: Store, row: Generations, happened: str, details: dict[str, Detail], **changes: Any) -> Generations:
    changes = {name: value.value if isinstance(value, Phase) else value for name, value in changes.items()}
    return store.write(row, happened, details, **changes)


def _post(store: Store, known: KnownAssociation, leaf: int, kind: Any, *rest: Any) -> None:
    outbox.post(store, known.link, leaf, kind(leaf, known.local, known.remote, *rest))


def _waits(store: Store, known: KnownAssociation) -> bool:
    """Whether the wish to give up an association's rotation is yet to be journalled at the other end."""
    rows = store.find_sound(Notice, "link = ? AND kind = ?", known.link, KIND_OF_BODY[RotationGivenUp].code)
    wishes = [its for its in map(outbox.message_of, rows) if isinstance(its, RotationGivenUp)]
    return any((its.local, its.remote) == (known.local, known.remote) for its in wishes)


def _state(store: Store, known: KnownAssociation, row: Generations) -> RotationState:
    rows = generations.outstanding(store, known.number, row.number) if row.number else []
    return RotationState(
        known.association,
        row.current,
        row.newest,
        row.number,
        Phase(row.phase),
        Phase(row.peer),
        row.reason,
        row.by,
        row.since_ns,
        row.begun_ns,
        row.phase_ns,
        store.trusted_ns,
        sum(len(its.places(Stage.READY)) for its in rows),
        sum(its.outstanding for its in rows),
        row.result,
        row.ending,
        row.ended,
    )


HANDLERS = {
    BeginRotation: begin,
    GiveUpRotation: give_up,
    FollowRotation: follow,
    GenerationPrepared: prepared,
    GenerationAcknowledged: acknowledged,
    AdvanceRotations: advance_all,
    RotateDue: rotate_due,
    ShowRotation: show,
    Rotations: all_of_them,
    EndGenerations: end_generations,
}
