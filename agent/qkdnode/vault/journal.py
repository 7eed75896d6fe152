"""The audit log as the vault keeps it: leaves in the transaction of the change, the tree's frontier, checkpoints.

A change that cannot be journalled does not happen. Leaves of one request are gathered and written when it ends.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import apsw
import msgspec

from qkdnode.audit import events
from qkdnode.audit.checkpoint import Checkpoint, Signer, sign_checkpoint, verify
from qkdnode.audit.events import AnyEvent, Detail, Event
from qkdnode.audit.merkle import Frontier, Subtree, leaf_hash
from qkdnode.errors import AuditError, LocalProtocolError, VaultDamagedError
from qkdnode.vault.records import RESERVED_SUBJECTS, ROW_SUBJECTS
from qkdnode.vault.rows import read_meta, read_rows
from qkdnode.vault.sealing import Sealing
from qkdnode.wire.events import CHECKPOINT, TOPIC_PATTERN

CHECKPOINT_LEAVES = 1000
VERIFIED_ON_OPENING = 20_000  # entries, about 10 us each
CHECKPOINT_NS = 60 * 10**9
KEEP_NS = 60 * 10**9  # trusted time is written so often while nothing else is
SUBJECTS_AT_ONCE = 128
SUBJECTS_REMEMBERED = 16_384
LOG_HEAD, LOG_HEAD_MAC = "log head", "log head MAC"
LEAVES, NOTES = "an entry of the audit log in the vault", "a checkpoint in the vault"
SUBTREES = "a hash over entries of the audit log in the vault"
_TOPIC = re.compile(TOPIC_PATTERN)


class Kept(msgspec.Struct, frozen=True):
    """What is known of time, to go on from after a stop."""

    trusted_ns: int = 0
    withheld_ns: int = 0  # so far the wall clock was ahead of it, and not believed


class Mark(msgspec.Struct, frozen=True):
    """Where the log stood, to go back to."""

    frontier: Frontier
    topics: dict[str, int]
    checkpointed: int
    checkpointed_ns: int
    kept: "Kept"


class Verification:
    """How far the log that an opening found was read again, towards its authenticated head."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.frontier, self.topics = Frontier(), dict[str, int]()
        self.subtrees: list[Subtree] = []  # completed since the last look at those that are kept


