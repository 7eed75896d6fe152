"""Bundles: up to 128 keys cut together, in one protected row. The keys' ciphertexts stand beside it, a row each.

A key is found by its id through `key_heads`, which proves nothing: the verified row of the Bundle says whether it holds
the key and in which state. A key that is delivered or burnt loses its ciphertext and its data key at once.
"""

from collections.abc import Collection, Mapping, Sequence
from struct import unpack
from typing import Any
from uuid import UUID

import msgspec

from qkdnode.audit.events import Detail
from qkdnode.errors import LocalProtocolError, VaultDamagedError
from qkdnode.lifecycle.retirement import COLUMNS, Timer, next_times
from qkdnode.lifecycle.states import HOLDING, LETTERS, STEPS, Stage, Step, after
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import endings, marks
from qkdnode.vault.records import (
    HELD,
    ID_BYTES,
    KEYS_PER_BUNDLE,
    Bundle,
    KnownAssociation,
    outstanding,
    unpack_batch,
)
from qkdnode.vault.rows import read_rows
from qkdnode.vault.store import Aftermath, Store

CRYPTO_ERASE = "crypto-erase"  # how keys are destroyed: ciphertext and wrapped data key are deleted
_AT_ONCE = 128  # ids in one statement
_FEW = 16
_INDEX = "the index of key ids in the vault"
# Of another type they do not unseal either, and each is set aside alone.
_CIPHERTEXTS = """
SELECT place, ifnull(CAST(sealed AS BLOB), x''), ifnull(CAST(wrapped AS BLOB), x'')
FROM keys WHERE place BETWEEN ? AND ?
"""
_TIMES = {
    Step.ACCEPT: "ready_ns",
    Step.DELIVER: "delivered_ns",
    Step.FAR_DELIVER: "delivered_remote_ns",
    Step.REFUSE: "ended_ns",
    Step.DESTROY: "ended_ns",
}
_BEGINS = {
    Step.ACCEPT: Timer.PRE_ACTIVE,
    Step.RESTORE: Timer.PRE_ACTIVE,
    Step.DELIVER: Timer.ACTIVE,
    Step.DEACTIVATE: Timer.DEACTIVATED,
}


class Cut(msgspec.Struct, frozen=True):
    """Keys cut side by side from one half of a Batch."""

    link: str
    batch: bytes
    half: str
    offset_bits: int
    size_bits: int
    key_ids: bytes
    key_class: str
    policy: int
    binding: bytes
    generation: int
    decoy: bool = False


class Why(msgspec.Struct, frozen=True):
    """Who has a key take a step, and for what reason."""

    actor: str  # "application", "neighbour", "vault", "policy" or operator/PSEUDONYM
    reason: str


class Chosen(msgspec.Struct, frozen=True):
    """Some keys of one verified Bundle, by their places in it."""

    bundle: Bundle
    places: list[int]

    def ids(self) -> list[bytes]:
        """Their ids."""
        return [self.bundle.key_id(place) for place in self.places]


_DAMAGE = Why("vault", "does not unseal")


def make(
    store: Store, association: KnownAssociation, cut: Cut, stage: Stage, material: SecretBuffer, *, own: bool
) -> Bundle:
    """Seal freshly cut keys, ALLOCATED or READY, as one Bundle; the material stays the caller's."""
    ids = split(cut.key_ids)
    if not 1 <= len(ids) <= KEYS_PER_BUNDLE:
        raise LocalProtocolError(f"a Bundle of {len(ids)} keys cannot be: it holds 1 to {KEYS_PER_BUNDLE}")
    if len(set(ids)) < len(ids) or taken(store, ids):
        raise LocalProtocolError("a key id is taken: each key needs a new one")
    size, now, number, is_ready = cut.size_bits // 8, store.now_ns, store.journal.size, stage is Stage.READY
    states, far = bytes([LETTERS[stage]]) * len(ids), bytes(len(ids))
    row = Bundle(
        number=number,
        state=HELD,
        states=states,
        far=far,
        key_ids=cut.key_ids,
        class_=cut.key_class,
        association=association.number,
        application=association.local,
        link=cut.link,
        binding=cut.binding,
        agent=store.node,
        policy=cut.policy,
        key_generation=cut.generation,
        size_bits=cut.size_bits,
        batch=cut.batch,
        half=cut.half,
        offset_bits=cut.offset_bits,
        own=int(own),
        outstanding=len(ids) if own else 0,
        delivery=number if is_ready else None,
        allocated_ns=now,
        ready_ns=now if is_ready else None,
        delivered_ns=None,
        delivered_remote_ns=None,
        ended_ns=None,
        epoch=store.epoch,
        version=1,
        kek=store.kek(cut.link),
        mark=marks.mark_of(store, number, decoy=cut.decoy),
        waits_ns=store.trusted_ns,
    )
    if cut.decoy and store.decoys is not None:
        store.decoys.add(number)
    assert row.kek is not None
    with memoryview(material) as view:
        bounds = [row.bound(place) for place in range(len(ids))]
        sealed = store.sealing.seal(row.kek, bounds, view, size)
    first = number * KEYS_PER_BUNDLE
    store.connection.executemany(
        "INSERT INTO keys VALUES (?, ?, ?)",
        [(first + place, its.sealed, its.wrapped) for place, its in enumerate(sealed)],
    )
    store.connection.executemany(
        "INSERT OR IGNORE INTO key_heads VALUES (?, ?)", [(head, number) for head in sorted(heads(ids))]
    )
    store.tally(f"keys cut of {association.number}/{cut.generation}", len(ids))
    store.tally(f"bits cut of {association.number}/{cut.generation}", len(ids) * cut.size_bits)
    details: dict[str, Detail] = {
        "association": store.sealing.pseudonym(association.binding),
        "batch": str(unpack_batch(cut.batch)),
        "offset": cut.offset_bits,
        "bits": cut.size_bits,
        "class": cut.key_class,
        "policy": cut.policy,
        "generation": cut.generation,
    }
    return store.create(row, f"key.{stage}", "done", ids, **details)


