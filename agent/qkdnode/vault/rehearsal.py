"""What a rehearsal of a rotation is made from: the shape of an association's keys and stock, and the load of late.

Counts alone, read and never written: rows are counted as `Status` counts them, without a look at their MACs. Decoys are
left out, as from every count.
"""

from collections import Counter
from typing import Literal, TypeAlias

import msgspec

from qkdnode.audit import events
from qkdnode.ids import Association, other_role
from qkdnode.lifecycle.rotation import FIRST, Phase
from qkdnode.lifecycle.states import LETTERS, Stage
from qkdnode.vault import decoys, entitlements, generations, marks, reach
from qkdnode.vault.batches import known_link
from qkdnode.vault.records import HELD, KnownAssociation
from qkdnode.vault.requests import Entitle, Entitlement, Request
from qkdnode.vault.retirement import terms_of
from qkdnode.vault.rows import read_rows
from qkdnode.vault.store import Store

COUNTED_BUNDLES = 512
LEAVES_AT_ONCE = 1024
USUAL_BITS = 256  # where no key was ever cut
MINUTE_NS = 60 * 10**9
_AT_ONCE = 128  # Bundles in one statement
_HOLDING = frozenset(LETTERS[stage] for stage in (Stage.ALLOCATED, Stage.READY))

Kind: TypeAlias = Literal["cut_here", "cut_there", "taken_here", "taken_there"]
# What leaves about Bundles tell. One that the neighbour has cut begins as ready: its leaf names the association.
_KINDS: dict[str, Kind] = {
    "key.allocated": "cut_here",
    "key.delivered": "taken_here",
    "key.delivered_remote": "taken_there",
}
_NEWEST = "SELECT class, size_bits FROM bundles WHERE association = ? ORDER BY number DESC LIMIT 1"
_WAITING = f"""
SELECT own, states FROM bundles WHERE association = ? AND key_generation = ? AND state = '{HELD}'
AND (outstanding > 0 OR delivery IS NOT NULL)
"""
_OF_BUNDLES = "SELECT number, association, mark FROM bundles WHERE number IN ({})"
_STOCK = """
SELECT chunks.batch, sum(bits) FROM chunks JOIN batches USING (link, batch)
WHERE chunks.link = ? AND half = ? AND chunks.state = 'stocked' AND batches.usable GROUP BY chunks.batch
"""
_BATCHES = "SELECT count(*) FROM batches WHERE link = ? AND usable"
_LEAVES = "SELECT position, leaf FROM leaves WHERE position < ? AND position >= ? ORDER BY position DESC"


class ShowShape(Request, frozen=True):
    """The shape of an association's keys and of its link's stock; `size_bits` of the keys to be cut, None: as the last
    ones. Answer: Shape. VaultError if the association is unknown."""

    association: Association
    size_bits: int | None = None


class Shape(msgspec.Struct, frozen=True):
    """Answer to ShowShape. Keys that wait are those of the generation that is supplied, with bits here."""

    association: Association
    role: str
    phase: Phase
    current: int
    key_class: str  # of the newest keys, or of the first ones
    size_bits: int
    waiting_here: int  # keys cut here
    waiting_there: int  # and by the other end
    all_counted: bool  # False: there are more than that
    stock_here: int  # bits usable in this end's half
    stock_there: int
    batches: int
    held: bool  # nothing of the class is destroyed
    goes_without: bool  # the class lets a rotation go on without an application
    now_ns: int
    entitlement: Entitlement


class ReadLoad(Request, frozen=True):
    """What was cut and taken, in leaves before a position (None: the newest) and from a time on. Answer: LoadPage."""

    since_ns: int
    before: int | None = None
    limit: int = LEAVES_AT_ONCE


class LoadCount(msgspec.Struct, frozen=True):
    """Keys of an association in one minute, counted from the beginning."""

    association: Association
    minute: int
    kind: Kind
    keys: int


class LoadPage(msgspec.Struct, frozen=True):
    """Answer to ReadLoad: `next` is the `before` of the page before; None: all is read."""

    counts: tuple[LoadCount, ...]
    next: int | None
    reached_ns: int  # wall clock of the oldest leaf that was read


