"""What does not agree with what the neighbour holds: judged a page at a time, and repaired by rule.

The neighbour's page is what it held at one moment. Rows of this vault that have not changed since before the page was
asked for were the same at that moment: so the pair is one true picture of both ends. Of others nothing is concluded.
What can be undone is done at once: a key in doubt is quarantined, and given to nobody. The rest waits.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

import msgspec

from qkdnode.errors import LocalProtocolError
from qkdnode.lifecycle.holdings import STRETCH_BITS, Span, joined, missing_from
from qkdnode.lifecycle.reasons import Reason
from qkdnode.lifecycle.repairs import REPAIRS, Standing, Verdict, endings, verdict
from qkdnode.lifecycle.states import LETTERS, STAGE_OF_LETTER, Stage, Step, after
from qkdnode.vault import bundles, generations, holdings, outbox, reach, retirement, revocations, stock
from qkdnode.vault.batches import known_link
from qkdnode.vault.bundles import Chosen, Why
from qkdnode.vault.holdings import BUNDLES, SPANS, UNSETTLED, USABLE, Waiting
from qkdnode.vault.records import DAMAGED, HELD, Batch, Bundle, Chunk, Doubt, Link, Notice, pack_batch, unpack_batch
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store
from qkdnode.wire.messages import Allocate, HeldBundle, Stretch, StretchHeld

STANDING_NS = 50 * 10**9  # a difference that is seen again after so long stands
KEPT_NS = 24 * 3600 * 10**9  # what nobody explains is kept for so long, and for so many looks
KEPT_LOOKS = 12
LOOK_NS = 50 * 10**9  # looks that follow sooner count as one
PAGE, AT_ONCE = 64, 4096
OLDER_COPY, UNHEARD = "older copy", "provisioned anew"
STOCK, STOCK_THERE = "stock", "stock there"
_RULES = {
    OLDER_COPY: "quarantined; then destroyed, unless the far end knows where it ended",
    UNHEARD: "quarantined until the far end has answered for it",
    STOCK: "bits that the far end has not got are burnt",
    STOCK_THERE: REPAIRS[Verdict.THEIRS].rule,
}


class CompareHeld(Request, frozen=True):
    """Judge a page of what the neighbour holds against this vault, and repair what is to be repaired by now.

    `since` is a position of the log before which the page was asked for. LocalProtocolError if the page contradicts
    itself. Answer: Compared.
    """

    link: str
    held: StretchHeld
    since: int


class Compared(msgspec.Struct, frozen=True):
    """Answer to CompareHeld."""

    found: dict[str, int]  # verdict -> keys, of those that are differences; "stock" -> bits
    unsettled: int  # keys and bits of which nothing can be said yet
    repaired: dict[str, int]  # step -> keys; "burnt" -> bits of stock
    notify: tuple[str, ...]  # applications that may have keys waiting now


class Doubts(Request, frozen=True):
    """Where this vault and the neighbour do not agree, or did not when they were compared last. Answer: DoubtList."""

    link: str
    after: int = 0
    limit: int = PAGE


class DoubtEntry(msgspec.Struct, frozen=True):
    """A Bundle, or the stock of a stretch."""

    stretch: Stretch
    offset_bits: int
    verdict: str
    since_ns: int
    looks: int
    keys: int  # or bits of stock


class DoubtList(msgspec.Struct, frozen=True):
    """Answer to Doubts."""

    doubts: tuple[DoubtEntry, ...]
    total: int
    hurried: int  # that a second look decides
    quarantined: int  # keys of all links


class EndDoubts(Request, frozen=True):
    """Destroy what this vault cannot ask the neighbour about, once it was kept for long enough. Answer: int, keys."""

    link: str


def rule_of(name: str) -> str:
    """What is done about what a comparison found, in words."""
    return _RULES[name] if name in _RULES else REPAIRS[Verdict(name)].rule


def compare_held(store: Store, request: CompareHeld) -> Compared:
    """CompareHeld."""
    link, held = known_link(store, request.link), request.held
    _demand_sound(held)
    case = _Case(store, link, held, request.since)
    case.judge_bundles()
    case.judge_stock()
    return case.outcome()


def doubts(store: Store, request: Doubts) -> DoubtList:
    """Doubts."""
    name = known_link(store, request.link).link
    where = "link = ? ORDER BY batch, half, place LIMIT ? OFFSET ?"
    rows = store.find_sound(Doubt, where, name, max(1, min(request.limit, 1024)), max(0, request.after))
    total = store.scalar("SELECT count(*) FROM doubts WHERE link = ?", name)
    slow = ", ".join(f"'{text}'" for text in _SLOW)
    hurried = store.scalar(f"SELECT count(*) FROM doubts WHERE link = ? AND verdict NOT IN ({slow})", name)
    quarantined = store.scalar("SELECT coalesce(sum(value), 0) FROM counts WHERE name = ?", Stage.QUARANTINED.value)
    return DoubtList(tuple(map(_entry, rows)), total, hurried, quarantined)


def end_doubts(store: Store, request: EndDoubts) -> int:
    """EndDoubts."""
    link = known_link(store, request.link)
    for doubt in store.find_sound(Doubt, "link = ? AND verdict = ? LIMIT ?", link.link, OLDER_COPY, AT_ONCE):
        doubt = _looked(store, doubt, doubt.verdict, doubt.keys)
        rows = [row for row in _at(store, doubt) if row.places(Stage.QUARANTINED)]
        if not _is_kept(store, doubt) or any(retirement.terms_of(store, row.class_).held for row in rows):
            continue
        store.delete(doubt)
        if rows:  # one notice for a request: its number is of the newest leaf
            places = rows[0].places(Stage.QUARANTINED)
            bundles.move(store, Chosen(rows[0], places), Step.DESTROY, Why("vault", f"inventory: {OLDER_COPY}"))
            revocations.tell(store, link.link, Reason.UNSPECIFIED.value, _letters(store, rows[0].number, places))
            return len(places)
    return 0


def doubt_all(store: Store, link: Link, why: str) -> int:
    """Keys of a link that were ready may have been used by what this vault has forgotten: none of them is given out.

    Those that the neighbour has not answered for are destroyed: it may hold them as used. How many keys it is.
    """
    concerned, told = 0, list[tuple[bytes, int]]()
    offered = f"delivery IS NOT NULL AND link = ? AND state = '{HELD}' ORDER BY number"
    rows = store.find_sound(Bundle, offered, link.link)
    for row in rows:
        ready = row.places(Stage.READY)
        bundles.move(store, Chosen(row, ready), Step.QUARANTINE, Why("vault", f"inventory: {why}"))
        concerned += len(ready)
    asked = [
        notice.number
        for notice in store.find_sound(Notice, "link = ? ORDER BY number", link.link)
        if isinstance(outbox.message_of(notice), Allocate)
    ]
    for number in asked:
        row_ = store.get(Bundle, number)
        outbox.clear(store, link.link, number)
        places = [] if row_ is None else row_.places(Stage.ALLOCATED)
        if row_ is not None and places:
            bundles.move(store, Chosen(row_, places), Step.DESTROY, Why("vault", f"inventory: {why}"))
            told += _letters(store, number, places)
    if told:
        revocations.tell(store, link.link, Reason.UNSPECIFIED.value, told)
    if why == OLDER_COPY:
        where = f"link = ? AND state = '{HELD}' AND instr(states, ?) ORDER BY number"
        for row in store.find_sound(Bundle, where, link.link, bytes([LETTERS[Stage.QUARANTINED]])):
            _note(store, link, row.batch, row.half, row.offset_bits, OLDER_COPY, len(row.places(Stage.QUARANTINED)))
    else:
        for row in rows:
            count = len(row.places(Stage.READY))
            _note(store, link, row.batch, row.half, row.offset_bits, UNHEARD, count)
    return concerned + len(told)


class _Case:
    """One page of the neighbour's against this vault."""

    def __init__(self, store: Store, link: Link, held: StretchHeld, since: int) -> None:
        self._store, self._link, self._held, self._since = store, link, held, since
        self._waits = Waiting(store, link)
        self._found, self._repaired = Counter[str](), Counter[str]()
        self._unsettled = 0
        self._notify = set[str]()
        self._revoked = list[tuple[bytes, int]]()
        self._has_forgotten = False  # this vault knows nothing of what it once took part in

    def outcome(self) -> Compared:
        """What came of it."""
        if self._has_forgotten:
            self._doubt_what_is_unheard()
        if self._revoked:
            revocations.tell(self._store, self._link.link, Reason.UNSPECIFIED.value, self._revoked)
        found = {str(name): count for name, count in sorted(self._found.items())}
        repaired = dict(sorted(self._repaired.items()))
        return Compared(found, self._unsettled, repaired, tuple(sorted(self._notify)))

    # --- Bundles ---

    def judge_bundles(self) -> None:
        """Each Bundle of either end that begins in the page."""
        held = self._held
        there = {row.offset_bits: row for row in held.bundles if held.from_bits <= row.offset_bits < held.until_bits}
        rows = holdings.bundles_between(self._store, self._link, held.stretch, held.from_bits, held.until_bits)
        here = {row.offset_bits: row for row in rows}
        self._forget_others(here.keys())
        for offset in sorted(here.keys() | there.keys()):
            mine, theirs = here.get(offset), there.get(offset)
            if mine is None:
                assert theirs is not None
                self._judge_unknown(theirs)
            elif _has_moved(mine, self._since) or self._is_moving(mine):
                self._unsettled += mine.count
            else:
                self._judge(mine, theirs)

    def _is_moving(self, mine: Bundle) -> bool:
        """Whether a compromise or a rotation is about to reach its keys."""
        if generations.is_moving(self._store, mine):
            return True
        scope = reach.scope_of_bundle(self._store, mine)
        return scope is not None and bool(scope.moving)

    def _forget_others(self, offsets: Collection[int]) -> None:
        """No doubt is left about a Bundle that is not here any more."""
        held, where = self._held, "link = ? AND batch = ? AND half = ? AND place >= ? AND place < ?"
        batch = pack_batch(held.stretch.batch)
        span = (held.from_bits, held.until_bits)
        for doubt in self._store.find_sound(Doubt, where, self._link.link, batch, held.stretch.half, *span):
            if doubt.place not in offsets:
                self._store.delete(doubt)

    def _doubt_what_is_unheard(self) -> None:
        """Keys that wait in quarantine since the pair was provisioned anew may have been used: this vault is a copy."""
        where = "link = ? AND verdict IN (?, ?)"
        values = (self._link.link, UNHEARD, Verdict.EXPLAINED.value)
        for doubt in self._store.find_sound(Doubt, where, *values):
            _looked(self._store, doubt, OLDER_COPY, doubt.keys)

    def _judge_unknown(self, theirs: HeldBundle) -> None:
        damaged = self._store.rows(f"SELECT 1 FROM bundles WHERE state = '{DAMAGED}' LIMIT 1")
        agreed = any(STAGE_OF_LETTER[letter] in _AGREED for letter in theirs.states)
        self._has_forgotten |= agreed and not damaged
        for letter, far in zip(theirs.states, theirs.far, strict=True):
            found = verdict(Standing(None), Standing(STAGE_OF_LETTER[letter], bool(far), theirs.waiting))
            if REPAIRS[found].difference:
                self._found[found] += 1
            elif found is Verdict.IN_FLIGHT:
                self._unsettled += 1

    def _judge(self, mine: Bundle, theirs: HeldBundle | None) -> None:
        """One Bundle: what each key's standing at both ends means, and what is done by now."""
        if theirs is not None and (theirs.header != holdings.header_of(mine) or len(theirs.states) != mine.count):
            theirs = None  # another Bundle of these bits: neither end has the other's
        doubt = self._store.get(Doubt, self._link.link, mine.batch, mine.half, mine.offset_bits)
        sticky = doubt is not None and doubt.verdict == OLDER_COPY
        waiting, held = self._waits.has(mine), retirement.terms_of(self._store, mine.class_).held
        groups: dict[tuple[Verdict, tuple[Step, ...]], list[int]] = defaultdict(list)
        for place in range(mine.count):
            stage, far = mine.stage(place), bool(mine.far[place])
            other = Standing(None)
            if theirs is not None:
                other = Standing(STAGE_OF_LETTER[theirs.states[place]], bool(theirs.far[place]), theirs.waiting)
            found = verdict(Standing(stage, far, waiting), other)
            if found is Verdict.EXPLAINED and (doubt is None or mine.held_ns is not None):
                found = Verdict.AGREED  # it was not a difference that took it out of supply
            to_end: tuple[Step, ...] = ()
            if found is Verdict.ENDED:
                assert other.stage is not None
                to_end = endings(stage, far, other.stage)
                if held and Step.DESTROY in to_end:  # given to nobody, and kept until nothing holds it
                    found, to_end = (Verdict.IN_FLIGHT, ()) if stage in _KEPT else (found, ())
            groups[found, to_end].append(place)
        differing = {
            found: sum(len(places) for (its, _), places in groups.items() if its is found)
            for found, _ in groups
            if REPAIRS[found].difference
        }
        for found, count in differing.items():
            self._found[found] += count
        self._has_forgotten |= Verdict.HAD in differing
        self._unsettled += sum(len(places) for (found, _), places in groups.items() if found is Verdict.IN_FLIGHT)
        doubt = self._doubt(mine, doubt, differing)
        for (found, to_end), places in groups.items():
            if REPAIRS[found].difference:
                self._repair(mine.number, found, to_end, places, doubt, sticky=sticky)
        self._end_doubt(mine, doubt, differing)

    def _doubt(self, mine: Bundle, doubt: Doubt | None, differing: dict[Verdict, int]) -> Doubt | None:
        """The doubt about a Bundle, with this look counted."""
        if not differing:
            return doubt
        worst = max(differing, key=_ORDER.index)
        name = OLDER_COPY if doubt is not None and doubt.verdict == OLDER_COPY else worst.value
        count = sum(differing.values())
        if doubt is None:
            return _note(self._store, self._link, mine.batch, mine.half, mine.offset_bits, name, count)
        return _looked(self._store, doubt, name, count)

    def _end_doubt(self, mine: Bundle, doubt: Doubt | None, differing: dict[Verdict, int]) -> None:
        """Nothing is left to doubt once both ends agree and no key waits in quarantine."""
        if doubt is None:
            return
        now = self._store.get(Bundle, mine.number)
        if now is not None and now.places(Stage.QUARANTINED):
            return
        if differing.keys() <= {Verdict.EXPLAINED}:
            self._store.delete(doubt)

    def _repair(
        self,
        number: int,
        found: Verdict,
        to_end: tuple[Step, ...],
        places: list[int],
        doubt: Doubt | None,
        *,
        sticky: bool,
    ) -> None:
        if found is Verdict.EXPLAINED and sticky:
            return
        repair = REPAIRS[found]
        steps = [(step, Why("vault", f"inventory: {found}")) for step in repair.at_once]
        if doubt is not None and _stands(self._store, doubt):
            steps += [(step, Why("neighbour", f"inventory: {found}")) for step in (*repair.standing, *to_end)]
        is_kept = doubt is not None and _is_kept(self._store, doubt)
        row = self._store.get(Bundle, number)
        is_kept = is_kept and row is not None and not retirement.terms_of(self._store, row.class_).held
        if is_kept:
            steps += [(step, Why("vault", f"inventory: {found}")) for step in repair.kept]
        for step, why in steps:
            self._take(number, places, step, why)
        if is_kept and Step.DESTROY in repair.kept:
            self._revoked += _letters(self._store, number, places)

    def _take(self, number: int, places: list[int], step: Step, why: Why) -> None:
        row = self._store.get(Bundle, number)
        if row is None:
            return
        able = [
            place
            for place in places
            if after(row.stage(place), bool(row.far[place]), step) is not None
            and not (step is Step.FAR_DELIVER and row.far[place])
        ]
        if able:
            bundles.move(self._store, Chosen(row, able), step, why)
            self._repaired[step.value] += len(able)
            if step in (Step.ACCEPT, Step.RESTORE):
                self._notify.add(row.application)

    # --- stock ---

    def judge_stock(self) -> None:
        """Bits that are in stock here and not there: the other end refuses whatever is cut of them."""
        held, link, store = self._held, self._link, self._store
        batch = pack_batch(held.stretch.batch)
        row = next(iter(store.find_sound(Batch, "link = ? AND batch = ?", link.link, batch)), None)
        if row is None or holdings.state_of(store, link.link, batch) != USABLE:
            return
        if reach.scope_of_batch(store, link.link, batch) is not None:
            return  # all of it is about to be destroyed
        chunks = holdings.chunks_between(store, link, held.stretch, held.from_bits, held.until_bits)
        mine = holdings.spans_of(chunks, held.from_bits, held.until_bits)
        moved = _has_moved(row, self._since) or any(_has_moved(chunk, self._since) for chunk in chunks)
        if held.batch == UNSETTLED or moved:
            self._unsettled += _bits(mine)
            return
        there = held.spans if held.batch == USABLE else ()
        extra = missing_from(mine, there)
        lacking = missing_from(extra, [_span(row, len(row.states)) for row in held.bundles if row.waiting])
        self._unsettled += _bits(extra) - _bits(lacking)
        theirs = _bits(missing_from(missing_from(there, mine), self._under_way()))
        if theirs:
            self._found[STOCK_THERE] += theirs
        place = _place_of_stock(held.stretch)
        doubt = store.get(Doubt, link.link, batch, held.stretch.half, place)
        if not lacking:
            if doubt is not None and held.from_bits == holdings.bounds(held.stretch)[0]:
                store.delete(doubt)
            return
        self._found[STOCK] += _bits(lacking)
        if doubt is None:
            _note(store, link, batch, held.stretch.half, place, STOCK, _bits(lacking))
        elif _stands(store, _looked(store, doubt, STOCK, _bits(lacking))):
            for start, end in lacking:
                self._repaired["burnt"] += stock.burn(store, link.link, held.stretch.half, batch, start, end)

    def _under_way(self) -> list[Span]:
        """Bits of Bundles here of which the neighbour may not have heard, or this end not its answer."""
        held = self._held
        before = holdings.bundles_before(self._store, self._link, held.stretch, held.from_bits)
        rows = holdings.bundles_between(self._store, self._link, held.stretch, held.from_bits, held.until_bits)
        return [
            _span(row, row.count) for row in (*before, *rows) if _has_moved(row, self._since) or self._waits.has(row)
        ]