def choose(store: Store, ids: Sequence[bytes]) -> list[Chosen]:
    """The verified Bundles that hold any of these ids, with the places of those; damaged keys and unknown ids are not
    among them."""
    wanted = dict.fromkeys(ids)
    found = []
    for bundle in _holding(store, list(wanted)):
        places = [place for place in _places(bundle, wanted) if bundle.states[place] != LETTERS[Stage.DAMAGED]]
        if places:
            found.append(Chosen(bundle, places))
    return found


def _places(bundle: Bundle, wanted: Collection[bytes]) -> list[int]:
    """Where a Bundle holds some of these ids, in their order."""
    if len(wanted) <= _FEW:  # a table of all 128 would cost more than the rest of the request
        return [place for key_id in wanted if (place := bundle.place(key_id)) is not None]
    held = {key_id: place for place, key_id in enumerate(split(bundle.key_ids))}
    return [held[key_id] for key_id in wanted if key_id in held]


def taken(store: Store, ids: Sequence[bytes]) -> bool:
    """Whether any of these ids was ever a key's."""
    numbers = numbers_of(store, ids)
    if not numbers:
        return False
    statement = f"SELECT key_ids FROM bundles WHERE number IN ({_slots(numbers)})"
    rows = read_rows(store.connection, (bytes,), "a record of bundles in the vault", statement, *numbers)
    return not {key_id for (held,) in rows for key_id in split(held)}.isdisjoint(ids)


def move(
    store: Store,
    chosen: Chosen,
    step: Step,
    why: Why,
    details: Mapping[str, Detail] | None = None,
    outcome: str = "done",
) -> Bundle:
    """Take a step with some keys of a Bundle: one change, one leaf, and no bits left of keys that are held no more.

    LocalProtocolError, and nothing changes, if one of them cannot take it.
    """
    bundle = chosen.bundle
    states, far, gone = bytearray(bundle.states), bytearray(bundle.far), []
    for place in chosen.places:
        stage = bundle.stage(place)
        end = after(stage, bool(far[place]), step)
        if end is None:
            raise LocalProtocolError(f"key {UUID(bytes=bundle.key_id(place))} is {stage}: it cannot {step}")
        states[place] = LETTERS[end]
        if step is Step.FAR_DELIVER:
            far[place] = 1
        if bundle.states[place] in HOLDING and states[place] not in HOLDING:
            gone.append(place)
    changes: dict[str, Any] = {"states": bytes(states), "far": bytes(far)}
    if (column := _TIMES.get(step)) is not None:
        changes[column] = store.now_ns
    if bundle.own:
        changes["outstanding"] = outstanding(changes["states"], changes["far"])
    if LETTERS[Stage.READY] not in states:
        changes["delivery"] = None
    elif step in (Step.ACCEPT, Step.RESTORE):
        changes["delivery"] = store.journal.size
    changes |= next_times(times(bundle), changes["states"], store.trusted_ns, begins=_BEGINS.get(step))
    changes = {name: value for name, value in changes.items() if value != getattr(bundle, name)}
    if gone and len(gone) < len(chosen.places):
        # The leaf of an erasure names no key that had no bits left to erase.
        others = [place for place in chosen.places if place not in gone]
        changed = move(store, Chosen(bundle, others), step, why, details, outcome)
        return move(store, Chosen(changed, gone), step, why, details, outcome)
    told: dict[str, Detail] = {"by": why.actor, "reason": why.reason, **(details or {})}
    if gone:
        _erase(store, bundle, sorted(gone))
        told["method"] = CRYPTO_ERASE
        if HOLDING.isdisjoint(states):
            changes["kek"] = None
    moved = store.change(bundle, STEPS[step].happened, told, outcome, chosen.ids(), **changes)
    endings.note(store, bundle, moved, chosen.places, step, why.reason)
    return moved


def times(bundle: Bundle) -> dict[Timer, int | None]:
    """Since when its keys are what timers end."""
    return {timer: getattr(bundle, column) for timer, column in COLUMNS.items()}


