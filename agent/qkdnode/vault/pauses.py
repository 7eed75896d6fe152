"""Links that an operator has paused: told to the vault, so that no restart makes them distil again."""

import msgspec

from qkdnode.vault.records import PausedLink
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store


class PauseLink(Request, frozen=True):
    """Note that an operator has paused a link. Answer: bool, False if it was paused already."""

    link: str
    by: str


class ResumeLink(Request, frozen=True):
    """Note that an operator lets a link distil again. Answer: bool, whether it was paused."""

    link: str
    by: str


class Pauses(Request, frozen=True):
    """Who has paused which links. Answer: tuple[Pause, ...]."""


class Pause(msgspec.Struct, frozen=True):
    """One paused link: by whom, and since when on the wall clock."""

    link: str
    by: str
    since_ns: int


def pause_link(store: Store, request: PauseLink) -> bool:
    """PauseLink."""
    row = store.get(PausedLink, request.link)
    if row is not None and row.paused:
        return False
    details = {"by": store.sealing.pseudonym(request.by.encode())}
    if row is None:
        store.create(PausedLink(request.link, 1, request.by, store.now_ns), "link.paused", **details)
    else:
        store.change(row, "link.paused", details, paused=1, by=request.by, since_ns=store.now_ns)
    return True


def resume_link(store: Store, request: ResumeLink) -> bool:
    """ResumeLink."""
    row = store.get(PausedLink, request.link)
    if row is None or not row.paused:
        return False
    details = {"by": store.sealing.pseudonym(request.by.encode())}
    store.change(row, "link.resumed", details, paused=0, by=request.by, since_ns=store.now_ns)
    return True


def pauses(store: Store, request: Pauses) -> tuple[Pause, ...]:
    """Pauses. A row that is damaged raises: a link that may be paused must not distil unasked."""
    rows = store.find(PausedLink, "paused ORDER BY link")
    return tuple(Pause(row.link, row.by, row.since_ns) for row in rows)


HANDLERS = {PauseLink: pause_link, ResumeLink: resume_link, Pauses: pauses}
