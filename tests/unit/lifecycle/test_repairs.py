"""What follows from where a key stands at both ends: the whole table, and that every difference comes to its end."""

from itertools import product

import pytest

from qkdnode.lifecycle.repairs import GONE, REPAIRS, Standing, Verdict, endings, table, verdict
from qkdnode.lifecycle.states import STAGES, STEPS, Stage, Step, after, state_of

FLAGS = (False, True)
# Suspended and deactivated are keys that both applications have.
EACH = [
    Standing(None),
    *(
        Standing(stage, far)
        for stage in Stage
        for far in FLAGS
        if far or stage not in (Stage.SUSPENDED, Stage.DEACTIVATED)
    ),
]
PAIRS = list(product(EACH, EACH))
IRREVERSIBLE = frozenset(Step) - {Step.QUARANTINE, Step.RESTORE}


def steps_of(here: Standing, there: Standing, *, kept: bool) -> list[Step]:
    """What is done at one end in the end."""
    found = verdict(here, there)
    repair = REPAIRS[found]
    steps = [*repair.at_once, *repair.standing]
    if found is Verdict.ENDED:
        assert here.stage is not None
        assert there.stage is not None
        steps += endings(here.stage, here.far, there.stage)
    return [*steps, *repair.kept] if kept else steps


def repaired(here: Standing, there: Standing, *, kept: bool) -> Standing:
    for step in steps_of(here, there, kept=kept):
        if here.stage is None or (step is Step.FAR_DELIVER and here.far):
            continue
        end = after(here.stage, here.far, step)
        if end is not None:
            here = Standing(end, here.far or step is Step.FAR_DELIVER)
    return here


def test_the_table_has_a_row_for_every_pair_and_every_verdict_a_repair() -> None:
    rows = table()
    assert len(rows) == (1 + len(Stage) * 4) ** 2
    assert set(rows.values()) == set(Verdict) == set(REPAIRS)


def test_every_pair_comes_to_the_same_place() -> None:
    """Whatever two ends hold, and if both repair in turn: they end agreed, or where no way leads on."""
    for here, there in PAIRS:
        demand_an_end(here, there)


def demand_an_end(here: Standing, there: Standing) -> None:
    first = (here, there)
    for _ in range(12):
        before = (here, there)
        here = repaired(here, there, kept=True)
        there = repaired(there, here, kept=True)
        if (here, there) == before:
            break
    else:
        pytest.fail(f"{first} goes round in circles: {here} and {there}")
    gone = [its.stage in (None, *GONE) for its in (here, there)]
    if not all(gone):
        assert not any(gone), f"{first} ends as {here} and {there}"
        assert here.stage is there.stage or {here.stage, there.stage} <= {Stage.READY, Stage.DELIVERED}
    elif None not in (here.stage, there.stage) and Stage.BURNT not in (here.stage, there.stage):
        states = {state_of(its.stage, its.far) for its in (here, there) if its.stage is not None}
        damaged = Stage.DAMAGED in (here.stage, there.stage)
        assert len(states) == 1 or damaged, f"{first} ends as {here} and {there}"


def test_a_key_becomes_ready_only_if_it_was_agreed_on_and_its_application_has_not_had_it() -> None:
    for here, there in PAIRS:
        if here.stage is None or here.stage is Stage.READY:
            continue
        if repaired(here, there, kept=True).stage is Stage.READY:
            assert here.stage in (Stage.ALLOCATED, Stage.QUARANTINED)
            assert there.stage in (Stage.READY, Stage.QUARANTINED, Stage.DELIVERED, Stage.ALLOCATED)
            assert here.stage is Stage.ALLOCATED or not there.far


def test_a_ready_key_that_the_other_end_has_not_as_usable_is_kept_from_its_application_at_once() -> None:
    for there in EACH:
        at_once = REPAIRS[verdict(Standing(Stage.READY), there)].at_once
        unusable = there.stage in (None, *GONE, Stage.SUSPENDED, Stage.DEACTIVATED) or there.far
        assert (Step.QUARANTINE in at_once) == unusable, there


def test_nothing_that_cannot_be_undone_is_done_at_first_sight() -> None:
    for repair in REPAIRS.values():
        assert not IRREVERSIBLE.intersection(repair.at_once)


def test_what_the_other_end_says_destroys_nothing_but_what_it_might_revoke() -> None:
    """An end can revoke any key: every step that its word alone leads to is one that a revocation can lead to."""
    revocable = {Step.DESTROY, Step.COMPROMISE, Step.DEACTIVATE, Step.SUSPEND, Step.DELIVER, Step.FAR_DELIVER}
    for here, there in PAIRS:
        if here.stage is not None and STAGES[here.stage].holds:
            end = repaired(here, there, kept=False)
            assert end.stage is not None
            if not STAGES[end.stage].holds:
                assert set(steps_of(here, there, kept=False)) <= revocable | {Step.QUARANTINE}


def test_a_message_that_waits_here_or_there_is_awaited() -> None:
    for (here, there), found in table().items():
        if here.stage is Stage.ALLOCATED and here.waiting:
            assert found is Verdict.IN_FLIGHT
        if there.waiting and there.stage is not None and found in (Verdict.ENDED, Verdict.HEARD):
            assert here.stage is Stage.ALLOCATED, (here, there)


def test_keys_that_both_have_alike_are_agreed() -> None:
    for stage, far in product(Stage, FLAGS):
        symmetric = stage is not Stage.READY or not far
        own = Standing(stage, far)
        if stage is Stage.DELIVERED and not far:
            assert verdict(own, own) is Verdict.HEARD
        elif stage is Stage.QUARANTINED:
            assert verdict(own, own) is (Verdict.HAD if far else Verdict.EXPLAINED)
        elif stage is Stage.ALLOCATED:
            assert verdict(own, own) is Verdict.UNANSWERED
        elif symmetric:
            assert verdict(own, own) is Verdict.AGREED, own
    assert verdict(Standing(Stage.READY, True), Standing(Stage.DELIVERED)) is Verdict.AGREED
    assert verdict(Standing(Stage.DELIVERED), Standing(Stage.READY, True)) is Verdict.AGREED


def test_every_step_of_a_repair_can_be_taken_from_somewhere() -> None:
    for found, repair in REPAIRS.items():
        for step in (*repair.at_once, *repair.standing, *repair.kept):
            assert STEPS[step].ends, found
