"""Messages between a node and the applications that it supplies, and the canonical bytes that are signed and sealed.

An application agrees a session with Open and Accept, then both sides send Sealed messages only: a clear body, covered
by the tag, and for keys their encryption. Integers are unsigned.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import Association, KeyId
from qkdnode.wire.messages import U32, U64, Block16, Block32, Generation, Message, Name

VERSION = 3
MLKEM_KEY_BYTES = 1184
MLKEM_CIPHERTEXT_BYTES = 1088
SIGNATURE_BYTES = 64
TAG_BYTES = 16
MAX_CREDIT = 4096
MAX_KEY_BITS = 65536
MAX_IDS = 256
MAX_KEYS = 128  # in one message
MAX_NOTICES = 64  # acknowledged in one message
MAX_FETCHED = 32  # asked for by id in one message
MAX_MATERIAL_BYTES = MAX_KEY_BITS // 8  # in one message: one of the longest keys, or 128 keys of 512 bits
MAX_BODY_BYTES = 8 * 1024
MAX_SUPPLY_BYTES = MAX_BODY_BYTES + MAX_MATERIAL_BYTES + 1024

T = TypeVar("T")

Session = Annotated[bytes, Meta(min_length=8, max_length=8)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Reason = Annotated[str, Meta(max_length=256)]
KeyIds = Annotated[tuple[Block16, ...], Meta(min_length=1, max_length=MAX_IDS)]
FetchedIds = Annotated[tuple[Block16, ...], Meta(min_length=1, max_length=MAX_FETCHED)]
SizeBits = Annotated[int, Meta(ge=8, le=MAX_KEY_BITS, multiple_of=8)]
Credit = Annotated[int, Meta(ge=1, le=MAX_CREDIT)]


class Open(Message, frozen=True, tag=1):
    """An application asks for a session. The signature covers `open_transcript`."""

    version: Annotated[int, Meta(ge=0, le=255)]
    application: Name
    x25519: Block32
    mlkem: Annotated[bytes, Meta(min_length=MLKEM_KEY_BYTES, max_length=MLKEM_KEY_BYTES)]
    nonce: Block32
    signature: Signature


class Accept(Message, frozen=True, tag=2):
    """The node's answer. The signature covers `accept_transcript`, and so the Open."""

    session: Session
    x25519: Block32
    ciphertext: Annotated[bytes, Meta(min_length=MLKEM_CIPHERTEXT_BYTES, max_length=MLKEM_CIPHERTEXT_BYTES)]
    nonce: Block32
    signature: Signature


class Refused(Message, frozen=True, tag=3):
    """The node will not open a session. Not sealed: there is no session yet."""

    reason: Reason


class Unknown(Message, frozen=True, tag=4):
    """The node does not know this session (any more): open a new one. Not sealed, so no more than a hint."""

    session: Session


class Sealed(Message, frozen=True, tag=5):
    """A message of a session: `body` in the clear and `sealed`: encrypted keys (or nothing) and the tag over all."""

    session: Session
    sequence: U64
    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]
    sealed: Annotated[bytes, Meta(min_length=TAG_BYTES, max_length=MAX_MATERIAL_BYTES + TAG_BYTES)]


class Subscribe(Message, frozen=True, tag=16):
    """Application to node: send me the keys that I share with `remote` by way of `link`. May be repeated."""

    remote: Name
    link: Name
    size_bits: SizeBits
    credit: Credit  # keys that may be unacknowledged


class Acknowledge(Message, frozen=True, tag=17):
    """Application to node: I have these keys and will not ask for them again."""

    key_ids: KeyIds


class Alive(Message, frozen=True, tag=18):
    """Application to node: I am here, if slow."""


class Unsubscribe(Message, frozen=True, tag=19):
    """Application to node: send me no more."""


class SubscribeToFetch(Message, frozen=True, tag=22):
    """Application to node: as Subscribe, but send me only the keys that I ask for by their ids."""

    remote: Name
    link: Name
    size_bits: SizeBits
    credit: Credit


class Fetch(Message, frozen=True, tag=23):
    """Application to node: send me these keys of my subscription. May be repeated."""

    request: U32
    key_ids: FetchedIds


class EndedNoted(Message, frozen=True, tag=24):
    """Application to node: these notices of ended keys have reached me."""

    notices: Annotated[tuple[U64, ...], Meta(min_length=1, max_length=MAX_NOTICES)]


class GenerationAccepted(Message, frozen=True, tag=26):
    """Application to node: I am ready for keys of this generation."""

    number: Generation


class GenerationNoted(Message, frozen=True, tag=27):
    """Application to node: I know that this generation is the one, and those before are over."""

    number: Generation


class Subscribed(Message, frozen=True, tag=32):
    """Node to application: keys will follow. Say Alive at least so often."""

    alive_ms: Annotated[int, Meta(ge=10, le=3_600_000)]


class SubscribeRefused(Message, frozen=True, tag=33):
    """Node to application: no keys for this subscription."""

    reason: Reason


class KeysBody(Message, frozen=True, tag=34):
    """Node to application: what the keys are that are sealed beside it, one after the other, all of one size."""

    key_ids: Annotated[tuple[Block16, ...], Meta(min_length=1, max_length=MAX_KEYS)]
    local: Name
    remote: Name
    link: Name
    size_bits: SizeBits
    key_class: Name
    generation: Generation = 1


