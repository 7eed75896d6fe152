"""The states of a key: one table of stages, one of steps, from which the documentation's tables are drawn.

States are those of SP 800-57 part 1 rev. 5, section 7, under KMIP's names; KMIP has no suspended state. A node keeps
for each key a stage, which is finer, and whether the application at the far end has it. A key is active from the moment
at which both applications have it.
"""

from collections.abc import Iterator
from enum import StrEnum

import msgspec


class State(StrEnum):
    """A key's state, whoever looks."""

    PRE_ACTIVE = "Pre-Active"
    ACTIVE = "Active"
    SUSPENDED = "Suspended"
    DEACTIVATED = "Deactivated"
    COMPROMISED = "Compromised"
    DESTROYED = "Destroyed"
    DESTROYED_COMPROMISED = "Destroyed Compromised"


# SP 800-57 part 1 rev. 5, section 7: every way from one state to another.
WAYS: dict[State, frozenset[State]] = {
    State.PRE_ACTIVE: frozenset({State.ACTIVE, State.DESTROYED, State.COMPROMISED}),
    State.ACTIVE: frozenset({State.SUSPENDED, State.DEACTIVATED, State.COMPROMISED, State.DESTROYED}),
    State.SUSPENDED: frozenset({State.ACTIVE, State.DEACTIVATED, State.COMPROMISED, State.DESTROYED}),
    State.DEACTIVATED: frozenset({State.DESTROYED, State.COMPROMISED}),
    State.COMPROMISED: frozenset({State.DESTROYED_COMPROMISED}),
    State.DESTROYED: frozenset({State.DESTROYED_COMPROMISED}),
    State.DESTROYED_COMPROMISED: frozenset(),
}


class Stage(StrEnum):
    """Where a key stands at one node. A Batch and its stock have stages of their own before there is a key."""

    ALLOCATED = "allocated"
    READY = "ready"
    QUARANTINED = "quarantined"
    DELIVERED = "delivered"
    SUSPENDED = "suspended"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DAMAGED = "damaged"
    BURNT = "burnt"
    DESTROYED = "destroyed"
    DESTROYED_COMPROMISED = "destroyed-compromised"


class Standing(msgspec.Struct, frozen=True):
    """What a stage means."""

    letter: int  # in the states of a Bundle
    state: State
    holds: bool  # this node holds the key's bits, sealed; a step out of such a stage into another destroys them
    meaning: str


STAGES: dict[Stage, Standing] = {
    Stage.ALLOCATED: Standing(ord("a"), State.PRE_ACTIVE, True, "cut for two applications; not yet at both ends"),
    Stage.READY: Standing(ord("r"), State.PRE_ACTIVE, True, "held at both ends; the application may have it"),
    Stage.QUARANTINED: Standing(ord("q"), State.PRE_ACTIVE, True, "in doubt: kept, and given to nobody"),
    Stage.DELIVERED: Standing(ord("d"), State.PRE_ACTIVE, False, "the application has it; active once both have"),
    Stage.SUSPENDED: Standing(ord("s"), State.SUSPENDED, False, "in doubt while applications have it"),
    Stage.DEACTIVATED: Standing(ord("e"), State.DEACTIVATED, False, "at the end of its use; protects nothing new"),
    Stage.COMPROMISED: Standing(ord("c"), State.COMPROMISED, False, "others may know it"),
    Stage.DAMAGED: Standing(ord("x"), State.COMPROMISED, True, "its record is not what was written"),
    Stage.BURNT: Standing(ord("b"), State.DESTROYED, False, "destroyed before the far end had it"),
    Stage.DESTROYED: Standing(ord("z"), State.DESTROYED, False, "destroyed"),
    Stage.DESTROYED_COMPROMISED: Standing(ord("y"), State.DESTROYED_COMPROMISED, False, "destroyed; known to others"),
}  # fmt: skip
LETTERS: dict[Stage, int] = {stage: standing.letter for stage, standing in STAGES.items()}
STAGE_OF_LETTER: dict[int, Stage] = {letter: stage for stage, letter in LETTERS.items()}
HOLDING = frozenset(letter for stage, letter in LETTERS.items() if STAGES[stage].holds)


