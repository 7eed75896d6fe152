"""The rows that the vault protects: one frozen struct per table, its fields the columns in order.

`subject` names the row in the audit log; the newest leaf of that subject must be the row's own, or the row is an old
one put back. Outbox rows have no subject: putting one back re-sends a message that is idempotent.
"""

import struct
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from qkdnode.audit.events import AlarmEvent, Event, KeyEvent, LinkEvent
from qkdnode.ids import Association, BatchId

_BATCH = struct.Struct(">QI")

# Keys
ALLOCATED, READY, DELIVERED, BURNT, DAMAGED = "allocated", "ready", "delivered", "burnt", "damaged"
KEY_STATES = (ALLOCATED, READY, DELIVERED, BURNT, DAMAGED)
# Batches; READY is shared
PENDING, ABANDONED, QUARANTINED = "pending", "abandoned", "quarantined"
# Segments; QUARANTINED and DAMAGED are shared
WAITING, USABLE, SPENT = "waiting", "usable", "spent"
# Chunks; QUARANTINED and DAMAGED are shared
STOCKED = "stocked"

POLICY_VERSION = 1


def pack_batch(batch: BatchId) -> bytes:
    """12 bytes that sort as the ids do."""
    return _BATCH.pack(batch.session, batch.number)


def unpack_batch(data: bytes) -> BatchId:
    """The inverse of pack_batch."""
    return BatchId(*_BATCH.unpack(data))


class Record(msgspec.Struct, frozen=True):
    """Base of all rows. Each ends in generation and leaf."""

    table: ClassVar[str]
    key: ClassVar[tuple[str, ...]]
    event: ClassVar[type[Event]] = KeyEvent
    topic: ClassVar[str]  # the topic of its leaves, before the link's name
    set_aside: ClassVar[str | None] = None  # the state that takes a damaged row out of use
    dropped: ClassVar[bool] = False  # whether a damaged row is deleted

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        """The row's name in the audit log."""
        raise NotImplementedError


class Link(Record, frozen=True):
    """A link to a neighbour. `start` is the run of the vault that opened it last."""

    table: ClassVar[str] = "links"
    key: ClassVar[tuple[str, ...]] = ("link",)
    event: ClassVar[type[Event]] = LinkEvent
    topic: ClassVar[str] = "link"

    link: str
    role: str
    peer: str
    session_counter: int
    start: bytes
    pair: bytes  # id of the pair file that it was last provisioned from
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"link/{self.link}"


class Segment(Record, frozen=True):
    """Authentication key: one Batch's refill, or what was provisioned."""

    table: ClassVar[str] = "segments"
    key: ClassVar[tuple[str, ...]] = ("link", "batch")
    event: ClassVar[type[Event]] = LinkEvent
    topic: ClassVar[str] = "pads"
    set_aside: ClassVar[str | None] = DAMAGED

    link: str
    batch: bytes
    state: str
    pads: int
    sending: int
    seen: int
    epoch: int
    version: int
    sealed: bytes | None
    wrapped: bytes | None
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"segment/{self.link}/{unpack_batch(self.batch)}"

    @property
    def bound(self) -> tuple[Any, ...]:
        """What its ciphertext is bound to."""
        return ("segment", self.link, self.batch, self.pads, self.epoch, self.version)


class Batch(Record, frozen=True):
    """A Batch and the exact bytes that settle it."""

    table: ClassVar[str] = "batches"
    key: ClassVar[tuple[str, ...]] = ("link", "batch")
    topic: ClassVar[str] = "batches"

    link: str
    batch: bytes
    state: str
    usable: int  # both ends are READY, as far as this end knows
    announced: int  # the peer knows that this end knows
    half_bits: int
    record: bytes
    content: bytes
    message: bytes
    made_ns: int
    settled_ns: int | None = None
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"batch/{self.link}/{unpack_batch(self.batch)}"


