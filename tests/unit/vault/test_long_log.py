"""A long audit log is not read before the vault serves, but beside it; what is wrong in it is found all the same."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from vaults import End

from qkdnode.audit.events import AlarmEvent, NodeEvent
from qkdnode.errors import VaultDamagedError, VaultError
from qkdnode.ids import ALICE
from qkdnode.vault import journal
from qkdnode.vault.requests import EventsAfter, LeavesAfter, RecordEvents, Status, VerifyLog


def events(count: int) -> RecordEvents:
    return RecordEvents(
        events=tuple(
            NodeEvent(time_ns=i, node="a", topic="node", kind="node.tried", subject=f"try {i}") for i in range(count)
        )
    )


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[End]:
    """A vault with a log that is too long to be read on opening."""
    monkeypatch.setattr(journal, "VERIFIED_ON_OPENING", 10)
    made = End(tmp_path, ALICE)
    made.call(events(100))
    made.vault.close()
    yield made
    made.vault.close()


def test_it_is_read_in_steps_and_gives_the_head(end: End) -> None:
    end.open()
    size = end.call(Status()).leaves - 1  # the opening's own leaf is new
    steps = [end.call(VerifyLog(limit=40)) for _ in range(4)]
    assert steps == [(40, size), (80, size), (size, size), (size, size)]
    assert end.call(events(1)) == size + 1


TAMPERING = {
    "changed": ("UPDATE leaves SET leaf = replace(leaf, 'try 50', 'lie 50') WHERE position = 51",),
    "no longer text": ("UPDATE leaves SET leaf = replace(leaf, 'try 50', CAST(x'ff' AS TEXT)) WHERE position = 51",),
    "exchanged": (
        "UPDATE leaves SET position = -1 WHERE position = 52",
        "UPDATE leaves SET position = 52 WHERE position = 51",
        "UPDATE leaves SET position = 51 WHERE position = -1",
    ),
    "missing": ("DELETE FROM leaves WHERE position = 52",),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_a_changed_entry_is_found_and_journalled(end: End, how: str) -> None:
    with end.tampering() as file:
        for statement in TAMPERING[how]:
            file.execute(statement)
    end.open()
    for _ in range(2):  # it is not forgotten either
        with pytest.raises(VaultDamagedError, match="audit log"):
            read_all(end)
    found = [event for _, event in end.call(EventsAfter(position=end.call(Status()).leaves - 1))]
    assert isinstance(found[0], AlarmEvent)
    assert found[0].kind == "log.damaged"


def read_all(end: End) -> None:
    for _ in range(4):
        end.call(VerifyLog(limit=40))


def test_a_cut_log_is_seen_on_opening(end: End) -> None:
    with end.tampering() as file:
        file.execute("DELETE FROM leaves WHERE position = (SELECT max(position) FROM leaves)")
    with pytest.raises(VaultDamagedError, match="was changed"):
        end.open()


def test_leaves_come_as_they_are_hashed(end: End) -> None:
    end.open()
    leaves = end.call(LeavesAfter(position=1, limit=3))
    decoded = end.call(EventsAfter(position=1, limit=3))
    assert [position for position, _ in leaves] == [1, 2, 3]
    assert [f'"{event.kind}"' in leaf for (_, leaf), (_, event) in zip(leaves, decoded, strict=True)] == [True] * 3


def test_who_waits_is_told_when_no_transaction_can_begin(end: End) -> None:
    end.open()
    other = apsw.Connection(str(end.path))
    try:
        end.vault._core._connection.execute("PRAGMA busy_timeout = 1").fetchall()
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(VaultError, match="nothing was changed"):
            end.vault.ask(Status()).result(timeout=10)
    finally:
        other.close()
    assert end.call(Status()).leaves
