"""The vault as others see it: one thread that executes requests in order and commits them in groups."""

import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import msgspec

from qkdnode.audit.events import AnyEvent, NodeEvent
from qkdnode.errors import (
    DiskFullError,
    LocalProtocolError,
    NoEntropyError,
    QkdnodeError,
    VaultDamagedError,
    VaultEntropyError,
    VaultError,
    VaultLockedError,
)
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import allocations, batches, extract, inventory, keys, links, log, outbox, pauses, schema, segments
from qkdnode.vault.journal import LOG_HEAD, LOG_HEAD_MAC, Journal, Mark, empty_head
from qkdnode.vault.requests import EventsAfter, OpenKey, ProvisionLink, Request, StorePending, StoreReady
from qkdnode.vault.root import KEY_BYTES, RootKey, RootParameters, RootSource
from qkdnode.vault.sealing import Sealing, new_node_keys
from qkdnode.vault.store import Aftermath, Store

GROUP_NS = 5_000_000
GROUP_REQUESTS = 128
IDENTITY, IDENTITY_MAC, ROOT, CHECK = "identity", "identity MAC", "root parameters", "root check"
_CHECK = b"vault check"

HANDLERS: dict[type[Request], Callable[[Store, Any], Any]] = {}
for _module in (links, segments, batches, allocations, keys, outbox, log, inventory, extract, pauses):
    HANDLERS.update(_module.HANDLERS)

# Requests whose buffer the vault takes over.
_MATERIAL: dict[type[Request], str] = {ProvisionLink: "material", StorePending: "key", StoreReady: "key"}


class Identity(msgspec.Struct, frozen=True):
    """Whose vault it is."""

    node: str
    origin: str  # the name of its audit log
    public_key: bytes  # that verifies its checkpoints


class Asked(msgspec.Struct, frozen=True):
    """A request and where its answer goes."""

    request: Request
    answer: Future[Any]


