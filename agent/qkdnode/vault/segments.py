"""Segments of authentication key: their marks, their pads, their end."""

from msgspec.structs import replace

from qkdnode.errors import LocalProtocolError, PoolExhaustedError
from qkdnode.ids import GREETING_KEY, PROVISIONED, BatchId, PadAddress
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.records import KEYS_GREETINGS, SPENT, USABLE, WAITING, Segment, pack_batch, unpack_batch
from qkdnode.vault.requests import GrantPads, NoteSeen, PadsLeft, ReservePads, SegmentState
from qkdnode.vault.rows import read_rows
from qkdnode.vault.store import Store
from qkdnode.wire.messages import Mark, PadSpan

PAD_BYTES = 16
GREETING_PADS = 2  # 256 bits for each direction
STATED_MARKS = 64  # how many segments a Greeting can state
STATED_FULL = 16  # of these, how many that have no room left: a newer fact than an older copy knows
LIVE = f"state IN ('{WAITING}', '{USABLE}')"
OURS, THEIRS = "this vault is an older copy", "the peer's vault is an older copy"
_WITH_ROOM = f"link = ? AND state = '{USABLE}' AND sending < pads ORDER BY batch LIMIT ?"
_WITHOUT_ROOM = f"link = ? AND state IN ('{USABLE}', '{SPENT}') AND sending = pads ORDER BY batch DESC LIMIT ?"
_LEFT = f"SELECT coalesce(sum(pads - sending), 0) FROM segments WHERE link = ? AND state = '{USABLE}'"


def install(store: Store, link: str, batch: BatchId, material: memoryview, *, usable: bool) -> Segment:
    """Seal a new segment: Alice's half, then Bob's."""
    return _install(store, link, batch, material, USABLE if usable else WAITING)


def provision(store: Store, link: str, material: memoryview) -> int:
    """The first segment of a pair, and the key of its Greetings from the end of each half. Answer: pads for tags."""
    half, key = len(material) // 2, GREETING_PADS * PAD_BYTES
    with SecretBuffer(2 * (half - key)) as rest, memoryview(rest) as pads:
        pads[: half - key], pads[half - key :] = material[: half - key], material[half:-key]
        row = _install(store, link, PROVISIONED, pads, USABLE)
    with SecretBuffer(2 * key) as keys, memoryview(keys) as view:
        view[:key], view[key:] = material[half - key : half], material[-key:]
        _install(store, link, GREETING_KEY, view, KEYS_GREETINGS)
    return row.pads


def greeting_key(store: Store, link: str) -> SecretBuffer | None:
    """Alice's 32 bytes, then Bob's."""
    row = store.get(Segment, link, pack_batch(GREETING_KEY))
    return store.unseal(row) if row is not None and row.state == KEYS_GREETINGS else None


def _install(store: Store, link: str, batch: BatchId, material: memoryview, state: str) -> Segment:
    pads = len(material) // (2 * PAD_BYTES)
    row = Segment(link, pack_batch(batch), state, pads, 0, 0, 0, store.epoch, 1, store.kek(link), None, None)
    (sealed,) = store.sealing.seal(store.kek(link), [row.bound], material, len(material))
    row = replace(row, sealed=sealed.sealed, wrapped=sealed.wrapped)
    return store.create(row, "pads.stored", pads=pads, usable=state == USABLE)


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


def sending_marks(store: Store, link: str) -> tuple[Mark, ...]:
    """What this end has reserved: the oldest segments with room, and the newest without."""
    room = store.find_sound(Segment, _WITH_ROOM, link, STATED_MARKS - STATED_FULL)
    full = store.find_sound(Segment, _WITHOUT_ROOM, link, STATED_FULL)
    return tuple(Mark(unpack_batch(row.batch), row.sending) for row in (*room, *full))


def seen_marks(store: Store, link: str) -> tuple[Mark, ...]:
    """What this end has accepted of the peer's half."""
    rows = store.find_sound(Segment, f"link = ? AND {LIVE} AND seen ORDER BY batch DESC LIMIT ?", link, STATED_MARKS)
    return tuple(Mark(unpack_batch(row.batch), row.seen) for row in rows)


