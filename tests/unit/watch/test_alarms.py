"""Alarms are counted always and reported at a bounded rate."""

import pytest

from qkdnode.watch.alarms import ADVICE, REPEAT_NS, Alarm, AlarmCode, Alarms


def test_a_repeated_alarm_is_counted_and_reported_again_only_after_a_while() -> None:
    now, reported = [0], []
    alarms = Alarms(lambda alarm: reported.append(alarm.count), lambda: now[0])
    for _ in range(5):
        alarms.raise_("QBER_HIGH", "link", "detail")
    assert reported == [1]
    now[0] = REPEAT_NS
    alarms.raise_("QBER_HIGH", "link", "newer")
    assert reported == [1, 6]
    (alarm,) = alarms.all()
    assert (alarm.count, alarm.detail, alarm.first_ns, alarm.last_ns) == (6, "newer", 0, REPEAT_NS)


def test_alarms_of_different_subjects_are_different_alarms() -> None:
    reported: list[Alarm] = []
    alarms = Alarms(reported.append, lambda: 0)
    alarms.raise_("DEVICE_LOST", "a", "x")
    alarms.raise_("DEVICE_LOST", "b", "x")
    assert [alarm.subject for alarm in reported] == ["a", "b"]


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match="SOMETHING"):
        Alarms(lambda alarm: None, lambda: 0).raise_("SOMETHING", "a", "x")


def test_every_alarm_has_advice() -> None:
    assert set(ADVICE) == set(AlarmCode)
