"""The vault's file, written to by somebody else: a value in a row or in a whole column, or bytes of the file itself.

An input is a MessagePack array: table, column, row, value. Row -1 is every row; without a table the value is written
over the file at offset `row`. A value in an array of one stands for text of these bytes, be they UTF-8 or not. SQLite
keeps values of any type in any column, so each column of each table that the schema has is given all of them.
"""

import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from vaults import HERE, LINK, NODES, End, Pair, contents

from fuzz.engine import Violation
from fuzz.files import IN_MEMORY
from fuzz.mutation import as_msgpack, pack
from qkdnode.errors import QkdnodeError, VaultError
from qkdnode.ids import PROVISIONED, Association, KeyId
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import (
    agility,
    assets,
    extract,
    inventory,
    pauses,
    rehearsal,
    retirement,
    revocations,
    rotations,
    scopes,
)
from qkdnode.vault import requests as ask
from qkdnode.vault.export_reader import export_audit
from qkdnode.wire.messages import PadSpan

EVERY_ROW = -1
OTHERS: dict[str, tuple[Any, ...]] = {  # by what stands there, a value of each other type and one out of bounds
    "integer": (0.5, float("inf"), None, b"\xff", "x", [b"a\xff"], 2**63 - 1),
    "text": (2**62, 0.5, None, b"\xff", [b"a\xff"]),
    "blob": (2**62, 0.5, None, "x", [b"a\xff"], b"\xff"),
    "null": (2**62, 0.5, b"\xff", "x", [b"a\xff"]),
}
SPREAD = 4  # of the columns under a MAC one in so many is a seed
_kept: list[Any] = []


class Pristine(msgspec.Struct, frozen=True):
    """A vault with stock, keys, alarms, a paused link and a waiting request, closed."""

    folder: Path
    end: End
    file: bytes
    keys: dict[KeyId, bytes]
    columns: dict[str, dict[str, str]]  # table -> column -> the type that stands in its first row


@cache
def pristine() -> Pristine:
    place = tempfile.TemporaryDirectory(prefix="qkdnode-fuzz-vault-", dir=IN_MEMORY)
    _kept.append(place)
    folder = Path(place.name)
    folder.chmod(0o700)
    pair = Pair(folder)
    pair.stock()
    ids = pair.ready()
    keys = {key: contents(pair.alice, key) for key in ids}
    pair.exchange()
    pair.alice.call(pauses.PauseLink(LINK, "olga"))
    pair.alice.call(_assets("1.0.0"))
    pair.alice.call(agility.SeeDay(day="2026-11-27"))
    pair.alice.call(
        ask.RaiseAlarm(
            code="QBER_HIGH", about=LINK, severity="warning", detail="5 %", first_ns=1, last_ns=2, occurrences=1
        )
    )
    pair.alice.associate(Association("other", "far", LINK))
    pair.alice.call(scopes.Compromise(kind="application", value="other", reason="key-compromise", by="olga"))
    pair.allocate(pair.bob, 1)
    pair.exchange()
    pair.allocate(pair.alice, 1)
    pair.alice.call(
        rotations.BeginRotation(association=pair.alice.association, reason="operator", by="olga")
    )  # of which the neighbour has not heard
    pair.close()
    return Pristine(folder, pair.alice, pair.alice.path.read_bytes(), keys, _columns(pair.alice.path))


def _assets(version: str) -> assets.NoteAssets:
    seen = assets.SeenAsset("module", "TX-1", {"version": version})
    return assets.NoteAssets(kinds=("module",), seen=(seen,), expected=(("module", "TX-1"),))


def _columns(path: Path) -> dict[str, dict[str, str]]:
    """Every column that a row stands in, and what."""
    connection = sqlite3.connect(path)
    found: dict[str, dict[str, str]] = {}
    try:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            types = connection.execute(f"SELECT {', '.join(f'typeof({name})' for name in names)} FROM {table}")
            row = types.fetchone()
            if row is not None and not table.startswith("sqlite_"):
                found[table] = dict(zip(names, row, strict=True))
    finally:
        connection.close()
    return found


