"""A node's records with a real vault below them, on a disk that fills up, in virtual time."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from signing import SIGNING
from virtual_time import VirtualTimeLoop

from qkdnode.audit.events import NodeEvent
from qkdnode.device.alarms import AlarmCode as DeviceAlarmCode
from qkdnode.device.alarms import DeviceAlarm
from qkdnode.errors import DiskFullError
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.recorder import Recorder
from qkdnode.vault import requests
from qkdnode.vault.core import VaultCore
from qkdnode.vault.root import CredentialFile
from qkdnode.watch.alarms import QUIET_NS, AlarmState

WALL_NS = 1_700_000_000_000_000_000


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))


class Log:
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def _take(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    info = warning = error = _take


class Node:
    """A recorder over a vault; one after the other on the same file."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o700)
        (directory / "root").write_bytes(b"0123456789abcdef")
        self.path = directory / "vault.db"
        self.root = CredentialFile("root", directory)
        self.loop = VirtualTimeLoop()
        self.asked: list[Any] = []
        self.step_ns = 0
        self.start()

    def start(self) -> None:
        self.core = VaultCore.open(
            self.path, root=self.root, node="a", draw_into=draw_into, signer=SIGNING,
            clock_ns=self.wall_ns, create=not self.path.exists(),
        )  # fmt: skip
        self.log = Log()
        self.recorder = Recorder(
            "a",
            ask=self.ask,
            clock_ns=self.wall_ns,
            monotonic_ns=lambda: round(self.loop.time() * 1e9),
            log=self.log,
        )

    def wall_ns(self) -> int:
        return WALL_NS + round(self.loop.time() * 1e9)

    async def ask(self, request: Any) -> Any:
        self.asked.append(request)
        await asyncio.sleep(0.001)
        (outcome,) = self.core.group([request])
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def restart(self) -> None:
        self.core.close()
        self.start()

    def fill_disk(self) -> None:
        pages = self.core._connection.execute("PRAGMA page_count").fetchall()[0][0]
        self.core._connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        for details in (16, 0):  # what is free inside of the file is used up too
            with pytest.raises(DiskFullError):
                self.run(self.write_until_it_fails(event(self.recorder, details)))

    async def write_until_it_fails(self, filling: NodeEvent) -> None:
        while True:
            await self.ask(requests.RecordEvent(event=filling))

    def free_disk(self) -> None:
        self.core._connection.execute("PRAGMA max_page_count = 1000000").fetchall()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def alarms(self) -> dict[tuple[str, str], requests.StoredAlarm]:
        (outcome,) = self.core.group([requests.Alarms()])
        return {(alarm.code, alarm.about): alarm for alarm in outcome.value}

    def leaves(self, topic: str) -> list[Any]:
        (outcome,) = self.core.group([requests.EventsAfter(0, 4096)])
        return [event for _, event in outcome.value if event.topic == topic]


def event(recorder: Recorder, details: int) -> NodeEvent:
    return NodeEvent(**recorder._leaf("node.filled", "a", {f"d{i}": "x" * 250 for i in range(details)}))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    asyncio.set_event_loop(made.loop)
    yield made
    made.core.close()
    made.loop.close()
    asyncio.set_event_loop(None)


def flood(node: Node, occurrences: int, seconds: float, alarm: Callable[[], None]) -> Coroutine[Any, Any, None]:
    async def raise_them() -> None:
        for _ in range(occurrences):
            alarm()
            await asyncio.sleep(seconds / occurrences)

    return raise_them()


def test_a_flood_writes_few_leaves_and_stores_every_occurrence(node: Node) -> None:
    node.run(node.recorder.open())
    node.run(flood(node, 5000, 60.0, lambda: node.recorder.alarm("AUTH_FAILED", "metro", "a tag")))
    node.run(node.recorder.finish())
    assert node.alarms()["AUTH_FAILED", "metro"].count == 5000
    assert len(node.leaves("alarm")) <= 8
    assert sum(event == "alarm" for event, _ in node.log.lines) <= 7


def test_what_was_raised_before_the_vault_was_open_is_stored_once_it_is(node: Node) -> None:
    node.recorder.alarm("NO_ENTROPY", "entropy pool", "none")
    node.recorder.alarm("NO_ENTROPY", "entropy pool", "none")
    assert node.asked == []

    async def open_and_settle() -> None:
        await node.recorder.open()
        await asyncio.sleep(1)

    node.run(open_and_settle())
    assert node.alarms()["NO_ENTROPY", "entropy pool"].count == 2
    node.run(node.recorder.finish())


def test_a_restart_goes_on_where_the_last_run_ended(node: Node) -> None:
    async def first_run() -> None:
        await node.recorder.open()
        for _ in range(3):
            node.recorder.alarm("DISK_LOW", "a", "little is left")
        await asyncio.sleep(1)
        assert await node.recorder.acknowledge("DISK_LOW", "a", "eve")
        assert not await node.recorder.acknowledge("DISK_LOW", "a", "bob")
        await node.recorder.finish()

    async def second_run() -> None:
        await node.recorder.open()
        node.recorder.alarm("DISK_LOW", "a", "less is left")
        await node.recorder.finish()

    node.run(first_run())
    node.restart()
    node.run(second_run())
    (alarm,) = node.recorder.alarms.all()
    stored = node.alarms()["DISK_LOW", "a"]
    assert (alarm.count, alarm.first_ns, alarm.acknowledged_by) == (4, WALL_NS + 1_000_000, "eve")
    assert (stored.count, stored.first_ns, stored.acknowledged_by) == (4, alarm.first_ns, "eve")


