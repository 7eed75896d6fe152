"""Rotations as an operator asks for them at the control socket."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from control_node import LINK, ControlNode

from qkdnode.control import rotations
from qkdnode.control.port import Supplied
from qkdnode.node.rehearsal import rehearse
from qkdnode.vault.requests import LogHead
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


# --- rehearsals ------------------------------------------------------------------------------------------------------


def shapes(node: ControlNode, **chosen: str) -> tuple[wire.ShapeEntry, ...]:
    request = wire.RotationShapes(**chosen)
    with node.caller() as caller:
        said = caller.ask(request)
    assert isinstance(said, Done), said
    answer: wire.ShapeList = wire.decode_answer(request, said.answer)
    return answer.shapes


def test_a_shape_has_counts_subscriptions_and_the_load_of_an_hour_and_no_name_of_a_key(node: ControlNode) -> None:
    node.agent.supplied = Supplied("PAUSED", True, 512, 64, None)
    (shape,) = shapes(node, local="app-a")
    assert (shape.local, shape.remote, shape.link, shape.phase, shape.generation) == (
        "app-a",
        "app-b",
        LINK,
        "steady",
        1,
    )
    assert (shape.link_state, shape.size_bits, shape.credit_here, shape.credit_there) == ("PAUSED", 512, 64, None)
    assert shape.waiting_here + shape.waiting_there == 6
    assert {len(its) for its in (shape.cut_here, shape.cut_there, shape.taken_here, shape.taken_there)} == {60}
    assert (shape.minutes, sum(shape.cut_here)) == (60, 6)
    assert shape.allowed
    assert shape.stock_here > 0


def test_a_rehearsal_leaves_the_access_leaf_in_the_vault_and_nothing_else(node: ControlNode) -> None:
    before, log = state_of(node), node.vault.call(LogHead()).size
    for _ in range(3):
        report = rehearse(shapes(node), rounds=1)
    assert report.rounds == 1
    assert report.associations[0].waiting == 6
    kinds = [(leaf.kind, leaf.details["action"]) for leaf in node.leaves()]
    assert kinds == [("access.control", "keys.rehearse")], (
        "three requests, and one leaf that is to be followed by a count"
    )
    assert state_of(node) == before
    assert node.vault.call(LogHead()).size == log + 1
    with node.caller() as caller:
        caller.ask(wire.RotateKeys())
    assert state_of(node) != before, "the control: what changes something is seen"


def test_a_log_that_is_too_long_is_read_in_part_and_the_answer_says_how_much(
    node: ControlNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotations, "LOAD_PAGES", 0)
    (shape,) = shapes(node)
    assert (shape.minutes, shape.cut_here) == (0, ())
    assert rehearse([shape], rounds=1).associations[0].load_minutes == 0


def state_of(node: ControlNode) -> str:
    """A digest over every row of the vault but the log, its head and its checkpoints."""
    digest = hashlib.sha256()
    file = apsw.Connection(str(node.directory / "vault.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        tables = file.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
        for (name,) in tables:
            if name not in ("leaves", "meta", "checkpoints", "subtrees"):
                for row in file.execute(f"SELECT * FROM {name}"):
                    digest.update(repr((name, row)).encode())
    finally:
        file.close()
    return digest.hexdigest()
