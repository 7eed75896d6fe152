"""Bundles that a courier carries while a link is cut: what a file says in the clear, and the messages sealed in it.

A file is MAGIC and one MessagePack array, at most 40 KiB. docs/protocol.md is the description for people.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from qkdnode.errors import LocalProtocolError, RemoteProtocolError
from qkdnode.ids import BatchId
from qkdnode.wire.codec import encode_body
from qkdnode.wire.messages import (
    KIND_OF_BODY,
    KIND_OF_CODE,
    U64,
    Allocate,
    Allocated,
    Generation,
    Message,
    Name,
    Received,
    RotationGivenUp,
    RotationProposed,
    RotationStands,
    RotationWanted,
)

MAGIC = b"qkdnode courier bundle/1\n"
PURPOSE: Final = "rotation"
MAX_FILE_BYTES = 40 * 1024
MAX_MESSAGES = 256
KEY_BITS = 256
NONCE_BYTES, TAG_BYTES = 12, 16
MOST_SPENT = 64
SEALED_MAX = MAX_FILE_BYTES - 1024  # what is in the clear takes less

CARRIED = (RotationWanted, RotationProposed, RotationStands, RotationGivenUp, Allocate, Allocated, Received)
CarriedMessage = (
    RotationWanted | RotationProposed | RotationStands | RotationGivenUp | Allocate | Allocated | Received
)  # fmt: skip
_CODES = {KIND_OF_BODY[body].code: body for body in CARRIED}


class Spot(Message, frozen=True):
    """Where in the exporting end's half 256 bits were cut that a file is sealed with."""

    batch: BatchId
    offset_bits: U64


class Heading(Message, frozen=True):
    """What a file says in the clear; every field is authenticated."""

    purpose: Literal["rotation"]
    sender: Name  # node
    receiver: Name  # node
    link: Name
    local: Name  # application of the sender
    remote: Name
    generation: Generation
    number: Annotated[int, Meta(ge=1, le=2**63 - 1)]  # rises with each file of an association and sender
    spot: Spot
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class File(Message, frozen=True):
    """A whole file behind MAGIC."""

    heading: Heading
    sealed: Annotated[bytes, Meta(min_length=TAG_BYTES + 1, max_length=SEALED_MAX)]


class Piece(Message, frozen=True):
    """One message, by the code of its kind."""

    code: Annotated[int, Meta(ge=0, le=255)]
    body: Annotated[bytes, Meta(max_length=SEALED_MAX)]


class Contents(Message, frozen=True):
    """What is sealed. `heard`: the newest file of the receiver that is imported here. `spent`: what files before this
    one were sealed with, as far as they are not known to be imported."""

    heard: U64
    spent: Annotated[tuple[Spot, ...], Meta(max_length=MOST_SPENT)]
    pieces: Annotated[tuple[Piece, ...], Meta(max_length=MAX_MESSAGES)]


_file = msgspec.msgpack.Decoder(File)
_contents = msgspec.msgpack.Decoder(Contents)
_bodies: dict[int, msgspec.msgpack.Decoder[Any]] = {
    code: msgspec.msgpack.Decoder(body) for code, body in _CODES.items()
}


def associated(heading: Heading) -> bytes:
    """What the seal covers beside the contents."""
    return MAGIC + encode_body(heading)


def encode_file(file: File) -> bytes:
    """A file as it is carried."""
    return MAGIC + encode_body(file)


def decode_file(data: bytes) -> File:
    """What a file says. RemoteProtocolError if it is no bundle, or not in its one spelling."""
    if len(data) > MAX_FILE_BYTES:
        raise RemoteProtocolError(f"it is longer than the {MAX_FILE_BYTES} bytes of a courier's bundle: another file?")
    if not data.startswith(MAGIC):
        raise RemoteProtocolError("it is no courier's bundle: another file, or damaged at its beginning")
    try:
        file = _file.decode(data[len(MAGIC) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"it is a courier's bundle that is damaged or cut short: {error}") from None
    if encode_file(file) != data:
        raise RemoteProtocolError("it is a courier's bundle that was written by something else: its spelling differs")
    if file.heading.spot.offset_bits % 8:
        raise RemoteProtocolError("it is a courier's bundle under a key that begins within a byte")
    return file


def piece_of(message: Message) -> Piece:
    """A message as it is carried."""
    if not isinstance(message, CARRIED):
        raise LocalProtocolError(f"no courier carries a {type(message).__name__}")
    return Piece(KIND_OF_BODY[type(message)].code, encode_body(message))


def message_of(piece: Piece) -> CarriedMessage:
    """The message. RemoteProtocolError if it is of a kind that no courier carries, or malformed."""
    decoder = _bodies.get(piece.code)
    if decoder is None:
        name = KIND_OF_CODE[piece.code].body.__name__ if piece.code in KIND_OF_CODE else "unknown"
        raise RemoteProtocolError(f"the bundle holds a message of kind {piece.code} ({name}): no courier carries that")
    try:
        message: CarriedMessage = decoder.decode(piece.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a message of kind {piece.code} in the bundle is malformed: {error}") from None
    return message


def decode_contents(data: bytes) -> Contents:
    """What was sealed. RemoteProtocolError if it is malformed."""
    try:
        return _contents.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"what the bundle holds is malformed: {error}") from None
