"""Distillation end to end over real sessions: equal keys, or none."""

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from distill_pair import DistillEnd, emitted, opened, settle, shine
from hypothesis import given, settings
from hypothesis import strategies as st
from session_pair import PARAMETERS, exchange

from qkdnode.distill import effects as fx
from qkdnode.distill.batch import Phase
from qkdnode.errors import AuthenticationError, LocalProtocolError
from qkdnode.ids import ALICE, BOB, BatchId
from qkdnode.link.settlement import Settlement
from qkdnode.native.secret import WorkingBuffer
from qkdnode.wire import codec
from qkdnode.wire.messages import BatchClaim, BlockTag, Parities, SiftAnswer, SiftList

WINDOWS_OF_A_BATCH = 17


def distilled(error: float = 0.012, windows: int = WINDOWS_OF_A_BATCH) -> tuple[DistillEnd, DistillEnd]:
    alice, bob = opened()
    alice.feed(fx.PoolLevel(4096))
    for index in range(windows):
        shine(alice, bob, index, error)
        settle(alice, bob)
    return alice, bob


def reasons(end: DistillEnd) -> set[str]:
    return {effect.reason for effect in end.effects_of(fx.Discarded)}  # type: ignore[attr-defined]


def alarms(end: DistillEnd) -> set[str]:
    return {effect.code for effect in end.effects_of(fx.Alarmed)}  # type: ignore[attr-defined]


def test_both_ends_make_the_same_key_and_settle_it() -> None:
    alice, bob = distilled()
    assert len(alice.keys) == 1
    assert alice.keys == bob.keys
    assert alice.ready == bob.ready == set(alice.keys)
    assert not alice.refused
    assert not bob.refused
    (key,) = alice.keys.values()
    ones = int(np.unpackbits(np.frombuffer(key, np.uint8)).sum())
    assert abs(ones / (8 * len(key)) - 0.5) < 0.02


def test_the_record_of_a_batch_tells_errors_the_ledger_and_what_it_was_made_with() -> None:
    told = {}
    for end in distilled():
        assert end.facts is not None
        assert end.facts.ledger.disclosed(end.facts.booking) == end.facts.disclosed_bits
        around = SimpleNamespace(origins=lambda devices: {"firmware": f"{devices[0]} 1.4.2", "software_digest": "ab"})
        settlement = Settlement(SimpleNamespace(around=around), ("TX-1",), "0.1", None)  # type: ignore[arg-type]
        record = settlement._record_of(BatchId(1, 1), end.facts)
        told[end.role] = record.details
        assert (record.devices, record.disclosed_bits) == (("TX-1",), end.facts.disclosed_bits)
    assert told[ALICE] == told[BOB]
    its = told[ALICE]
    ledger = sum(int(value) for name, value in its.items() if name.startswith("ledger_"))
    assert ledger == end.facts.disclosed_bits
    assert (its["firmware"], its["software_digest"], its["software"]) == ("TX-1 1.4.2", "ab", "qkdnode 0.1")
    assert 0 < int(its["m_z"]) < int(its["n_z"])
    assert 0 < int(its["m_x"]) < int(its["n_x"])


def test_both_ends_count_the_same_disclosure_and_errors() -> None:
    alice, bob = distilled(windows=12)
    for number, batch in alice.machine.batches.items():
        other = bob.machine.batches[number]
        assert batch.tally.m_z == other.tally.m_z
        assert batch.ledger.blocks == other.ledger.blocks
        assert [batch.ledger.block(b) for b in batch.ledger.blocks] == [
            other.ledger.block(b) for b in other.ledger.blocks
        ]
        assert batch.ledger.blocks


def test_too_many_errors_raise_qber_high_at_both_ends_and_nothing_is_reconciled() -> None:
    alice, bob = distilled(error=0.2, windows=4)
    for end in (alice, bob):
        assert "QBER_HIGH" in alarms(end)
        assert not end.keys
    assert not any(isinstance(message, Parities) for message in alice.accepted + bob.accepted)


def test_a_batch_without_profit_is_filled_to_its_maximum_and_then_abandoned() -> None:
    small = msgspec.structs.replace(PARAMETERS, batch_bits=100_000, batch_max_bits=200_000)
    alice, bob = opened(small)
    for index in range(4):
        shine(alice, bob, index, count=4)
        settle(alice, bob)
    assert "NO_SECRET" in reasons(bob)
    assert "NO_SECRET" in reasons(alice)
    assert not alice.keys


