"""Compromise: first a durable scope that every release is checked against, then the rows move behind it.

A scope is a range of Batches of one link, whatever an operator named: both ends know Batches by the same ids, in the
same order. So it takes one transaction at any size of the store, and the neighbour follows by one message.
"""

from collections.abc import Callable

import msgspec

from qkdnode.errors import LocalProtocolError, VaultError
from qkdnode.ids import ALICE, BatchId
from qkdnode.lifecycle.reasons import COMPROMISES, Reason
from qkdnode.lifecycle.states import Step, after
from qkdnode.vault import batches, bundles, outbox
from qkdnode.vault.batches import known_link
from qkdnode.vault.bundles import Chosen, Why
from qkdnode.vault.reach import is_reached
from qkdnode.vault.records import (
    READY,
    Batch,
    Bundle,
    Duty,
    KnownAssociation,
    Link,
    Scope,
    pack_batch,
    unpack_batch,
)
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store
from qkdnode.wire.messages import Compromised

FIRST, LAST_NUMBER = BatchId(0, 0), 2**32 - 1
BATCHES_AT_ONCE = 4
ALL = ""


class Compromise(Request, frozen=True):
    """Others may know some keys: none of them is released from now on, here or, once it has heard, at the neighbour.

    `kind` says what `value` names: "link", "peer", "device" (a serial), "application" (at either end), or
    "time-window" (a link, or nothing for all), for which `from_ns` and `until_ns` of this node's wall clock count.
    Idempotent. Answer: tuple[ScopeState, ...]. VaultError if it reaches nothing that the vault knows.
    """

    kind: str
    value: str
    reason: str
    by: str
    from_ns: int = 0
    until_ns: int = 2**63 - 1


class FollowCompromise(Request, frozen=True):
    """The neighbour has compromised a range of Batches. Idempotent. Answer: None."""

    link: str
    message: Compromised


class MoveRows(Request, frozen=True):
    """Move the rows of at most so many Bundles behind their scopes. Answer: bool, whether some are left."""

    bundles: int = 16


class Scopes(Request, frozen=True):
    """Every scope, the oldest first. Answer: tuple[ScopeState, ...]."""


class ScopeState(msgspec.Struct, frozen=True):
    """A scope, and how far the rows are moved behind it."""

    number: int
    link: str
    first: BatchId
    last: BatchId
    application: str  # empty: all
    reason: str
    by: str  # the operator, or the neighbour's node
    made_ns: int
    keys: int  # moved so far
    moving: bool  # rows are left
    confirmed: bool  # the neighbour has journalled it


class Reach(msgspec.Struct, frozen=True):
    """What is to be compromised on one link."""

    link: str
    first: BatchId
    last: BatchId
    application: str = ALL


def compromise(store: Store, request: Compromise) -> tuple[ScopeState, ...]:
    """Compromise."""
    named = REACHES.get(request.kind)
    if named is None:
        raise LocalProtocolError(f"{request.kind!r} is no scope of a compromise: one of {', '.join(REACHES)}")
    if request.reason not in COMPROMISES:
        raise LocalProtocolError(f"{request.reason!r} is no reason of a compromise: {', '.join(sorted(COMPROMISES))}")
    reaches = named(store, request)
    if not reaches:
        raise VaultError(f"{request.kind} {request.value!r} reaches no key that this vault knows of: check the name")
    made = []
    for reach in reaches:
        scope = _covering(store, reach) or _make(store, reach, request.reason, request.by)
        made.append(_state(store, scope))
    return tuple(made)


def follow_compromise(store: Store, request: FollowCompromise) -> None:
    """FollowCompromise."""
    link, message = known_link(store, request.link), request.message
    reach = Reach(link.link, message.first, message.last, message.application)
    if _covering(store, reach) is None:
        _make(store, reach, message.reason, link.peer, tell=False)


def move_rows(store: Store, request: MoveRows) -> bool:
    """MoveRows."""
    moving = [scope for scope in store.every(Scope) if scope.moving]
    if not moving:
        return False
    scope = moving[0]
    rows = store.find_sound(
        Bundle, "number > ? AND number < ? ORDER BY number LIMIT ?", scope.reached, scope.number, request.bundles
    )
    if rows:
        keys = sum(_compromise(store, scope, bundle) for bundle in rows)
        reached = rows[-1].number
        store.change(scope, "scope.moved", {"keys": keys, "bundle": reached}, reached=reached, keys=scope.keys + keys)
        return True
    for batch in _reached_batches(store, scope):
        batches.compromise(store, batch)
    if scope.application == ALL and _reached_batches(store, scope):
        return True
    store.change(scope, "scope.finished", {"keys": scope.keys}, moving=0)
    return len(moving) > 1


def scopes(store: Store, request: Scopes) -> tuple[ScopeState, ...]:
    """Scopes."""
    return tuple(_state(store, scope) for scope in sorted(store.every(Scope), key=lambda scope: scope.number))


def _make(store: Store, reach: Reach, reason: str, by: str, *, tell: bool = True) -> Scope:
    number = store.journal.size
    row = Scope(
        number, reach.link, pack_batch(reach.first), pack_batch(reach.last), reach.application, reason, by,
        store.now_ns, -1, 0, 1,
    )  # fmt: skip
    named = {} if reach.application == ALL else {"application": store.sealing.pseudonym(reach.application.encode())}
    details = {"first": str(reach.first), "last": str(reach.last), "reason": reason, **named}
    scope = store.create(row, "scope.made", by=store.sealing.pseudonym(by.encode()), **details)
    if tell:
        assert reason in (Reason.KEY_COMPROMISE, Reason.CA_COMPROMISE)
        message = Compromised(number, reason, reach.first, reach.last, reach.application)  # type: ignore[arg-type]
        outbox.post(store, reach.link, number, message)
    return scope


