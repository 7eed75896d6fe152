"""What this vault holds of a link, as the tree of hashes that both ends make alike; made anew a page at a time."""

from collections.abc import Iterable
from hmac import compare_digest

import msgspec

from qkdnode.errors import LocalProtocolError
from qkdnode.lifecycle.holdings import (
    FAN_OUT,
    HASH_BYTES,
    LEVELS,
    NAME_BYTES,
    NOTHING,
    STRETCH_BITS,
    Span,
    bucket_digest,
    bundle_digest,
    bundle_header,
    joined,
    node_digest,
    pack_entries,
    stretch_digest,
    unpack_stretch,
)
from qkdnode.lifecycle.states import LETTERS, STEPS, Stage, Step
from qkdnode.vault import bundles, generations, outbox, reach, retirement, stock
from qkdnode.vault.batches import known_link
from qkdnode.vault.records import PENDING, READY, STOCKED, Batch, Bundle, Chunk, Link, Notice, pack_batch
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store
from qkdnode.vault.stretches import OF_STRETCHES
from qkdnode.wire.messages import (
    Allocate,
    Compromised,
    Delivered,
    HeldBundle,
    KeysRetired,
    KeysRevoked,
    Stretch,
    StretchHeld,
)

NODES_AT_ONCE = 64  # of the tree
MADE_AT_ONCE = 64  # Bundles and chunks read by one request, about: some milliseconds
_HELD_BACK = frozenset(LETTERS[stage] for stage in (Stage.QUARANTINED, Stage.DEACTIVATED))
_MOVABLE = frozenset(LETTERS[stage] for stage in STEPS[Step.COMPROMISE].ends)
ENTRIES = 256  # stretches of a bucket in one answer
BUNDLES = 128  # of a stretch in one answer
SPANS = 256
OUTBOX_MOST = 4096  # of a longer one everything is taken to wait
USABLE, UNSETTLED, CLOSED, UNKNOWN = "usable", "unsettled", "closed", "unknown"
_NODE = "SELECT digest, mac FROM digests WHERE link = ? AND level = ? AND path = ?"
_PUT = "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)"
_STALE = f"SELECT path FROM digests WHERE link = ? AND level = {OF_STRETCHES} AND digest = x'' ORDER BY path LIMIT ?"
_LEFT = f"SELECT count(*) FROM digests WHERE link = ? AND level = {OF_STRETCHES} AND digest = x''"
_ANY = f"SELECT 1 FROM digests WHERE link = ? AND level = {OF_STRETCHES} AND path > ? AND path <= ? LIMIT 1"
_LAST = b"\xff" * (LEVELS + NAME_BYTES + 1)
_DROP = f"DELETE FROM digests WHERE link = ? AND level = {OF_STRETCHES} AND path = ?"
_BUCKET = (
    f"SELECT path, digest, mac FROM digests WHERE link = ? AND level = {OF_STRETCHES} AND path > ? AND path <= ? "
    "ORDER BY path LIMIT ?"
)


class HoldingsNode(Request, frozen=True):
    """A node of the tree, or the stretches of a bucket after one. Answer: Node."""

    link: str
    path: bytes = b""
    after: bytes = b""


class Node(msgspec.Struct, frozen=True):
    """Answer to HoldingsNode. While hashes are made anew nothing but how many of them are: ask again."""

    stale: int
    digest: bytes = NOTHING
    children: bytes = b""  # sixteen hashes; none of a bucket
    stretches: bytes = b""  # names with hashes, of a bucket
    more: bool = False


class HeldIn(Request, frozen=True):
    """What is held in a stretch from an offset on. Answer: StretchHeld, whose number is the asker's to give."""

    link: str
    stretch: Stretch
    from_bits: int


class LogPosition(Request, frozen=True):
    """How many leaves the log has. Answer: int."""


def holdings_node(store: Store, request: HoldingsNode) -> Node:
    """HoldingsNode."""
    link, path = known_link(store, request.link), request.path
    if len(path) > LEVELS or any(step >= FAN_OUT for step in path):
        raise LocalProtocolError(f"{path.hex()!r} is no way into a tree of {LEVELS} levels and {FAN_OUT} children")
    left = make_anew(store, link)
    if left:
        return Node(left)
    nodes = _Nodes(store, link)
    try:
        digest = nodes.digest(path)
        children = [nodes.digest(path + bytes((step,))) for step in range(FAN_OUT if len(path) < LEVELS else 0)]
    except _UnfinishedError:
        return Node(1)
    if children:
        return Node(0, digest, b"".join(children))
    entries = _entries(store, link, path, request.after, ENTRIES + 1)
    return Node(0, digest, b"", pack_entries(entries[:ENTRIES]), len(entries) > ENTRIES)


