"""Keys: sealed one by one, opened for their application only, destroyed once it has them."""

from typing import Any
from uuid import UUID

import msgspec

from qkdnode.audit.events import AccessEvent, Detail
from qkdnode.errors import AccessDeniedError, LocalProtocolError, VaultError
from qkdnode.ids import KeyId
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import outbox
from qkdnode.vault.records import (
    ALLOCATED,
    DELIVERED,
    POLICY_VERSION,
    READY,
    Key,
    KnownAssociation,
    unpack_batch,
)
from qkdnode.vault.requests import (
    ApplicationOutbox,
    Delivery,
    KeysDelivered,
    OpenKey,
    Outstanding,
    PeerDelivered,
)
from qkdnode.vault.store import Aftermath, Store
from qkdnode.wire.messages import Delivered

ID_BYTES = 16
MAX_NOTICE_KEYS = 1024


class Cut(msgspec.Struct, frozen=True):
    """Keys cut side by side from one half of a Batch."""

    link: str
    batch: bytes
    half: str
    offset_bits: int
    size_bits: int
    key_ids: bytes


def make(
    store: Store, association: KnownAssociation, cut: Cut, state: str, material: SecretBuffer, *, outstanding: bool
) -> None:
    """Seal freshly cut keys; the material stays the caller's."""
    size, now, epoch = cut.size_bits // 8, store.now_ns, store.epoch
    is_ready = state == READY
    rows = []
    for i in range(len(cut.key_ids) // ID_BYTES):
        rows.append(
            Key(
                id=cut.key_ids[i * ID_BYTES : (i + 1) * ID_BYTES],
                state=state,
                class_=association.class_,
                association=association.number,
                application=association.local,
                link=cut.link,
                binding=association.binding,
                agent=store.node,
                policy=POLICY_VERSION,
                size_bits=cut.size_bits,
                batch=cut.batch,
                half=cut.half,
                offset_bits=cut.offset_bits + i * cut.size_bits,
                outstanding=int(outstanding),
                delivery=None,
                allocated_ns=now,
                ready_ns=now if is_ready else None,
                delivered_ns=None,
                delivered_remote_ns=None,
                ended_ns=None,
                epoch=epoch,
                version=1,
                sealed=None,
                wrapped=None,
            )
        )
    with memoryview(material) as view:
        sealed = store.sealing.seal(cut.link, epoch, [row.bound for row in rows], view, size)
    details: dict[str, Detail] = {
        "association": store.sealing.pseudonym(association.binding),
        "batch": str(unpack_batch(cut.batch)),
        "bits": cut.size_bits,
    }
    for row, its in zip(rows, sealed, strict=True):
        delivery = store.journal.size if is_ready else None
        row = msgspec.structs.replace(row, sealed=its.sealed, wrapped=its.wrapped, delivery=delivery)
        store.create(row, f"key.{state}", **details)


def make_ready(store: Store, key: Key) -> None:
    """Both ends hold it: it goes to the application's outbox."""
    store.change(key, "key.ready", {}, state=READY, ready_ns=store.now_ns, delivery=store.journal.size)


def end(store: Store, key: Key, state: str, reason: str) -> None:
    """Destroy a key that nobody received."""
    store.change(
        key,
        f"key.{state}",
        {"reason": reason},
        state=state,
        ended_ns=store.now_ns,
        outstanding=0,
        delivery=None,
        sealed=None,
        wrapped=None,
    )


def application_outbox(store: Store, request: ApplicationOutbox) -> tuple[Delivery, ...]:
    """ApplicationOutbox."""
    where = f"application = ? AND delivery > ? AND state = '{READY}' ORDER BY delivery LIMIT ?"
    found = []
    for key in store.find_sound(Key, where, request.application, request.after, request.limit):
        association = store.get_association(key.association)
        if association is not None and key.delivery is not None:
            found.append(Delivery(key.delivery, UUID(bytes=key.id), association.association, key.size_bits))
    return tuple(found)


def open_key(store: Store, request: OpenKey) -> SecretBuffer:
    """OpenKey."""
    key = _of_application(store.get(Key, request.key_id.bytes), request.key_id, request.application)
    if key.state != READY:
        raise VaultError(f"key {request.key_id} is {key.state}: only a ready key is opened")
    return store.unseal(key)


def keys_delivered(store: Store, request: KeysDelivered) -> int:
    """KeysDelivered."""
    new: dict[str, list[Key]] = {}
    known = store.find_keys([key_id.bytes for key_id in request.key_ids])
    for key_id in request.key_ids:
        key = _of_application(known.get(key_id.bytes), key_id, request.application)
        if key.state == DELIVERED:
            continue
        if key.state != READY:
            raise LocalProtocolError(f"key {key_id} is {key.state}: it cannot have been delivered")
        key = store.change(
            key,
            "key.delivered",
            request.details,
            state=DELIVERED,
            delivered_ns=store.now_ns,
            delivery=None,
            outstanding=int(key.outstanding and key.delivered_remote_ns is None),
            sealed=None,
            wrapped=None,
        )
        known[key.id] = key
        new.setdefault(key.link, []).append(key)
    for link, keys in new.items():
        for i in range(0, len(keys), MAX_NOTICE_KEYS):
            told = keys[i : i + MAX_NOTICE_KEYS]
            number = told[-1].leaf
            outbox.post(store, link, number, Delivered(number, request.application, b"".join(key.id for key in told)))
    return sum(map(len, new.values()))


def peer_delivered(store: Store, request: PeerDelivered) -> int:
    """PeerDelivered."""
    new = 0
    known = store.find_keys([key_id.bytes for key_id in request.key_ids])
    for key_id in request.key_ids:
        key = known.get(key_id.bytes)
        if key is None or key.link != request.link or key.delivered_remote_ns is not None:
            continue
        if key.state not in (ALLOCATED, READY, DELIVERED):
            continue
        association = store.get_association(key.association)
        if association is None or association.remote != request.application:
            store.alarm("delivery.misdirected", f"key/{store.sealing.pseudonym(key.id)}", "ignored")
            continue
        new += 1
        outstanding = int(key.outstanding and key.state != DELIVERED)
        known[key.id] = store.change(
            key, "key.delivered_remote", {}, delivered_remote_ns=store.now_ns, outstanding=outstanding
        )
    return new


def outstanding(store: Store, request: Outstanding) -> int:
    """Outstanding."""
    wanted = request.association
    ((count,),) = store.connection.execute(
        "SELECT count(*) FROM keys JOIN associations ON keys.association = associations.number "
        "WHERE local = ? AND remote = ? AND source = ? AND outstanding",
        (wanted.local, wanted.remote, wanted.source),
    )
    return int(count)


def _of_application(key: Key | None, key_id: KeyId, application: str) -> Key:
    if key is None:
        raise VaultError(f"the vault holds no usable key {key_id}")
    if key.application != application:
        raise Aftermath(
            AccessDeniedError(f"key {key_id} is not for application {application!r}: a key has one recipient per node"),
            lambda store: _journal_denial(store, key_id, application),
        )
    return key


def _journal_denial(store: Store, key_id: KeyId, application: str) -> None:
    subject = f"application/{store.sealing.pseudonym(application.encode())}"
    details: dict[str, Any] = {"key": store.sealing.pseudonym(key_id.bytes)}
    store.journal.record(AccessEvent, "access", "key.denied", subject, details, "refused")


HANDLERS = {
    ApplicationOutbox: application_outbox,
    OpenKey: open_key,
    KeysDelivered: keys_delivered,
    PeerDelivered: peer_delivered,
    Outstanding: outstanding,
}