def test_a_window_that_alice_has_not_got_is_discarded_at_both_ends() -> None:
    alice, bob = opened()
    _, slots, patterns = emitted(2)[0]
    bob.feed(fx.ReceiverWindowReady(0, slots.copy(), patterns.copy()))
    alice.take(bob.wire.pop())
    assert not alice.wire, "Alice waits for her module first"
    alice.feed(fx.TransmitterWindowReady(1, WorkingBuffer(len(emitted(2)[1][0]))))
    settle(alice, bob)
    assert "window-not-held" in reasons(alice) & reasons(bob)
    assert sum(bob.machine.batches[0].tally.n_z) == 0


def test_alice_answers_after_a_while_that_she_has_not_got_a_window() -> None:
    alice, bob = opened()
    _, slots, patterns = emitted(2)[0]
    bob.feed(fx.ReceiverWindowReady(0, slots.copy(), patterns.copy()))
    exchange(alice, bob, 1)
    alice.feed(fx.Tick(round(6e9)))
    settle(alice, bob)
    assert "window-not-held" in reasons(alice) & reasons(bob)


def test_a_window_is_answered_once() -> None:
    alice, bob = opened()
    shine(alice, bob, 0)
    settle(alice, bob)
    again = SiftList(0, 0, 1, b"\x00", b"\x00", 0, 0, 0)
    bob.say(again)
    settle(alice, bob)
    assert "listed before" in alice.effects_of(fx.Alarmed)[0].detail  # type: ignore[attr-defined]
    assert reasons(alice) == reasons(bob) == {"PROTOCOL"}


def test_bob_lists_no_more_than_the_windows_in_flight() -> None:
    _, bob = opened()
    for index in range(12):
        _, slots, patterns = emitted(12)[index]
        bob.feed(fx.ReceiverWindowReady(index, slots.copy(), patterns.copy()))
    lists = [raw for raw in bob.wire if isinstance(codec.decode(raw).message, SiftList)]
    assert len(lists) == bob.settings.lists_in_flight
    assert reasons(bob) == {"peer-behind"}


def tampering(alice: DistillEnd, bob: DistillEnd, kind: type, change: dict[str, object]) -> None:
    """Run a whole Batch; on the way change the first message of a kind, as an attacker without keys could."""
    done = False
    for index in range(WINDOWS_OF_A_BATCH):
        shine(alice, bob, index)
        while alice.wire or bob.wire:
            for sender, receiver in ((alice, bob), (bob, alice)):
                frames, sender.wire = sender.wire, []
                for raw in frames:
                    frame = codec.decode(raw)
                    if isinstance(frame.message, kind) and not done:
                        body = codec.encode_body(msgspec.structs.replace(frame.message, **change))
                        raw = codec.join(frame.header.pack(), body, frame.trailer)
                        done = True
                    receiver.take(raw)
    assert done


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (SiftAnswer, {"held": False, "matched": b"", "intensities": b"", "x_bits": b""}),
        (BlockTag, {"tag": bytes(16)}),
        (BatchClaim, {"bits_out": 512}),
    ],
)
def test_a_changed_message_makes_no_key_pass(kind: type, change: dict[str, object]) -> None:
    alice, bob = opened()
    tampering(alice, bob, kind, change)
    assert all(batch.number > 0 for batch in alice.ready | bob.ready), "the Batch that was tampered with is key"
    assert any(isinstance(error, AuthenticationError) for error in alice.refused) or reasons(alice) | reasons(bob)


