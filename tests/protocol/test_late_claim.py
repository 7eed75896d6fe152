"""A claim that crosses the end of its Batch is late, not forged."""

from session_pair import exchange, opened_pair

from qkdnode.authentication.session import BatchClaim
from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import BatchId
from qkdnode.wire.messages import Disclosure, SiftList


def test_a_claim_for_a_batch_that_alice_has_given_up_is_discarded_and_raises_no_alarm() -> None:
    alice, bob = opened_pair()
    bob.say(SiftList(0, 1, 3, b"\x01\x02\x03", b"\x05", 0, 0, 0))
    exchange(alice, bob)
    bob.say(
        BatchClaim(BatchId(bob.session.session, 0), 512, 0, (2, 0), (0, 0), (1, 0), (0, 0), Disclosure(0, 0, 0, 0, 0))
    )
    alice.session.forget_batch(0)
    exchange(alice, bob)
    assert [type(error) for error in alice.refused] == [RemoteProtocolError]