class Recorded(Message, frozen=True, tag=35):
    """Node to application: these acknowledgements are journalled; the keys are never sent again."""

    key_ids: KeyIds


class NotFetched(Message, frozen=True, tag=38):
    """Node to application: there is no key for you under these ids. It never says why."""

    request: U32
    key_ids: FetchedIds


class FetchLater(Message, frozen=True, tag=39):
    """Node to application: you ask too often. Nothing was looked up; ask again."""

    request: U32


class KeysEnded(Message, frozen=True, tag=40):
    """Node to application: keys that you have are out of use, and why. Repeated until it is noted."""

    notice: U64
    stage: Name
    reason: Annotated[str, Meta(max_length=64)]
    key_ids: Annotated[tuple[Block16, ...], Meta(min_length=1, max_length=MAX_KEYS)]


class GenerationOffered(Message, frozen=True, tag=43):
    """Node to application: keys of this generation will take the place of those of another, once you accept it."""

    number: Generation
    replaces: Generation


class GenerationCurrent(Message, frozen=True, tag=44):
    """Node to application: keys of this generation are supplied, and no key of an earlier one any more."""

    number: Generation


class GenerationWithdrawn(Message, frozen=True, tag=45):
    """Node to application: the generation that was offered will not come."""

    number: Generation


Outer = Open | Accept | Refused | Unknown | Sealed
FromApplication = (
    Subscribe
    | Acknowledge
    | Alive
    | Unsubscribe
    | SubscribeToFetch
    | Fetch
    | EndedNoted
    | GenerationAccepted
    | GenerationNoted
)
FromNode = (
    Subscribed
    | SubscribeRefused
    | KeysBody
    | Recorded
    | NotFetched
    | FetchLater
    | KeysEnded
    | GenerationOffered
    | GenerationCurrent
    | GenerationWithdrawn
)
Body = FromApplication | FromNode

_encoder = msgspec.msgpack.Encoder()
_outer: msgspec.msgpack.Decoder[Outer] = msgspec.msgpack.Decoder(Outer)
_from_application: msgspec.msgpack.Decoder[FromApplication] = msgspec.msgpack.Decoder(FromApplication)
_from_node: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)


def encode(message: Outer | Body) -> bytes:
    """The canonical bytes of a message."""
    return _encoder.encode(message)


def decode_outer(data: bytes) -> Outer:
    """Decode what came over the socket; RemoteProtocolError says what is wrong with it."""
    if len(data) > MAX_SUPPLY_BYTES:
        raise RemoteProtocolError(f"oversized supply message of {len(data)} bytes")
    return _decode(_outer, data)


def decode_from_application(data: bytes) -> FromApplication:
    """Decode the body of a verified message from an application."""
    return _decode(_from_application, data)


def decode_from_node(data: bytes) -> FromNode:
    """Decode the body of a verified message from a node."""
    return _decode(_from_node, data)


def associated_data(session: bytes, sequence: int, body: bytes) -> bytes:
    """What the tag of a Sealed message covers besides the key."""
    return b"".join((b"qkdnode supply/1\0", session, sequence.to_bytes(8, "big"), body))


def nonce_of(sequence: int) -> bytes:
    """The 96-bit AES-GCM nonce of a message: its sequence number, used once per session and direction."""
    return sequence.to_bytes(12, "big")


def open_transcript(node: str, node_key: str, application_key: str, message: Open) -> bytes:
    """SHA-384 over an Open and both identities (Ed25519 keys as in NAME.public)."""
    return _digest(
        b"qkdnode supply open/1",
        node.encode(),
        node_key.encode(),
        message.application.encode(),
        application_key.encode(),
        bytes([message.version]),
        message.x25519,
        message.mlkem,
        message.nonce,
    )


def accept_transcript(opening: bytes, signature: bytes, message: Accept) -> bytes:
    """SHA-384 over the Open's transcript and signature, and the Accept: all that was said."""
    return _digest(
        b"qkdnode supply accept/1",
        opening,
        signature,
        message.session,
        message.x25519,
        message.ciphertext,
        message.nonce,
    )


def keys_in_a_message(size_bits: int) -> int:
    """How many keys of a size one message carries at most."""
    return min(MAX_KEYS, MAX_MATERIAL_BYTES * 8 // size_bits)


def keys_body(
    key_ids: Sequence[KeyId], association: Association, size_bits: int, key_class: str, generation: int = 1
) -> KeysBody:
    """The clear part of a message with keys."""
    ids = tuple([key_id.bytes for key_id in key_ids])
    return KeysBody(ids, association.local, association.remote, association.source, size_bits, key_class, generation)


def association_of(body: KeysBody) -> Association:
    """The association of a message with keys, as the node that sent it sees it."""
    return Association(body.local, body.remote, body.link)


def _digest(*fields: bytes) -> bytes:
    # With their lengths, so that no two lists of fields give the same bytes.
    return hashlib.sha384(
        b"".join(part for field in fields for part in (len(field).to_bytes(4, "big"), field))
    ).digest()


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        message = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a ValidationError is a DecodeError
        raise RemoteProtocolError(f"malformed supply message: {error}") from None
    if _encoder.encode(message) != data:
        raise RemoteProtocolError("supply message not in its canonical encoding")
    return message
