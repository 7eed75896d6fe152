"""The pass over every stored record, a page at a time: that it is what was written, and that what it seals unseals.

A page costs the vault some milliseconds at most. How far the pass is, is written every so many pages: a restart repeats
those. What is damaged is treated as where it is met on access: set aside, and told in a leaf.
"""

from collections.abc import Callable
from struct import unpack
from typing import Any

import msgspec

from qkdnode.audit.events import MAX_DETAIL_CHARACTERS, Detail, NodeEvent
from qkdnode.errors import VaultDamagedError
from qkdnode.lifecycle.states import HOLDING, LETTERS, Stage
from qkdnode.vault import bundles
from qkdnode.vault.bundles import Chosen
from qkdnode.vault.records import (
    HELD,
    KEYS_PER_BUNDLE,
    RECORDS,
    Bundle,
    Chunk,
    Record,
    ScrubMark,
    Segment,
)
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store

PERIOD_NS = 86_400 * 10**9
PAGES_PER_MARK = 64
ROWS, CHUNKS, SEGMENTS, HEADS, LEAVES = 64, 32, 8, 256, 1024  # in a page, at most
BUNDLES, WORK = 48, 256  # of Bundles and their keys; a Bundle counts as `BUNDLE` keys
BUNDLE = 4
ENDED = ""  # the stage of a pass that is over
_DAMAGED = LETTERS[Stage.DAMAGED]
_SIZES = f"SELECT number, length(states) FROM bundles WHERE number > ? AND state = '{HELD}' ORDER BY number LIMIT ?"

_TOLD = "SELECT position FROM leaves WHERE position >= ? AND position < ? AND subject LIKE 'bundle/%/' || position"


class Scrub(Request, frozen=True):
    """Look at the next page of the pass; begin one if `now`, or if the last one began `period_ns` ago.

    Answer: ScrubState.
    """

    now: bool = False
    period_ns: int = PERIOD_NS


class ScrubProgress(Request, frozen=True):
    """How far the pass is. Answer: ScrubState."""


class ScrubState(msgspec.Struct, frozen=True):
    """The pass in progress, or the last one; all zeros before the first."""

    number: int
    running: bool
    stage: str  # the table that is looked at
    share: float  # of the stage's table that is done, about
    rows: int
    keys: int  # of Bundles that were looked at, those that are held no more included
    ciphertexts: int  # unsealed
    damaged: int
    begun_ns: int
    ended_ns: int | None
    met: tuple[str, ...] = ()  # what is damaged in the page that was just looked at


class Page(msgspec.Struct):
    """What became of one page. `place` is where the next begins; None: the stage is over."""

    place: int | tuple[int, int] | None
    rows: int = 0
    keys: int = 0
    ciphertexts: int = 0
    damaged: list[str] = msgspec.field(default_factory=list)


def scrub(store: Store, request: Scrub) -> ScrubState:
    """Scrub."""
    mark = _mark(store)
    if mark is None or mark.stage == ENDED:
        due = mark is None or not 0 <= store.now_ns - mark.begun_ns < request.period_ns
        if not (due or request.now):
            return _state(store, mark)
        mark = _begin(store, mark)
        return _state(store, mark)
    names = list(STAGES)
    page = STAGES[mark.stage](store, msgspec.msgpack.decode(mark.place))
    stage = mark.stage
    if page.place is None:
        at = names.index(stage) + 1
        stage, page.place = (names[at] if at < len(names) else ENDED), 0
    mark = msgspec.structs.replace(
        mark,
        stage=stage,
        place=msgspec.msgpack.encode(page.place),
        rows=mark.rows + page.rows,
        keys=mark.keys + page.keys,
        ciphertexts=mark.ciphertexts + page.ciphertexts,
        damaged=mark.damaged + len(page.damaged),
        generation=mark.generation + 1,
    )
    if stage == ENDED:
        mark = msgspec.structs.replace(mark, place=msgspec.msgpack.encode(store.now_ns))
        _tell_end(store, mark)
    if stage == ENDED or page.damaged or mark.generation % PAGES_PER_MARK == 0:
        _write(store, mark)
    store.scrub = mark
    return _state(store, mark, tuple(page.damaged))


def progress(store: Store, request: ScrubProgress) -> ScrubState:
    """ScrubProgress."""
    return _state(store, _mark(store))


def _mark(store: Store) -> ScrubMark | None:
    """The newest mark; one that is not of the newest pass in the log, or of one that ended, tells of nothing."""
    if store.scrub is None:
        found = store.find_sound(ScrubMark, "true ORDER BY number DESC LIMIT 1")
        if not found:
            return None
        (mark,) = found
        newest = store.journal.newest(_subject(mark.number))
        ended = newest is not None and newest > mark.number
        if newest is None or ended is not (mark.stage == ENDED):
            return None
        store.scrub = mark
    known: ScrubMark = store.scrub
    return known