def older_copy(store: Store, link: str, sending: tuple[Mark, ...], seen: tuple[Mark, ...]) -> str:
    """Which end's vault the marks that the peer states show to be an older copy, and how; empty if none."""
    statement = "SELECT coalesce(max(batch), x'') FROM segments WHERE link = ?"
    ((newest,),) = read_rows(store.connection, (bytes,), "the newest segment of the vault", statement, link)
    for mark in (*seen, *sending):
        if mark.index and pack_batch(mark.segment) > newest:
            return f"{OURS}: the peer uses segment {mark.segment}, which this vault does not hold"
    for mark in seen:
        row = store.get(Segment, link, pack_batch(mark.segment))
        if row is not None and mark.index > row.sending:
            return (
                f"{OURS}: the peer has seen pad {mark.index - 1} of segment {mark.segment}; this vault reserved fewer"
            )
    for mark in sending:
        row = store.get(Segment, link, pack_batch(mark.segment))
        if row is not None and mark.index > row.granted:
            return (
                f"{OURS}: the peer has reserved {mark.index} pads of segment {mark.segment}; this vault granted "
                f"{row.granted}"
            )
        if row is not None and mark.index < row.seen:
            return (
                f"{THEIRS}: it has reserved {mark.index} pads of segment {mark.segment}; this end has seen pad "
                f"{row.seen - 1}"
            )
    return ""


def grant(
    store: Store, link: str, count: int, sending: tuple[Mark, ...], *, contiguous: bool = False
) -> tuple[PadSpan, ...]:
    """Move the granted marks over `count` pads of the peer's half, in segments that it says have room."""
    spans: list[PadSpan] = []
    for mark in sorted(sending, key=lambda mark: mark.segment):
        row = store.get(Segment, link, pack_batch(mark.segment)) if count else None
        if row is None or row.state not in (WAITING, USABLE):
            continue
        # Not from what the peer says it has reserved: its vault may be an older copy, and not know what it has used.
        some = min(count, row.pads - row.granted)
        if some <= 0 or (contiguous and some < count):
            continue
        end = row.granted + some
        store.change(row, "pads.granted", {"pads": some, "granted": end}, granted=end)
        spans.append(PadSpan(mark.segment, row.granted, end))
        count -= some
    return tuple(spans)


def grant_pads(store: Store, request: GrantPads) -> tuple[PadSpan, ...]:
    """GrantPads."""
    if request.count < 1:
        raise LocalProtocolError(f"{request.count} pads cannot be granted")
    return grant(store, request.link, request.count, request.sending)


def destroy(store: Store, row: Segment, why: str) -> None:
    """Delete a segment's ciphertext and data key."""
    if row.wrapped is not None:
        store.erasures.note(row.wrapped)
    store.change(row, "pads.destroyed", {"reason": why}, state=SPENT, kek=None, sealed=None, wrapped=None)


def destroy_all(store: Store, link: str) -> None:
    """Before a link is provisioned anew. The row of what was provisioned makes place for the next."""
    for row in store.find_sound(Segment, f"link = ? AND state <> '{SPENT}'", link):
        destroy(store, row, "provisioned anew")
    store.connection.execute("DELETE FROM segments WHERE link = ?", (link,))


def pads_left(store: Store, link: str) -> int:
    """Pads left for sending."""
    return store.scalar(_LEFT, link)


def reserve_pads(store: Store, request: ReservePads) -> tuple[PadAddress, ...]:
    """ReservePads."""
    if request.count < 1:
        raise LocalProtocolError(f"{request.count} pads cannot be reserved")
    left = pads_left(store, request.link)
    if left < request.count:
        raise PoolExhaustedError(
            f"link {request.link!r} has {left} pads left: {request.count} cannot be taken; "
            "the link must make key, or the pair be provisioned anew"
        )
    taken: list[PadAddress] = []
    for span in sorted(request.within, key=lambda span: (span.segment, span.first)):
        row = store.get(Segment, request.link, pack_batch(span.segment))
        if row is None or row.state != USABLE:
            continue
        first, end = max(row.sending, span.first), min(row.pads, span.end)
        count = min(request.count - len(taken), end - first)
        if count <= 0 or (request.contiguous and count < request.count):
            continue
        sending = first + count
        taken.extend(PadAddress(span.segment, index) for index in range(first, sending))
        skipped = first - row.sending
        store.change(row, "pads.reserved", {"pads": count, "skipped": skipped, "sending": sending}, sending=sending)
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


HANDLERS = {GrantPads: grant_pads, ReservePads: reserve_pads, NoteSeen: note_seen, PadsLeft: count_left}
