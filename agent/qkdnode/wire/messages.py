"""Every message between the two ends of a link: its fields, who may send it, how it is protected.

Integers are unsigned. Bit strings are packed LSB first. docs/protocol.md is the description for people.
"""

from enum import Enum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from qkdnode.ids import ALICE, BOB, BatchId, PadAddress

U32 = Annotated[int, Meta(ge=0, lt=2**32)]
U64 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=31)]
Block16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Start = Annotated[bytes, Meta(min_length=8, max_length=8)]  # drawn at each start of an agent
Block32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Generation = Annotated[int, Meta(ge=1, lt=2**32)]  # of an association's keys
PerIntensity = Annotated[tuple[U64, ...], Meta(min_length=2, max_length=3)]
KIB, MIB = 1 << 10, 1 << 20


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all bodies."""


class Mark(Message, frozen=True):
    """A position in one direction's half of a segment: the index of the first pad not yet used or seen."""

    segment: BatchId
    index: U32


class PadSpan(Message, frozen=True):
    """Pads [first, end) of the receiver's half of a segment: granted to it for tags, once."""

    segment: BatchId
    first: U32
    end: U32


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What both ends must agree on before they make key; a difference is named field by field."""

    protocol: U32
    link: Name
    slot_rate_hz: U32
    window_slots: U32
    p_z: float
    intensities: tuple[float, ...]
    intensity_probabilities: tuple[float, ...]
    method: Name
    booking: Name
    family: Name
    eps_sec: float
    eps_cor: float
    qber_limit: float
    batch_bits: U32
    batch_max_bits: U32
    dead_slots: U64


class Statement(Message, frozen=True):
    """What an end's vault holds of its link: the other end compares, and neither goes on with an older copy."""

    heard_start: Annotated[bytes, Meta(max_length=8)]  # the receiver's start and session counter admitted last
    heard: U32
    newest: BatchId  # the newest Batch READY at the sender since the pair was provisioned; (0, 0): none
    sending: Annotated[tuple[Mark, ...], Meta(max_length=64)]  # pads reserved by the sender
    seen: Annotated[tuple[Mark, ...], Meta(max_length=64)]  # pads of the receiver that the sender has accepted


class Greeting(Message, frozen=True):
    """First on every connection, under the pair's greeting key: it costs no pad, and grants the peer's.

    One that answers the receiver's own start and counter was made after them: only such a one is believed.
    """

    node: Name
    link: Name
    pair: Annotated[bytes, Meta(max_length=16)]  # id of the pair file that the sender was provisioned from
    start: Start
    counter: U32  # own session counter, strictly rising
    answer_start: Annotated[bytes, Meta(max_length=8)]  # the peer's start and counter that this answers
    answer_to: U32  # 0 asks
    admitted: bool  # a believed Greeting of the peer, and what it says, stands in the sender's vault
    refused: Annotated[str, Meta(max_length=256)]  # why the sender begins no session on what the peer has said
    statement: Statement
    wanted: Annotated[int, Meta(ge=0, le=64)]  # consecutive pads that the sender lacks for its Hello
    granted: Annotated[tuple[PadSpan, ...], Meta(max_length=64)]


class Hello(Message, frozen=True):
    """Opens the session that both counters name; tagged at once."""

    parameters: Parameters
    vault_key: PadAddress  # first of two pads: 256 bits that key this direction's vault messages
    unsettled: Annotated[tuple[BatchId, ...], Meta(max_length=256)]  # PENDING here
    software: Annotated[str, Meta(max_length=32)]


class SiftList(Message, frozen=True):
    """Bob's detections in one Window: slots and bases, never bits. Tagged at once."""

    batch: U32
    window: U64
    events: U32
    slots: bytes  # distance to the previous slot less one, LEB128
    bases: bytes  # 1 bit per event: 0 Z, 1 X
    double_clicks: U32  # within a basis, given a random bit and listed
    crossed_clicks: U32  # across bases, left out
    dead_clicks: U32  # within a detector's dead time, left out


class SiftAnswer(Message, frozen=True):
    """Alice's answer to one SiftList: which events count, their intensities, and her bits in the X basis."""

    batch: U32
    window: U64
    held: bool  # False: Alice has not got this Window; it is discarded at both ends
    matched: bytes  # 1 bit per listed event
    intensities: bytes  # 2 bits per matched event
    x_bits: bytes  # 1 bit per matched event in X


