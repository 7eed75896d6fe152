"""Sessions: they open, refuse everything that is not the next authentic frame, and never use a pad twice."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_pair import PARAMETERS, SessionEnd, exchange, opened_pair

from qkdnode.authentication import session as sessions
from qkdnode.authentication.session import State
from qkdnode.errors import AuthenticationError, LocalProtocolError, RemoteProtocolError
from qkdnode.ids import ALICE, BOB, PROVISIONED, BatchId
from qkdnode.wire import codec
from qkdnode.wire.messages import BatchEnd, BatchReport, Disclosure, Goodbye, Mark, Settled, SiftAnswer, SiftList


def sift_list(window: int, batch: int = 0) -> SiftList:
    return SiftList(batch, window, 3, b"\x01\x02\x03", b"\x05", 0, 0, 0)


def test_either_end_may_begin() -> None:
    for first in (ALICE, BOB):
        ends = {ALICE: SessionEnd(ALICE), BOB: SessionEnd(BOB)}
        ends[first].begin()
        exchange(ends[ALICE], ends[BOB])
        assert ends[ALICE].open
        assert ends[BOB].open
        assert ends[ALICE].session.session == ends[BOB].session.session != 0


def test_both_ends_may_begin_at_once() -> None:
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    alice.begin()
    bob.begin()
    exchange(alice, bob)
    assert alice.open
    assert bob.open
    assert not alice.refused
    assert not bob.refused


def test_a_restarted_end_gets_a_new_session_and_the_other_is_told() -> None:
    alice, bob = opened_pair()
    first = alice.session.session
    again = SessionEnd(BOB, marks=bob.mark + 16)
    again.counter = bob.counter
    again.begin()
    exchange(alice, again)
    assert alice.open
    assert again.open
    assert alice.session.session != first
    assert any(isinstance(effect, sessions.Reset) for effect in alice.effects)


def test_messages_of_every_protection_pass() -> None:
    alice, bob = opened_pair()
    bob.say(sift_list(1))
    alice.say(SiftAnswer(0, 1, True, b"\x07", b"\x00", b"\x01"))
    bob.say(BatchEnd(0, 1, (2, 0), (1, 0), (0, 0)))
    alice.say(Settled((BatchId(1, 2),)))
    bob.say(Goodbye(True))
    exchange(alice, bob)
    assert [type(message) for message in alice.accepted] == [SiftList, BatchEnd, Goodbye]
    assert [type(message) for message in bob.accepted] == [SiftAnswer, Settled]
    assert not alice.refused
    assert not bob.refused


def test_a_repeated_frame_is_refused_and_changes_nothing() -> None:
    alice, bob = opened_pair()
    bob.say(sift_list(1))
    (frame,) = bob.wire
    for _ in range(3):
        alice.take(frame)
    assert len(alice.accepted) == 1
    assert [type(error) for error in alice.refused] == [RemoteProtocolError] * 2


def test_a_reflected_frame_is_refused() -> None:
    _, bob = opened_pair()
    bob.say(sift_list(1))
    bob.take(bob.wire[0])
    assert not bob.accepted
    assert "reflection" in str(bob.refused[0])


def test_a_reordered_frame_is_refused_as_a_gap() -> None:
    alice, bob = opened_pair()
    bob.say(sift_list(1))
    bob.say(sift_list(2))
    late, early = bob.wire
    frame = codec.decode(early)
    assert alice.session.is_gap(frame)
    alice.take(early)
    assert "gap" in str(alice.refused[0])
    alice.take(late)
    assert len(alice.accepted) == 1


def test_a_frame_of_a_former_session_is_refused() -> None:
    alice, bob = opened_pair()
    bob.say(sift_list(1))
    old, bob.wire = bob.wire, []
    bob.begin()
    exchange(alice, bob)
    alice.take(old[0])
    assert not alice.accepted
    assert "not open" in str(alice.refused[-1])


def test_a_replayed_hello_does_not_open_a_session() -> None:
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    recorded: list[bytes] = []
    bob.begin()
    for _ in range(8):
        for sender, receiver in ((alice, bob), (bob, alice)):
            frames, sender.wire = sender.wire, []
            recorded += frames if sender is bob else []
            for raw in frames:
                receiver.take(raw)
    assert alice.open
    for raw in recorded:
        alice.take(raw)
    assert not alice.open
    assert alice.refused


@pytest.mark.parametrize("place", ["header", "body", "addresses", "tag"])
def test_a_changed_bit_anywhere_in_a_tagged_frame_is_noticed(place: str) -> None:
    alice, bob = opened_pair()
    bob.say(sift_list(1))
    raw = bytearray(bob.wire[0])
    at = {"header": 24, "body": 40, "addresses": len(raw) - 40, "tag": len(raw) - 1}[place]
    raw[at] ^= 1
    alice.take(bytes(raw))
    assert not alice.accepted
    assert alice.refused


def test_a_changed_vault_message_is_an_authentication_failure() -> None:
    alice, bob = opened_pair()
    bob.say(Goodbye(True))
    raw = bytearray(bob.wire[0])
    raw[-1] ^= 0x80
    alice.take(bytes(raw))
    assert isinstance(alice.refused[0], AuthenticationError)


def test_a_peer_with_another_configuration_is_refused_by_the_name_of_the_field() -> None:
    alice = SessionEnd(ALICE)
    bob = SessionEnd(BOB, msgspec.structs.replace(PARAMETERS, batch_bits=2_000_000))
    alice.begin()
    exchange(alice, bob)
    for end in (alice, bob):
        assert not end.open
        (failure,) = (effect for effect in end.effects if isinstance(effect, sessions.Failed))
        assert failure.code == "CONFIG"
        assert "`batch_bits`" in failure.reason


def test_an_end_with_an_older_vault_stops_before_it_spends_a_pad() -> None:
    alice, bob = opened_pair()
    for window in range(20):
        bob.say(sift_list(window))
    exchange(alice, bob)
    restored = SessionEnd(BOB, marks=16)
    restored.counter = bob.counter
    restored.begin()
    exchange(alice, restored)
    assert restored.session.state is State.IDLE
    assert not restored.used
    (failure,) = restored.effects
    assert isinstance(failure, sessions.Failed)
    assert failure.code == "AUTH_FAILED"
    assert "provision the pair anew" in failure.reason


def test_marks_of_a_forged_greeting_move_nothing() -> None:
    alice, bob = opened_pair()
    before = alice.pool.sending_marks(), alice.pool.seen_marks()
    greeting = bob.session._greet(0).raw
    frame = codec.decode(greeting)
    forged = msgspec.structs.replace(frame.message, sending=(Mark(PROVISIONED, 60),), counter=99)
    alice.take(codec.join(frame.header.pack(), codec.encode_body(forged)))
    assert alice.pool.seen_marks() == before[1]
    assert not alice.open


def test_greetings_for_another_link_or_node_are_refused() -> None:
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    bob.begin()
    frame = codec.decode(bob.wire[0])
    for change in ({"link": "other"}, {"node": "node-c"}, {"counter": 0}):
        alice.take(codec.join(frame.header.pack(), codec.encode_body(msgspec.structs.replace(frame.message, **change))))
    assert len(alice.refused) == 3
    assert alice.session.state is State.IDLE


def test_ends_of_different_pair_files_are_told_so_before_a_pad_is_spent() -> None:
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    bob.session._pair = b"another"
    bob.begin()
    exchange(alice, bob)
    assert not alice.open
    assert not alice.used
    (failure,) = alice.effects
    assert isinstance(failure, sessions.Failed)
    assert "another pair file" in failure.reason


def test_nothing_is_sealed_before_the_session_is_open() -> None:
    with pytest.raises(LocalProtocolError, match="before the session is open"):
        SessionEnd(ALICE).session.seal(Goodbye(True))


def test_a_claim_covers_every_message_of_its_batch_in_both_directions() -> None:
    """Dropping or changing any earlier message of the Batch makes the claim's tag fail."""
    for tampered in range(3):
        alice, bob = opened_pair()
        bob.say(sift_list(1))
        exchange(alice, bob)
        alice.say(SiftAnswer(0, 1, True, b"\x07", b"\x00", b"\x01"))
        bob.say(BatchEnd(0, 1, (2, 0), (1, 0), (0, 0)))
        for sender, receiver, number in ((alice, bob, 0), (bob, alice, 1)):
            raw = bytearray(sender.wire.pop())
            if tampered == number:
                body = codec.decode(bytes(raw)).message
                changes = {0: {"x_bits": b"\x00"}, 1: {"m_x": (1, 0)}}[number]
                frame = codec.decode(bytes(raw))
                raw[:] = codec.join(frame.header.pack(), codec.encode_body(msgspec.structs.replace(body, **changes)))
            receiver.take(bytes(raw))
        bob.say(claim(bob.session.session))
        alice.take(bob.wire.pop())
        if tampered == 2:
            assert not alice.refused
        else:
            assert isinstance(alice.refused[-1], AuthenticationError)


