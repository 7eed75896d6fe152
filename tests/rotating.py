"""What rotations need of two real vaults and a wire: messages carried, applications played, keys counted."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from qkdnode.errors import QkdnodeError
from qkdnode.vault import requests as ask
from qkdnode.vault.revocations import FollowRevoked
from qkdnode.vault.rotations import (
    AdvanceRotations,
    BeginRotation,
    EndGenerations,
    FollowRotation,
    GenerationAcknowledged,
    GenerationPrepared,
    RotationState,
    ShowRotation,
)
from qkdnode.wire.messages import (
    NOT_SETTLED,
    Allocate,
    Delivered,
    KeysRevoked,
    Message,
    RotationGivenUp,
    RotationProposed,
    RotationStands,
    RotationWanted,
)

ROTATION = (RotationWanted, RotationProposed, RotationStands, RotationGivenUp)
Call = Callable[[Any], Any]


def split(packed: bytes) -> tuple[UUID, ...]:
    """Ids one by one."""
    return tuple(UUID(bytes=packed[i : i + 16]) for i in range(0, len(packed), 16))


def hear(link: str, sender: Call, receiver: Call, message: Message) -> None:
    """Hand a message of an outbox to the other vault, and what it answers back."""
    match message:
        case Allocate():
            outcome = receiver(ask.AcceptAllocation(link=link, allocate=message))
            if outcome != NOT_SETTLED:
                sender(ask.AllocationAnswered(link=link, request=message.request, outcome=outcome))
            return
        case Delivered(notice=number):
            heard = ask.PeerDelivered(
                link=link, application=message.application, key_ids=split(message.key_ids)
            )  # fmt: skip
            receiver(heard)
        case KeysRevoked(notice=number):
            receiver(FollowRevoked(link=link, message=message))
        case RotationWanted() | RotationProposed() | RotationStands() | RotationGivenUp():
            number = message.notice
            if not receiver(FollowRotation(link=link, message=message)):
                return
        case _:
            raise ValueError(message)
    sender(ask.OutboxCleared(link=link, numbers=(number,)))


def outbox(link: str, call: Call) -> list[Message]:
    """What waits for the neighbour."""
    return [entry.message for entry in call(ask.NeighbourOutbox(link=link, limit=1000))]


def carry(link: str, alice: Call, bob: Call, rounds: int = 20) -> None:
    """Carry everything until nothing waits."""
    for _ in range(rounds):
        waiting = [(alice, bob, message) for message in outbox(link, alice)]
        waiting += [(bob, alice, message) for message in outbox(link, bob)]
        if not waiting:
            return
        for sender, receiver, message in waiting:
            hear(link, sender, receiver, message)
    raise AssertionError(f"these wait for ever: {outbox(link, alice)} {outbox(link, bob)}")


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
