"""However many Batches are PENDING, a session opens and settles them."""

from session_pair import SessionEnd, exchange

from qkdnode.ids import ALICE, BOB, BatchId


def test_a_session_opens_with_more_pending_batches_than_a_hello_names() -> None:
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    alice.follow(alice.session.begin(tuple(BatchId(1, number) for number in range(300))))
    exchange(alice, bob)
    assert alice.open
    assert bob.open
