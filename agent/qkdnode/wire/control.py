"""Messages between an operator's command and the agent, over the control socket.

A frame is its length (4 bytes, big-endian) and a MessagePack body: at most 64 KiB from an operator, 256 KiB from an
agent. The agent speaks first, by a Challenge or a Closed. Each Signed carries one request, encoded by itself and signed
together with the challenge, the operator, the asker's uid and a rising counter; one Done or Refused of the same counter
answers it. docs/control.md is the description for people.
"""

import struct
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from qkdnode.errors import LocalProtocolError, RemoteProtocolError
from qkdnode.wire.messages import U32, U64, Block16, Block32, Message, Name

VERSION = 1
LENGTH = struct.Struct(">I")
MAX_ASKED_BYTES = 64 * 1024  # of a frame from an operator
MAX_ANSWERED_BYTES = 256 * 1024  # of a frame from an agent
MAX_REQUEST_BYTES = 60 * 1024
SIGNATURE_BYTES = 64
PAGE_MAX = 256
LOG_PAGE_BYTES = 160 * 1024  # of leaves and notes in a page of the audit log, before they are encoded

Code = Annotated[str, Meta(min_length=1, max_length=32)]
Text = Annotated[str, Meta(max_length=1024)]
Subject = Annotated[str, Meta(min_length=1, max_length=128)]
ServiceName = Annotated[str, Meta(min_length=1, max_length=256)]
Limit = Annotated[int, Meta(ge=1, le=PAGE_MAX)]
T = TypeVar("T")


# --- the conversation ----------------------------------------------------------------------------------------------


class Challenge(Message, frozen=True, tag=1):
    """Agent, first: whose agent it is, and what every signature of this connection covers."""

    version: U32
    node: Name
    nonce: Block32


class Signed(Message, frozen=True, tag=2):
    """Operator: one request. `counter` is 1 for the first of a connection, and one more each time."""

    version: U32
    operator: Name
    counter: U32
    request: Annotated[bytes, Meta(max_length=MAX_REQUEST_BYTES)]
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class Done(Message, frozen=True, tag=3):
    """Agent: it was let by `rule` and done; `answer` is what belongs to the request."""

    counter: U32
    rule: Name
    answer: bytes


class Refused(Message, frozen=True, tag=4):
    """Agent: it was not done. `code` as of the errors; `rule` is empty if no rule was asked."""

    counter: U32
    code: Code
    rule: Annotated[str, Meta(max_length=31)]
    reason: Text


class Closed(Message, frozen=True, tag=5):
    """Agent, last: the connection ends, and why."""

    code: Code
    reason: Text


FromAgent = Challenge | Done | Refused | Closed


# --- requests ------------------------------------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="ask"):
    """Base of all requests: a MessagePack map whose `ask` names it."""


class Status(Request, frozen=True, kw_only=True, tag="status"):
    """The node at a glance. Answer: NodeStatus."""


class Links(Request, frozen=True, kw_only=True, tag="links"):
    """Answer: LinkList."""


class Devices(Request, frozen=True, kw_only=True, tag="devices"):
    """Answer: DeviceList."""


class Alarms(Request, frozen=True, kw_only=True, tag="alarms"):
    """A page of alarms, oldest first, after the first `after` of them. Answer: AlarmPage."""

    after: U32 = 0
    limit: Limit = PAGE_MAX


class Acknowledge(Request, frozen=True, kw_only=True, tag="alarms ack"):
    """The operator has seen an alarm and answers for it. Answer: Acted."""

    code: Code
    subject: Subject


class ListKeys(Request, frozen=True, kw_only=True, tag="keys list"):
    """A page of keys, in the order of their allocation, after `after`; filters that are not given let all pass.

    Answer: KeyPage.
    """

    after: U64 = 0
    limit: Limit = PAGE_MAX
    local: Name | None = None
    remote: Name | None = None
    link: Name | None = None
    state: Code | None = None
    service: ServiceName | None = None  # of either application


class ShowKey(Request, frozen=True, kw_only=True, tag="keys show"):
    """What is known of one key, but its bits. Answer: KeyEntry."""

    key_id: Block16


class ShowLineage(Request, frozen=True, kw_only=True, tag="keys lineage"):
    """Where one key comes from and what became of it. Answer: KeyLineage."""

    key_id: Block16


