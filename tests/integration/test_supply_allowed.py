"""Applications that a node is told to know no longer: their subscriptions end, and others go on."""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from memory_vault import MemoryVault

from qkdnode.access.allowlist import AllowList
from qkdnode.channel.identity import load_identity, load_public_application
from qkdnode.client import AsyncSubscription
from qkdnode.errors import QkdnodeError
from qkdnode.ids import Association
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.provision import provision_application, provision_node
from qkdnode.supply.server import SubscriptionState, SupplyServer


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))


async def record(*_: object) -> None:
    pass


@pytest.mark.parametrize("why", ["removed", "not associated"])
def test_an_application_that_is_taken_out_loses_its_subscription_and_another_keeps_its_own(why: str) -> None:
    with tempfile.TemporaryDirectory(prefix="qkd-") as directory:
        asyncio.run(demand(Path(directory), why))


async def demand(directory: Path, why: str) -> None:
    provision_node("node", directory)
    for name in ("app-a", "app-b"):
        provision_application(name, directory)
    known = {name: load_public_application(directory / f"{name}.public") for name in ("app-a", "app-b")}
    refused: set[str] = set()
    vault, states = MemoryVault(), dict[str, SubscriptionState]()
    with load_identity(directory / "node.identity") as identity:
        async with (
            SupplyServer(
                identity,
                AllowList(known.values()),
                ask=vault.ask,
                draw_into=draw_into,
                decide=lambda association, size_bits: "no association" if association.local in refused else None,
                on_subscription=lambda state: states.__setitem__(state.association.local, state),
                record=record,
                key_class="its",
            ) as server,
            asyncio.timeout(20),
        ):
            await server.start(f"ipc://{directory}/supply")
            ends = [
                AsyncSubscription(
                    server.endpoint,
                    identity=directory / f"{name}.identity",
                    node=directory / "node.public",
                    remote="far",
                    link="line",
                )
                for name in known
            ]
            async with ends[0] as gone, ends[1] as kept:
                while len(states) != 2:
                    await asyncio.sleep(0.01)
                if why == "not associated":
                    refused.add("app-a")
                    server.allow(AllowList(known.values()))
                else:
                    server.allow(AllowList([known["app-b"]]))
                assert {name: state.connected for name, state in states.items()} == {"app-a": False, "app-b": True}
                assert [state.association.local for state in server.subscriptions()] == ["app-b"]
                vault.add(Association("app-a", "far", "line"), 1)
                vault.add(Association("app-b", "far", "line"), 1)
                for application in known:
                    server.notify(application)
                key = await kept.next()
                key.material.release()
                with pytest.raises(QkdnodeError):
                    await gone.next()
    assert len(vault.opened) == 1
