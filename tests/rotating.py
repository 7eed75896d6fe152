"""What rotations need of two real vaults beside `qkdnode.node.shadow`: operators and applications played."""

from typing import Any
from uuid import UUID

from qkdnode.errors import QkdnodeError
from qkdnode.vault import requests as ask
from qkdnode.vault.rotations import (
    AdvanceRotations,
    BeginRotation,
    EndGenerations,
    GenerationAcknowledged,
    GenerationPrepared,
    RotationState,
    ShowRotation,
)


def state_of(end: Any) -> RotationState:
    """How the association of an end stands."""
    state: RotationState = end.call(ShowRotation(association=end.association))
    return state


def begin(end: Any, reason: str = "operator") -> RotationState:
    """As an operator does."""
    state: RotationState = end.call(BeginRotation(association=end.association, reason=reason, by="olga"))
    return state


def prepare(end: Any, keys: int) -> RotationState:
    """The agreement's word that so many keys of the next generation are there."""
    state: RotationState = end.call(GenerationPrepared(association=end.association, keys=keys))
    return state


def accept(end: Any, number: int) -> RotationState:
    """The application's word that it is ready."""
    state: RotationState = end.call(GenerationAcknowledged(association=end.association, number=number))
    return state


def look(end: Any, link: str) -> None:
    """What time brings."""
    end.call(AdvanceRotations(link=link))


def end_rows(end: Any) -> None:
    """Move all rows behind what is over."""
    while end.call(EndGenerations()):
        pass


def offered(end: Any) -> list[UUID]:
    """Keys that the application here is offered."""
    rows = end.call(ask.ApplicationOutbox(application=end.association.local, limit=1000))
    return [row.key_id for row in rows]


def opens(end: Any, key_id: UUID) -> bool:
    """Whether the application here can have a key now."""
    try:
        opened = end.call(ask.OpenKeys(key_ids=(key_id,), application=end.association.local))
    except QkdnodeError:
        return False
    opened.material.release()
    return True