class RevokeKeys(Request, frozen=True, kw_only=True, tag="keys revoke"):
    """Take keys out of use at both ends, for a reason of KMIP. Answer: RevokedKeys."""

    key_ids: Annotated[tuple[Block16, ...], Meta(min_length=1, max_length=PAGE_MAX)]
    reason: Code


class CompromiseScope(Request, frozen=True, kw_only=True, tag="compromise"):
    """Others may know keys: release none of them, at either end. Idempotent. Answer: ScopeList, of what it reaches."""

    scope: Code  # link, peer, device, application, time-window
    value: Subject | None = None  # its name; of a time window the link, none: all
    reason: Code
    from_ns: U64 = 0  # of a time window, on the node's wall clock
    until_ns: U64 = 2**63 - 1


class Scopes(Request, frozen=True, kw_only=True, tag="compromise list"):
    """What was compromised, and how far the rows are moved. Answer: ScopeList."""


class RotateKeys(Request, frozen=True, kw_only=True, tag="rotate"):
    """Rotate associations to their next generation of keys; all, or those that are chosen. Answer: RotationList."""

    local: Name | None = None
    remote: Name | None = None
    link: Name | None = None
    note: Annotated[str, Meta(max_length=200)] = ""  # why, for the log


class GiveUpRotations(Request, frozen=True, kw_only=True, tag="rotate give-up"):
    """Give up the rotations that no end has cut over to. Answer: RotationList, of what they were about."""

    local: Name | None = None
    remote: Name | None = None
    link: Name | None = None


class Rotations(Request, frozen=True, kw_only=True, tag="rotate list"):
    """A page of how associations stand, after the first `after`. Answer: RotationList."""

    local: Name | None = None
    remote: Name | None = None
    link: Name | None = None
    after: U32 = 0
    limit: Limit = PAGE_MAX


class CarryOut(Request, frozen=True, kw_only=True, tag="rotate export"):
    """Write what waits for the other end of an association, whose link is cut, into a file for a courier.

    A rotation is begun if none is on the way and `begin` is so. `again`: the last file once more. Answer: CourierFile.
    """

    local: Name
    remote: Name
    link: Name
    keys: Annotated[int, Meta(ge=1, le=256)] = 32
    size_bits: Annotated[int, Meta(ge=8, le=65536, multiple_of=8)] = 256
    begin: bool = True
    again: bool = False


class CarryIn(Request, frozen=True, kw_only=True, tag="rotate import"):
    """Take what a file of the other end says, as two people have approved. Answer: CarriedIn."""

    file: Annotated[bytes, Meta(max_length=40 * 1024)]
    approvals: Annotated[tuple[Annotated[bytes, Meta(max_length=4096)], ...], Meta(max_length=4)]


class RotationShapes(Request, frozen=True, kw_only=True, tag="rotate shapes"):
    """What a rehearsal of a rotation is made from, after the first `after`: counts, no key. Answer: ShapeList."""

    local: Name | None = None
    remote: Name | None = None
    link: Name | None = None
    after: U32 = 0


class Scrubbing(Request, frozen=True, kw_only=True, tag="keys scrub"):
    """How far the pass over all stored records is. Answer: ScrubStatus."""


class ScrubNow(Request, frozen=True, kw_only=True, tag="keys scrub now"):
    """Begin a pass over all stored records, unless one is running. Answer: ScrubStatus."""


class Epochs(Request, frozen=True, kw_only=True, tag="keys epochs"):
    """Key-encryption keys, and how far data keys are wrapped anew. Answer: EpochList."""


class RewrapKeys(Request, frozen=True, kw_only=True, tag="keys rewrap"):
    """Wrap the data keys of all that is stored anew: by an algorithm or, to "epoch", by today's key.

    Answer: EpochList.
    """

    to: Code


class DestructionReceipt(Request, frozen=True, kw_only=True, tag="keys receipt"):
    """What shows a stranger that a key was destroyed here. Answer: Receipt."""

    key_id: Block16


class ShowProvenance(Request, frozen=True, kw_only=True, tag="keys provenance"):
    """How a Batch was made, signed, for a stranger; it is named by its id, or by a key of it. Answer: Receipt."""

    batch: Annotated[str, Meta(max_length=64)] | None = None
    link: Name | None = None
    key_id: Block16 | None = None


