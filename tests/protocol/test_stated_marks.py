"""What a Greeting states is not authentic: it may hold a handshake back, it must not stop the link for good."""

import msgspec
from session_pair import SessionEnd, exchange

from qkdnode.ids import ALICE, BOB, PROVISIONED
from qkdnode.wire import codec
from qkdnode.wire.messages import Mark


def test_a_forged_statement_that_this_vault_is_old_does_not_stop_the_link_for_good() -> None:
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    bob.begin()
    frame = codec.decode(bob.wire.pop())
    forged = msgspec.structs.replace(frame.message, seen=(Mark(PROVISIONED, 60),))
    alice.take(codec.join(frame.header.pack(), codec.encode_body(forged)))
    assert not alice.open
    bob.begin()
    exchange(alice, bob)
    assert alice.open
    assert bob.open