def claim(session: int) -> "sessions.BatchClaim":
    return sessions.BatchClaim(BatchId(session, 0), 512, 0, (2, 0), (0, 0), (1, 0), (0, 0), Disclosure(0, 0, 0, 0, 0))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["pass", "drop", "repeat", "swap", "reflect", "flip"]), st.integers(0, 2**16)),
        max_size=24,
    )
)
def test_no_channel_behaviour_makes_an_end_accept_what_was_not_sent_next(plan: list[tuple[str, int]]) -> None:
    alice, bob = opened_pair()
    sent: list[SiftList | BatchReport | Settled] = []
    history: list[bytes] = []
    for number, (behaviour, place) in enumerate(plan):
        report = BatchReport(0, (0, 0), Disclosure(0, 0, 0, 0, number), 0)
        message = (sift_list(number), report, Settled((BatchId(1, number),)))[number % 3]
        sent.append(message)
        bob.say(message)
        raw = bob.wire.pop()
        history.append(raw)
        if behaviour == "pass":
            alice.take(raw)
        elif behaviour == "repeat":
            alice.take(raw)
            alice.take(raw)
        elif behaviour == "swap":
            alice.take(history[place % len(history)])
            alice.take(raw)
        elif behaviour == "reflect":
            bob.take(raw)
            alice.take(raw)
        elif behaviour == "flip":
            changed = bytearray(raw)
            changed[place % len(raw)] ^= 1 << place % 8
            alice.take(bytes(changed))
    assert not bob.accepted
    # Transcript-protected messages are only checked by the settling tags; tagged ones never differ from what was sent.
    kept = [message for message in alice.accepted if not isinstance(message, BatchReport)]
    originals = [message for message in sent if not isinstance(message, BatchReport)]
    remaining = iter(originals)
    assert all(any(message == original for original in remaining) for message in kept), "not what was sent, in order"
    if kept != originals[: len(kept)]:
        # An altered untagged frame has taken the place of a lost one: then the Batch's claim must not verify.
        bob.say(claim(bob.session.session))
        alice.take(bob.wire.pop())
        assert isinstance(alice.refused[-1], AuthenticationError)
    assert len(set(bob.used)) == len(bob.used)