class Decoys(Request, frozen=True, kw_only=True, tag="decoys"):
    """How many decoys there are. Answer: DecoyList."""


class RenewDecoys(Request, frozen=True, kw_only=True, tag="decoys renew"):
    """Destroy all decoys at both ends, and make new ones. Answer: Acted."""


class Pause(Request, frozen=True, kw_only=True, tag="pause"):
    """Distil no more on a link until `Resume`, restarts included. Answer: Acted."""

    link: Name


class Resume(Request, frozen=True, kw_only=True, tag="resume"):
    """Distil again on a paused link. Answer: Acted."""

    link: Name


class Shutdown(Request, frozen=True, kw_only=True, tag="shutdown"):
    """Stop the agent in order. Answer: Acted, before it begins."""


class Reload(Request, frozen=True, kw_only=True, tag="reload"):
    """Read the configuration anew. Answer: Reloaded."""


class ExportBegin(Request, frozen=True, kw_only=True, tag="audit begin"):
    """Sign a checkpoint and fix what is exported: all leaves under it. Answer: LogHead."""


class ExportPage(Request, frozen=True, kw_only=True, tag="audit page"):
    """Leaves from a position on, below `size` of the LogHead, as many as fit. Answer: LogPage."""

    position: U64
    size: U64


class ProveEntry(Request, frozen=True, kw_only=True, tag="audit prove"):
    """That one entry is in the log, for a stranger. Answer: Receipt."""

    position: U64


class PolicyShow(Request, frozen=True, kw_only=True, tag="policy show"):
    """One version of the policy; none given: the one in force. Answer: PolicyShown."""

    number: U64 | None = None


class PolicyExplain(Request, frozen=True, kw_only=True, tag="policy explain"):
    """How the policy in force decides on a case now; without a class: which it gives. Answer: PolicyExplained."""

    application: Name
    remote: Name
    link: Name
    size_bits: Annotated[int, Meta(ge=8, le=65536, multiple_of=8)]
    key_class: Name | None = None


class PolicyApply(Request, frozen=True, kw_only=True, tag="policy apply"):
    """Make a document the next version of the policy: this one, or that of the version which it repeats.

    `approvals` are the files that two people have signed. Answer: PolicyShown, of the new version.
    """

    document: Annotated[bytes, Meta(max_length=48 * 1024)] = b""
    repeats: U64 | None = None
    approvals: Annotated[tuple[Annotated[bytes, Meta(max_length=4096)], ...], Meta(max_length=8)]


class Assets(Request, frozen=True, kw_only=True, tag="inventory"):
    """A page of what the node consists of, after the first `after`; of one kind, or all. Answer: AssetPage."""

    after: U32 = 0
    limit: Limit = PAGE_MAX
    kind: Code | None = None


class Algorithms(Request, frozen=True, kw_only=True, tag="inventory algorithms"):
    """The algorithm registry of the node on the day that counts. Answer: AlgorithmList."""


class Comparisons(Request, frozen=True, kw_only=True, tag="inventory compared"):
    """How what each link, or one, holds compares with the far end, as it was looked at last. Answer: ComparisonList."""

    link: Name | None = None


class Reconcile(Request, frozen=True, kw_only=True, tag="inventory reconcile"):
    """Compare each link, or one, with its far end now; it goes on after the answer. Answer: ComparisonList."""

    link: Name | None = None


class ClockShow(Request, frozen=True, kw_only=True, tag="clock"):
    """The wall clock and the time that timers of keys are held to. Answer: ClockStatus."""


class ClockConfirm(Request, frozen=True, kw_only=True, tag="clock confirm"):
    """The wall clock is right up to this time: timers may follow it so far. Answer: ClockStatus."""

    until_ns: U64


class Due(Request, frozen=True, kw_only=True, tag="keys due"):
    """What timers are to end next, class by class, and what is held. Answer: DueList."""


