"""Files that couriers carry, and what is sealed in them."""

import hashlib
from collections.abc import Hashable, Iterable
from typing import Any

import msgspec

from fuzz.engine import Violation
from fuzz.examples import example
from fuzz.mutation import as_bytes, as_msgpack, behind
from qkdnode.ids import BatchId
from qkdnode.vault.couriers import guarded_request
from qkdnode.wire import courier
from qkdnode.wire.codec import encode_body
from qkdnode.wire.courier import CARRIED, Contents, File, Heading, Piece, Spot
from qkdnode.wire.messages import KIND_OF_BODY, Delivered

as_file = behind(len(courier.MAGIC), as_msgpack)
as_any_bytes = as_bytes
SPOT = Spot(BatchId(7, 3), 4096)


def file_seeds() -> list[bytes]:
    """A short one, one that is as long as can be, and what is to be refused: one longer, and a key within a byte."""
    heading = Heading("rotation", "a", "b", "metro", "payroll", "ledger", 2, 5, SPOT, bytes(range(12)))
    long = courier.encode_file(File(heading, bytes(courier.SEALED_MAX)))
    within = msgspec.structs.replace(heading, spot=Spot(SPOT.batch, 4097))
    return [
        *(courier.encode_file(File(its, bytes(64))) for its in (heading, within)),
        long,
        long + bytes(courier.MAX_FILE_BYTES - len(long)),
    ]


def take_file(data: bytes) -> Iterable[Hashable]:
    """A file that is read has one spelling and a bound, and what people sign names it to the byte."""
    file = courier.decode_file(data)
    if len(data) > courier.MAX_FILE_BYTES:
        raise Violation("a file without bounds")
    if courier.encode_file(file) != data:
        raise Violation("two files that say the same")
    if file.heading.spot.offset_bits % 8:
        raise Violation("a key that begins within a byte")
    its, heading = guarded_request(data), file.heading
    if its.particulars["file"] != hashlib.sha256(data).hexdigest() or its.node != heading.receiver:
        raise Violation("people sign for another file, or another node")
    told = (its.particulars[name] for name in ("number", "sender", "link", "local", "remote", "generation"))
    if tuple(told) != (
        heading.number, heading.sender, heading.link, heading.remote, heading.local, heading.generation,
    ):  # fmt: skip
        raise Violation("people sign for something else than the file says")
    return (heading.number > 5, len(file.sealed) > 64)


def contents_seeds() -> list[bytes]:
    """Every kind of message that is carried, and one that is not."""
    pieces = [courier.piece_of(example(body, ample=ample)) for body in CARRIED for ample in (False, True)]
    other = Piece(KIND_OF_BODY[Delivered].code, encode_body(example(Delivered, ample=False)))
    made = [Contents(3, (SPOT,), tuple(pieces[i : i + 4])) for i in range(0, len(pieces), 4)]
    return [msgspec.msgpack.encode(one) for one in (*made, Contents(0, (), (other,)))]


def take_contents(data: bytes) -> Iterable[Hashable]:
    """Messages that come out are of kinds that are carried, and go in as they came out."""
    contents = courier.decode_contents(data)
    if len(contents.pieces) > courier.MAX_MESSAGES or len(contents.spent) > courier.MOST_SPENT:
        raise Violation("contents without bounds")
    kinds: list[Any] = []
    for piece in contents.pieces:
        message = courier.message_of(piece)
        if not isinstance(message, CARRIED):
            raise Violation("a message that no courier carries")
        if KIND_OF_BODY[type(message)].code != piece.code or courier.message_of(courier.piece_of(message)) != message:
            raise Violation("a message is another than was put in")
        kinds.append(type(message))
    return tuple(sorted({kind.__name__ for kind in kinds}))
