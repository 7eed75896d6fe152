"""Clock recovery: locks on consistent pulses, shrugs off an outlier, lets go at a jump, and is exact in between."""

import numpy as np
import pytest

from qkdnode.device.clock import ReceiverClock, Verdict

UNITS = 12800
SYNC = 200_000
OFFSET = 987_654_321_000


def clock() -> ReceiverClock:
    return ReceiverClock(slot_units=UNITS, sync_slots=SYNC)


def pulse_time(number: int, ppm: float = 0.0, offset: int = OFFSET) -> int:
    return offset + round(number * SYNC * UNITS * (1 + ppm * 1e-6))


def locked(first: int = 1000, ppm: float = 0.0) -> ReceiverClock:
    made = clock()
    verdicts = [made.sync(first + i, pulse_time(first + i, ppm)) for i in range(5)]
    assert verdicts == [Verdict.SEARCHING] * 4 + [Verdict.LOCKED]
    return made


@pytest.mark.parametrize("ppm", [0.0, 0.01, -3.7, 20.0, -50.0, 99.0])
@pytest.mark.parametrize("first", [0, 10, 123_456_789])
def test_the_middle_of_every_slot_is_told_exactly(ppm: float, first: int) -> None:
    made = locked(first, ppm)
    for i in range(5, 60):
        assert made.sync(first + i, pulse_time(first + i, ppm)) is Verdict.TRACKED
    slots = (first + 59) * SYNC + np.random.default_rng(1).integers(-SYNC, SYNC, 1000)
    times = [OFFSET + round((int(slot) + 0.5) * UNITS * (1 + ppm * 1e-6)) for slot in slots]
    assert np.array_equal(made.slots(np.array(times, np.uint64)), slots)
    assert made.rate_ppm == pytest.approx(ppm, abs=1e-3)


def test_it_locks_where_the_time_counter_is_near_its_end() -> None:
    made = clock()
    offset = 2**64 - 10 * SYNC * UNITS
    for number in range(8):
        made.sync(number, pulse_time(number, offset=offset))
    middle = pulse_time(7, offset=offset) + UNITS // 2
    assert made.slot(middle) == 7 * SYNC


def test_an_outlier_is_rejected_and_changes_nothing() -> None:
    made = locked()
    for number in range(1005, 1100):
        shift = UNITS if number % 3 == 0 else 0
        verdict = made.sync(number, pulse_time(number) + shift)
        assert verdict is (Verdict.REJECTED if shift else Verdict.TRACKED)
    assert made.slot(pulse_time(1099) + UNITS // 2) == 1099 * SYNC
    assert made.losses == 0


def test_jitter_below_a_quarter_slot_is_averaged() -> None:
    made = locked()
    jitter = np.random.default_rng(2).integers(-UNITS // 8, UNITS // 8, 200)
    for i, shift in enumerate(jitter):
        assert made.sync(1005 + i, pulse_time(1005 + i) + int(shift)) is Verdict.TRACKED
    assert made.slot(pulse_time(1204) + UNITS // 2) == 1204 * SYNC


@pytest.mark.parametrize("jump", [UNITS, -UNITS, 50 * SYNC * UNITS, -3 * SYNC * UNITS])
def test_a_jump_unlocks_and_is_followed_after_enough_pulses(jump: int) -> None:
    made = locked()
    verdicts = [made.sync(1005 + i, pulse_time(1005 + i) + jump) for i in range(5)]
    assert verdicts == [Verdict.REJECTED, Verdict.REJECTED, Verdict.LOST, Verdict.SEARCHING, Verdict.LOCKED]
    assert made.slot(pulse_time(1009) + jump + UNITS // 2) == 1009 * SYNC
    assert made.losses == 1


def test_missing_pulses_are_bridged() -> None:
    made = locked()
    assert made.sync(1100, pulse_time(1100)) is Verdict.TRACKED


def test_repeated_or_backward_pulse_numbers_are_outliers() -> None:
    made = locked()
    assert made.sync(1004, pulse_time(1004)) is Verdict.REJECTED
    assert made.sync(900, pulse_time(900)) is Verdict.REJECTED


def test_random_pulses_never_lock() -> None:
    made = clock()
    rng = np.random.default_rng(3)
    for number in range(2000):
        made.sync(number, int(rng.integers(0, 2**62)))
        assert not made.locked


@pytest.mark.parametrize("ppm", [150.0, -150.0])
def test_a_rate_out_of_range_never_locks(ppm: float) -> None:
    made = clock()
    for number in range(100):
        made.sync(number, pulse_time(number, ppm))
    assert not made.locked


def test_absurd_pulse_numbers_never_lock() -> None:
    made = clock()
    for number in range(2**62, 2**62 + 10):
        made.sync(number, (number * SYNC * UNITS) % 2**64)
    assert not made.locked


def test_an_unlocked_clock_tells_no_slots() -> None:
    with pytest.raises(ValueError, match="not locked"):
        clock().slot(5)