AnyRequest: TypeAlias = (
    Status
    | Links
    | Devices
    | Alarms
    | Acknowledge
    | ListKeys
    | ShowKey
    | ShowLineage
    | RevokeKeys
    | CompromiseScope
    | Scopes
    | RotateKeys
    | GiveUpRotations
    | CarryOut
    | CarryIn
    | Rotations
    | RotationShapes
    | Scrubbing
    | ScrubNow
    | Epochs
    | RewrapKeys
    | DestructionReceipt
    | ShowProvenance
    | Decoys
    | RenewDecoys
    | Pause
    | Resume
    | Shutdown
    | Reload
    | ExportBegin
    | ExportPage
    | ProveEntry
    | PolicyShow
    | PolicyExplain
    | PolicyApply
    | Assets
    | Algorithms
    | Comparisons
    | Reconcile
    | ClockShow
    | ClockConfirm
    | Due
)
REQUESTS: tuple[type[Request], ...] = (
    Status, Links, Devices, Alarms, Acknowledge, ListKeys, ShowKey, ShowLineage, RevokeKeys, CompromiseScope, Scopes,
    RotateKeys, GiveUpRotations, Rotations, CarryOut, CarryIn, RotationShapes, Scrubbing, ScrubNow, Epochs, RewrapKeys,
    DestructionReceipt, ShowProvenance, Decoys, RenewDecoys, Pause, Resume, Shutdown, Reload, ExportBegin, ExportPage,
    ProveEntry, PolicyShow, PolicyExplain, PolicyApply, Assets, Algorithms, ClockShow, ClockConfirm, Due, Comparisons,
    Reconcile,
)  # fmt: skip


# --- answers -------------------------------------------------------------------------------------------------------


class Answer(msgspec.Struct, frozen=True):
    """Base of all answers: a MessagePack map. A reader ignores fields that it does not know."""


class LinkStatus(Answer, frozen=True, kw_only=True):
    """One link. Rates are over the last minutes, None where nothing was measured yet."""

    name: str
    peer: str
    role: str
    state: str  # DOWN, OPEN, PAUSED, STARVED, QUARANTINED, NO_ENTROPY, FAILED
    paused_by: str | None = None  # an operator, or "the far end"
    paused_ns: int | None = None  # wall clock
    sessions: int = 0
    qber: float | None = None  # of corrected bits; else of the test basis
    sifted_bps: float | None = None
    secret_bps: float | None = None  # SKR: stock and refill
    stock_bits: int | None = None  # that this end may allocate
    stock_bits_peer: int | None = None
    reserve_bits: int | None = None  # authentication key left for sending
    reserve_days: float | None = None  # at the present rate of spending, without refills
    batches_ready: int = 0
    discards: dict[str, int] = {}


class DeviceStatus(Answer, frozen=True, kw_only=True):
    """One QKD module or QRNG."""

    serial: str
    kind: str  # "transmitter", "receiver", "qrng"
    link: str | None = None
    state: str  # "streaming", "closed"
    healthy: bool
    openings: int
    bytes_read: int
    stalls: int
    detail: str = ""


class NodeStatus(Answer, frozen=True, kw_only=True):
    """The node at a glance."""

    node: str
    version: str
    state: str  # "running", "stopping"
    started_ns: int  # wall clock
    now_ns: int
    memory: str  # how key material is locked
    entropy_healthy: bool
    links: tuple[LinkStatus, ...]
    devices: tuple[DeviceStatus, ...]
    alarms: tuple[dict[str, Any], ...]  # those not yet acknowledged or cleared, the newest 64
    keys: dict[str, int] | None = None  # by state; None while the vault does not answer
    keys_delivered_both: int | None = None
    leaves: int | None = None


class LinkList(Answer, frozen=True, kw_only=True):
    """Every link."""

    links: tuple[LinkStatus, ...]


class DeviceList(Answer, frozen=True, kw_only=True):
    """Every device."""

    devices: tuple[DeviceStatus, ...]


class AlarmPage(Answer, frozen=True, kw_only=True):
    """Alarms, and where the next page begins; None: there are no more."""

    alarms: tuple[dict[str, Any], ...]
    next: int | None


class KeyEntry(Answer, frozen=True, kw_only=True):
    """What is known of a key, but its bits. Times are wall clock."""

    number: int  # rising with allocation
    key_id: str  # UUID
    state: str  # its stage at this node
    kmip_state: str
    local: str
    remote: str
    link: str
    key_class: str
    policy: int  # the version of the policy that it was cut under
    size_bits: int
    batch: str
    half: str
    offset_bits: int
    allocated_ns: int
    ready_ns: int | None
    delivered_ns: int | None  # here
    delivered_remote_ns: int | None
    ended_ns: int | None


