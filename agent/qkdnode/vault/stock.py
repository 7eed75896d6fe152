"""Stock: both halves of a Batch in sealed chunks, from which keys are cut, each bit once.

A chunk is resealed under a fresh data key with every cut, and the old data key is deleted with it. Offsets are in
bits of the half, whole bytes.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.records import QUARANTINED, STOCKED, Chunk
from qkdnode.vault.store import Store

CHUNK_BYTES = 4096
CHUNK_BITS = 8 * CHUNK_BYTES
PAGE = 16

Span = tuple[int, int]
_decode = msgspec.json.Decoder(list[Span]).decode

# The last chunk of a half that is too short for one key is passed over: such remainders would pile up in the way.
_USABLE = f"""
state = '{STOCKED}' AND link = ? AND half = ? AND (batch, number) > (?, ?) AND EXISTS (
    SELECT 1 FROM batches WHERE batches.link = chunks.link AND batches.batch = chunks.batch AND batches.usable
        AND (chunks.bits >= ? OR chunks.number < (batches.half_bits - 1) / {CHUNK_BITS})
)
ORDER BY batch, number LIMIT {PAGE}
"""

_SUM = """
SELECT coalesce(sum(bits), 0) FROM chunks JOIN batches USING (link, batch)
WHERE chunks.link = ? AND half = ? AND chunks.state = 'stocked' AND batches.usable
"""


class Run(msgspec.Struct, frozen=True):
    """A stretch of one half of a Batch that is all in stock."""

    batch: bytes
    start: int
    end: int


def lay_in(store: Store, link: str, batch: bytes, half: str, bits: memoryview) -> None:
    """Seal one half of a Batch's stock, chunk by chunk."""
    rows, kek = [], store.kek(link)
    for number, start in enumerate(range(0, len(bits), CHUNK_BYTES)):
        end = min(start + CHUNK_BYTES, len(bits))
        spans = _encode([(8 * start, 8 * end)])
        row = Chunk(link, half, batch, number, STOCKED, spans, 8 * (end - start), store.epoch, 1, kek, b"", b"")
        rows.append(row)
    if not rows:
        return
    pieces = store.sealing.seal(kek, [row.bound for row in rows], bits, CHUNK_BYTES)
    for row, sealed in zip(rows, pieces, strict=True):
        row = msgspec.structs.replace(row, sealed=sealed.sealed, wrapped=sealed.wrapped)
        store.create(row, "stock.stored", bits=row.bits)


def usable_runs(store: Store, link: str, half: str, at_least: int) -> Iterator[Run]:
    """What a half holds in usable Batches, oldest first, where a key of `at_least` bits may fit."""
    run: Run | None = None
    place = (b"", -1)
    while rows := store.find(Chunk, _USABLE, link, half, *place, at_least):
        for row in rows:
            for start, end in spans(row):
                if run is not None and run.batch == row.batch and run.end == start:
                    run = Run(row.batch, run.start, end)
                    continue
                if run is not None:
                    yield run
                run = Run(row.batch, start, end)
        place = (rows[-1].batch, rows[-1].number)
    if run is not None:
        yield run


def usable_bits(store: Store, link: str, half: str) -> int:
    """What a half holds in usable Batches."""
    return int(store.scalar(_SUM, link, half))


def holds(store: Store, link: str, half: str, batch: bytes, start: int, end: int) -> bool:
    """Whether all bits [start, end) of a half are in stock."""
    found = 0
    for row in _covering(store, link, half, batch, start, end):
        found += sum(max(0, min(end, b) - max(start, a)) for a, b in spans(row))
    return found == end - start


