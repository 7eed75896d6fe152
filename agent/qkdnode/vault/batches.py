"""Batches: journalled before they are claimed, settled once, never changed after."""

from typing import Any

import msgspec

from qkdnode.audit.events import MAX_DETAIL_CHARACTERS, Detail
from qkdnode.errors import LocalProtocolError, VaultError
from qkdnode.ids import ALICE, BOB, BatchId
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import reach, segments, stock
from qkdnode.vault.records import (
    ABANDONED,
    COMPROMISED,
    PENDING,
    QUARANTINED,
    READY,
    Batch,
    Duty,
    Link,
    Segment,
    pack_batch,
    unpack_batch,
)
from qkdnode.vault.requests import (
    BatchRecord,
    DestroySpent,
    FindAnswer,
    PeerReady,
    ReadyAnnounced,
    SegmentState,
    SettledBatch,
    SettlePending,
    StoreAbandoned,
    StorePending,
    StoreReady,
    UnannouncedReady,
    UnsettledBatch,
)
from qkdnode.vault.segments import PAD_BYTES
from qkdnode.vault.store import Store

UNSETTLED = f"NOT usable AND state IN ('{PENDING}', '{READY}')"
NO_BATCH = BatchId(0, 0)
MAX_KEY_BITS = 1 << 30
_JOURNALLED = (
    "bits_in",
    "bits_out",
    "refill_bits",
    "method",
    "booking",
    "family",
    "eps_sec",
    "eps_cor",
    "qber_z",
    "disclosed_bits",
)
_encode = msgspec.msgpack.Encoder(order="sorted").encode


def known_link(store: Store, name: str) -> Link:
    """A registered link; VaultError if there is none of the name."""
    link = store.get(Link, name)
    if link is None:
        raise VaultError(f"the vault knows no link {name!r}: open it first")
    return link


def pending(store: Store, link: str) -> tuple[UnsettledBatch, ...]:
    """Batches PENDING here, oldest first."""
    rows = store.find(Batch, f"link = ? AND NOT usable AND state = '{PENDING}' ORDER BY batch", link)
    return tuple(UnsettledBatch(unpack_batch(row.batch), row.message) for row in rows)


def newest_ready(store: Store, link: Link) -> BatchId:
    """The newest Batch that is READY here since the pair was provisioned; (0, 0) if there is none."""
    settled = f"state IN ('{READY}', '{COMPROMISED}')"
    rows = store.find(Batch, f"link = ? AND {settled} ORDER BY batch DESC LIMIT 1", link.link)
    newest = unpack_batch(rows[0].batch) if rows else NO_BATCH
    ours = newest.session >> 32 if link.role == ALICE else newest.session & 0xFFFFFFFF
    return newest if ours > link.provisioned else NO_BATCH


def state_of(store: Store, link: str, batch: BatchId) -> str | None:
    """The state of a Batch, None if it is not known here."""
    known = _known(store, link, batch)
    return None if known is None else known.state


def store_pending(store: Store, request: StorePending) -> None:
    """StorePending."""
    _store(store, request.link, ALICE, PENDING, request.record, request.key, request.commit)


def store_ready(store: Store, request: StoreReady) -> SettledBatch:
    """StoreReady."""
    _store(store, request.link, BOB, READY, request.record, request.key, request.answer)
    return _settled(store, request.link, pack_batch(request.record.batch))


def store_abandoned(store: Store, request: StoreAbandoned) -> None:
    """StoreAbandoned."""
    _demand_role(store, request.link, BOB)
    known = _known(store, request.link, request.batch)
    if known is not None:
        if known.state != ABANDONED or known.message != request.answer:
            raise LocalProtocolError(f"Batch {request.batch} is {known.state} here with another answer")
        return
    now = store.now_ns
    row = Batch(request.link, pack_batch(request.batch), ABANDONED, 0, 1, 0, b"", b"", request.answer, now, now)
    store.create(row, "batch.abandoned", reason=request.reason)