class LineageStep(Answer, frozen=True, kw_only=True):
    """One leaf of the audit log about a key, or about the Batch that it was cut from."""

    position: int
    time_ns: int
    happened: str
    outcome: str
    details: dict[str, Any]


class KeyLineage(Answer, frozen=True, kw_only=True):
    """A key from the devices whose photons it is made of to its end."""

    key: KeyEntry
    devices: tuple[str, ...]  # serials, this end's
    session: str
    method: str
    booking: str
    family: str
    qber_z: float
    eps_sec: float
    eps_cor: float
    disclosed_bits: int
    software: str | None  # that made the Batch
    batch_state: str
    made_ns: int
    settled_ns: int | None
    services: tuple[str, ...]  # of the application here
    remote_services: tuple[str, ...]
    scope: int | None  # the compromise that reaches it
    steps: tuple[LineageStep, ...]


class RevokedKeys(Answer, frozen=True, kw_only=True):
    """What became of the keys that were to be revoked, by their ids."""

    revoked: tuple[str, ...]
    already: tuple[str, ...]  # out of use before
    unknown: tuple[str, ...]


class ScopeEntry(Answer, frozen=True, kw_only=True):
    """A range of Batches of one link whose keys are released no more."""

    number: int
    link: str
    first: str
    last: str
    application: str | None  # at either end; None: all
    reason: str
    by: str  # an operator, or the neighbour's node
    made_ns: int
    keys: int  # moved so far
    moving: bool
    confirmed: bool  # by the neighbour


class ScopeList(Answer, frozen=True, kw_only=True):
    """Scopes, the oldest first."""

    scopes: tuple[ScopeEntry, ...]


class RotationEntry(Answer, frozen=True, kw_only=True):
    """Which generation of an association's keys is supplied, and the rotation to the next if there is one."""

    local: str
    remote: str
    link: str
    generation: int  # that is supplied, or was before the cut
    number: int | None  # that it is rotated to
    phase: str
    peer: str  # the other end's phase, as heard
    reason: str  # of the rotation on the way, or of the last
    by: str
    since_ns: int | None  # the generation is supplied; null: from the beginning
    begun_ns: int | None
    phase_ns: int | None
    prepared: int  # keys of the next generation that this end has cut and that both hold
    result: str  # of the last one: done, or why it was given up
    moving: bool  # rows of ended generations are left to be moved
    ended: int  # keys that were moved


class RotationList(Answer, frozen=True, kw_only=True):
    """A page of associations, and the `after` of the next."""

    rotations: tuple[RotationEntry, ...]
    next: int | None = None


class CourierFile(Answer, frozen=True, kw_only=True):
    """A file to be carried: its number, how many messages it holds, how many keys were cut for the next generation."""

    file: bytes
    number: int
    messages: int
    cut: int
    rotation: RotationEntry


class CarriedIn(Answer, frozen=True, kw_only=True):
    """What was imported: `again` if it had been already; messages that were followed, that are left until a later file,
    and that wait here for the other end."""

    number: int
    again: bool
    messages: int
    left: int
    waits: int
    rotation: RotationEntry


class ShapeEntry(Answer, frozen=True, kw_only=True):
    """The shape of an association's keys and stock, and its load of late: counts alone.

    The load has as many numbers in each list: keys in each of the last minutes, the oldest first.
    """

    local: str
    remote: str
    link: str
    role: str
    link_state: str
    connected: bool  # a session with the neighbour is open
    phase: str
    generation: int  # that is supplied
    key_class: str
    size_bits: int
    waiting_here: int  # keys of it with bits, cut here
    waiting_there: int  # and by the other end
    all_counted: bool  # false: there are more
    stock_here: int  # bits of this end's half, for all associations of the link
    stock_there: int
    batches: int  # in which they lie
    credit_here: int | None  # of the subscription here; null: the application is not connected
    credit_there: int | None  # of the one at the far end
    room: int  # keys that quotas let be cut
    allowed: bool  # keys may be cut now
    rule: str  # that says so, or limits the room
    reason: str
    held: bool  # a legal hold: nothing is destroyed
    goes_without: bool  # an application that is away holds up a rotation for a minute at most
    minutes: int  # of the load that were read
    cut_here: tuple[int, ...]
    cut_there: tuple[int, ...]
    taken_here: tuple[int, ...]
    taken_there: tuple[int, ...]


