"""The rows that the vault protects: one frozen struct per table, its fields the columns in order.

`subject` names the row in the audit log; the newest leaf of that subject must be the row's own, or the row is an old
one put back. Outbox rows have no subject: putting one back re-sends a message that is idempotent.
"""

import struct
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from qkdnode.access.confidential import CONFIDENTIAL_ALARMS
from qkdnode.audit.events import AccessEvent, AlarmEvent, Event, KeyEvent, LinkEvent, NodeEvent
from qkdnode.ids import CONFIDENTIAL, Association, BatchId
from qkdnode.lifecycle.states import LETTERS, STAGE_OF_LETTER, Stage

_BATCH = struct.Struct(">QI")
_IS_DELIVERED = bytes(letter == LETTERS[Stage.DELIVERED] for letter in range(256))
_UNFINISHED = tuple(LETTERS[stage] for stage in (Stage.ALLOCATED, Stage.READY, Stage.DELIVERED))

# Bundles. Their keys have stages of their own, of which `states` holds the letters.
HELD, DAMAGED = "held", "damaged"
# Batches
PENDING, READY, ABANDONED, QUARANTINED = "pending", "ready", "abandoned", "quarantined"
COMPROMISED = "compromised"
# Segments; QUARANTINED and DAMAGED are shared
WAITING, USABLE, SPENT = "waiting", "usable", "spent"
KEYS_GREETINGS = "greeting"  # no pads: the key of the pair's Greetings
# Chunks; QUARANTINED and DAMAGED are shared
STOCKED = "stocked"
# Key-encryption keys that are deleted: not yet proven to be gone, or proven
DELETED, DESTROYED = "deleted", "destroyed"
# Orders to wrap data keys anew
RUNNING, FINISHED, SUPERSEDED = "running", "finished", "superseded"

ID_BYTES = 16
KEYS_PER_BUNDLE = 128


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

    @property
    def heading(self) -> str:
        """The topic of this row's leaves, before the link's name."""
        return self.topic


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
    provisioned: int  # the session counter at that time
    heard_start: bytes  # the peer's start and session counter admitted last
    heard: int
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
    granted: int  # the peer may have tagged with the pads of its half below this
    epoch: int
    version: int
    kek: int | None  # under which its data key is wrapped
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
    epoch: int  # in which it was sealed
    version: int
    kek: int  # under which its data key is wrapped
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
    """An association. Purpose and class are those of its keys while no policy is applied."""

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
    binding: bytes  # names the association; a key is bound to its services and its class's purpose too
    services_local: str = "[]"  # JSON
    services_remote: str = "[]"
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"association/{pseudonym(self.binding)}"

    @property
    def services(self) -> tuple[str, ...]:
        """Those of both applications."""
        local, remote = (msgspec.json.decode(of, type=list[str]) for of in (self.services_local, self.services_remote))
        return (*local, *remote)

    @property
    def association(self) -> Association:
        """As the requests name it."""
        return Association(self.local, self.remote, self.source)