class Journal:
    """The log of one open vault. Positions count from 0, a topic's numbers from 1."""

    def __init__(
        self,
        connection: apsw.Connection,
        sealing: Sealing,
        *,
        node: str,
        origin: str,
        signer: Signer,
    ) -> None:
        self._connection = connection
        self._sealing = sealing
        self._node = node
        self._origin = origin
        self.signer = signer
        self._frontier = Frontier()
        self._topics: dict[str, int] = {}
        self._checkpointed = self._checkpointed_ns = 0
        self._pending: list[str] = []
        self._pending_subjects: dict[str, int] = {}
        self._written: dict[str, int] = {}  # newest leaves that this process wrote, by subject: as many as it remembers
        self._verification = Verification(empty_head())
        self._headed = 0  # size of the log under the stored head
        self.now_ns = 0
        self.trusted_ns = 0  # time that timers are held to (qkdnode.lifecycle.clockguard), of the request in progress
        self.withheld_ns = 0  # so far the wall clock is ahead of that
        self._kept = Kept()  # as they stand in the stored head

    @property
    def origin(self) -> str:
        """Its name."""
        return self._origin

    @property
    def public_key(self) -> bytes:
        """What verifies its checkpoints."""
        return self.signer.log_key

    @property
    def kept(self) -> "Kept":
        """The latest trusted time that was written; zeros in a vault that was never opened."""
        return self._kept

    @property
    def size(self) -> int:
        """Leaves, those of the request in progress included."""
        return self._frontier.size + len(self._pending)

    def record(
        self,
        kind: type[Event],
        topic: str,
        happened: str,
        subject: str,
        details: Mapping[str, Detail],
        outcome: str = "done",
        keys: tuple[str, ...] = (),
        *,
        of_row: bool = False,
    ) -> int:
        """Journal one event, with the pseudonyms of the keys that are concerned; the position of its leaf.

        LocalProtocolError if it takes the name of a row and is not `of_row`: the row would look like an old one.
        """
        if not of_row and subject.startswith(ROW_SUBJECTS):
            raise LocalProtocolError(f"{happened} would be the newest leaf of {subject}, which is a row of the vault")
        number = self._topics.get(topic, 0) + 1
        event: Any = kind(
            time_ns=self.now_ns,
            node=self._node,
            topic=topic,
            topic_sequence=number,
            kind=happened,
            subject=subject,
            outcome=outcome,
            details=dict(details),
            keys=keys or msgspec.UNSET,
        )
        return self._append(event)

    def record_foreign(self, event: AnyEvent) -> int:
        """Journal an event of somebody else, numbered here; LocalProtocolError if it takes a record's name."""
        if event.subject.startswith(RESERVED_SUBJECTS):
            raise LocalProtocolError(f"subject {event.subject!r} is the vault's: no other events may have it")
        if event.topic not in self._topics and (not _TOPIC.match(event.topic) or event.topic == CHECKPOINT):
            raise LocalProtocolError(f"no leaf can have the topic {event.topic!r}: subscribers could not tell it apart")
        number = self._topics.get(event.topic, 0) + 1
        return self._append(msgspec.structs.replace(event, topic_sequence=number))

    def newest(self, subject: str) -> int | None:
        """Position of the newest leaf about a subject."""
        return self.newest_of((subject,)).get(subject)

    def newest_of(self, subjects: Sequence[str]) -> dict[str, int]:
        """Position of the newest leaf about each of several subjects."""
        known = self._written
        newest = {subject: known[subject] for subject in subjects if subject in known}
        others = [subject for subject in subjects if subject not in known] if len(newest) < len(subjects) else []
        for i in range(0, len(others), SUBJECTS_AT_ONCE):
            page = others[i : i + SUBJECTS_AT_ONCE]
            slots = ", ".join("?" * len(page))
            statement = f"SELECT subject, max(position) FROM leaves WHERE subject IN ({slots}) GROUP BY subject"
            newest.update(self._connection.execute(statement, page))
        if self._pending_subjects:
            newest.update((s, self._pending_subjects[s]) for s in subjects if s in self._pending_subjects)
        return newest

    def mark(self) -> Mark:
        """Remember where the log stands."""
        return Mark(self._frontier.copy(), self._topics.copy(), self._checkpointed, self._checkpointed_ns, self._kept)

    def rewind(self, mark: Mark) -> None:
        """Go back, as the transaction did. A mark serves once."""
        self._frontier, self._topics = mark.frontier, mark.topics
        self._checkpointed, self._checkpointed_ns = mark.checkpointed, mark.checkpointed_ns
        self._headed, self._kept = min(self._headed, mark.frontier.size), mark.kept
        self._pending.clear()
        self._pending_subjects.clear()
        self._written.clear()

    def write(self) -> tuple[int, int]:
        """Write the leaves of the request that ends; the positions of the first and last of them."""
        first = self._frontier.size
        if not self._pending:
            return first, first - 1
        self._connection.executemany(
            "INSERT INTO leaves (position, leaf) VALUES (?, ?)", enumerate(self._pending, first)
        )
        subtrees: list[Subtree] = []
        for leaf in self._pending:
            self._frontier.append(leaf_hash(leaf.encode()), subtrees)
        if subtrees:
            self._connection.executemany("INSERT INTO subtrees VALUES (?, ?, ?)", subtrees)
        if len(self._written) > SUBJECTS_REMEMBERED:
            self._written.clear()
        self._written.update(self._pending_subjects)
        self._pending.clear()
        self._pending_subjects.clear()
        return first, self._frontier.size - 1

    def write_head(self) -> None:
        """Before each commit of something new: the authenticated head of the log, and a checkpoint if it is due.

        The trusted time stands in it: what was done at a time cannot be followed by an earlier one.
        """
        self.write()
        if self._frontier.size != self._headed:
            if self.is_checkpoint_due:
                self.checkpoint()
            self.keep_time()

    def keep_time(self) -> None:
        """The head with the trusted time of the request in progress."""
        self._kept = Kept(max(self._kept.trusted_ns, self.trusted_ns), self.withheld_ns)
        head = _encode_head(self._frontier, self._topics, self._kept)
        rows = ((LOG_HEAD, head), (LOG_HEAD_MAC, self._sealing.mac("log head", head)))
        self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        self._headed = self._frontier.size

    @property
    def is_time_to_keep(self) -> bool:
        """Whether trusted time was not written for so long."""
        return self.trusted_ns - self._kept.trusted_ns >= KEEP_NS

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether so many leaves are not signed yet, or so long."""
        unsigned = self._frontier.size - self._checkpointed
        return unsigned >= CHECKPOINT_LEAVES or (unsigned > 0 and self.now_ns - self._checkpointed_ns >= CHECKPOINT_NS)

    def checkpoint(self) -> str:
        """The signed note over all leaves so far; the one there is if none came since."""
        self.write()
        size = self._frontier.size
        known = read_rows(self._connection, (str,), NOTES, "SELECT note FROM checkpoints WHERE size = ?", size)
        if known:
            return str(known[0][0])
        note = sign_checkpoint(Checkpoint(self._origin, size, self._frontier.root(), self.now_ns), self.signer)
        self._connection.execute("INSERT INTO checkpoints VALUES (?, ?)", (size, note))
        self._checkpointed, self._checkpointed_ns = size, self.now_ns
        return note

    def leaves_after(self, position: int, limit: int) -> tuple[tuple[int, str], ...]:
        """Leaves from a position on, as they are hashed."""
        statement = "SELECT position, leaf FROM leaves WHERE position >= ? ORDER BY position LIMIT ?"
        rows: list[Any] = read_rows(self._connection, (int, str), LEAVES, statement, position, limit)
        return tuple(rows)

    def topics(self) -> dict[str, int]:
        """The newest number of each topic."""
        return self._topics.copy()

    def newest_checkpoint(self) -> tuple[int, int, str]:
        """Number, size and note; zeros and nothing if there is none."""
        statement = "SELECT (SELECT count(*) FROM checkpoints), size, note FROM checkpoints ORDER BY size DESC LIMIT 1"
        rows: list[Any] = read_rows(self._connection, (int, int, str), NOTES, statement)
        return rows[0] if rows else (0, 0, "")

    def checkpoints_after(self, size: int, limit: int) -> tuple[tuple[int, int, str], ...]:
        """Number from 1, size and note of checkpoints of more than `size` leaves, in their order."""
        statement = "SELECT size, note FROM checkpoints WHERE size > ? ORDER BY size LIMIT ?"
        rows: list[Any] = read_rows(self._connection, (int, str), NOTES, statement, size, limit)
        if not rows:
            return ()
        ((before,),) = self._connection.execute("SELECT count(*) FROM checkpoints WHERE size <= ?", (size,))
        return tuple((before + i, its, note) for i, (its, note) in enumerate(rows, 1))

    def after(self, position: int, limit: int) -> tuple[tuple[int, AnyEvent], ...]:
        """Events from a position on."""
        return tuple((at, events.decode(leaf.encode())) for at, leaf in self.leaves_after(position, limit))

    def resume(self) -> None:
        """On opening: go on from the authenticated head. A log that is not long is verified at once, else by `verify`.

        VaultDamagedError if the head, the last checkpoint or an entry that was read is not what was written.
        """
        meta = read_meta(self._connection, LOG_HEAD, LOG_HEAD_MAC)
        head, mac = meta.get(LOG_HEAD, b""), meta.get(LOG_HEAD_MAC, b"")
        if self._sealing.mac("log head", head) != mac:
            raise VaultDamagedError(
                "the head of the audit log in the vault is damaged: keep the file, start a new vault"
            )
        frontier, topics, self._kept = _decode_head(head)
        self._frontier, self._topics, self._headed = frontier, topics, frontier.size
        self._verification = Verification(head)
        ((last,),) = self._connection.execute("SELECT coalesce(max(position) + 1, 0) FROM leaves")
        if last != frontier.size:
            raise VaultDamagedError(
                f"the audit log in the vault was changed: it has {last} entries, its authenticated head says "
                f"{frontier.size}; export it for evidence and keep the file, start a new vault"
            )
        if frontier.size <= VERIFIED_ON_OPENING:
            self.verify(VERIFIED_ON_OPENING)
        self._resume_checkpoints(frontier.size)

    def verify(self, limit: int) -> tuple[int, int]:
        """Read up to `limit` more entries of those that were there on opening; how many are read, and of how many.

        After the last one the tree over all of them must give the authenticated head. VaultDamagedError names what is
        wrong; the next call reads from the start.
        """
        seen = self._verification
        wanted, _, kept = _decode_head(seen.head)
        try:
            if seen.frontier.size < wanted.size:
                for position, leaf in read_rows(
                    self._connection,
                    (int, str),
                    LEAVES,
                    "SELECT position, leaf FROM leaves WHERE position >= ? AND position < ? ORDER BY position",
                    seen.frontier.size,
                    min(wanted.size, seen.frontier.size + limit),
                ):
                    _verify_entry(seen, position, leaf)
                self._verify_subtrees(seen)
            done = seen.frontier.size >= wanted.size
            if done and _encode_head(seen.frontier, seen.topics, kept) != seen.head:
                raise VaultDamagedError(
                    f"the audit log in the vault was changed: its {wanted.size} entries do not give its authenticated "
                    "head; export it for evidence and keep the file, start a new vault"
                )
        except VaultDamagedError:
            self._verification = Verification(seen.head)
            raise
        return seen.frontier.size, wanted.size

    def _verify_subtrees(self, seen: Verification) -> None:
        for level, number, hashed in seen.subtrees:
            statement = "SELECT hash FROM subtrees WHERE level = ? AND number = ?"
            if read_rows(self._connection, (bytes,), SUBTREES, statement, level, number) != [(hashed,)]:
                raise VaultDamagedError(
                    f"the hash over entries {number << level} to {(number + 1 << level) - 1} of the audit log is not "
                    "kept in the vault as it was: keep the file, start a new vault"
                )
        seen.subtrees.clear()

    def _resume_checkpoints(self, size: int) -> None:
        statement = "SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1"
        last = read_rows(self._connection, (int, str), NOTES, statement)
        if not last:
            return
        ((self._checkpointed, note),) = last
        try:
            checkpoint = verify(note, self.public_key)
        except AuditError as error:
            raise VaultDamagedError(f"the last checkpoint in the vault is damaged: {error}") from None
        if checkpoint.size != self._checkpointed or checkpoint.size > size:
            raise VaultDamagedError(f"the last checkpoint in the vault covers {checkpoint.size} entries, not its own")

    def _append(self, event: AnyEvent) -> int:
        leaf = events.encode(event)
        position = self._frontier.size + len(self._pending)
        self._pending.append(leaf.decode())
        self._pending_subjects[event.subject] = position
        self._topics[event.topic] = event.topic_sequence
        return position


def empty_head() -> bytes:
    """The head of a log without leaves."""
    return _encode_head(Frontier(), {}, Kept())


def _encode_head(frontier: Frontier, topics: Mapping[str, int], kept: Kept) -> bytes:
    return msgspec.msgpack.encode((frontier.encode(), sorted(topics.items()), kept.trusted_ns, kept.withheld_ns))


def _decode_head(head: bytes) -> tuple[Frontier, dict[str, int], Kept]:
    frontier, topics, *kept = msgspec.msgpack.decode(head, type=tuple[bytes, list[tuple[str, int]], int, int])
    return Frontier.decode(frontier), dict(topics), Kept(*kept)


def _verify_entry(seen: "Verification", position: int, leaf: str) -> None:
    try:
        event = events.decode(leaf.encode())
    except AuditError as error:
        raise VaultDamagedError(f"entry {position} of the audit log in the vault is damaged: {error}") from None
    number = seen.topics.get(event.topic, 0) + 1
    if seen.frontier.append(leaf_hash(leaf.encode()), seen.subtrees) != position or event.topic_sequence != number:
        raise VaultDamagedError(f"entries are missing before entry {position} of the audit log in the vault")
    seen.topics[event.topic] = number