def find_answer(store: Store, request: FindAnswer) -> bytes | None:
    """FindAnswer."""
    _demand_role(store, request.link, BOB)
    known = _known(store, request.link, request.batch)
    return None if known is None else known.message


def settle_pending(store: Store, request: SettlePending) -> SettledBatch:
    """SettlePending."""
    _demand_role(store, request.link, ALICE)
    known = _known(store, request.link, request.batch)
    outcome = READY if request.ready else ABANDONED
    if known is None or known.state not in (PENDING, outcome):
        state = "unknown" if known is None else known.state
        raise LocalProtocolError(f"Batch {request.batch} of link {request.link!r} is {state}: it cannot be {outcome}")
    if known.state == PENDING:
        usable = int(request.ready)
        store.change(known, f"batch.{outcome}", {}, state=outcome, usable=usable, settled_ns=store.now_ns)
        if request.ready:
            segments.make_usable(store, known.link, known.batch)
            _compromise_if_reached(store, known)
        else:
            _destroy(store, known)
    return _settled(store, known.link, known.batch)


def peer_ready(store: Store, request: PeerReady) -> tuple[SegmentState, ...]:
    """PeerReady."""
    opened: list[Segment] = []
    for batch in request.batches:
        known = _known(store, request.link, batch)
        if known is None or known.usable:
            continue
        if known.state != READY:
            store.alarm("batch.disagreed", f"{request.link}/{batch}", known.state, peer=READY)
            continue
        store.change(known, "batch.settled", {}, usable=1, announced=1, settled_ns=store.now_ns)
        segment = segments.make_usable(store, known.link, known.batch)
        if segment is not None:
            opened.append(segment)
        _compromise_if_reached(store, known)
    return tuple(segments.state_of(store, row) for row in opened)


def unannounced_ready(store: Store, request: UnannouncedReady) -> tuple[BatchId, ...]:
    """UnannouncedReady."""
    rows = store.find(Batch, "link = ? AND usable AND NOT announced ORDER BY batch", request.link)
    return tuple(unpack_batch(row.batch) for row in rows)


def ready_announced(store: Store, request: ReadyAnnounced) -> None:
    """ReadyAnnounced."""
    for batch in request.batches:
        known = _known(store, request.link, batch)
        if known is not None and known.usable and not known.announced:
            store.change(known, "batch.announced", {}, announced=1)


def destroy_spent(store: Store, link: str, keep: tuple[BatchId, ...]) -> int:
    """Destroy segments used up in both directions, unless a Batch is unsettled: its tags may need them again."""
    if store.connection.execute(f"SELECT 1 FROM batches WHERE link = ? AND {UNSETTLED}", (link,)).fetchone():
        return 0
    kept = {pack_batch(batch) for batch in keep}
    condition = f"link = ? AND {segments.LIVE} AND sending = pads AND seen = pads"
    spent = [row for row in store.find_sound(Segment, condition, link) if row.batch not in kept]
    for row in spent:
        segments.destroy(store, row, "used up")
    return len(spent)


def destroy_spent_segments(store: Store, request: DestroySpent) -> int:
    """DestroySpent."""
    return destroy_spent(store, known_link(store, request.link).link, request.keep)


def compromise(store: Store, row: Batch) -> None:
    """Destroy the stock of a settled Batch whose key others may know."""
    store.change(row, "batch.compromised", {}, state=COMPROMISED)
    stock.destroy(store, row.link, row.batch)


def _compromise_if_reached(store: Store, known: Batch) -> None:
    """A Batch that settles after its compromise gives no stock."""
    if reach.scope_of_batch(store, known.link, known.batch) is not None:
        row = store.get(Batch, known.link, known.batch)
        assert row is not None, "it was read and changed in this request"
        compromise(store, row)