class ShapeList(Answer, frozen=True, kw_only=True):
    """A page of shapes, and the `after` of the next."""

    shapes: tuple[ShapeEntry, ...]
    next: int | None = None


class ScrubStatus(Answer, frozen=True, kw_only=True):
    """The pass over all stored records: the one that is running, or the last; zeros before the first."""

    number: int  # position of its first entry in the log
    running: bool
    stage: str  # the table that is looked at
    share: float  # of that table, about
    rows: int
    keys: int
    ciphertexts: int  # unsealed
    damaged: int
    begun_ns: int
    ended_ns: int | None


class KekEntry(Answer, frozen=True, kw_only=True):
    """A key-encryption key: one for each link, day and algorithm."""

    number: int
    link: str
    epoch: int  # days since 1970
    algorithm: str
    state: str  # present, deleted (the proof is to come), destroyed
    rows: int  # Bundles, chunks of stock and segments with data keys under it
    ended_ns: int | None


class RewrapStatus(Answer, frozen=True, kw_only=True):
    """An order to wrap data keys anew."""

    number: int
    algorithm: str
    epoch: int  # data keys under a key of an earlier one move; 0: whatever the epoch
    state: str  # running, finished
    rows: int  # that were to move at first
    left: int  # those that were set aside as damaged stay
    by: str
    made_ns: int
    ended_ns: int | None


class EpochList(Answer, frozen=True, kw_only=True):
    """Key-encryption keys, those that ended first (the newest 64 of them), and the newest order to wrap anew."""

    keks: tuple[KekEntry, ...]
    rewrap: RewrapStatus | None


class ClockStatus(Answer, frozen=True, kw_only=True):
    """Both times. `withheld_ns`: so far the wall clock is ahead, and not believed; `behind_ns`: so far it is behind."""

    wall_ns: int
    trusted_ns: int
    withheld_ns: int
    behind_ns: int


class DueEntry(Answer, frozen=True, kw_only=True):
    """What of one class's keys a timer ends next: the Bundle that is due first, on trusted time."""

    key_class: str
    timer: str  # pre-active, active, deactivated, record
    rule: str  # the term
    due_ns: int | None  # None: the class sets no such term
    bundles: int  # that are due, counted up to 1,000
    held: bool  # by the class's legal hold: nothing of it is destroyed


class DueList(Answer, frozen=True, kw_only=True):
    """Timers of every class of which there is something to end."""

    trusted_ns: int
    timers: tuple[DueEntry, ...]


class Receipt(Answer, frozen=True, kw_only=True):
    """A receipt: of a destroyed key, as qkdnode.audit.receipt verifies it, or of an entry, as the verifier does."""

    receipt: str


class DecoyEntry(Answer, frozen=True, kw_only=True):
    """The decoys of an association that hold bits here."""

    local: str
    remote: str
    link: str
    key_class: str
    size_bits: int
    keys: int
    oldest_ns: int


class DecoyList(Answer, frozen=True, kw_only=True):
    """Answer to Decoys."""

    decoys: tuple[DecoyEntry, ...]


class KeyPage(Answer, frozen=True, kw_only=True):
    """Keys, and the `after` of the next page; None: there are no more."""

    keys: tuple[KeyEntry, ...]
    next: int | None


class Acted(Answer, frozen=True, kw_only=True):
    """It was done, or was so already."""

    changed: bool
    detail: str


class Reloaded(Answer, frozen=True, kw_only=True):
    """What of the configuration was changed at once, and what needs a restart."""

    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


class LogHead(Answer, frozen=True, kw_only=True):
    """Whose log it is, and the signed checkpoint under which it is exported."""

    origin: str
    public_key: bytes
    size: int
    note: str


class LogPage(Answer, frozen=True, kw_only=True):
    """Leaves in order, each the text of one event, and the checkpoints that stand after leaf size - 1 for each size."""

    position: int
    leaves: tuple[str, ...]
    checkpoints: tuple[tuple[int, str], ...]


class PolicyApproval(Answer, frozen=True, kw_only=True):
    """Who approved a version, and in which role."""

    operator: str
    role: str
    expires_ns: int


