"""A log in memory that answers what the publishing of events asks of the vault."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from signing import SIGNING

from qkdnode.audit import events
from qkdnode.audit.checkpoint import Checkpoint, sign_checkpoint
from qkdnode.audit.events import NodeEvent
from qkdnode.audit.merkle import Frontier, leaf_hash
from qkdnode.errors import VaultError
from qkdnode.vault.requests import CheckpointsAfter, LeavesAfter, LogHead, LogState

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 10**9

Result = TypeVar("Result")


class MemoryLog:
    """Entries a second apart, numbered by topic, and signed notes."""

    def __init__(self) -> None:
        self.leaves: list[str] = []
        self.notes: list[tuple[int, int, str]] = []
        self.topics: dict[str, int] = {}
        self.failing = False
        self.asked: list[Any] = []
        self._frontier = Frontier()

    def record(self, topic: str, count: int = 1, detail: str = "") -> None:
        """Append events."""
        for _ in range(count):
            self.topics[topic] = number = self.topics.get(topic, 0) + 1
            leaf = events.encode(
                NodeEvent(
                    time_ns=START_NS + len(self.leaves) * SECOND_NS,
                    node="a",
                    topic=topic,
                    topic_sequence=number,
                    kind="node.tried",
                    subject=f"try {len(self.leaves)}",
                    details={"detail": detail} if detail else {},
                )
            )
            self._frontier.append(leaf_hash(leaf))
            self.leaves.append(leaf.decode())

    def sign(self) -> None:
        """Append a checkpoint of all entries; none if the newest covers them or there are none."""
        size = len(self.leaves)
        if size > (self.notes[-1][1] if self.notes else 0):
            checkpoint = Checkpoint("a.audit", size, self._frontier.root())
            self.notes.append((len(self.notes) + 1, size, sign_checkpoint(checkpoint, SIGNING)))

    def state(self) -> LogState:
        """What LogHead answers."""
        number, size, note = self.notes[-1] if self.notes else (0, 0, "")
        return LogState(len(self.leaves), dict(self.topics), number, size, note)

    async def ask(self, request: Any) -> Any:
        """As the vault does, without its delays."""
        self.asked.append(request)
        if self.failing:
            raise VaultError("the disk is on fire")
        match request:
            case LogHead():
                return self.state()
            case LeavesAfter(position, limit):
                return tuple(enumerate(self.leaves))[position : position + limit]
            case CheckpointsAfter(size, limit):
                return tuple(note for note in self.notes if note[1] > size)[:limit]
        raise AssertionError(f"nobody should ask for {request}")


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    work.close()
    raise AssertionError("it waits")
