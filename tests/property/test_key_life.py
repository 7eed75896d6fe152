"""The life of a key at two nodes, enumerated whole; and planted faults, each of which the enumeration must find.

`python -m key_life` in this folder searches all orders of both operators at once, which takes minutes.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from key_life import BASE_NS, LAST, ORDERS, TIME, TIMED, Search, Violation, both_ends
from key_life import HELD as ON_HOLD

from qkdnode.lifecycle import retirement, states
from qkdnode.lifecycle.states import Stage, Step
from qkdnode.vault import bundles, core, entitlements, keys, outbox, reach, revocations, scopes
from qkdnode.vault import requests as ask
from qkdnode.vault import retirement as vault_retirement
from qkdnode.vault.records import PeerRequest
from qkdnode.vault.store import Store
from qkdnode.wire.messages import ACCEPTED, REFUSED, Allocate, Compromised, Delivered, KeysRevoked

EACH = ((), *((order,) for order in ORDERS))
# The least first: most faults show where nobody revokes anything.
SCENARIOS = sorted(itertools.product(EACH, EACH), key=lambda both: (len(both[0]) + len(both[1]), str(both)))

# Time goes on at one end, or at both past the key's age; under a hold it ends nothing.
TIMES = (
    (TIMED, ((TIME,), ()), LAST),
    (TIMED, ((), (TIME,)), LAST),
    (TIMED, ((TIME,), (TIME,)), 2),
    (ON_HOLD, ((TIME,), (TIME,)), 2),
)

Plant = Callable[[pytest.MonkeyPatch], None]


def test_no_way_through_the_life_of_a_key_breaks_its_rules() -> None:
    worlds = 0
    with both_ends() as ends:
        for orders in SCENARIOS:
            search = Search(ends, orders)
            search.run()
            worlds += search.worlds
        reached = {view.stage for end in ends for view in end.views}
        assert all(end.survives_restart(view) for end in ends for view in end.views)
    assert worlds > 30_000
    assert reached >= {None, *Stage} - {Stage.QUARANTINED, Stage.SUSPENDED, Stage.DAMAGED}


def test_no_way_of_time_through_the_life_of_a_key_breaks_its_rules() -> None:
    worlds, reached = 0, set()
    for document, orders, last in TIMES:
        with both_ends(document) as ends:
            search = Search(ends, orders, last)
            search.run()
            worlds += search.worlds
            reached |= {view.stage for end in ends for view in end.views}
            assert last == LAST or all(end.survives_restart(view) for end in ends for view in end.views)
    assert worlds > 4_000
    assert reached >= {Stage.DESTROYED, Stage.DEACTIVATED, Stage.QUARANTINED, Stage.DELIVERED}


def _handler(request: type[ask.Request], planted: Callable[..., Any]) -> Plant:
    """Another handler of a request; it is given the right one first."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(core.HANDLERS, request, partial(planted, core.HANDLERS[request]))

    return plant


