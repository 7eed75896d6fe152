"""What follows from where a key stands at this end and at the other: one table, and the steps that each row means.

Each end looks for itself and repairs only itself. What the other end says takes no key further than its revocation of
that key could, and brings none to an application that this end had not agreed to before.
"""

from enum import StrEnum
from itertools import product

import msgspec

from qkdnode.lifecycle.states import Stage, Step, after

_S = Stage


class Verdict(StrEnum):
    """How one key stands at both ends, for this one."""

    AGREED = "agreed"
    IN_FLIGHT = "in flight"  # a message that is kept until it is confirmed will settle it
    THEIRS = "theirs"  # the other end has to follow
    ORPHAN = "orphan"  # the other end never had it
    HAD = "had"  # the application here has it, says the other end: this vault has forgotten
    ENDED = "ended"  # it is out of use at the other end
    HEARD = "heard"  # the other application has it
    ANSWERED = "answered"  # the other end has accepted what it was asked for, and the answer is lost
    UNANSWERED = "unanswered"  # the other end will never hear of it
    USELESS = "useless"  # an application here has it, and the other end does not know it
    EXPLAINED = "explained"  # it was in doubt, and is not


class Repair(msgspec.Struct, frozen=True):
    """What is done about a verdict: at once, once it stands a second look, and once it was kept for long enough."""

    rule: str  # for people
    at_once: tuple[Step, ...] = ()
    standing: tuple[Step, ...] = ()
    kept: tuple[Step, ...] = ()
    difference: bool = True  # an operator hears of it


REPAIRS: dict[Verdict, Repair] = {
    Verdict.AGREED: Repair("nothing", difference=False),
    Verdict.IN_FLIGHT: Repair("nothing: a message that is kept until it is confirmed settles it", difference=False),
    Verdict.THEIRS: Repair("nothing here: the far end follows"),
    Verdict.ORPHAN: Repair(
        "quarantined; destroyed if nobody explains it", at_once=(Step.QUARANTINE,), kept=(Step.DESTROY,)
    ),
    Verdict.HAD: Repair(
        "quarantined; then taken as delivered, and its bits destroyed",
        at_once=(Step.QUARANTINE,),
        standing=(Step.DELIVER,),
    ),
    Verdict.ENDED: Repair("quarantined; then taken to where it ended", at_once=(Step.QUARANTINE,)),
    Verdict.HEARD: Repair("noted: the far application has it", standing=(Step.FAR_DELIVER,)),
    Verdict.ANSWERED: Repair("made ready, as the far end has accepted it", standing=(Step.ACCEPT,)),
    Verdict.UNANSWERED: Repair("kept from everybody; then burnt", kept=(Step.REFUSE,)),
    Verdict.USELESS: Repair("kept on the list; then destroyed", kept=(Step.DESTROY,)),
    Verdict.EXPLAINED: Repair("restored, once that stands", standing=(Step.RESTORE,)),
}

# Where a key goes that is out of use at the other end: the steps of these that it can take, in this order.
_TO_THE_END = (Step.DELIVER, Step.FAR_DELIVER)
ENDINGS: dict[Stage, tuple[Step, ...]] = {
    _S.SUSPENDED: (*_TO_THE_END, Step.SUSPEND),
    _S.DEACTIVATED: (*_TO_THE_END, Step.DEACTIVATE),
    _S.COMPROMISED: (Step.COMPROMISE,),
    _S.DAMAGED: (Step.COMPROMISE,),
    _S.BURNT: (Step.DESTROY,),
    _S.DESTROYED: (Step.DESTROY,),
    _S.DESTROYED_COMPROMISED: (Step.COMPROMISE, Step.DESTROY),
}
GONE = frozenset({_S.BURNT, _S.DESTROYED, _S.COMPROMISED, _S.DESTROYED_COMPROMISED, _S.DAMAGED})


class Standing(msgspec.Struct, frozen=True):
    """One key at one end; `waiting`: a message of that end about it is not confirmed, or a compromise to reach it."""

    stage: Stage | None  # None: it is not known there
    far: bool = False
    waiting: bool = False


