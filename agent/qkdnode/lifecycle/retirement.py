"""Which keys end by themselves, and when: the terms of a class as points in time up to which a timer's keys are due.

A key is released until its end, and ended a grace later: what both ends decide by clocks of their own has then been
decided by both, and an acknowledgement that was on its way has come. All times are trusted time.
"""

from enum import StrEnum

import msgspec

from qkdnode.lifecycle.policy.decision import AGE, UNKNOWN_CLASS, WINDOW
from qkdnode.lifecycle.policy.document import SECOND_NS, KeyClass
from qkdnode.lifecycle.states import ENDED, LETTERS, Stage

GRACE_NS = 60 * SECOND_NS
LOST_NS = 3600 * SECOND_NS  # in which a policy that forgot a class can be mended before the class's keys end
LIFETIME, RETENTION, RECORD_RETENTION, HOLD_RELEASED = "lifetime", "retain-key", "retain-metadata", "hold-released"
RULES = (AGE, WINDOW, UNKNOWN_CLASS, LIFETIME, RETENTION, HOLD_RELEASED)  # by which keys are ended


class Timer(StrEnum):
    """What is timed. A Bundle has the time since when some of its keys are so."""

    PRE_ACTIVE = "pre-active"  # allocated, ready or quarantined: since it was cut
    HELD = "held"  # the same, past its end, and kept by a legal hold
    ACTIVE = "active"  # delivered: since the last of the Bundle was
    DEACTIVATED = "deactivated"
    RECORD = "record"  # every key of the Bundle has ended: its row


COLUMNS: dict[Timer, str] = {
    Timer.PRE_ACTIVE: "waits_ns",
    Timer.HELD: "held_ns",
    Timer.ACTIVE: "used_ns",
    Timer.DEACTIVATED: "kept_ns",
    Timer.RECORD: "over_ns",
}
LETTERS_OF: dict[Timer, frozenset[int]] = {
    timer: frozenset(LETTERS[stage] for stage in stages)
    for timer, stages in {
        Timer.PRE_ACTIVE: (Stage.ALLOCATED, Stage.READY, Stage.QUARANTINED),
        Timer.ACTIVE: (Stage.DELIVERED, Stage.SUSPENDED),
        Timer.DEACTIVATED: (Stage.DEACTIVATED,),
        Timer.RECORD: tuple(ENDED),
    }.items()
}
ALWAYS = -(2**63)


class Terms(msgspec.Struct, frozen=True):
    """What the policy says of a class now. Of one that it has lost, the terms that were known last still retain."""

    known: KeyClass | None
    lost_ns: int | None = None  # since when no policy in force knows it

    @property
    def held(self) -> bool:
        """Whether nothing of it may be destroyed by a timer."""
        return self.known is not None and self.known.legal_hold


class Due(msgspec.Struct, frozen=True):
    """When what has been so since a time comes to its end, and by which rule."""

    at_ns: int
    rule: str


def due(terms: Terms, timer: Timer, since_ns: int, *, own: bool) -> Due | None:
    """When a timer acts on keys that have been so since a time; None: never, as the terms are now.

    `own`: they were allocated here. The other end waits a second grace for being told.
    """
    found = [Due(at_ns, rule) for at_ns, rule in _ENDS[timer](terms, since_ns)]
    if not found:
        return None
    first = min(found, key=lambda its: its.at_ns)
    if timer is Timer.RECORD or timer is Timer.HELD:
        return first
    grace_ns = GRACE_NS if own else 2 * GRACE_NS
    if timer is Timer.DEACTIVATED:
        grace_ns -= GRACE_NS  # it was so at both ends
    return Due(first.at_ns + grace_ns, first.rule)


def _of_pre_active(terms: Terms, since_ns: int) -> list[tuple[int, str]]:
    ends = _of_lost(terms)
    known = terms.known
    if known is not None and terms.lost_ns is None:
        if known.max_age_at_release_s is not None:
            ends.append((since_ns + known.max_age_at_release_s * SECOND_NS, AGE))
        if known.not_after is not None:
            ends.append((known.not_after, WINDOW))
    return ends


def _of_held(terms: Terms, since_ns: int) -> list[tuple[int, str]]:
    """It is past its end already: it goes as soon as nothing holds it."""
    return [] if terms.held else [(since_ns, HOLD_RELEASED)]


def _of_active(terms: Terms, since_ns: int) -> list[tuple[int, str]]:
    """A window that ends makes no key inactive that is in use: its lifetime does, or people who take its class away.

    Not under a hold: what only one application has would be due for ever, and must not be destroyed.
    """
    ends = [] if terms.held else _of_lost(terms)
    known = terms.known
    if known is not None and known.lifetime_s is not None:
        ends.append((since_ns + known.lifetime_s * SECOND_NS, LIFETIME))
    return ends


def _of_deactivated(terms: Terms, since_ns: int) -> list[tuple[int, str]]:
    if terms.held:
        return []
    retained_s = 0 if terms.known is None else terms.known.retain_key_s
    return [(since_ns + retained_s * SECOND_NS, RETENTION)]


def _of_record(terms: Terms, since_ns: int) -> list[tuple[int, str]]:
    known = terms.known
    if terms.held or known is None or known.retain_metadata_s is None:
        return []
    return [(since_ns + known.retain_metadata_s * SECOND_NS, RECORD_RETENTION)]


def _of_lost(terms: Terms) -> list[tuple[int, str]]:
    return [] if terms.lost_ns is None else [(terms.lost_ns + LOST_NS, UNKNOWN_CLASS)]


_ENDS = {
    Timer.PRE_ACTIVE: _of_pre_active,
    Timer.HELD: _of_held,
    Timer.ACTIVE: _of_active,
    Timer.DEACTIVATED: _of_deactivated,
    Timer.RECORD: _of_record,
}


def next_times(
    before: dict[Timer, int | None], states: bytes, now_ns: int, *, begins: Timer | None
) -> dict[str, int | None]:
    """The times of a Bundle once its keys are in these states; `begins`: what some of them have just become."""
    there = set(states)
    base_ns = before[Timer.PRE_ACTIVE] if before[Timer.HELD] is None else before[Timer.HELD]
    waits = not there.isdisjoint(LETTERS_OF[Timer.PRE_ACTIVE])
    held_ns = before[Timer.HELD] if waits and begins is not Timer.PRE_ACTIVE else None
    times: dict[Timer, int | None] = {
        Timer.PRE_ACTIVE: base_ns if waits and held_ns is None else None,
        Timer.HELD: held_ns,
    }
    for timer in (Timer.ACTIVE, Timer.DEACTIVATED):
        is_so = not there.isdisjoint(LETTERS_OF[timer])
        times[timer] = None if not is_so else now_ns if begins is timer or before[timer] is None else before[timer]
    over = there <= LETTERS_OF[Timer.RECORD]
    times[Timer.RECORD] = None if not over else now_ns if before[Timer.RECORD] is None else before[Timer.RECORD]
    return {COLUMNS[timer]: since_ns for timer, since_ns in times.items()}
