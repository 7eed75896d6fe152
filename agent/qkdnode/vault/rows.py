"""Rows that no MAC covers, checked where they are read: SQLite keeps in a column whatever somebody writes there.

Protected records are read by Store, which checks more. What SQLite itself makes, such as a count or a position, needs
no check.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import apsw

from qkdnode.errors import VaultDamagedError

Kinds = tuple[type, ...]
_WORDS: Mapping[type, str] = {
    int: "a number",
    float: "a fraction",
    str: "text",
    bytes: "bytes",
    type(None): "nothing",
}


def each_row(
    connection: apsw.Connection, kinds: Kinds, what: str, statement: str, *values: Any
) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, one by one, each column of its kind. VaultDamagedError says that it is `what` if not."""
    cursor = connection.execute(statement, values)
    try:
        for row in cursor:
            if tuple(map(type, row)) != kinds:
                raise _damaged(what, f"{_listed(map(type, row))} where {_listed(kinds)} belongs")
            yield row
    except UnicodeDecodeError:
        raise _damaged(what, "text that is not UTF-8") from None
    finally:
        cursor.close(True)  # a cursor that an error leaves open would lock the file


def read_rows(
    connection: apsw.Connection, kinds: Kinds, what: str, statement: str, *values: Any
) -> list[tuple[Any, ...]]:
    """As each_row, all at once."""
    return list(each_row(connection, kinds, what, statement, *values))


def read_meta(connection: apsw.Connection, *names: str) -> dict[str, bytes]:
    """What the vault keeps under these names, of which some may be missing."""
    slots = ", ".join("?" * len(names))
    rows = read_rows(
        connection,
        (str, bytes),
        f"{' or '.join(names)} of the vault",
        f"SELECT name, value FROM meta WHERE name IN ({slots})",
        *names,
    )
    return dict(rows)


def _damaged(what: str, found: str) -> VaultDamagedError:
    return VaultDamagedError(f"{what} is damaged: the file holds {found}; keep the file, and look for who wrote to it")


def _listed(kinds: Any) -> str:
    return ", ".join(_WORDS[kind] for kind in kinds)
