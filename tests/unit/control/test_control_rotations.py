"""Rotations as an operator asks for them at the control socket."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from control_node import LINK, ControlNode

from qkdnode.wire import control as wire
from qkdnode.wire.control import Done, Refused, RotationList


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ControlNode]:
    with ControlNode(tmp_path) as made:
        yield made


def asked(node: ControlNode, request: wire.Request) -> RotationList:
    with node.caller() as caller:
        said = caller.ask(request)
    assert isinstance(said, Done), said
    answer = wire.decode_answer(request, said.answer)
    assert isinstance(answer, RotationList)
    return answer


def test_a_rotation_is_begun_once_shown_and_given_up(node: ControlNode) -> None:
    for _ in range(2):
        (entry,) = asked(node, wire.RotateKeys(local="app-a", remote="app-b", link=LINK)).rotations
        assert (entry.generation, entry.number, entry.phase, entry.reason) == (1, 2, "proposed", "operator")
    assert entry.by.startswith("operator/")
    assert "olga" not in entry.by
    assert node.agent.done == [("rotated",), ("rotated",)], "the links look after it"
    (shown,) = asked(node, wire.Rotations()).rotations
    assert shown == entry
    (over,) = asked(node, wire.GiveUpRotations()).rotations
    assert (over.generation, over.number, over.phase, over.result) == (1, None, "steady", "operator")


def test_what_nothing_is_meant_by_or_is_not_on_the_way_is_refused(node: ControlNode) -> None:
    with node.caller() as caller:
        for request, words in (
            (wire.RotateKeys(local="app-x"), "no association of this node is meant"),
            (wire.Rotations(link="elsewhere"), "no association of this node is meant"),
            (wire.GiveUpRotations(), "no rotation is on the way"),
        ):
            said = caller.ask(request)
            assert isinstance(said, Refused)
            assert words in said.reason
    assert node.agent.done == []


def test_pages_tell_where_the_next_begins(node: ControlNode) -> None:
    page = asked(node, wire.Rotations(after=0, limit=1))
    assert (len(page.rotations), page.next) == (1, None)
    assert asked(node, wire.Rotations(after=1)).rotations == ()
