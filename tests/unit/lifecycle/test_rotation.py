"""The tables of a rotation: which way is taken when, what is released and cut in each phase."""

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qkdnode.ids import ALICE, BOB, ROLES
from qkdnode.lifecycle import drawing
from qkdnode.lifecycle.policy.document import Rotation
from qkdnode.lifecycle.rotation import (
    GIVEN_UP_IN,
    GRACE_NS,
    LINGER_NS,
    ORDER,
    PHASES,
    RETRY_NS,
    WAYS,
    Fact,
    Phase,
    Usage,
    cut_for,
    due,
    following,
    is_quiet,
    may_follow,
    releases,
)

FACTS = (None, *Fact)


def test_every_phase_but_what_alice_or_bob_enter_on_a_message_is_the_end_of_a_way() -> None:
    assert {way.end for way in WAYS} | {Phase.WANTED, Phase.PROPOSED} == set(Phase)
    assert set(PHASES) == set(Phase)


@pytest.mark.parametrize("role", ROLES)
def test_there_is_one_way_at_most_and_it_goes_one_phase_on(role: str) -> None:
    for phase, peer, fact in itertools.product(Phase, Phase, FACTS):
        fitting = [
            way
            for way in WAYS
            if way.start is phase
            and way.role in (None, role)
            and way.fact in (None, fact)
            and (way.peer is None or ORDER[peer] >= ORDER[way.peer])
        ]
        assert len(fitting) <= 1
        end = following(role, phase, peer, fact)
        assert end == (fitting[0].end if fitting else None)
        if end not in (None, Phase.STEADY):
            assert end is not None
            assert ORDER[end] == ORDER[phase] + 1


def test_alice_cuts_when_both_applications_have_acknowledged_and_bob_only_after_her() -> None:
    def cuts(role: str) -> set[Phase]:
        return {peer for peer in Phase if following(role, Phase.ACKNOWLEDGED, peer) is Phase.CUT}

    assert cuts(ALICE) == {Phase.ACKNOWLEDGED, Phase.CUT, Phase.CLOSED}
    assert cuts(BOB) == {Phase.CUT, Phase.CLOSED}


def test_no_phase_of_a_pair_lets_an_old_key_out_where_the_other_end_has_told_that_it_is_over() -> None:
    """An application is told so when its end has closed and knows that the other one has."""
    closed = {peer for role in ROLES for peer in Phase if following(role, Phase.CLOSED, peer) is Phase.STEADY}
    assert closed == {Phase.CLOSED}
    assert not any(releases(Phase.CLOSED, 1, 2, 1, far) for far in (False, True))


@pytest.mark.parametrize("phase", Phase)
def test_there_is_always_one_generation_that_is_released_whole_and_never_two(phase: Phase) -> None:
    released = [its for its in (1, 2, 3) if releases(phase, 1, 0 if phase is Phase.STEADY else 2, its, far=False)]
    assert released == ([2] if phase in (Phase.CUT, Phase.CLOSED) else [1])


def test_keys_of_the_next_generation_are_cut_before_it_is_released_and_those_of_the_old_one_not_after() -> None:
    for phase in Phase:
        cut = cut_for(phase, 1, 2)
        assert (2 in cut) == (phase not in (Phase.STEADY, Phase.WANTED, Phase.PROPOSED))
        assert (1 in cut) == (phase not in (Phase.CUT, Phase.CLOSED))
        assert releases(phase, 1, 2, cut[0], far=False), "what is cut first is what is supplied"


def test_after_the_cut_only_pairs_of_old_keys_are_made_whole() -> None:
    assert releases(Phase.CUT, 1, 2, 1, far=True)
    assert not releases(Phase.CUT, 1, 2, 1, far=False)


def test_an_end_that_has_cut_is_not_given_up() -> None:
    assert not {Phase.CUT, Phase.CLOSED, Phase.STEADY, Phase.WANTED} & GIVEN_UP_IN
    assert {Phase.PROPOSED, Phase.AGREED, Phase.PREPARED, Phase.OFFERED, Phase.ACKNOWLEDGED} == GIVEN_UP_IN


def test_what_the_other_end_cannot_have_come_to_is_not_believed() -> None:
    assert not may_follow(ALICE, Phase.ACKNOWLEDGED, Phase.CUT), "Bob does not cut before Alice"
    assert may_follow(BOB, Phase.ACKNOWLEDGED, Phase.CUT)
    assert not may_follow(BOB, Phase.OFFERED, Phase.CUT)
    for role in ROLES:
        assert not may_follow(role, Phase.ACKNOWLEDGED, Phase.CLOSED)
        assert may_follow(role, Phase.CUT, Phase.CLOSED)
        assert not any(may_follow(role, phase, Phase.PROPOSED) for phase in Phase)
    assert not may_follow(BOB, Phase.AGREED, Phase.AGREED), "Alice does not say so"


def test_the_old_generation_is_closed_when_pairs_are_whole_or_patience_is_at_its_end() -> None:
    assert not is_quiet(LINGER_NS - 1, 0)
    assert is_quiet(LINGER_NS, 0)
    assert not is_quiet(GRACE_NS - 1, 1)
    assert is_quiet(GRACE_NS, 1)


def test_the_document_shows_both_tables() -> None:
    document = (Path(__file__).resolve().parents[3] / "docs/lifecycle.md").read_text()
    assert drawing.phases() in document
    assert drawing.rotation_ways() in document


# --- when a generation is over by itself -----------------------------------------------------------------------------

DAY_NS = 86_400 * 10**9
FRESH = Usage(now_ns=10 * DAY_NS, since_ns=9 * DAY_NS, keys=99, bits=8 * 99)


@pytest.mark.parametrize(
    ("terms", "changes", "reason"),
    [
        (Rotation(every_s=86_401), {}, None),
        (Rotation(every_s=86_400), {}, "time"),
        (Rotation(keys=100), {}, None),
        (Rotation(keys=99), {}, "keys"),
        (Rotation(bytes=100), {}, None),
        (Rotation(bytes=99), {}, "bytes"),
        (Rotation(at=10 * DAY_NS + 1), {}, None),
        (Rotation(at=10 * DAY_NS), {}, "date"),
        (Rotation(at=9 * DAY_NS), {}, None),
        (Rotation(), {"deprecated_ns": 10 * DAY_NS}, None),
        (Rotation(on_deprecated=True), {}, None),
        (Rotation(on_deprecated=True), {"deprecated_ns": 10 * DAY_NS}, "deprecated"),
        (Rotation(on_deprecated=True), {"deprecated_ns": 9 * DAY_NS}, None),
        (Rotation(), {"degraded_ns": 10 * DAY_NS}, None),
        (Rotation(on_degraded=True), {"degraded_ns": 10 * DAY_NS}, "degraded"),
        (Rotation(on_degraded=True), {"degraded_ns": 8 * DAY_NS}, None),
        (Rotation(keys=1, every_s=1), {"given_up_ns": 10 * DAY_NS - RETRY_NS + 1}, None),
        (Rotation(keys=1, every_s=1), {"given_up_ns": 10 * DAY_NS - RETRY_NS}, "time"),
    ],
)
def test_each_term_begins_a_rotation_at_its_limit_and_once(terms: Rotation, changes: Any, reason: str | None) -> None:
    assert due(terms, msgspec.structs.replace(FRESH, **changes)) == reason
