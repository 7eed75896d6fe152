"""The table of a key's states: whole, legal, and what the documentation shows."""

import itertools
from pathlib import Path

import pytest

from qkdnode.lifecycle import drawing
from qkdnode.lifecycle.reasons import COMPROMISES, FOLLOWED, Reason, revocation
from qkdnode.lifecycle.states import (
    ENDED,
    LETTERS,
    PAST_DELIVERY,
    STAGE_OF_LETTER,
    STAGES,
    STEPS,
    WAYS,
    Stage,
    State,
    Step,
    after,
    state_of,
    steps,
)

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs/lifecycle.md").read_text()
POSITIONS = list(itertools.product(Stage, (False, True)))


def test_every_step_follows_a_way_of_sp_800_57_and_every_way_is_walked() -> None:
    walked = set()
    for stage, far, step, end, far_then in steps():
        before, then = state_of(stage, far), state_of(end, far_then)
        assert before is then or then in WAYS[before], f"{stage} {step} {end}"
        walked.add((before, then))
    assert {(before, then) for before, ends in WAYS.items() for then in ends} <= walked


def test_every_stage_has_a_letter_and_every_step_a_leaf_of_its_own() -> None:
    assert set(STAGES) == set(Stage)
    assert set(STEPS) == set(Step)
    assert len(set(LETTERS.values())) == len(Stage)
    assert {STAGE_OF_LETTER[letter]: letter for letter in LETTERS.values()} == LETTERS
    assert len({move.happened for move in STEPS.values()}) == len(Step)


def test_no_key_comes_back_from_its_end() -> None:
    for stage, far in POSITIONS:
        if stage in ENDED:
            ends = {after(stage, far, step) for step in Step} - {None}
            assert ends <= {Stage.DESTROYED_COMPROMISED}


def test_no_key_that_was_delivered_is_ever_to_be_delivered_again() -> None:
    """From a stage past delivery no path leads to one at which the application gets the key."""
    for start in PAST_DELIVERY:
        reached, todo = {start}, [start]
        while todo:
            stage = todo.pop()
            for far, step in itertools.product((False, True), Step):
                end = after(stage, far, step)
                if end is not None and end not in reached:
                    reached.add(end)
                    todo.append(end)
        assert not reached & {Stage.ALLOCATED, Stage.READY, Stage.QUARANTINED}


def test_bits_once_destroyed_do_not_come_back() -> None:
    for stage, _, _, end, _ in steps():
        assert STAGES[stage].holds or not STAGES[end].holds


@pytest.mark.parametrize("reason", Reason)
def test_a_revoked_key_is_out_of_use_whatever_the_reason(reason: Reason) -> None:
    for stage, far in POSITIONS:
        step = revocation(reason, stage, far)
        end = stage if step is None else after(stage, far, step)
        assert end is not None, f"{stage} cannot {step}"
        out_of_use = (Stage.DEACTIVATED, Stage.COMPROMISED, Stage.DAMAGED, Stage.SUSPENDED, *ENDED)
        assert end in out_of_use, f"{stage} stays {end}"
        if reason in COMPROMISES and stage not in (Stage.BURNT, Stage.DAMAGED):
            assert state_of(end, far) in (State.COMPROMISED, State.DESTROYED_COMPROMISED)
        if step is not None and end in FOLLOWED:
            assert after(stage, far, FOLLOWED[end]) is end


def test_the_document_shows_the_tables() -> None:
    for drawn in (drawing.diagram(), drawing.stages(), drawing.reasons()):
        assert drawn in DOCUMENT, "draw docs/lifecycle.md anew: python -m qkdnode.lifecycle.drawing"
