"""The leaves of the audit log: what happened, to what, with which outcome. Never a secret.

A leaf is the canonical JSON of one event: UTF-8, names sorted, no spaces, at most 16 KiB. The same event always gives
the same bytes, and only those bytes decode.
"""

from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from qkdnode.errors import AuditError

MAX_LEAF_BYTES = 16 * 1024
MAX_DETAIL_CHARACTERS = 256
MAX_INTEGER = 2**63 - 1
UNNUMBERED = 0  # until the vault gives the next number of the topic, from 1

Detail: TypeAlias = str | int | float | bool | None
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Names = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=128)]
DetailName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all events."""

    version: Literal[1] = 1
    time_ns: Annotated[int, Meta(ge=0, le=MAX_INTEGER)]  # wall clock of the node
    node: Name
    topic: Name
    topic_sequence: Annotated[int, Meta(ge=0, le=MAX_INTEGER)] = UNNUMBERED
    kind: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,8}\Z", max_length=64)]  # "key.allocated"
    subject: Name  # what it happened to
    outcome: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,47}\Z")] = "done"  # or why not: "refused", "no_entropy"
    details: Annotated[dict[DetailName, Detail], Meta(max_length=64)] = {}
    keys: Names | UnsetType = UNSET  # pseudonyms of the keys that are concerned, left out if there are none


class KeyEvent(Event, frozen=True, tag="key"):
    """A step in the life of a key, of stock or of a Batch."""


class LinkEvent(Event, frozen=True, tag="link"):
    """A QKD link or its session, authentication key or distillation."""


class DeviceEvent(Event, frozen=True, tag="device"):
    """A QKD module or QRNG."""


class AccessEvent(Event, frozen=True, tag="access"):
    """Somebody asked for something and was let or refused."""


class AlarmEvent(Event, frozen=True, tag="alarm"):
    """Something that a person should look at, raised or cleared."""


class NodeEvent(Event, frozen=True, tag="node"):
    """The agent itself: start, stop, configuration, sealing."""


AnyEvent: TypeAlias = KeyEvent | LinkEvent | DeviceEvent | AccessEvent | AlarmEvent | NodeEvent
_Some = TypeVar("_Some", KeyEvent, LinkEvent, DeviceEvent, AccessEvent, AlarmEvent, NodeEvent)

_encoder = msgspec.json.Encoder(order="sorted")
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def numbered(event: _Some, topic_sequence: int) -> _Some:
    """The same event with its number in its topic."""
    return msgspec.structs.replace(event, topic_sequence=topic_sequence)


def encode(event: AnyEvent) -> bytes:
    """The leaf of an event. AuditError if a field or detail is not of a kind that a leaf may hold."""
    try:
        leaf = _encoder.encode(event)
        twin = _decoder.decode(leaf)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise AuditError(f"event {event.kind!r} cannot be a leaf: {error}") from None
    _check(leaf, twin)
    if twin != event:  # a NaN, an enum or a bytes detail turns into something else on the way
        raise AuditError(f"event {event.kind!r} cannot be a leaf: a detail is no string, finite number, truth or null")
    return leaf


def decode(leaf: bytes) -> AnyEvent:
    """The event of a leaf. AuditError unless these are the canonical bytes of a valid event."""
    if len(leaf) > MAX_LEAF_BYTES:
        raise AuditError(f"a leaf of {len(leaf)} bytes is over the limit of {MAX_LEAF_BYTES}")
    try:
        event = _decoder.decode(leaf)
        canonical = _encoder.encode(event)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise AuditError(f"not the leaf of an event: {error}") from None
    if canonical != leaf:
        raise AuditError(f"the leaf of {event.kind!r} is not in its canonical form")
    _check(leaf, event)
    return event


def _check(leaf: bytes, event: AnyEvent) -> None:
    if len(leaf) > MAX_LEAF_BYTES:
        raise AuditError(f"the leaf of {event.kind!r} has {len(leaf)} bytes, over the limit of {MAX_LEAF_BYTES}")
    for name, value in event.details.items():
        if isinstance(value, str) and len(value) > MAX_DETAIL_CHARACTERS:
            raise AuditError(f"detail {name!r} of {event.kind!r} is longer than {MAX_DETAIL_CHARACTERS} characters")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise AuditError(f"detail {name!r} of {event.kind!r} does not fit in 64 bits")
