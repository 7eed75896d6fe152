"""The end of keys by the terms of their class: what is due is found by index, and ended a page at a time.

Terms are those of the policy in force: a policy that is applied moves no row, only the point in time that each look
asks for. Of a class that the policy has lost the terms that were known last still hold and retain. Each end decides by
its own trusted time, and tells the other where its keys stand, as a revocation does.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from qkdnode.audit.events import Detail
from qkdnode.errors import LocalProtocolError
from qkdnode.lifecycle.retirement import ALWAYS, COLUMNS, Due, Terms, Timer, due
from qkdnode.lifecycle.states import STAGE_OF_LETTER, Stage, Step, after
from qkdnode.vault import bundles, outbox, policies, revocations
from qkdnode.vault.batches import known_link
from qkdnode.vault.bundles import Chosen, Why
from qkdnode.vault.records import HELD, Bundle, LostClass
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store
from qkdnode.wire.messages import KeysRetired

AT_ONCE = 16
COUNTED = 1000
UNUSED = (Stage.ALLOCATED, Stage.READY, Stage.QUARANTINED)
_BOTH = (1, 0)


class RetireKeys(Request, frozen=True):
    """End the keys of at most so many Bundles that are due, those first that are due longest. Answer: Retired."""

    bundles: int = AT_ONCE


class Retired(msgspec.Struct, frozen=True):
    """Answer to RetireKeys."""

    keys: int  # that took a step
    records: int  # rows that were deleted
    links: tuple[str, ...]  # whose neighbours are to be told
    more: bool  # something may be due still
    lost: tuple[str, ...] = ()  # classes of which keys will end, as the policy has lost them


class FollowRetired(Request, frozen=True):
    """Timers at the neighbour have ended keys. Idempotent. Answer: int, how many took a step here."""

    link: str
    message: KeysRetired


class ShowDue(Request, frozen=True):
    """What timers end next, class by class. Answer: DueTimers."""


class DueTimer(msgspec.Struct, frozen=True):
    """The Bundle of a class that a timer ends next."""

    key_class: str
    timer: str
    rule: str
    due_ns: int | None
    bundles: int
    held: bool


class DueTimers(msgspec.Struct, frozen=True):
    """Answer to ShowDue."""

    trusted_ns: int
    timers: tuple[DueTimer, ...]


class _Group(msgspec.Struct, frozen=True):
    """Rows of one class that one timer is about, of this end's allocating or of the other's; and the first of them."""

    timer: Timer
    key_class: str
    own: int
    since_ns: int


def retire_keys(store: Store, request: RetireKeys) -> Retired:
    """RetireKeys."""
    lost = _note_lost(store)
    found = []
    for group in _groups(store):
        terms = terms_of(store, group.key_class)
        its = _due(terms, group, group.since_ns)
        if its is not None and its.at_ns <= store.trusted_ns:
            found.append((its.at_ns, group, terms, its.rule))
    if not found:
        return Retired(0, 0, (), False, lost)
    _, group, terms, rule = min(found, key=lambda one: (one[0], one[1].timer, one[1].key_class, one[1].own))
    keys, records = 0, 0
    links = set[str]()
    for bundle in _page(store, group, terms, request.bundles):
        if group.timer is Timer.RECORD:
            _forget(store, bundle)
            records += 1
        else:
            ended = _end(store, bundle, group.timer, terms, rule)
            if ended:
                links.add(bundle.link)
            keys += ended
    return Retired(keys, records, tuple(sorted(links)), True, lost)


def follow_retired(store: Store, request: FollowRetired) -> int:
    """FollowRetired. What is on hold here is given to nobody, and destroyed when nothing holds it."""
    link, message = known_link(store, request.link), request.message
    ids = bundles.split(message.key_ids)
    if len(ids) != len(message.stages) or len(message.key_ids) % 16 or not set(message.stages) <= revocations.TOLD:
        raise LocalProtocolError(f"the peer retires {len(ids)} keys with {len(message.stages)} stages: nothing follows")
    stages = dict(zip(ids, message.stages, strict=True))
    why, moved, known = Why("neighbour", message.rule), 0, set[bytes]()
    for one in bundles.choose(store, list(stages)):
        known.update(one.ids())
        if one.bundle.link != link.link:
            continue
        held = terms_of(store, one.bundle.class_).held
        for letter in sorted(set(message.stages)):
            places = [place for place in one.places if stages[one.bundle.key_id(place)] == letter]
            target = STAGE_OF_LETTER[letter]
            if held and target is Stage.DESTROYED:
                moved += _keep(store, one.bundle.number, places, why)
            elif places:
                moved += revocations.follow(store, one.bundle.number, places, target, why)
    revocations.bury(store, link.link, stages.keys() - known, message.rule)
    return moved


def show_due(store: Store, request: ShowDue) -> DueTimers:
    """ShowDue. What this end has allocated and what the other has are due a grace apart: they are shown together."""
    shown: dict[tuple[str, str], DueTimer] = {}
    for group in _groups(store):
        terms = terms_of(store, group.key_class)
        its = _due(terms, group, group.since_ns)
        latest = _latest(terms, group, store.trusted_ns)
        if group.timer is Timer.HELD and terms.held:
            latest = store.trusted_ns
        name = (group.key_class, group.timer.value)
        rule = "legal-hold" if terms.held and its is None else "" if its is None else its.rule
        due_ns, count = None if its is None else its.at_ns, _count(store, group, latest)
        other = shown.get(name)
        if other is not None:
            count = min(COUNTED, count + other.bundles)
            if other.due_ns is not None and (due_ns is None or other.due_ns <= due_ns):
                rule, due_ns = other.rule, other.due_ns
        shown[name] = DueTimer(*name, rule, due_ns, count, terms.held)
    return DueTimers(store.trusted_ns, tuple(shown.values()))


def terms_of(store: Store, key_class: str) -> Terms:
    """What the policy says of a class now, or said last."""
    known = policies.in_force(store).document.key_class(key_class)
    if known is not None:
        return Terms(known)
    row = store.get(LostClass, key_class)
    return Terms(policies.last_known(store, key_class), None if row is None else row.since_ns)


# --- what is due -----------------------------------------------------------------------------------------------------


def _groups(store: Store) -> Iterator[_Group]:
    """By a few looks at an index each, whatever the number of rows. The first row of each is verified."""
    for timer, column in COLUMNS.items():
        for key_class in _classes(store, column):
            for own in _BOTH:
                where = f"{_of(column)} ORDER BY {column} LIMIT 1"
                for bundle in store.find_sound(Bundle, where, key_class, own):
                    yield _Group(timer, key_class, own, getattr(bundle, column))


def _classes(store: Store, column: str) -> Iterator[str]:
    """The classes of rows that have a time in this column."""
    statement = (
        f"SELECT class FROM bundles WHERE {column} IS NOT NULL AND state = '{HELD}' AND class > ? "
        "AND typeof(class) = 'text' ORDER BY class LIMIT 1"
    )
    key_class = ""
    while rows := store.rows(statement, key_class):
        ((key_class,),) = rows
        yield key_class


def _of(column: str) -> str:
    return f"class = ? AND own = ? AND {column} IS NOT NULL AND state = '{HELD}'"


def _due(terms: Terms, group: _Group, since_ns: int) -> Due | None:
    return due(terms, group.timer, since_ns, own=bool(group.own))


def _latest(terms: Terms, group: _Group, now_ns: int) -> int | None:
    """Rows since then, and earlier ones, are due now; None: none is."""
    anchored = _due(terms, group, ALWAYS // 2)  # as old as can be: what is due whatever its age is among it
    if anchored is None or anchored.at_ns > now_ns:
        return None
    ends = _due(terms, group, now_ns)
    if ends is not None and ends.at_ns <= now_ns:
        return now_ns  # by a date, whatever their age
    return now_ns - (anchored.at_ns - ALWAYS // 2)


def _page(store: Store, group: _Group, terms: Terms, limit: int) -> list[Bundle]:
    column, latest = COLUMNS[group.timer], _latest(terms, group, store.trusted_ns)
    if latest is None:
        return []
    where = f"{_of(column)} AND {column} <= ? ORDER BY {column} LIMIT ?"
    return store.find_sound(Bundle, where, group.key_class, group.own, latest, limit)


def _count(store: Store, group: _Group, latest: int | None) -> int:
    if latest is None:
        return 0
    column = COLUMNS[group.timer]
    within = f"SELECT 1 FROM bundles WHERE {_of(column)} AND {column} <= ? LIMIT {COUNTED}"
    return store.scalar(f"SELECT count(*) FROM ({within})", group.key_class, group.own, latest)


def _note_lost(store: Store) -> tuple[str, ...]:
    """Note which classes of keys the policy does not know, and which it knows again."""
    document = policies.in_force(store).document
    present = {key_class for column in COLUMNS.values() for key_class in _classes(store, column)}
    known = {row.name: row for row in store.find_sound(LostClass, "true ORDER BY name")}
    lost = sorted(key_class for key_class in present if document.key_class(key_class) is None)
    number = policies.in_force(store).number
    for name in lost:
        if name not in known:
            store.create(LostClass(name, store.trusted_ns), "class.lost", policy=number)
    for name, row in known.items():
        if name not in lost:
            store.remove(row, "class.known_again", policy=number)
    return tuple(name for name in lost if not terms_of(store, name).held and _has_keys(store, name))


def _has_keys(store: Store, key_class: str) -> bool:
    """Whether keys of a class wait or are in use."""
    columns = (COLUMNS[Timer.PRE_ACTIVE], COLUMNS[Timer.ACTIVE])
    statements = (f"SELECT 1 FROM bundles WHERE {_of(column)} LIMIT 1" for column in columns)
    return any(store.rows(statement, key_class, own) for statement in statements for own in _BOTH)


# --- what becomes of it ----------------------------------------------------------------------------------------------


def _end(store: Store, bundle: Bundle, timer: Timer, terms: Terms, rule: str) -> int:
    """End what a timer is about of one Bundle, and tell the neighbour; how many keys took a step."""
    why = Why(f"policy/{policies.in_force(store).number}", rule)
    if timer is Timer.PRE_ACTIVE and terms.held:
        bundles.hold(store, bundle, Why(why.actor, "legal-hold"))
        return 0
    by_step: dict[Step, list[int]] = defaultdict(list)
    for place in range(bundle.count):
        step = _step(bundle.stage(place), bool(bundle.far[place]), timer)
        if step is not None and not (terms.held and step is Step.DESTROY):
            by_step[step].append(place)
    ended = 0
    for step, places in by_step.items():
        bundle = bundles.move(store, Chosen(bundle, places), step, why)
        _tell(store, bundle, places, rule)
        ended += len(places)
    if not ended:  # on hold, and not with both: looked at again when it would have ended once more
        told: dict[str, Detail] = {"by": why.actor, "reason": "legal-hold" if terms.held else "nothing to end"}
        store.change(bundle, "key.held", told, "done", (), **{COLUMNS[timer]: store.trusted_ns})
    return ended


def _step(stage: Stage, far: bool, timer: Timer) -> Step | None:
    if timer in (Timer.PRE_ACTIVE, Timer.HELD):
        return Step.DESTROY if stage in UNUSED else None
    if timer is Timer.ACTIVE:
        if after(stage, far, Step.DEACTIVATE) is not None:
            return Step.DEACTIVATE
        return Step.DESTROY if stage is Stage.DELIVERED else None
    return Step.DESTROY if stage is Stage.DEACTIVATED else None


def _keep(store: Store, number: int, places: list[int], why: Why) -> int:
    """The far end has destroyed keys that are on hold here."""
    bundle = store.get(Bundle, number)
    if bundle is None:
        return 0
    active = [place for place in places if after(bundle.stage(place), bool(bundle.far[place]), Step.DEACTIVATE)]
    if active:
        bundle = bundles.move(store, Chosen(bundle, active), Step.DEACTIVATE, why)
    if any(bundle.stage(place) is Stage.READY for place in places):
        bundles.hold(store, bundle, why)
    return len(active)


def _tell(store: Store, bundle: Bundle, places: list[int], rule: str) -> None:
    ids = b"".join(bundle.key_id(place) for place in places)
    letters = bytes(bundle.states[place] for place in places)
    outbox.post(store, bundle.link, bundle.leaf, KeysRetired(bundle.leaf, rule, ids, letters))  # type: ignore[arg-type]


def _forget(store: Store, bundle: Bundle) -> None:
    """Delete the row of a Bundle whose keys have all ended; the log keeps what it told."""
    store.connection.executemany(
        "DELETE FROM key_heads WHERE head = ? AND bundle = ?",
        [(head, bundle.number) for head in sorted(bundles.heads(bundles.split(bundle.key_ids)))],
    )
    store.remove(bundle, "key.forgotten", keys=bundle.count)


HANDLERS: dict[Any, Any] = {RetireKeys: retire_keys, FollowRetired: follow_retired, ShowDue: show_due}