def held_in(store: Store, request: HeldIn) -> StretchHeld:
    """HeldIn."""
    link, stretch = known_link(store, request.link), request.stretch
    start, end = bounds(stretch)
    if not start <= request.from_bits < end:
        raise LocalProtocolError(f"offset {request.from_bits} is not in stretch {stretch.number} of its half")
    start = request.from_bits
    batch = pack_batch(stretch.batch)
    state = state_of(store, link.link, batch)
    rows = bundles_between(store, link, stretch, start, end, BUNDLES + 1)
    if len(rows) > BUNDLES:
        end, rows = rows[-1].offset_bits, rows[:-1]
    spans = spans_between(store, link, stretch, start, end) if state == USABLE else []
    if len(spans) > SPANS:
        end, spans = spans[SPANS][0], spans[:SPANS]
        rows = [row for row in rows if row.offset_bits < end]
    if state == USABLE and reach.scope_of_batch(store, link.link, batch) is not None:
        state = UNSETTLED  # its stock is about to be destroyed
    before = bundles_before(store, link, stretch, start)
    waits = Waiting(store, link)
    held = tuple(
        HeldBundle(row.offset_bits, row.size_bits, header_of(row), row.states, row.far, waits.has(row))
        for row in (*before, *rows)
    )
    return StretchHeld(0, stretch, state, start, end, tuple(spans), held)  # type: ignore[arg-type]


def log_position(store: Store, request: LogPosition) -> int:
    """LogPosition."""
    return store.journal.size


def bounds(stretch: Stretch) -> Span:
    """The offsets in its half between which a stretch is."""
    return STRETCH_BITS * stretch.number, STRETCH_BITS * (stretch.number + 1)


def state_of(store: Store, link: str, batch: bytes) -> str:
    """Whether stock of a Batch can be cut at both ends, as far as this one knows."""
    rows = store.find_sound(Batch, "link = ? AND batch = ?", link, batch)
    if not rows:
        return UNKNOWN
    if rows[0].state in (PENDING, READY) and not rows[0].usable:
        return UNSETTLED
    return USABLE if rows[0].state == READY else CLOSED


def bundles_between(store: Store, link: Link, stretch: Stretch, start: int, end: int, limit: int = -1) -> list[Bundle]:
    """Bundles of a half of a Batch that begin in [start, end), by rising offset."""
    where = "link = ? AND batch = ? AND half = ? AND offset_bits >= ? AND offset_bits < ? ORDER BY offset_bits LIMIT ?"
    return store.find_sound(Bundle, where, link.link, pack_batch(stretch.batch), stretch.half, start, end, limit)


def bundles_before(store: Store, link: Link, stretch: Stretch, start: int) -> list[Bundle]:
    """The Bundle that reaches from before an offset beyond it, if there is one."""
    where = "link = ? AND batch = ? AND half = ? AND offset_bits < ? ORDER BY offset_bits DESC LIMIT 1"
    rows = store.find_sound(Bundle, where, link.link, pack_batch(stretch.batch), stretch.half, start)
    return [row for row in rows if end_of(row) > start]


def end_of(row: Bundle) -> int:
    """The offset behind a Bundle."""
    return row.offset_bits + row.size_bits * row.count


def chunks_between(store: Store, link: Link, stretch: Stretch, start: int, end: int) -> list[Chunk]:
    """What is in stock of [start, end), by chunks."""
    where = f"link = ? AND half = ? AND batch = ? AND number BETWEEN ? AND ? AND state = '{STOCKED}' ORDER BY number"
    first, last = start // stock.CHUNK_BITS, (end - 1) // stock.CHUNK_BITS
    return store.find_sound(Chunk, where, link.link, stretch.half, pack_batch(stretch.batch), first, last)


def spans_between(store: Store, link: Link, stretch: Stretch, start: int, end: int) -> list[Span]:
    """What is in stock of [start, end)."""
    return spans_of(chunks_between(store, link, stretch, start, end), start, end)


def spans_of(chunks: Iterable[Chunk], start: int, end: int) -> list[Span]:
    """What chunks hold of [start, end), spans that meet made one."""
    clipped = [(max(a, start), min(b, end)) for row in chunks for a, b in stock.spans(row)]
    return joined(span for span in clipped if span[0] < span[1])


def header_of(row: Bundle) -> bytes:
    """What of a Bundle is the same at both ends for good."""
    return bundle_header(
        offset_bits=row.offset_bits,
        size_bits=row.size_bits,
        key_class=row.class_,
        binding=row.binding,
        key_ids=row.key_ids,
    )


