"""Counting what comes often: few leaves, and the sum is right."""

import pytest

from qkdnode.access.pace import Pace
from qkdnode.access.tally import Tally

ONE, OTHER = ("olga", "status"), ("olga", "links")


def test_the_first_is_told_at_once_and_the_others_of_the_period_together() -> None:
    tally = Tally(300.0)
    told = sum(tally.take(ONE, float(now)) for now in range(3600))
    for now in range(3600, 3600 + 1):
        told += sum(count for _, count in tally.due(float(now)))
    assert told == 3600


def test_a_display_that_asks_every_second_leaves_a_leaf_in_five_minutes_and_none_is_missing() -> None:
    tally, leaves, counted = Tally(300.0), 0, 0
    for now in range(3600):
        if tally.take(ONE, float(now)):
            leaves, counted = leaves + 1, counted + 1
        for _, count in tally.due(float(now)):
            leaves, counted = leaves + 1, counted + count
    counted += sum(count for _, count in tally.due(3600.0, everything=True))
    assert counted == 3600
    assert leaves <= 13


def test_topics_are_counted_apart_and_a_quiet_one_is_told_at_once_again() -> None:
    tally = Tally(10.0)
    assert tally.take(ONE, 0.0)
    assert tally.take(OTHER, 1.0)
    assert not tally.take(ONE, 2.0)
    assert tally.due(9.0) == []
    assert tally.due(10.5) == [(ONE, 1)]
    assert tally.due(21.0) == []
    assert tally.take(ONE, 22.0)


def test_what_could_not_be_told_counts_with_those_that_follow() -> None:
    tally = Tally(10.0)
    assert tally.take(ONE, 0.0)
    tally.untold(ONE)
    assert tally.due(10.0) == [(ONE, 1)]
    tally.give_back(ONE, 1, 10.0)
    assert not tally.take(ONE, 11.0)
    assert tally.due(20.0, everything=True) == [(ONE, 2)]
    tally.give_back(ONE, 2, 20.0)
    assert tally.due(21.0, everything=True) == [(ONE, 2)]
    assert tally.due(22.0, everything=True) == []


def test_there_are_only_so_many_topics_and_those_that_go_are_told_of() -> None:
    tally = Tally(10.0, max_topics=3)
    for name in "abc":
        tally.take((name,), 0.0)
        tally.take((name,), 0.0)
    assert tally.due(1.0) == []
    tally.take(("d",), 1.0)
    assert tally.due(1.0) == [(("a",), 1)]


def test_who_goes_too_fast_waits_and_who_waits_may_go_on() -> None:
    pace = Pace(burst=3, per_s=2.0)
    assert [pace.step(100.0) for _ in range(5)] == [0.0, 0.0, 0.0, pytest.approx(0.5), pytest.approx(1.0)]
    assert pace.step(101.5) == 0.0
    assert [pace.step(200.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert pace.step(199.0) == pytest.approx(0.5)  # a clock that steps back gives nothing
