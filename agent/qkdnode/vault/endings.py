"""What applications are told of keys that they have and that are out of use: an outbox for each, until it is noted.

A row is for the keys of one Bundle that took one step together, so that a compromise of millions of keys is told in
pages of at most 128. Whoever takes a key out of use, by whatever step, tells so by this table and needs do no more.
"""

from collections.abc import Sequence

import msgspec

from qkdnode.audit import events
from qkdnode.audit.events import Detail, KeyEvent
from qkdnode.ids import Association, KeyId
from qkdnode.lifecycle.states import STEPS, Stage, Step
from qkdnode.vault.records import Bundle, Ending
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store

AT_ONCE = 64
DELIVERED, HAD = STEPS[Step.DELIVER].happened, "key.had_before"
# Out of which stages a step is told of: the application here has the key, and may use it. Of a key that is destroyed
# the log says whether it had it.
TOLD: dict[Step, frozenset[Stage]] = {
    Step.DEACTIVATE: frozenset({Stage.DELIVERED, Stage.SUSPENDED}),
    Step.DESTROY: frozenset({Stage.DELIVERED, Stage.SUSPENDED}),
    Step.COMPROMISE: frozenset({Stage.DELIVERED, Stage.SUSPENDED, Stage.DEACTIVATED, Stage.DESTROYED}),
}
# Where a key is out of use that an application may have been sent before it was, and has not acknowledged.
OUT_OF_USE = frozenset({Stage.COMPROMISED, Stage.DESTROYED, Stage.DESTROYED_COMPROMISED})
_LEAVES = "SELECT leaf FROM leaves WHERE subject = ? ORDER BY position"


class EndedKeys(Request, frozen=True):
    """What an application is to be told of its keys of an association, oldest first. Answer: tuple[Ended, ...]."""

    association: Association
    limit: int = AT_ONCE


class Ended(msgspec.Struct, frozen=True):
    """One notice: keys of one size that are out of use."""

    number: int
    key_ids: tuple[bytes, ...]
    stage: str
    reason: str


class EndedNoted(Request, frozen=True):
    """An application has noted these of its notices: they are told no more. Idempotent. Answer: int, how many."""

    application: str
    numbers: tuple[int, ...]


class HadBefore(Request, frozen=True):
    """An application was sent these keys, whatever it has acknowledged: it is told of those that are out of use.

    Idempotent while the notice waits. Answer: int, of how many.
    """

    application: str
    key_ids: tuple[KeyId, ...]


def note(store: Store, before: Bundle, after: Bundle, places: Sequence[int], step: Step, reason: str) -> None:
    """A step was taken with some keys of a Bundle, and journalled just now: tell the application of those it has."""
    stages = TOLD.get(step)
    if stages is None:
        return
    had = [place for place in places if before.stage(place) in stages]
    ended = [place for place in had if before.stage(place) is Stage.DESTROYED]
    if ended:
        delivered = _history(store, before).delivered
        had = [place for place in had if place not in ended or _name(store, before, place) in delivered]
    by_stage: dict[Stage, list[int]] = {}
    for place in had:
        by_stage.setdefault(after.stage(place), []).append(place)
    for count, (stage, its) in enumerate(sorted(by_stage.items())):
        _post(store, after, its, stage, reason, count)


def had_before(store: Store, bundle: Bundle, places: Sequence[int]) -> int:
    """The application shows that it has keys that were taken out of use before it acknowledged them."""
    late = [place for place in places if bundle.stage(place) in OUT_OF_USE]
    if not late:
        return 0
    history = _history(store, bundle)
    waiting = {place for row in store.find_sound(Ending, "bundle = ?", bundle.number) for place in row.places}
    late = [place for place in late if place not in waiting and _name(store, bundle, place) not in history.delivered]
    alike: dict[tuple[Stage, str], list[int]] = {}
    for place in late:
        reason = history.reasons.get(_name(store, bundle, place), "")
        alike.setdefault((bundle.stage(place), reason), []).append(place)
    for (stage, reason), its in sorted(alike.items()):
        # A leaf of its own: what is told now is not what the newest leaf of the Bundle tells.
        details: dict[str, Detail] = {"stage": stage.value, "reason": reason}
        names = store.sealing.pseudonyms([bundle.key_id(place) for place in its])
        store.journal.record(KeyEvent, f"keys.{bundle.link}", HAD, _had_subject(bundle), details, "done", names)
        _post(store, bundle, its, stage, reason, 0)
    return len(late)


def ended_keys(store: Store, request: EndedKeys) -> tuple[Ended, ...]:
    """EndedKeys."""
    wanted = request.association
    condition = (
        "association = (SELECT number FROM associations WHERE local = ? AND remote = ? AND source = ?) "
        "ORDER BY number LIMIT ?"
    )
    limit = min(request.limit, AT_ONCE)
    rows = store.find_sound(Ending, condition, wanted.local, wanted.remote, wanted.source, limit)
    found = []
    for row in rows:
        bundle = store.get(Bundle, row.bundle)
        if bundle is not None and row.application == wanted.local:
            ids = tuple(bundle.key_id(place) for place in row.places)
            found.append(Ended(row.number, ids, row.stage, row.reason))
    return tuple(found)


def ended_noted(store: Store, request: EndedNoted) -> int:
    """EndedNoted."""
    noted = 0
    for number in request.numbers:
        row = store.get(Ending, number)
        if row is None or row.application != request.application:
            continue
        bundle = store.get(Bundle, row.bundle)
        ids = [] if bundle is None else [bundle.key_id(place) for place in row.places]
        link = row.link
        store.journal.record(
            KeyEvent,
            f"keys.{link}",
            "key.end_noted",
            f"ending/{link}/{number}",
            {"stage": row.stage, "application": store.sealing.pseudonym(row.application.encode())},
            "done",
            store.sealing.pseudonyms(ids),
        )
        store.delete(row)
        noted += 1
    return noted


def _post(store: Store, bundle: Bundle, places: list[int], stage: Stage, reason: str, count: int) -> None:
    """Its number is the position of a leaf of the change: rising, and no other notice has it."""
    number = (store.journal.size - 1) * len(Stage) + count
    row = Ending(
        number, bundle.link, bundle.application, bundle.association, bundle.number, bytes(places), stage.value, reason
    )
    store.insert(row)


class History(msgspec.Struct, frozen=True):
    """What the log tells of the keys of a Bundle, by their names, from earlier requests."""

    delivered: set[str]  # to the application here, or shown by it to have been sent
    reasons: dict[str, str]  # of the newest step


def _history(store: Store, bundle: Bundle) -> History:
    history = History(set(), {})
    subjects = (bundle.subject(store.sealing.pseudonym), _had_subject(bundle))
    for (leaf,) in (row for subject in subjects for row in store.rows(_LEAVES, subject)):
        event = events.decode(leaf.encode())
        if event.keys is msgspec.UNSET:
            continue
        history.reasons.update(dict.fromkeys(event.keys, str(event.details.get("reason", ""))))
        if event.kind in (DELIVERED, HAD):
            history.delivered.update(event.keys)
    return history


def _had_subject(bundle: Bundle) -> str:
    """Of leaves that are about keys of a Bundle and not about its row."""
    return f"ending/{bundle.link}/{bundle.number}/had"


def _name(store: Store, bundle: Bundle, place: int) -> str:
    return store.sealing.pseudonym(bundle.key_id(place))


HANDLERS = {EndedKeys: ended_keys, EndedNoted: ended_noted}