class Waiting:
    """About which Bundles a message of this end is not confirmed by the neighbour, or a compromise is to reach them."""

    def __init__(self, store: Store, link: Link) -> None:
        self._store = store
        notices = store.find_sound(Notice, "link = ? ORDER BY number LIMIT ?", link.link, OUTBOX_MOST + 1)
        self._everything = len(notices) > OUTBOX_MOST
        self._requests, self._ids = set[int](), set[bytes]()
        self._ranges: list[tuple[bytes, bytes]] = []
        for notice in notices[:OUTBOX_MOST]:
            match outbox.message_of(notice):
                case Allocate():
                    self._requests.add(notice.number)
                case Delivered(key_ids=key_ids) | KeysRevoked(key_ids=key_ids) | KeysRetired(key_ids=key_ids):
                    self._ids.update(bundles.split(key_ids))
                case Compromised(first=first, last=last):
                    self._ranges.append((pack_batch(first), pack_batch(last)))

    def has(self, row: Bundle) -> bool:
        """Whether any message waits that is about a key of this Bundle, or a scope or a rotation moves its keys yet."""
        if self._everything or row.number in self._requests:
            return True
        if any(first <= row.batch <= last for first, last in self._ranges):
            return True
        if reach.scope_of_bundle(self._store, row) is not None and any(letter in _MOVABLE for letter in row.states):
            return True
        if self.is_held(row) or generations.is_moving(self._store, row):
            return True
        return bool(self._ids) and not self._ids.isdisjoint(bundles.split(row.key_ids))

    def is_held(self, row: Bundle) -> bool:
        """Whether keys of it would have ended but for a legal hold here: they wait for its end."""
        return bool(_HELD_BACK.intersection(row.states)) and retirement.terms_of(self._store, row.class_).held


# --- the hashes ------------------------------------------------------------------------------------------------------


def make_anew(store: Store, link: Link, at_once: int = MADE_AT_ONCE) -> int:
    """Make hashes of stretches anew, so many Bundles' and chunks' worth; how many stretches are left."""
    budget = at_once
    while budget > 0:
        paths = [path for (path,) in store.rows(_STALE, link.link, 16)]
        if not paths:
            return 0
        for path in paths:
            budget -= 1 + _make(store, link, path)
            if budget <= 0:
                break
    return store.scalar(_LEFT, link.link)


def _make(store: Store, link: Link, path: bytes) -> int:
    """The hash of one stretch; of how many Bundles and chunks it is."""
    name = path[LEVELS:]
    try:
        stretch = unpack_stretch(name)
    except (TypeError, ValueError):  # written by somebody else
        store.connection.execute(_DROP, (link.link, path))
        return 0
    batch = pack_batch(stretch.batch)
    start, end = bounds(stretch)
    rows = bundles_between(store, link, stretch, start, end)
    usable = state_of(store, link.link, batch) == USABLE
    chunks = chunks_between(store, link, stretch, start, end) if usable else []
    spans = spans_of(chunks, start, end)
    digests = (bundle_digest(header_of(row), link.role, row.states, row.far) for row in rows)
    digest = stretch_digest(name, spans, [digest for digest in digests if digest is not None])
    if digest == NOTHING:
        store.connection.execute(_DROP, (link.link, path))
    else:
        _put(store, link, OF_STRETCHES, path, digest)
    store.stretches.made(link.link, stretch, batch)
    return len(rows) + len(chunks)


class _UnfinishedError(Exception):
    """So many nodes were made that others are to be served first; those that were made are kept."""


class _Nodes:
    """The nodes of a tree, as they are kept or made anew, some at a time."""

    def __init__(self, store: Store, link: Link) -> None:
        self._store, self._link, self._made = store, link, 0

    def digest(self, path: bytes) -> bytes:
        """The hash of one."""
        store, link, level = self._store, self._link, len(path)
        for digest, mac in store.rows(_NODE, link.link, level, path):
            if _is_ours(store, link, level, path, digest, mac):
                return bytes(digest)
        if not store.rows(_ANY, link.link, path, path + _LAST):
            return NOTHING
        if level == LEVELS:
            digest = bucket_digest(_entries(store, link, path, b"", -1))
        else:
            digest = node_digest(path, [self.digest(path + bytes((step,))) for step in range(FAN_OUT)])
        if self._made >= NODES_AT_ONCE:
            raise _UnfinishedError
        _put(store, link, level, path, digest)
        self._made += 1
        return digest


def _entries(store: Store, link: Link, path: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    """Stretches of a bucket and their hashes. What was written by somebody else is dropped and made anew later."""
    first, last = path + after, path + _LAST
    entries = []
    for its, digest, mac in store.rows(_BUCKET, link.link, first, last, limit):
        if _is_ours(store, link, OF_STRETCHES, its, digest, mac):
            entries.append((bytes(its[LEVELS:]), bytes(digest)))
        else:
            store.stretches.touch_all()
            store.alarm("record.damaged", f"record/digests/{link.link}", "dropped", reason="a hash is not what it was")
    return entries


def _put(store: Store, link: Link, level: int, path: bytes, digest: bytes) -> None:
    mac = store.sealing.mac("digests", link.link, level, path, digest)
    store.connection.execute(_PUT, (link.link, level, path, digest, mac))


def _is_ours(store: Store, link: Link, level: int, path: object, digest: object, mac: object) -> bool:
    if not (isinstance(path, bytes) and isinstance(digest, bytes) and isinstance(mac, bytes)):
        return False
    its = store.sealing.mac("digests", link.link, level, path, digest)
    return len(digest) == HASH_BYTES and compare_digest(its, mac)


HANDLERS = {HoldingsNode: holdings_node, HeldIn: held_in, LogPosition: log_position}
