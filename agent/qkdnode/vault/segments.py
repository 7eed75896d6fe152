"""Segments of authentication key: their marks, their pads, their end."""

from qkdnode.errors import LocalProtocolError, PoolExhaustedError
from qkdnode.ids import BatchId, PadAddress
from qkdnode.vault.records import SPENT, USABLE, WAITING, Segment, pack_batch, unpack_batch
from qkdnode.vault.requests import NoteSeen, PadsLeft, ReservePads, SegmentState
from qkdnode.vault.store import Store

PAD_BYTES = 16
RESTART_PADS = 16  # tags that can be out unanswered: all that a rolled-back vault can have sent unseen
LIVE = f"state IN ('{WAITING}', '{USABLE}')"
_LEFT = f"SELECT coalesce(sum(pads - sending), 0) FROM segments WHERE link = ? AND state = '{USABLE}'"


def install(store: Store, link: str, batch: BatchId, material: memoryview, *, usable: bool) -> Segment:
    """Seal a new segment: Alice's half, then Bob's."""
    pads = len(material) // (2 * PAD_BYTES)
    state = USABLE if usable else WAITING
    row = Segment(link, pack_batch(batch), state, pads, 0, 0, store.epoch, 1, None, None)
    (sealed,) = store.sealing.seal(link, row.epoch, [row.bound], material, len(material))
    row = Segment(link, row.batch, state, pads, 0, 0, row.epoch, 1, sealed.sealed, sealed.wrapped)
    return store.create(row, "pads.stored", pads=pads, usable=usable)


def state_of(store: Store, row: Segment) -> SegmentState:
    """A live segment with its material unsealed."""
    return SegmentState(
        segment=unpack_batch(row.batch),
        pads_per_direction=row.pads,
        sending=row.sending,
        seen=row.seen,
        material=store.unseal(row),
        usable=row.state == USABLE,
    )


def states(store: Store, link: str) -> tuple[SegmentState, ...]:
    """Every live segment, those only good for verification included; damaged ones are set aside."""
    rows = store.find_sound(Segment, f"link = ? AND {LIVE} ORDER BY batch", link)
    return tuple(state_of(store, row) for row in rows)


def of_batch(store: Store, link: str, batch: bytes) -> Segment | None:
    """The live segment that a Batch refilled."""
    row = store.get(Segment, link, batch)
    return row if row is not None and row.state in (WAITING, USABLE) else None


def make_usable(store: Store, link: str, batch: bytes) -> Segment | None:
    """Let a Batch's segment be used for sending; None if it has none, or a spent one."""
    row = of_batch(store, link, batch)
    if row is not None and row.state == WAITING:
        row = store.change(row, "pads.usable", {}, state=USABLE)
    return row


def skip_unseen(store: Store, link: str) -> None:
    """After a restart: move the marks of used segments by 16, and carry what does not fit into the next segment."""
    spent = store.find(Segment, f"link = ? AND state = '{SPENT}' LIMIT 1", link)
    carried = RESTART_PADS if spent else 0
    for row in store.find_sound(Segment, f"link = ? AND {LIVE} ORDER BY batch", link):
        wanted = RESTART_PADS if row.sending else carried
        moved = min(wanted, row.pads - row.sending)
        carried = wanted - moved
        if moved:
            sending = row.sending + moved
            store.change(row, "pads.skipped", {"pads": moved, "sending": sending}, sending=sending)


def destroy(store: Store, row: Segment, why: str) -> None:
    """Delete a segment's ciphertext and data key."""
    store.change(row, "pads.destroyed", {"reason": why}, state=SPENT, sealed=None, wrapped=None)


def destroy_all(store: Store, link: str) -> None:
    """Before a link is provisioned anew. The row of what was provisioned makes place for the next."""
    for row in store.find_sound(Segment, f"link = ? AND state <> '{SPENT}'", link):
        destroy(store, row, "provisioned anew")
    store.connection.execute("DELETE FROM segments WHERE link = ?", (link,))


def pads_left(store: Store, link: str) -> int:
    """Pads left for sending."""
    return int(store.scalar(_LEFT, link))


def reserve_pads(store: Store, request: ReservePads) -> tuple[PadAddress, ...]:
    """ReservePads."""
    if request.count < 1 or request.reserve < 0:
        raise LocalProtocolError(f"{request.count} pads with {request.reserve} kept back cannot be reserved")
    left = pads_left(store, request.link)
    fit = request.count if request.contiguous else 1
    rows = store.find(
        Segment,
        f"link = ? AND state = '{USABLE}' AND pads - sending >= ? ORDER BY batch LIMIT ?",
        request.link,
        fit,
        1 if request.contiguous else request.count,
    )
    if left < request.count + request.reserve or sum(row.pads - row.sending for row in rows) < request.count:
        raise PoolExhaustedError(
            f"link {request.link!r} has {left} pads left, {request.reserve} of them kept back: {request.count} cannot "
            "be taken; the link must make key, or the pair be provisioned anew"
        )
    taken: list[PadAddress] = []
    for row in rows:
        count = min(request.count - len(taken), row.pads - row.sending)
        if not count:
            break
        sending = row.sending + count
        segment = unpack_batch(row.batch)
        taken.extend(PadAddress(segment, index) for index in range(row.sending, sending))
        store.change(row, "pads.reserved", {"pads": count, "sending": sending}, sending=sending)
    return tuple(taken)


def note_seen(store: Store, request: NoteSeen) -> None:
    """NoteSeen."""
    for mark in request.marks:
        row = store.get(Segment, request.link, pack_batch(mark.segment))
        if row is None or not 0 <= mark.index <= row.pads:
            raise LocalProtocolError(f"link {request.link!r} has no pad {mark.index} in segment {mark.segment}")
        if row.state in (WAITING, USABLE) and mark.index > row.seen:
            store.change(row, "pads.seen", {"seen": mark.index}, seen=mark.index)


def count_left(store: Store, request: PadsLeft) -> int:
    """PadsLeft."""
    return pads_left(store, request.link)


HANDLERS = {ReservePads: reserve_pads, NoteSeen: note_seen, PadsLeft: count_left}