def test_an_acknowledgement_is_durable_when_it_is_answered(node: Node) -> None:
    async def acknowledge() -> None:
        await node.recorder.open()
        node.recorder.alarm("AUTH_FAILED", "metro", "a tag")
        await node.recorder.acknowledge("AUTH_FAILED", "metro", "eve")

    node.run(acknowledge())
    assert node.alarms()["AUTH_FAILED", "metro"].acknowledged_by == "eve"
    node.run(node.recorder.finish())


def test_alarms_on_a_full_disk_are_kept_written_once_there_is_room_and_do_not_recurse(node: Node) -> None:
    node.run(node.recorder.open())
    node.fill_disk()
    asked = len(node.asked)
    node.run(flood(node, 600, 60.0, lambda: node.recorder.alarm("AUTH_FAILED", "metro", "a tag")))
    tried = [request for request in node.asked[asked:] if isinstance(request, requests.RaiseAlarm)]
    assert len(tried) <= 16  # this alarm and DISK_FULL, every ten seconds each
    assert {request.code for request in tried} == {"AUTH_FAILED", "DISK_FULL"}
    assert node.alarms() == {}
    assert node.recorder.alarms.is_active("DISK_FULL")
    node.free_disk()
    node.run(asyncio.sleep(25))
    node.run(node.recorder.finish())
    stored = node.alarms()
    assert stored["AUTH_FAILED", "metro"].count == 600
    assert stored["AUTH_FAILED", "metro"].state == "raised"
    assert stored["DISK_FULL", "a"].state == "cleared"
    assert stored["DISK_FULL", "a"].count >= 10
    assert not node.recorder.alarms.is_active("DISK_FULL")


def test_a_leaf_that_cannot_be_written_raises_one_alarm_and_asks_no_more(node: Node) -> None:
    node.run(node.recorder.open())
    node.fill_disk()
    for number in range(50):
        node.recorder.record("link.opened", "metro", {f"d{i}": "x" * 250 for i in range(16)} | {"number": number})
    node.run(asyncio.sleep(5))
    assert [alarm.code for alarm in node.recorder.alarms.all()] == ["DISK_FULL"]
    assert len([request for request in node.asked if isinstance(request, requests.RaiseAlarm)]) <= 2
    node.free_disk()
    node.run(asyncio.sleep(15))
    assert not node.recorder.alarms.is_active("DISK_FULL")
    node.run(node.recorder.finish())


def test_a_device_that_streams_again_ends_its_alarms_and_gaps_are_journalled_as_alarms_only(node: Node) -> None:
    async def device_life() -> None:
        await node.recorder.open()
        for code in ("DEVICE_LOST", "DEVICE_UNUSABLE", "DEVICE_UNHEALTHY"):
            node.recorder.device_alarm(DeviceAlarm(DeviceAlarmCode(code), "RX-1", "x"))
        for _ in range(100):
            node.recorder.device_alarm(DeviceAlarm(DeviceAlarmCode.DEVICE_GAP, "RX-1", "x"))
        node.recorder.device_alarm(DeviceAlarm(DeviceAlarmCode.DEVICE_RESTORED, "RX-1", "it streams"))
        await node.recorder.finish()

    node.run(device_life())
    states = {alarm.code: alarm.state for alarm in node.recorder.alarms.all()}
    assert states["DEVICE_LOST"] is states["DEVICE_UNUSABLE"] is AlarmState.CLEARED
    assert states["DEVICE_UNHEALTHY"] is states["DEVICE_GAP"] is AlarmState.RAISED
    kinds = [event.kind for event in node.leaves("device")]
    assert kinds == [
        "device.device_lost",
        "device.device_unusable",
        "device.device_unhealthy",
        "device.device_restored",
    ]
    assert node.alarms()["DEVICE_GAP", "RX-1"].count == 100


def test_an_alarm_that_is_quiet_is_stored_as_over(node: Node) -> None:
    async def quiet() -> None:
        await node.recorder.open()
        node.recorder.alarm("PROTOCOL", "metro", "x")
        await asyncio.sleep(QUIET_NS / 1e9 + 20)
        await node.recorder.finish()

    node.run(quiet())
    assert node.alarms()["PROTOCOL", "metro"].state == "cleared"


def test_an_alarm_of_a_code_that_this_software_does_not_know_stays_in_the_vault_untouched(node: Node) -> None:
    stranger = requests.RaiseAlarm(
        code="FROM_THE_FUTURE", about="x", severity="major", detail="x", first_ns=1, last_ns=1, occurrences=1
    )
    node.run(node.ask(stranger))
    node.run(node.recorder.open())
    assert node.recorder.alarms.all() == ()
    node.run(node.recorder.finish())
    assert list(node.alarms()) == [("FROM_THE_FUTURE", "x")]


def test_what_is_confidential_is_in_no_line_of_the_log_and_is_stored_with_the_next_look(node: Node) -> None:
    async def demand() -> None:
        await node.recorder.open()
        await asyncio.sleep(0.01)
        node.recorder.alarm("DECOY", "application/payroll", "fetch of 1")
        await asyncio.sleep(0.5)
        assert not [request for request in node.asked if isinstance(request, requests.RaiseAlarm)]
        await asyncio.sleep(1.0)
        (stored,) = [request for request in node.asked if isinstance(request, requests.RaiseAlarm)]
        assert (stored.code, stored.about) == ("DECOY", "application/payroll")
        await node.recorder.finish()

    node.run(demand())
    assert "DECOY" not in str(node.log.lines)
    assert node.recorder.alarms.all() == ()
    assert node.recorder.alarms.of_this_run() == ()
    (alarm,) = node.recorder.alarms.all(confidential=True)
    assert alarm.subject == "application/payroll"
    told = [event for _, event in node.core.group([requests.EventsAfter(position=0, limit=64)])[0].value]
    assert [(event.topic, event.kind) for event in told if "DECOY" in event.subject] == [("decoys", "alarm.raised")]
