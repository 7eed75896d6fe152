"""Protected rows in one SQLite connection: every read is verified, every change is journalled with it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hmac import compare_digest
from typing import Any, TypeVar

import apsw
import msgspec
from cryptography.exceptions import InvalidTag
from msgspec.structs import astuple, fields, replace

from qkdnode.audit.events import AlarmEvent, Detail, Event
from qkdnode.errors import QkdnodeError, VaultDamagedError
from qkdnode.lifecycle.policy.decision import Case, Decision
from qkdnode.lifecycle.policy.document import KeyClass
from qkdnode.lifecycle.policy.quotas import Allowance
from qkdnode.lifecycle.states import STAGE_OF_LETTER, Stage
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.erasures import Erasures
from qkdnode.vault.journal import Journal
from qkdnode.vault.medium import Medium
from qkdnode.vault.records import (
    Bundle,
    Chunk,
    KnownAssociation,
    Record,
    Rewrap,
    Segment,
    delivered_both,
)
from qkdnode.vault.requests import Caller, Commits, InForce
from qkdnode.vault.rows import read_rows
from qkdnode.vault.sealing import AES_256_GCM, EPOCH_NS, Sealing
from qkdnode.vault.stretches import Stretches

R = TypeVar("R", bound=Record)
DELIVERED_BOTH = "delivered at both ends"
UNDER_KEK = "rows under KEK "
_COUNT_OF_LETTER = {letter: stage.value for letter, stage in STAGE_OF_LETTER.items()}
_COUNTED = frozenset({"states", "far", "kek"})
_STATES, _FAR = 2, 3  # where the row of a Bundle has them
_COUNT = "INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"


class Statements(msgspec.Struct, frozen=True):
    """The SQL of one table."""

    select: str
    find: str  # up to the condition
    insert: str
    delete: str
    set_aside: str


class Aftermath(Exception):
    """A failure that leaves something to journal, once the failed request is undone."""

    def __init__(self, error: QkdnodeError, record: Callable[["Store"], None]) -> None:
        super().__init__(error)
        self.error = error
        self.record = record


class KnownPolicy:
    """What is kept of the policy between requests: none of it outlives a change that is undone."""

    def __init__(self) -> None:
        self.in_force: InForce | None = None
        self.decisions: dict[Case, Decision] = {}  # of the policy in force
        self.head: tuple[int, bytes] | None = None  # number and digest of the newest record, once all were verified
        self.damage = ""  # why the chain is not what was applied: found once in a run, and for good
        self.allowances: dict[str, Allowance] = {}  # by application
        self.former: dict[str, KeyClass | None] = {}  # last known terms of classes that it has lost
        self.withheld: Counter[str] = Counter()  # rule -> keys, at each attempt to have them
        self.told: dict[tuple[int, str], None] = {}  # Bundles and rules whose keys' withholding is journalled

    def forget(self) -> None:
        """Read it again before it is used; what was counted stays."""
        self.in_force = None
        self.decisions.clear()
        self.former.clear()


class Store:
    """The rows, the log and the keys of one open vault, for the request in progress.

    A damaged row raises VaultDamagedError to the asker; the request is undone, and then the row is set aside for good.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        sealing: Sealing,
        journal: Journal,
        *,
        node: str,
        start: bytes,
        medium: Medium,
    ) -> None:
        self.connection = connection
        self.sealing = sealing
        self.journal = journal
        self.node = node
        self.start = start  # names this run of the vault
        self.medium = medium  # the files, to be read again
        self.commits = Commits()
        self.erasures = Erasures()
        self.stretches = Stretches()
        self.empties_log = False  # the write-ahead log is to be emptied once this group is committed
        self.log_emptied = 0  # how often it was
        self.file_reading: Any = None  # the reading of the files in progress
        self.scrub: Any = None  # the pass over all records in progress
        self.reading = False  # the request in progress may change nothing
        self.disallowed: tuple[str, ...] = ()  # algorithms, by the node's registry on the day that counts
        self.deprecated: tuple[str, ...] = ()
        self.caller = Caller()  # who asks for it
        self.policy = KnownPolicy()
        self.generations: tuple[list[Any], dict[int, Any]] | None = None  # of associations, by their numbers
        self._associations: dict[int, KnownAssociation] = {}
        self._counts: Counter[str] = Counter()
        self.decoys: set[int] | None = None  # Bundles of decoys that hold bits, once they are looked for
        self._every: dict[type[Record], list[Any]] = {}

    @property
    def now_ns(self) -> int:
        """Wall clock of the request in progress."""
        return self.journal.now_ns

    @property
    def trusted_ns(self) -> int:
        """Trusted time of the request in progress: what timers of keys, and terms of the policy, are held to."""
        return self.journal.trusted_ns

    @property
    def who(self) -> dict[str, Detail]:
        """What leaves of access tell of who asks."""
        return {"fingerprint": self.caller.fingerprint, "source": self.caller.source, "device": self.node}

    @property
    def epoch(self) -> int:
        """The epoch in which a secret is sealed now."""
        return self.journal.now_ns // EPOCH_NS

    def kek(self, link: str) -> int:
        """The key-encryption key that a link's data keys are wrapped under now."""
        return self.sealing.kek_for(link, self.epoch, self.wrap_algorithm)

    @property
    def wrap_algorithm(self) -> str:
        """By what new key-encryption keys wrap: as the newest order to wrap anew says."""
        orders = self.every(Rewrap)
        return max(orders, key=lambda order: order.number).algorithm if orders else AES_256_GCM

    def get(self, record: type[R], *key: Any) -> R | None:
        """The verified row of a primary key, or None: unknown or set aside."""
        rows = self._rows(record, _statements(record).select, key)
        return self._verified(record, rows[0]) if rows else None

    def get_association(self, number: int) -> KnownAssociation | None:
        """An association, verified once in this run."""
        known = self._associations.get(number)
        if known is None:
            known = self.get(KnownAssociation, number)
            if known is not None:
                self._associations[number] = known
        return known

    @contextmanager
    def only_reading(self) -> Iterator[None]:
        """For a request that goes without a savepoint: what it would have to journal it must raise as an Aftermath."""
        self.reading = True
        try:
            yield
        finally:
            self.reading = False

    def associations_changed(self) -> None:
        """What was kept of associations, and of the policy that is built in for them, is read again."""
        self._associations.clear()
        self.policy.forget()

    def every(self, record: type[R]) -> list[R]:
        """All verified rows of a small table, read once until one of them changes. VaultDamagedError if one is missing.

        For what must not be overlooked: each row must be there that the log has told of.
        """
        known = self._every.get(record)
        if known is None:
            known = self._every[record] = self.find(record, "true")
            first = f"{record.table.removesuffix('s')}/"
            # Subjects of such a table begin with its name, or no missing row would be noticed.
            assert all(str(row.subject(self.sealing.pseudonym)).startswith(first) for row in known), record.table
            told = self.scalar(
                "SELECT count(DISTINCT subject) FROM leaves WHERE subject >= ? AND subject < ?", first, first[:-1] + "0"
            )
            if told > len(known):
                del self._every[record]
                raise VaultDamagedError(
                    f"the vault lacks {told - len(known)} of its {record.table}, which its log has: nothing that needs "
                    "them works; look for who wrote to the vault file, and restore it"
                )
        return known

    def find(self, record: type[R], condition: str, *values: Any) -> list[R]:
        """All verified rows of a condition in SQL, ORDER BY and LIMIT included."""
        rows = self._rows(record, _statements(record).find + condition, values)
        found = [self._genuine(record, row) for row in rows]
        subjects = [row.subject(self.sealing.pseudonym) for row in found]
        named = [subject for subject in subjects if subject is not None]
        newest = self.journal.newest_of(named)
        for row, subject in zip(found, subjects, strict=True):
            if subject is not None and newest.get(subject) != row.leaf:  # type: ignore[attr-defined]
                raise self._put_back(row)
        return found

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """All rows of a query that are no record's. VaultDamagedError if there is text that is none."""
        cursor = self.connection.execute(statement, values)
        try:
            return cursor.fetchall()
        except UnicodeDecodeError:
            raise VaultDamagedError("a row of the vault holds text that is not UTF-8: keep the file") from None
        finally:
            cursor.close(True)  # a cursor that an error leaves open would lock the file

    def scalar(self, statement: str, *values: Any) -> int:
        """The one number of a query that is no record's, such as a sum. VaultDamagedError if it adds up to none."""
        ((number,),) = read_rows(self.connection, (int,), "what the vault counts", statement, *values)
        return int(number)

    def find_sound(self, record: type[R], condition: str, *values: Any) -> list[R]:
        """As find, but damaged rows are set aside at once and the others returned."""
        with suppress(Aftermath):
            return self.find(record, condition, *values)
        sound = []
        for row in self._rows(record, _statements(record).find + condition, values):
            try:
                sound.append(self._verified(record, row))
            except Aftermath as damage:
                damage.record(self)
        return sound

    def create(
        self, row: R, happened: str, outcome: str = "done", named: Sequence[bytes] = (), /, **details: Detail
    ) -> R:
        """Insert a row and journal its creation; `named` are the ids of the keys that are concerned."""
        row = replace(row, leaf=self._journal(row, happened, outcome, details, named))
        self.insert(row)
        return row

    def change(
        self,
        row: R,
        happened: str,
        details: Mapping[str, Detail],
        outcome: str = "done",
        named: Sequence[bytes] = (),
        **changes: Any,
    ) -> R:
        """Journal a transition of a verified row, or of the `named` keys in it, and write it."""
        generation = row.generation + 1  # type: ignore[attr-defined]
        leaf = self._journal(row, happened, outcome, details, named)
        before, row = row, replace(row, generation=generation, leaf=leaf, **changes)
        if not _COUNTED.isdisjoint(changes):
            self._recount(before, row)
        self.stretches.touch(row)
        mac = self.sealing.mac(row.table, astuple(row))
        self._every.pop(type(row), None)
        statement = _update(type(row), tuple(changes))
        self.connection.execute(statement, (*changes.values(), generation, leaf, mac, *self._key(row)))
        return row

    def write(self, row: R, happened: str, details: Mapping[str, Detail], **changes: Any) -> R:
        """Journal a transition of a row and write it; one that was never written has the leaf -1."""
        if row.leaf < 0:  # type: ignore[attr-defined]
            return self.create(replace(row, leaf=0, **changes), happened, **details)
        return self.change(row, happened, details, **changes)

    def remove(self, row: Record, happened: str, /, **details: Detail) -> None:
        """Journal the end of a row and delete it."""
        self._journal(row, happened, "done", details)
        self.delete(row)

    def insert(self, row: Record) -> None:
        """Insert a row that has its leaf, or needs none."""
        self._every.pop(type(row), None)
        self._count(row, 1)
        self.stretches.touch(row)
        values = astuple(row)
        self.connection.execute(_statements(type(row)).insert, (*values, self.sealing.mac(row.table, values)))

    def delete(self, row: Record) -> None:
        """Delete a row that was journalled, or needs not be."""
        self._every.pop(type(row), None)
        self._count(row, -1)
        self.stretches.touch(row)
        self.connection.execute(_statements(type(row)).delete, self._key(row))

    def unseal(self, row: Chunk | Segment) -> SecretBuffer:
        """The secret of a verified row; the caller releases it."""
        try:
            return self.sealing.unseal(row.kek, row.bound, row.sealed, row.wrapped)
        except InvalidTag:
            raise self._damaged(type(row), self._key(row), "does not unseal") from None

    def set_aside(self, row: Record, what: str) -> None:
        """Take a row that was verified, and is damaged all the same, out of use for good."""
        self._damaged(type(row), self._key(row), what, astuple(row)).record(self)

    def alarm(
        self, happened: str, subject: str, outcome: str, named: Sequence[bytes] = (), /, **details: Detail
    ) -> int:
        """Journal something that a person should look at; `named` are the ids of the keys that are concerned."""
        keys = self.sealing.pseudonyms(named)
        return self.journal.record(AlarmEvent, "vault", happened, subject, details, outcome, keys)

    def tally(self, name: str, by: int) -> None:
        """Add to a count that is kept with the rows."""
        self._counts[name] += by

    def tallied(self, name: str) -> int:
        """What was counted under a name, in the requests before this one."""
        rows = self.rows("SELECT value FROM counts WHERE name = ?", name)
        return int(rows[0][0]) if rows else 0

    def finish(self) -> None:
        """Write what the request that ends has gathered: its leaves, and the changed counts of keys."""
        first, last = self.journal.write()
        self.erasures.end_request(first, last)
        self.stretches.write(self.connection)
        if self._counts:
            changed = [(name, by) for name, by in self._counts.items() if by]
            if changed:
                self.connection.executemany(_COUNT, changed)
            self._counts.clear()

    def forget(self) -> None:
        """Drop all that may have been rolled back."""
        self._associations.clear()
        self._every.clear()
        self._counts.clear()
        self.stretches.forget()
        self.policy.forget()
        if self.decoys is not None:
            self.decoys = {number for number in self.decoys if number < self.journal.size}
        self.sealing.forget()
        self.erasures.undo_request()

    def _recount(self, before: Record, row: Record) -> None:
        if (
            isinstance(before, Bundle)
            and isinstance(row, Bundle)
            and (before.states, before.kek) == (row.states, row.kek)  # news of the far end: half of all changes
        ):
            self._counts[DELIVERED_BOTH] += delivered_both(row.states, row.far) - delivered_both(
                before.states, before.far
            )
            return
        self._count(before, -1)
        self._count(row, 1)

    def _count(self, row: Record, by: int) -> None:
        if isinstance(row, Bundle):
            self._count_keys(row.states, row.far, by)
        if isinstance(row, Bundle | Chunk | Segment) and row.kek is not None:
            self._counts[f"{UNDER_KEK}{row.kek}"] += by

    def _count_keys(self, states: bytes, far: bytes, by: int) -> None:
        for letter in set(states):
            if (name := _COUNT_OF_LETTER.get(letter)) is not None:
                self._counts[name] += by * states.count(letter)
        if both := delivered_both(states, far):
            self._counts[DELIVERED_BOTH] += by * both

    def _rows(self, record: type[Record], statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            return self.connection.execute(statement, values).fetchall()
        except UnicodeDecodeError:
            # A row whose text was damaged must reach its check, and not keep the others from theirs.
            return self._damaged_rows(record, statement, values)

    def _damaged_rows(self, record: type[Record], statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        columns, where = _columns(record), f"({statement}) LIMIT 1 OFFSET"
        count = self.scalar(f"SELECT count(*) FROM ({statement})", *values)
        return [tuple(self._damaged_value(column, f"{where} {i}", values) for column in columns) for i in range(count)]

    def _damaged_value(self, column: str, where: str, values: tuple[Any, ...]) -> Any:
        try:
            return self.connection.execute(f"SELECT {column} FROM {where}", values).fetchall()[0][0]
        except UnicodeDecodeError:
            ((raw,),) = self.connection.execute(f"SELECT CAST({column} AS BLOB) FROM {where}", values)
            return raw.decode("utf-8", "replace")

    def _journal(
        self, row: Record, happened: str, outcome: str, details: Mapping[str, Detail], named: Sequence[bytes] = ()
    ) -> int:
        subject = row.subject(self.sealing.pseudonym)
        assert subject is not None, f"{row.table} rows are not journalled"
        link = getattr(row, "link", None)
        topic = row.heading if link is None else f"{row.heading}.{link}"
        kind: type[Event] = row.event
        keys = self.sealing.pseudonyms(named)
        return self.journal.record(kind, topic, happened, subject, details, outcome, keys, of_row=True)

    def _verified(self, record: type[R], row: tuple[Any, ...]) -> R:
        found = self._genuine(record, row)
        subject = found.subject(self.sealing.pseudonym)
        if subject is not None and self.journal.newest(subject) != found.leaf:  # type: ignore[attr-defined]
            raise self._put_back(found)
        return found

    def _genuine(self, record: type[R], row: tuple[Any, ...]) -> R:
        values = row[:-1]
        try:
            genuine = compare_digest(self.sealing.mac(record.table, values), row[-1])
        except (TypeError, OverflowError):
            genuine = False
        if not genuine:
            raise self._damaged(record, _key_of(record, row), "fails its authentication", row)
        return record(*values)

    def _put_back(self, row: Record) -> Aftermath:
        return self._damaged(type(row), self._key(row), "is an old state put back", astuple(row))

    def _damaged(self, record: type[Record], key: tuple[Any, ...], what: str, row: tuple[Any, ...] = ()) -> Aftermath:
        shown = "/".join(_shown(part) for part in key)
        name = f"{record.table}/{shown}"

        def set_aside(store: "Store") -> None:
            if record.set_aside is not None:
                store.connection.execute(_statements(record).set_aside, (record.set_aside, *key))
            if record in (Bundle, Chunk):
                store.stretches.touch_all()  # what such a row says of its place is not to be believed
            if record is Bundle:
                states, far = row[_STATES], row[_FAR]
                if isinstance(states, bytes) and isinstance(far, bytes):
                    store._count_keys(states, far, -1)
                    store._counts[Stage.DAMAGED.value] += len(states)
            elif record.dropped:
                store.connection.execute(_statements(record).delete, key)
            store.alarm("record.damaged", f"record/{name}"[:128], "set_aside", reason=what)

        aside = "it was set aside" if record.set_aside is not None else "nothing that needs it works"
        aside = "it was dropped" if record.dropped else aside
        return Aftermath(
            VaultDamagedError(f"record {name} of the vault {what}: {aside}; look for who wrote to the vault file"),
            set_aside,
        )

    @staticmethod
    def _key(row: Record) -> tuple[Any, ...]:
        return tuple(getattr(row, name) for name in row.key)


@cache
def _columns(record: type[Record]) -> tuple[str, ...]:
    return (*(field.encode_name for field in fields(record)), "mac")


@cache
def _statements(record: type[Record]) -> Statements:
    columns = _columns(record)
    table, listed = record.table, ", ".join(columns)
    where = " AND ".join(f"{name} = ?" for name in record.key)
    find = f"SELECT {listed} FROM {table} WHERE "
    if record.set_aside is not None:
        find += f"state <> '{record.set_aside}' AND "
    return Statements(
        select=find + where,
        find=find,
        insert=f"INSERT INTO {table} ({listed}) VALUES ({', '.join('?' * len(columns))})",
        delete=f"DELETE FROM {table} WHERE {where}",
        set_aside=f"UPDATE {table} SET state = ? WHERE {where}",
    )


@cache
def _update(record: type[Record], changed: tuple[str, ...]) -> str:
    """Only what changes: SQLite rewrites every index of a column that is set."""
    listed = ", ".join(f"{name} = ?" for name in (*changed, "generation", "leaf", "mac"))
    where = " AND ".join(f"{name} = ?" for name in record.key)
    return f"UPDATE {record.table} SET {listed} WHERE {where}"


def _shown(part: Any) -> str:
    if isinstance(part, bytes):
        return part[:16].hex()
    return "".join(c if c.isprintable() else "?" for c in str(part)[:40])


def _key_of(record: type[Record], row: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [field.name for field in fields(record)]
    return tuple(row[names.index(name)] for name in record.key)
