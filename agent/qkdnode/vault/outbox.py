"""The outbox to the neighbour: messages that are re-sent until journalled there."""

import msgspec

from qkdnode.vault.records import Notice
from qkdnode.vault.requests import NeighbourOutbox, OutboxCleared, OutboxEntry
from qkdnode.vault.store import Store
from qkdnode.wire.codec import encode_body, kind_of
from qkdnode.wire.messages import KIND_OF_BODY, KIND_OF_CODE, Allocate, Compromised, KeysRevoked, Message

_REVOCATIONS = ", ".join(str(KIND_OF_BODY[body].code) for body in (KeysRevoked, Compromised))


def post(store: Store, link: str, number: int, message: Message) -> None:
    """Put a message into the outbox. Its number is the position of a leaf of the same change: rising, never reused."""
    store.insert(Notice(link, number, kind_of(message).code, encode_body(message)))


def message_of(notice: Notice) -> Message:
    """The message of a verified row."""
    return msgspec.msgpack.decode(notice.body, type=KIND_OF_CODE[notice.kind].body)


def waiting_allocate(store: Store, link: str, request: int) -> Allocate | None:
    """The request that still waits for its answer."""
    notice = store.get(Notice, link, request)
    message = None if notice is None else message_of(notice)
    return message if isinstance(message, Allocate) else None


def clear(store: Store, link: str, number: int) -> None:
    """The neighbour has journalled a message."""
    store.connection.execute("DELETE FROM outbox WHERE link = ? AND number = ?", (link, number))


def neighbour_outbox(store: Store, request: NeighbourOutbox) -> tuple[OutboxEntry, ...]:
    """NeighbourOutbox."""
    rows = store.find_sound(
        Notice, "link = ? AND number > ? ORDER BY number LIMIT ?", request.link, request.after, request.limit
    )
    return tuple(OutboxEntry(row.number, message_of(row)) for row in rows)


def revocations(store: Store, link: str, limit: int) -> tuple[OutboxEntry, ...]:
    """Revocations and compromises that wait for the neighbour, oldest first."""
    rows = store.find_sound(Notice, f"link = ? AND kind IN ({_REVOCATIONS}) ORDER BY number LIMIT ?", link, limit)
    return tuple(OutboxEntry(row.number, message_of(row)) for row in rows)


def outbox_cleared(store: Store, request: OutboxCleared) -> None:
    """OutboxCleared. A request to allocate is cleared by its answer alone."""
    for number in request.numbers:
        if waiting_allocate(store, request.link, number) is None:
            clear(store, request.link, number)


HANDLERS = {NeighbourOutbox: neighbour_outbox, OutboxCleared: outbox_cleared}