class Bundle(Record, frozen=True):
    """The keys of one request to allocate: side by side in one half of a Batch, each in a state of its own.

    `key_ids` holds 16 bytes for each key, `states` one letter, `far` one byte: 1 once the far application has it.
    """

    table: ClassVar[str] = "bundles"
    key: ClassVar[tuple[str, ...]] = ("number",)
    topic: ClassVar[str] = "keys"
    set_aside: ClassVar[str | None] = DAMAGED

    number: int  # position of its first leaf; where it was allocated, the number of the request too
    state: str  # HELD, or DAMAGED as a whole
    states: bytes  # as qkdnode.lifecycle.states.LETTERS
    far: bytes
    key_ids: bytes
    class_: str = msgspec.field(name="class")
    association: int
    application: str
    link: str
    binding: bytes
    agent: str
    policy: int
    key_generation: int  # of the association's keys
    size_bits: int
    batch: bytes
    half: str
    offset_bits: int
    own: int  # allocated here
    outstanding: int  # keys allocated here, and not yet acknowledged by both applications
    delivery: int | None  # place in the application's outbox while a key is READY
    allocated_ns: int
    ready_ns: int | None
    delivered_ns: int | None  # of the last; the leaves have each
    delivered_remote_ns: int | None
    ended_ns: int | None
    epoch: int
    version: int
    kek: int | None  # under which the data keys are wrapped; None once no key is held any more
    mark: bytes  # whether its keys are decoys, for who has the vault's key: qkdnode.vault.marks
    waits_ns: int | None = None  # trusted time, as all of these: cut then, and some key is not used yet
    held_ns: int | None = None  # in place of that, past its end, while a legal hold keeps it
    used_ns: int | None = None  # some key is delivered; since the last was
    kept_ns: int | None = None  # some key is deactivated; since the last was
    over_ns: int | None = None  # every key has ended
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"bundle/{self.link}/{self.number}"

    @property
    def count(self) -> int:
        """How many keys it holds or held."""
        return len(self.states)

    def key_id(self, place: int) -> bytes:
        """The id of one key."""
        return self.key_ids[place * ID_BYTES : (place + 1) * ID_BYTES]

    def place(self, key_id: bytes) -> int | None:
        """Where a key is, by its id."""
        at = self.key_ids.find(key_id)
        while at > 0 and at % ID_BYTES:
            at = self.key_ids.find(key_id, at + 1)
        return None if at < 0 else at // ID_BYTES

    def stage(self, place: int) -> Stage:
        """Where one key stands."""
        return STAGE_OF_LETTER[self.states[place]]

    def places(self, *stages: Stage) -> list[int]:
        """Where keys at some stages are."""
        letters = [LETTERS[stage] for stage in stages]
        return [place for place, letter in enumerate(self.states) if letter in letters]

    def bound(self, place: int) -> tuple[Any, ...]:
        """What the ciphertext of one key is bound to."""
        its = (self.class_, self.policy, self.key_generation, self.epoch, self.version, self.binding)
        return ("key", self.key_id(place), *its)


class Generations(Record, frozen=True):
    """Which generation of an association's keys is supplied, and how far the rotation to another is.

    Rows of Bundles follow an end or a giving up in the order of their generations and numbers.
    """

    table: ClassVar[str] = "generations"
    key: ClassVar[tuple[str, ...]] = ("association",)
    topic: ClassVar[str] = "rotations"

    association: int
    link: str
    current: int
    newest: int  # number that was ever given
    number: int  # being rotated to; 0: none
    phase: str
    peer: str  # the other end's phase, as heard
    reason: str
    by: str
    since_ns: int  # the current one is supplied
    begun_ns: int
    phase_ns: int
    result: str  # of the last rotation that is over
    ending: int  # the generation that rows are moved of; 0: none
    reached: int  # the Bundle up to which they are
    ended: int  # keys that were, of all generations
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"generation/{self.link}/{self.association}"


class Courier(Record, frozen=True):
    """What couriers carry for an association between the ends of a link that is cut. Both numbers only rise."""

    table: ClassVar[str] = "couriers"
    key: ClassVar[tuple[str, ...]] = ("association",)
    topic: ClassVar[str] = "rotations"

    association: int
    link: str
    sent: int  # the number of the file that was written last; 0: none
    file: bytes  # that file
    spent: bytes  # where the bits were that seal files which the other end may not have imported
    heard: int  # the number of the file of the other end that was imported last
    digest: bytes  # SHA-256 of that file
    answers: bytes  # what the next file says of its messages
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"courier/{self.link}/{self.association}"


def delivered_both(states: bytes, far: bytes) -> int:
    """How many keys both applications have."""
    here = int.from_bytes(states.translate(_IS_DELIVERED))
    return (here & int.from_bytes(far)).bit_count()


def outstanding(states: bytes, far: bytes) -> int:
    """How many keys at least one of both applications is still to get."""
    return sum(map(states.count, _UNFINISHED)) - delivered_both(states, far)


class PausedLink(Record, frozen=True):
    """Whether an operator has paused a link."""

    table: ClassVar[str] = "pauses"
    key: ClassVar[tuple[str, ...]] = ("link",)
    event: ClassVar[type[Event]] = LinkEvent
    topic: ClassVar[str] = "pauses"

    link: str
    paused: int
    by: str  # the operator
    since_ns: int
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"pause/{self.link}"


