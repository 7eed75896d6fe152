"""What the check of algorithms needs of the vault: the latest day that it has seen, and what its own keys rest on.

The day stands in the audit log alone, as the newest leaf about it: no row could be protected better.
"""

import msgspec

from qkdnode.audit.events import NodeEvent
from qkdnode.errors import VaultDamagedError
from qkdnode.lifecycle.algorithms import is_day
from qkdnode.vault.requests import Request
from qkdnode.vault.root import RootParameters
from qkdnode.vault.rows import read_meta, read_rows
from qkdnode.vault.store import Store

SUBJECT = "day/latest"
ROOT = "root parameters"


class RootMethod(Request, frozen=True):
    """How the root key of this vault is derived. Answer: str, as qkdnode.vault.root names it."""


class WrapAlgorithms(Request, frozen=True):
    """By which algorithms data keys are wrapped, or will be from now on. Answer: tuple[str, ...]."""


class LatestDay(Request, frozen=True):
    """The latest day that was noted. Answer: str, such as 2026-11-27; None if none was."""


class SeeDay(Request, frozen=True):
    """Note a day as seen. An earlier one than the latest changes nothing, unless later ones are taken back.

    Answer: str, the latest.
    """

    day: str
    taking_back: bool = False


class NoteAlgorithms(Request, frozen=True):
    """What the node's registry disallows, and deprecates, on the day that counts: known until the vault is closed.

    No key is cut for a class all of whose algorithms are disallowed, no policy is applied that has only such ones, and
    no data key is wrapped anew by one. Answer: None.
    """

    disallowed: tuple[str, ...]
    deprecated: tuple[str, ...]


def root_method(store: Store, request: RootMethod) -> str:
    """RootMethod."""
    parameters = read_meta(store.connection, ROOT).get(ROOT, b"")
    try:
        return msgspec.json.decode(parameters, type=RootParameters).method
    except msgspec.MsgspecError:
        raise VaultDamagedError("the vault does not say how its root key is derived: restore the file") from None


def wrap_algorithms(store: Store, request: WrapAlgorithms) -> tuple[str, ...]:
    """WrapAlgorithms."""
    what, statement = "the list of keys that wrap data keys", "SELECT DISTINCT algorithm FROM keks"
    known: set[str] = {algorithm for (algorithm,) in read_rows(store.connection, (str,), what, statement)}
    return tuple(sorted({*known, store.wrap_algorithm}))


def latest_day(store: Store, request: LatestDay) -> str | None:
    """LatestDay."""
    position = store.journal.newest(SUBJECT)
    if position is None:
        return None
    ((_, event),) = store.journal.after(position, 1)
    day = event.details.get("day")
    if not isinstance(day, str) or not is_day(day):
        raise VaultDamagedError(f"entry {position} of the audit log tells no day: look for who wrote to the vault file")
    return day


def see_day(store: Store, request: SeeDay) -> str:
    """SeeDay."""
    latest = latest_day(store, LatestDay())
    if latest is not None and (request.day == latest or (request.day < latest and not request.taking_back)):
        return latest
    happened = "day.taken_back" if latest is not None and request.day < latest else "day.seen"
    store.journal.record(NodeEvent, "node", happened, SUBJECT, {"day": request.day, "before": latest})
    return request.day


def note_algorithms(store: Store, request: NoteAlgorithms) -> None:
    """NoteAlgorithms."""
    store.disallowed, store.deprecated = request.disallowed, request.deprecated


HANDLERS = {
    NoteAlgorithms: note_algorithms,
    RootMethod: root_method,
    WrapAlgorithms: wrap_algorithms,
    LatestDay: latest_day,
    SeeDay: see_day,
}