def test_a_frame_that_does_not_reconcile_is_found_opened_and_left_out_of_the_key() -> None:
    """A bit of Alice's that changes after reconciliation makes one Frame differ: the rest still makes key."""
    alice, bob = opened()
    spoiled: list[int] = []

    def spoil(purpose: fx.Purpose) -> None:
        block = alice.machine.batches[purpose.batch].blocks[purpose.block] if purpose.name == "tag" else None
        if block is not None and not spoiled and block.cut.frames > 3:
            spoiled.append(block.number)
            first, _ = block.frame_span(2)
            with memoryview(block.result) as view:
                view[first // 8 + 7] ^= 0x10

    alice.on_draw = spoil
    for index in range(WINDOWS_OF_A_BATCH + 1):
        shine(alice, bob, index)
        settle(alice, bob)
    assert spoiled
    assert alice.keys == bob.keys
    assert alice.ready == bob.ready == set(alice.keys)
    assert len(alice.keys) == 1
    for end in (alice, bob):
        verified = [effect for effect in end.effects_of(fx.BlockVerified) if effect.opened_frames]  # type: ignore[attr-defined]
        assert [(effect.block, effect.opened_frames) for effect in verified] == [(spoiled[0], 1)]  # type: ignore[attr-defined]


def test_work_for_a_batch_that_was_given_up_is_dropped() -> None:
    alice, bob = distilled(windows=8)
    for end in (alice, bob):
        for batch in list(end.machine.batches.values()):
            end.run(end.machine.abandon(batch, "TEST"))
    settle(alice, bob)
    assert not alice.machine.batches
    assert not bob.machine.batches


def test_a_batch_that_is_being_journalled_is_not_given_up() -> None:
    alice, _ = distilled(windows=8)
    batch = next(iter(alice.machine.batches.values()))
    batch.phase = Phase.JOURNALLING
    with pytest.raises(LocalProtocolError):
        alice.machine.abandon(batch, "TEST")


def test_a_commit_for_a_batch_that_bob_lost_is_answered_abandoned_and_alice_believes_it() -> None:
    alice, bob = opened()
    for index in range(WINDOWS_OF_A_BATCH):
        shine(alice, bob, index)
        while (alice.wire or bob.wire) and not alice.commits:
            exchange(alice, bob, 1)
    (batch,) = alice.commits
    bob.machine.close()
    bob.start()
    settle(alice, bob)
    assert bob.abandoned == alice.abandoned == {batch}
    assert not bob.ready
    assert not alice.ready


def test_a_repeated_commit_gets_the_same_answer_and_a_repeated_answer_changes_nothing() -> None:
    alice, bob = distilled()
    (batch,) = alice.ready
    bob.take(alice.commits[batch])
    assert bob.wire == [bob.answers[batch]]
    settle(alice, bob)
    assert alice.ready == {batch}
    assert not alice.abandoned


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 2**30))
def test_no_flipped_bit_lets_unequal_keys_pass(position: int, place: int) -> None:
    """One bit of one frame, anywhere in a whole Batch, is flipped: ready keys are equal, or there are none."""
    alice, bob = opened()
    count = 0
    for index in range(WINDOWS_OF_A_BATCH):
        shine(alice, bob, index)
        while alice.wire or bob.wire:
            for sender, receiver in ((alice, bob), (bob, alice)):
                frames, sender.wire = sender.wire, []
                for raw in frames:
                    count += 1
                    if count == position:
                        changed = bytearray(raw)
                        changed[place % len(raw)] ^= 1 << place % 8
                        raw = bytes(changed)
                    receiver.take(raw)
    assert alice.ready <= bob.ready | alice.abandoned
    for batch in alice.ready & bob.ready:
        assert alice.keys[batch] == bob.keys[batch]


def test_batches_are_named_by_session_and_number() -> None:
    alice, _ = distilled()
    assert set(alice.keys) == {BatchId(alice.session.session, 0)}


def test_two_decoys_make_key_by_the_method_for_them() -> None:
    two = msgspec.structs.replace(
        PARAMETERS,
        intensities=(0.5, 0.12, 0.0002),
        intensity_probabilities=(0.6, 0.25, 0.15),
        method="lim2014/1",
        batch_bits=1_600_000,
    )
    alice, bob = opened(two)
    for index in range(32):
        shine(alice, bob, index, error=0.006, count=32)
        settle(alice, bob)
    assert alice.ready == bob.ready == set(alice.keys)
    assert alice.keys == bob.keys
    assert len(alice.keys) == 1


def test_the_larger_wish_for_refill_is_served() -> None:
    alice, bob = opened()
    alice.feed(fx.PoolLevel(1024))
    bob.feed(fx.PoolLevel(8192))
    journalled: list[int] = []
    for index in range(WINDOWS_OF_A_BATCH):
        shine(alice, bob, index)
        while alice.wire or bob.wire:
            exchange(alice, bob, 1)
            journalled += [batch.refill_bits for batch in bob.machine.batches.values() if batch.refill_bits]
    assert set(journalled) == {8192}
