"""Proofs about the log, in time that grows as its logarithm: from hashes that are kept, and fewer than 256 leaves."""

import base64

from qkdnode.audit.merkle import (
    KEPT_LEVEL,
    Frontier,
    Span,
    complete_subtrees,
    consistency_holds,
    consistency_path,
    inclusion_holds,
    inclusion_path,
    leaf_hash,
    root_over,
)
from qkdnode.errors import LocalProtocolError, VaultDamagedError
from qkdnode.vault.extract import COSIGNED_NOTE
from qkdnode.vault.journal import LEAVES, NOTES, SUBTREES
from qkdnode.vault.requests import Request
from qkdnode.vault.rows import read_rows
from qkdnode.vault.store import Store

_HASH = "SELECT hash FROM subtrees WHERE level = ? AND number = ?"
_LEAVES = "SELECT leaf FROM leaves WHERE position >= ? AND position < ? ORDER BY position"
_COSIGNED = (
    f"SELECT size, {COSIGNED_NOTE} FROM checkpoints WHERE size = (SELECT max(size) FROM cosignatures WHERE size > ?)"
)


class ProveEntry(Request, frozen=True):
    """That an entry is in the log, under the newest checkpoint that a neighbour has signed or a new one. Answer: str.

    LocalProtocolError if there is no such entry.
    """

    position: int


def prove_entry(store: Store, request: ProveEntry) -> str:
    """ProveEntry: a C2SP tlog-proof with the entry's text as its extra data."""
    store.journal.write()
    if not 0 <= request.position < store.journal.size:
        raise LocalProtocolError(f"the log has {store.journal.size} entries: there is no entry {request.position}")
    cosigned = read_rows(store.connection, (int, str, str), NOTES, _COSIGNED, request.position)
    note = "".join(cosigned[0][1:]) if cosigned else store.journal.checkpoint()
    size = int(cosigned[0][0]) if cosigned else store.journal.size
    leaf, proof = prove_inclusion(store, request.position, size)
    lines = [
        "c2sp.org/tlog-proof@v1",
        f"extra {base64.b64encode(leaf.encode()).decode()}",
        f"index {request.position}",
        *(base64.b64encode(step).decode() for step in proof),
        "",
        note,
    ]
    return "\n".join(lines)


def prove_inclusion(store: Store, position: int, size: int) -> tuple[str, tuple[bytes, ...]]:
    """The leaf at `position`, and that it is in the tree of the first `size` leaves."""
    ((leaf,),) = read_rows(store.connection, (str,), LEAVES, _LEAVES, position, position + 1) or [("",)]
    proof = tuple(_hash_over(store, span) for span in inclusion_path(position, size))
    if not inclusion_holds(leaf_hash(leaf.encode()), position, size, proof, root_at(store, size)):
        raise _not_what_was_written(f"entry {position} is not in its tree of {size}")
    return leaf, proof


def prove_consistency(store: Store, old_size: int, size: int) -> tuple[bytes, ...]:
    """That the log of the first `old_size` leaves is a prefix of the one of `size`."""
    proof = tuple(_hash_over(store, span) for span in consistency_path(old_size, size))
    if not consistency_holds(old_size, root_at(store, old_size), size, root_at(store, size), proof):
        raise _not_what_was_written(f"its tree of {size} does not go on from that of {old_size}")
    return proof


def root_at(store: Store, size: int) -> bytes:
    """The root over the first `size` leaves."""
    return _hash_over(store, (0, size))


def _hash_over(store: Store, span: Span) -> bytes:
    return root_over([_complete(store, *part) for part in complete_subtrees(*span)])


def _complete(store: Store, start: int, end: int) -> bytes:
    """The hash of a complete subtree: kept, or of few enough leaves to be made anew."""
    level = (end - start).bit_length() - 1
    if level >= KEPT_LEVEL:
        kept = read_rows(store.connection, (bytes,), SUBTREES, _HASH, level, start >> level)
        if len(kept) != 1 or len(kept[0][0]) != 32:
            raise _not_what_was_written(f"the hash over entries {start} to {end - 1} is missing")
        return bytes(kept[0][0])
    leaves = read_rows(store.connection, (str,), LEAVES, _LEAVES, start, end)
    if len(leaves) != end - start:
        raise _not_what_was_written(f"of entries {start} to {end - 1} some are missing")
    return Frontier(leaf_hash(leaf.encode()) for (leaf,) in leaves).root()


def _not_what_was_written(what: str) -> VaultDamagedError:
    return VaultDamagedError(
        f"the audit log in the vault is not what was written ({what}): export it for evidence and keep the file, "
        "start a new vault"
    )


HANDLERS = {ProveEntry: prove_entry}