def _begin(store: Store, before: ScrubMark | None) -> ScrubMark:
    number = store.journal.size
    details: dict[str, Detail] = {}
    store.journal.record(NodeEvent, "vault", "scrub.begun", _subject(number), details)
    mark = ScrubMark(number, next(iter(STAGES)), msgspec.msgpack.encode(0), 0, 0, 0, 0, store.now_ns)
    store.connection.execute("DELETE FROM scrubs")
    store.insert(mark)
    store.scrub = mark
    return mark


def _write(store: Store, mark: ScrubMark) -> None:
    store.delete(mark)
    store.insert(mark)


def _tell_end(store: Store, mark: ScrubMark) -> None:
    details: dict[str, Detail] = {
        "rows": mark.rows,
        "keys": mark.keys,
        "ciphertexts": mark.ciphertexts,
        "damaged": mark.damaged,
        "pages": mark.generation,
        "duration_ms": max(0, store.now_ns - mark.begun_ns) // 10**6,
    }
    outcome = "damaged" if mark.damaged else "done"
    store.journal.record(NodeEvent, "vault", "scrub.finished", _subject(mark.number), details, outcome)


def _subject(number: int) -> str:
    return f"scrub/{number}"


def _state(store: Store, mark: ScrubMark | None, met: tuple[str, ...] = ()) -> ScrubState:
    if mark is None:
        return ScrubState(0, False, "", 0.0, 0, 0, 0, 0, 0, None)
    running = mark.stage != ENDED
    place = msgspec.msgpack.decode(mark.place)
    return ScrubState(
        mark.number,
        running,
        mark.stage,
        _share(store, mark.stage, place) if running else 1.0,
        mark.rows,
        mark.keys,
        mark.ciphertexts,
        mark.damaged,
        mark.begun_ns,
        None if running else place,
        met,
    )


def _share(store: Store, stage: str, place: Any) -> float:
    if stage == HEADS_STAGE:
        return (place[0] + (1 << 63)) / (1 << 64) if place else 0.0
    if stage not in TABLES:
        return 0.0
    column, table = TABLES[stage]
    last = store.scalar(f"SELECT coalesce(max({column}), 0) FROM {table}")
    return min(1.0, place / last) if last > 0 else 0.0


# --- the stages ----------------------------------------------------------------------------------------------------


def _keks(store: Store, place: Any) -> Page:
    """Every key-encryption key unwraps."""
    page = Page(None)
    try:
        keks = store.sealing.keks()
    except VaultDamagedError as error:
        _tell(store, page, "keks", str(error)[:MAX_DETAIL_CHARACTERS], "found")
        return page
    for kek in keks:
        page.rows += 1
        if not store.sealing.unwraps(kek.number):
            page.damaged.append(f"keks/{kek.number}")
            store.alarm("record.damaged", f"record/keks/{kek.number}", "found", reason="does not unwrap")
    return page


def _rows_of(record: type[Record]) -> Callable[[Store, Any], Page]:
    def page(store: Store, place: Any) -> Page:
        _, its = _sound(store, record, place, ROWS)
        return its

    return page


def _sound(store: Store, record: type[Record], place: int, limit: int) -> tuple[list[Any], Page]:
    """The next rows by rowid: those that are in order, and what became of the others."""
    aside = "" if record.set_aside is None else f"AND state <> '{record.set_aside}' "
    found = store.rows(f"SELECT rowid FROM {record.table} WHERE rowid > ? {aside}ORDER BY rowid LIMIT ?", place, limit)
    if not found:
        return [], Page(None)
    last = found[-1][0]
    sound = store.find_sound(record, "rowid > ? AND rowid <= ? ORDER BY rowid", place, last)
    lost = len(found) - len(sound)
    names = [f"{record.table}/{place + 1}-{last}"] * lost
    return sound, Page(last, rows=len(found), damaged=names)


def _sealed_rows(record: type[Chunk] | type[Segment], limit: int) -> Callable[[Store, Any], Page]:
    def page(store: Store, place: Any) -> Page:
        rows, its = _sound(store, record, place, limit)
        for row in rows:
            if row.wrapped is None or not _unwraps(store, row.kek):
                continue
            if store.sealing.try_unseal(row.kek, [(row.bound, row.sealed, row.wrapped)]):
                store.set_aside(row, "does not unseal")
                its.damaged.append(f"{record.table}/{row.subject(store.sealing.pseudonym)}")
            else:
                its.ciphertexts += 1
        return its

    return page


def _bundles(store: Store, place: Any) -> Page:
    """Bundles with their keys: what is held unseals, what is not has no ciphertext, and every id is found."""
    numbers, work = list[int](), 0
    for number, count in store.rows(_SIZES, place, BUNDLES):
        if numbers and work + BUNDLE + count > WORK:
            break
        numbers.append(number)
        work += BUNDLE + count
    if not numbers:
        return Page(None)
    rows, page = _sound(store, Bundle, place, len(numbers))
    for bundle in rows:
        _look_at_keys(store, bundle, page)
        _look_at_ids(store, bundle, page)
        page.keys += bundle.count
    return page