class Chunk(Record, frozen=True):
    """At most 4 KiB of one half of a Batch's stock; `spans` are the [start, end) bits of the half still in it."""

    table: ClassVar[str] = "chunks"
    key: ClassVar[tuple[str, ...]] = ("link", "half", "batch", "number")
    topic: ClassVar[str] = "stock"
    set_aside: ClassVar[str | None] = DAMAGED

    link: str
    half: str  # the role whose half it is
    batch: bytes
    number: int
    state: str
    spans: str
    bits: int
    epoch: int
    version: int
    sealed: bytes
    wrapped: bytes
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"chunk/{self.link}/{unpack_batch(self.batch)}/{self.half}/{self.number}"

    @property
    def bound(self) -> tuple[Any, ...]:
        """What its ciphertext is bound to."""
        return ("chunk", self.link, self.half, self.batch, self.number, self.spans, self.epoch, self.version)


class KnownAssociation(Record, frozen=True):
    """An association with all that its keys are bound to."""

    table: ClassVar[str] = "associations"
    key: ClassVar[tuple[str, ...]] = ("number",)
    topic: ClassVar[str] = "associations"

    number: int
    local: str
    remote: str
    source: str
    node_local: str
    node_remote: str
    link: str
    purpose: str
    class_: str = msgspec.field(name="class")
    binding: bytes
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"association/{pseudonym(self.binding)}"

    @property
    def association(self) -> Association:
        """As the requests name it."""
        return Association(self.local, self.remote, self.source)


class Key(Record, frozen=True):
    """A key. `delivery` is its place in the application's outbox while READY."""

    table: ClassVar[str] = "keys"
    key: ClassVar[tuple[str, ...]] = ("id",)
    topic: ClassVar[str] = "keys"
    set_aside: ClassVar[str | None] = DAMAGED

    id: bytes
    state: str
    class_: str = msgspec.field(name="class")
    association: int
    application: str
    link: str
    binding: bytes
    agent: str
    policy: int
    size_bits: int
    batch: bytes
    half: str
    offset_bits: int
    outstanding: int  # allocated here, and not yet acknowledged by both applications
    delivery: int | None
    allocated_ns: int
    ready_ns: int | None
    delivered_ns: int | None
    delivered_remote_ns: int | None
    ended_ns: int | None
    epoch: int
    version: int
    sealed: bytes | None
    wrapped: bytes | None
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"key/{pseudonym(self.id)}"

    @property
    def bound(self) -> tuple[Any, ...]:
        """What its ciphertext is bound to."""
        return ("key", self.id, self.class_, self.epoch, self.version, self.binding)


class PeerRequest(Record, frozen=True):
    """The neighbour's request to allocate, and how it was answered."""

    table: ClassVar[str] = "requests"
    key: ClassVar[tuple[str, ...]] = ("link", "request")
    topic: ClassVar[str] = "allocations"

    link: str
    request: int
    digest: bytes
    outcome: str
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"request/{self.link}/{self.request}"


class Notice(Record, frozen=True):
    """A message that waits for the neighbour."""

    table: ClassVar[str] = "outbox"
    key: ClassVar[tuple[str, ...]] = ("link", "number")
    topic: ClassVar[str] = "outbox"
    dropped: ClassVar[bool] = True

    link: str
    number: int
    kind: int
    body: bytes
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return None


class KnownAlarm(Record, frozen=True):
    """An alarm about something; `first_ns` names its present episode."""

    table: ClassVar[str] = "alarms"
    key: ClassVar[tuple[str, ...]] = ("code", "about")
    event: ClassVar[type[Event]] = AlarmEvent
    topic: ClassVar[str] = "alarm"
    dropped: ClassVar[bool] = True  # the log has it, and the next occurrence makes a new one

    code: str
    about: str
    severity: str
    detail: str
    first_ns: int
    last_ns: int
    count: int
    state: str
    acknowledged_by: str | None
    acknowledged_ns: int | None
    cleared_ns: int | None
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"alarm/{self.code}/{self.about}"


RECORDS: tuple[type[Record], ...] = (
    Link,
    Segment,
    Batch,
    Chunk,
    KnownAssociation,
    Key,
    PeerRequest,
    Notice,
    KnownAlarm,
)
RESERVED_SUBJECTS = tuple(
    f"{name}/" for name in ("link", "segment", "batch", "chunk", "association", "key", "request", "alarm")
)
