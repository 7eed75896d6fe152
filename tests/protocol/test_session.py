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
from qkdnode.wire.messages import BatchEnd, BatchReport, Disclosure, Goodbye, PadSpan, Settled, SiftAnswer, SiftList


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


def test_replayed_greetings_and_hellos_neither_open_nor_end_a_session() -> None:
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    recorded: list[bytes] = []
    for _ in range(2):
        bob.begin()
        for _ in range(8):
            for sender, receiver in ((alice, bob), (bob, alice)):
                frames, sender.wire = sender.wire, []
                recorded += frames if sender is bob else []
                for raw in frames:
                    receiver.take(raw)
    assert alice.open
    session, used = alice.session.session, len(alice.used)
    for raw in recorded * 2:
        alice.take(raw)
    assert alice.open
    assert alice.session.session == session
    assert len(alice.used) == used
    assert len(alice.refused) == 2 * len(recorded)
    again = SessionEnd(ALICE, marks=alice.mark, run=b"start 02")
    for raw in recorded * 2:
        again.take(raw)
    assert not again.open
    assert not again.used


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


@pytest.mark.parametrize("finds_it", [ALICE, BOB])
def test_neither_end_spends_a_pad_where_a_vault_is_found_to_be_older(finds_it: str) -> None:
    ends = {ALICE: SessionEnd(ALICE), BOB: SessionEnd(BOB)}
    ends[finds_it].refuses = "this vault is an older copy"
    ends[BOB].begin()
    exchange(ends[ALICE], ends[BOB])
    for end in ends.values():
        assert end.session.state is State.IDLE
        assert not end.used
        (failure,) = end.effects
        assert isinstance(failure, sessions.Failed)
        assert failure.code == "AUTH_FAILED"
        assert "older copy" in failure.reason
        assert "provision the pair anew" in failure.reason


@pytest.mark.parametrize("stated", [{"counter": 99}, {"admitted": True}, {"refused": "older"}, {"wanted": 60}])
def test_a_forged_greeting_moves_nothing_and_ends_nothing(stated: dict[str, object]) -> None:
    alice, bob = opened_pair()
    granted, allowed = alice.granted, alice.pool.allowed()
    frame = codec.decode(bob.session.greeting(sessions.Greet(9, b"start 01", alice.counter), bob.statement()))
    forged = codec.encode_body(msgspec.structs.replace(frame.message, **stated))
    alice.take(codec.join(frame.header.pack(), forged, mac=frame.mac))
    assert alice.open
    assert (alice.granted, alice.pool.allowed()) == (granted, allowed)
    (doubt,) = [effect for effect in alice.effects if isinstance(effect, sessions.Doubted)]
    assert doubt.code == "AUTH_FAILED"


def test_a_greeting_is_believed_only_if_it_answers_this_start_of_this_end() -> None:
    """Counters of an older copy come again; what was said to them before must not."""
    bob = SessionEnd(BOB)
    recorded: list[bytes] = []
    alice = SessionEnd(ALICE)
    bob.begin()
    for _ in range(8):
        for sender, receiver in ((alice, bob), (bob, alice)):
            frames, sender.wire = sender.wire, []
            recorded += frames if sender is alice else []
            for raw in frames:
                receiver.take(raw)
    assert bob.open
    copy = SessionEnd(BOB, run=b"start 02")
    copy.begin()
    assert copy.counter == bob.counter
    for raw in recorded:
        copy.take(raw)
    assert not copy.used
    assert copy.session.state is State.GREETING


def test_pads_of_a_grant_do_not_serve_after_the_end_has_started_again() -> None:
    alice, bob = opened_pair()
    bob.pool.allow((PadSpan(PROVISIONED, bob.mark, bob.mark + 8),))
    assert bob.pool.lacks(4, b"start 01") == 0
    assert bob.pool.lacks(4, b"start 02") == 4
    again = SessionEnd(BOB, marks=bob.mark, run=b"start 02")
    again.counter = bob.counter
    alice.granted = bob.mark + 8
    again.begin()
    exchange(alice, again)
    assert again.open
    assert min(again.used).index == bob.mark + 8


def test_greetings_for_another_link_or_node_are_refused() -> None:
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    bob.begin()
    frame = codec.decode(bob.wire[0])
    for change in ({"link": "other"}, {"node": "node-c"}, {"counter": 0}):
        body = codec.encode_body(msgspec.structs.replace(frame.message, **change))
        alice.take(codec.join(frame.header.pack(), body, mac=frame.mac))
    assert len(alice.refused) == 3
    assert alice.session.state is State.IDLE


def test_ends_of_different_pair_files_are_told_so_before_a_pad_is_spent() -> None:
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    bob.session._pair = b"another"
    bob.begin()
    exchange(alice, bob)
    assert not alice.open
    assert not alice.used
    assert alice.effects
    for doubt in alice.effects:
        assert isinstance(doubt, sessions.Doubted)
        assert "another pair file" in doubt.reason


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
