"""Events in the order of the node's log, each once, whatever the wire lost: sans-IO, frames and time in, items out.

Pages wait until a Head says what was published; if all of it is here, it is released in the order of the log. If not,
the log is asked for again from the last position released. What comes twice, late or damaged is left out.
"""

from collections.abc import Iterable

import msgspec

from qkdnode.access.topics import any_covers
from qkdnode.audit import checkpoint as checkpoints
from qkdnode.audit import events
from qkdnode.audit.checkpoint import Checkpoint
from qkdnode.audit.events import AnyEvent
from qkdnode.errors import AccessDeniedError, AuditError, QkdnodeError, RemoteProtocolError, SupplyError
from qkdnode.wire.events import (
    CHECKPOINT,
    MAX_TOPICS,
    Head,
    Page,
    Refused,
    Replay,
    Replayed,
    Snapshot,
    State,
    decode_answer,
    decode_published,
    encode,
    topic_frame,
)

ANSWER_WAIT_S = 5.0  # then a request is repeated
BUSY_WAIT_S = 1.0
SILENCE_S = 3.0  # without a Head the log is asked
MAX_HELD = 8192  # entries that wait for their Head
MAX_HELD_BYTES = 8 * 1024 * 1024

Key = tuple[int, int]  # position, and 0 for a checkpoint before 1 for a leaf


class Occurrence(msgspec.Struct, frozen=True):
    """An event, and its position in the node's audit log: give the last one's as `after` to go on from there."""

    position: int
    event: AnyEvent


class SignedCheckpoint(msgspec.Struct, frozen=True):
    """The node's signature on its log, verified. After a resumption the newest may come again."""

    number: int
    checkpoint: Checkpoint
    note: str


class Missed(msgspec.Struct, frozen=True):
    """Events from position `first` to before `oldest` are no longer replayed; `snapshot` says how things stand."""

    first: int
    oldest: int
    oldest_time_ns: int
    snapshot: State


Item = Occurrence | SignedCheckpoint | Missed


class Transmit(msgspec.Struct, frozen=True):
    """Send this frame to the node's replay."""

    frame: bytes


class Failure(msgspec.Struct, frozen=True):
    """It cannot go on."""

    error: QkdnodeError


Outcome = Transmit | Failure | Item


class Entry(msgspec.Struct, frozen=True):
    """One entry of a Page, decoded."""

    topic: str
    sequence: int
    item: Occurrence | SignedCheckpoint


class Gap(Exception):
    """An entry is not the next of its topic."""


