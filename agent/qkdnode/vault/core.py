"""The vault without a thread: requests in, one transaction per group, outcomes out."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import msgspec

from qkdnode.audit.checkpoint import Signer
from qkdnode.audit.events import NodeEvent
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
from qkdnode.lifecycle.clockguard import Standing
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import (
    agility,
    alarms,
    allocations,
    assets,
    batches,
    couriers,
    decoys,
    doubts,
    endings,
    entitlements,
    epochs,
    extract,
    fetches,
    holdings,
    inventory,
    keys,
    lineage,
    links,
    log,
    outbox,
    pauses,
    policies,
    proofs,
    provenance,
    readback,
    receipts,
    rehearsal,
    retirement,
    revocations,
    rotations,
    schema,
    scopes,
    scrub,
    segments,
    witnessing,
)
from qkdnode.vault.disk import DISK, Disk
from qkdnode.vault.fetches import FetchKeys
from qkdnode.vault.journal import LOG_HEAD, LOG_HEAD_MAC, Journal, Mark, empty_head
from qkdnode.vault.medium import Medium
from qkdnode.vault.requests import Caller, OpenKey, OpenKeys, Request
from qkdnode.vault.root import KEY_BYTES, RootKey, RootParameters, RootSource
from qkdnode.vault.rows import read_meta
from qkdnode.vault.sealing import Sealing, new_node_keys
from qkdnode.vault.store import Aftermath, Store

IDENTITY, IDENTITY_MAC, ROOT, CHECK = "identity", "identity MAC", "root parameters", "root check"
_CHECK = b"vault check"
NOBODY = Caller()

# Given the latest trusted time that the vault knows, and how far the wall clock was ahead of it: a clock for this run.
TrustedFrom = Callable[[int, int], Callable[[], Standing]]

HANDLERS: dict[type[Request], Callable[[Store, Any], Any]] = {}
for _module in (
    links, segments, batches, allocations, keys, outbox, alarms, log, inventory, lineage, extract, pauses, scopes,
    revocations, policies, entitlements, agility, assets, epochs, readback, receipts, scrub, proofs, witnessing,
    holdings, doubts, fetches, decoys, endings, provenance, retirement, rotations, couriers, rehearsal,
):  # fmt: skip
    HANDLERS.update(_module.HANDLERS)


class Identity(msgspec.Struct, frozen=True):
    """Whose vault it is."""

    node: str
    origin: str  # the name of its audit log
    public_key: bytes  # that verifies its checkpoints


class Outcome(msgspec.Struct, frozen=True):
    """What became of one request."""

    value: Any = None
    error: BaseException | None = None


class VaultCore:
    """One open vault file, for one thread."""

    def __init__(
        self,
        connection: apsw.Connection,
        store: Store,
        clock_ns: Callable[[], int],
        trusted: Callable[[], Standing] | None,
        path: Path,
        disk: Disk,
        lock: int,
    ) -> None:
        self._connection, self._store, self._clock_ns, self._trusted = connection, store, clock_ns, trusted
        self._path, self._disk, self._lock = path, disk, lock

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        root: RootSource,
        node: str,
        draw_into: Callable[[SecretBuffer], None],
        signer: Signer,
        clock_ns: Callable[[], int],
        create: bool = False,
        disk: Disk = DISK,
        trusted_from: TrustedFrom | None = None,
    ) -> "VaultCore":
        """Open a vault, or make one where `create` is true and there is none.

        `draw_into` fills a buffer with entropy, `signer` signs the log, `clock_ns` is the wall clock.
        `trusted_from` gives the clock that timers of keys are held to; without it the wall clock is trusted, as far as
        it does not go back.
        VaultLockedError if the root key is wrong, VaultDamagedError if the log or the node's keys are not what they
        were, VaultError if another process has the vault open.
        """
        path = Path(path)
        disk.demand_private_directory(path.parent, create)
        lock = disk.lock(path)
        connection = root_key = None
        try:
            identity = Identity(node, f"{node}.audit", signer.log_key)
            if not disk.exists(path):
                if not create:
                    raise VaultError(f"there is no vault at {path}: name the right file, or have it created")
                _make(path, disk, root, identity, draw_into)
            connection = _connect(path, disk)
            root_key = _unlock(connection, path, root)
            sealing = Sealing(connection, root_key, draw_into)
            _check_identity(connection, sealing, identity, path)
            journal = Journal(connection, sealing, node=node, origin=identity.origin, signer=signer)
            journal.resume()
            medium = Medium(path, disk.vfs)
            store = Store(connection, sealing, journal, node=node, start=os.urandom(8), medium=medium)
            now_ns = clock_ns()
            known_ns = journal.kept.trusted_ns or now_ns  # a vault that was just made knows of no time
            trusted = None if trusted_from is None else trusted_from(known_ns, journal.kept.withheld_ns)
            journal.trusted_ns = known_ns
            _read_trusted(journal, now_ns, trusted)
            _write_event(connection, journal, now_ns, "vault.opened")
        except BaseException as error:
            if connection is not None:
                _let_go(connection)
            if root_key is not None:
                root_key.destroy()
            disk.unlock(lock)
            if isinstance(error, apsw.Error):
                raise storage_error(error, path) from error
            raise
        return cls(connection, store, clock_ns, trusted, path, disk, lock)

    @property
    def path(self) -> Path:
        """The vault's file."""
        return self._path

    def group(self, requests: Iterable[Request]) -> list[Outcome]:
        """Execute requests in order, in one transaction: each stands or is undone alone, all are durable on return.

        What the storage cannot do fails the whole group: every request that was taken gets that error.
        """
        outcomes: list[Outcome] = []
        mark = self._store.journal.mark()
        taken, changes = 0, self._connection.total_changes()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for request in requests:
                taken += 1
                outcomes.append(self._execute(request))
            self._store.journal.write_head()
            begun = time.perf_counter()
            self._connection.execute("COMMIT")
            if self._connection.total_changes() != changes:
                self._store.commits = self._store.commits.and_one(taken, time.perf_counter() - begun)
            self._store.erasures.settle()
            if self._store.empties_log:
                self._empty_log()
            if self._store.journal.is_checkpoint_due or self._store.journal.is_time_to_keep:
                self._sign_log()
        except BaseException as error:
            failure = storage_error(error, self._path) if isinstance(error, apsw.Error) else error
            self._undo(mark)
            if not taken:  # not even begun: who waits now is told so
                taken = sum(1 for _ in requests)
            return [Outcome(error=failure)] * taken
        return outcomes

    def _sign_log(self) -> None:
        """After a group that only read: sign what is in the log, and write the time. The group stands, whatever the
        disk does now."""
        mark = self._store.journal.mark()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if self._store.journal.is_checkpoint_due:
                self._store.journal.checkpoint()
            self._store.journal.keep_time()
            self._connection.execute("COMMIT")
        except apsw.Error:
            self._undo(mark)

    def _empty_log(self) -> None:
        """Write all pages of the write-ahead log to the main file and cut it; not now if somebody reads the file."""
        self._store.empties_log = False
        with suppress(apsw.Error):  # what was committed stands whatever the disk does now
            self._connection.set_busy_timeout(0)
            ((busy, _, _),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._store.log_emptied += not busy
        self._connection.set_busy_timeout(schema.BUSY_MS)

    def finish(self) -> None:
        """Sign a last checkpoint and empty the write-ahead log. VaultError if the storage does not take it."""
        try:
            _write_event(self._connection, self._store.journal, self._clock_ns(), "vault.closed", checkpoint=True)
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except apsw.Error as error:
            raise storage_error(error, self._path) from error

    def close(self) -> None:
        """Close the file and wipe the keys."""
        _let_go(self._connection)
        self._store.medium.close()
        self._store.sealing.destroy()
        self._disk.unlock(self._lock)

    def _execute(self, request: Request) -> Outcome:
        """One request in its savepoint. What the storage cannot do is raised and fails the group."""
        self._read_clocks()
        handler = HANDLERS.get(type(request))
        if handler is None:
            return Outcome(error=LocalProtocolError(f"the vault does not know requests of {type(request).__name__}"))
        self._store.caller = getattr(request, "caller", NOBODY)
        if isinstance(request, OpenKey | OpenKeys | FetchKeys):
            # The most frequent requests change nothing: they go without a savepoint unless there is damage to journal.
            with suppress(Aftermath), self._store.only_reading():
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
        except apsw.ConstraintError as error:
            self._undo(mark, "ROLLBACK TO request")
            outcome = Outcome(error=LocalProtocolError(f"{type(request).__name__} repeats what must be new: {error}"))
        except apsw.Error:
            raise
        except NoEntropyError as error:
            self._undo(mark, "ROLLBACK TO request")
            outcome = Outcome(error=VaultEntropyError(f"nothing can be sealed and nothing was changed: {error}"))
        except BaseException as error:
            self._undo(mark, "ROLLBACK TO request")
            outcome = Outcome(error=error)
        self._connection.execute("RELEASE request")
        return outcome

    def _read_clocks(self) -> None:
        journal = self._store.journal
        journal.now_ns = self._clock_ns()
        _read_trusted(journal, journal.now_ns, self._trusted)

    def _undo(self, mark: Mark, statement: str = "ROLLBACK") -> None:
        if self._connection.in_transaction:
            self._connection.execute(statement)
        self._store.journal.rewind(mark)
        self._store.forget()
        if statement == "ROLLBACK":
            self._store.erasures.undo_group()
            self._store.scrub = None  # from what is written of it


def _read_trusted(journal: Journal, now_ns: int, trusted: Callable[[], Standing] | None) -> None:
    if trusted is None:
        journal.trusted_ns = max(journal.trusted_ns, now_ns)
    else:
        standing = trusted()
        journal.trusted_ns, journal.withheld_ns = standing.trusted_ns, standing.withheld_ns


def _let_go(connection: apsw.Connection) -> None:
    """Close. A disk that fails now takes nothing away: the write-ahead log stays, and is read at the next opening."""
    with suppress(apsw.Error):
        connection.close()


def storage_error(error: apsw.Error, path: Path) -> VaultError:
    """What SQLite could not do, in our words."""
    kind, advice = VaultError, "look at the disk and the system log"
    for cause, its in _STORAGE_ERRORS.items():
        if isinstance(error, cause):
            kind, advice = its
    return kind(f"vault {path}: {error}; nothing was changed: {advice}")


_STORAGE_ERRORS: dict[type[apsw.Error], tuple[type[VaultError], str]] = {
    apsw.FullError: (DiskFullError, "make room on its file system"),
    apsw.CorruptError: (VaultDamagedError, "keep the file, start a new vault"),
    apsw.NotADBError: (VaultDamagedError, "keep the file, start a new vault"),
}


def _read(store: Store, request: OpenKey | OpenKeys | FetchKeys) -> Outcome:
    try:
        return Outcome(HANDLERS[type(request)](store, request))
    except QkdnodeError as error:
        return Outcome(error=error)


def _connect(path: Path, disk: Disk) -> apsw.Connection:
    disk.demand_private_file(path)
    connection = disk.connect(path)
    try:
        application = _one(connection, "PRAGMA application_id")
        version = _one(connection, "PRAGMA user_version")
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


def _one(connection: apsw.Connection, statement: str) -> Any:
    return connection.execute(statement).fetchall()[0][0]


def _make(
    path: Path, disk: Disk, root: RootSource, identity: Identity, draw_into: Callable[[SecretBuffer], None]
) -> None:
    """Write a new vault beside its place and put it there whole."""
    fresh = path.with_name(path.name + ".new")
    disk.make(fresh)
    parameters = root.fresh()
    root_key = root.unlock(parameters)
    connection = disk.connect(fresh)
    try:
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION}")
        connection.execute(f"BEGIN;{schema.TABLES}")
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
    disk.rename(fresh, path)


