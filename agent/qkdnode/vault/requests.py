"""What the vault is asked and what it answers: messages only, so that it can move into a process of its own.

Key material crosses in a SecretBuffer whose ownership moves with the message: the receiver releases it. The buffer of
a request that fails stays the asker's. Every request is one transaction: its changes, its audit leaves and its outbox
rows stand together or not at all, and the answer comes after the sync. A request that fails raises a QkdnodeError, in
most cases a VaultError, and changes nothing.
"""

from typing import Any

import msgspec

from qkdnode.access.approvals import Approved, Person
from qkdnode.audit.events import AnyEvent
from qkdnode.ids import Association, BatchId, KeyId
from qkdnode.lifecycle.policy.decision import Decision
from qkdnode.lifecycle.policy.document import Application, Document
from qkdnode.native.secret import SecretBuffer
from qkdnode.wire.messages import Allocate, Greeting, Mark, PadSpan


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all requests."""


# --- the link: sessions and authentication key -------------------------------------------------------------------


class ProvisionLink(Request, frozen=True):
    """Install the pre-shared authentication key of a link: Alice's half, then Bob's, whole pads of 16 bytes.

    The last two pads of each half become the key of the pair's Greetings. Anew, it quarantines every unsettled Batch
    and destroys all older authentication key of the link; the session counter goes on. Answer: None.
    """

    link: str
    role: str
    peer: str
    pair: bytes  # id of the pair file, so that a file left behind is not imported twice
    material: SecretBuffer


class OpenLink(Request, frozen=True):
    """Open a link after a start. A link without segments is yet to be provisioned. Answer: LinkState."""

    link: str
    role: str
    peer: str


class SegmentState(msgspec.Struct, frozen=True):
    """One segment of authentication key: both halves, and the marks."""

    segment: BatchId
    pads_per_direction: int
    sending: int  # index of the first pad not yet reserved for sending
    seen: int  # index after the highest pad seen from the peer
    material: SecretBuffer  # Alice's half (pads_per_direction * 16 bytes), then Bob's
    usable: bool  # for sending: the peer is known to be READY


class UnsettledBatch(msgspec.Struct, frozen=True):
    """A Batch that is PENDING here (Alice): the exact bytes to send again."""

    batch: BatchId
    commit: bytes


class LinkState(msgspec.Struct, frozen=True):
    """Answer to OpenLink."""

    pair: bytes  # id of the pair file last imported; empty if none was
    session_counter: int  # last used; 0 if none
    start: bytes  # 8 random bytes that name this run of the vault
    greeting_key: SecretBuffer | None  # Alice's 32 bytes, then Bob's; None if the link is yet to be provisioned
    segments: tuple[SegmentState, ...]
    unsettled: tuple[UnsettledBatch, ...]


class NextSession(Request, frozen=True):
    """Move the session counter up by one, durably. Answer: int."""

    link: str


class StateLink(Request, frozen=True):
    """What a Greeting says of this end's vault. Answer: Statement."""

    link: str


class AdmitPeer(Request, frozen=True):
    """Begin a session on what the peer says in a Greeting that was verified and answers this end's own.

    If neither vault is older than what the other has seen of it, the peer's start and counter are journalled and the
    pads that it wants are granted. Answer: Admission.
    """

    link: str
    greeting: Greeting


class Admission(msgspec.Struct, frozen=True):
    """Answer to AdmitPeer."""

    granted: tuple[PadSpan, ...]
    refused: str  # how one end's vault must be an older copy; empty if there is no sign of it


class GrantPads(Request, frozen=True):
    """Let the peer tag with `count` more pads of its half, from those segments that it says have room.

    The granted mark moves durably before the answer, and never back: no pad is granted twice, whatever the peer's vault
    remembers. Answer: tuple[PadSpan, ...], of fewer pads if there are no more.
    """

    link: str
    count: int
    sending: tuple[Mark, ...]


