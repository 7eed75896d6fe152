"""`qkdnode subscribe` as a process: it ends when it is told to, whatever it and its reader are doing."""

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from agents import PATIENCE_S
from memory_vault import MemoryVault

from qkdnode.access.allowlist import AllowList
from qkdnode.channel.identity import load_identity, load_public_application
from qkdnode.client.subscription import Subscription
from qkdnode.ids import Association
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.provision import provision_application, provision_node
from qkdnode.supply.server import SupplyServer

ASSOCIATION = Association("app", "far", "line")
PIPE_LINES = 65_536 // 40  # more lines than a pipe holds


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))


async def record(*_: object) -> None:
    pass


@asynccontextmanager
async def supplied(vault: MemoryVault) -> AsyncIterator[list[str]]:
    """A supply of the vault's keys, and the command that fetches them."""
    with tempfile.TemporaryDirectory(prefix="qkd-") as name:
        directory = Path(name)
        provision_node("node", directory)
        provision_application("app", directory)
        with load_identity(directory / "node.identity") as identity:
            async with (
                SupplyServer(
                    identity,
                    AllowList([load_public_application(directory / "app.public")]),
                    ask=vault.ask,
                    draw_into=draw_into,
                    decide=lambda association, size_bits: None,
                    on_subscription=lambda state: None,
                    record=record,
                    key_class="its",
                ) as server,
                asyncio.timeout(PATIENCE_S),
            ):
                await server.start(f"ipc://{directory}/supply")
                command = [sys.executable, "-m", "qkdnode", "subscribe", "--endpoint", server.endpoint]
                command += ["--identity", str(directory / "app.identity"), "--node", str(directory / "node.public")]
                yield [*command, "--remote", "far", "--link", "line"]


async def until_delivered(vault: MemoryVault, count: int) -> None:
    while len(vault.delivered) < count:
        await asyncio.sleep(0.005)


def ids(lines: list[dict[str, Any]]) -> list[str]:
    return [line["key"] for line in lines if "key" in line]


async def demand_an_end_between_stops() -> None:
    vault = MemoryVault()
    vault.add(ASSOCIATION, 20_000)
    async with supplied(vault) as command:
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert child.stdout is not None
        reading = asyncio.create_task(child.stdout.read())
        for seen in (50, 100, 150):
            await until_delivered(vault, seen)
            child.send_signal(signal.SIGSTOP)
            child.send_signal(signal.SIGCONT)
        child.send_signal(signal.SIGSTOP)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGCONT)
        assert await child.wait() == 0
        lines = [json.loads(line) for line in (await reading).splitlines()]
    assert lines[-1]["received"] == len(lines) - 1
    assert sorted(ids(lines)) == sorted(map(str, vault.delivered))
    assert 150 <= len(vault.delivered) < 20_000


def test_it_ends_by_sigterm_amid_stops_and_every_key_that_it_printed_is_acknowledged() -> None:
    asyncio.run(demand_an_end_between_stops())


async def demand_an_end_without_a_reader() -> None:
    vault = MemoryVault()
    vault.add(ASSOCIATION, 2 * PIPE_LINES)
    read, write = os.pipe()
    async with supplied(vault) as command:
        child = await asyncio.create_subprocess_exec(*command, stdout=write)
        os.close(write)
        before = 0
        while not before or len(vault.delivered) > before:  # until the pipe is full
            before = len(vault.delivered)
            await asyncio.sleep(0.3)
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0
    with os.fdopen(read, "rb") as output:
        lines = [json.loads(line) for line in output]
    assert len(ids(lines)) == len(lines) < 2 * PIPE_LINES
    assert sorted(ids(lines)) == sorted(map(str, vault.delivered))


def test_it_ends_though_nobody_reads_what_it_prints() -> None:
    asyncio.run(demand_an_end_without_a_reader())


class Nothing:
    """A subscription without a node."""

    def start(self) -> None:
        pass

    async def wait(self, timeout: float | None) -> None:
        pass

    def take(self) -> list[Any]:
        return []

    async def close(self) -> None:
        pass


class Interrupted(Exception):
    """As KeyboardInterrupt is raised: anywhere in the main thread."""


@pytest.mark.filterwarnings("ignore")  # what is raised in a callback of the garbage collector is lost, with a warning
def test_a_subscription_closes_wherever_its_thread_was_interrupted() -> None:
    draws, came = random.Random(1), False

    def interrupt(*_: object) -> None:
        nonlocal came
        came = True
        raise Interrupted

    def ask_until_interrupted(subscription: Subscription) -> None:
        nonlocal came
        came = False
        signal.setitimer(signal.ITIMER_REAL, draws.uniform(1e-4, 1e-3))
        while not came:
            subscription._call(subscription._fetch(None))

    before = signal.signal(signal.SIGALRM, interrupt)
    gone = threading.Event()
    try:
        for _ in range(600):
            subscription = Subscription(Nothing())  # type: ignore[arg-type]
            with suppress(Interrupted):
                ask_until_interrupted(subscription)
            closing = threading.Thread(target=lambda: (subscription.close(), gone.set()), daemon=True)  # noqa: B023
            closing.start()
            assert gone.wait(PATIENCE_S), "it does not close"
            gone.clear()
    finally:
        signal.signal(signal.SIGALRM, before)