class BatchEnd(Message, frozen=True):
    """Bob closes a Batch to further Windows; counts over its Windows, brightest intensity first."""

    batch: U32
    windows: U32
    n_z: PerIntensity
    n_x: PerIntensity
    m_x: PerIntensity


class BlockStart(Message, frozen=True):
    """Bob opens the reconciliation of the next Block of a Batch."""

    batch: U32
    block: U32
    frames: Annotated[int, Meta(ge=1, le=64)]
    frame_bits: Annotated[int, Meta(ge=1024, le=65536)]
    bits: Annotated[int, Meta(ge=1, le=64 * 65536)]  # sifted bits in it; the rest of the last Frame is public zeros
    schedule: Annotated[bytes, Meta(min_length=2, max_length=16)]  # block-size exponents, one byte per pass
    seed: Block32


class Parities(Message, frozen=True):
    """One round of reconciliation of one Block."""

    batch: U32
    block: U32
    round: U32
    bits: bytes


class BlockTag(Message, frozen=True):
    """Alice's 128-bit verification tag of a Block, under a key drawn after reconciliation."""

    batch: U32
    block: U32
    attempt: Annotated[int, Meta(ge=0, le=1)]
    key: Block16
    tag: Block16


class BlockOutcome(Message, frozen=True):
    """Whether Bob's tag matched."""

    batch: U32
    block: U32
    attempt: Annotated[int, Meta(ge=0, le=1)]
    matched: bool


class FrameTags(Message, frozen=True):
    """32-bit tags of each Frame of a Block that did not match, to find the Frames at fault."""

    batch: U32
    block: U32
    key: Block16
    tags: Annotated[bytes, Meta(max_length=256)]


class FrameOutcome(Message, frozen=True):
    """The Frames that differ, one bit each."""

    batch: U32
    block: U32
    failed: Annotated[bytes, Meta(min_length=8, max_length=8)]


class OpenedFrames(Message, frozen=True):
    """Alice's bits of the failed Frames, in order: they leave the key, their errors are counted exactly."""

    batch: U32
    block: U32
    bits: bytes


class Disclosure(Message, frozen=True):
    """Totals of a closed ledger, in bits."""

    alice_bits: U64
    bob_bits: U64
    opened_bits: U64
    tag_bits: U64
    outcome_bits: U64


class BatchReport(Message, frozen=True):
    """Bob's totals once every Block is verified."""

    batch: U32
    m_z: PerIntensity
    ledger: Disclosure
    refill_bits: U64  # what Bob's half of the authentication key wants; the larger wish of both ends is served


class Amplify(Message, frozen=True):
    """Alice's seed and lengths for a Batch whose totals agree."""

    batch: U32
    bits_in: U64
    bits_out: U64
    refill_bits: U64
    seed: bytes


class BatchAbandoned(Message, frozen=True):
    """Either end gives up a Batch that is not yet claimed."""

    batch: U32
    reason: Annotated[str, Meta(max_length=48)]


class BatchClaim(Message, frozen=True):
    """Bob's transcript tag: he holds the key and states what it is made of. First settling tag."""

    batch: BatchId
    bits_out: U64
    refill_bits: U64
    n_z: PerIntensity
    m_z: PerIntensity
    n_x: PerIntensity
    m_x: PerIntensity
    ledger: Disclosure


class BatchCommit(Message, frozen=True):
    """Alice is PENDING. Second settling tag; these very bytes are sent again until answered."""

    batch: BatchId
    claim_tag: Block16
    bits_out: U64
    refill_bits: U64


class BatchAnswer(Message, frozen=True):
    """Bob is READY or ABANDONED. Third settling tag; these very bytes are sent again on each repeated commit."""

    batch: BatchId
    ready: bool


class Settled(Message, frozen=True):
    """The sender has journalled the final state of these Batches: the receiver may use the READY ones."""

    ready: Annotated[tuple[BatchId, ...], Meta(max_length=256)]


class Allocate(Message, frozen=True):
    """The owner of a half cuts keys from it for an association (named from the sender's side)."""

    request: U64
    local: Name
    remote: Name
    batch: BatchId
    offset_bits: U64  # within the sender's half
    size_bits: Annotated[int, Meta(ge=8, le=65536)]
    key_ids: Annotated[bytes, Meta(min_length=16, max_length=16 * 128)]
    key_class: Name
    agreed: Block32  # digest of the class's terms and of what its keys are bound to
    generation: Generation = 1  # of the association's keys that these are of
    mark: Block16 = bytes(16)  # of decoys: made with their bits; of keys: says nothing


