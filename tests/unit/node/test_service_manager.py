"""What the service manager hears, on a socket as it gives it; and that a vault that hangs starves its watchdog."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from virtual_time import VirtualTimeLoop

from qkdnode.errors import DiskFullError, VaultError
from qkdnode.node.service_manager import ServiceManager
from qkdnode.node.watching import Parts, Watching


class Manager:
    """The far end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address.replace("@", "\0", 1))

    def heard(self) -> list[str]:
        """Messages since the last look."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(f"{tmp_path}/notify" if request.param == "path" else f"@qkdnode-test-{os.getpid()}")
    yield made
    made.socket.close()


def test_life_is_told_line_by_line(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "HOME": "/nowhere"}
    service = ServiceManager.from_environment(environment)
    assert environment == {"HOME": "/nowhere"}  # no child may speak for us
    service.ready("line OPEN\nREADY=1")
    service.reloading()
    service.status("x" * 1000)
    service.stopping()
    service.close()
    service.status("unheard")
    ready, reloading, status, stopping = manager.heard()
    assert ready == "READY=1\nSTATUS=line OPEN READY=1"
    first, second = reloading.split("\n")
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdecimal()
    assert status == "STATUS=" + "x" * 200
    assert stopping == "STOPPING=1\nSTATUS=stopping"


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_or_none(environment: dict[str, str], watchdog_s: float | None) -> None:
    assert ServiceManager.from_environment(dict(environment)).watchdog_s == watchdog_s


@pytest.mark.parametrize("address", [None, "", "relative/path", "/nowhere/at/all"])
def test_without_a_manager_nothing_is_told_and_nothing_fails(address: str | None) -> None:
    service = ServiceManager.from_environment({} if address is None else {"NOTIFY_SOCKET": address})
    service.ready("")
    service.alive()
    service.close()


def signs_of_life(manager: Manager, why_not: Callable[[float], Awaitable[str | None]], seconds: float) -> list[str]:
    """What is heard within some time, with a watchdog of 0.08 s."""

    async def run() -> None:
        service = ServiceManager(manager.address, 0.08)
        task = asyncio.create_task(service.keep_alive(why_not, lambda: "line OPEN"))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        service.close()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())
    return manager.heard()


def watching(ask: Callable[[Any], Awaitable[Any]], **parts: Any) -> Watching:
    return Watching(parts=lambda: Parts(**parts), alarms=tuple, ask_vault=ask)


def test_signs_of_life_follow_answers(manager: Manager) -> None:
    async def answers(_: Any) -> None:
        return None

    heard = signs_of_life(manager, watching(answers, vault_open=True).why_not_alive, 0.3)
    assert heard.count("WATCHDOG=1") >= 3
    assert heard.count("STATUS=line OPEN") >= 3


def test_a_vault_that_hangs_starves_the_watchdog(manager: Manager) -> None:
    asked = 0

    async def hangs_later(_: Any) -> None:
        nonlocal asked
        asked += 1
        if asked > 2:
            await asyncio.Event().wait()

    heard = signs_of_life(manager, watching(hangs_later, vault_open=True).why_not_alive, 0.4)
    assert heard.count("WATCHDOG=1") == 2
    assert asked > 3
    assert "the vault has not answered" in heard[-1]


def test_a_loop_that_hangs_starves_the_watchdog(manager: Manager) -> None:
    async def answers(_: float) -> None:
        return None

    async def run() -> None:
        service = ServiceManager(manager.address, 0.08)
        task = asyncio.create_task(service.keep_alive(answers, lambda: ""))
        await asyncio.sleep(0.01)
        manager.heard()
        until = asyncio.get_running_loop().time() + 0.3
        while asyncio.get_running_loop().time() < until:
            pass
        assert "WATCHDOG=1" not in manager.heard()
        task.cancel()
        service.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DiskFullError("vault v: full"), None),
        (VaultError("the vault is closed"), "the vault does not answer: the vault is closed"),
        (None, None),
    ],
)
def test_what_counts_as_an_answer_of_the_vault(error: VaultError | None, reason: str | None) -> None:
    async def ask(_: Any) -> None:
        if error is not None:
            raise error

    assert asyncio.run(watching(ask, vault_open=True).why_not_alive()) == reason


def test_a_vault_that_is_not_open_yet_is_not_asked() -> None:
    async def never(_: Any) -> None:
        raise AssertionError

    assert asyncio.run(watching(never).why_not_alive()) is None


class Pool:
    def __init__(self, healthy: bool) -> None:
        self.healthy = healthy


@pytest.mark.parametrize(
    ("parts", "missing"),
    [
        ({"entropy": Pool(True), "vault_open": True, "started": True}, []),
        ({"entropy": Pool(False), "vault_open": True, "started": True}, ["no QRNG is healthy"]),
        ({"entropy": Pool(True), "started": True}, ["the vault is not open"]),
        ({"entropy": Pool(True), "vault_open": True}, ["the links are not made"]),
        ({"entropy": Pool(True), "vault_open": True, "started": True, "stopping": True}, ["the node is stopping"]),
        ({}, ["no QRNG is healthy", "the vault is not open", "the links are not made"]),
    ],
)
def test_readiness_names_what_is_missing(parts: dict[str, Any], missing: list[str]) -> None:
    async def never(_: Any) -> None:
        raise AssertionError

    node = watching(never, **parts)
    found = node.readiness()
    assert found.ready == (not missing)
    assert [reason[: len(start)] for reason, start in zip(found.reasons, missing, strict=True)] == missing
    assert node.status().endswith("no link")
