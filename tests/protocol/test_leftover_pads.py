"""Pads that were reserved in a session and not used serve the next one, in rising order."""

from session_pair import exchange, opened_pair

from qkdnode.wire.messages import SiftList


def test_the_first_list_of_a_new_session_is_no_replay_though_pads_were_left_over() -> None:
    alice, bob = opened_pair()
    bob.pool.grant(bob.reserve(9))
    bob.begin()
    exchange(alice, bob)
    assert alice.open
    assert bob.open
    bob.say(SiftList(0, 1, 3, b"\x01\x02\x03", b"\x05", 0, 0, 0))
    exchange(alice, bob)
    assert not alice.refused
    assert alice.accepted
