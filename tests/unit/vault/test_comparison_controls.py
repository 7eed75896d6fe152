"""Planted bugs in what ends hold, compare and repair: the tests of it must not pass with any of them."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest import mock

import msgspec
import pytest
import test_comparison
import test_comparison_faults
from comparing import World
from vaults import Pair

from qkdnode.errors import QkdnodeError
from qkdnode.lifecycle import holdings as tree
from qkdnode.lifecycle import repairs
from qkdnode.lifecycle.repairs import Standing, Verdict
from qkdnode.lifecycle.states import Step
from qkdnode.link import comparison
from qkdnode.vault import doubts, holdings, links, stretches

pytestmark = pytest.mark.usefixtures("few_looks")


def a_repair(found: Verdict, **changes: Any) -> Callable[[], Any]:
    """Another row in the table of repairs."""
    return lambda: mock.patch.dict(repairs.REPAIRS, {found: msgspec.structs.replace(repairs.REPAIRS[found], **changes)})


def a_verdict(change: Callable[[Verdict, Standing, Standing], Verdict]) -> Callable[[], Any]:
    """Another table of verdicts."""
    right = repairs.verdict
    return lambda: mock.patch.object(doubts, "verdict", lambda here, there: change(right(here, there), here, there))


def lie(name: str) -> Callable[[World], None]:
    test = test_comparison_faults.test_what_contradicts_itself_is_an_alarm_and_changes_nothing
    return lambda world: test(world, name)


def bounded(test: Callable[[World, None], None], questions: int = 200) -> Callable[[World], None]:
    def run(world: World) -> None:
        with mock.patch.object(comparison, "QUESTIONS", questions):
            test(world, None)

    return run


def more_questions(self: Any) -> bool:
    return bool(self.state.questions < 400)


def touched_never(self: Any, connection: Any) -> None:
    self._touched.clear()


_ = test_comparison
PLANTED: dict[str, tuple[Callable[[], Any], Callable[[World], None]]] = {
    "a hash outlives what it is over": (
        lambda: mock.patch.object(stretches.Stretches, "write", touched_never),
        _.test_roots_differ_while_a_message_is_under_way_and_are_equal_once_it_has_come,
    ),
    "hashes of nodes outlive those below": (
        lambda: mock.patch.object(stretches, "_NODES", "DELETE FROM digests WHERE link = ? AND 0 = ? AND path = ?"),
        _.test_roots_differ_while_a_message_is_under_way_and_are_equal_once_it_has_come,
    ),
    "each end tells its own view": (
        lambda: mock.patch.object(tree, "common_letters", lambda role, states, far: states + far),
        _.test_roots_differ_while_a_message_is_under_way_and_are_equal_once_it_has_come,
    ),
    "what is under way is a difference": (
        a_verdict(lambda found, here, there: Verdict.THEIRS if found is Verdict.IN_FLIGHT else found),
        _.test_what_is_under_way_is_no_difference,
    ),
    "bits that are about to be cut here are burnt": (
        lambda: mock.patch.object(holdings.Waiting, "has", return_value=False),
        _.test_what_is_under_way_is_no_difference,
    ),
    "an orphan stays in supply": (
        a_repair(Verdict.ORPHAN, at_once=()),
        _.test_a_bundle_that_is_damaged_at_one_end_is_an_orphan_at_the_other_and_ends_at_both,
    ),
    "an orphan is destroyed at a word": (
        a_repair(Verdict.ORPHAN, standing=(Step.DESTROY,)),
        _.test_a_bundle_that_is_damaged_at_one_end_is_an_orphan_at_the_other_and_ends_at_both,
    ),
    "an orphan is kept for ever": (
        a_repair(Verdict.ORPHAN, kept=()),
        _.test_a_bundle_that_is_damaged_at_one_end_is_an_orphan_at_the_other_and_ends_at_both,
    ),
    "a lost revocation is not followed": (
        lambda: mock.patch.object(doubts, "endings", return_value=()),
        _.test_a_revocation_that_was_lost_is_followed_and_stops_the_supply_at_once,
    ),
    "a lost delivery is not heard of": (
        a_repair(Verdict.HEARD, standing=()),
        _.test_a_delivery_that_was_lost_is_heard_of,
    ),
    "stock that the other end lacks is left": (
        lambda: mock.patch.object(doubts.stock, "burn", return_value=0),
        _.test_stock_that_only_one_end_has_is_burnt_and_no_other,
    ),
    "all stock of the stretch is burnt": (
        lambda: mock.patch.object(doubts, "missing_from", lambda spans, others: list(spans)),
        lambda world: _.test_stock_that_only_one_end_has_is_burnt_and_no_other(world),
    ),
    "an older copy is taken for a new one": (
        lambda: mock.patch.object(links.doubts, "doubt_all"),
        lambda world: _.test_an_older_copy_gives_out_no_key_again(world, True),
    ),
    "an older copy does not see that it has forgotten": (
        lambda: mock.patch.object(doubts, "_AGREED", ()),
        lambda world: _.test_an_older_copy_gives_out_no_key_again(world, False),
    ),
    "what is explained is not restored": (
        a_repair(Verdict.EXPLAINED, standing=()),
        _.test_ends_that_are_provisioned_anew_keep_what_both_have,
    ),
    "a row that has changed since is judged by what was": (
        lambda: mock.patch.object(doubts, "_has_moved", return_value=False),
        _.test_what_changes_while_it_is_looked_at_is_left_for_the_next_time,
    ),
    "hashes are believed as they are told": (
        lambda: mock.patch.object(comparison, "node_digest", return_value=b"x" * 32),
        lie("hashes that do not go together"),
    ),
    "a page is believed as it is told": (
        lambda: mock.patch.object(doubts, "_demand_sound"),
        lie("stock outside"),
    ),
    "a page may crawl": (
        lambda: mock.patch.object(doubts, "SPANS", 0),
        bounded(lambda world, _: lie("a page that crawls")(world), 30),
    ),
    "questions have no end": (
        lambda: mock.patch.object(comparison.Comparison, "_may_ask", more_questions),
        bounded(test_comparison_faults.test_stretches_that_there_are_not_cost_their_questions_alone),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(name: str, pair: Pair) -> None:
    plant, scenario = PLANTED[name]
    pair.stock()
    world = World(pair)
    try:
        with plant(), pytest.raises((AssertionError, QkdnodeError, ValueError)):
            scenario(world)
    finally:
        with suppress(RuntimeError):
            world.loop.close()