class AppliedPolicy(Record, frozen=True):
    """One version of the policy, with the approvals that let it be applied."""

    table: ClassVar[str] = "policies"
    key: ClassVar[tuple[str, ...]] = ("number",)
    event: ClassVar[type[Event]] = AccessEvent
    topic: ClassVar[str] = "policy"

    number: int
    previous: bytes
    document: bytes
    approvals: bytes  # JSON: each with its signer's key and the role that it counted in
    repeats: int | None  # the version that a rollback repeats
    applied_ns: int
    applied_by: str  # the operator
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return policy_subject(self.number)


def policy_subject(number: int) -> str:
    """The name of a version of the policy in the audit log."""
    return f"policy/{number}"


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


class Ending(Record, frozen=True):
    """A notice that waits for an application: keys of one Bundle that it has and that are out of use."""

    table: ClassVar[str] = "endings"
    key: ClassVar[tuple[str, ...]] = ("number",)
    topic: ClassVar[str] = "endings"
    dropped: ClassVar[bool] = True

    number: int  # rising
    link: str
    application: str
    association: int
    bundle: int
    places: bytes  # a byte for each key
    stage: str
    reason: str
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return None


class Scope(Record, frozen=True):
    """What a compromise reaches: keys of the Batches from first to last, of one application or of all.

    The rows of its keys are moved behind it, in the order of their Bundles.
    """

    table: ClassVar[str] = "scopes"
    key: ClassVar[tuple[str, ...]] = ("number",)
    topic: ClassVar[str] = "scopes"

    number: int  # position of its first leaf: Bundles of a higher number are made under it
    link: str
    first: bytes
    last: bytes
    application: str  # at either end; empty: all
    reason: str
    by: str
    made_ns: int
    reached: int  # the Bundle up to which rows are moved
    keys: int  # moved so far
    moving: int  # rows are left
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"scope/{self.link}/{self.number}"


class Tombstone(Record, frozen=True):
    """An id that the neighbour has revoked before it was a key's here."""

    table: ClassVar[str] = "tombstones"
    key: ClassVar[tuple[str, ...]] = ("link", "key_id")
    topic: ClassVar[str] = "keys"

    link: str
    key_id: bytes
    reason: str
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"tombstone/{self.link}/{pseudonym(self.key_id)}"


class Duty(Record, frozen=True):
    """Between which Batches a device has served a link."""

    table: ClassVar[str] = "duties"
    key: ClassVar[tuple[str, ...]] = ("link", "serial")
    topic: ClassVar[str] = "batches"

    link: str
    serial: str
    first: bytes
    last: bytes
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"duty/{self.link}/{self.serial}"


class LostClass(Record, frozen=True):
    """A class that keys are of and that the policy does not know any more."""

    table: ClassVar[str] = "lost_classes"
    key: ClassVar[tuple[str, ...]] = ("name",)
    topic: ClassVar[str] = "policy"
    dropped: ClassVar[bool] = True  # it is noted anew, and its time begins again

    name: str
    since_ns: int  # trusted time
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"class/{self.name}"


class KnownAsset(Record, frozen=True):
    """A device or a piece of software, by what tells one state of it from another."""

    table: ClassVar[str] = "assets"
    key: ClassVar[tuple[str, ...]] = ("kind", "name")
    event: ClassVar[type[Event]] = NodeEvent
    topic: ClassVar[str] = "assets"
    dropped: ClassVar[bool] = True  # the log tells that it was known, so the next look says that its row was lost

    kind: str
    name: str
    marks: str  # JSON of an object of texts
    gone: int
    noted_ns: int
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"asset/{self.kind}/{self.name}"


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

    @property
    def heading(self) -> str:
        return CONFIDENTIAL if self.code in CONFIDENTIAL_ALARMS else self.topic