class Vault:
    """One open vault file. `ask` from any thread; requests are executed one by one, in the order asked.

    A group of requests is committed when no more wait, after 5 ms or after 128; answers come after the sync.
    """

    def __init__(
        self, connection: sqlite3.Connection, store: Store, lock: int, clock_ns: Callable[[], int], path: Path
    ) -> None:
        self._connection = connection
        self._store = store
        self._lock = lock
        self._clock_ns = clock_ns
        self._path = path
        self._queue: SimpleQueue[Asked | None] = SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="vault", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        root: RootSource,
        node: str,
        draw_into: Callable[[SecretBuffer], None],
        sign: Callable[[bytes], bytes],
        public_key: bytes,
        clock_ns: Callable[[], int],
        create: bool = False,
    ) -> "Vault":
        """Open a vault, or make one where `create` is true and there is none.

        `draw_into` fills a buffer with entropy, `sign` makes the Ed25519 signatures that `public_key` verifies,
        `clock_ns` is the wall clock. VaultLockedError if the root key is wrong, VaultDamagedError if the log or the
        node's keys are not what they were, VaultError if another process has the vault open.
        """
        path = Path(path)
        _demand_private_directory(path.parent, create)
        lock = _take_lock(path)
        connection = root_key = None
        try:
            identity = Identity(node, f"{node}.audit", public_key)
            if not path.exists():
                if not create:
                    raise VaultError(f"there is no vault at {path}: name the right file, or have it created")
                _make(path, root, identity, draw_into)
            connection = _connect(path)
            root_key = _unlock(connection, path, root)
            sealing = Sealing(connection, root_key, draw_into)
            _check_identity(connection, sealing, identity, path)
            journal = Journal(connection, sealing, node=node, origin=identity.origin, public_key=public_key, sign=sign)
            journal.rebuild()
            store = Store(connection, sealing, journal, node=node, start=os.urandom(8))
            _write_event(connection, journal, clock_ns(), "vault.opened")
        except BaseException as error:
            if connection is not None:
                connection.close()
            if root_key is not None:
                root_key.destroy()
            os.close(lock)
            if isinstance(error, sqlite3.Error):
                raise _storage_error(error, path) from error
            raise
        return cls(connection, store, lock, clock_ns, path)

    def ask(self, request: Request) -> "Future[Any]":
        """Queue a request; the future has its answer once it is durable."""
        answer: Future[Any] = Future()
        with self._gate:
            if self._closed:
                raise VaultError("the vault is closed")
            self._queue.put(Asked(request, answer))
        return answer

    def call(self, request: Request) -> Any:
        """Ask and wait."""
        return self.ask(request).result()

    def events_after(self, position: int, limit: int = 256) -> tuple[tuple[int, AnyEvent], ...]:
        """Events of the audit log from a position on, each with its position."""
        events: tuple[tuple[int, AnyEvent], ...] = self.call(EventsAfter(position, limit))
        return events

    def close(self) -> None:
        """Answer what was asked, sign a last checkpoint, empty the write-ahead log, wipe the keys. Idempotent."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._group():
                pass
            _write_event(self._connection, self._store.journal, self._clock_ns(), "vault.closed", checkpoint=True)
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            self._failure = _storage_error(error, self._path)
        except BaseException as error:
            self._failure = error
        finally:
            self._connection.close()
            self._store.sealing.destroy()
            os.close(self._lock)
            self._refuse_the_rest()

    def _refuse_the_rest(self) -> None:
        with self._gate:
            self._closed = True
        while not self._queue.empty():
            asked = self._queue.get_nowait()
            if asked is not None and asked.answer.set_running_or_notify_cancel():
                asked.answer.set_exception(VaultError(f"vault {self._path} has stopped: {self._failure}"))

    def _group(self) -> bool:
        """Execute and commit one group; False once the vault is to close."""
        asked = self._queue.get()
        taken: list[Asked] = []
        outcomes: list[Outcome] = []
        mark = self._store.journal.mark()
        until = time.monotonic_ns() + GROUP_NS
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            while asked is not None:
                if asked.answer.set_running_or_notify_cancel():
                    taken.append(asked)
                    outcomes.append(self._execute(asked.request))
                if len(taken) == GROUP_REQUESTS or time.monotonic_ns() > until:
                    break
                try:
                    asked = self._queue.get_nowait()
                except Empty:
                    break
            self._store.journal.write_head()
            self._connection.execute("COMMIT")
        except BaseException as error:
            failure = _storage_error(error, self._path) if isinstance(error, sqlite3.Error) else error
            outcomes = [Outcome(error=failure)] * len(taken)
            self._undo(mark)
        finally:
            for one, outcome in zip(taken, outcomes, strict=True):
                _deliver(one, outcome)
        return asked is not None

    def _execute(self, request: Request) -> "Outcome":
        """One request in its savepoint. What the storage cannot do is raised and fails the group."""
        self._store.journal.now_ns = self._clock_ns()
        handler = HANDLERS.get(type(request))
        if handler is None:
            return Outcome(error=LocalProtocolError(f"the vault does not know requests of {type(request).__name__}"))
        if isinstance(request, OpenKey):
            # The most frequent request changes nothing: it goes without a savepoint unless there is damage to journal.
            with suppress(Aftermath):
                return _read(self._store, request)
        mark = self._store.journal.mark()
        self._connection.execute("SAVEPOINT request")
        try:
            outcome = Outcome(handler(self._store, request))
            self._store.finish()
        except Aftermath as failure:
            self._undo(mark, "ROLLBACK TO request")
            failure.record(self._store)
            self._store.finish()
            outcome = Outcome(error=failure.error)
        except sqlite3.IntegrityError as error:
            self._undo(mark, "ROLLBACK TO request")
            outcome = Outcome(error=LocalProtocolError(f"{type(request).__name__} repeats what must be new: {error}"))
        except sqlite3.Error:
            raise
        except NoEntropyError as error:
            self._undo(mark, "ROLLBACK TO request")
            outcome = Outcome(error=VaultEntropyError(f"nothing can be sealed and nothing was changed: {error}"))
        except BaseException as error:
            self._undo(mark, "ROLLBACK TO request")
            outcome = Outcome(error=error)
        self._connection.execute("RELEASE request")
        return outcome

    def _undo(self, mark: Mark, statement: str = "ROLLBACK") -> None:
        if self._connection.in_transaction:
            self._connection.execute(statement)
        self._store.journal.rewind(mark)
        self._store.forget()


class Outcome(msgspec.Struct, frozen=True):
    """What became of one request."""

    value: Any = None
    error: BaseException | None = None


def _read(store: Store, request: OpenKey) -> Outcome:
    try:
        return Outcome(HANDLERS[OpenKey](store, request))
    except QkdnodeError as error:
        return Outcome(error=error)


def _deliver(asked: Asked, outcome: Outcome) -> None:
    if outcome.error is not None:
        asked.answer.set_exception(outcome.error)
        return
    taken_over = _MATERIAL.get(type(asked.request))
    if taken_over is not None:
        getattr(asked.request, taken_over).release()
    asked.answer.set_result(outcome.value)


def _demand_private_directory(directory: Path, create: bool) -> None:
    if create and not directory.exists():
        directory.mkdir(mode=0o700, parents=True)
    try:
        mode = directory.stat().st_mode
    except OSError as error:
        raise VaultError(f"cannot use directory {directory} of the vault: {error.strerror}") from None
    if mode & 0o077:
        raise VaultError(f"directory {directory} of the vault is open to others than its owner: chmod 700 {directory}")


def _take_lock(path: Path) -> int:
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise VaultError(f"vault {path} is open in another agent: stop that one first") from None
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise VaultError(f"vault {path} must be a file that only its owner may use: chmod 600 {path}")
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != schema.APPLICATION_ID:
            raise VaultError(f"{path} is not a vault: name the right file")
        if version != schema.SCHEMA_VERSION:
            raise VaultError(f"vault {path} has format {version}; this software reads {schema.SCHEMA_VERSION}")
        for pragma in schema.PRAGMAS:
            connection.execute(pragma).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _make(path: Path, root: RootSource, identity: Identity, draw_into: Callable[[SecretBuffer], None]) -> None:
    """Write a new vault beside its place and put it there whole."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    parameters = root.fresh()
    root_key = root.unlock(parameters)
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")
        connection.executescript(f"BEGIN;{schema.TABLES}")
        with SecretBuffer(KEY_BYTES) as zeros:
            meta = {ROOT: msgspec.json.encode(parameters), CHECK: root_key.wrap(_CHECK, zeros)}
        meta |= new_node_keys(root_key, draw_into)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        sealing = Sealing(connection, root_key, draw_into)
        encoded, head = msgspec.json.encode(identity), empty_head()
        signed = {
            IDENTITY: encoded,
            IDENTITY_MAC: sealing.mac(IDENTITY, encoded),
            LOG_HEAD: head,
            LOG_HEAD_MAC: sealing.mac(LOG_HEAD, head),
        }
        connection.executemany("INSERT INTO meta VALUES (?, ?)", signed.items())
        sealing.destroy()
        connection.execute("COMMIT")
    finally:
        connection.close()
        root_key.destroy()
    fresh.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unlock(connection: sqlite3.Connection, path: Path, root: RootSource) -> RootKey:
    meta = dict(connection.execute("SELECT name, value FROM meta WHERE name IN (?, ?)", (ROOT, CHECK)))
    try:
        parameters = msgspec.json.decode(meta[ROOT], type=RootParameters)
        check = meta[CHECK]
    except (KeyError, msgspec.MsgspecError):
        raise VaultDamagedError(f"vault {path} does not say how its root key is derived: restore the file") from None
    key = root.unlock(parameters)
    try:
        key.unwrap(_CHECK, check).release()
    except VaultLockedError:
        key.destroy()
        raise VaultLockedError(
            f"the root key does not open vault {path}: give the passphrase or credential that it was created with"
        ) from None
    return key


