"""Rotations as an operator asks for them at the control socket."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import apsw
import msgspec
import pytest
from control_node import LINK, NOW_NS, ControlNode

from qkdnode.access.approvals import approve, encode_approval
from qkdnode.channel.operator import load_operator
from qkdnode.control import rotations
from qkdnode.control.port import Supplied
from qkdnode.ids import BatchId
from qkdnode.node.rehearsal import rehearse
from qkdnode.vault.couriers import guarded_request
from qkdnode.vault.requests import LogHead
from qkdnode.wire import control as wire
from qkdnode.wire.control import Done, Refused, RotationList
from qkdnode.wire.courier import File, Heading, Spot, decode_file, encode_file


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


def approvals_of(node: ControlNode, file: bytes) -> tuple[bytes, ...]:
    """What olga and sven sign for a file."""
    files = []
    for name in ("olga", "sven"):
        with load_operator(node.operators[name]) as operator:
            approval = approve(guarded_request(file), name, NOW_NS + 10**12, operator.sign)
            files.append(encode_approval(approval))
    return tuple(files)


def test_a_file_for_a_courier_is_written_and_written_again_while_the_link_is_cut(node: ControlNode) -> None:
    request = wire.CarryOut(local="app-a", remote="app-b", link=LINK, keys=2)
    with node.caller() as caller:
        node.agent.link_is_up = True
        up = caller.ask(request)
        assert isinstance(up, Refused)
        assert "is up" in up.reason
        node.agent.link_is_up = False
        said, again = caller.ask(request), caller.ask(msgspec.structs.replace(request, again=True))
    made, repeated = (wire.decode_answer(request, its.answer) for its in (said, again) if isinstance(its, Done))
    assert isinstance(made, wire.CourierFile)
    assert isinstance(repeated, wire.CourierFile)
    assert (made.number, made.cut, made.rotation.phase) == (1, 2, "proposed")
    assert repeated.file == made.file
    heading = decode_file(made.file).heading
    assert (heading.sender, heading.receiver, heading.link, heading.generation) == ("alice", "bob", LINK, 2)
    assert node.agent.done == [("rotated",), ("rotated",)]
    assert [outcome for outcome, _, _ in node.told()] == ["allowed", "failed", "allowed", "allowed"]


def test_what_is_imported_needs_two_people_and_the_node_that_it_is_for(node: ControlNode) -> None:
    heading = Heading("rotation", "bob", "alice", LINK, "app-b", "app-a", 2, 1, Spot(BatchId(9, 9), 0), bytes(12))
    file = encode_file(File(heading, bytes(64)))
    with node.caller() as caller:
        for request, code, words in (
            (wire.CarryIn(file=b"x", approvals=()), "PROTOCOL_REMOTE", "no courier's bundle"),
            (wire.CarryIn(file=file, approvals=()), "APPROVAL", "nobody approved it"),
            (wire.CarryIn(file=file, approvals=approvals_of(node, file)[:1]), "APPROVAL", "only olga"),
            (wire.CarryIn(file=file, approvals=approvals_of(node, file)), "VAULT", "not in stock here"),
        ):
            said = caller.ask(request)
            assert isinstance(said, Refused)
            assert said.code == code
            assert words in said.reason
    assert node.agent.done == []
    assert [outcome for outcome, _, _ in node.told()].count("failed") == 1, "the first; the others are counted"


@pytest.mark.parametrize("name", ["anna", "max"])
def test_who_may_not_rotate_may_not_do_it_by_hand_either(node: ControlNode, name: str) -> None:
    with node.caller(name) as caller:
        for request in (
            wire.CarryOut(local="app-a", remote="app-b", link=LINK),
            wire.CarryIn(file=b"x", approvals=()),
        ):
            said = caller.ask(request)
            assert isinstance(said, Refused)
            assert said.code == "ACCESS_DENIED"


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
