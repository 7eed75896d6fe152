"""Rotations as operators ask for them: which associations are meant, and how each stands."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from qkdnode.control.port import Supplied
from qkdnode.errors import ControlError
from qkdnode.ids import Association
from qkdnode.lifecycle.rotation import GIVEN_UP_IN, Phase
from qkdnode.vault import rehearsal, rotations
from qkdnode.vault.rehearsal import Shape
from qkdnode.vault.rotations import RotationState
from qkdnode.wire import control as wire
from qkdnode.wire.control import RotationEntry, RotationList

Ask = Callable[[Any], Awaitable[Any]]
Selection = wire.RotateKeys | wire.GiveUpRotations | wire.Rotations | wire.RotationShapes
SHAPES_AT_ONCE = 16
MINUTES = 60
MINUTE_NS = 60 * 10**9
LOAD_PAGES = 64  # of the log, for one answer


async def begin(ask: Ask, request: wire.RotateKeys, by: str) -> RotationList:
    """Begin the rotation of all that are meant, and tell how they stand then."""
    made = [
        await ask(rotations.BeginRotation(association=state.association, reason="operator", by=by))
        for state in await _meant(ask, request)
    ]
    return _page(made)


async def give_up(ask: Ask, request: wire.GiveUpRotations) -> RotationList:
    """Give up those of the meant that can be."""
    made = [
        await ask(rotations.GiveUpRotation(association=state.association, reason="operator"))
        for state in await _meant(ask, request)
        if state.phase in GIVEN_UP_IN or state.phase is Phase.WANTED
    ]
    if not made:
        raise ControlError("no rotation is on the way that could be given up: see `qkdnode rotate`")
    return _page(made)


async def listed(ask: Ask, request: wire.Rotations) -> RotationList:
    """A page of how they stand."""
    found = await _meant(ask, request)
    page = _page(found[request.after : request.after + request.limit])
    until = request.after + request.limit
    return RotationList(rotations=page.rotations, next=until if until < len(found) else None)


async def _meant(ask: Ask, request: Selection) -> list[RotationState]:
    found: tuple[RotationState, ...] = await ask(rotations.Rotations())
    meant = [
        state
        for state in found
        if request.local in (None, state.association.local)
        and request.remote in (None, state.association.remote)
        and request.link in (None, state.association.source)
    ]
    if not meant and (request.local, request.remote, request.link) != (None, None, None):
        raise ControlError("no association of this node is meant by that: see `qkdnode rotate` for all")
    return meant


async def shapes(ask: Ask, supplied: Callable[[Association], Supplied], request: wire.RotationShapes) -> wire.ShapeList:
    """A page of what a rehearsal is made from."""
    found = await _meant(ask, request)
    until = request.after + SHAPES_AT_ONCE
    made: list[tuple[Shape, Supplied]] = []
    for state in found[request.after : until]:
        its = supplied(state.association)
        shape: Shape = await ask(rehearsal.ShowShape(association=state.association, size_bits=its.size_bits))
        made.append((shape, its))
    if not made:
        return wire.ShapeList(shapes=())
    minutes, load = await _load(ask, made[0][0].now_ns)
    return wire.ShapeList(
        shapes=tuple(_shape(shape, its, minutes, load) for shape, its in made),
        next=until if until < len(found) else None,
    )


async def _load(ask: Ask, now_ns: int) -> tuple[int, Counter[tuple[Association, int, str]]]:
    """Keys by association, minute and kind, from the newest leaf of the log back; and the minutes that were read."""
    since_ns = now_ns - MINUTES * MINUTE_NS
    load = Counter[tuple[Association, int, str]]()
    before, reached_ns = None, now_ns
    for _ in range(LOAD_PAGES):
        page: rehearsal.LoadPage = await ask(rehearsal.ReadLoad(since_ns=since_ns, before=before))
        for its in page.counts:
            load[its.association, min(its.minute, MINUTES - 1), its.kind] += its.keys
        before, reached_ns = page.next, page.reached_ns
        if before is None:
            break
    return min(MINUTES, max(0, now_ns - reached_ns) // MINUTE_NS), load


def _shape(shape: Shape, its: Supplied, minutes: int, load: Counter[tuple[Association, int, str]]) -> wire.ShapeEntry:
    entitlement, association = shape.entitlement, shape.association

    def counts(kind: str) -> tuple[int, ...]:
        return tuple(load[association, minute, kind] for minute in range(MINUTES - minutes, MINUTES))

    return wire.ShapeEntry(
        local=association.local,
        remote=association.remote,
        link=association.source,
        role=shape.role,
        link_state=its.link_state,
        connected=its.connected,
        phase=shape.phase.value,
        generation=shape.current,
        key_class=shape.key_class,
        size_bits=shape.size_bits,
        waiting_here=shape.waiting_here,
        waiting_there=shape.waiting_there,
        all_counted=shape.all_counted,
        stock_here=shape.stock_here,
        stock_there=shape.stock_there,
        batches=shape.batches,
        credit_here=its.credit_here,
        credit_there=its.credit_there,
        room=entitlement.room + entitlement.outstanding,
        allowed=entitlement.allowed,
        rule=entitlement.room_rule if entitlement.allowed else entitlement.rule,
        reason=entitlement.reason,
        held=shape.held,
        goes_without=shape.goes_without,
        minutes=minutes,
        cut_here=counts("cut_here"),
        cut_there=counts("cut_there"),
        taken_here=counts("taken_here"),
        taken_there=counts("taken_there"),
    )


def _page(states: list[RotationState]) -> RotationList:
    return RotationList(rotations=tuple(map(entry_of, states[: wire.PAGE_MAX])))


def entry_of(state: RotationState) -> RotationEntry:
    """How an association stands, as operators are shown it."""
    return RotationEntry(
        local=state.association.local,
        remote=state.association.remote,
        link=state.association.source,
        generation=state.current,
        number=state.number or None,
        phase=state.phase.value,
        peer=state.peer.value,
        reason=state.reason,
        by=state.by,
        since_ns=state.since_ns or None,
        begun_ns=state.begun_ns or None,
        phase_ns=state.phase_ns or None,
        prepared=state.prepared,
        result=state.result,
        moving=bool(state.ending),
        ended=state.ended,
    )
