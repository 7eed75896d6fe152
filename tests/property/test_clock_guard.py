"""Whatever is done to the wall clock: nothing is due early by more than is believed, and nothing late by any of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdnode.lifecycle.clockguard import (
    DAY_NS,
    SLEW,
    ClockGuard,
    Doubt,
    Limits,
    Reading,
    Standing,
)

S = 10**9
KNOWN = 1_700_000_000 * S
LIMITS = Limits(believed_ns=2 * DAY_NS, stepped_ns=10 * S)
spans = st.integers(0, 30 * DAY_NS)
steps = st.one_of(st.just(0), st.integers(-11 * S, 11 * S), st.integers(-400 * DAY_NS, 400 * DAY_NS))


@given(off=spans, wrong=steps, moves=st.lists(st.tuples(spans, steps), max_size=20))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_trusted_time_is_bounded_by_what_elapsed_whatever_the_wall_clock_says(
    off: int, wrong: int, moves: list[tuple[int, int]]
) -> None:
    wall, monotonic = KNOWN + off + wrong, 5 * S
    guard = ClockGuard(Reading(wall, monotonic), known_ns=KNOWN, limits=LIMITS)
    began, before, elapsed = guard.start, guard.start, 0
    assert KNOWN <= began.trusted_ns <= KNOWN + LIMITS.believed_ns
    told, ahead = 0, began.withheld_ns - began.behind_ns
    for span, step in moves:
        wall, monotonic, elapsed = wall + span + step, monotonic + span, elapsed + span
        now = guard.read(Reading(wall, monotonic))
        assert now.trusted_ns - before.trusted_ns >= span, "what elapsed is always trusted"
        assert now.trusted_ns <= began.trusted_ns + elapsed + elapsed // SLEW, "no more than that, but for the slew"
        assert now.trusted_ns + now.withheld_ns - now.behind_ns == wall
        told += now.doubt is not None
        before = now
    drifted = before.withheld_ns - before.behind_ns - ahead
    if abs(drifted) > LIMITS.stepped_ns + elapsed // SLEW:
        assert told, "a clock that was set is told of, in small steps too"


@given(off=st.integers(0, 2 * DAY_NS), spans=st.lists(spans, max_size=10), slew=st.integers(-500, 500))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_clock_that_is_right_or_slewed_raises_no_doubt_and_keys_are_due_on_time(
    off: int, spans: list[int], slew: int
) -> None:
    wall = KNOWN + off
    guard = ClockGuard(Reading(wall, 0), known_ns=KNOWN, limits=LIMITS)
    assert guard.start == Standing(wall, 0, None, 0)
    monotonic = 0
    for span in spans:
        for _ in range(4):
            monotonic += span // 4
            wall += span // 4 + min(9 * S, span // 4 // 10**6 * abs(slew)) * (1 if slew > 0 else 0)
            now = guard.read(Reading(wall, monotonic))
            assert now.doubt is None
            assert abs(wall - now.trusted_ns) <= 4


def is_due(due_ns: int, now: Standing) -> bool:
    """Whether the time of a timer has come."""
    return due_ns <= now.trusted_ns


def is_withheld(due_ns: int, now: Standing) -> bool:
    """Whether it would have by the wall clock, which is not believed so far."""
    return now.trusted_ns < due_ns <= now.trusted_ns + now.withheld_ns


def standing(off: int) -> tuple[ClockGuard, Standing]:
    guard = ClockGuard(Reading(KNOWN + off, 0), known_ns=KNOWN, limits=LIMITS)
    return guard, guard.start


def test_a_clock_set_forward_by_a_year_ends_no_key_before_its_time_has_elapsed() -> None:
    guard, _ = standing(0)
    due = KNOWN + 3 * DAY_NS
    now = guard.read(Reading(KNOWN + 365 * DAY_NS, 60 * S))
    assert now.doubt is Doubt.SET_FORWARD
    assert not is_due(due, now)
    assert is_withheld(due, now)
    assert is_due(due, guard.read(Reading(KNOWN + 368 * DAY_NS, 3 * DAY_NS)))


def test_a_clock_set_back_keeps_no_key_alive() -> None:
    guard, _ = standing(0)
    now = guard.read(Reading(KNOWN - 365 * DAY_NS, 4 * DAY_NS))
    assert now.doubt is Doubt.SET_BACK
    assert is_due(KNOWN + 3 * DAY_NS, now)


def test_a_node_that_was_off_for_longer_than_is_believed_waits_for_a_person() -> None:
    guard, began = standing(10 * DAY_NS)
    due = KNOWN + 5 * DAY_NS
    assert began.doubt is Doubt.AHEAD_AT_START
    assert not is_due(due, began)
    assert is_withheld(due, began)
    confirmed = guard.confirm(KNOWN + 6 * DAY_NS)
    assert is_due(due, confirmed)
    assert confirmed.withheld_ns == 4 * DAY_NS
    assert guard.confirm(KNOWN + 60 * DAY_NS) == Standing(KNOWN + 10 * DAY_NS, 0, None)
    assert guard.read(Reading(KNOWN + 10 * DAY_NS + S, S)).doubt is None


def test_a_clock_before_the_newest_entry_of_the_log_is_told_and_time_goes_on_from_the_entry() -> None:
    guard, began = standing(-5 * DAY_NS)
    assert (began.doubt, began.trusted_ns) == (Doubt.BEHIND_AT_START, KNOWN)
    assert guard.read(Reading(KNOWN, DAY_NS)).trusted_ns == KNOWN + DAY_NS


def test_many_small_steps_are_told_as_one() -> None:
    guard, _ = standing(0)
    doubts = [guard.read(Reading(KNOWN + 9 * i * S, i * S)).doubt for i in range(1, 6)]
    assert doubts.count(Doubt.SET_FORWARD) == 2


def test_a_monotonic_clock_that_goes_back_is_a_fault_of_the_caller() -> None:
    guard, _ = standing(0)
    guard.read(Reading(KNOWN, 5))
    with pytest.raises(ValueError, match="gone back"):
        guard.read(Reading(KNOWN, 4))
    with pytest.raises(ValueError, match="below zero"):
        Limits(believed_ns=-1)
