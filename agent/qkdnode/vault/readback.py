"""The files read again for what was deleted: wrapped data keys in batches, key-encryption keys one by one.

First the write-ahead log is emptied into the main file, so that neither shows a page as it was before the deletion.
Then both are read from their beginning, a piece at a time, beside the work. What this cannot show: copies that a flash
drive or a copying file system keeps elsewhere, and pages in the memory of SQLite.
"""

from typing import Any

import apsw
import msgspec

from qkdnode.audit.events import Detail, KeyEvent
from qkdnode.errors import VaultError
from qkdnode.vault.bundles import CRYPTO_ERASE
from qkdnode.vault.erasures import OVERLAP_BYTES, Erased, Search, fragments
from qkdnode.vault.medium import NAMES
from qkdnode.vault.records import DELETED, DESTROYED, EndedKek
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store

PIECE_BYTES = 1 << 18
NOT_FOUND, FOUND = "not found", "found"


class ReadBack(Request, frozen=True):
    """Read a piece of the files, for what was deleted. Nothing is begun for fewer than `at_least` data keys, unless a
    key-encryption key waits for its proof. Answer: ReadBackState."""

    at_least: int = 1


class ReadBackState(msgspec.Struct, frozen=True):
    """Answer to ReadBack."""

    running: bool
    failures: tuple[str, ...] = ()  # what is not gone, or still opens


class Reading(msgspec.Struct):
    """One reading of all files: what for, and how far it is."""

    erased: Erased | None
    keks: tuple[EndedKek, ...]
    search: Search | None
    traces: dict[int, tuple[bytes, ...]]
    emptied: int  # how often the write-ahead log had been emptied
    begun: bool = False
    file: int = 0
    offset: int = 0
    bytes_read: int = 0
    found: int = 0
    found_keks: set[int] = msgspec.field(default_factory=set)


def read_back(store: Store, request: ReadBack) -> ReadBackState:
    """ReadBack."""
    reading: Reading | None = store.file_reading
    if reading is None:
        return ReadBackState(_begin(store, request.at_least))
    if not reading.begun:
        if store.log_emptied == reading.emptied:  # somebody reads the file: again
            store.empties_log = True
            return ReadBackState(True)
        # What was deleted until now is no longer in the log.
        reading.begun = True
    if reading.file < len(NAMES):
        _read(store, reading)
        return ReadBackState(True)
    store.file_reading = None
    return ReadBackState(False, _finish(store, reading))


def _begin(store: Store, at_least: int) -> bool:
    ended = tuple(store.find_sound(EndedKek, "state = ? ORDER BY number LIMIT 16", DELETED))
    if not ended and store.erasures.waiting < max(1, at_least):
        return False
    erased = store.erasures.take()
    kept = store.erasures.wrapped_keks
    traces = {}
    for row in ended:
        nonce = bytes(byte ^ 0xFF for byte in row.trace)
        # After a restart only the nonce is known: it stood before the rest, which nothing else would tell.
        traces[row.number] = tuple(fragments([kept[row.number]])) if row.number in kept else (nonce,)
    search = Search(fragments(erased.wrapped)) if erased is not None and erased.wrapped else None
    store.file_reading = Reading(erased, ended, search, traces, store.log_emptied)
    store.empties_log = True
    return True


def _read(store: Store, reading: Reading) -> None:
    name = NAMES[reading.file]
    before = min(OVERLAP_BYTES, reading.offset)
    try:
        size = min(PIECE_BYTES, store.medium.size(name) - reading.offset)
        page = store.medium.read(name, reading.offset - before, before + size) if size > 0 else b""
    except apsw.Error as error:
        raise VaultError(f"the vault's files cannot be read again for what was deleted: {error}") from None
    if size <= 0:
        reading.file, reading.offset = reading.file + 1, 0
        return
    if reading.search is not None:
        reading.found += reading.search.found_in(page)
    for number, traces in reading.traces.items():
        if any(trace in page for trace in traces):
            reading.found_keks.add(number)
    reading.offset += size
    reading.bytes_read += size


def _finish(store: Store, reading: Reading) -> tuple[str, ...]:
    failures = []
    if reading.erased is not None:
        failures += _tell(store, reading, reading.erased)
    for row in reading.keks:
        failures += _prove(store, reading, row)
    return tuple(failures)


def _tell(store: Store, reading: Reading, erased: Erased) -> list[str]:
    details: dict[str, Detail] = {
        "first": erased.first,
        "last": erased.last,
        "deleted": erased.count,
        "searched": len(erased.wrapped),
        "bytes_read": reading.bytes_read,
        "found": reading.found,
    }
    subject = erasure_subject(erased.first)
    if not reading.found:
        store.journal.record(KeyEvent, "erasures", "erasure.read_back", subject, details, "done")
        return []
    store.alarm("erasure.read_back", subject, "found", **details)
    return [f"pieces of data keys deleted by entries {erased.first} to {erased.last} of the log are still in the file"]


def erasure_subject(first: int) -> str:
    """The name of a reading in the log: names sort as the positions do."""
    return f"erasure/{first:019d}"


def _prove(store: Store, reading: Reading, row: EndedKek) -> list[str]:
    """The proof that a key-encryption key is gone; or the alarm, and it is tried again."""
    left = FOUND if row.number in reading.found_keks else NOT_FOUND
    opens = store.sealing.opens_witness(row.witness)
    searched = "wrapped key" if row.number in store.erasures.wrapped_keks else "its nonce"
    details: dict[str, Any] = {
        "epoch": row.epoch,
        "algorithm": row.algorithm,
        "method": CRYPTO_ERASE,
        "read_back": left,
        "searched": searched,
        "bytes_read": reading.bytes_read,
        "unwrap": "opens" if opens else "fails",
    }
    if left == FOUND or opens:
        name = f"epoch/{row.link}/{row.number}"
        store.alarm("epoch.not_destroyed", f"record/{name}", "failed", **details)
        return [f"key-encryption key {row.number} of link {row.link!r} was deleted: its trace is {left}, or it opens"]
    store.change(row, "epoch.destroyed", details, state=DESTROYED, destroyed_ns=store.now_ns)
    store.erasures.wrapped_keks.pop(row.number, None)
    return []


HANDLERS = {ReadBack: read_back}