def vault_seeds() -> list[bytes]:
    """Every column that no MAC covers and some that one does, the types spread over them, and bytes of the file.

    A search mutates them into all others.
    """
    seeds = [pack(["", "", 8192 * page, b"\xff" * 8]) for page in range(8)]
    kinds = [(table, column, kind) for table, columns in pristine().columns.items() for column, kind in columns.items()]
    for number, (table, column, kind) in enumerate(kinds):
        if number % SPREAD == 0 or "mac" not in pristine().columns[table]:
            values = OTHERS[kind]
            seeds.append(pack([table, column, number % 3 - 1, values[number % len(values)]]))
    return seeds


def as_written(rng: random.Random, data: bytes) -> bytes:
    """Another value, of another type as often as not, in another row, column or table."""
    try:
        table, column, row, value = msgspec.msgpack.decode(data)
        kind = pristine().columns[table][column]
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, RecursionError):
        return as_msgpack(rng, data)
    if rng.random() < 0.3:
        table = rng.choice(list(pristine().columns))
        column = rng.choice(list(pristine().columns[table]))
        kind = pristine().columns[table][column]
    if rng.random() < 0.3:
        row = rng.choice((EVERY_ROW, 0, 1, 2, 5))
    if rng.random() < 0.5:
        value = rng.choice(OTHERS[kind])
    else:
        return b"\x94" + pack(table) + pack(column) + pack(row) + as_msgpack(rng, pack(value))
    return pack([table, column, row, value])


def _tamper(path: Path, data: bytes) -> None:
    try:
        table, column, row, value = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError):
        raise VaultError("no value to write") from None
    if not isinstance(row, int):
        raise VaultError("no row")
    if table == "":
        if not isinstance(value, bytes) or not 0 <= row < 1 << 20:
            raise VaultError("nothing to write over the file")
        with path.open("r+b") as file:
            file.seek(row)
            file.write(value[:4096])
        return
    if not isinstance(table, str) or not isinstance(column, str) or column not in pristine().columns.get(table, {}):
        raise VaultError("no such column")
    slot = "?"
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], bytes):
        slot, value = "CAST(? AS TEXT)", value[0]
    if isinstance(value, (list, dict, msgspec.msgpack.Ext)) or (isinstance(value, int) and abs(value) >= 2**63):
        raise VaultError("nothing that SQLite stores")
    _write(path, table, column, row, slot, value)