def _unlock(connection: apsw.Connection, path: Path, root: RootSource) -> RootKey:
    meta = read_meta(connection, ROOT, CHECK)
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


def _check_identity(connection: apsw.Connection, sealing: Sealing, wanted: Identity, path: Path) -> None:
    meta = read_meta(connection, IDENTITY, IDENTITY_MAC)
    if sealing.mac(IDENTITY, meta.get(IDENTITY)) != meta.get(IDENTITY_MAC):
        raise VaultDamagedError(f"vault {path} does not truly say whose it is: restore the file")
    found = msgspec.json.decode(meta[IDENTITY], type=Identity)
    if found.node != wanted.node:
        raise VaultError(f"vault {path} belongs to node {found.node!r}, not to {wanted.node!r}")
    if found.public_key != wanted.public_key:
        raise VaultError(f"the log in vault {path} is signed with another key than this node's identity has")


def _write_event(
    connection: apsw.Connection, journal: Journal, now_ns: int, happened: str, *, checkpoint: bool = False
) -> None:
    """One event of the vault itself, in a transaction of its own."""
    journal.now_ns = now_ns
    connection.execute("BEGIN IMMEDIATE")
    journal.record(NodeEvent, "vault", happened, "vault", {})
    if checkpoint:
        journal.checkpoint()
    journal.write_head()
    connection.execute("COMMIT")
