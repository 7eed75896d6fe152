"""The exchange of witnesses over a wire that loses, repeats and reflects, and crashes: no honest end is accused."""

import random
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
import structlog
from event_log import finish
from signing import PUBLIC
from test_vault_witnessing import copy_of, grow
from vaults import ALICE, BOB, LINK, End, Pair

from qkdnode.audit import verifier
from qkdnode.errors import QkdnodeError, VaultError
from qkdnode.link.cosigning import BURST, GROWN_S, HANDLERS, LATEST_S, Cosigning
from qkdnode.link.surroundings import Surroundings
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.export_reader import export_audit
from qkdnode.vault.witnessing import NextCheckpoint, Witness
from qkdnode.wire.messages import KIND_OF_BODY, Cosigned, CosignWanted, Message, NotCosigned


class Node:
    """One end: a vault, its Cosigning, and what it has sent and raised."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.name, self.peer = LINK, "b" if end.role == ALICE else "a"
        self.is_open = True
        self.sent: list[Message] = []
        self.alarms: list[tuple[str, str]] = []
        self.now_s = 0.0
        self.failing = False
        self.around = Surroundings(
            ask=self.ask,
            draw=SecretBuffer,
            alarm=lambda code, subject, detail: self.alarms.append((code, detail)),
            clear=lambda code, subject: None,
            record=lambda kind, subject, details: None,
            notify_supply=lambda application: None,
            monotonic_ns=lambda: round(self.now_s * 1e9),
            log=structlog.get_logger(),
        )
        self.restart()

    def restart(self) -> None:
        """A new session, of a new process."""
        self.cosigning = Cosigning(self, PUBLIC)
        self.cosigning.session_opened()
        self.sent.clear()

    async def ask(self, request: Any) -> Any:
        if self.failing:
            raise VaultError("the disk is on fire")
        return self.end.call(request)

    def send_soon(self, message: Message) -> None:
        raw = msgspec.msgpack.encode(message)
        assert len(raw) < KIND_OF_BODY[type(message)].max_bytes
        self.sent.append(msgspec.msgpack.decode(raw, type=type(message)))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            finish(work)
        except QkdnodeError as error:
            self.alarms.append((error.code, str(error)))

    def show(self) -> None:
        self.run(self.cosigning._show())

    def take(self, message: Message) -> None:
        self.run(HANDLERS[type(message)](self.cosigning, message))

    def codes(self) -> set[str]:
        return {code for code, _ in self.alarms}

    def witnessed(self) -> int:
        """How many of its own checkpoints the neighbour has signed, as a stranger counts."""
        lines: list[str] = []
        export_audit(self.end.path, lines.append)
        with self.end.tampering() as file:
            ((kept,),) = file.execute("SELECT count(*) FROM cosignatures").fetchall()
        assert verifier.verify(lines, PUBLIC).valid
        return int(kept)


@pytest.fixture
def nodes(pair: Pair) -> tuple[Node, Node]:
    return Node(pair.alice), Node(pair.bob)


def exchange(one: Node, other: Node) -> None:
    """Carry everything over until nobody says anything more."""
    while one.sent or other.sent:
        for node, far in ((one, other), (other, one)):
            waiting, node.sent[:] = list(node.sent), []
            for message in waiting:
                far.take(message)


def test_each_end_has_the_other_sign_its_log_as_it_grows(nodes: tuple[Node, Node]) -> None:
    for _ in range(3):
        for node in nodes:
            node.now_s += LATEST_S + 1
            grow(node.end)
            node.show()
        exchange(*nodes)
    assert [node.witnessed() for node in nodes] == [3, 3]
    assert all(not node.alarms for node in nodes)


def test_a_log_is_shown_again_only_when_it_has_grown_or_after_a_while(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    alice.show()
    exchange(alice, bob)
    for waited_s, leaves, shown in ((1, 500, 0), (GROWN_S, 0, 1), (GROWN_S, 3, 0), (LATEST_S - GROWN_S, 0, 1)):
        alice.now_s += waited_s + 0.1
        if leaves:
            grow(alice.end, min(leaves, 120))
        alice.show()
        assert len(alice.sent) == shown
        exchange(alice, bob)


def test_a_neighbour_that_asks_too_often_is_told_so_and_nothing_is_journalled(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    alice.show()
    (wanted,) = alice.sent
    for _ in range(BURST + 5):
        bob.take(wanted)
    assert [type(message) for message in bob.sent] == [Cosigned] * BURST + [NotCosigned] * 5
    assert {message.reason for message in bob.sent if isinstance(message, NotCosigned)} == {"busy"}


def test_a_witness_that_cannot_journal_signs_nothing(nodes: tuple[Node, Node]) -> None:
    alice, bob = nodes
    alice.show()
    bob.failing = True
    bob.take(alice.sent.pop())
    (answer,) = bob.sent
    assert isinstance(answer, NotCosigned)
    assert answer.reason == "failed"
    assert bob.codes() == {"VAULT"}


@pytest.mark.parametrize("seed", range(40))
def test_no_wire_and_no_crash_makes_an_honest_end_accused(pair: Pair, seed: int) -> None:
    """Messages are lost, told twice or handed back to their sender; vaults are reopened; then all is signed again."""
    draws, nodes = random.Random(seed), (Node(pair.alice), Node(pair.bob))
    for _ in range(40):
        node, far = draws.sample(nodes, 2)
        match draws.choice(("grow", "show", "carry", "carry", "drop", "twice", "reflect", "crash", "session")):
            case "grow":
                grow(node.end, draws.randrange(1, 60))
            case "show":
                node.now_s += LATEST_S + 1
                node.show()
            case "carry" if node.sent:
                far.take(node.sent.pop(0))
            case "drop" if node.sent:
                node.sent.pop(0)
            case "twice" if node.sent:
                message = node.sent.pop(0)
                far.take(message)
                far.take(message)
            case "reflect" if node.sent:
                node.take(node.sent[0])
            case "crash":
                node.end.reopen()
                node.restart()
                far.restart()
            case "session":
                node.restart()
                far.restart()
        for one in nodes:
            one.now_s += 5
            assert not one.codes() & {"AUDIT_FORK", "AUDIT_ROLLBACK"}
    for node in nodes:
        node.restart()
        node.alarms.clear()
    for node in nodes:
        node.now_s += LATEST_S + 1
        grow(node.end)
        node.show()
    exchange(*nodes)
    for node in nodes:
        assert node.witnessed() > 0
        growth = node.end.call(NextCheckpoint(witness=f"{node.peer}.witness"))
        # All that was shown is signed; what has come since is the leaf of having signed the neighbour's.
        assert growth is None or growth.old_size == node.cosigning._shown_size
        assert not node.codes()


def test_a_fork_is_an_alarm_at_both_ends_and_nothing_else_stops(nodes: tuple[Node, Node], tmp_path: Any) -> None:
    alice, bob = nodes
    alice.show()
    exchange(alice, bob)
    twin = Node(copy_of(alice.end, tmp_path / "twin"))
    for node in (alice, twin):
        grow(node.end, 30)
        node.now_s += LATEST_S + 1
        node.show()
        exchange(node, bob)
    assert alice.codes() == set()
    assert twin.codes() == bob.codes() == {"AUDIT_FORK"}
    bob.alarms.clear()
    bob.show()
    exchange(alice, bob)
    assert bob.witnessed() == 1
    twin.end.vault.close()


def test_an_older_copy_is_an_alarm_at_both_ends(nodes: tuple[Node, Node], tmp_path: Any) -> None:
    alice, bob = nodes
    twin = Node(copy_of(alice.end, tmp_path / "twin"))
    grow(alice.end, 30)
    alice.show()
    exchange(alice, bob)
    twin.show()
    exchange(twin, bob)
    assert twin.codes() == bob.codes() == {"AUDIT_ROLLBACK"}
    assert alice.codes() == set()
    twin.end.vault.close()


def test_a_message_that_was_altered_is_not_signed_and_keeps_no_signature(nodes: tuple[Node, Node]) -> None:
    """The session's HMAC lets none through; without it the signatures still would not."""
    alice, bob = nodes
    alice.show()
    (wanted,) = alice.sent
    assert isinstance(wanted, CosignWanted)
    for changed in (
        CosignWanted(wanted.old_size, wanted.proof, wanted.note.replace("a.audit", "b.audit")),
        CosignWanted(wanted.old_size, wanted.proof, wanted.note[:-9] + "AAAAAAA=\n"),
        CosignWanted(wanted.old_size, (bytes(32),), wanted.note),
    ):
        bob.take(changed)
        answer = bob.sent.pop()
        assert isinstance(answer, NotCosigned)
        assert answer.reason == "invalid"
    assert bob.codes() == {"PROTOCOL"}
    bob.take(wanted)
    (signed,) = bob.sent
    assert isinstance(signed, Cosigned)
    alice.take(Cosigned(signed.size, signed.line[:-9] + "AAAAAAA=\n"))
    assert alice.witnessed() == 0
    assert alice.codes() == {"PROTOCOL"}


def test_the_witness_is_asked_with_the_rules_of_its_own_link(nodes: tuple[Node, Node]) -> None:
    """Whose log it is says the link, not the message."""
    alice, bob = nodes
    alice.show()
    seen: list[Any] = []

    async def ask(request: Any) -> Any:
        seen.append(request)
        return bob.end.call(request)

    bob.around = msgspec.structs.replace(bob.around, ask=ask)
    bob.take(alice.sent.pop())
    (request,) = (one for one in seen if isinstance(one, Witness))
    assert (request.link, request.origin, request.log_key) == (LINK, "a.audit", PUBLIC)
    assert bob.end.role == BOB