class EndedKek(Record, frozen=True):
    """A key-encryption key that is deleted, with what it takes to show that it is gone."""

    table: ClassVar[str] = "ended_keks"
    key: ClassVar[tuple[str, ...]] = ("number",)
    topic: ClassVar[str] = "epochs"

    number: int
    link: str
    epoch: int
    algorithm: str
    state: str
    trace: bytes  # the complement of its nonce under the root key, so that a search for that does not find this
    witness: bytes  # a random key that was wrapped under it
    deleted_ns: int
    destroyed_ns: int | None = None
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"epoch/{self.link}/{self.number}"


class Rewrap(Record, frozen=True):
    """An order to wrap data keys anew: those under another algorithm, or under a key of an earlier epoch."""

    table: ClassVar[str] = "rewraps"
    key: ClassVar[tuple[str, ...]] = ("number",)
    topic: ClassVar[str] = "epochs"

    number: int  # position of its first leaf
    algorithm: str
    epoch: int  # data keys under a key of an earlier one move
    state: str
    rows: int  # that were to move when it was given
    by: str
    made_ns: int
    ended_ns: int | None = None
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return f"rewrap/{self.number}"


class ScrubMark(Record, frozen=True):
    """How far the pass over all records has come. It has no leaves: an old one put back has some looked at again."""

    table: ClassVar[str] = "scrubs"
    key: ClassVar[tuple[str, ...]] = ("number",)
    topic: ClassVar[str] = "vault"
    dropped: ClassVar[bool] = True

    number: int  # position of the leaf that the pass began with
    stage: str
    place: bytes
    rows: int
    keys: int
    ciphertexts: int
    damaged: int
    begun_ns: int
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return None


class Witnessed(Record, frozen=True):
    """The neighbour's log, as this node has signed it last. With a new pair file it may be a new one."""

    table: ClassVar[str] = "witnessed"
    key: ClassVar[tuple[str, ...]] = ("link", "pair")
    event: ClassVar[type[Event]] = LinkEvent
    topic: ClassVar[str] = "witness"

    link: str
    pair: bytes
    origin: str
    size: int
    root: bytes
    note: str  # the neighbour's own signatures on it
    signed_ns: int
    contradiction: str  # another checkpoint that it has signed and that does not go with this one; empty: none
    contradicted_ns: int
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return witnessed_subject(self.link, self.pair)


def witnessed_subject(link: str, pair: bytes) -> str:
    """The name of what is known of a neighbour's log in the audit log."""
    return f"witnessed/{link}/{pair.hex()}"


class Doubt(Record, frozen=True):
    """What does not agree with the neighbour's holdings, since when, and how often that was seen. It has no leaves:
    each repair has one, and an old one put back is looked at again.
    """

    table: ClassVar[str] = "doubts"
    key: ClassVar[tuple[str, ...]] = ("link", "batch", "half", "place")
    topic: ClassVar[str] = "inventory"
    dropped: ClassVar[bool] = True

    link: str
    batch: bytes
    half: str
    place: int  # offset of a Bundle; below zero, of stock: one less than the stretch's number, negative
    verdict: str
    since_ns: int
    looks: int
    looked_ns: int
    keys: int
    generation: int = 0
    leaf: int = 0

    def subject(self, pseudonym: Callable[[bytes], str]) -> str | None:
        return None


RECORDS: tuple[type[Record], ...] = (
    Link,
    Segment,
    Batch,
    Chunk,
    KnownAssociation,
    Bundle,
    PeerRequest,
    Notice,
    Ending,
    PausedLink,
    Scope,
    Tombstone,
    Duty,
    LostClass,
    KnownAsset,
    KnownAlarm,
    AppliedPolicy,
    EndedKek,
    Rewrap,
    ScrubMark,
    Witnessed,
    Doubt,
    Generations,
    Courier,
)
_OF_ROWS = (
    "link", "segment", "batch", "chunk", "association", "bundle", "request", "pause", "scope", "tombstone", "duty",
    "class", "asset", "alarm", "policy", "epoch", "rewrap", "witnessed", "generation", "courier",
)  # fmt: skip
# The newest leaf of such a subject is that of the row of this name: no other leaf may have one.
ROW_SUBJECTS = tuple(f"{name}/" for name in _OF_ROWS)
RESERVED_SUBJECTS = (*ROW_SUBJECTS, "key/", "day/", "erasure/", "scrub/", "ending/")  # the vault's
