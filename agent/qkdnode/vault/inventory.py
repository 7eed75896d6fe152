"""Which keys there are: what is known of each but its bits, in pages and by filters, for whoever runs the node."""

from typing import Any
from uuid import UUID

import msgspec

from qkdnode.errors import LocalProtocolError, VaultError
from qkdnode.ids import Association, KeyId
from qkdnode.vault.records import DAMAGED, KEY_STATES, Key, KnownAssociation, unpack_batch
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store

MAX_KEYS = 256
SCANNED_ROWS = 20_000  # by one request at most, so that no filter holds up the vault


class ListKeys(Request, frozen=True):
    """Keys by rising number, after `after`, that pass every filter given. Answer: ListedKeys.

    A page may be short or empty though more follow: only so many rows are looked at. Keys that were set aside as
    damaged are not listed, as nothing in their rows is certain.
    """

    after: int = 0
    limit: int = MAX_KEYS
    local: str | None = None
    remote: str | None = None
    link: str | None = None
    state: str | None = None


class ShowKey(Request, frozen=True):
    """One key. Answer: ListedKey. VaultError if the vault does not know it, or has set it aside."""

    key_id: KeyId


class ListedKey(msgspec.Struct, frozen=True):
    """What is known of a key but its bits; times are wall clock."""

    number: int
    key_id: KeyId
    state: str
    association: Association
    link: str
    key_class: str
    size_bits: int
    batch: str
    half: str
    offset_bits: int
    allocated_ns: int
    ready_ns: int | None
    delivered_ns: int | None
    delivered_remote_ns: int | None
    ended_ns: int | None


class ListedKeys(msgspec.Struct, frozen=True):
    """A page, and the `after` of the next; None: no key follows."""

    keys: tuple[ListedKey, ...]
    next: int | None


def list_keys(store: Store, request: ListKeys) -> ListedKeys:
    """ListKeys."""
    if request.state is not None and request.state not in KEY_STATES:
        raise LocalProtocolError(f"{request.state!r} is no state of a key: one of {', '.join(KEY_STATES)}")
    limit = max(1, min(request.limit, MAX_KEYS))
    last: int = store.scalar("SELECT coalesce(max(rowid), 0) FROM keys")
    until = min(last, request.after + SCANNED_ROWS)
    conditions = ["rowid > ?", "rowid <= ?", f"state <> '{DAMAGED}'"]
    values: list[int | str] = [request.after, until]
    for column, wanted in (("link", request.link), ("state", request.state)):
        if wanted is not None:
            conditions.append(f"{column} = ?")
            values.append(wanted)
    if request.local is not None or request.remote is not None:
        numbers = [
            known.number
            for known in store.find_sound(KnownAssociation, "true")
            if request.local in (None, known.local) and request.remote in (None, known.remote)
        ]
        conditions.append(f"association IN ({', '.join('?' * len(numbers))})")
        values.extend(numbers)
    statement = f"SELECT rowid, id FROM keys WHERE {' AND '.join(conditions)} ORDER BY rowid LIMIT ?"
    rows: list[Any] = store.connection.execute(statement, (*values, limit)).fetchall()
    sound = {key.id: key for key in _sound(store, [row[1] for row in rows])}
    listed = tuple(_listed(store, number, sound[key_id]) for number, key_id in rows if key_id in sound)
    reached = rows[-1][0] if len(rows) == limit else until
    return ListedKeys(listed, reached if reached < last else None)


def show_key(store: Store, request: ShowKey) -> ListedKey:
    """ShowKey."""
    key = store.get(Key, request.key_id.bytes)
    if key is None:
        raise VaultError(f"the vault holds no key {request.key_id}, or has set it aside as damaged")
    number: int = store.scalar("SELECT rowid FROM keys WHERE id = ?", key.id)
    return _listed(store, number, key)


def _sound(store: Store, ids: list[bytes]) -> list[Key]:
    return store.find_sound(Key, f"id IN ({', '.join('?' * len(ids))})", *ids) if ids else []


def _listed(store: Store, number: int, key: Key) -> ListedKey:
    known = store.get_association(key.association)
    if known is None:
        raise VaultError(f"key {UUID(bytes=key.id)} belongs to an association that the vault has not got")
    return ListedKey(
        number=number,
        key_id=UUID(bytes=key.id),
        state=key.state,
        association=known.association,
        link=key.link,
        key_class=key.class_,
        size_bits=key.size_bits,
        batch=str(unpack_batch(key.batch)),
        half=key.half,
        offset_bits=key.offset_bits,
        allocated_ns=key.allocated_ns,
        ready_ns=key.ready_ns,
        delivered_ns=key.delivered_ns,
        delivered_remote_ns=key.delivered_remote_ns,
        ended_ns=key.ended_ns,
    )


HANDLERS = {ListKeys: list_keys, ShowKey: show_key}
