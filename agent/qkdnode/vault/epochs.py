"""Key-encryption keys by their epochs: data keys wrapped anew under another, and the end of those that hold nothing.

What is to move is found by the index of the key-encryption key that each row names, so that a move that is interrupted
goes on where it was, and is finished when no row is left.
"""

import msgspec

from qkdnode.audit.events import Detail
from qkdnode.errors import LocalProtocolError, VaultError
from qkdnode.lifecycle.states import HOLDING, LETTERS, Stage
from qkdnode.vault import bundles
from qkdnode.vault.bundles import Chosen
from qkdnode.vault.records import (
    DELETED,
    FINISHED,
    HELD,
    KEYS_PER_BUNDLE,
    RUNNING,
    SUPERSEDED,
    Bundle,
    Chunk,
    EndedKek,
    Rewrap,
    Segment,
)
from qkdnode.vault.requests import Request
from qkdnode.vault.root import NONCE_BYTES
from qkdnode.vault.sealing import WRAPS, Kek
from qkdnode.vault.store import UNDER_KEK, Store

EPOCH = "epoch"  # in place of an algorithm: what is under a key of an earlier epoch moves
KEYS_AT_ONCE, BUNDLES_AT_ONCE, ROWS_AT_ONCE = 128, 32, 16
_PAST = """
SELECT number FROM keks WHERE epoch < ?
    AND NOT EXISTS (SELECT 1 FROM bundles WHERE kek = keks.number)
    AND NOT EXISTS (SELECT 1 FROM chunks WHERE kek = keks.number)
    AND NOT EXISTS (SELECT 1 FROM segments WHERE kek = keks.number)
ORDER BY number LIMIT 2
"""
_SIZES = f"SELECT number, length(states) FROM bundles WHERE kek = ? AND state = '{HELD}' ORDER BY number LIMIT ?"


class RewrapKeys(Request, frozen=True):
    """Wrap data keys anew: by an algorithm, or (`to` is "epoch") those under keys of earlier epochs by the present one.

    From now on new key-encryption keys are of that algorithm. Answer: RewrapState; the running one if it is the same.
    """

    to: str
    by: str


class MoveDataKeys(Request, frozen=True):
    """Wrap some data keys anew, as the newest order says. Answer: bool, whether some are left."""


class Epochs(Request, frozen=True):
    """Key-encryption keys, and the newest order to wrap anew. Answer: EpochsState."""


class EndEpoch(Request, frozen=True):
    """Delete one key-encryption key of an epoch that is past, under which nothing is held. Answer: bool, whether more
    are to go. That it is gone is proven behind it (qkdnode.vault.readback)."""


class RewrapState(msgspec.Struct, frozen=True):
    """An order to wrap anew, and how far it is."""

    number: int
    algorithm: str
    epoch: int  # 0: whatever the epoch
    state: str
    rows: int  # that were to move at first: Bundles, chunks of stock, segments
    left: int
    by: str
    made_ns: int
    ended_ns: int | None


class KekState(msgspec.Struct, frozen=True):
    """A key-encryption key."""

    number: int
    link: str
    epoch: int  # days since 1970
    algorithm: str
    state: str  # "present", "deleted", "destroyed"
    rows: int  # with data keys under it
    ended_ns: int | None


class EpochsState(msgspec.Struct, frozen=True):
    """Answer to Epochs."""

    keks: tuple[KekState, ...]
    rewrap: RewrapState | None


def rewrap_keys(store: Store, request: RewrapKeys) -> RewrapState:
    """RewrapKeys."""
    if request.to != EPOCH and request.to not in WRAPS:
        raise LocalProtocolError(
            f"data keys cannot be wrapped by {request.to!r}: give one of {', '.join(WRAPS)}, or {EPOCH}"
        )
    algorithm = store.wrap_algorithm if request.to == EPOCH else request.to
    if algorithm in store.disallowed:
        others = ", ".join(name for name in WRAPS if name not in store.disallowed) or "none"
        raise VaultError(f"{algorithm} is disallowed today: nothing is wrapped by it; allowed: {others}")
    epoch = store.epoch if request.to == EPOCH else 0
    newest = _newest(store)
    if newest is not None and newest.state == RUNNING:
        if (newest.algorithm, newest.epoch) == (algorithm, epoch):
            return _state(store, newest)
        store.change(newest, "rewrap.superseded", {}, state=SUPERSEDED, ended_ns=store.now_ns)
    row = Rewrap(store.journal.size, algorithm, epoch, RUNNING, 0, request.by, store.now_ns)
    rows = _left(store, row)
    row = msgspec.structs.replace(row, rows=rows)
    by = store.sealing.pseudonym(request.by.encode())
    return _state(store, store.create(row, "rewrap.begun", algorithm=algorithm, epoch=epoch, rows=rows, by=by))


def move_data_keys(store: Store, request: MoveDataKeys) -> bool:
    """MoveDataKeys."""
    order = _newest(store)
    if order is None or order.state != RUNNING:
        return False
    for kek in store.sealing.keks():
        if _moves(order, kek) and store.sealing.unwraps(kek.number) and _move(store, kek):
            return True
    left = _left(store, order)
    outcome = "incomplete" if left else "done"
    details: dict[str, Detail] = {"algorithm": order.algorithm, "rows": order.rows, "left": left}
    store.change(order, "rewrap.finished", details, outcome, state=FINISHED, ended_ns=store.now_ns)
    return False


