"""What a node gives to its control socket, with links and devices in place of the real ones."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from qkdnode.access.allowlist import AllowList
from qkdnode.config import decode_config
from qkdnode.control.port import Supplied
from qkdnode.device.reader import ReaderState
from qkdnode.errors import ConfigError, ControlError, DiskFullError
from qkdnode.ids import ALICE, Association
from qkdnode.link.statistics import LinkStatistics
from qkdnode.node.control import NodeControl
from qkdnode.node.recorder import Recorder
from qkdnode.vault import pauses
from qkdnode.vault import requests as ask

CONFIG = decode_config(
    '[node]\nname = "alice"\nidentity = "a.identity"\nvault = "a.vault"\nroot_key = { passphrase_file = "p" }\n'
)
STATUS = ask.VaultStatus({"ready": 2}, 1, {"line": 512}, {"line": 256}, {}, {"line": 64}, 2, 0, 99)


class Module:
    """A module that can be acknowledged while it has something latched."""

    serial, latched = "TX-1", True

    def acknowledge(self) -> bool:
        was, self.latched = self.latched, False
        return was

    def statistics(self) -> Any:
        return SimpleNamespace(
            state=ReaderState.CLOSED, openings=1, bytes_read=10, stalls=0, windows=3, discarded={"lost": 2},
            clock_rate_ppm=None, clock_locked=False,
        )  # fmt: skip


class Entropy:
    """A pool with one QRNG that has failed."""

    healthy = False

    def acknowledge(self, serial: str) -> bool:
        return serial == "QRNG-1"

    def statistics(self) -> Any:
        source = SimpleNamespace(state="failed", reason="repetition count")
        return None, (
            SimpleNamespace(
                serial="QRNG-1", state=ReaderState.CLOSED, openings=2, bytes_read=5, stalls=1, source=source
            ),
        )


class Node:
    """A node with one link."""

    def __init__(self) -> None:
        self.driver = SimpleNamespace(
            statistics=LinkStatistics(state="OPEN", discards={}), peer_paused=False, reserve_bits=8192, calls=[]
        )
        self.driver.pause = lambda: self.driver.calls.append("pause")
        self.driver.resume = lambda: self.driver.calls.append("resume")
        self.module = Module()
        section = SimpleNamespace(peer="bob", role=ALICE)
        self.links: Any = {"line": SimpleNamespace(link=self.driver, module=self.module, section=section)}
        self.entropy: Any = Entropy()
        self.config, self.applications = CONFIG, AllowList[Any]()
        self.stopping = False
        self.vault_fails = False
        self.told: list[str] = []
        self.paused: dict[str, pauses.Pause] = {}

    def ask_to_stop(self) -> None:
        self.stopping = True

    @contextmanager
    def reloading(self) -> Iterator[None]:
        self.told.append("reloading")
        try:
            yield
        finally:
            self.told.append("ready")

    def configure(self, *_: Any) -> None:
        raise AssertionError("nothing may change")

    async def ask(self, request: Any) -> Any:
        if self.vault_fails:
            raise DiskFullError("full")
        match request:
            case ask.Status():
                return STATUS
            case pauses.PauseLink(link=link, by=by):
                new = link not in self.paused
                self.paused.setdefault(link, pauses.Pause(link, by, 7))
                return new
            case pauses.ResumeLink(link=link):
                return self.paused.pop(link, None) is not None
            case pauses.Pauses():
                return tuple(self.paused.values())
        return None


def controlled(scenario: Callable[[Node, NodeControl, Recorder], Coroutine[Any, Any, None]], file: Path | None) -> None:
    async def run() -> None:
        node, log = Node(), structlog.get_logger().bind()
        recorder = Recorder("alice", ask=node.ask, clock_ns=lambda: 5, monotonic_ns=lambda: 5, log=log)
        control = NodeControl(
            node,
            base=Path(),
            file=file,
            ask_vault=node.ask,
            recorder=recorder,
            wall_ns=lambda: 5,
            monotonic_ns=lambda: 5,
            log=log,
        )
        await scenario(node, control, recorder)

    asyncio.run(run())


def test_the_status_is_told_without_the_vault_s_part_while_it_does_not_answer() -> None:
    async def scenario(node: Node, control: NodeControl, _: Recorder) -> None:
        status = await control.status()
        assert (status.keys, status.leaves, status.links[0].stock_bits) == ({"ready": 2}, 99, 512)
        node.vault_fails = True
        status = await control.status()
        assert (status.keys, status.leaves, status.links[0].stock_bits) == (None, None, None)
        assert (status.links[0].state, status.links[0].reserve_bits) == ("OPEN", 8192)

    controlled(scenario, None)


def test_devices_that_do_not_stream_or_fail_their_tests_are_not_healthy() -> None:
    async def scenario(_: Node, control: NodeControl, __: Recorder) -> None:
        module, qrng = await control.device_statuses()
        assert (module.serial, module.kind, module.link, module.healthy) == ("TX-1", "transmitter", "line", False)
        assert module.detail == "3 Windows, 2 lost"
        assert (qrng.healthy, qrng.detail) == (False, "failed: repetition count")

    controlled(scenario, None)


def test_an_alarm_is_open_until_it_is_acknowledged_and_again_when_it_is_raised_again() -> None:
    async def scenario(_: Node, control: NodeControl, recorder: Recorder) -> None:
        recorder.alarms.raise_("QBER_HIGH", "line", "9 %")
        assert [alarm["code"] for alarm in (await control.status()).alarms] == ["QBER_HIGH"]
        assert await control.acknowledge("QBER_HIGH", "line", "olga")
        assert not await control.acknowledge("QBER_HIGH", "line", "sven")
        (alarm,) = await control.alarms()
        assert (alarm["acknowledged_by"], alarm["acknowledged_ns"]) == ("olga", 5)
        assert alarm["advice"]
        assert (await control.status()).alarms == ()
        recorder.alarms.raise_("QBER_HIGH", "line", "10 %")
        assert (await control.status()).alarms[0]["acknowledged_by"] is None
        for code, subject in (("QBER_HIGH", "other"), ("NOTHING", "line")):
            with pytest.raises(ControlError, match="there is no alarm"):
                await control.acknowledge(code, subject, "olga")

    controlled(scenario, None)


@pytest.mark.parametrize("serial", ["TX-1", "QRNG-1"])
def test_to_acknowledge_an_unhealthy_device_has_it_tested_and_opened_again(serial: str) -> None:
    async def scenario(node: Node, control: NodeControl, recorder: Recorder) -> None:
        recorder.alarms.raise_("DEVICE_GAP", serial, "lost")
        assert await control.acknowledge("DEVICE_GAP", serial, "olga")
        assert node.module.latched
        recorder.alarms.raise_("DEVICE_UNHEALTHY", serial, "too hot")
        assert await control.acknowledge("DEVICE_UNHEALTHY", serial, "olga")
        assert node.module.latched is (serial != "TX-1")

    controlled(scenario, None)


def test_a_pause_is_durable_before_the_link_hears_of_it_and_shown_with_who_did_it() -> None:
    async def scenario(node: Node, control: NodeControl, _: Recorder) -> None:
        node.vault_fails = True
        with pytest.raises(DiskFullError):
            await control.pause("line", "olga")
        assert node.driver.calls == []
        node.vault_fails = False
        assert await control.pause("line", "olga")
        assert not await control.pause("line", "sven")
        (link,) = await control.link_statuses()
        assert (link.paused_by, link.paused_ns) == ("olga", 7)
        assert await control.resume("line", "sven")
        node.driver.peer_paused = True
        (link,) = await control.link_statuses()
        assert (link.paused_by, link.paused_ns) == ("the far end", None)
        assert node.driver.calls == ["pause", "pause", "resume"]
        with pytest.raises(ControlError, match="no link 'other'; it has line"):
            await control.pause("other", "olga")

    controlled(scenario, None)


def test_a_stop_is_asked_for_once() -> None:
    async def scenario(node: Node, control: NodeControl, _: Recorder) -> None:
        assert await control.shutdown("olga")
        assert not await control.shutdown("olga")
        assert (await control.status()).state == "stopping"

    controlled(scenario, None)


@pytest.mark.parametrize(
    ("text", "named"), [(None, "not started from a file"), ("[node", "not TOML"), ("[node]\nx = 1\n", "node")]
)
def test_a_reload_of_a_file_with_an_error_changes_nothing(tmp_path: Path, text: str | None, named: str) -> None:
    file = tmp_path / "alice.toml"
    if text is not None:
        file.write_text(text)

    async def scenario(node: Node, control: NodeControl, __: Recorder) -> None:
        with pytest.raises(ConfigError, match=named):
            await control.reload("max")
        assert node.told == ([] if text is None else ["reloading", "ready"])  # to the service manager

    controlled(scenario, None if text is None else file)


def test_how_an_association_is_supplied_is_told_of_links_that_are_there_and_of_others() -> None:
    async def scenario(node: Node, control: NodeControl, _: Recorder) -> None:
        about = Association("app-a", "app-b", "line")
        here = SimpleNamespace(size_bits=512, credit=64)
        node.driver.is_open = True
        node.driver.agreement = SimpleNamespace(subscriptions=lambda its: (here if its == about else None, None))
        assert control.supplied(about) == Supplied("OPEN", True, 512, 64, None)
        assert control.supplied(Association("app-a", "app-c", "line")) == Supplied("OPEN", True, None, None, None)
        assert not control.supplied(Association("app-a", "app-b", "gone")).connected

    controlled(scenario, None)
