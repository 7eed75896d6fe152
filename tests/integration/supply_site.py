"""A supply of keys from a vault in memory, in a directory, and what it has journalled and alarmed."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from memory_vault import MemoryVault

from qkdnode.access.allowlist import AllowList
from qkdnode.channel.identity import load_identity, load_public_application
from qkdnode.client import AsyncSubscription
from qkdnode.ids import Association
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.provision import provision_application, provision_node
from qkdnode.supply.server import SupplyServer

ASSOCIATION = Association("app", "far", "line")


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))


class Site:
    """A supply from a vault in memory, and what it has journalled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vault = MemoryVault()
        self.journal: list[tuple[str, str, str, dict[str, Any]]] = []
        self.releases = True
        self.alarmed: list[tuple[str, str]] = []
        self.server: SupplyServer

    async def record(self, kind: str, subject: str, outcome: str, details: dict[str, Any]) -> None:
        self.journal.append((kind, subject, outcome, details))

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [details for told, _, _, details in self.journal if told == kind]

    def subscription(self, *, pushed: bool = False, credit: int = 64, **more: Any) -> AsyncSubscription:
        return AsyncSubscription(
            self.server.endpoint,
            identity=self.directory / "app.identity",
            node=self.directory / "node.public",
            remote="far",
            link="line",
            credit=credit,
            pushed=pushed,
            timeout=10.0,
            **more,
        )


@asynccontextmanager
async def site(*, resend_s: float = 5.0) -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="qkd-") as name:
        made = Site(Path(name))
        provision_node("node", made.directory)
        provision_application("app", made.directory)
        with load_identity(made.directory / "node.identity") as identity:
            async with (
                SupplyServer(
                    identity,
                    AllowList([load_public_application(made.directory / "app.public")]),
                    ask=made.vault.ask,
                    draw_into=draw_into,
                    decide=lambda association, size_bits: None,
                    on_subscription=lambda state: None,
                    may_release=lambda association: made.releases,
                    record=made.record,
                    key_class="its",
                    resend_s=resend_s,
                    on_decoy=lambda subject, detail: made.alarmed.append((subject, detail)),
                ) as made.server,
                asyncio.timeout(20),
            ):
                await made.server.start(f"ipc://{made.directory}/supply")
                yield made


async def until_delivered(vault: MemoryVault, count: int) -> None:
    while len(vault.delivered) < count:
        await asyncio.sleep(0.005)
