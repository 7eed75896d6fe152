"""Planted bugs in what a witness does: the tests of it must not pass with any of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import test_cosigning
import test_vault_witnessing
from test_cosigning import Node
from vaults import Pair

from qkdnode.audit import checkpoint
from qkdnode.audit.witness import Finding
from qkdnode.errors import QkdnodeError
from qkdnode.link import cosigning
from qkdnode.vault import core, witnessing

Scenario = Callable[[Pair, Path], None]


def over_nodes(test: Callable[..., None]) -> Scenario:
    return lambda pair, place: test((Node(pair.alice), Node(pair.bob)), place)


def without_its_second_signature(pair: Pair, place: Path) -> None:
    change = test_vault_witnessing.INVALID["without its ML-DSA-44 line"]
    test_vault_witnessing.test_what_is_no_checkpoint_of_the_neighbour_is_not_signed(pair, change)


def one_signature(note: str, log_key: bytes) -> checkpoint.Checkpoint:
    return checkpoint.parse(note).checkpoint


def forgets(store: Any, request: Any) -> Any:
    """A row that is gone is taken for a first meeting."""
    with mock.patch.object(store.journal, "newest", return_value=None):
        return witnessing.witness(store, request)


def kept_unseen(store: Any, request: Any) -> bool:
    store.connection.execute(witnessing._KEEP, (request.size, request.witness, request.line))
    return True


PLANTED: dict[str, tuple[Callable[[], Any], Scenario]] = {
    "a witness signs a fork": (
        lambda: mock.patch.object(witnessing, "judge", return_value=Finding.GOES_ON),
        over_nodes(test_cosigning.test_a_fork_is_an_alarm_at_both_ends_and_nothing_else_stops),
    ),
    "a witness signs a rollback": (
        lambda: mock.patch.object(witnessing, "judge", return_value=Finding.GOES_ON),
        over_nodes(test_cosigning.test_an_older_copy_is_an_alarm_at_both_ends),
    ),
    "what was signed is not durable before the answer": (
        lambda: mock.patch.object(witnessing, "_remember"),
        lambda pair, _: test_vault_witnessing.test_the_witness_remembers_over_a_restart_before_it_answers(pair),
    ),
    "a checkpoint with one signature is signed": (
        lambda: mock.patch.object(witnessing, "verify", one_signature),
        without_its_second_signature,
    ),
    "a deleted memory is taken for a first meeting": (
        lambda: mock.patch.dict(core.HANDLERS, {witnessing.Witness: forgets}),
        lambda pair, _: test_vault_witnessing.test_a_witness_whose_memory_was_touched_signs_nothing_more(
            pair, *test_vault_witnessing.TAMPERINGS["deleted"]
        ),
    ),
    "any line is kept as a signature": (
        lambda: mock.patch.dict(core.HANDLERS, {witnessing.KeepCosignature: kept_unseen}),
        lambda pair, _: test_vault_witnessing.test_only_the_witness_s_signature_on_this_log_is_kept(pair),
    ),
    "a fork is not told": (
        lambda: mock.patch.dict(cosigning.FOUND, {"fork": ("PROTOCOL", "is odd")}),
        over_nodes(test_cosigning.test_a_fork_is_an_alarm_at_both_ends_and_nothing_else_stops),
    ),
    "both words of a fork are not kept": (
        lambda: mock.patch.object(witnessing, "_contradicted"),
        lambda pair, place: test_vault_witnessing.test_a_log_that_goes_on_twice_is_a_fork_and_both_words_of_it_are_kept(
            pair, place
        ),
    ),
    "a neighbour may ask as often as it likes": (
        lambda: mock.patch.object(cosigning.Pace, "step", return_value=0.0),
        lambda pair, _: test_cosigning.test_a_neighbour_that_asks_too_often_is_told_so_and_nothing_is_journalled(
            (Node(pair.alice), Node(pair.bob))
        ),
    ),
}


@pytest.mark.parametrize(("plant", "scenario"), PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_is_found(pair: Pair, tmp_path: Path, plant: Callable[[], Any], scenario: Scenario) -> None:
    with plant(), pytest.raises((AssertionError, pytest.fail.Exception, QkdnodeError)):
        scenario(pair, tmp_path)


@pytest.mark.parametrize("scenario", [its for _, its in PLANTED.values()], ids=PLANTED)
def test_without_it_the_same_goes_well(pair: Pair, tmp_path: Path, scenario: Scenario) -> None:
    scenario(pair, tmp_path)
