"""docs/api.md: its programs run, each as it stands, against a supply of keys with the files that it names."""

import asyncio
import contextlib
import io
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from event_log import MemoryLog
from memory_vault import MemoryVault

from qkdnode.access.allowlist import AllowList
from qkdnode.access.topics import TopicRules
from qkdnode.channel.identity import load_identity, load_public_application
from qkdnode.ids import Association
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.provision import provision_application, provision_node
from qkdnode.supply.events import EventServer
from qkdnode.supply.replay import NodeState, Retention
from qkdnode.supply.server import SupplyServer

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/api.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
# How many keys each block takes for good, and what it prints.
OUTCOMES = (
    (0, r"[0-9a-f-]{36} 256 app-a<->app-b over alice-bob its\n"),
    (1, r"[0-9a-f-]{36} [0-9a-f]{66}\n"),
    (0, r"no key for us: .*\n"),
    (0, r"[0-9a-f-]{36}\n"),
    (1, r"[0-9a-f-]{36}\n1\n"),
    (0, r"0 node\.tried try 0\n"),
    (0, r"not for us: .*no association.* ACCESS_DENIED\n"),
)


class Node:
    """A supply of keys in a thread of its own, in a folder as the README makes it."""

    def __init__(self, folder: Path) -> None:
        site = folder / "site"
        provision_node("alice", site)
        provision_application("app-a", site)
        self.vault = MemoryVault()
        self.association = Association("app-a", "app-b", "alice-bob")
        self.log = MemoryLog()
        self.log.record("alarm")
        # The document's endpoints, and those that stand for them.
        self.endpoints = {f"tcp://127.0.0.1:{port}": f"ipc://{folder}/{port}" for port in (5601, 5611, 5612)}
        self._site = site
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    def __enter__(self) -> "Node":
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()

    async def _serve(self) -> None:
        with load_identity(self._site / "alice.identity") as identity:
            supply, publish, replay = self.endpoints.values()
            application = load_public_application(self._site / "app-a.public")
            events = EventServer(
                identity,
                AllowList([application]),
                TopicRules({"app-a": ("alarm", "link.*")}),
                Retention(1000, 10**5),
                ask=self.log.ask,
                state=NodeState,
                record=_record,
                failed=lambda _: None,
                clock_ns=time.time_ns,
            )
            async with (
                events,
                SupplyServer(
                    identity,
                    AllowList([application]),
                    ask=self.vault.ask,
                    draw_into=_draw_into,
                    decide=lambda association, _: None if association == self.association else "no association",
                    on_subscription=lambda _: None,
                    record=_record,
                    key_class="its",
                    resend_s=0.1,
                ) as server,
            ):
                await server.start(supply)
                await events.start(publish, replay)
                self._started.set()
                await self._stop.wait()


def _draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))


async def _record(*_: object) -> None:
    pass


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="qkd-") as folder:
        monkeypatch.chdir(folder)
        with Node(Path(folder)) as made:
            yield made


def test_the_document_has_its_programs() -> None:
    assert len(BLOCKS) == len(OUTCOMES)


@pytest.mark.parametrize("number", range(len(OUTCOMES)))
def test_a_program_of_the_document_runs_as_it_stands(number: int, node: Node) -> None:
    taken, printed = OUTCOMES[number]
    ids = node.vault.add(node.association, 3)
    program = BLOCKS[number]
    assert "tcp://127.0.0.1:56" in program
    for named, endpoint in node.endpoints.items():
        program = program.replace(named, endpoint)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(program, f"docs/api.md, block {number + 1}", "exec"), {"__name__": "__main__"})
    assert re.fullmatch(printed, said.getvalue()), said.getvalue()
    until = time.monotonic() + 10
    while len(node.vault.delivered) < taken and time.monotonic() < until:
        time.sleep(0.01)  # the acknowledgement is on its way
    assert len(node.vault.delivered) == taken
    assert set(node.vault.delivered) <= set(ids)