def hold(store: Store, bundle: Bundle, why: Why) -> Bundle:
    """Keep what waits past its end: out of the outbox, given to nobody, and not looked for until nothing holds it."""
    ready = bundle.places(Stage.READY)
    if ready:
        bundle = move(store, Chosen(bundle, ready), Step.QUARANTINE, why)
    waits_ns = bundle.waits_ns if bundle.held_ns is None else bundle.held_ns
    places = bundle.places(Stage.ALLOCATED, Stage.READY, Stage.QUARANTINED)
    told: dict[str, Detail] = {"by": why.actor, "reason": why.reason}
    return store.change(bundle, "key.held", told, "done", Chosen(bundle, places).ids(), waits_ns=None, held_ns=waits_ns)


def _erase(store: Store, bundle: Bundle, places: list[int]) -> None:
    """Delete ciphertexts and data keys of some keys, in rising order."""
    first = bundle.number * KEYS_PER_BUNDLE
    statement = "DELETE FROM keys WHERE place BETWEEN ? AND ? RETURNING CAST(wrapped AS BLOB)"
    runs = [(place, place) for place in places]
    if places[-1] - places[0] + 1 == len(places):
        runs = [(places[0], places[-1])]
    for start, end in runs:
        for (wrapped,) in store.connection.execute(statement, (first + start, first + end)).fetchall():
            store.erasures.note(wrapped)


def unseal(store: Store, chosen: Sequence[Chosen]) -> SecretBuffer:
    """Keys of one size, side by side in a buffer of the caller's.

    Those that do not unseal are set aside, each alone, and VaultDamagedError is raised.
    """
    size = chosen[0].bundle.size_bits // 8
    count = sum(len(one.places) for one in chosen)
    material = SecretBuffer(size * count)
    damaged, done = [], 0
    try:
        with memoryview(material) as view:
            for one in chosen:
                bundle, end = one.bundle, done + size * len(one.places)
                with view[done:end] as into:
                    pieces = sealed(store, one)
                    failed = store.sealing.unseal_into(bundle.kek, pieces, size, into)
                if failed:
                    damaged.append(Chosen(bundle, [one.places[i] for i in failed]))
                done = end
        if damaged:
            raise damage(store, damaged)
    except BaseException:
        material.release()
        raise
    return material


def split(key_ids: bytes) -> list[bytes]:
    """The ids, one by one."""
    return [key_ids[i : i + ID_BYTES] for i in range(0, len(key_ids), ID_BYTES)]


def sealed(store: Store, chosen: Chosen) -> list[tuple[tuple[Any, ...], bytes, bytes]]:
    """What keys are bound to, their ciphertexts and data keys; empty ones where there is no row."""
    bundle = chosen.bundle
    first = bundle.number * KEYS_PER_BUNDLE
    rows = read_rows(
        store.connection,
        (int, bytes, bytes),
        "a key in the vault",
        _CIPHERTEXTS,
        first + min(chosen.places),
        first + max(chosen.places),
    )
    held = {place - first: (sealed, wrapped) for place, sealed, wrapped in rows}
    return [(bundle.bound(place), *held.get(place, (b"", b""))) for place in chosen.places]


def damage(store: Store, damaged: list[Chosen]) -> Aftermath:
    """Keys that do not unseal: the failure that sets each aside, alone."""
    names = [store.sealing.pseudonym(key_id) for one in damaged for key_id in one.ids()]

    def set_aside(store: Store) -> None:
        for one in damaged:
            bundle = store.get(Bundle, one.bundle.number)
            if bundle is not None:
                move(store, Chosen(bundle, one.places), Step.DAMAGE, _DAMAGE, outcome="set_aside")
        for name in names:
            store.alarm("record.damaged", f"record/keys/{name}", "set_aside", reason="does not unseal")

    listed = ", ".join(f"keys/{name}" for name in names[:4]) + (f" and {len(names) - 4} more" * (len(names) > 4))
    return Aftermath(
        VaultDamagedError(
            f"record {listed} of the vault does not unseal: it was set aside; look for who wrote to the vault file"
        ),
        set_aside,
    )


def _holding(store: Store, ids: list[bytes]) -> list[Bundle]:
    numbers = numbers_of(store, ids)
    if not numbers:
        return []
    return store.find(Bundle, f"number IN ({_slots(numbers)}) ORDER BY number", *numbers)


def numbers_of(store: Store, ids: Sequence[bytes]) -> list[int]:
    """Bundles that may hold some of these ids."""
    numbers: set[int] = set()
    firsts = heads(ids)
    for i in range(0, len(firsts), _AT_ONCE):
        page = firsts[i : i + _AT_ONCE]
        statement = f"SELECT DISTINCT bundle FROM key_heads WHERE head IN ({_slots(page)})"
        numbers.update(number for (number,) in read_rows(store.connection, (int,), _INDEX, statement, *page))
    return sorted(numbers)


def heads(ids: Sequence[bytes]) -> list[int]:
    """The first eight bytes of each id, as the index of ids has them."""
    return list(unpack(">" + "q8x" * len(ids), b"".join(ids)))


def _slots(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