def _covering(store: Store, reach: Reach) -> Scope | None:
    first, last = pack_batch(reach.first), pack_batch(reach.last)
    for scope in store.every(Scope):
        same = scope.link == reach.link and scope.application in (ALL, reach.application)
        if same and scope.first <= first and last <= scope.last:
            return scope
    return None


def _compromise(store: Store, scope: Scope, bundle: Bundle) -> int:
    """Move the keys of one Bundle that a scope reaches; how many."""
    if not is_reached(store, bundle, scope):
        return 0
    places = [
        place
        for place in range(bundle.count)
        if after(bundle.stage(place), bool(bundle.far[place]), Step.COMPROMISE) is not None
    ]
    if places:
        bundles.move(store, Chosen(bundle, places), Step.COMPROMISE, Why(f"scope/{scope.number}", scope.reason))
    return len(places)


def _reached_batches(store: Store, scope: Scope) -> list[Batch]:
    """Some settled Batches that a scope of all applications reaches. Others are met when they settle."""
    if scope.application != ALL:
        return []
    condition = f"link = ? AND batch BETWEEN ? AND ? AND state = '{READY}' AND usable ORDER BY batch LIMIT ?"
    return store.find_sound(Batch, condition, scope.link, scope.first, scope.last, BATCHES_AT_ONCE)


def _state(store: Store, scope: Scope) -> ScopeState:
    waits = store.scalar("SELECT count(*) FROM outbox WHERE link = ? AND number = ?", scope.link, scope.number)
    return ScopeState(
        scope.number,
        scope.link,
        unpack_batch(scope.first),
        unpack_batch(scope.last),
        scope.application,
        scope.reason,
        scope.by,
        scope.made_ns,
        scope.keys,
        bool(scope.moving),
        not waits,
    )


# --- what an operator names ----------------------------------------------------------------------------------------


def _of_link(store: Store, request: Compromise) -> list[Reach]:
    link = store.get(Link, request.value)
    return [] if link is None else [Reach(link.link, FIRST, _present(store, link))]


def _of_peer(store: Store, request: Compromise) -> list[Reach]:
    return [Reach(link.link, FIRST, _present(store, link)) for link in store.find(Link, "peer = ?", request.value)]


def _of_device(store: Store, request: Compromise) -> list[Reach]:
    reaches = []
    for duty in store.find(Duty, "serial = ?", request.value):
        present, last = _present(store, known_link(store, duty.link)), unpack_batch(duty.last)
        last = present if last.session == present.session else last
        reaches.append(Reach(duty.link, unpack_batch(duty.first), last))
    return reaches


def _of_application(store: Store, request: Compromise) -> list[Reach]:
    named = store.find(KnownAssociation, "local = ? OR remote = ?", request.value, request.value)
    links = [known_link(store, name) for name in sorted({association.link for association in named})]
    return [Reach(link.link, FIRST, _present(store, link), request.value) for link in links]


def _of_time_window(store: Store, request: Compromise) -> list[Reach]:
    """A Batch made after the window may hold what was sifted in it: the next one is reached too."""
    if request.from_ns > request.until_ns:
        raise LocalProtocolError("a time window ends before it begins: exchange its ends")
    condition, values = ("link = ?", (request.value,)) if request.value else ("true", ())
    reaches = []
    for link in store.find(Link, f"{condition} ORDER BY link", *values):
        within = "link = ? AND made_ns >= ? AND made_ns <= ? ORDER BY batch"
        window = (link.link, request.from_ns, request.until_ns)
        present = _present(store, link)
        first = store.find(Batch, f"{within} LIMIT 1", *window) or store.find(
            Batch, "link = ? AND made_ns > ? ORDER BY made_ns LIMIT 1", link.link, request.until_ns
        )
        if not first:
            if request.until_ns >= store.now_ns:
                reaches.append(Reach(link.link, BatchId(present.session, 0), present))
            continue
        last = (store.find(Batch, f"{within} DESC LIMIT 1", *window) or first)[0]
        following = store.find(Batch, "link = ? AND batch > ? ORDER BY batch LIMIT 1", link.link, last.batch)
        end = unpack_batch(following[0].batch) if following else present
        reaches.append(Reach(link.link, unpack_batch(first[0].batch), end))
    return reaches


def _present(store: Store, link: Link) -> BatchId:
    """The last Batch that the present session can make."""
    alice, bob = (link.session_counter, link.heard) if link.role == ALICE else (link.heard, link.session_counter)
    newest = store.find(Batch, "link = ? ORDER BY batch DESC LIMIT 1", link.link)
    session = max(alice << 32 | bob, unpack_batch(newest[0].batch).session if newest else 0)
    return BatchId(session, LAST_NUMBER)


REACHES: dict[str, Callable[[Store, Compromise], list[Reach]]] = {
    "link": _of_link,
    "peer": _of_peer,
    "device": _of_device,
    "application": _of_application,
    "time-window": _of_time_window,
}
HANDLERS = {
    Compromise: compromise,
    FollowCompromise: follow_compromise,
    MoveRows: move_rows,
    Scopes: scopes,
}