def _has_moved(row: Bundle | Batch | Chunk, since: int) -> bool:
    """Whether a row has changed since the log had so many leaves: the neighbour may tell of what was before."""
    return row.leaf >= since


def _demand_sound(held: StretchHeld) -> None:
    """What of a page can be checked without knowing what the neighbour holds."""
    start, end = holdings.bounds(held.stretch)
    offsets = [row.offset_bits for row in held.bundles]
    faults = {
        "its range": not start <= held.from_bits < held.until_bits <= end,
        "its end": held.until_bits < end and len(held.bundles) < BUNDLES and len(held.spans) < SPANS,
        "its Bundles' order": any(a >= b for a, b in itertools.pairwise(offsets)),
        "Bundles beyond it": any(offset >= held.until_bits for offset in offsets)
        or sum(offset < held.from_bits for offset in offsets) > 1,
        "a Bundle's stages": any(not _LETTERS.issuperset(row.states) for row in held.bundles),
        "a Bundle's size": any(len(row.states) != len(row.far) for row in held.bundles),
        "marks": any(not {0, 1}.issuperset(row.far) for row in held.bundles),
        "its stock": list(held.spans) != joined(held.spans)
        or any(not held.from_bits <= a < b <= held.until_bits or a % 8 or b % 8 for a, b in held.spans),
    }
    wrong = [name for name, is_wrong in faults.items() if is_wrong]
    if wrong:
        raise LocalProtocolError(f"what the peer says of stretch {held.stretch.number} cannot be: {', '.join(wrong)}")


