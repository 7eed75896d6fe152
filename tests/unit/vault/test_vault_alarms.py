"""The vault's alarms: each change with its leaf, all of it there after a restart."""

from typing import Any

import pytest
from test_vault_damage import alter, columns_of, put_back
from vaults import End, Pair

from qkdnode.errors import LocalProtocolError, VaultDamagedError
from qkdnode.vault import records
from qkdnode.vault.requests import (
    AcknowledgeAlarm,
    Alarms,
    ClearAlarm,
    RaiseAlarm,
    RecordEvent,
    Status,
    StoredAlarm,
)

FIRST_NS = 1_700_000_000_000_000_000


def raised(occurrences: int = 1, first_ns: int = FIRST_NS, **other: Any) -> RaiseAlarm:
    known = {"code": "LINK_DOWN", "about": "metro", "severity": "major", "detail": "no answer"}
    return RaiseAlarm(**(known | other), first_ns=first_ns, last_ns=first_ns + 9, occurrences=occurrences)


def acknowledged(first_ns: int = FIRST_NS) -> AcknowledgeAlarm:
    return AcknowledgeAlarm(code="LINK_DOWN", about="metro", first_ns=first_ns, by="eve", at_ns=first_ns + 20)


def cleared(first_ns: int = FIRST_NS) -> ClearAlarm:
    return ClearAlarm(code="LINK_DOWN", about="metro", first_ns=first_ns, at_ns=first_ns + 30)


def only(end: End) -> StoredAlarm:
    (alarm,) = end.call(Alarms())
    return alarm


def leaves(end: End) -> list[Any]:
    return [event for _, event in end.vault.events_after(0, 4096) if event.topic == "alarm"]


def test_an_alarm_survives_with_count_first_seen_and_acknowledgement(pair: Pair) -> None:
    end = pair.alice
    for request in (raised(), raised(41), acknowledged()):
        end.call(request)
    before = only(end)
    assert (before.count, before.first_ns, before.state) == (42, FIRST_NS, "acknowledged")
    assert (before.acknowledged_by, before.acknowledged_ns) == ("eve", FIRST_NS + 20)
    end.reopen()
    assert only(end) == before
    end.call(raised(8))
    assert (only(end).count, only(end).state) == (50, "acknowledged")


def test_every_change_has_its_leaf_and_the_name_of_a_person_only_a_pseudonym(pair: Pair) -> None:
    end = pair.alice
    for request in (raised(3), acknowledged(), cleared()):
        end.call(request)
    events = leaves(end)
    assert [event.kind for event in events] == ["alarm.raised", "alarm.acknowledged", "alarm.cleared"]
    assert [event.topic_sequence for event in events] == [1, 2, 3]
    for event in events:
        assert event.subject == "alarm/LINK_DOWN/metro"
        assert (event.details["code"], event.details["about"]) == ("LINK_DOWN", "metro")
        assert (event.details["severity"], event.details["count"]) == ("major", 3)
    assert events[1].details["by"] != "eve"


def test_another_first_occurrence_begins_a_new_episode(pair: Pair) -> None:
    end = pair.alice
    for request in (raised(5), acknowledged(), cleared(), raised(2, FIRST_NS + 100)):
        end.call(request)
    alarm = only(end)
    assert (alarm.state, alarm.count, alarm.first_ns) == ("raised", 2, FIRST_NS + 100)
    assert (alarm.acknowledged_by, alarm.acknowledged_ns, alarm.cleared_ns) == (None, None, None)


def test_an_answer_to_another_episode_changes_nothing(pair: Pair) -> None:
    end = pair.alice
    end.call(raised())
    before, kept = only(end), len(leaves(end))
    assert not end.call(acknowledged(FIRST_NS + 1))
    assert not end.call(cleared(FIRST_NS + 1))
    assert (only(end), len(leaves(end))) == (before, kept)
    assert end.call(cleared())
    assert not end.call(cleared())
    assert not end.call(acknowledged())


def test_nobody_else_writes_leaves_about_an_alarm(pair: Pair) -> None:
    end = pair.alice
    end.call(raised())
    (event,) = leaves(end)
    with pytest.raises(LocalProtocolError, match="subject"):
        end.call(RecordEvent(event=event))


@pytest.mark.parametrize("column", columns_of(records.KnownAlarm))
def test_a_damaged_alarm_is_dropped_told_and_can_be_raised_anew(pair: Pair, column: str) -> None:
    end = pair.alice
    end.call(raised(7))
    end.call(raised(1, about="other"))
    with end.tampering() as file:
        alter(file, "alarms", column, 1)
    assert [alarm.about for alarm in end.call(Alarms())] == ["other"]
    assert end.vault.events_after(end.call(Status()).leaves - 1)[-1][1].kind == "record.damaged"
    end.call(raised(1, FIRST_NS + 100))
    assert len(end.call(Alarms())) == 2


def test_an_old_state_of_an_alarm_put_back_is_noticed(pair: Pair) -> None:
    end = pair.alice
    end.call(raised())
    put_back(end, "alarms", lambda: end.call(acknowledged()))
    with pytest.raises(VaultDamagedError, match="old state put back"):
        end.call(cleared())
    assert end.call(Alarms()) == ()
