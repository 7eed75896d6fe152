"""Rotation: the keys of an association go over from one generation to the next, at both ends and without a gap.

Each end has a phase and knows of the other's. Alice gives numbers, decides on the cut and on giving up; so both ends
cut or neither does. The tables below are all that there is: a way is taken when what it asks for is so.
"""

from enum import StrEnum

import msgspec

from qkdnode.ids import ALICE, BOB, ROLES, other_role
from qkdnode.lifecycle.policy.document import Rotation

FIRST = 1  # the generation of an association's first keys
SECOND_NS = 10**9


class Phase(StrEnum):
    """How far an end is on the way from one generation (the old one) to the next."""

    STEADY = "steady"
    WANTED = "wanted"
    PROPOSED = "proposed"
    AGREED = "agreed"
    PREPARED = "prepared"
    OFFERED = "offered"
    ACKNOWLEDGED = "acknowledged"
    CUT = "cut"
    CLOSED = "closed"


class Fact(StrEnum):
    """What happens at an end itself."""

    PREPARED = "keys are there"
    ACKNOWLEDGED = "the application has acknowledged"
    QUIET = "no application waits for a key that the other one has"


class Way(msgspec.Struct, frozen=True):
    """From one phase to the next: for whom, after which fact here, and how far the other end must be."""

    start: Phase
    end: Phase
    role: str | None = None  # None: both
    fact: Fact | None = None
    peer: Phase | None = None


class Standing(msgspec.Struct, frozen=True):
    """What a phase means."""

    releases_old: str  # "all", "pairs" (only keys that the other application has), "none"
    releases_new: bool
    cuts: str  # keys of which generations are cut: "old", "both", "new"
    tellers: tuple[str, ...]  # who tells the other end that this phase is reached
    meaning: str


PHASES: dict[Phase, Standing] = {
    Phase.STEADY: Standing("all", False, "old", (), "one generation, and no other in sight"),
    Phase.WANTED: Standing("all", False, "old", (), "Bob has asked Alice to propose the next one"),
    Phase.PROPOSED: Standing("all", False, "old", (), "Alice has given it a number and told Bob"),
    Phase.AGREED: Standing("all", False, "both", (BOB,), "both ends know it: its first keys are cut, and held"),
    Phase.PREPARED: Standing("all", False, "both", ROLES, "this end's half of its first keys is there, at both ends"),
    Phase.OFFERED: Standing("all", False, "both", (), "both halves are there: the application here is told"),
    Phase.ACKNOWLEDGED: Standing("all", False, "both", ROLES, "the application here is ready for it"),
    Phase.CUT: Standing("pairs", True, "new", ROLES, "its keys are released; of the old ones those that make a pair"),
    Phase.CLOSED: Standing("none", True, "new", ROLES, "no key of the old generation is released any more"),
}
ORDER = {phase: place for place, phase in enumerate(Phase)}

WAYS: tuple[Way, ...] = (
    Way(Phase.PROPOSED, Phase.AGREED, role=ALICE, peer=Phase.AGREED),
    Way(Phase.AGREED, Phase.PREPARED, fact=Fact.PREPARED),
    Way(Phase.PREPARED, Phase.OFFERED, peer=Phase.PREPARED),
    Way(Phase.OFFERED, Phase.ACKNOWLEDGED, fact=Fact.ACKNOWLEDGED),
    Way(Phase.ACKNOWLEDGED, Phase.CUT, role=ALICE, peer=Phase.ACKNOWLEDGED),
    Way(Phase.ACKNOWLEDGED, Phase.CUT, role=BOB, peer=Phase.CUT),
    Way(Phase.CUT, Phase.CLOSED, fact=Fact.QUIET, peer=Phase.CUT),
    Way(Phase.CLOSED, Phase.STEADY, peer=Phase.CLOSED),
)
# Given up by Alice, or by Bob's wish: once an end has cut there is no way back.
GIVEN_UP_IN = frozenset({Phase.PROPOSED, Phase.AGREED, Phase.PREPARED, Phase.OFFERED, Phase.ACKNOWLEDGED})
# Where the application here, or keys for it, are waited for.
WAITS_FOR: dict[Phase, Fact] = {Phase.AGREED: Fact.PREPARED, Phase.OFFERED: Fact.ACKNOWLEDGED}