class Step(StrEnum):
    """What takes a key from stage to stage, as its leaf in the audit log tells."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    DELIVER = "deliver"
    FAR_DELIVER = "far-deliver"
    QUARANTINE = "quarantine"
    RESTORE = "restore"
    SUSPEND = "suspend"
    RESUME = "resume"
    DEACTIVATE = "deactivate"
    COMPROMISE = "compromise"
    DAMAGE = "damage"
    DESTROY = "destroy"


class Move(msgspec.Struct, frozen=True):
    """One step: from where, to where. `both`: not before both applications have the key."""

    happened: str  # the kind of its leaf
    ends: dict[Stage, Stage]
    both: bool = False


_S = Stage
_UNUSED = (_S.ALLOCATED, _S.READY, _S.QUARANTINED)
STEPS: dict[Step, Move] = {
    Step.ACCEPT: Move("key.ready", {_S.ALLOCATED: _S.READY}),
    Step.REFUSE: Move("key.burnt", {_S.ALLOCATED: _S.BURNT}),
    Step.DELIVER: Move("key.delivered", {_S.READY: _S.DELIVERED, _S.QUARANTINED: _S.DELIVERED}),
    Step.FAR_DELIVER: Move("key.delivered_remote", {stage: stage for stage in (*_UNUSED, _S.DELIVERED)}),
    Step.QUARANTINE: Move("key.quarantined", {_S.READY: _S.QUARANTINED}),
    Step.RESTORE: Move("key.restored", {_S.QUARANTINED: _S.READY}),
    Step.SUSPEND: Move("key.suspended", {_S.DELIVERED: _S.SUSPENDED}, both=True),
    Step.RESUME: Move("key.resumed", {_S.SUSPENDED: _S.DELIVERED}, both=True),
    Step.DEACTIVATE: Move("key.deactivated", {_S.DELIVERED: _S.DEACTIVATED, _S.SUSPENDED: _S.DEACTIVATED}, both=True),
    Step.COMPROMISE: Move(
        "key.compromised",
        {
            **dict.fromkeys((*_UNUSED, _S.DELIVERED, _S.SUSPENDED, _S.DEACTIVATED), _S.COMPROMISED),
            _S.DESTROYED: _S.DESTROYED_COMPROMISED,
        },
    ),
    Step.DAMAGE: Move("key.damaged", dict.fromkeys(_UNUSED, _S.DAMAGED)),
    Step.DESTROY: Move(
        "key.destroyed",
        {
            **dict.fromkeys((*_UNUSED, _S.DELIVERED, _S.SUSPENDED, _S.DEACTIVATED), _S.DESTROYED),
            **dict.fromkeys((_S.COMPROMISED, _S.DAMAGED), _S.DESTROYED_COMPROMISED),
        },
    ),
}
# An application may say again, or late, that it has a key; what was revoked meanwhile stays so.
PAST_DELIVERY = frozenset(
    {_S.DELIVERED, _S.SUSPENDED, _S.DEACTIVATED, _S.COMPROMISED, _S.DESTROYED, _S.DESTROYED_COMPROMISED}
)
ENDED = frozenset({_S.BURNT, _S.DESTROYED, _S.DESTROYED_COMPROMISED})


def state_of(stage: Stage, far: bool) -> State:
    """The state of a key at a stage; `far`: the application at the far end has it."""
    return State.ACTIVE if stage is Stage.DELIVERED and far else STAGES[stage].state


def after(stage: Stage, far: bool, step: Step) -> Stage | None:
    """Where a step leads; None if it cannot be taken there."""
    move = STEPS[step]
    return move.ends.get(stage) if far or not move.both else None


def steps() -> Iterator[tuple[Stage, bool, Step, Stage, bool]]:
    """Every step that can be taken: stage, far, step, stage, far."""
    for stage in Stage:
        for far in (False, True):
            for step in Step:
                end = after(stage, far, step)
                if end is not None:
                    yield stage, far, step, end, far or step is Step.FAR_DELIVER
