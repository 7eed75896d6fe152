"""Export the audit log of a vault, open or not, without its keys: read-only and unsealed nowhere."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec

from qkdnode.audit.export import write_export
from qkdnode.errors import VaultDamagedError, VaultError
from qkdnode.vault import schema
from qkdnode.vault.core import IDENTITY, Identity
from qkdnode.vault.extract import COSIGNED_NOTE
from qkdnode.vault.journal import LEAVES, NOTES
from qkdnode.vault.rows import each_row, read_meta


def export_audit(path: str | Path, write: Callable[[str], object]) -> int:
    """Write the export line by line, as of one moment; how many leaves.

    What is exported is what the file says: the offline verifier tells whether that is what was signed. VaultError if
    the file cannot be read, VaultDamagedError if it is not in order.
    """
    path = Path(path)
    if not path.is_file():
        raise VaultError(f"there is no vault at {path}: name the right file")
    try:
        connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return _export(connection, path, write)
        finally:
            connection.close()
    except apsw.Error as error:
        raise VaultDamagedError(f"the audit log of vault {path} cannot be read: {error}") from error


def _export(connection: apsw.Connection, path: Path, write: Callable[[str], object]) -> int:
    connection.execute("PRAGMA busy_timeout = 5000").fetchall()
    if connection.execute("PRAGMA application_id").fetchall()[0][0] != schema.APPLICATION_ID:
        raise VaultError(f"{path} is not a vault: name the right file")
    connection.execute("BEGIN")
    meta = read_meta(connection, IDENTITY)
    try:
        identity = msgspec.json.decode(meta.get(IDENTITY, b""), type=Identity)
    except msgspec.MsgspecError:
        raise VaultDamagedError(f"vault {path} does not say whose it is") from None
    count = 0

    def leaves() -> Iterator[bytes]:
        nonlocal count
        for (leaf,) in each_row(connection, (str,), LEAVES, "SELECT leaf FROM leaves ORDER BY position"):
            count += 1
            yield leaf.encode()

    statement = f"SELECT size, {COSIGNED_NOTE} FROM checkpoints ORDER BY size"
    noted: Iterator[Any] = each_row(connection, (int, str, str), NOTES, statement)
    notes = ((size, note + lines) for size, note, lines in noted)
    for line in write_export(identity.origin, identity.public_key, leaves(), notes):
        write(line)
    return count