def quarantine_unsettled(store: Store, link: str) -> None:
    """Before a link is provisioned anew: nothing unsettled is ever used."""
    for row in store.find(Batch, f"link = ? AND {UNSETTLED}", link):
        store.change(row, "batch.quarantined", {"was": row.state}, state=QUARANTINED)
        stock.quarantine(store, link, row.batch)


def _store(
    store: Store, link: str, role: str, state: str, record: BatchRecord, key: SecretBuffer, message: bytes
) -> None:
    _demand_role(store, link, role)
    peer = known_link(store, link).peer
    _check(record, len(key))
    encoded = _encode(record)
    content = store.sealing.content_digest(key, encoded, message)
    known = _known(store, link, record.batch)
    if known is not None:
        if known.content != content:
            raise LocalProtocolError(f"Batch {record.batch} of link {link!r} is {known.state} here with other content")
        return
    batch = pack_batch(record.batch)
    refill = record.refill_bits // 8
    half = (record.bits_out - record.refill_bits) // 16
    row = Batch(link, batch, state, 0, 0, 8 * half, encoded, content, message, store.now_ns)
    made = {name: getattr(record, name) for name in _JOURNALLED}
    its: dict[str, Detail] = {"devices": " ".join(record.devices)[:MAX_DETAIL_CHARACTERS], "peer": peer}
    its["session"] = f"{record.batch.session:016x}"
    its["policy"] = store.scalar("SELECT coalesce(max(number), 0) FROM policies")
    store.create(row, f"batch.{state}", **{**record.details, **made, **its})
    for serial in record.devices:
        _note_duty(store, link, serial, batch)
    with memoryview(key) as view:
        if refill:
            with view[:refill] as material:
                segments.install(store, link, record.batch, material, usable=False)
        for number, owner in enumerate((ALICE, BOB)):
            start = refill + number * half
            with view[start : start + half] as bits:
                stock.lay_in(store, link, batch, owner, bits)


def _note_duty(store: Store, link: str, serial: str, batch: bytes) -> None:
    """A device has served a link up to this Batch."""
    known = store.get(Duty, link, serial)
    if known is None:
        store.create(Duty(link, serial, batch, batch), "device.serves")
    elif batch > known.last:
        store.change(known, "device.serves", {}, last=batch)


def _check(record: BatchRecord, key_bytes: int) -> None:
    refill, out = record.refill_bits, record.bits_out
    if not 0 < out <= MAX_KEY_BITS or key_bytes != (out + 7) // 8:
        raise LocalProtocolError(f"Batch {record.batch}: a key of {key_bytes} bytes does not hold {out} bits")
    if not 0 <= refill <= out or refill % (16 * PAD_BYTES):
        raise LocalProtocolError(f"Batch {record.batch}: a refill of {refill} of {out} bits is not two halves of pads")


def _known(store: Store, link: str, batch: BatchId) -> Batch | None:
    return store.get(Batch, link, pack_batch(batch))


def _settled(store: Store, link: str, batch: bytes) -> SettledBatch:
    row = segments.of_batch(store, link, batch)
    return SettledBatch(None if row is None else segments.state_of(store, row))


def _destroy(store: Store, row: Batch) -> None:
    segment = segments.of_batch(store, row.link, row.batch)
    if segment is not None:
        segments.destroy(store, segment, "abandoned")
    stock.destroy(store, row.link, row.batch)


def _demand_role(store: Store, name: str, role: str) -> None:
    link = known_link(store, name)
    if link.role != role:
        raise LocalProtocolError(f"this end of link {name!r} is {link.role}: only {role} does that")


HANDLERS: dict[Any, Any] = {
    StorePending: store_pending,
    StoreReady: store_ready,
    StoreAbandoned: store_abandoned,
    FindAnswer: find_answer,
    SettlePending: settle_pending,
    PeerReady: peer_ready,
    UnannouncedReady: unannounced_ready,
    ReadyAnnounced: ready_announced,
    DestroySpent: destroy_spent_segments,
}
