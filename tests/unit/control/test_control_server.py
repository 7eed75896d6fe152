"""The control socket: who asks is proven and journalled, and nobody makes the agent spend more than its limits."""

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import msgspec
import pytest
from control_node import LINK, OPERATORS, PATIENCE_S, Caller, ControlNode

from qkdnode.access.rules import Role, decide
from qkdnode.channel.operator import load_operator
from qkdnode.control import desk
from qkdnode.control.client import Client
from qkdnode.control.conversation import Operator
from qkdnode.control.desk import ACTIONS
from qkdnode.control.server import Limits
from qkdnode.control.socket import Credentials
from qkdnode.errors import AccessDeniedError, AuthenticationError, ConfigError, ControlError, NoAgentError
from qkdnode.lifecycle.policy.decision import document_digest
from qkdnode.wire import control as wire
from qkdnode.wire.control import Closed, Done, Refused

STRANGER = 4242
POLICY = b"""
format = "qkdnode-policy/1"
levels = ["open"]
[[class]]
name = "its"
label = "open"
purpose = "session"
"""
ANY_KEY = UUID(bytes=bytes([0x10]) * 16, version=4).bytes  # of the vault's first key
REQUESTS: dict[type[wire.Request], wire.Request] = {
    wire.Status: wire.Status(),
    wire.Links: wire.Links(),
    wire.Devices: wire.Devices(),
    wire.Alarms: wire.Alarms(),
    wire.Acknowledge: wire.Acknowledge(code="DEVICE_GAP", subject="QKD-A"),
    wire.ListKeys: wire.ListKeys(),
    wire.ShowKey: wire.ShowKey(key_id=ANY_KEY),
    wire.Pause: wire.Pause(link=LINK),
    wire.Resume: wire.Resume(link=LINK),
    wire.Shutdown: wire.Shutdown(),
    wire.Reload: wire.Reload(),
    wire.ExportBegin: wire.ExportBegin(),
    wire.ExportPage: wire.ExportPage(position=0, size=5),
    wire.PolicyShow: wire.PolicyShow(),
    wire.PolicyExplain: wire.PolicyExplain(application="app-a", remote="app-b", link=LINK, size_bits=256),
    wire.PolicyApply: wire.PolicyApply(document=POLICY, approvals=()),  # nobody has approved that
    wire.Assets: wire.Assets(),
    wire.Algorithms: wire.Algorithms(),
    wire.RotateKeys: wire.RotateKeys(local="app-a", note="a test"),
    wire.Rotations: wire.Rotations(),
    wire.RotationShapes: wire.RotationShapes(local="app-a"),
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ControlNode]:
    with ControlNode(tmp_path) as made:
        yield made


def eventually(what: Callable[[], Any]) -> Any:
    """What becomes true in time."""
    until = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < until, "it never came about"
        time.sleep(0.01)
    return found


# --- who asks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", OPERATORS)
def test_each_role_gets_what_the_rules_let_and_every_decision_is_journalled_with_its_rule(
    node: ControlNode, name: str, kind: type[wire.Request]
) -> None:
    decision = decide({OPERATORS[name]}, ACTIONS[kind])
    request = node.approved_policy(POLICY) if kind is wire.PolicyApply else REQUESTS[kind]
    with node.caller(name) as caller:
        said = caller.ask(request)
    if decision.allowed:
        assert isinstance(said, Done), said
        assert isinstance(wire.decode_answer(REQUESTS[kind], said.answer), wire.ANSWERS[kind])
    else:
        assert isinstance(said, Refused)
        assert said.code == "ACCESS_DENIED"
        assert not node.agent.done
    assert said.rule == decision.rule
    assert node.told() == [("allowed" if decision.allowed else "refused", ACTIONS[kind].value, decision.rule)]
    leaf = node.leaves()[0]
    assert leaf.subject.startswith("operator/")
    assert name not in leaf.subject
    assert leaf.details["uid"] == os.geteuid()


