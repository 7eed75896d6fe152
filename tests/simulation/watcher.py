"""A subscriber to a node's events: what it was told, over all its absences, against what stands in the log."""

from collections.abc import Callable, Iterable

from qkdnode.audit import events
from qkdnode.client import Events, Missed, Occurrence, SignedCheckpoint
from qkdnode.errors import QkdnodeError

TOPICS = ("*", "decoys")
AT_ONCE = 1024


class Watcher:
    """Keeps what came, as a good subscriber does: `events` begins where the last run of it ended."""

    def __init__(self, name: str, breach: Callable[[str], None]) -> None:
        self.name, self._breach = name, breach
        self.leaves: list[str] = []  # by position
        self.noted = 0  # checkpoints seen

    @property
    def position(self) -> int:
        """Of the last event known."""
        return len(self.leaves) - 1

    async def follow(self, opened: Events) -> None:
        """Take what comes until this process ends."""
        try:
            async with opened:
                async for item in opened:
                    self.take(item)
        except QkdnodeError as error:
            self._breach(f"{self.name} gets no events any more: {error}")

    def take(self, item: Occurrence | SignedCheckpoint | Missed) -> None:
        """No event lost, none twice, in the order of the log."""
        match item:
            case Occurrence(position, event):
                if position != self.position + 1:
                    what = "again" if position <= self.position else "with those between missing"
                    self._breach(f"{self.name} was given event {position} after {self.position}: {what}")
                self.leaves.append(events.encode(event).decode())
            case SignedCheckpoint():
                self.noted += 1
            case Missed(first, oldest):
                self._breach(f"{self.name} missed events {first} to {oldest - 1}, which were kept")

    def compare(self, size: int, leaves_after: Callable[[int, int], Iterable[tuple[int, str]]]) -> None:
        """All that stands in a settled node's log was told, and nothing else."""
        if len(self.leaves) != size:
            self._breach(f"{self.name} was told of {len(self.leaves)} events, the log has {size}")
        for start in range(0, min(size, len(self.leaves)), AT_ONCE):
            for position, leaf in leaves_after(start, AT_ONCE):
                if position < len(self.leaves) and leaf != self.leaves[position]:
                    self._breach(f"{self.name} was told of another event {position} than stands in the log")
                    return
