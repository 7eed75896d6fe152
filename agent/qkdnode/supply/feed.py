"""From entries of the audit log to Pages and Heads: what was published so far, and the next step. No I/O."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from qkdnode.errors import VaultDamagedError
from qkdnode.vault.requests import LogState
from qkdnode.wire.events import CHECKPOINT, MAX_PAGE_BYTES, MAX_PAGE_LEAVES, MAX_TOPICS, Head, Page

Leaves = Sequence[tuple[int, str]]  # position and leaf
Notes = Sequence[tuple[int, int, str]]  # number, size and note


class Label(msgspec.Struct, frozen=True):
    """What of a leaf decides where it goes."""

    topic: str
    topic_sequence: int
    time_ns: int


class Step(msgspec.Struct, frozen=True):
    """What one advance has published: positions `start` to `end`, and the newest number of each topic in it."""

    start: int
    end: int
    pages: tuple[Page, ...]
    sequences: dict[str, int]


_labels = msgspec.json.Decoder(Label)


def label_of(leaf: str) -> Label:
    """Topic, number and time of a leaf that the vault has checked."""
    return _labels.decode(leaf)


class Feed:
    """How far the log is published, in one stream."""

    def __init__(self, stream: bytes, state: LogState) -> None:
        self.stream = stream
        self.end = state.size  # position after the last published
        self.sequences = dict(state.topics)
        self.checkpoint_size, self.note = state.checkpoint_size, state.note
        if state.checkpoints:
            self.sequences[CHECKPOINT] = state.checkpoints

    def advance(self, leaves: Leaves, notes: Notes) -> Step:
        """The next entries of the log, and checkpoints after the newest; those of more entries than these wait.

        VaultDamagedError if a topic's numbers have a gap.
        """
        start, end = self.end, self.end
        sequences, changed = dict(self.sequences), dict[str, int]()
        labels = [label_of(leaf) for _, leaf in leaves]
        for (position, _), label in zip(leaves, labels, strict=True):
            if position != end or label.topic_sequence != sequences.get(label.topic, 0) + 1:
                raise VaultDamagedError(f"entry {position} of the audit log does not follow on the last one published")
            end += 1
            sequences[label.topic] = changed[label.topic] = label.topic_sequence
        self.end, self.sequences = end, sequences
        ripe = [note for note in notes if note[1] <= self.end]
        for number, size, note in ripe:
            self.sequences[CHECKPOINT] = changed[CHECKPOINT] = number
            self.checkpoint_size, self.note = size, note
        return Step(start, self.end, tuple(pages_of(self.stream, leaves, labels, ripe)), changed)

    def head(self, start: int, sequences: Mapping[str, int], may_have: Callable[[str], bool]) -> Head:
        """What a subscriber is told of positions from `start` to the end."""
        visible = tuple((topic, newest) for topic, newest in sequences.items() if may_have(topic))
        return Head(self.stream, start, self.end, visible[-MAX_TOPICS:])


def pages_of(stream: bytes, leaves: Leaves, labels: Iterable[Label], notes: Notes) -> Iterable[Page]:
    """Entries by topic, in pages of bounded size."""
    entries: dict[str, list[tuple[int, int, bytes]]] = {}
    for (position, leaf), label in zip(leaves, labels, strict=True):
        entries.setdefault(label.topic, []).append((label.topic_sequence, position, leaf.encode()))
    if notes:
        entries[CHECKPOINT] = [(number, size, note.encode()) for number, size, note in notes]
    for topic, rows in entries.items():
        begin = size = 0
        for i, (_, _, text) in enumerate(rows):
            if i - begin == MAX_PAGE_LEAVES or (i > begin and size + len(text) > MAX_PAGE_BYTES):
                yield _page(stream, topic, rows[begin:i])
                begin, size = i, 0
            size += len(text)
        yield _page(stream, topic, rows[begin:])


def _page(stream: bytes, topic: str, rows: list[tuple[int, int, bytes]]) -> Page:
    return Page(stream, topic, rows[0][0], tuple(row[1] for row in rows), tuple(row[2] for row in rows))
