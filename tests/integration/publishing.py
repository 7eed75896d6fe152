"""A node's vault and its publishing of events in this process, with identities on disk, for tests that subscribe."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq

from qkdnode.access.allowlist import AllowList
from qkdnode.access.topics import TopicRules
from qkdnode.audit.events import AccessEvent, AlarmEvent, NodeEvent
from qkdnode.channel.curve import secure_client
from qkdnode.channel.identity import OwnIdentity, load_identity, load_public
from qkdnode.channel.socket import Limits
from qkdnode.client import Events, Occurrence
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.provision import provision_application, provision_node
from qkdnode.supply.events import PUBLISH_LIMITS, EventServer
from qkdnode.supply.replay import NodeState, Retention
from qkdnode.vault.requests import RecordEvent, RecordEvents, Request
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.service import Vault

ANYWHERE = "tcp://127.0.0.1:*"
TOPICS = {"app-a": ("*",), "app-b": ("keys.a-b", "link.*"), "node-c": ("alarm", "checkpoint")}
PATIENCE_S = 40.0
BATCH = 64
PLENTY = Retention(1_000_000, 100_000.0)


class Publishing:
    """Node `a`; `delay` may hold up answers of its vault."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        provision_node("a", directory)
        for name in TOPICS:
            (provision_node if name.startswith("node") else provision_application)(name, directory)
        (directory / "credential").write_bytes(b"0123456789abcdef")
        self.identity: OwnIdentity = load_identity(directory / "a.identity")
        self.delay: Callable[[Request], Any] | None = None
        self.state = NodeState()
        self.faults: list[str] = []
        self.server: EventServer
        self.vault: Vault
        self.endpoints: tuple[str, str] = (ANYWHERE, ANYWHERE)

    @asynccontextmanager
    async def running(
        self, retention: Retention = PLENTY, limits: Limits = PUBLISH_LIMITS, heartbeat_s: float = 0.2
    ) -> AsyncIterator["Publishing"]:
        """The node from its start to its stop; again on the same endpoints if it ran before."""
        self.vault = self._open()
        self.server = EventServer(
            self.identity,
            AllowList([load_public(self.directory / f"{name}.public") for name in TOPICS]),
            TopicRules(TOPICS),
            retention,
            ask=self.ask,
            state=lambda: self.state,
            record=self.record_access,
            failed=lambda error: self.faults.append(str(error)),
            clock_ns=time.time_ns,
            heartbeat_s=heartbeat_s,
            pace_s=0.005,
            publish_limits=limits,
        )
        try:
            await self.server.start(*self.endpoints)
            self.endpoints = self.server.endpoints
            yield self
        finally:
            await self.server.close()
            await asyncio.to_thread(self.vault.close)

    def _open(self) -> Vault:
        path = self.directory / "vault.db"
        return Vault.open(
            path,
            root=CredentialFile("credential", self.directory),
            node="a",
            draw_into=draw_into,
            signer=self.identity,
            clock_ns=time.time_ns,
            create=not path.exists(),
        )

    async def ask(self, request: Request) -> Any:
        if self.delay is not None:
            await self.delay(request)
        return await asyncio.wrap_future(self.vault.ask(request))

    async def record_access(self, kind: str, subject: str, outcome: str, details: dict[str, Any]) -> None:
        event = AccessEvent(
            time_ns=time.time_ns(),
            node="a",
            topic="access",
            kind=f"access.{kind}",
            subject=subject,
            outcome=outcome,
            details=details,
        )
        await asyncio.wrap_future(self.vault.ask(RecordEvent(event=event)))

    async def record(self, topic: str, count: int = 1, *, padding: int = 0, time_ns: int | None = None) -> int:
        """Journal events; the position of the last. `padding` is so many details of 256 characters each."""
        details = {f"padding{i}": "x" * 256 for i in range(padding)}
        kind = AlarmEvent if topic == "alarm" else NodeEvent
        last = -1
        for begin in range(0, count, BATCH):
            events = tuple(
                kind(
                    time_ns=time_ns or time.time_ns(),
                    node="a",
                    topic=topic,
                    kind="node.tried",
                    subject=f"try {i}",
                    details=details,
                )
                for i in range(begin, min(count, begin + BATCH))
            )
            last = await asyncio.wrap_future(self.vault.ask(RecordEvents(events=events))) + len(events) - 1
            self.server.grew()
        return last

    def subscriber(self, name: str, topics: list[str], **options: Any) -> Events:
        """The real client."""
        publish, replay = self.endpoints
        return Events(
            self.directory / f"{name}.identity",
            self.directory / "a.public",
            publish=publish,
            replay=replay,
            topics=topics,
            **options,
        )

    def socket(self, context: "zmq.Context[Any]", kind: int, name: str, *, routing_id: bytes | None = None) -> Any:
        """A bare socket with the CURVE key of a subscriber, connected to the publishing (SUB) or the replay."""
        socket = context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        if routing_id is not None:
            socket.setsockopt(zmq.ROUTING_ID, routing_id)
        if kind == zmq.DEALER:
            socket.setsockopt(zmq.PROBE_ROUTER, 1)
        identity = load_identity(self.directory / f"{name}.identity")
        secure_client(socket, identity.curve, self.identity.public.curve)
        identity.release()
        socket.connect(self.endpoints[kind == zmq.DEALER])
        return socket


def load_public_key(identity: OwnIdentity) -> bytes:
    """What verifies its log."""
    return identity.log_key


def draw_into(buffer: SecretBuffer) -> None:
    """Random numbers of the operating system."""
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))


async def positions(events: Events, count: int) -> list[int]:
    """Positions of the next events, so many."""
    found: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            item = await anext(events)
            assert isinstance(item, Occurrence), item
            found.append(item.position)
    return found


async def until(what: Callable[[], Any]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            await asyncio.sleep(0.01)