def _step(step: Step, **changes: Any) -> Plant:
    """Another row in the table of steps."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        move = states.STEPS[step]
        ends = {**move.ends, **changes.pop("ends", {})}
        patch.setitem(states.STEPS, step, msgspec.structs.replace(move, ends=ends, **changes))

    return plant


def _name(module: Any, name: str, value: Any) -> Plant:
    return lambda patch: patch.setattr(module, name, value)


def _not_posted(kind: type[Any]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        right = outbox.post

        def post(store: Any, link: str, number: int, message: Any) -> None:
            if not isinstance(message, kind):
                right(store, link, number, message)

        patch.setattr(outbox, "post", post)

    return plant


def _answered(outcome: str) -> Callable[..., Any]:
    """Every answer to a request to allocate is taken for this one."""

    def answered(right: Any, store: Any, request: Any) -> Any:
        return right(store, msgspec.structs.replace(request, outcome=outcome))

    return answered


def _cleared_unread(right: Any, store: Any, request: Any) -> Any:
    outbox.clear(store, request.link, request.request)
    return ()


def _any_entry_cleared(right: Any, store: Any, request: Any) -> None:
    for entry in outbox.neighbour_outbox(store, ask.NeighbourOutbox(link=request.link)):
        outbox.clear(store, request.link, entry.number)


def _accepted_without_a_key(right: Any, store: Any, request: Any) -> Any:
    store.connection.execute("SAVEPOINT planted")
    mark = store.journal.mark()
    outcome = right(store, request)
    if outcome == ACCEPTED:
        store.connection.execute("ROLLBACK TO planted")
        store.journal.rewind(mark)
        store.forget()
    store.connection.execute("RELEASE planted")
    return outcome


def _opened_at_any_stage(right: Any, store: Any, request: Any) -> Any:
    chosen = bundles.choose(store, [key_id.bytes for key_id in request.key_ids])
    if not chosen:
        return right(store, request)
    material = bundles.unseal(store, chosen)
    return ask.OpenedKeys(request.key_ids, chosen[0].bundle.size_bits, material)


def _done_at_once(right: Any, store: Any, request: Any) -> bool:
    for scope in store.every(scopes.Scope):
        if scope.moving:
            store.change(scope, "scope.finished", {}, moving=0)
    return False


def _forgotten_request(patch: pytest.MonkeyPatch) -> None:
    """What the neighbour has asked for before is not looked up."""
    right = Store.get

    def get(self: Store, record: type[Any], *key: Any) -> Any:
        return None if record is PeerRequest else right(self, record, *key)

    patch.setattr(Store, "get", get)


def _ready_at_once(patch: pytest.MonkeyPatch) -> None:
    right = bundles.make

    def make(store: Store, association: Any, cut: Any, stage: Stage, material: Any, *, own: bool) -> Any:
        return right(store, association, cut, Stage.READY, material, own=own)

    patch.setattr(bundles, "make", make)


HELD = states.HOLDING
FAULTS: dict[str, Plant] = {
    "bits stay after delivery": _name(bundles, "HOLDING", HELD | {states.LETTERS[Stage.DELIVERED]}),
    "bits stay after a compromise": _name(bundles, "HOLDING", HELD | {states.LETTERS[Stage.COMPROMISED]}),
    "bits stay after destruction": _name(bundles, "HOLDING", HELD | {states.LETTERS[Stage.DESTROYED]}),
    "bits go with the answer": _name(bundles, "HOLDING", HELD - {states.LETTERS[Stage.READY]}),
    "a key is opened at any stage": _handler(ask.OpenKeys, _opened_at_any_stage),
    "a key is ready before the far end has it": _ready_at_once,
    "a refusal is taken for an acceptance": _handler(ask.AllocationAnswered, _answered(ACCEPTED)),
    "an acceptance is taken for a refusal": _handler(ask.AllocationAnswered, _answered(REFUSED)),
    "an answer clears the request and does nothing": _handler(ask.AllocationAnswered, _cleared_unread),
    "a receipt clears a request to allocate": _handler(ask.OutboxCleared, _any_entry_cleared),
    "a request to allocate is accepted without a key": _handler(ask.AcceptAllocation, _accepted_without_a_key),
    "a request to allocate is not sent": _not_posted(Allocate),
    "an acknowledgement is not told": _not_posted(Delivered),
    "a revocation is not told": _not_posted(KeysRevoked),
    "a compromise is not told": _not_posted(Compromised),
    "the far end's acknowledgement is not noted": _handler(ask.PeerDelivered, lambda right, store, request: 0),
    "the far end's revocation is not followed": _handler(revocations.FollowRevoked, lambda right, store, request: 0),
    "the far end's compromise is not followed": _handler(scopes.FollowCompromise, lambda right, store, request: None),
    "no tombstone is looked for": _name(revocations, "is_revoked", lambda store, link, ids: False),
    "a scope is not looked at on release": _name(reach, "scope_of_bundle", lambda store, bundle: None),
    "a scope is not looked at on allocation": _name(reach, "scope_of", lambda store, link, batch, *applications: None),
    "a compromise is done with before its rows": _handler(scopes.MoveRows, _done_at_once),
    "a late acknowledgement revives a destroyed key": _step(Step.DELIVER, ends={Stage.DESTROYED: Stage.DELIVERED}),
    "a late acknowledgement revives a compromised key": _step(Step.DELIVER, ends={Stage.COMPROMISED: Stage.DELIVERED}),
    "a delivered key is ready again": _step(Step.DELIVER, ends={Stage.READY: Stage.READY}),
    "a late acknowledgement is refused": _name(keys, "PAST_DELIVERY", frozenset({Stage.DELIVERED})),
    "a key is deactivated before both have it": _step(Step.DEACTIVATE, both=False),
    "the neighbour follows without knowing of the delivery": _name(
        revocations, "_TO", {**revocations._TO, Stage.DEACTIVATED: (Step.DEACTIVATE,)}
    ),
    "a destroyed key is not compromised": _step(Step.COMPROMISE, ends={Stage.DESTROYED: None}),
    "a repeated request is answered anew": _forgotten_request,
}


def _due(otherwise: Callable[[retirement.Due], retirement.Due | None]) -> Plant:
    """Timers are due at other times."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = retirement.due

        def due(terms: Any, timer: Any, since_ns: int, *, own: bool) -> Any:
            its = right(terms, timer, since_ns, own=own)
            return None if its is None else otherwise(its)

        patch.setattr(vault_retirement, "due", due)

    return plant