def _check_identity(connection: sqlite3.Connection, sealing: Sealing, wanted: Identity, path: Path) -> None:
    meta = dict(connection.execute("SELECT name, value FROM meta WHERE name IN (?, ?)", (IDENTITY, IDENTITY_MAC)))
    if sealing.mac(IDENTITY, meta.get(IDENTITY)) != meta.get(IDENTITY_MAC):
        raise VaultDamagedError(f"vault {path} does not truly say whose it is: restore the file")
    found = msgspec.json.decode(meta[IDENTITY], type=Identity)
    if found.node != wanted.node:
        raise VaultError(f"vault {path} belongs to node {found.node!r}, not to {wanted.node!r}")
    if found.public_key != wanted.public_key:
        raise VaultError(f"the log in vault {path} is signed with another key than this node's identity has")


def _write_event(
    connection: sqlite3.Connection, journal: Journal, now_ns: int, happened: str, *, checkpoint: bool = False
) -> None:
    """One event of the vault itself, in a transaction of its own."""
    journal.now_ns = now_ns
    connection.execute("BEGIN IMMEDIATE")
    journal.record(NodeEvent, "vault", happened, "vault", {})
    if checkpoint:
        journal.checkpoint()
    journal.write_head()
    connection.execute("COMMIT")


def _storage_error(error: sqlite3.Error, path: Path) -> VaultError:
    """What SQLite could not do, in our words."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    kind, advice = _STORAGE_ERRORS.get(code, (VaultError, "look at the disk and the system log"))
    return kind(f"vault {path}: {error}; nothing was changed: {advice}")


_STORAGE_ERRORS: dict[int, tuple[type[VaultError], str]] = {
    sqlite3.SQLITE_FULL: (DiskFullError, "make room on its file system"),
    sqlite3.SQLITE_CORRUPT: (VaultDamagedError, "keep the file, start a new vault"),
    sqlite3.SQLITE_NOTADB: (VaultDamagedError, "keep the file, start a new vault"),
}