class ReservePads(Request, frozen=True):
    """Move the sending mark over `count` pads that the peer has granted, durably, before any is used.

    Answer: tuple[PadAddress, ...] of at most length count, ascending, all within the spans; `contiguous` ones are
    consecutive in one segment and just as many, or none. PoolExhaustedError if fewer than count are left, granted or
    not; nothing moves.
    """

    link: str
    count: int
    within: tuple[PadSpan, ...]
    contiguous: bool = False


class NoteSeen(Request, frozen=True):
    """Raise the mark of pads seen from the peer; a lower mark moves nothing. Answer: None."""

    link: str
    marks: tuple[Mark, ...]


class DestroySpent(Request, frozen=True):
    """Destroy segments used up in both directions, but those in which hash keys in use lie.

    NextSession does it too, keeping none. Nothing is destroyed while a Batch is unsettled. Answer: int, how many.
    """

    link: str
    keep: tuple[BatchId, ...] = ()


# --- Batches -------------------------------------------------------------------------------------------------------


class BatchRecord(msgspec.Struct, frozen=True):
    """What is kept of a Batch: how it was made, without key bits."""

    batch: BatchId
    bits_in: int
    bits_out: int  # refill and stock together
    refill_bits: int
    method: str
    booking: str
    family: str
    eps_sec: float
    eps_cor: float
    qber_z: float
    disclosed_bits: int
    devices: tuple[str, ...]  # serials, this end's
    details: dict[str, int | float | str]


class StorePending(Request, frozen=True):
    """Alice journals PENDING: the sealed key and the exact bytes of her commit. Answer: None."""

    link: str
    record: BatchRecord
    key: SecretBuffer
    commit: bytes


class StoreReady(Request, frozen=True):
    """Bob journals READY: the sealed key and the exact bytes of his answer. Answer: SettledBatch, not yet usable."""

    link: str
    record: BatchRecord
    key: SecretBuffer
    answer: bytes


class StoreAbandoned(Request, frozen=True):
    """Bob journals ABANDONED for a Batch he has not settled, with the exact bytes of his answer. Answer: None."""

    link: str
    batch: BatchId
    reason: str
    answer: bytes


class FindAnswer(Request, frozen=True):
    """Bob's journalled answer to a Batch. Answer: bytes | None."""

    link: str
    batch: BatchId


class SettlePending(Request, frozen=True):
    """Alice journals the outcome of her PENDING Batch; idempotent. READY makes stock and refill usable at her end.

    Answer: SettledBatch.
    """

    link: str
    batch: BatchId
    ready: bool


class PeerReady(Request, frozen=True):
    """Bob learns that Alice journalled READY: his stock and refill become usable; idempotent, unknown ids ignored.

    Answer: tuple[SegmentState, ...], the segments that became usable.
    """

    link: str
    batches: tuple[BatchId, ...]


class SettledBatch(msgspec.Struct, frozen=True):
    """Answer to SettlePending and StoreReady: the new segment of authentication key, if the Batch has a refill."""

    segment: SegmentState | None


class UnannouncedReady(Request, frozen=True):
    """Alice's READY Batches whose Settled notice the peer has not journalled. Answer: tuple[BatchId, ...]."""

    link: str


class ReadyAnnounced(Request, frozen=True):
    """The peer's Received covers these Settled notices. Answer: None."""

    link: str
    batches: tuple[BatchId, ...]


# --- allocation and keys -------------------------------------------------------------------------------------------


class Associate(Request, frozen=True):
    """Make an association known (idempotent), or its services anew. Answer: None.

    Purpose and class are those of its keys while no policy is applied.
    """

    association: Association
    nodes: tuple[str, str]  # local, remote
    link: str
    purpose: str
    key_class: str
    services: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # local, remote


class Entitle(Request, frozen=True):
    """What the policy allows an association now, for keys of a size. Answer: Entitlement."""

    association: Association
    size_bits: int