def _note(store: Store, link: Link, batch: bytes, half: str, place: int, name: str, keys: int) -> Doubt:
    """Begin a doubt, or have one be about something else."""
    known = store.get(Doubt, link.link, batch, half, place)
    if known is not None:
        if known.verdict == OLDER_COPY:
            return known
        store.delete(known)
    row = Doubt(link.link, batch, half, place, name, store.now_ns, 1, store.now_ns, keys)
    store.insert(row)
    return row


def _looked(store: Store, doubt: Doubt, name: str, keys: int) -> Doubt:
    """The doubt after one more look, if the last one was long enough ago; another verdict begins anew."""
    store.delete(doubt)
    now = store.now_ns
    if name != doubt.verdict:
        doubt = msgspec.structs.replace(doubt, verdict=name, since_ns=now, looks=1, looked_ns=now, keys=keys)
    elif not 0 <= now - doubt.looked_ns < LOOK_NS:
        doubt = msgspec.structs.replace(doubt, looks=doubt.looks + 1, looked_ns=now, keys=keys)
    store.insert(doubt)
    return doubt


def _stands(store: Store, doubt: Doubt) -> bool:
    return doubt.looks > 1 and store.now_ns - doubt.since_ns >= STANDING_NS


def _is_kept(store: Store, doubt: Doubt) -> bool:
    """Whether it was kept for long enough: a clock that jumps does not do away with the looks."""
    return doubt.looks >= KEPT_LOOKS and store.now_ns - doubt.since_ns >= KEPT_NS