class Allocated(Message, frozen=True):
    """The answer to an Allocate."""

    request: U64
    outcome: Literal["accepted", "refused", "denied", "not-settled"]


ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"
DENIED: Final = "denied"  # refused by the policy of the peer
NOT_SETTLED: Final = "not-settled"
ALLOCATION_OUTCOMES = (ACCEPTED, REFUSED, DENIED, NOT_SETTLED)


class Delivered(Message, frozen=True):
    """The sender's application has acknowledged these keys."""

    notice: U64
    application: Name
    key_ids: Annotated[bytes, Meta(min_length=16, max_length=16 * 1024)]


class Received(Message, frozen=True):
    """These notices are journalled here and need not be sent again."""

    notices: Annotated[tuple[U64, ...], Meta(max_length=1024)]


class Subscription(Message, frozen=True):
    """Whether the sender's application (local) is connected for an association, and what it accepts."""

    local: Name
    remote: Name
    connected: bool
    size_bits: U32
    credit: U32
    key_class: Annotated[str, Meta(max_length=31)]  # that the sender's policy gives it; empty: none
    terms: Annotated[bytes, Meta(max_length=32)]  # digest of the class's terms; empty with it
    binding: Annotated[bytes, Meta(max_length=32)]  # digest of what its keys are bound to; empty with it


class PadsWanted(Message, frozen=True):
    """The sender has few granted pads left. What it has reserved of its half, segment by segment."""

    count: Annotated[int, Meta(ge=1, le=64)]
    sending: Annotated[tuple[Mark, ...], Meta(max_length=64)]


class PadsGranted(Message, frozen=True):
    """The receiver may tag with these pads of its half; none if all are used up. Journalled before it is sent."""

    spans: Annotated[tuple[PadSpan, ...], Meta(max_length=64)]


RevocationReason = Literal[
    "unspecified",
    "key-compromise",
    "ca-compromise",
    "affiliation-changed",
    "superseded",
    "cessation-of-operation",
    "privilege-withdrawn",
]


RotationReason = Literal["operator", "time", "keys", "bytes", "date", "deprecated", "degraded"]


class KeysRevoked(Message, frozen=True):
    """These keys are out of use at the sender: the receiver follows, for those too that it has not heard of yet."""

    notice: U64
    reason: RevocationReason
    key_ids: Annotated[bytes, Meta(min_length=16, max_length=16 * 1024)]
    stages: Annotated[bytes, Meta(min_length=1, max_length=1024)]  # where each stands at the sender, a letter each


class Compromised(Message, frozen=True):
    """Others may know what these Batches gave: from now on neither end supplies a key of them, or cuts one."""

    notice: U64
    reason: Literal["key-compromise", "ca-compromise"]
    first: BatchId
    last: BatchId
    application: Annotated[str, Meta(max_length=31)]  # at either end; empty: all


class KeysRetired(Message, frozen=True):
    """These keys have come to their end at the sender by the terms of their class: the receiver follows."""

    notice: U64
    rule: Literal["age-at-release", "validity-window", "unknown-class", "lifetime", "retain-key", "hold-released"]
    key_ids: Annotated[bytes, Meta(min_length=16, max_length=16 * 1024)]
    stages: Annotated[bytes, Meta(min_length=1, max_length=1024)]  # where each stands at the sender, a letter each


class RevocationsWaiting(Message, frozen=True):
    """So many revocations of the sender are not journalled at the receiver: until none is, it supplies no key."""

    count: U32


class RotationWanted(Message, frozen=True):
    """Bob asks Alice to propose the next generation of an association; she does if she knows of none above this."""

    notice: U64
    local: Name
    remote: Name
    above: Generation  # the newest number that Bob knows
    reason: RotationReason


class RotationProposed(Message, frozen=True):
    """Alice proposes the next generation of an association's keys, under a number that was never used."""

    notice: U64
    local: Name
    remote: Name
    number: Generation
    replaces: Generation
    reason: RotationReason


class RotationStands(Message, frozen=True):
    """How far the sender is in a rotation."""

    notice: U64
    local: Name
    remote: Name
    number: Generation
    phase: Literal["agreed", "prepared", "acknowledged", "cut", "closed"]


