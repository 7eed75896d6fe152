"""Rotations as operators ask for them: which associations are meant, and how each stands."""

from collections.abc import Awaitable, Callable
from typing import Any

from qkdnode.errors import ControlError
from qkdnode.lifecycle.rotation import GIVEN_UP_IN, Phase
from qkdnode.vault import rotations
from qkdnode.vault.rotations import RotationState
from qkdnode.wire import control as wire
from qkdnode.wire.control import RotationEntry, RotationList

Ask = Callable[[Any], Awaitable[Any]]
Selection = wire.RotateKeys | wire.GiveUpRotations | wire.Rotations


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
