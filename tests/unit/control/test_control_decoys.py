"""Operators and decoys: who names one is answered as for a key, and only who answers for the keys is told."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from control_node import ControlNode

from qkdnode.ids import KeyId
from qkdnode.vault import marks
from qkdnode.vault.inventory import ListKeys
from qkdnode.vault.records import Bundle
from qkdnode.wire import control as wire
from qkdnode.wire.control import Done, Refused


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlNode, ControlNode]]:
    """Two that are alike: one has decoys, the other keys in their place."""
    with ControlNode(tmp_path_factory.mktemp("one")) as one, ControlNode(tmp_path_factory.mktemp("other")) as other:
        yield one, other


@pytest.fixture
def node(nodes: tuple[ControlNode, ControlNode]) -> ControlNode:
    nodes[0].agent.done.clear()
    return nodes[0]


def ready(node: ControlNode) -> list[KeyId]:
    return [key.key_id for key in node.vault.call(ListKeys(state="ready")).keys]


def make_decoy(node: ControlNode, key_id: KeyId, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the keys that are there, those of one Bundle count as decoys from now on."""
    store = node.vault._core._store
    (number,) = {row.number for row in store.find(Bundle, "true") if row.place(key_id.bytes) is not None}
    monkeypatch.setattr(marks, "marks_decoy", lambda store, other, mark: other == number)


NAMING = {
    "show": lambda key_id: wire.ShowKey(key_id=key_id.bytes),
    "lineage": lambda key_id: wire.ShowLineage(key_id=key_id.bytes),
    "receipt": lambda key_id: wire.DestructionReceipt(key_id=key_id.bytes),
    "revoke": lambda key_id: wire.RevokeKeys(key_ids=(key_id.bytes,), reason="superseded"),
}


def test_an_id_that_is_no_key_s_alarms_nobody(node: ControlNode, monkeypatch: pytest.MonkeyPatch) -> None:
    make_decoy(node, ready(node)[0], monkeypatch)
    with node.caller() as caller:
        caller.ask(wire.ShowKey(key_id=uuid4().bytes))
    assert not node.agent.done


def test_a_decoy_is_listed_among_keys_and_no_list_alarms(node: ControlNode, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ready(node)[0]
    with node.caller() as caller:
        before = caller.ask(wire.ListKeys())
        make_decoy(node, asked, monkeypatch)
        after = caller.ask(wire.ListKeys())
    assert isinstance(before, Done)
    assert isinstance(after, Done)
    assert before.answer == after.answer
    assert str(UUID(bytes=asked.bytes)).encode() in after.answer
    assert not node.agent.done


@pytest.mark.parametrize(("name", "shown"), [("olga", ["DEVICE_GAP"]), ("sven", ["DEVICE_GAP", "DECOY"])])
def test_the_alarm_is_shown_to_one_role(node: ControlNode, name: str, shown: list[str]) -> None:
    with node.caller(name) as caller:
        said = caller.ask(wire.Alarms())
        assert isinstance(said, Done)
        page = wire.decode_answer(wire.Alarms(), said.answer)
    assert [alarm["code"] for alarm in page.alarms] == shown


def test_who_may_not_know_cannot_acknowledge_what_they_guess(node: ControlNode) -> None:
    guess = wire.Acknowledge(code="DECOY", subject="application/payroll")
    with node.caller() as caller:
        said = caller.ask(guess)
        none = caller.ask(wire.Acknowledge(code="QBER_HIGH", subject="application/payroll"))
    assert isinstance(said, Refused)
    assert isinstance(none, Refused)
    assert said.reason == none.reason.replace("QBER_HIGH", "DECOY")
    assert not node.agent.done


@pytest.mark.parametrize("how", list(NAMING))
def test_who_names_a_decoy_is_answered_as_for_a_key_and_told_of(
    nodes: tuple[ControlNode, ControlNode], node: ControlNode, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, other = nodes
    other.agent.done.clear()
    asked, make = ready(node)[0], NAMING[how]
    make_decoy(node, asked, monkeypatch)
    with node.caller() as caller:
        said = caller.ask(make(asked))
    decoys = [told for told in node.agent.done if told[0] == "decoy"]
    ((_, subject, detail),) = decoys
    assert subject == "operator/olga"
    assert node.vault._core._store.sealing.pseudonym(asked.bytes) in detail
    assert str(asked) not in detail
    assert b"decoy" not in msgspec.msgpack.encode(said).lower()
    monkeypatch.undo()
    with other.caller() as caller:
        same = caller.ask(make(ready(other)[0]))
        assert not [told for told in other.agent.done if told[0] == "decoy"]
    assert type(said) is type(same)
    if isinstance(said, Refused) and isinstance(same, Refused):
        assert (said.code, said.rule, said.reason) == (same.code, same.rule, same.reason)
    else:
        assert isinstance(said, Done)
        assert isinstance(same, Done)
        assert shape(make(asked), said) == shape(make(asked), same)


def shape(request: wire.Request, said: Done) -> Any:
    """What kinds of fields an answer has, and how many of each."""
    answer = msgspec.to_builtins(wire.decode_answer(request, said.answer))

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: of(its) for name, its in value.items()}
        return [of(its) for its in value] if isinstance(value, list) else type(value).__name__

    return of(answer)