def cut(store: Store, link: str, half: str, batch: bytes, start: int, end: int) -> SecretBuffer:
    """Take [start, end), which are all in stock, out of it; the caller releases the buffer."""
    material = SecretBuffer((end - start) // 8)
    with memoryview(material) as view:
        _take(store, link, half, batch, start, end, view)
    return material


def burn(store: Store, link: str, half: str, batch: bytes, start: int, end: int) -> int:
    """Destroy what there is of [start, end); how many bits."""
    return _take(store, link, half, batch, start, end, None)


def destroy(store: Store, link: str, batch: bytes) -> None:
    """Destroy both halves of a Batch."""
    for row in store.find_sound(Chunk, "link = ? AND batch = ?", link, batch):
        store.erasures.note(row.wrapped)
        store.remove(row, "stock.destroyed", bits=row.bits)
    store.connection.execute("DELETE FROM chunks WHERE link = ? AND batch = ?", (link, batch))


def quarantine(store: Store, link: str, batch: bytes) -> None:
    """Keep both halves of a Batch from all use."""
    for row in store.find_sound(Chunk, "link = ? AND batch = ?", link, batch):
        store.change(row, "stock.quarantined", {"bits": row.bits}, state=QUARANTINED)


def _take(store: Store, link: str, half: str, batch: bytes, start: int, end: int, into: memoryview | None) -> int:
    taken = 0
    for row in _covering(store, link, half, batch, start, end):
        hit = [(max(start, a), min(end, b)) for a, b in spans(row) if a < end and b > start]
        if not hit:
            continue
        bits = sum(b - a for a, b in hit)
        details = {"bits": bits, "offset": hit[0][0], "left": row.bits - bits}
        happened = "stock.burnt" if into is None else "stock.cut"
        taken += bits
        store.erasures.note(row.wrapped)
        if bits == row.bits and into is None:
            store.remove(row, happened, **details)
            continue
        with store.unseal(row) as remainder, memoryview(remainder) as view:
            kept = _split(row, view, start, end, into)
            if not kept:
                store.remove(row, happened, **details)
                continue
            left = (row.bits - bits) // 8
            changed = msgspec.structs.replace(
                row, spans=_encode(kept), bits=8 * left, epoch=store.epoch, version=row.version + 1
            )
            with view[:left] as rest:
                kek = store.kek(link)
                (sealed,) = store.sealing.seal(kek, [changed.bound], rest, left)
        moved: dict[str, Any] = {} if kek == row.kek else {"kek": kek}  # its index is left alone on most days
        store.change(
            row,
            happened,
            details,
            spans=changed.spans,
            bits=changed.bits,
            epoch=changed.epoch,
            version=changed.version,
            sealed=sealed.sealed,
            wrapped=sealed.wrapped,
            **moved,
        )
    return taken


def _split(row: Chunk, view: memoryview, start: int, end: int, into: memoryview | None) -> list[Span]:
    """Copy the cut bytes out, close the gap in `view`; the spans that stay, whose bytes now come first in it."""
    kept: list[Span] = []
    read = write = 0
    for a, b in spans(row):
        for x, y in ((a, min(b, start)), (max(a, start), min(b, end)), (max(a, end), b)):
            size = (y - x) // 8
            if size <= 0:
                continue
            if start <= x and y <= end:
                if into is not None:
                    into[(x - start) // 8 : (y - start) // 8] = view[read : read + size]
            else:
                view[write : write + size] = view[read : read + size]
                write += size
                kept.append((x, y))
            read += size
    return kept


def _covering(store: Store, link: str, half: str, batch: bytes, start: int, end: int) -> list[Chunk]:
    return store.find(
        Chunk,
        f"link = ? AND half = ? AND batch = ? AND number BETWEEN ? AND ? AND state = '{STOCKED}' ORDER BY number",
        link,
        half,
        batch,
        start // CHUNK_BITS,
        (end - 1) // CHUNK_BITS,
    )


def spans(row: Chunk) -> list[Span]:
    """What is still in a chunk: offsets in its half."""
    return _decode(row.spans)


def _encode(spans: list[Span]) -> str:
    return msgspec.json.encode(spans).decode()