class Entitlement(msgspec.Struct, frozen=True):
    """Answer to Entitle: whether, by which rule, why; of which class; and how many keys.

    `terms` and `binding` must be equal at both ends. Both are empty, as the class is, if nothing is allowed.
    """

    allowed: bool
    rule: str
    reason: str
    policy: int
    key_class: str
    terms: bytes
    binding: bytes
    outstanding: int  # keys of `generation` allocated here, releasable, and not yet acknowledged by both applications
    room: int  # keys that quotas and reserves let be allocated more
    room_rule: str  # the one that sets the limit
    decoys: int = 0  # to be cut by this end
    old_decoys: bool = False  # some are to be ended by this end
    generation: int = 1  # of the association's keys, that is supplied next or now


class AllocateKeys(Request, frozen=True):
    """Cut `count` keys for an association from this end's half; they wait for the peer's answer.

    They are of the first class of the policy that the association may have. PolicyDeniedError if there is none, or a
    quota or reserve leaves no room for so many; OutOfStockError if the usable half holds less. Answer: tuple[KeyId,
    ...]. `entropy` holds 16 bytes per key for the ids. They are cut as Bundles of at most 128 keys; one Allocate for
    each goes to the neighbour's outbox.
    """

    association: Association
    count: int
    size_bits: int
    entropy: bytes
    generation: int | None = None  # None: the one that is supplied


class KeepDecoys(Request, frozen=True):
    """End the decoys of an association that are old, and cut `count` that are missing. They wait for the peer's answer.

    PolicyDeniedError if the policy asks for fewer; OutOfStockError if the usable half holds less. Answer:
    tuple[KeyId, ...]. `entropy` as for AllocateKeys.
    """

    association: Association
    count: int
    size_bits: int
    entropy: bytes


class AcceptAllocation(Request, frozen=True):
    """Cut the same keys on the peer's word. Idempotent by request number. Answer: str, an allocation outcome."""

    link: str
    allocate: Allocate


class AllocationAnswered(Request, frozen=True):
    """The peer's answer: accepted keys become READY and go to the application's outbox, refused ones are burnt.

    Answer: tuple[KeyId, ...], now READY here.
    """

    link: str
    request: int
    outcome: str


class NeighbourOutbox(Request, frozen=True):
    """What the peer must still journal, oldest first, after entry `after`. Answer: tuple[OutboxEntry, ...]."""

    link: str
    limit: int = 64
    after: int = -1


class OutboxEntry(msgspec.Struct, frozen=True):
    """One durable message to the neighbour (an allocation, delivery or revocation), re-sent until journalled there."""

    number: int
    message: Any


class OutboxCleared(Request, frozen=True):
    """The peer has journalled these. Answer: None."""

    link: str
    numbers: tuple[int, ...]


class ApplicationOutbox(Request, frozen=True):
    """Keys READY for an application and not yet acknowledged, oldest first, after `after`.

    Those of one association alone, or of that and one size, if these are given. Keys that the policy withholds now are
    left out. Answer: tuple[Delivery, ...].
    """

    application: str
    after: int = 0
    limit: int = 256
    association: Association | None = None
    size_bits: int | None = None


class Delivery(msgspec.Struct, frozen=True):
    """A row of an application's outbox: it names the key; the key is unsealed when sent."""

    number: int  # rising
    key_id: KeyId
    association: Association
    size_bits: int
    generation: int = 1


class Caller(msgspec.Struct, frozen=True):
    """Who asks over the network, for the leaf of what is refused to them: their key's fingerprint, and from where."""

    fingerprint: str = "unknown"
    source: str = "unknown"


class OpenKey(Request, frozen=True):
    """Unseal one key for its application. Answer: SecretBuffer.

    VaultError unless READY; PolicyDeniedError if the policy withholds it; AccessDeniedError, journalled, if it is
    meant for another application.
    """

    key_id: KeyId
    application: str


class OpenKeys(Request, frozen=True):
    """Unseal up to 128 keys of one size and generation for their application. Answer: OpenedKeys.

    Keys that are not READY, or of a generation that is not supplied, unknown ones, and those that the policy withholds,
    are left out; VaultError if none is left, PolicyDeniedError if the policy withholds all that are READY.
    AccessDeniedError, journalled, if any is meant for another application. VaultDamagedError if some do not unseal:
    those are set aside, ask again. Without the peer only keys of classes that do not wait for it are opened.
    """

    key_ids: tuple[KeyId, ...]
    application: str
    peer_reachable: bool = True
    caller: Caller = Caller()