def _at(store: Store, doubt: Doubt) -> list[Bundle]:
    where = "link = ? AND batch = ? AND half = ? AND offset_bits = ?"
    return store.find_sound(Bundle, where, doubt.link, doubt.batch, doubt.half, doubt.place)


def _letters(store: Store, number: int, places: Iterable[int]) -> list[tuple[bytes, int]]:
    """Where keys of a Bundle have ended, as the neighbour is told."""
    row = store.get(Bundle, number)
    if row is None:
        return []
    ended = (LETTERS[Stage.DESTROYED], LETTERS[Stage.DESTROYED_COMPROMISED])
    return [(row.key_id(place), row.states[place]) for place in places if row.states[place] in ended]


def _place_of_stock(stretch: Stretch) -> int:
    return -1 - stretch.number


def _entry(doubt: Doubt) -> DoubtEntry:
    number = -1 - doubt.place if doubt.place < 0 else doubt.place // STRETCH_BITS
    stretch = Stretch(unpack_batch(doubt.batch), doubt.half, number)  # type: ignore[arg-type]
    offset = holdings.bounds(stretch)[0] if doubt.place < 0 else doubt.place
    return DoubtEntry(stretch, offset, doubt.verdict, doubt.since_ns, doubt.looks, doubt.keys)


def _span(row: Bundle | HeldBundle, count: int) -> Span:
    return row.offset_bits, row.offset_bits + row.size_bits * count


def _bits(spans: Iterable[Span]) -> int:
    return sum(end - start for start, end in spans)


_KEPT = (Stage.QUARANTINED, Stage.DEACTIVATED)
_LETTERS = frozenset(STAGE_OF_LETTER)
_AGREED = (Stage.READY, Stage.QUARANTINED, Stage.DELIVERED, Stage.SUSPENDED, Stage.DEACTIVATED)
# Which of several a Bundle's doubt is called after: the last of these.
_ORDER = (
    Verdict.EXPLAINED, Verdict.THEIRS, Verdict.UNANSWERED, Verdict.USELESS, Verdict.ORPHAN, Verdict.HEARD,
    Verdict.ANSWERED, Verdict.ENDED, Verdict.HAD,
)  # fmt: skip
_SLOW = (OLDER_COPY, Verdict.ORPHAN.value, Verdict.USELESS.value, Verdict.UNANSWERED.value, Verdict.THEIRS.value)
HANDLERS = {CompareHeld: compare_held, Doubts: doubts, EndDoubts: end_doubts}
