"""Seconds from an agent's start after SIGKILL to the first acknowledged key, with many undelivered keys in the vault.

    PYTHONPATH=agent python tests/benchmarks/restart.py [KEYS [TIMES]]

Two real agents with emulated devices, their root keys from credentials; the keys are cut and READY at both ends before
they start. No key is supplied before the session with the neighbour is open. The application asks for one key at a
time, so its second key says that the first one's acknowledgement is journalled. The neighbour and the application run
on while the agent is killed. Prints JSON; `floor` is how long the same interpreter takes to import the agent.
"""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from agents import Site, two_nodes

from qkdnode.channel.identity import load_identity
from qkdnode.client import AsyncSubscription
from qkdnode.ids import ALICE, BOB, Association, BatchId
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.provision import load_pair
from qkdnode.vault import requests as ask
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.service import Vault

LINK, SIZE_BITS, STOCKED_BITS, AT_ONCE, CREDENTIAL = "line", 256, 1 << 24, 1024, "root"
ENDS = {"alice": ("app-a", "app-b", ALICE, "bob"), "bob": ("app-b", "app-a", BOB, "alice")}


def draw_into(buffer: Any) -> None:
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))


def opened(site: Site, node: str) -> Vault:
    identity = load_identity(site.directory / f"{node}.identity")
    return Vault.open(
        site.vault(node),
        root=CredentialFile(CREDENTIAL, site.directory),
        node=node,
        draw_into=draw_into,
        signer=identity,
        clock_ns=time.time_ns,
        create=True,
    )


def settle(vaults: dict[str, Vault], bits: int, number: int) -> None:
    """One Batch of equal key at both ends."""
    batch, material = BatchId(1, number), hashlib.shake_256(b"%d" % number).digest(bits // 8)
    record = ask.BatchRecord(
        batch=batch, bits_in=2 * bits, bits_out=bits, refill_bits=0, method="m", booking="both", family="f",
        eps_sec=1e-10, eps_cor=1e-15, qber_z=0.01, disclosed_bits=0, devices=(), details={},
    )  # fmt: skip
    key = SecretBuffer.copy_of(material)
    vaults["alice"].call(ask.StorePending(link=LINK, record=record, key=key, commit=b"commit"))
    vaults["alice"].call(ask.SettlePending(link=LINK, batch=batch, ready=True))
    vaults["alice"].call(ask.ReadyAnnounced(link=LINK, batches=(batch,)))
    key = SecretBuffer.copy_of(material)
    vaults["bob"].call(ask.StoreReady(link=LINK, record=record, key=key, answer=b"answer"))
    vaults["bob"].call(ask.PeerReady(link=LINK, batches=(batch,)))


def cut(vaults: dict[str, Vault], owner: str, count: int) -> None:
    """Allocate keys from one end's half; both ends hold them READY."""
    local, remote, _, peer = ENDS[owner]
    vaults[owner].call(
        ask.AllocateKeys(
            association=Association(local, remote, LINK),
            count=count,
            size_bits=SIZE_BITS,
            entropy=os.urandom(16 * count),
        )
    )
    while entries := vaults[owner].call(ask.NeighbourOutbox(link=LINK, limit=64)):
        accepted = [vaults[peer].ask(ask.AcceptAllocation(link=LINK, allocate=entry.message)) for entry in entries]
        answers = [
            vaults[owner].ask(ask.AllocationAnswered(link=LINK, request=entry.number, outcome=answer.result()))
            for entry, answer in zip(entries, accepted, strict=True)
        ]
        for answer in answers:
            answer.result()


def fill(site: Site, keys: int) -> None:
    """Both vaults with so many keys for both applications, cut and undelivered."""
    vaults = {node: opened(site, node) for node in ENDS}
    for node, (local, remote, role, peer) in ENDS.items():
        state = vaults[node].call(ask.OpenLink(link=LINK, role=role, peer=peer))
        if state.greeting_key is not None:
            state.greeting_key.release()
        header, material = load_pair(site.directory / f"{LINK}.{node}.pair")
        vaults[node].call(ask.ProvisionLink(link=LINK, role=role, peer=peer, pair=header.pair_id, material=material))
        association = Association(local, remote, LINK)
        vaults[node].call(
            ask.Associate(association=association, nodes=(node, peer), link=LINK, purpose="session", key_class="its")
        )
    done = number = 0
    while done < keys:
        number += 1
        settle(vaults, STOCKED_BITS, number)
        for owner in ENDS:
            count = min(keys - done, STOCKED_BITS // 2 // SIZE_BITS)
            for at in range(0, count, AT_ONCE):
                cut(vaults, owner, min(AT_ONCE, count - at))
            done += count
    for vault in vaults.values():
        vault.close()


async def second_key(subscription: AsyncSubscription, last: set[Any]) -> float:
    """When the first key that is new was acknowledged: when the one after it came."""
    while True:
        key = await subscription.next(60.0)
        key.material.release()
        if key.id not in last:
            last.add(key.id)
            break
    key = await subscription.next(60.0)
    key.material.release()
    last.add(key.id)
    return time.monotonic()


async def measure_restarts(site: Site, times: int) -> list[float]:
    """Seconds of each restart."""
    agent = site.agent("alice")
    seconds = []
    async with AsyncSubscription(
        site.supply("alice"),
        identity=site.directory / "app-a.identity",
        node=site.directory / "alice.public",
        remote="app-b",
        link=LINK,
        size_bits=SIZE_BITS,
        credit=1,
    ) as subscription:
        known: set[Any] = set()
        for _ in range(times):
            await second_key(subscription, known)
            # As after hours of work: until a Batch is READY each new session waits longer than the one before.
            await asyncio.to_thread(agent.wait_for_event, "batch ready")
            await asyncio.to_thread(agent.kill)
            started = time.monotonic()
            agent = site.agent("alice")
            seconds.append(await second_key(subscription, known) - started)
    await asyncio.to_thread(agent.kill)
    return seconds


def importing() -> float:
    """Seconds that the interpreter takes for the agent's modules."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import qkdnode.cli.run"], check=True)
    return time.monotonic() - started


def main(keys: int = 1_000_000, times: int = 5) -> None:
    with Site() as site:
        two_nodes(site)
        site.directory.joinpath(CREDENTIAL).write_bytes(os.urandom(32))
        os.environ["CREDENTIALS_DIRECTORY"] = str(site.directory)
        for node in ENDS:
            site.configs[node]["node"]["root_key"] = {"credential": CREDENTIAL}
            site.write(node)
        started = time.monotonic()
        fill(site, keys)
        filled_s = time.monotonic() - started
        size_mib = site.vault("alice").stat().st_size / 2**20
        site.agent("bob")
        seconds = asyncio.run(measure_restarts(site, times))
    print(
        json.dumps(
            {
                "undelivered_keys": keys,
                "vault_mib": round(size_mib),
                "filled_s": round(filled_s, 1),
                "seconds_to_first_acknowledged_key": [round(value, 2) for value in seconds],
                "floor_import_s": round(importing(), 2),
                "load": round(os.getloadavg()[0], 1),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
