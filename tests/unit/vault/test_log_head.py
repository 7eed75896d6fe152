"""What the publishing of events asks the vault: where its log stands, and which checkpoints there are."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from vaults import End

from qkdnode.audit.events import NodeEvent
from qkdnode.errors import LocalProtocolError
from qkdnode.ids import ALICE
from qkdnode.vault.requests import Checkpoint, CheckpointsAfter, LeavesAfter, LogHead, LogState, RecordEvents


@pytest.fixture
def end(tmp_path: Path) -> Iterator[End]:
    made = End(tmp_path, ALICE)
    yield made
    made.vault.close()


def events(topic: str, count: int) -> tuple[NodeEvent, ...]:
    return tuple(
        NodeEvent(time_ns=i, node="a", topic=topic, kind="node.tried", subject=f"try {i}") for i in range(count)
    )


def test_the_head_says_size_topics_and_the_newest_checkpoint(end: End) -> None:
    before: LogState = end.call(LogHead())
    end.call(RecordEvents(events=events("node", 3)))
    note = end.call(Checkpoint())
    head: LogState = end.call(LogHead())
    assert head.size == before.size + 3 == len(end.call(LeavesAfter(position=0, limit=4096)))
    assert head.topics == {**before.topics, "node": 3}
    assert (head.checkpoints, head.checkpoint_size, head.note) == (before.checkpoints + 1, head.size, note)


def test_checkpoints_are_numbered_over_restarts(end: End) -> None:
    for _ in range(3):
        end.call(RecordEvents(events=events("node", 2)))
        end.call(Checkpoint())
    notes = end.call(CheckpointsAfter(size=0))
    assert [number for number, _, _ in notes] == list(range(1, len(notes) + 1))
    assert [size for _, size, _ in notes] == sorted(size for _, size, _ in notes)
    end.vault.close()
    end.open()
    again = end.call(CheckpointsAfter(size=0))
    assert again[: len(notes)] == notes
    assert end.call(CheckpointsAfter(size=notes[1][1])) == again[2:]
    assert end.call(CheckpointsAfter(size=0, limit=2)) == notes[:2]
    assert end.call(CheckpointsAfter(size=10**9)) == ()


@pytest.mark.parametrize("topic", ["checkpoint", "alarm\0", "Alarm", "a*", ".a", "a b"])
def test_a_topic_that_subscribers_could_not_tell_apart_is_refused(end: End, topic: str) -> None:
    size = end.call(LogHead()).size
    with pytest.raises(LocalProtocolError, match="topic"):
        end.call(RecordEvents(events=events(topic, 1)))
    assert end.call(LogHead()).size == size