def test_what_changes_something_is_journalled_before_it_is_done_and_not_done_if_it_cannot_be(node: ControlNode) -> None:
    node.disk_full = True
    with node.caller() as caller:
        for request in (wire.Pause(link=LINK), wire.Acknowledge(code="DEVICE_GAP", subject="QKD-A")):
            said = caller.ask(request)
            assert isinstance(said, Refused)
            assert "could not be journalled, so it was not done" in said.reason
        assert node.agent.done == []
        node.disk_full = False
        assert isinstance(caller.ask(wire.Pause(link=LINK)), Done)
    assert node.agent.done == [("pause", LINK, "olga")]


def test_with_a_full_disk_the_node_is_stopped_and_the_stop_is_counted_until_it_can_be_journalled(
    node: ControlNode,
) -> None:
    node.disk_full = True
    with node.caller() as caller:
        said = caller.ask(wire.Shutdown())
        assert isinstance(said, Done)
        acted = wire.decode_answer(wire.Shutdown(), said.answer)
        assert acted.detail.startswith("the agent stops; it could not be journalled (no room for the leaf)")
        assert isinstance(caller.ask(wire.Shutdown()), Done)
    assert node.agent.done == [("shutdown", "olga"), ("shutdown", "olga")]
    assert node.leaves() == []
    with node.caller("anna") as caller:  # who may not is refused as ever
        assert isinstance(caller.ask(wire.Shutdown()), Refused)
    assert len(node.agent.done) == 2
    node.disk_full = False
    node.stop()
    told = {(leaf.outcome, leaf.details["action"]): leaf.details["requests"] for leaf in node.leaves()}
    assert told == {("allowed", "node.shutdown"): 2, ("refused", "node.shutdown"): 1}