class PolicyShown(Answer, frozen=True, kw_only=True):
    """One version of the policy, and what the next one needs: number `newest` + 1, predecessor `newest_digest`."""

    node: str
    number: int  # 0: built in
    in_force: bool
    digest: str  # of the record, hexadecimal; zeros of version 0
    previous: str
    document_digest: str
    document: str  # TOML
    repeats: int | None
    applied_ns: int | None
    applied_by: str | None
    approvals: tuple[PolicyApproval, ...]
    newest: int
    newest_digest: str
    withheld: dict[str, int]  # rule -> keys that were not released when they were asked for, since the start


class PolicyExplained(Answer, frozen=True, kw_only=True):
    """A decision, the rule that made it, and all terms that go with it."""

    policy: int
    allowed: bool
    rule: str
    reason: str
    key_class: str | None
    terms: dict[str, Any] | None
    clearance: str
    quotas: dict[str, Any] | None
    configured: bool  # whether the configuration names the association: without that there is no key either


class Asset(Answer, frozen=True, kw_only=True):
    """Something that the node consists of. What a device says of itself is escaped, and cut to its bound."""

    kind: str
    name: str
    version: str | None = None  # of a device: its firmware
    digest: str | None = None  # SHA-256
    licence: str | None = None
    owner: str = "unassigned"
    classification: str = "unclassified"
    details: dict[str, str] = {}


class AssetPage(Answer, frozen=True, kw_only=True):
    """Assets by kind and name, and where the next page begins; None: there are no more."""

    assets: tuple[Asset, ...]
    next: int | None
    without_asset: tuple[str, ...]  # tables of the configuration that fit nothing


class AlgorithmEntry(Answer, frozen=True, kw_only=True):
    """One algorithm of the registry, as the node's configuration has tightened it."""

    id: str
    primitive: str
    parameters: str
    provider: str
    functions: tuple[str, ...]
    status: str  # on the day
    deprecated_from: str | None
    disallowed_from: str | None
    replacement: str | None
    uses: tuple[str, ...]  # that this node makes of it
    for_keys: bool  # applications may use keys for it
    key_bits: tuple[int, ...]
    classical_bits: int | None
    quantum_level: int | None
    oid: str | None


class AlgorithmList(Answer, frozen=True, kw_only=True):
    """The registry, and how many keys there are, which no key is named in."""

    day: str  # the latest that the node has seen
    algorithms: tuple[AlgorithmEntry, ...]
    key_classes: dict[str, tuple[str, ...]]  # of the policy in force, with the algorithms of each; none: any
    keys: dict[str, int] | None  # by stage; None while the vault does not answer


class DoubtEntry(Answer, frozen=True, kw_only=True):
    """A Bundle of keys, or a stretch of stock, that the two ends do not hold alike."""

    batch: str
    half: str
    offset_bits: int
    verdict: str
    rule: str  # what is done about it
    since_ns: int
    looks: int  # how often it was seen
    count: int  # keys, or bits of stock


class ComparisonEntry(Answer, frozen=True, kw_only=True):
    """What both ends of a link hold, compared: the present look at it, or the last one."""

    link: str
    peer: str
    connected: bool
    looks: int  # since the start of the agent
    running: bool
    ended_s: float | None  # ago; None: it has not ended yet
    root_here: str  # of all that is held; of no bit of a key
    root_there: str
    agrees: bool
    failed: str  # why it was given up; empty if it was not
    questions: int
    stretches: int  # that were looked at, since the hashes over them differ
    unsettled: int  # keys and bits about which a message is under way
    found: dict[str, int]  # verdict -> keys; stock -> bits
    rules: dict[str, str]  # what is done about each verdict
    repaired: dict[str, int]  # step -> keys; burnt -> bits
    quarantined: int  # keys of the node
    doubts: tuple[DoubtEntry, ...]  # the first of them
    doubts_in_all: int


class ComparisonList(Answer, frozen=True, kw_only=True):
    """Every link that was asked for."""

    comparisons: tuple[ComparisonEntry, ...]