def _write(path: Path, table: str, column: str, row: int, slot: str, value: Any) -> None:
    """Past the schema's own constraints and indexes, as whoever holds the file can."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        if value is None:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = ?", (table,))
            connection.execute("PRAGMA writable_schema = RESET")
        connection.execute("PRAGMA synchronous = OFF")
        keys = [each[1] for each in connection.execute(f"PRAGMA table_info({table})") if each[5]] or ["rowid"]
        where = ""
        if row != EVERY_ROW:
            rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            chosen = f"SELECT {', '.join(keys)} FROM {table} LIMIT 1 OFFSET {row % rows if rows else 0}"
            where = f" WHERE ({', '.join(keys)}) IN ({chosen})"
        statement = f"UPDATE {table} SET {column} = {slot}{where}"
        try:
            connection.execute(statement, (value,))
        except sqlite3.OperationalError:  # an index over an expression that cannot be computed of this value
            connection.execute("DROP INDEX IF EXISTS leaves_subject")
            connection.execute(statement, (value,))
    except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
        raise VaultError(f"SQLite itself refuses: {error}") from None
    finally:
        connection.close()


def _requests(keys: Iterable[KeyId]) -> tuple[Any, ...]:
    """What a running agent asks, whatever table it is about."""
    peer = NODES["bob"]
    return (
        ask.Status(),
        ask.PadsLeft(link=LINK),
        ask.ReservePads(link=LINK, count=2, within=(PadSpan(PROVISIONED, 0, 64),), contiguous=True),
        ask.OpenLink(link=LINK, role="alice", peer=peer),
        ask.NextSession(link=LINK),
        ask.StateLink(link=LINK),
        ask.NeighbourOutbox(link=LINK),
        ask.ApplicationOutbox(application=HERE.local),
        ask.Outstanding(association=HERE),
        ask.Associate(association=HERE, nodes=(NODES["alice"], peer), link=LINK, purpose="test", key_class="qkd"),
        ask.AllocateKeys(association=HERE, count=1, size_bits=256, entropy=bytes(range(16))),
        ask.KeysDelivered(application=HERE.local, key_ids=tuple(keys)[:1], details={}),
        ask.PeerDelivered(link=LINK, application=HERE.remote, key_ids=tuple(keys)),
        ask.UnannouncedReady(link=LINK),
        ask.Alarms(),
        ask.RaiseAlarm(
            code="QBER_HIGH", about=LINK, severity="warning", detail="6 %", first_ns=1, last_ns=3, occurrences=1
        ),
        ask.VerifyLog(limit=1000),
        ask.LeavesAfter(position=0, limit=1000),
        ask.EventsAfter(0, 1000),
        ask.CheckpointsAfter(size=0, limit=1000),
        ask.LogHead(),
        pauses.Pauses(),
        pauses.ResumeLink(link=LINK, by="olga"),
        scopes.Scopes(),
        scopes.MoveRows(),
        rotations.Rotations(),
        rehearsal.ShowShape(association=HERE),
        rehearsal.ReadLoad(since_ns=0),
        rotations.AdvanceRotations(link=LINK),
        rotations.EndGenerations(),
        revocations.RevocationsUnconfirmed(link=LINK),
        revocations.RevokeKeys(key_ids=tuple(keys)[1:2], reason="key-compromise", by="olga"),
        retirement.ShowDue(),
        retirement.RetireKeys(),
        _assets("1.0.1"),
        agility.RootMethod(),
        agility.LatestDay(),
        agility.SeeDay(day="2026-11-28"),
        inventory.ListKeys(),
        *(inventory.ShowKey(key_id=key) for key in tuple(keys)[:1]),
        extract.LogHead(),
        extract.LogPage(position=0, size=1000, max_bytes=1 << 16),
    )


def _buffers(answer: Any) -> Iterable[SecretBuffer]:
    """The material that an answer hands over."""
    if isinstance(answer, SecretBuffer):
        yield answer
    elif isinstance(answer, tuple):
        for part in answer:
            yield from _buffers(part)
    elif isinstance(answer, msgspec.Struct):
        yield from _buffers(msgspec.structs.astuple(answer))


def take_vault(data: bytes) -> Iterable[Hashable]:
    """Whatever stands in the file, the vault refuses with words, or opens each key as it was and no pad anew."""
    kept = pristine()
    end = kept.end
    for suffix in ("-wal", "-shm"):
        end.path.with_name(end.path.name + suffix).unlink(missing_ok=True)
    end.path.write_bytes(kept.file)
    _tamper(end.path, data)
    refused = set[str]()

    def attempt(what: str, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except QkdnodeError as error:
            refused.add(f"{what} {type(error).__name__}")
            return None

    attempt("export", lambda: export_audit(end.path, lambda line: None))
    vault = end.open()
    opened = 0
    try:
        for key, content in kept.keys.items():
            found = attempt("key", lambda key=key: contents(end, key))  # type: ignore[misc]
            if found is not None and found != content:
                raise Violation("a key was opened with other contents")
            opened += found is not None
        for request in _requests(kept.keys):
            for buffer in _buffers(attempt(type(request).__name__, lambda request=request: vault.call(request))):  # type: ignore[misc]
                buffer.release()
    finally:
        attempt("close", vault.close)
    attempt("export again", lambda: export_audit(end.path, lambda line: None))
    return (opened, *sorted(refused))


def forget() -> None:
    """Remove the vault of this process."""
    if pristine.cache_info().currsize:
        shutil.rmtree(pristine().folder, ignore_errors=True)
        pristine.cache_clear()