def _times(otherwise: Callable[[dict[str, Any]], dict[str, Any]]) -> Plant:
    """A Bundle has other times once its keys have taken a step."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = bundles.next_times
        patch.setattr(bundles, "next_times", lambda *args, **named: otherwise(right(*args, **named)))

    return plant


def _released_at_any_age(patch: pytest.MonkeyPatch) -> None:
    right = entitlements.due
    patch.setattr(entitlements, "due", lambda decision, **facts: right(decision, **{**facts, "age_ns": None}))


def _retired_without_a_word(right: Any, store: Any, request: Any) -> Any:
    done = right(store, request)
    store.connection.execute("DELETE FROM outbox WHERE kind = 70")
    return done


S = 10**9
FAULTS_OF_TIME: dict[str, Plant] = {
    "a timer acts before its time": _due(lambda its: retirement.Due(its.at_ns - 3600 * S, its.rule)),
    "a timer acts without a grace": _due(lambda its: retirement.Due(its.at_ns - 2 * retirement.GRACE_NS, its.rule)),
    "a timer acts long after its time": _due(lambda its: retirement.Due(its.at_ns + 10**6 * S, its.rule)),
    "a lifetime never ends": _due(lambda its: None if its.rule == "lifetime" else its),
    "nothing is destroyed once it is deactivated": _due(lambda its: None if its.rule == "retain-key" else its),
    "a key is released at any age": _released_at_any_age,
    "what timers end is not told": _handler(vault_retirement.RetireKeys, _retired_without_a_word),
    "what the far end's timers end is not followed": _handler(
        vault_retirement.FollowRetired, lambda right, store, request: 0
    ),
    "timers forget what is allocated": _name(vault_retirement, "UNUSED", (Stage.READY,)),
    "a lifetime counts from the cut": _times(
        lambda times: {**times, "used_ns": None if times["used_ns"] is None else BASE_NS}
    ),
    "the time of deactivation is forgotten": _times(lambda times: {**times, "kept_ns": None}),
    "a key that was cut has no time": _times(lambda times: {**times, "waits_ns": None}),
}
FAULTS_UNDER_A_HOLD: dict[str, Plant] = {
    "a hold is not looked at": lambda patch: patch.setattr(retirement.Terms, "held", property(lambda self: False)),
    "what is kept by a hold stays in the outbox": lambda patch: patch.setattr(
        bundles, "hold", lambda store, bundle, why: bundle
    ),
}


@pytest.mark.parametrize("fault", FAULTS_OF_TIME)
def test_a_planted_fault_of_time_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS_OF_TIME[fault](monkeypatch)
    with pytest.raises(Violation), both_ends() as ends:  # noqa: PT012
        for document, orders, last in TIMES:
            if document == TIMED:
                Search(ends, orders, last).run()


@pytest.mark.parametrize("fault", FAULTS_UNDER_A_HOLD)
def test_a_planted_fault_under_a_hold_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS_UNDER_A_HOLD[fault](monkeypatch)
    with pytest.raises(Violation), both_ends(ON_HOLD) as ends:
        Search(ends, ((TIME,), (TIME,)), 2).run()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    with pytest.raises(Violation), both_ends() as ends:  # noqa: PT012
        for orders in SCENARIOS:
            Search(ends, orders).run()