class OpenedKeys(msgspec.Struct, frozen=True):
    """Answer to OpenKeys: the keys that were opened, their material side by side in this order."""

    key_ids: tuple[KeyId, ...]
    size_bits: int
    material: SecretBuffer
    generation: int = 1


class KeysDelivered(Request, frozen=True):
    """The application acknowledged: state, leaf, notice to the neighbour; the sealed key is destroyed. Idempotent.

    Answer: int, how many were new.
    """

    application: str
    key_ids: tuple[KeyId, ...]
    details: dict[str, str | int | float | bool | None]


class PeerDelivered(Request, frozen=True):
    """The application at the far end acknowledged. Idempotent. Answer: int, how many were new."""

    link: str
    application: str
    key_ids: tuple[KeyId, ...]


class Outstanding(Request, frozen=True):
    """Keys of an association that this end allocated and that both applications have not yet acknowledged: int."""

    association: Association


# --- policy --------------------------------------------------------------------------------------------------------


class CurrentPolicy(Request, frozen=True):
    """The policy in force. Answer: InForce. VaultDamagedError if the chain of versions is not what was applied."""


class InForce(msgspec.Struct, frozen=True):
    """A version of the policy: its number, the digest of its record, and what it says. Version 0 is built in."""

    number: int
    digest: bytes
    document: Document
    text: bytes


class ShowPolicy(Request, frozen=True):
    """One version of the policy; None: the one in force. Answer: PolicyVersion. PolicyError if there is none."""

    number: int | None = None


class PolicyVersion(msgspec.Struct, frozen=True):
    """Answer to ShowPolicy: a record of the chain with its approvals, and what the next one needs."""

    node: str
    policy: InForce
    previous: bytes
    repeats: int | None
    applied_ns: int | None
    applied_by: str | None
    approvals: tuple[Approved, ...]
    newest: int
    newest_digest: bytes
    withheld: dict[str, int]  # rule -> keys that it kept from being released since the start, at each attempt


class ApplyPolicy(Request, frozen=True):
    """Make a document the next version of the policy, in force from the next request on. Answer: PolicyVersion.

    `repeats` is the version whose document it is, in place of `document`: a rollback. `people` are the operators that
    the node knows, `algorithms` the ids. PolicyError, ApprovalError, journalled, if it cannot be.
    """

    document: bytes
    approvals: tuple[bytes, ...]
    people: tuple[Person, ...]
    algorithms: tuple[str, ...]
    by: str
    repeats: int | None = None


class ExplainPolicy(Request, frozen=True):
    """How the policy in force decides on a case. Answer: Explanation."""

    association: Association
    size_bits: int
    key_class: str | None = None


class Explanation(msgspec.Struct, frozen=True):
    """Answer to ExplainPolicy."""

    policy: int
    decision: Decision
    clearance: str
    quotas: Application | None
    configured: bool  # whether the configuration has named the association


# --- alarms --------------------------------------------------------------------------------------------------------


class RaiseAlarm(Request, frozen=True):
    """Note so many more occurrences of an alarm, with a leaf. Another `first_ns` than the stored one begins a new
    episode: raised, and counted from these. Times are the wall clock's, in nanoseconds. Answer: None.
    """

    code: str
    about: str
    severity: str
    detail: str
    first_ns: int
    last_ns: int
    occurrences: int


class AcknowledgeAlarm(Request, frozen=True):
    """A person has seen this episode of an alarm. Answer: bool, whether that is new."""

    code: str
    about: str
    first_ns: int
    by: str
    at_ns: int


class ClearAlarm(Request, frozen=True):
    """This episode of an alarm is over. Answer: bool, whether that is new."""

    code: str
    about: str
    first_ns: int
    at_ns: int