PATIENCE_NS = 60 * SECOND_NS  # with an application; then the policy's choice
STOCK_PATIENCE_NS = 60 * SECOND_NS  # with a half that has too few bits
EXPIRES_NS = 86_400 * SECOND_NS  # from the beginning, if no end has cut
LINGER_NS = SECOND_NS // 2  # after the cut: acknowledgements that are on the way come in
GRACE_NS = 10 * SECOND_NS  # after the cut, for keys that only one application has


def following(role: str, phase: Phase, peer: Phase, fact: Fact | None = None) -> Phase | None:
    """The next phase of an end; None if something is still missing."""
    for way in WAYS:
        fits = way.start is phase and way.role in (None, role) and way.fact in (None, fact)
        if fits and (way.peer is None or ORDER[peer] >= ORDER[way.peer]):
            return way.end
    return None


def may_follow(role: str, phase: Phase, heard: Phase) -> bool:
    """Whether the other end can truly be that far, as this end stands. Bob never cuts before Alice, nor closes before
    this end has cut."""
    if other_role(role) not in PHASES[heard].tellers:
        return False
    if ORDER[heard] >= ORDER[Phase.CLOSED]:
        return ORDER[phase] >= ORDER[Phase.CUT]
    if heard is Phase.CUT:
        return ORDER[phase] >= ORDER[Phase.CUT if role == ALICE else Phase.ACKNOWLEDGED]
    return True


def releases(phase: Phase, current: int, number: int, generation: int, far: bool) -> bool:
    """Whether a key of a generation may go out; `far`: the application at the far end has it."""
    standing = PHASES[phase]
    if generation == current:
        return standing.releases_old == "all" or (standing.releases_old == "pairs" and far)
    return bool(number) and generation == number and standing.releases_new


def cut_for(phase: Phase, current: int, number: int) -> tuple[int, ...]:
    """The generations that keys are cut for, the one to be supplied next first."""
    return {"old": (current,), "both": (current, number), "new": (number,)}[PHASES[phase].cuts]


def is_quiet(since_cut_ns: int, unpaired: int) -> bool:
    """Whether the old generation can be closed: acknowledgements have come in, and all pairs are made or given up."""
    return since_cut_ns >= GRACE_NS or (since_cut_ns >= LINGER_NS and not unpaired)


# --- when a generation is over by itself -----------------------------------------------------------------------------

RETRY_NS = 600 * SECOND_NS  # after a rotation that was given up, before the policy begins another


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of the generation that is supplied. None: it has not happened."""

    now_ns: int
    since_ns: int  # the first of its keys was cut, or it took the place of another
    keys: int  # cut of it
    bits: int
    deprecated_ns: int | None = None  # the latest deprecation of an algorithm that its keys are used or sealed with
    degraded_ns: int | None = None  # the latest degradation of what they are made with, if it lasts
    given_up_ns: int | None = None  # the last rotation was


def due(terms: Rotation, usage: Usage) -> str | None:
    """Why a generation is to be replaced now; None if it is not.

    Dates, deprecations and degradations end each generation that was supplied before them, once. What was given up is
    not begun again for a while.
    """
    if usage.given_up_ns is not None and usage.now_ns - usage.given_up_ns < RETRY_NS:
        return None
    for reason, is_due in (
        ("time", terms.every_s is not None and usage.now_ns - usage.since_ns >= terms.every_s * SECOND_NS),
        ("keys", terms.keys is not None and usage.keys >= terms.keys),
        ("bytes", terms.bytes is not None and usage.bits >= 8 * terms.bytes),
        ("date", _passed(terms.at, usage)),
        ("deprecated", terms.on_deprecated and _passed(usage.deprecated_ns, usage)),
        ("degraded", terms.on_degraded and _passed(usage.degraded_ns, usage)),
    ):
        if is_due:
            return reason
    return None


def _passed(moment_ns: int | None, usage: Usage) -> bool:
    return moment_ns is not None and usage.since_ns < moment_ns <= usage.now_ns