def endings(stage: Stage, far: bool, there: Stage) -> tuple[Step, ...]:
    """The steps that take a key from a stage to where it ended at the other end, or as near as its table has a way."""
    if stage is _S.ALLOCATED and there in (_S.SUSPENDED, _S.DEACTIVATED):
        there = _S.DESTROYED
    steps = []
    for step in ENDINGS.get(there, ()):
        if step is Step.FAR_DELIVER and far:
            continue
        end = after(stage, far, step)
        if end is not None:
            steps.append(step)
            stage, far = end, far or step is Step.FAR_DELIVER
    return tuple(steps)


def verdict(here: Standing, there: Standing) -> Verdict:
    """The row of the table."""
    if here.stage is None:
        if there.stage in (None, *GONE):
            return Verdict.AGREED
        return Verdict.IN_FLIGHT if there.waiting else Verdict.THEIRS
    found = _ROWS[here.stage](here, there)
    return Verdict.IN_FLIGHT if found is Verdict.THEIRS and there.waiting else found


def _allocated(here: Standing, there: Standing) -> Verdict:
    if here.waiting:
        return Verdict.IN_FLIGHT
    if there.stage in (None, _S.ALLOCATED, _S.BURNT):
        return Verdict.UNANSWERED
    return Verdict.ANSWERED if there.stage in (_S.READY, _S.QUARANTINED, _S.DELIVERED) else Verdict.ENDED


def _waits(here: Standing, there: Standing) -> Verdict:
    """READY, or QUARANTINED after that."""
    if there.stage is None:
        return Verdict.ORPHAN
    if there.stage in ENDINGS:
        return Verdict.IN_FLIGHT if there.waiting else Verdict.ENDED
    if there.far:
        return Verdict.HAD
    if here.stage is _S.QUARANTINED:
        return Verdict.EXPLAINED
    if there.stage is _S.ALLOCATED:
        return Verdict.THEIRS
    if there.stage is _S.DELIVERED and not here.far:
        return Verdict.IN_FLIGHT if there.waiting else Verdict.HEARD
    agrees = there.stage is _S.DELIVERED or (there.stage is _S.READY and not here.far)
    return Verdict.AGREED if agrees else Verdict.THEIRS


def _in_use(here: Standing, there: Standing) -> Verdict:
    assert here.stage is not None
    if there.stage is None:
        return Verdict.USELESS
    if endings(here.stage, here.far, there.stage):
        return Verdict.IN_FLIGHT if there.waiting else Verdict.ENDED
    if there.stage is here.stage and here.stage is not _S.DELIVERED:
        return Verdict.AGREED
    if here.stage is not _S.DELIVERED or there.stage in ENDINGS:
        return Verdict.IN_FLIGHT if here.waiting else Verdict.THEIRS
    if there.stage is _S.DELIVERED and not here.far:
        return Verdict.IN_FLIGHT if there.waiting else Verdict.HEARD
    if here.far and there.stage is not _S.DELIVERED:
        return Verdict.THEIRS
    if there.far and there.stage in (_S.DELIVERED, _S.READY):
        return Verdict.AGREED
    return Verdict.IN_FLIGHT if here.waiting else Verdict.THEIRS


def _gone(here: Standing, there: Standing) -> Verdict:
    assert here.stage is not None
    if there.stage is None:
        return Verdict.AGREED
    if there.stage in GONE:
        if endings(here.stage, here.far, there.stage):
            return Verdict.IN_FLIGHT if there.waiting else Verdict.ENDED
        return Verdict.AGREED
    return Verdict.IN_FLIGHT if here.waiting else Verdict.THEIRS


_ROWS = {
    _S.ALLOCATED: _allocated,
    _S.READY: _waits,
    _S.QUARANTINED: _waits,
    _S.DELIVERED: _in_use,
    _S.SUSPENDED: _in_use,
    _S.DEACTIVATED: _in_use,
    **dict.fromkeys(GONE, _gone),
}


def table() -> dict[tuple[Standing, Standing], Verdict]:
    """Every pair of standings: what the documentation's table is drawn from, and what tests enumerate."""
    flags = (False, True)
    each = [Standing(None), *(Standing(stage, far, waits) for stage in Stage for far in flags for waits in flags)]
    return {(here, there): verdict(here, there) for here, there in product(each, repeat=2)}
