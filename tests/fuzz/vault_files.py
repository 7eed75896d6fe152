"""The vault's file, written to by somebody else: one value of one row, or bytes of the file itself."""

import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from vaults import HERE, LINK, End, Pair, contents

from fuzz.engine import Violation
from fuzz.files import IN_MEMORY
from fuzz.mutation import pack
from qkdnode.errors import QkdnodeError, VaultError
from qkdnode.ids import PROVISIONED, KeyId
from qkdnode.vault.records import RECORDS
from qkdnode.vault.requests import ApplicationOutbox, NeighbourOutbox, NextSession, PadsLeft, ReservePads, Status
from qkdnode.wire.messages import PadSpan

CELL = struct.Struct("<BBB")  # table, column, row; table 255: the value is written over the file at column * 256 + row
FILE = 255
TABLES = (*(record.table for record in RECORDS), "meta", "keks", "leaves", "checkpoints", "counts")
_kept: list[Any] = []


class Pristine(msgspec.Struct, frozen=True):
    """A vault with stock, keys and a waiting request, closed."""

    folder: Path
    end: End
    file: bytes
    keys: dict[KeyId, bytes]


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
    pair.allocate(pair.alice, 1)
    pair.close()
    return Pristine(folder, pair.alice, pair.alice.path.read_bytes(), keys)


def vault_seeds() -> list[bytes]:
    """Every column of every table, with a value of the wrong kind."""
    seeds = [CELL.pack(FILE, 16 * page, 0) + pack(b"\xff" * 8) for page in range(16)]
    for table in range(len(TABLES)):
        seeds += [
            CELL.pack(table, column, column % 3) + pack(value)
            for column, value in enumerate((None, 2**62, b"\xff", "x"))
        ]
    return seeds


def _tamper(path: Path, data: bytes) -> None:
    table, column, row = CELL.unpack_from(data.ljust(CELL.size, b"\0"))
    try:
        value = msgspec.msgpack.decode(data[CELL.size :])
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise VaultError("no value to write") from None
    if table == FILE:
        if not isinstance(value, bytes):
            raise VaultError("not bytes")
        with path.open("r+b") as file:
            file.seek(column * 256 + row)
            file.write(value[:4096])
        return
    if isinstance(value, (list, dict, msgspec.msgpack.Ext)) or (isinstance(value, int) and abs(value) >= 2**63):
        raise VaultError("nothing that SQLite stores")
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        name = TABLES[table % len(TABLES)]
        connection.execute("PRAGMA synchronous = OFF")
        columns = [each[1] for each in connection.execute(f"PRAGMA table_info({name})")]
        keys = [each[1] for each in connection.execute(f"PRAGMA table_info({name})") if each[5]] or ["rowid"]
        rows = connection.execute(f"SELECT {', '.join(keys)} FROM {name}").fetchall()
        if rows:
            where = " AND ".join(f"{key} IS ?" for key in keys)
            connection.execute(
                f"UPDATE {name} SET {columns[column % len(columns)]} = ? WHERE {where}", (value, *rows[row % len(rows)])
            )
    except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
        raise VaultError(f"SQLite itself refuses: {error}") from None
    finally:
        connection.close()


def take_vault(data: bytes) -> Iterable[Hashable]:
    """Whatever stands in the file, the vault refuses with words, or opens each key as it was and no pad anew."""
    kept = pristine()
    end = kept.end
    for suffix in ("-wal", "-shm"):
        end.path.with_name(end.path.name + suffix).unlink(missing_ok=True)
    end.path.write_bytes(kept.file)
    _tamper(end.path, data)
    vault = end.open()
    refused = set[str]()
    opened = 0
    try:
        for key, content in kept.keys.items():
            try:
                if contents(end, key) != content:
                    raise Violation("a key was opened with other contents")
                opened += 1
            except QkdnodeError as error:
                refused.add(type(error).__name__)
        for request in (
            Status(),
            PadsLeft(link=LINK),
            ReservePads(link=LINK, count=2, within=(PadSpan(PROVISIONED, 0, 64),), contiguous=True),
            NextSession(link=LINK),
            NeighbourOutbox(link=LINK),
            ApplicationOutbox(application=HERE.local),
        ):
            try:
                vault.call(request)
            except QkdnodeError as error:
                refused.add(f"{type(request).__name__} {type(error).__name__}")
    finally:
        try:
            vault.close()
        except QkdnodeError as error:
            refused.add(f"close {type(error).__name__}")
    return (opened, *sorted(refused))


def forget() -> None:
    """Remove the vault of this process."""
    if pristine.cache_info().currsize:
        shutil.rmtree(pristine().folder, ignore_errors=True)
        pristine.cache_clear()