class RotationGivenUp(Message, frozen=True):
    """Alice gives a rotation up; or Bob wishes that she does."""

    notice: U64
    local: Name
    remote: Name
    number: Generation
    reason: Annotated[str, Meta(min_length=1, max_length=48)]


class CosignWanted(Message, frozen=True):
    """The sender's newest checkpoint, and that its log goes on in it from an older size: the receiver signs it too."""

    old_size: U64
    proof: Annotated[tuple[Block32, ...], Meta(max_length=63)]
    note: Annotated[str, Meta(max_length=8 * KIB)]


class Cosigned(Message, frozen=True):
    """The line that the sender, as a witness, puts under the receiver's checkpoint. Journalled before it is sent."""

    size: U64
    line: Annotated[str, Meta(max_length=4 * KIB)]


class NotCosigned(Message, frozen=True):
    """The sender does not sign the receiver's checkpoint of this size, and why; `cosigned` is what it signed last."""

    size: U64
    cosigned: U64
    reason: Literal["invalid", "size", "fork", "rollback", "busy", "failed"]


class Stretch(Message, frozen=True):
    """2^18 bits of one half of a Batch, by number: the unit in which two ends compare what they hold."""

    batch: BatchId
    half: Literal["alice", "bob"]
    number: U32


class HeldBundle(Message, frozen=True):
    """Where the keys of a Bundle stand at the sender. No bits and no ids: a hash names what it is of."""

    offset_bits: U64
    size_bits: Annotated[int, Meta(ge=8, le=65536)]
    header: Block32  # ids, size, class and binding
    states: Annotated[bytes, Meta(min_length=1, max_length=128)]
    far: Annotated[bytes, Meta(min_length=1, max_length=128)]
    waiting: bool  # a message of the sender about it is not journalled at the receiver


class HoldingsAsked(Message, frozen=True):
    """What hashes has the receiver at a node of the tree, or in a bucket after a stretch?"""

    number: U64  # the sender's, echoed
    path: Annotated[bytes, Meta(max_length=4)]
    after: Annotated[bytes, Meta(max_length=17)]


class Holdings(Message, frozen=True):
    """The hash of a node and those of its sixteen children, or a page of a bucket's stretches."""

    number: U64
    path: Annotated[bytes, Meta(max_length=4)]
    digest: Block32
    children: Annotated[bytes, Meta(max_length=16 * 32)]
    stretches: Annotated[bytes, Meta(max_length=256 * 49)]
    more: bool


class StretchAsked(Message, frozen=True):
    """What does the receiver hold in a stretch, from an offset on?"""

    number: U64
    stretch: Stretch
    from_bits: U64


class StretchHeld(Message, frozen=True):
    """What the sender holds from one offset up to another: stock, and Bundles that reach into it."""

    number: U64
    stretch: Stretch
    batch: Literal["usable", "unsettled", "closed", "unknown"]
    from_bits: U64
    until_bits: U64
    spans: Annotated[tuple[tuple[U64, U64], ...], Meta(max_length=256)]
    bundles: Annotated[tuple[HeldBundle, ...], Meta(max_length=129)]


class HoldingsDiffer(Message, frozen=True):
    """The sender finds that the two ends hold different things: the receiver compares too, and repairs what is its."""

    digest: Block32  # of all that the sender holds of the link


class Goodbye(Message, frozen=True):
    """The sender stops: it allocates and lists no more; drained means that it waits for nothing."""

    drained: bool


class Paused(Message, frozen=True):
    """An operator has paused the sender's end, or lets it go on: while either end is paused Bob lists no Windows."""

    paused: bool


class Protection(Enum):
    """How a message is authenticated."""

    PAIR = "HMAC-SHA-256 under the pair's greeting key"
    TAG = "one-time-padded tag at once"
    TRANSCRIPT = "by the Batch's settling tags"
    SETTLING = "one-time-padded tag over the Batch's transcript"
    VAULT = "HMAC-SHA-256 under the session's vault key"


class Kind(msgspec.Struct, frozen=True):
    """A row of the table of kinds."""

    code: int
    body: type[Message]
    senders: tuple[str, ...]
    protection: Protection
    max_bytes: int


