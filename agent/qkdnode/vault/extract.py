"""The audit log in pages, as it was signed: for an export from a running agent."""

import msgspec

from qkdnode.vault.journal import LEAVES, NOTES
from qkdnode.vault.requests import Request
from qkdnode.vault.rows import read_rows
from qkdnode.vault.store import Store

MAX_LEAVES = 2048
_LEAVES = "SELECT leaf FROM leaves WHERE position >= ? AND position < ? ORDER BY position LIMIT ?"
# A checkpoint, and what neighbours have signed of it, which stands right under it.
COSIGNED_NOTE = """note, ifnull((
    SELECT group_concat(line, '' ORDER BY witness) FROM cosignatures WHERE cosignatures.size = checkpoints.size
), '')"""
_NOTES = f"SELECT size, {COSIGNED_NOTE} FROM checkpoints WHERE size > ? AND size <= ? ORDER BY size"


class LogHead(Request, frozen=True):
    """Sign a checkpoint over all leaves so far. Answer: SignedHead."""


class SignedHead(msgspec.Struct, frozen=True):
    """Whose log it is, how many leaves it has, and the note over them."""

    origin: str
    public_key: bytes
    size: int
    note: str


class LogPage(Request, frozen=True):
    """Leaves from a position on and below `size`, until `max_bytes` are exceeded. Answer: LoggedPage.

    The checkpoint over all leaves before a leaf counts as its predecessor's: no page begins with one.
    """

    position: int
    size: int
    max_bytes: int


class LoggedPage(msgspec.Struct, frozen=True):
    """The text of each leaf, and (size, note) of every checkpoint that stands after one of them."""

    leaves: tuple[str, ...]
    checkpoints: tuple[tuple[int, str], ...]


def log_head(store: Store, request: LogHead) -> SignedHead:
    """LogHead."""
    journal = store.journal
    note = journal.checkpoint()
    return SignedHead(journal.origin, journal.public_key, journal.size, note)


def log_page(store: Store, request: LogPage) -> LoggedPage:
    """LogPage."""
    rows = read_rows(store.connection, (str,), LEAVES, _LEAVES, request.position, request.size, MAX_LEAVES)
    noted = read_rows(store.connection, (int, str, str), NOTES, _NOTES, request.position, request.position + len(rows))
    notes: dict[int, str] = {size: note + lines for size, note, lines in noted}
    leaves: list[str] = []
    checkpoints: list[tuple[int, str]] = []
    used = 0
    for size, (leaf,) in enumerate(rows, request.position + 1):
        leaves.append(leaf)
        used += len(leaf.encode())
        if size in notes:
            checkpoints.append((size, notes[size]))
            used += len(notes[size].encode())
        if used >= request.max_bytes:
            break
    return LoggedPage(tuple(leaves), tuple(checkpoints))


HANDLERS = {LogHead: log_head, LogPage: log_page}