def _look_at_keys(store: Store, bundle: Bundle, page: Page) -> None:
    held = [at for at, letter in enumerate(bundle.states) if letter in HOLDING and letter != _DAMAGED]
    first = bundle.number * KEYS_PER_BUNDLE
    within = "SELECT place FROM keys WHERE place BETWEEN ? AND ?"
    for (place,) in store.rows(within, first, first + KEYS_PER_BUNDLE - 1):
        at = place - first
        if at >= bundle.count or bundle.states[at] not in HOLDING:
            # Put there by hand: it was destroyed, or never was.
            store.connection.execute("DELETE FROM keys WHERE place = ?", (place,))
            _tell(store, page, f"keys/{place}", "is of no key that is held", "dropped")
    if not held or not _unwraps(store, bundle.kek):
        return
    chosen = Chosen(bundle, held)
    failed = store.sealing.try_unseal(bundle.kek, bundles.sealed(store, chosen))
    page.ciphertexts += len(held) - len(failed)
    if failed:
        lost = Chosen(bundle, [held[i] for i in failed])
        bundles.damage(store, [lost]).record(store)
        page.damaged += [f"keys/{name}" for name in store.sealing.pseudonyms(lost.ids())]


def _look_at_ids(store: Store, bundle: Bundle, page: Page) -> None:
    heads = _heads(bundle.key_ids)
    slots = ", ".join("?" * len(heads))
    statement = f"SELECT head FROM key_heads WHERE bundle = ? AND head IN ({slots})"
    found = {head for (head,) in store.rows(statement, bundle.number, *heads)}
    missing = [head for head in heads if head not in found]
    if missing:
        store.connection.executemany(
            "INSERT OR IGNORE INTO key_heads VALUES (?, ?)", [(head, bundle.number) for head in missing]
        )
        _tell(store, page, f"key_heads/{bundle.number}", f"{len(missing)} ids led to no Bundle", "rebuilt")


def _ids(store: Store, place: Any) -> Page:
    """No id leads to a Bundle that does not have it."""
    head, number = place or (-(1 << 63), -1)
    statement = "SELECT head, bundle FROM key_heads WHERE (head, bundle) > (?, ?) ORDER BY head, bundle LIMIT ?"
    found = store.rows(statement, head, number, HEADS)
    if not found:
        return Page(None)
    numbers = sorted({bundle for _, bundle in found})
    slots = ", ".join("?" * len(numbers))
    statement = f"SELECT number, key_ids FROM bundles WHERE state = '{HELD}' AND number IN ({slots})"
    held = dict(store.rows(statement, *numbers))
    page = Page(found[-1], rows=len(found))
    for head, number in found:
        key_ids = held.get(number)
        if isinstance(key_ids, bytes) and head not in _heads(key_ids):
            store.connection.execute("DELETE FROM key_heads WHERE head = ? AND bundle = ?", (head, number))
            _tell(store, page, f"key_heads/{number}", "an id led to a Bundle that does not have it", "dropped")
    return page


def _told_of(store: Store, place: Any) -> Page:
    """Every Bundle that the log has told of is there: its number is the position of its first leaf."""
    size = store.journal.size
    if place >= size:
        return Page(None)
    end = min(size, place + LEAVES)
    page = Page(end)
    for (number,) in store.rows(_TOLD, place, end):
        if not store.rows("SELECT 1 FROM bundles WHERE number = ?", number) and not _is_forgotten(store, number):
            _tell(store, page, f"bundles/{number}", "is missing, though the log tells of it", "found")
    return page


def _is_forgotten(store: Store, number: int) -> bool:
    """Whether the log says last of a Bundle that its row was deleted, as its keys had ended long ago."""
    ((subject,),) = store.rows("SELECT subject FROM leaves WHERE position = ?", number)
    newest = store.journal.newest(subject)
    assert newest is not None, "the leaf that names it"
    ((_, event),) = store.journal.after(newest, 1)
    return event.kind == "key.forgotten"


def _tell(store: Store, page: Page, name: str, what: str, outcome: str) -> None:
    page.damaged.append(name)
    store.alarm("record.damaged", f"record/{name}", outcome, reason=what)


def _unwraps(store: Store, kek: int | None) -> bool:
    """False for a key-encryption key that is there and altered: what is under it may come back with it."""
    try:
        if kek is not None:
            store.sealing.has(kek)
    except VaultDamagedError:
        return False
    return True


def _heads(key_ids: bytes) -> list[int]:
    return list(unpack(">" + "q8x" * (len(key_ids) // 16), key_ids[: len(key_ids) // 16 * 16]))


HEADS_STAGE = "key_heads"
_SEALED: dict[type[Record], Callable[[Store, Any], Page]] = {
    Chunk: _sealed_rows(Chunk, CHUNKS),
    Segment: _sealed_rows(Segment, SEGMENTS),
    Bundle: _bundles,
}
STAGES: dict[str, Callable[[Store, Any], Page]] = {
    "keks": _keks,
    **{record.table: _SEALED.get(record, _rows_of(record)) for record in RECORDS if record not in (ScrubMark,)},
    HEADS_STAGE: _ids,
    "leaves": _told_of,
}
TABLES = {
    **{record.table: ("rowid", record.table) for record in RECORDS if record is not ScrubMark},
    "leaves": ("position", "leaves"),
}
HANDLERS = {Scrub: scrub, ScrubProgress: progress}