ANSWERS: dict[type[Request], type[Answer]] = {
    Status: NodeStatus,
    Links: LinkList,
    Devices: DeviceList,
    Alarms: AlarmPage,
    Acknowledge: Acted,
    ListKeys: KeyPage,
    ShowKey: KeyEntry,
    ShowLineage: KeyLineage,
    RevokeKeys: RevokedKeys,
    CompromiseScope: ScopeList,
    Scopes: ScopeList,
    RotateKeys: RotationList,
    GiveUpRotations: RotationList,
    Rotations: RotationList,
    CarryOut: CourierFile,
    CarryIn: CarriedIn,
    RotationShapes: ShapeList,
    Scrubbing: ScrubStatus,
    ScrubNow: ScrubStatus,
    Epochs: EpochList,
    RewrapKeys: EpochList,
    DestructionReceipt: Receipt,
    ShowProvenance: Receipt,
    Decoys: DecoyList,
    RenewDecoys: Acted,
    Pause: Acted,
    Resume: Acted,
    Shutdown: Acted,
    Reload: Reloaded,
    ExportBegin: LogHead,
    ExportPage: LogPage,
    ProveEntry: Receipt,
    PolicyShow: PolicyShown,
    PolicyExplain: PolicyExplained,
    PolicyApply: PolicyShown,
    Assets: AssetPage,
    Algorithms: AlgorithmList,
    Comparisons: ComparisonList,
    Reconcile: ComparisonList,
    ClockShow: ClockStatus,
    ClockConfirm: ClockStatus,
    Due: DueList,
}

_encoder = msgspec.msgpack.Encoder()
_signed: msgspec.msgpack.Decoder[Signed] = msgspec.msgpack.Decoder(Signed)
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_request: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)


def frame(message: Signed | FromAgent) -> bytes:
    """The length and body of a message. LocalProtocolError if it is over the limit of its direction."""
    body = _encoder.encode(message)
    limit = MAX_ASKED_BYTES if isinstance(message, Signed) else MAX_ANSWERED_BYTES
    if len(body) > limit:
        raise LocalProtocolError(f"{type(message).__name__} of {len(body)} bytes is over the limit of {limit}")
    return LENGTH.pack(len(body)) + body


def length_of(header: bytes, limit: int) -> int:
    """The length that a frame's first 4 bytes tell. RemoteProtocolError if it is 0 or over the limit."""
    (length,) = LENGTH.unpack(header)
    if not 0 < length <= limit:
        raise RemoteProtocolError(f"a control frame of {length} bytes; 1 to {limit} are allowed")
    return int(length)


def decode_signed(body: bytes) -> Signed:
    """What came from an operator, not yet verified."""
    return _decode(_signed, body, "frame")


def decode_from_agent(body: bytes) -> FromAgent:
    """What came from an agent."""
    return _decode(_from_agent, body, "frame")


def encode_request(request: Request) -> bytes:
    """The bytes of a request that are signed."""
    return _encoder.encode(request)


def decode_request(data: bytes) -> AnyRequest:
    """A verified request; RemoteProtocolError names what is wrong or unknown in it."""
    return _decode(_request, data, "request")


def encode_answer(answer: Answer) -> bytes:
    """The bytes of an answer."""
    return _encoder.encode(answer)


def decode_answer(request: Request, data: bytes) -> Any:
    """The answer to a request."""
    try:
        return msgspec.msgpack.decode(data, type=ANSWERS[type(request)])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed answer to {type(request).__name__}: {error}") from None


def signing_input(challenge: Challenge, operator: str, uid: int, counter: int, request: bytes) -> bytes:
    """What an operator signs: every field with its length, so that no two lists of fields give the same bytes.

    The nonce ties a signature to one connection, the node's name to one agent, the uid to who the kernel says is
    asking: a signature that somebody relays over a connection of their own does not verify.
    """
    fields = (
        b"qkdnode control request/1",
        challenge.version.to_bytes(4, "big"),
        challenge.node.encode(),
        challenge.nonce,
        operator.encode(),
        uid.to_bytes(8, "big"),
        counter.to_bytes(4, "big"),
        request,
    )
    return b"".join(part for field in fields for part in (len(field).to_bytes(4, "big"), field))


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str) -> T:
    try:
        message = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a ValidationError is a DecodeError
        raise RemoteProtocolError(f"malformed control {what}: {error}") from None
    if _encoder.encode(message) != data:
        raise RemoteProtocolError(f"control {what} not in its canonical encoding")
    return message