def test_a_disk_that_does_not_answer_holds_up_no_stop(node: ControlNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(desk, "STOP_WAITS_S", 0.01)
    monkeypatch.setattr(node.desk, "_record", hang)
    with node.caller() as caller:
        said = caller.ask(wire.Shutdown())
    monkeypatch.undo()
    assert isinstance(said, Done)
    assert "the vault has not answered within 0.01 s" in wire.decode_answer(wire.Shutdown(), said.answer).detail
    assert node.agent.done == [("shutdown", "olga")]


def test_a_stop_that_can_be_journalled_is_so_before_it_is_done(node: ControlNode) -> None:
    with node.caller() as caller:
        assert isinstance(caller.ask(wire.Shutdown()), Done)
    assert node.told() == [("allowed", "node.shutdown", "the-node-is-stopped")]
    assert "requests" not in node.leaves()[0].details


def test_with_a_full_disk_the_state_is_shown_and_the_looks_are_counted_until_they_can_be_journalled(
    node: ControlNode,
) -> None:
    node.disk_full = True
    with node.caller() as caller:
        for _ in range(5):
            assert isinstance(caller.ask(wire.Status()), Done)
    assert node.told() == []
    node.disk_full = False
    node.now_s += 301.0
    node.run(node.desk.tell_due)
    (leaf,) = node.leaves()
    assert leaf.details["requests"] == 5
    assert leaf.details["action"] == "status.read"


def test_a_thousand_looks_leave_one_leaf_and_a_count_at_the_end(tmp_path: Path) -> None:
    with ControlNode(tmp_path, limits=Limits(requests_per_s=1e6, burst=10_000)) as node:
        with node.caller() as caller:
            for _ in range(1000):
                assert isinstance(caller.ask(wire.Status()), Done)
        assert len(node.leaves()) == 1
        node.stop()
        first, last = node.leaves()
    assert "requests" not in first.details
    assert last.details["requests"] == 999


def test_what_failed_is_told_with_its_reason_and_journalled(node: ControlNode) -> None:
    with node.caller() as caller:
        said = caller.ask(wire.Pause(link="elsewhere"))
    assert isinstance(said, Refused)
    assert (said.code, said.rule) == ("CONTROL", "links-are-run")
    assert "no link 'elsewhere'" in said.reason
    assert [outcome for outcome, _, _ in node.told()] == ["allowed", "failed"]


def test_a_policy_that_nobody_approved_is_refused_by_name_and_the_document_is_journalled(node: ControlNode) -> None:
    with node.caller("max") as caller:
        said = caller.ask(REQUESTS[wire.PolicyApply])
        assert isinstance(said, Refused)
        assert (said.code, said.rule) == ("APPROVAL", "approved-policy-is-applied")
        assert "[unsigned]" in said.reason
        shown = caller.ask(wire.PolicyShow())
    assert isinstance(shown, Done)
    assert wire.decode_answer(wire.PolicyShow(), shown.answer).number == 0
    allowed, failed, _ = node.leaves()
    assert (allowed.outcome, failed.outcome) == ("allowed", "failed")
    assert allowed.details["document"] == failed.details["document"] == document_digest(POLICY).hex()


def test_names_and_keys_stand_in_the_log_as_pseudonyms_only(node: ControlNode) -> None:
    with node.caller() as caller:
        caller.ask(wire.ShowKey(key_id=ANY_KEY))
        caller.ask(wire.ListKeys(local="app-a", remote="app-b"))
        caller.ask(wire.Status())
    text = " ".join(map(str, node.leaves()))
    for secret in ("olga", "app-a", "app-b", "10101010-1010"):
        assert secret not in text


# --- who does not prove it -------------------------------------------------------------------------------------------


def test_another_user_is_told_so_and_journalled_at_a_bounded_rate(tmp_path: Path) -> None:
    with ControlNode(tmp_path, credentials=lambda _: Credentials(1, STRANGER, STRANGER)) as node:
        for _ in range(20):
            caller = node.caller()
            assert isinstance(caller.first, Closed)
            assert caller.first.code == "ACCESS_DENIED"
            assert f"user {STRANGER} may not" in caller.first.reason
            assert caller.is_ended()
            caller.socket.close()
        (leaf,) = node.leaves()
        assert (leaf.outcome, leaf.details["uid"]) == ("refused", STRANGER)
        with load_operator(node.operators["olga"]) as operator, pytest.raises(AccessDeniedError, match="may not use"):
            Client(node.path, operator)
        node.stop()
        assert node.leaves()[1].details["requests"] == 20


def test_a_user_who_is_listed_signs_with_their_own_uid(tmp_path: Path) -> None:
    with ControlNode(tmp_path, credentials=lambda _: Credentials(1, STRANGER, STRANGER)) as node:
        node.server.uids = frozenset({STRANGER})
        with node.caller() as caller:  # whose own uid is another: a relay
            said = caller.ask(wire.Status())
            assert isinstance(said, Closed)
            assert said.code == "AUTH_FAILED"
        with node.caller() as caller:
            data = wire.encode_request(wire.Status())
            message = wire.signing_input(caller.challenge, "olga", STRANGER, 1, data)
            assert isinstance(caller.ask(wire.Status(), signature=caller.operator.sign(message)), Done)
            node.server.uids = frozenset({os.geteuid()})  # as a reload does
            said = caller.ask(wire.Status())
            assert isinstance(said, Closed)
            assert said.code == "ACCESS_DENIED"


BAD: dict[str, Callable[[Caller, Caller], wire.Signed]] = {
    "a signature of nothing": lambda one, _: one.signed(wire.Status(), signature=bytes(64)),
    "another request under the signature": lambda one, _: msgspec.structs.replace(
        one.signed(wire.Status()), request=wire.encode_request(wire.Shutdown())
    ),
    "another operator's name": lambda one, _: one.signed(wire.Status(), operator="max"),
    "an operator who is unknown": lambda one, _: one.signed(wire.Status(), operator="eve"),
    "another counter": lambda one, _: one.signed(wire.Status(), counter=2),
    "counter zero": lambda one, _: one.signed(wire.Status(), counter=0),
    "another version": lambda one, _: one.signed(wire.Status(), version=2),
    "another connection's signature": lambda _, other: other.signed(wire.Status()),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_proven_ends_the_connection_with_its_reason(node: ControlNode, bad: str) -> None:
    with node.caller() as one, node.caller() as other:
        one.send(BAD[bad](one, other))
        said = one.receive()
        assert isinstance(said, Closed)
        assert said.code in ("AUTH_FAILED", "PROTOCOL_REMOTE")
        assert said.reason
        assert one.is_ended()
    assert [told[:2] for told in node.told()] == [("refused", "connect")]
    assert node.agent.done == []
    with node.caller() as caller:
        assert isinstance(caller.ask(wire.Status()), Done)


def test_a_request_counts_once_and_its_repetition_ends_the_connection(node: ControlNode) -> None:
    with node.caller() as caller:
        once = caller.signed(wire.Pause(link=LINK))
        caller.send(once)
        assert isinstance(caller.receive(), Done)
        caller.send(once)
        said = caller.receive()
        assert isinstance(said, Closed)
        assert "request number 1 where 2 must be" in said.reason
    assert node.agent.done == [("pause", LINK, "olga")]


def test_the_agent_s_own_messages_sent_back_to_it_are_refused(node: ControlNode) -> None:
    with node.caller() as caller:
        caller.send(wire.frame(caller.challenge))
        assert isinstance(caller.receive(), Closed)
    with node.caller() as caller:
        said = caller.ask(wire.Status())
        assert isinstance(said, Done)
        caller.send(wire.frame(said))
        assert isinstance(caller.receive(), Closed)


def test_an_operator_who_is_removed_has_lost_their_open_connection_too(node: ControlNode) -> None:
    with node.caller("max") as caller:
        assert isinstance(caller.ask(wire.Status()), Done)
        olga = node.known.named("olga")
        assert olga is not None
        node.known.replace([olga])
        said = caller.ask(wire.Status())
        assert isinstance(said, Closed)
        assert "no operator 'max'" in said.reason
    with pytest.raises(ConfigError, match="share a name or a key"):
        node.known.replace([olga, Operator(olga.identity, frozenset({Role.AUDITOR}))])
    assert node.known.named("olga") == olga


# --- frames that are none --------------------------------------------------------------------------------------------

MALFORMED = {
    "no length at all": b"\0\0\0\0",
    "a length beyond the limit": struct.pack(">I", wire.MAX_ASKED_BYTES + 1) + b"x" * 64,
    "a length of four gigabytes": b"\xff\xff\xff\xff",
    "no MessagePack": struct.pack(">I", 5) + b"\xc1hell",
    "another structure": struct.pack(">I", 4) + b"\x93\x01\x02\x03",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "deep nesting": struct.pack(">I", 5000) + b"\x91" * 5000,
}


@pytest.mark.parametrize("bad", MALFORMED)
def test_a_malformed_frame_ends_the_connection_with_its_reason(node: ControlNode, bad: str) -> None:
    with node.caller() as caller:
        caller.send(MALFORMED[bad])
        said = caller.receive()
        assert isinstance(said, Closed)
        assert said.code == "PROTOCOL_REMOTE"
        assert caller.is_ended()
    with node.caller() as caller:
        assert isinstance(caller.ask(wire.Status()), Done)


def test_an_encoding_that_is_not_the_shortest_is_refused(node: ControlNode) -> None:
    with node.caller() as caller:
        body = msgspec.msgpack.encode(caller.signed(wire.Status()))
        longer = b"\xdc\x00" + bytes([body[0] & 0x0F]) + body[1:]  # the same array, its length in two bytes
        caller.send(struct.pack(">I", len(longer)) + longer)
        said = caller.receive()
        assert isinstance(said, Closed)
        assert "canonical" in said.reason


@pytest.mark.parametrize(
    "request_", [b"\x81\xa3ask\xa7explode", b"\x80", b"\xc0", b"", b"\x82\xa3ask\xa5pause\xa4link\xc0"]
)
def test_an_unknown_or_broken_request_is_refused_and_the_connection_stays(node: ControlNode, request_: bytes) -> None:
    with node.caller() as caller:
        said = caller.ask(request_)
        assert isinstance(said, Refused)
        assert said.code == "PROTOCOL_REMOTE"
        assert isinstance(caller.ask(wire.Status()), Done)
    assert node.told()[0][:2] == ("refused", "unknown")


def test_a_request_with_more_than_it_may_have_is_refused(node: ControlNode) -> None:
    with node.caller() as caller:
        data = msgspec.msgpack.encode({"ask": "pause", "link": LINK, "force": True})
        assert isinstance(caller.ask(data), Refused)
    assert node.agent.done == []


@pytest.mark.parametrize("sent", [1, 3, 4, 40])
def test_a_connection_that_ends_within_a_frame_is_counted_and_forgotten(node: ControlNode, sent: int) -> None:
    with node.caller() as caller:
        caller.send(wire.frame(caller.signed(wire.Status()))[:sent])
        caller.socket.shutdown(socket.SHUT_WR)
        said = caller.receive()
        assert isinstance(said, Closed)
        assert "within a frame" in said.reason
    eventually(lambda: node.server.connections == 0)


def test_who_closes_their_half_after_asking_is_answered(node: ControlNode) -> None:
    with node.caller() as caller:
        caller.send(caller.signed(wire.Status()))
        caller.socket.shutdown(socket.SHUT_WR)
        assert isinstance(caller.receive(), Done)
        assert caller.is_ended()


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_only_so_many_connections_are_served_and_others_are_told_so(tmp_path: Path) -> None:
    with ControlNode(tmp_path, limits=Limits(connections=3, connections_per_user=3)) as node:
        callers = [node.caller() for _ in range(3)]
        fourth = node.caller()
        assert isinstance(fourth.first, Closed)
        assert "open already" in fourth.first.reason
        fourth.socket.close()
        callers.pop().socket.close()
        eventually(lambda: node.server.connections == 2)
        with node.caller() as caller:
            assert isinstance(caller.ask(wire.Status()), Done)
        for caller in callers:
            caller.socket.close()


def test_who_asks_nothing_or_half_a_frame_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "idle").mkdir()
    with ControlNode(tmp_path / "idle", limits=Limits(idle_s=0.1)) as node:
        with node.caller() as idle:
            assert idle.is_ended()
        assert node.server.connections == 0
    (tmp_path / "slow").mkdir()
    with ControlNode(tmp_path / "slow", limits=Limits(frame_s=0.1)) as node:
        with node.caller() as slow:
            slow.send(b"\0")
            assert slow.is_ended()
        assert node.server.connections == 0


def test_who_reads_nothing_is_let_go_and_holds_up_nobody(tmp_path: Path) -> None:
    with ControlNode(tmp_path, limits=Limits(write_s=0.2, requests_per_s=1e6, burst=100_000)) as node:
        with node.caller() as deaf:
            deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            asking = threading.Thread(target=_ask_until_it_ends, args=(deaf,), daemon=True)
            asking.start()
            with node.caller() as other:
                assert isinstance(other.ask(wire.Status()), Done)
            asking.join(PATIENCE_S)
            assert not asking.is_alive()
        eventually(lambda: node.server.connections == 0)


def _ask_until_it_ends(caller: Caller) -> None:
    try:
        while True:
            caller.send(caller.signed(wire.Status()))
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        return


def test_a_flood_is_slowed_to_the_allowance(tmp_path: Path) -> None:
    with ControlNode(tmp_path, limits=Limits(requests_per_s=20.0, burst=5)) as node, node.caller() as caller:
        loop = node.loop
        began = loop.time()
        for _ in range(12):
            caller.send(caller.signed(wire.Status()))
        for _ in range(12):
            assert isinstance(caller.receive(), Done)
        assert loop.time() - began >= (12 - 5) / 20.0 - 0.05


def test_a_flood_of_changes_by_one_operator_is_slowed_too(node: ControlNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The desk's clock stands still here, so the twenty-first waits for its turn; another operator does not."""
    waits, turn = list[float](), asyncio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await turn.wait()

    monkeypatch.setattr(desk, "asyncio", SimpleNamespace(sleep=sleep))
    with node.caller() as caller:
        for _ in range(20):
            assert isinstance(caller.ask(wire.Pause(link=LINK)), Done)
        assert waits == []
        caller.send(caller.signed(wire.Pause(link=LINK)))
        eventually(lambda: waits == [1 / desk.ACTS_PER_S])
        with node.caller("sven") as other:
            assert isinstance(other.ask(wire.Pause(link=LINK)), Done)
        assert node.agent.done[-1] == ("pause", LINK, "sven")
        node.loop.call_soon_threadsafe(turn.set)
        assert isinstance(caller.receive(), Done)
    assert node.agent.done[-1] == ("pause", LINK, "olga")


def test_a_fault_of_the_program_in_an_answer_is_told_and_the_agent_goes_on(node: ControlNode) -> None:
    node.agent.reloaded = RuntimeError("a bug")
    with node.caller("max") as caller:
        said = caller.ask(wire.Reload())
        assert isinstance(said, Refused)
        assert (said.code, "a fault of the program" in said.reason) == ("ERROR", True)
        assert isinstance(caller.ask(wire.Status()), Done)
    assert [outcome for outcome, _, _ in node.told()] == ["allowed", "failed", "allowed"]


def test_an_answer_that_is_too_long_is_refused_with_what_to_do(node: ControlNode) -> None:
    node.agent.alarm["detail"] = "x" * (wire.MAX_ANSWERED_BYTES + 1)
    with node.caller() as caller:
        said = caller.ask(wire.Alarms())
        assert isinstance(said, Refused)
        assert "ask for less" in said.reason


# --- the client ------------------------------------------------------------------------------------------------------


def test_the_client_asks_and_its_errors_name_the_rule(node: ControlNode) -> None:
    with load_operator(node.operators["anna"]) as operator, Client(node.path, operator, node="alice") as client:
        assert client.ask(wire.Status()).node == "alice"
        with pytest.raises(AccessDeniedError, match="rule auditors-change-nothing"):
            client.ask(wire.Pause(link=LINK))
        assert [alarm["code"] for alarm in client.alarms()] == ["DEVICE_GAP"]
        pages = list(client.keys(wire.ListKeys(limit=4)))
        assert [len(page.keys) for page in pages] == [4, 2]


def test_the_client_says_that_no_agent_listens_or_that_it_is_another_node_s(node: ControlNode, tmp_path: Path) -> None:
    with load_operator(node.operators["olga"]) as operator:
        with pytest.raises(NoAgentError, match="no agent listens"):
            Client(tmp_path / "nowhere", operator)
        with pytest.raises(ControlError, match="is that of node 'alice', not of 'bob'"):
            Client(node.path, operator, node="bob")


def test_the_client_believes_no_operator_file_but_its_own(node: ControlNode, tmp_path: Path) -> None:
    (tmp_path / "olga2.operator").write_bytes((tmp_path / "olga.operator").read_bytes().replace(b"olga", b"sven"))
    (tmp_path / "olga2.operator").chmod(0o600)
    with (
        load_operator(tmp_path / "olga2.operator") as operator,
        Client(node.path, operator) as client,
        pytest.raises(AuthenticationError, match="not that of operator 'sven'"),
    ):
        client.ask(wire.Status())
    (tmp_path / "olga2.operator").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_operator(tmp_path / "olga2.operator")
