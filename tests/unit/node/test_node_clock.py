"""Trusted time of a node: over restarts, through its vault, with its alarm and a person's word."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from signing import SIGNING

from qkdnode.errors import ControlError
from qkdnode.lifecycle.clockguard import DAY_NS
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.clock import ClockCare, NodeClock
from qkdnode.node.recorder import Recorder
from qkdnode.vault.core import VaultCore
from qkdnode.vault.requests import Alive, EventsAfter
from qkdnode.vault.root import CredentialFile

S = 10**9
START_NS = 1_700_000_000 * S


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = bytes(range(len(view)))


class Node:
    """A vault with the clock of a node, on clocks that a test sets."""

    def __init__(self, directory: Path) -> None:
        (directory / "credential").write_bytes(bytes(32))
        self.directory = directory
        self.elapsed_ns, self.set_ns, self.booted_ns = 0, 0, 5 * S
        self.loop = asyncio.new_event_loop()
        self.open(create=True)

    def wall_ns(self) -> int:
        return START_NS + self.elapsed_ns + self.set_ns

    def steady_ns(self) -> int:
        return self.elapsed_ns - self.booted_ns + 10**15

    def open(self, *, create: bool = False) -> None:
        self.clock = NodeClock(self.wall_ns, self.steady_ns)
        self.core = VaultCore.open(
            self.directory / "vault.db", root=CredentialFile("credential", self.directory), node="a",
            draw_into=draw_into, signer=SIGNING, clock_ns=self.wall_ns, create=create, trusted_from=self.clock.begin,
        )  # fmt: skip
        self.recorder = Recorder(
            "a", ask=self.ask, clock_ns=self.wall_ns, monotonic_ns=self.steady_ns,
            log=structlog.wrap_logger(structlog.ReturnLogger()),
        )  # fmt: skip
        self.care = ClockCare("a", self.clock, wall_ns=self.wall_ns, recorder=self.recorder)
        self.loop.run_until_complete(self.recorder.open())

    def restart(self, off_ns: int = 0, set_ns: int = 0) -> None:
        """A crash, and a start after a time on a machine whose wall clock was set meanwhile."""
        self.loop.run_until_complete(self.recorder.finish())
        self.core.close()
        self.elapsed_ns += off_ns
        self.set_ns += set_ns
        self.booted_ns = self.elapsed_ns
        self.open()

    async def ask(self, request: Any) -> Any:
        return self.call(request)

    def call(self, request: Any) -> Any:
        (outcome,) = self.core.group([request])
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def passes(self, ns: int) -> None:
        self.elapsed_ns += ns
        self.call(Alive())

    @property
    def trusted_ns(self) -> int:
        """Of what really passed since the first start."""
        self.call(Alive())
        return self.core._store.trusted_ns - START_NS

    def look(self) -> dict[str, str]:
        """Every alarm with its state, once the node has looked at its clock."""
        self.loop.run_until_complete(self._look())
        return {alarm.detail.partition(":")[0]: str(alarm.state) for alarm in self.recorder.alarms.all()}

    async def _look(self) -> None:
        self.care.look()
        await asyncio.sleep(0)

    def leaves(self) -> list[Any]:
        self.loop.run_until_complete(self._written())
        events = self.call(EventsAfter(position=0, limit=4096))
        return [event for _, event in events if event.kind.startswith("node.clock")]

    async def _written(self) -> None:
        await asyncio.gather(*self.recorder._tasks)

    def close(self) -> None:
        self.loop.run_until_complete(self.recorder.finish())
        self.core.close()
        self.loop.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    tmp_path.chmod(0o700)
    made = Node(tmp_path)
    yield made
    made.close()


def test_a_vault_that_was_just_made_trusts_the_wall_clock_of_its_first_start(node: Node) -> None:
    assert node.trusted_ns == 0
    assert node.look() == {}


def test_trusted_time_goes_on_over_a_stop_by_the_wall_clock(node: Node) -> None:
    node.passes(100 * S)
    node.restart(off_ns=DAY_NS)
    assert node.trusted_ns == DAY_NS + 100 * S
    assert node.look() == {}


@pytest.mark.parametrize(
    ("set_ns", "told"), [(DAY_NS, "set forward"), (-DAY_NS, "set back"), (400 * DAY_NS, "set forward")]
)
def test_a_wall_clock_that_is_set_moves_no_timer_and_is_told_of(node: Node, set_ns: int, told: str) -> None:
    node.passes(100 * S)
    node.set_ns += set_ns
    assert node.trusted_ns == 100 * S
    assert node.look() == {told: "raised"}
    (leaf,) = node.leaves()
    assert (leaf.kind, leaf.details["doubt"]) == ("node.clock_doubted", told)
    node.set_ns -= set_ns
    assert node.trusted_ns == 100 * S
    node.look()
    assert {str(alarm.state) for alarm in node.recorder.alarms.all()} == {"cleared"}


def test_a_start_years_later_waits_for_a_person_and_then_follows(node: Node) -> None:
    node.restart(off_ns=400 * DAY_NS)
    assert node.trusted_ns == 7 * DAY_NS
    assert node.look() == {"ahead at start": "raised"}
    shown = node.care.status()
    assert shown.withheld_ns == 393 * DAY_NS
    with pytest.raises(ControlError, match="has not come to that time"):
        node.care.confirm(node.wall_ns() + S)
    with pytest.raises(ControlError, match="never goes back"):
        node.care.confirm(shown.trusted_ns)
    node.loop.run_until_complete(_confirm(node, node.wall_ns()))
    assert node.trusted_ns == 400 * DAY_NS
    node.look()
    assert {str(alarm.state) for alarm in node.recorder.alarms.all()} == {"cleared"}
    assert [leaf.kind for leaf in node.leaves()] == ["node.clock_doubted", "node.clock_confirmed"]
    node.restart()
    assert node.trusted_ns == 400 * DAY_NS, "a person's word outlives the run"


async def _confirm(node: Node, until_ns: int) -> None:
    node.care.confirm(until_ns)


def test_a_start_with_a_clock_that_was_set_back_goes_on_from_what_the_vault_knows(node: Node) -> None:
    node.passes(DAY_NS)
    node.restart(set_ns=-30 * DAY_NS)
    assert node.trusted_ns == DAY_NS
    assert node.look() == {"behind at start": "raised"}
    node.passes(5 * S)
    assert node.trusted_ns == DAY_NS + 5 * S


def test_setting_the_clock_forward_and_starting_again_gains_nothing(node: Node) -> None:
    node.passes(100 * S)
    node.set_ns += 5000 * DAY_NS
    node.passes(S)
    node.look()  # leaves of this time stand in the log
    for _ in range(3):
        node.restart()
        assert 100 * S <= node.trusted_ns <= 102 * S
        assert "ahead at start" in node.look()
    node.restart(off_ns=DAY_NS)
    assert DAY_NS + 100 * S <= node.trusted_ns <= DAY_NS + 102 * S, "what passed while it was off is believed"
    node.restart(set_ns=-5000 * DAY_NS, off_ns=DAY_NS)
    assert 2 * DAY_NS + 100 * S <= node.trusted_ns <= 2 * DAY_NS + 102 * S, "a clock that was mended is believed again"


def test_setting_the_clock_forward_while_the_node_is_off_gains_what_is_believed_and_no_more(node: Node) -> None:
    node.restart(set_ns=5000 * DAY_NS)
    assert node.trusted_ns == 7 * DAY_NS
    node.restart()
    assert node.trusted_ns == 7 * DAY_NS
    assert "ahead at start" in node.look()


def test_the_time_of_an_idle_node_is_written_and_not_taken_back_by_a_crash(node: Node) -> None:
    for _ in range(30):
        node.passes(20 * S)
    size = node.core._store.journal.size
    node.restart(set_ns=-DAY_NS)
    assert node.core._store.journal.size >= size
    assert 540 * S <= node.trusted_ns <= 600 * S


def test_jumps_without_end_do_not_move_it(node: Node) -> None:
    for i in range(50):
        node.passes(10 * S)
        node.set_ns += (-1) ** i * (i + 1) * DAY_NS
        if i % 7 == 6:
            node.set_ns = 0
            node.restart()
    assert 500 * S <= node.trusted_ns <= 501 * S