class EventOrder:
    """What one subscriber has received, and what it still needs.

    `after` is the position of the last event known, -1 for all, None to begin with what happens from now on.
    `congested` is set while the items released are not taken: then nothing is released and nothing asked for.
    """

    def __init__(self, node: str, public_key: bytes, topics: Iterable[str], after: int | None) -> None:
        self._node, self._public_key, self._topics = node, public_key, tuple(topics)
        self.next = None if after is None else after + 1  # position of the first entry not released
        self.snapshot: State | None = None
        self.congested = False
        self.repaired = self.repeated = self.discarded = 0  # answers used to mend; entries left out; frames not used
        self._noted = max(0, after or 0)  # size of the newest checkpoint released
        self._sequences: dict[str, int] = {}  # topic -> number of the newest released
        self._all_known = False  # whether a topic that is not in there has none
        self._held: dict[Key, Entry] = {}
        self._held_bytes = 0
        self._span: Head | None = None  # of all Heads since the last release
        self._stream = b""
        self._behind = True
        self._missed: Refused | None = None
        self._connected = self._over = False
        self._asked: int | None = None  # number of the request that is not answered
        self._asked_s = self._heard_s = 0.0
        self._number = 0

    @property
    def up_to_date(self) -> bool:
        """Whether all that is known to be published was released."""
        return not self._behind and self._span is None and self.next is not None

    # What happens

    def connect(self, now_s: float) -> list[Outcome]:
        """The node's replay can be reached."""
        self._connected, self._asked = True, None
        self._heard_s = now_s
        return self._ask(now_s)

    def disconnect(self) -> None:
        """It cannot be reached."""
        self._connected, self._asked = False, None

    def published(self, first: bytes, body: bytes, now_s: float) -> list[Outcome]:
        """Two frames came."""
        try:
            message = decode_published(body)
            if isinstance(message, Page):
                if first != topic_frame(message.topic):
                    raise RemoteProtocolError(f"a page of {message.topic} under another topic's name")
                self._hold(message)
        except (RemoteProtocolError, AuditError):
            self.discarded += 1  # the Head will tell that it is missing
            return []
        self._heard_s = now_s
        if message.stream != self._stream:  # the node has started anew: does its log still hold what we have?
            self._stream, self._span, self._behind = message.stream, None, True
        if isinstance(message, Head):
            self._merge(message)
        return [*self._settle(), *self._ask(now_s)]

    def answered(self, frame: bytes, now_s: float) -> list[Outcome]:
        """An answer came."""
        try:
            answer = decode_answer(frame)
        except RemoteProtocolError:
            self.discarded += 1
            return []
        malformed = isinstance(answer, Refused) and answer.code == "malformed"
        if answer.request != self._asked and not malformed:
            self.discarded += 1
            return []
        self._asked = None
        match answer:
            case State():
                outcomes = self._begin(answer)
            case Replayed():
                outcomes = self._mend(answer)
            case Refused():
                outcomes = self._refused(answer, now_s)
        return [*outcomes, *self._ask(now_s)]

    def tick(self, now_s: float) -> list[Outcome]:
        """What follows from the time, or from the end of a congestion."""
        if self._asked is not None and now_s - self._asked_s >= ANSWER_WAIT_S:
            self._asked = None
        if now_s - self._heard_s >= SILENCE_S:
            self._behind, self._heard_s = True, now_s
        return [*self._settle(), *self._ask(now_s)]

    # What is held

    def _hold(self, page: Page) -> None:
        for key, entry, size in self._entries(page):
            if self._is_released(key):
                self.repeated += 1
            elif key not in self._held:
                self._held[key] = entry
                self._held_bytes += size
        if len(self._held) > MAX_HELD or self._held_bytes > MAX_HELD_BYTES:
            self._drop()

    def _drop(self) -> None:
        self._held.clear()
        self._held_bytes, self._span, self._behind = 0, None, True

    def _entries(self, page: Page) -> list[tuple[Key, Entry, int]]:
        found = []
        for i, (position, leaf) in enumerate(zip(page.positions, page.leaves, strict=True)):
            number = page.first + i
            item = self._note(number, position, leaf) if page.topic == CHECKPOINT else self._occurrence(position, leaf)
            if isinstance(item, Occurrence) and (item.event.topic, item.event.topic_sequence) != (page.topic, number):
                raise RemoteProtocolError(f"entry {position} is not the one that its page says")
            key = (position, int(isinstance(item, Occurrence)))
            found.append((key, Entry(page.topic, number, item), len(leaf)))
        return found

    def _occurrence(self, position: int, leaf: bytes) -> Occurrence:
        return Occurrence(position, events.decode(leaf))

    def _note(self, number: int, size: int, text: bytes) -> SignedCheckpoint:
        try:
            note = text.decode()
        except UnicodeDecodeError:
            raise AuditError("a checkpoint is not text") from None
        verified = checkpoints.verify(note, self._public_key)
        if verified.size != size:
            raise AuditError(f"a checkpoint of {verified.size} entries was sent as one of {size}")
        return SignedCheckpoint(number, verified, note)

    def _is_released(self, key: Key) -> bool:
        position, is_leaf = key
        return position < (self.next or 0) if is_leaf else position <= self._noted

    # What is released

    def _merge(self, head: Head) -> None:
        span = self._span
        if span is None or head.start > span.end or head.end < span.end:
            self._span = head
        else:
            sequences = {**dict(span.sequences), **dict(head.sequences)}
            self._span = Head(head.stream, min(span.start, head.start), head.end, tuple(sequences.items()))

    def _settle(self) -> list[Outcome]:
        """Release what the Heads so far speak of, if all of it is here."""
        span = self._span
        if span is None or self._behind or self.next is None:
            return []
        if self.congested:
            self._behind = True
            return []
        self._span = None
        if span.end < self.next:
            return []
        ready = sorted(key for key in self._held if key <= (span.end, 0) and not self._is_released(key))
        try:
            if span.start > self.next:
                raise Gap
            sequences = self._continued([self._held[key] for key in ready])
            if any(sequences.get(topic, 0) < n for topic, n in span.sequences if any_covers(self._topics, topic)):
                raise Gap
        except Gap:
            self._behind = True
            return []
        return self._release([self._held[key] for key in ready], span.end, sequences)

    def _continued(self, entries: list[Entry]) -> dict[str, int]:
        """The newest numbers after these entries; Gap if one does not follow."""
        sequences = dict(self._sequences)
        for entry in entries:
            last = sequences.get(entry.topic, 0 if self._all_known else None)
            if last is not None and entry.sequence != last + 1:
                raise Gap(f"number {entry.sequence} of topic {entry.topic} came after {last}")
            sequences[entry.topic] = entry.sequence
        return sequences

    def _release(self, entries: list[Entry], end: int, sequences: dict[str, int]) -> list[Outcome]:
        self.next, self._sequences = end, sequences
        for entry in entries:
            if isinstance(entry.item, SignedCheckpoint):
                self._noted = entry.item.checkpoint.size
        if self._held:
            self._held = {key: entry for key, entry in self._held.items() if not self._is_released(key)}
            if not self._held:
                self._held_bytes = 0
        return [entry.item for entry in entries]

    # What is asked for

    def _ask(self, now_s: float) -> list[Outcome]:
        if not self._connected or self._asked is not None or self.congested or self._over:
            return []
        number = (self._number + 1) % 2**32
        if self.next is None or self._missed is not None:
            request: Snapshot | Replay = Snapshot(number)
        elif self._behind:
            request = Replay(number, self.next, self._noted, self._topics)
        else:
            return []
        self._number = self._asked = number
        self._asked_s = now_s
        return [Transmit(encode(request))]

    def _begin(self, state: State) -> list[Outcome]:
        self.snapshot = state
        if (missed := self._missed) is not None and self.next is not None:
            first, self.next = self.next, missed.oldest
            self._missed, self._noted = None, max(self._noted, missed.oldest)
            self._sequences, self._all_known = {}, False
            return [Missed(first, missed.oldest, missed.oldest_time_ns, state)]
        if self.next is None:
            sequences = {topic: n for topic, n in state.sequences if any_covers(self._topics, topic)}
            self.next, self._sequences, self._all_known = state.end, sequences, len(state.sequences) < MAX_TOPICS
            if state.checkpoint:
                try:
                    self._noted = checkpoints.verify(state.checkpoint, self._public_key).size
                except AuditError as error:
                    return self._fail(AuditError(f"node {self._node}: {error}"))
        return []

    def _mend(self, answer: Replayed) -> list[Outcome]:
        if self.next is None or answer.start != self.next or answer.end < answer.start:
            self.discarded += 1
            return []
        self.repaired += 1
        try:
            found = {key: entry for page in answer.pages for key, entry, _ in self._entries(page)}
            fresh = [found[key] for key in sorted(found) if not self._is_released(key) and key <= (answer.end, 0)]
            sequences = self._continued(fresh)
            for topic, newest in answer.sequences:
                if sequences.setdefault(topic, newest) != newest:
                    raise Gap(f"the newest number of topic {topic} is {newest}, but {sequences[topic]} came")
        except (Gap, AuditError, RemoteProtocolError) as error:
            return self._fail(AuditError(f"the log that node {self._node} replays is not what it claims: {error}"))
        outcomes = self._release(fresh, answer.end, sequences)
        if answer.complete:
            self._behind, self._all_known = False, len(answer.sequences) < MAX_TOPICS
        return [*outcomes, *self._settle()]

    def _refused(self, answer: Refused, now_s: float) -> list[Outcome]:
        if answer.code in ("busy", "failed"):
            self._asked, self._asked_s = (
                answer.request,
                now_s - ANSWER_WAIT_S + BUSY_WAIT_S,
            )  # asked again a little later
            return []
        if answer.code == "before_retention" and self.next is not None and answer.oldest > self.next:
            self._missed = answer
            return []
        said = f"node {self._node}: {answer.reason}"
        return self._fail(AccessDeniedError(said) if answer.code == "denied" else SupplyError(said))

    def _fail(self, error: QkdnodeError) -> list[Outcome]:
        self._over = True
        return [Failure(error)]
