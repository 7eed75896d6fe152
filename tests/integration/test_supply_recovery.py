"""The supply of keys when the vault refuses for a moment."""

import asyncio
import os
import tempfile
from pathlib import Path

from memory_vault import MemoryVault

from qkdnode.access.allowlist import AllowList
from qkdnode.channel.identity import load_identity, load_public_application
from qkdnode.client import AsyncSubscription
from qkdnode.ids import Association
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.provision import provision_application, provision_node
from qkdnode.supply.server import SupplyServer
from qkdnode.vault.requests import OpenKeys


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))


async def record(*_: object) -> None:
    pass


def test_keys_that_the_vault_did_not_open_are_supplied_when_it_does() -> None:
    with tempfile.TemporaryDirectory(prefix="qkd-") as directory:
        asyncio.run(demand_keys_after_a_refusal(Path(directory)))


async def demand_keys_after_a_refusal(directory: Path) -> None:
    provision_node("node", directory)
    provision_application("app", directory)
    vault = MemoryVault()
    vault.failing.add(OpenKeys)
    ids = vault.add(Association("app", "far", "line"), 3)
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
                resend_s=0.1,
            ) as server,
            asyncio.timeout(20),
        ):
            await server.start(f"ipc://{directory}/supply")
            async with AsyncSubscription(
                server.endpoint,
                identity=directory / "app.identity",
                node=directory / "node.public",
                remote="far",
                link="line",
            ) as subscription:
                while server.statistics().keys_not_opened < 3:
                    await asyncio.sleep(0.01)
                vault.failing.clear()
                found = []
                for _ in ids:
                    key = await subscription.next()
                    key.material.release()
                    found.append(key.id)
                assert sorted(found) == sorted(ids)