def show_shape(store: Store, request: ShowShape) -> Shape:
    """ShowShape."""
    known = entitlements.demand_association(store, request.association)
    link, row = known_link(store, known.link), generations.of(store, known.number)
    current = FIRST if row is None else row.current
    newest = read_rows(store.connection, (str, int), "a record of bundles in the vault", _NEWEST, known.number)
    key_class, size = newest[0] if newest else ("", USUAL_BITS)
    size = request.size_bits or size
    entitlement = entitlements.entitle(store, Entitle(association=known.association, size_bits=size))
    key_class = key_class or entitlement.key_class
    waiting, all_counted = _waiting(store, known.number, current)
    terms = terms_of(store, key_class)
    return Shape(
        association=known.association,
        role=link.role,
        phase=Phase.STEADY if row is None else Phase(row.phase),
        current=current,
        key_class=key_class,
        size_bits=size,
        waiting_here=waiting[1],
        waiting_there=waiting[0],
        all_counted=all_counted,
        stock_here=_stock(store, known, link.role),
        stock_there=_stock(store, known, other_role(link.role)),
        batches=store.scalar(_BATCHES, link.link),
        held=terms.held,
        goes_without=terms.known is not None and terms.known.rotate_without_acknowledgement,
        now_ns=store.now_ns,
        entitlement=entitlement,
    )


def _stock(store: Store, known: KnownAssociation, half: str) -> int:
    """Bits of a half from which keys of the association may be cut: none of a Batch that is compromised for it."""
    rows = read_rows(store.connection, (bytes, int), "stock of the vault", _STOCK, known.link, half)
    reached = (reach.scope_of(store, known.link, batch, known.local, known.remote) for batch, _ in rows)
    return sum(bits for (_, bits), scope in zip(rows, reached, strict=True) if scope is None)


def _waiting(store: Store, association: int, generation: int) -> tuple[tuple[int, int], bool]:
    """Keys of a generation that wait for an application: those that the other end has cut, and those of this one."""
    statement = f"{_WAITING} {decoys.left_out(store)} ORDER BY number LIMIT {COUNTED_BUNDLES + 1}"
    what = "a record of bundles in the vault"
    rows = read_rows(store.connection, (int, bytes), what, statement, association, generation)
    counts = [0, 0]
    for own, states in rows[:COUNTED_BUNDLES]:
        counts[bool(own)] += sum(letter in _HOLDING for letter in states)
    return (counts[0], counts[1]), len(rows) <= COUNTED_BUNDLES


def read_load(store: Store, request: ReadLoad) -> LoadPage:
    """ReadLoad."""
    end = store.journal.size if request.before is None else max(0, min(request.before, store.journal.size))
    start = max(0, end - max(1, min(request.limit, LEAVES_AT_ONCE)))
    told: list[tuple[int, int, Kind, int]] = []  # bundle, minute, kind, keys
    reached_ns = store.now_ns
    for _, leaf in store.rows(_LEAVES, end, start):
        event = events.decode(leaf.encode())
        if event.time_ns < request.since_ns:
            return LoadPage(_by_association(store, told), None, request.since_ns)
        reached_ns = event.time_ns
        kind = _KINDS.get(event.kind)
        if event.kind == "key.ready" and "association" in event.details:
            kind = "cut_there"
        name, _, number = event.subject.rpartition("/")
        if kind is not None and name.startswith("bundle/") and event.keys is not msgspec.UNSET:
            minute = (event.time_ns - request.since_ns) // MINUTE_NS
            told.append((int(number), minute, kind, len(event.keys)))
    return LoadPage(_by_association(store, told), start or None, reached_ns if start else request.since_ns)


def _by_association(store: Store, told: list[tuple[int, int, Kind, int]]) -> tuple[LoadCount, ...]:
    """The counts of each association; what is no key's Bundle any more, or holds decoys, is left out."""
    numbers = sorted({number for number, *_ in told})
    known: dict[int, Association] = {}
    for i in range(0, len(numbers), _AT_ONCE):
        page = numbers[i : i + _AT_ONCE]
        statement = _OF_BUNDLES.format(", ".join("?" * len(page)))
        what = "a record of bundles in the vault"
        for number, association, mark in read_rows(store.connection, (int, int, bytes), what, statement, *page):
            its = store.get_association(association)
            if its is not None and not marks.marks_decoy(store, number, mark):
                known[number] = its.association
    counts = Counter[tuple[Association, int, Kind]]()
    for number, minute, kind, keys in told:
        if number in known:
            counts[known[number], minute, kind] += keys
    return tuple(LoadCount(*where, keys) for where, keys in counts.items())


HANDLERS = {ShowShape: show_shape, ReadLoad: read_load}
