"""Frames on the wire: a header of two 16-byte blocks, a MessagePack body, and what authenticates them.

    header  sender 8 | receiver 8 | version 1 | kind 1 | direction 1 | zero 1 | counter 4 | session 8    little-endian
    body    msgspec array of the kind's fields
    trailer by protection: tag = hash-key address 16 | pad address 16 | tag 16; vault and pair = HMAC 32; none otherwise

An address is session 8 | Batch number 4 | index 4. Direction 0 is Alice to Bob, 1 is Bob to Alice.
"""

import struct

import msgspec

from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import ALICE, BOB, BatchId, PadAddress
from qkdnode.wire.messages import KIND_OF_BODY, KIND_OF_CODE, Kind, Message, Protection

VERSION = 1
HEADER = struct.Struct("<8s8sBBBBIQ")
ADDRESS = struct.Struct("<QII")
TAG_BYTES = 16
MAC_BYTES = 32
TRAILER_BYTES = {
    Protection.TRANSCRIPT: 0,
    Protection.TAG: 2 * ADDRESS.size + TAG_BYTES,
    Protection.SETTLING: 2 * ADDRESS.size + TAG_BYTES,
    Protection.VAULT: MAC_BYTES,
    Protection.PAIR: MAC_BYTES,
}
DIRECTION_OF_SENDER = {ALICE: 0, BOB: 1}
SENDER_OF_DIRECTION = {0: ALICE, 1: BOB}

_encoder = msgspec.msgpack.Encoder()
_decoders = {kind.code: msgspec.msgpack.Decoder(kind.body) for kind in KIND_OF_CODE.values()}


class Header(msgspec.Struct, frozen=True):
    """Who says what to whom, in which session, as which message of its direction."""

    sender: bytes
    receiver: bytes
    kind: int
    role: str  # of the sender
    counter: int
    session: int

    def pack(self) -> bytes:
        """The 32 bytes that open a frame and every hash over it."""
        direction = DIRECTION_OF_SENDER[self.role]
        return HEADER.pack(self.sender, self.receiver, VERSION, self.kind, direction, 0, self.counter, self.session)


class TagTrailer(msgspec.Struct, frozen=True):
    """Which hash key and which pad made a tag, and the tag."""

    hash_key: PadAddress
    pad: PadAddress
    tag: bytes

    def addresses(self) -> bytes:
        """The 32 bytes of the two addresses, as hashed and as sent."""
        return pack_address(self.hash_key) + pack_address(self.pad)


class Frame(msgspec.Struct, frozen=True):
    """A received frame, decoded but not yet authenticated."""

    header: Header
    kind: Kind
    body: bytes
    message: Message
    trailer: TagTrailer | None
    mac: bytes | None
    raw: bytes


def pack_address(address: PadAddress) -> bytes:
    """16 bytes."""
    return ADDRESS.pack(address.segment.session, address.segment.number, address.index)


def unpack_address(data: bytes) -> PadAddress:
    """The inverse of pack_address."""
    session, number, index = ADDRESS.unpack(data)
    return PadAddress(BatchId(session, number), index)


def encode_body(message: Message) -> bytes:
    """The canonical body of a message."""
    return _encoder.encode(message)


def kind_of(message: Message) -> Kind:
    """The row of the table of kinds for a message."""
    return KIND_OF_BODY[type(message)]


def join(header: bytes, body: bytes, trailer: TagTrailer | None = None, mac: bytes | None = None) -> bytes:
    """A whole frame."""
    if trailer is not None:
        return b"".join((header, body, trailer.addresses(), trailer.tag))
    return b"".join((header, body, mac or b""))


def decode(raw: bytes) -> Frame:
    """Decode a frame strictly; RemoteProtocolError says what is wrong with it.

    Nothing is authenticated here: the receiver checks names, direction, session, counter and tag.
    """
    if len(raw) < HEADER.size:
        raise RemoteProtocolError(f"truncated message of {len(raw)} bytes")
    sender, receiver, version, code, direction, zero, counter, session = HEADER.unpack_from(raw)
    if version != VERSION or zero:
        raise RemoteProtocolError(f"message of protocol version {version}; this end speaks {VERSION}")
    kind = KIND_OF_CODE.get(code)
    if kind is None:
        raise RemoteProtocolError(f"unknown kind of message {code}")
    name = kind.body.__name__
    role = SENDER_OF_DIRECTION.get(direction)
    if role is None or role not in kind.senders:
        raise RemoteProtocolError(f"{name} in direction {direction}, which may not carry it")
    if len(raw) > HEADER.size + kind.max_bytes:
        raise RemoteProtocolError(f"oversized {name} of {len(raw)} bytes")
    end = len(raw) - TRAILER_BYTES[kind.protection]
    if end < HEADER.size:
        raise RemoteProtocolError(f"truncated {name} of {len(raw)} bytes")
    body = raw[HEADER.size : end]
    try:
        message = _decoders[code].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a ValidationError is a DecodeError
        raise RemoteProtocolError(f"malformed {name}: {error}") from None
    if encode_body(message) != body:
        raise RemoteProtocolError(f"{name} is not in its canonical encoding")
    trailer = mac = None
    if kind.protection in (Protection.VAULT, Protection.PAIR):
        mac = raw[end:]
    elif kind.protection in (Protection.TAG, Protection.SETTLING):
        size = ADDRESS.size
        hash_key, pad = unpack_address(raw[end : end + size]), unpack_address(raw[end + size : end + 2 * size])
        trailer = TagTrailer(hash_key, pad, raw[end + 2 * size :])
    header = Header(sender, receiver, code, role, counter, session)
    return Frame(header, kind, body, message, trailer, mac, raw)
