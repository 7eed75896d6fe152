"""A frame with any one bit flipped is decoded or refused; nothing else comes of it before it is authenticated."""

import contextlib

from link_world import LINK, NODES

from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import ALICE, BOB, PROVISIONED, BatchId, short_digest
from qkdnode.wire import codec
from qkdnode.wire.messages import Delivered, Greeting, Mark, Message, PadSpan, Statement, Subscription

STATEMENT = Statement(b"start 02", 7, BatchId(1, 0), (Mark(PROVISIONED, 20),), ())
MESSAGES: tuple[Message, ...] = (
    Greeting(
        NODES[ALICE], LINK, b"pair", b"start 01", 3, b"", 0, False, "", STATEMENT, 4, (PadSpan(PROVISIONED, 8, 12),)
    ),
    Subscription("payroll", "ledger", True, 256, 6, "its", bytes(32), bytes(32)),
    Delivered(7, "payroll", bytes(16)),
)


def test_no_flipped_bit_does_more_than_have_the_frame_refused() -> None:
    for message in MESSAGES:
        kind = codec.kind_of(message)
        header = codec.Header(short_digest(NODES[ALICE]), short_digest(NODES[BOB]), kind.code, ALICE, 1, 1).pack()
        raw = codec.join(header, codec.encode_body(message), mac=bytes(codec.TRAILER_BYTES[kind.protection]))
        codec.decode(raw)
        for bit in range(8 * len(raw)):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            with contextlib.suppress(RemoteProtocolError):
                codec.decode(bytes(damaged))