class StoredAlarm(msgspec.Struct, frozen=True):
    """One alarm, as it was stored last."""

    code: str
    about: str
    severity: str
    detail: str
    first_ns: int
    last_ns: int
    count: int
    state: str  # "raised", "acknowledged", "cleared"
    acknowledged_by: str | None
    acknowledged_ns: int | None
    cleared_ns: int | None


class Alarms(Request, frozen=True):
    """Every stored alarm, the oldest episode first. Answer: tuple[StoredAlarm, ...]."""


# --- audit and status ----------------------------------------------------------------------------------------------


class RecordEvent(Request, frozen=True):
    """One audit leaf: links, devices, access, alarms, the node itself. Answer: int, the leaf's index."""

    event: AnyEvent  # its topic_sequence is given by the vault


class RecordEvents(Request, frozen=True):
    """Several audit leaves in their order, at least one. Answer: int, the first one's index."""

    events: tuple[AnyEvent, ...]


class LeavesAfter(Request, frozen=True):
    """Leaves of the audit log from a position on, as text. Answer: tuple[tuple[int, str], ...], position and leaf."""

    position: int
    limit: int = 256


class LogHead(Request, frozen=True):
    """Where the audit log stands. Answer: LogState."""


class LogState(msgspec.Struct, frozen=True):
    """Answer to LogHead."""

    size: int  # leaves
    topics: dict[str, int]  # topic -> newest number
    checkpoints: int
    checkpoint_size: int  # of the newest; 0 if there is none
    note: str  # the newest; empty if there is none


class CheckpointsAfter(Request, frozen=True):
    """Signed notes of logs larger than `size`. Answer: tuple[tuple[int, int, str], ...], number from 1, size, note."""

    size: int
    limit: int = 256


class VerifyLog(Request, frozen=True):
    """Read more entries of the log that was there on opening, in their order. Answer: tuple[int, int], read and in all.

    VaultDamagedError, journalled, if an entry is not what was written.
    """

    limit: int = 512


class EventsAfter(Request, frozen=True):
    """Events of the audit log from a position on. Answer: tuple[tuple[int, AnyEvent], ...], position and event."""

    position: int
    limit: int = 256


class Checkpoint(Request, frozen=True):
    """Sign a checkpoint of the log now. Answer: str, the note."""


COMMIT_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.5)


class Commits(msgspec.Struct, frozen=True):
    """The groups of requests that changed something since the start, and how long their commits took, sync included."""

    groups: int = 0
    requests: int = 0
    seconds: float = 0.0
    within: tuple[int, ...] = (0,) * len(COMMIT_BOUNDS_S)  # groups whose commit took at most the bound, for each bound

    def and_one(self, requests: int, seconds: float) -> "Commits":
        """With one group more."""
        return Commits(
            self.groups + 1,
            self.requests + requests,
            self.seconds + seconds,
            tuple(n + (seconds <= bound) for n, bound in zip(self.within, COMMIT_BOUNDS_S, strict=True)),
        )


class VaultStatus(msgspec.Struct, frozen=True):
    """Answer to Status."""

    keys: dict[str, int]  # state -> count
    keys_delivered_both: int
    stock_bits_own: dict[str, int]  # link -> bits usable in this end's half
    stock_bits_peer: dict[str, int]
    batches: dict[str, int]
    pads: dict[str, int]  # link -> pads left for sending
    application_outbox: int
    neighbour_outbox: int
    leaves: int
    commits: Commits = Commits()
    scrub_running: int = 0  # 1 while a pass over all records is made
    scrub_rows: int = 0  # looked at by it, or by the last one
    scrub_damaged: int = 0
    erasures_waiting: int = 0  # data keys that are deleted and not yet searched for in the files


class Status(Request, frozen=True):
    """Counts. Answer: VaultStatus."""


class Alive(Request, frozen=True):
    """Changes nothing. Answer: None, once the vault has come to it and its file has answered."""


class PadsLeft(Request, frozen=True):
    """Pads left for sending on a link. Answer: int."""

    link: str