def end_epoch(store: Store, request: EndEpoch) -> bool:
    """EndEpoch."""
    past = store.rows(_PAST, store.epoch)
    for (number,) in past[:1]:
        (kek,) = (kek for kek in store.sealing.keks() if kek.number == number)
        wrapped, witness = store.sealing.delete_kek(number)
        store.erasures.wrapped_keks[number] = wrapped
        trace = bytes(byte ^ 0xFF for byte in wrapped[:NONCE_BYTES])
        row = EndedKek(number, kek.link, kek.epoch, kek.algorithm, DELETED, trace, witness, store.now_ns)
        store.create(row, "epoch.deleted", epoch=kek.epoch, algorithm=kek.algorithm)
    return len(past) > 1


def epochs(store: Store, request: Epochs) -> EpochsState:
    """Epochs."""
    under = _rows_under(store)
    present = [
        KekState(kek.number, kek.link, kek.epoch, kek.algorithm, "present", under.get(kek.number, 0), None)
        for kek in store.sealing.keks()
    ]
    ended = [
        KekState(row.number, row.link, row.epoch, row.algorithm, row.state, 0, row.destroyed_ns)
        for row in store.find_sound(EndedKek, "true ORDER BY number DESC LIMIT 64")
    ]
    newest = _newest(store)
    return EpochsState((*reversed(ended), *present), None if newest is None else _state(store, newest))


def _newest(store: Store) -> Rewrap | None:
    return max(store.every(Rewrap), key=lambda order: order.number, default=None)


def _moves(order: Rewrap, kek: Kek) -> bool:
    return kek.algorithm != order.algorithm or kek.epoch < order.epoch


def _left(store: Store, order: Rewrap) -> int:
    under = _rows_under(store)
    return sum(under.get(kek.number, 0) for kek in store.sealing.keks() if _moves(order, kek))


def _rows_under(store: Store) -> dict[int, int]:
    """As they are counted; rows that were set aside are among them."""
    store.finish()
    counts = store.rows("SELECT name, value FROM counts WHERE name GLOB ?", f"{UNDER_KEK}*")
    return {int(name.removeprefix(UNDER_KEK)): max(0, value) for name, value in counts}


def _state(store: Store, row: Rewrap) -> RewrapState:
    left = _left(store, row) if row.state != SUPERSEDED else 0
    return RewrapState(
        row.number, row.algorithm, row.epoch, row.state, row.rows, left, row.by, row.made_ns, row.ended_ns
    )


def _move(store: Store, kek: Kek) -> bool:
    """Wrap some data keys anew that are under one key-encryption key; whether there were any."""
    new = store.kek(kek.link)
    numbers, keys = [], 0
    for number, count in store.rows(_SIZES, kek.number, BUNDLES_AT_ONCE):
        numbers.append(number)
        keys += count
        if keys >= KEYS_AT_ONCE:
            break
    if numbers:
        for bundle in store.find_sound(Bundle, "kek = ? AND number <= ? ORDER BY number", kek.number, numbers[-1]):
            _move_bundle(store, bundle, new)
        return True
    kinds: tuple[type[Chunk] | type[Segment], ...] = (Chunk, Segment)
    for record in kinds:
        there = f"SELECT 1 FROM {record.table} WHERE kek = ? AND state <> ? LIMIT 1"
        if store.rows(there, kek.number, record.set_aside):
            for row in store.find_sound(record, "kek = ? ORDER BY rowid LIMIT ?", kek.number, ROWS_AT_ONCE):
                _move_row(store, row, new)
            return True
    return False


def _move_bundle(store: Store, bundle: Bundle, new: int) -> None:
    """Every data key of a Bundle, in one change."""
    old, first = bundle.kek, bundle.number * KEYS_PER_BUNDLE
    assert old is not None
    held = store.rows(
        "SELECT place, CAST(wrapped AS BLOB) FROM keys WHERE place BETWEEN ? AND ?", first, first + bundle.count - 1
    )
    anew = store.sealing.rewrap(old, new, [(bundle.bound(place - first), wrapped) for place, wrapped in held])
    lost = [place - first for (place, _), wrapped in zip(held, anew, strict=True) if wrapped is None]
    lost = [at for at in lost if bundle.states[at] in HOLDING and bundle.states[at] != LETTERS[Stage.DAMAGED]]
    if lost:
        bundles.damage(store, [Chosen(bundle, lost)]).record(store)
        found = store.get(Bundle, bundle.number)
        assert found is not None, "it was read and changed in this request"
        bundle = found
    moved = [(wrapped, place) for (place, _), wrapped in zip(held, anew, strict=True) if wrapped is not None]
    store.connection.executemany("UPDATE keys SET wrapped = ? WHERE place = ?", moved)
    for _, wrapped in held:
        store.erasures.note(wrapped)
    store.change(bundle, "key.rewrapped", {"from": old, "to": new, "data_keys": len(moved)}, kek=new)


def _move_row(store: Store, row: Chunk | Segment, new: int) -> None:
    assert row.kek is not None
    assert row.wrapped is not None
    (wrapped,) = store.sealing.rewrap(row.kek, new, [(row.bound, row.wrapped)])
    if wrapped is None:
        store.set_aside(row, "does not unseal")
        return
    store.erasures.note(row.wrapped)
    happened = "stock.rewrapped" if isinstance(row, Chunk) else "pads.rewrapped"
    store.change(row, happened, {"from": row.kek, "to": new}, kek=new, wrapped=wrapped)


HANDLERS = {RewrapKeys: rewrap_keys, MoveDataKeys: move_data_keys, EndEpoch: end_epoch, Epochs: epochs}
