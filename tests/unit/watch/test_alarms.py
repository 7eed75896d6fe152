"""Alarms are counted always, told and stored at a bounded rate, and end as their kind says."""

import pytest

from qkdnode.watch.alarms import (
    KINDS,
    MOST,
    OTHERS,
    QUIET_NS,
    REPEAT_NS,
    SEVERITY,
    Alarm,
    AlarmCode,
    Alarms,
    AlarmState,
    Clearing,
    Update,
)

WALL_NS = 1_700_000_000_000_000_000
BY_CLEARING = [(code, kind.clearing) for code, kind in KINDS.items()]


class Desk:
    """Alarms under two clocks, and what was told."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.wall_ns = WALL_NS
        self.told: list[Alarm] = []
        self.alarms = Alarms(self.told.append, lambda: self.wall_ns, lambda: self.now_ns)

    def pass_(self, ns: int) -> None:
        self.now_ns += ns
        self.wall_ns += ns

    @property
    def only(self) -> Alarm:
        (alarm,) = self.alarms.all(confidential=True)
        return alarm

    def take(self) -> list[tuple[int, bool, bool]]:
        return [(update.occurrences, update.acknowledged, update.cleared) for update in self.alarms.take()]


def test_every_code_has_its_kind() -> None:
    assert list(KINDS) == list(AlarmCode)
    assert set(SEVERITY) == set(AlarmCode)
    assert all(kind.advice for kind in KINDS.values())
    assert {kind.clearing for kind in KINDS.values()} == set(Clearing)


def test_a_flood_is_told_and_stored_at_a_bounded_rate_and_counted_whole() -> None:
    desk = Desk()
    stored = 0
    writes = 0
    for _ in range(30_000):
        desk.alarms.raise_("QBER_HIGH", "metro", "detail")
        desk.pass_(REPEAT_NS // 1000)
        updates = desk.alarms.take()
        writes += len(updates)
        stored += sum(update.occurrences for update in updates)
    assert len(desk.told) == writes == 30
    stored += sum(update.occurrences for update in desk.alarms.take(everything=True))
    assert stored == desk.only.count == 30_000


def test_the_first_occurrence_is_due_at_once_and_the_next_are_not() -> None:
    desk = Desk()
    assert desk.alarms.raise_("DEVICE_LOST", "a", "x")
    assert desk.take() == [(1, False, False)]
    assert not desk.alarms.raise_("DEVICE_LOST", "a", "x")
    assert desk.take() == []
    assert desk.alarms.raise_("DEVICE_LOST", "b", "x")


def test_an_alarm_tells_what_when_and_how_often() -> None:
    desk = Desk()
    desk.alarms.raise_("AUTH_FAILED", "metro", "a tag")
    desk.pass_(5)
    desk.alarms.raise_("AUTH_FAILED", "metro", "another tag")
    alarm = desk.only
    assert (alarm.code, alarm.subject, alarm.severity) == ("AUTH_FAILED", "metro", "critical")
    assert (alarm.detail, alarm.count, alarm.first_ns, alarm.last_ns) == ("another tag", 2, WALL_NS, WALL_NS + 5)
    assert (alarm.state, alarm.acknowledged_by, alarm.cleared_ns) == ("raised", None, None)
    assert alarm.advice == KINDS[AlarmCode.AUTH_FAILED].advice


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(ValueError, match="SOMETHING"):
        Desk().alarms.raise_("SOMETHING", "a", "x")


@pytest.mark.parametrize(("code", "clearing"), BY_CLEARING)
def test_quiet_ends_what_quiet_ends(code: AlarmCode, clearing: Clearing) -> None:
    desk = Desk()
    desk.alarms.raise_(code, "a", "x")
    desk.pass_(QUIET_NS - 1)
    desk.alarms.look()
    assert desk.only.active
    desk.pass_(1)
    desk.alarms.look()
    assert desk.only.active is (clearing is not Clearing.QUIET)


@pytest.mark.parametrize(("code", "clearing"), BY_CLEARING)
def test_an_occurrence_after_an_acknowledgement_raises_anew_only_what_a_person_ends(
    code: AlarmCode, clearing: Clearing
) -> None:
    desk = Desk()
    desk.alarms.raise_(code, "a", "x")
    assert desk.alarms.acknowledge(code, "a", "eve")
    assert not desk.alarms.acknowledge(code, "a", "bob")
    acknowledged = desk.only
    assert (acknowledged.state, acknowledged.acknowledged_by) == (AlarmState.ACKNOWLEDGED, "eve")
    desk.alarms.raise_(code, "a", "y")
    if clearing is Clearing.PERSON:
        assert desk.only.state is AlarmState.RAISED
        assert desk.only.acknowledged_by is None
        assert desk.only.first_ns > acknowledged.first_ns
    else:
        assert (desk.only.state, desk.only.count) == (AlarmState.ACKNOWLEDGED, 2)


def test_a_cleared_alarm_comes_back_as_a_new_episode() -> None:
    desk = Desk()
    desk.alarms.raise_("LINK_DOWN", "a", "x")
    desk.alarms.raise_("LINK_DOWN", "a", "x")
    desk.alarms.acknowledge("LINK_DOWN", "a", "eve")
    desk.take()
    desk.alarms.clear("LINK_DOWN", "a")
    assert (desk.only.state, desk.only.cleared_ns, desk.only.count) == (AlarmState.CLEARED, WALL_NS, 2)
    desk.pass_(REPEAT_NS)
    assert desk.take() == [(0, False, True)]
    desk.wall_ns -= 10**15  # set back: the episode's name must still be new
    desk.alarms.raise_("LINK_DOWN", "a", "again")
    assert (desk.only.state, desk.only.count, desk.only.acknowledged_by) == (AlarmState.RAISED, 1, None)
    assert desk.only.first_ns == WALL_NS + 1
    assert desk.only.count_of_run == 3


def test_clearing_by_code_alone_clears_every_subject() -> None:
    desk = Desk()
    for subject in ("a", "b"):
        desk.alarms.raise_("DISK_FULL", subject, "x")
    assert desk.alarms.is_active("DISK_FULL")
    desk.alarms.clear("DISK_FULL")
    assert not desk.alarms.is_active("DISK_FULL")


def test_a_flapping_alarm_is_written_at_the_same_bounded_rate() -> None:
    desk = Desk()
    writes = occurrences = 0
    for _ in range(1000):
        desk.alarms.raise_("LINK_DOWN", "a", "x")
        desk.alarms.clear("LINK_DOWN", "a")
        desk.pass_(REPEAT_NS // 100)
        taken = desk.take()
        writes += len(taken)
        occurrences += sum(count for count, _, _ in taken)
    assert writes <= 10
    occurrences += sum(update.occurrences for update in desk.alarms.take(everything=True))
    assert occurrences == 1000


def test_an_acknowledgement_does_not_wait() -> None:
    desk = Desk()
    desk.alarms.raise_("AUTH_FAILED", "a", "x")
    desk.take()
    desk.alarms.acknowledge("AUTH_FAILED", "a", "eve")
    assert desk.take() == [(0, True, False)]


@pytest.mark.parametrize(("code", "subject"), [("LINK_DOWN", "b"), ("NOT_A_CODE", "a")])
def test_acknowledging_what_was_not_raised_is_an_error(code: str, subject: str) -> None:
    desk = Desk()
    desk.alarms.raise_("LINK_DOWN", "a", "x")
    with pytest.raises(KeyError):
        desk.alarms.acknowledge(code, subject, "eve")


def test_what_could_not_be_stored_is_kept_and_tried_again_later() -> None:
    desk = Desk()
    desk.alarms.raise_("VAULT", "a", "x")
    desk.alarms.acknowledge("VAULT", "a", "eve")
    (update,) = desk.alarms.take()
    desk.alarms.raise_("VAULT", "a", "y")
    desk.alarms.put_back(update)
    assert desk.take() == []
    desk.pass_(REPEAT_NS)
    assert desk.take() == [(2, True, False)]


def test_what_could_not_be_stored_of_an_earlier_episode_counts_in_the_next() -> None:
    desk = Desk()
    for _ in range(3):
        desk.alarms.raise_("LINK_DOWN", "a", "x")
    desk.alarms.clear("LINK_DOWN", "a")
    (update,) = desk.alarms.take()
    desk.alarms.raise_("LINK_DOWN", "a", "new")
    desk.alarms.put_back(update)
    desk.pass_(REPEAT_NS)
    assert desk.take() == [(4, False, False)]
    assert (desk.only.count, desk.only.state) == (4, AlarmState.RAISED)


def test_the_set_is_bounded_and_still_counts_everything() -> None:
    desk = Desk()
    for number in range(MOST + 500):
        desk.alarms.raise_("CONFIG", f"association {number}", "x")
    everything = desk.alarms.all()
    assert len(everything) == MOST + 1
    assert sum(alarm.count for alarm in everything) == MOST + 500
    assert [alarm.count for alarm in everything if alarm.subject == OTHERS] == [500]


def test_long_and_broken_texts_become_such_that_a_leaf_can_hold() -> None:
    desk = Desk()
    desk.alarms.raise_("VAULT", "s" * 1000, "file \udcff " * 1000)
    assert len(desk.only.subject) <= 90
    assert len(desk.only.detail) <= 200
    desk.only.detail.encode()


# --- a restart -------------------------------------------------------------------------------------------------------


def after_restart(code: str, acknowledged_by: str | None = None) -> tuple[Desk, Alarm]:
    before = Desk()
    before.alarms.raise_(code, "a", "x")
    if acknowledged_by is not None:
        before.alarms.acknowledge(code, "a", acknowledged_by)
    return Desk(), before.only


def test_a_restart_keeps_count_first_seen_and_acknowledgement() -> None:
    desk, stored = after_restart("DISK_LOW", acknowledged_by="eve")
    desk.alarms.restore([stored])
    desk.pass_(7)
    desk.alarms.raise_("DISK_LOW", "a", "y")
    assert (desk.only.count, desk.only.first_ns, desk.only.acknowledged_by) == (2, stored.first_ns, "eve")
    assert desk.only.count_of_run == 1
    assert desk.take() == [(1, False, False)]


def test_what_occurred_before_the_vault_was_open_belongs_to_the_stored_episode() -> None:
    desk, stored = after_restart("NO_ENTROPY", acknowledged_by="eve")
    desk.pass_(7)
    desk.alarms.raise_("NO_ENTROPY", "a", "newer")
    desk.alarms.restore([stored])
    alarm = desk.only
    assert (alarm.count, alarm.first_ns, alarm.acknowledged_by, alarm.detail) == (2, stored.first_ns, "eve", "newer")
    (update,) = desk.alarms.take()
    assert isinstance(update, Update)
    assert (update.alarm.first_ns, update.occurrences) == (stored.first_ns, 1)


def test_a_signal_that_does_not_come_again_after_a_restart_is_over_after_a_while() -> None:
    desk, stored = after_restart("LINK_DOWN")
    desk.alarms.restore([stored])
    desk.pass_(QUIET_NS)
    desk.alarms.look()
    assert desk.only.state is AlarmState.CLEARED
    live = Desk()
    live.alarms.raise_("LINK_DOWN", "a", "x")
    live.pass_(QUIET_NS)
    live.alarms.look()
    assert live.only.active