EITHER = (ALICE, BOB)
KINDS: tuple[Kind, ...] = (
    Kind(1, Greeting, EITHER, Protection.PAIR, 16 * KIB),
    Kind(2, Hello, EITHER, Protection.TAG, 16 * KIB),
    Kind(10, SiftList, (BOB,), Protection.TAG, 8 * MIB),
    Kind(11, SiftAnswer, (ALICE,), Protection.TRANSCRIPT, 8 * MIB),
    Kind(12, BatchEnd, (BOB,), Protection.TRANSCRIPT, 4 * KIB),
    Kind(13, BlockStart, (BOB,), Protection.TRANSCRIPT, 4 * KIB),
    Kind(14, Parities, EITHER, Protection.TRANSCRIPT, 2 * MIB),
    Kind(15, BlockTag, (ALICE,), Protection.TRANSCRIPT, 4 * KIB),
    Kind(16, BlockOutcome, (BOB,), Protection.TRANSCRIPT, 4 * KIB),
    Kind(17, FrameTags, (ALICE,), Protection.TRANSCRIPT, 4 * KIB),
    Kind(18, FrameOutcome, (BOB,), Protection.TRANSCRIPT, 4 * KIB),
    Kind(19, OpenedFrames, (ALICE,), Protection.TRANSCRIPT, 1 * MIB),
    Kind(20, BatchReport, (BOB,), Protection.TRANSCRIPT, 4 * KIB),
    Kind(21, Amplify, (ALICE,), Protection.TRANSCRIPT, 64 * MIB),
    Kind(22, BatchAbandoned, EITHER, Protection.TRANSCRIPT, 4 * KIB),
    Kind(30, BatchClaim, (BOB,), Protection.SETTLING, 4 * KIB),
    Kind(31, BatchCommit, (ALICE,), Protection.SETTLING, 4 * KIB),
    Kind(32, BatchAnswer, (BOB,), Protection.SETTLING, 4 * KIB),
    Kind(40, Settled, EITHER, Protection.VAULT, 16 * KIB),
    Kind(41, Allocate, EITHER, Protection.VAULT, 4 * KIB),
    Kind(42, Allocated, EITHER, Protection.VAULT, 4 * KIB),
    Kind(43, Delivered, EITHER, Protection.VAULT, 32 * KIB),
    Kind(44, Received, EITHER, Protection.VAULT, 16 * KIB),
    Kind(45, Subscription, EITHER, Protection.VAULT, 4 * KIB),
    Kind(46, Goodbye, EITHER, Protection.VAULT, 4 * KIB),
    Kind(47, Paused, EITHER, Protection.VAULT, 4 * KIB),
    Kind(48, PadsWanted, EITHER, Protection.VAULT, 4 * KIB),
    Kind(49, PadsGranted, EITHER, Protection.VAULT, 4 * KIB),
    Kind(50, CosignWanted, EITHER, Protection.VAULT, 16 * KIB),
    Kind(51, Cosigned, EITHER, Protection.VAULT, 8 * KIB),
    Kind(52, NotCosigned, EITHER, Protection.VAULT, 4 * KIB),
    Kind(60, KeysRevoked, EITHER, Protection.VAULT, 32 * KIB),
    Kind(61, Compromised, EITHER, Protection.VAULT, 4 * KIB),
    Kind(62, RevocationsWaiting, EITHER, Protection.VAULT, 4 * KIB),
    Kind(74, HoldingsAsked, EITHER, Protection.VAULT, 4 * KIB),
    Kind(75, Holdings, EITHER, Protection.VAULT, 16 * KIB),
    Kind(76, StretchAsked, EITHER, Protection.VAULT, 4 * KIB),
    Kind(77, StretchHeld, EITHER, Protection.VAULT, 64 * KIB),
    Kind(78, HoldingsDiffer, EITHER, Protection.VAULT, 4 * KIB),
    Kind(70, KeysRetired, EITHER, Protection.VAULT, 32 * KIB),
    Kind(84, RotationWanted, (BOB,), Protection.VAULT, 4 * KIB),
    Kind(85, RotationProposed, (ALICE,), Protection.VAULT, 4 * KIB),
    Kind(86, RotationStands, EITHER, Protection.VAULT, 4 * KIB),
    Kind(87, RotationGivenUp, EITHER, Protection.VAULT, 4 * KIB),
)
KIND_OF_CODE = {kind.code: kind for kind in KINDS}
KIND_OF_BODY = {kind.body: kind for kind in KINDS}
MAX_MESSAGE_BYTES = max(kind.max_bytes for kind in KINDS) + 4 * KIB
