"""Keys per second through two whole agents to two applications: four processes, every key durable, audited, delivered.

    PYTHONPATH=agent python tests/benchmarks/supply_keys.py [KEYS [CREDIT]]

The agents are real, with their vaults, link, session and supply, but for two things: their modules are dark, and their
random numbers are the system's. The stock is put in by the vault's own requests before the clock starts. A key counts
once, when both vaults know that both applications have acknowledged it. Rates are those between a tenth and nine
tenths of all keys. Prints JSON; `floor` is what SQLite alone does on the same disk: durable commits of the size that
one request of 128 keys writes at one end. A key that both applications have must be the same, and come once.
"""

import asyncio
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

import apsw
from agents import Site, two_nodes

from qkdnode.channel.identity import load_identity
from qkdnode.client import subscribe
from qkdnode.config import load_config
from qkdnode.ids import ALICE, BOB, BatchId
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.agent import Agent
from qkdnode.node.world import World
from qkdnode.vault import requests as ask
from qkdnode.vault.root import PassphraseFile
from qkdnode.vault.schema import PRAGMAS
from qkdnode.vault.service import Vault

LINK, SIZE_BITS, STOCKED_BITS = "line", 256, 1 << 24
ENDS = {"alice": ("app-a", "app-b", ALICE, "bob"), "bob": ("app-b", "app-a", BOB, "alice")}
DEFAULTS = (40_960, 2_048)  # keys, and the credit of each application
SAMPLE_S = 0.1
# Counts the syncs of a process; SQLite calls them through the linker.
SYNCS = """
#define _GNU_SOURCE
#include <dlfcn.h>
long qkn_syncs;
int fdatasync(int fd) { qkn_syncs++; return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd); }
int fsync(int fd) { qkn_syncs++; return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd); }
"""


class Random:
    """The system's random numbers in the place of QRNGs."""

    healthy = True

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def statistics(self) -> None: ...

    def infos(self) -> dict[str, Any]:
        return {}

    def draw(self, size: int) -> SecretBuffer:
        buffer = SecretBuffer(size)
        self.draw_into(buffer)
        return buffer

    def draw_into(self, buffer: Any) -> None:
        with memoryview(buffer) as view:
            view[:] = os.urandom(len(view))


class DarkModule:
    """A QKD module without light."""

    info = config = None

    def __init__(self, serial: str) -> None:
        self.serial = serial

    def start(self, on_window: Any, on_alarm: Any) -> None: ...

    def statistics(self) -> None: ...

    def stop(self) -> None: ...


class DarkWorld(World):
    def entropy(self, config: Any, **_: Any) -> Any:
        return Random()

    def module(self, section: Any) -> Any:
        return DarkModule(section.module.serial)


class Log:
    """Says what is wrong."""

    def bind(self, **_: Any) -> "Log":
        return self

    def info(self, *_: Any, **__: Any) -> None: ...

    def warning(self, event: str, **fields: Any) -> None:
        print(event, fields, file=sys.stderr)

    error = warning


def say(**fields: Any) -> None:
    print(json.dumps({"at": time.monotonic(), "cpu": time.process_time(), **fields}), flush=True)


async def run_node(directory: Path, node: str) -> None:
    """An agent that says how many keys both applications have, until it is told to end."""
    config = load_config(directory / f"{node}.toml")
    agent = Agent(config, directory, Log(), statistics_s=3600.0, drain_s=10.0, world=DarkWorld())
    syncs = ctypes.c_long.in_dll(ctypes.CDLL(None), "qkn_syncs")
    await agent.start()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while not ended.done():
        status = await agent.ask(ask.Status())
        say(keys=status.keys_delivered_both, syncs=syncs.value, leaves=status.leaves)
        await asyncio.wait([ended], timeout=SAMPLE_S)
    await agent.stop()


def run_application(directory: Path, node: str, keys: int, credit: int) -> None:
    """An application that takes so many keys, and says what came out."""
    local, remote, _, _ = ENDS[node]
    digests: dict[str, str] = {}
    count, said = 0, 0.0
    with subscribe(
        f"ipc://{directory}/{node}.supply",
        identity=directory / f"{local}.identity",
        node=directory / f"{node}.public",
        remote=remote,
        link=LINK,
        credit=credit,
        timeout=30.0,
    ) as subscription:
        for _ in range(keys):
            with subscription.next() as key:
                count += 1
                digests[str(key.id)] = hashlib.sha256(key.material).hexdigest()[:16]
            if (now := time.monotonic()) - said > SAMPLE_S:
                said = now
                say(keys=count)
    say(keys=count)
    (directory / f"{local}.digests").write_text(json.dumps(digests))


def put_in_stock(site: Site, keys: int, credit: int) -> None:
    """Settle Batches of equal key at both ends, as the link does."""
    keys += 4 * credit  # what is less than an allocation stays in stock
    each = -(-keys * SIZE_BITS // STOCKED_BITS)
    bits = 16 * (-(-keys * SIZE_BITS // (16 * each)))
    for node, (_, _, role, peer) in ENDS.items():
        identity = load_identity(site.directory / f"{node}.identity")
        with Vault.open(
            site.vault(node),
            root=PassphraseFile(site.passphrase(node)),
            node=node,
            draw_into=Random().draw_into,
            signer=identity,
            clock_ns=time.time_ns,
            create=True,
        ) as vault:
            state = vault.call(ask.OpenLink(link=LINK, role=role, peer=peer))
            if state.greeting_key is not None:
                state.greeting_key.release()
            for number in range(1, each + 1):
                batch = BatchId(1, number)
                material = hashlib.shake_256(b"%d" % number).digest(bits // 8)
                record = ask.BatchRecord(
                    batch=batch, bits_in=2 * bits, bits_out=bits, refill_bits=0, method="m", booking="both", family="f",
                    eps_sec=1e-10, eps_cor=1e-15, qber_z=0.01, disclosed_bits=0, devices=(), details={},
                )  # fmt: skip
                key = SecretBuffer.copy_of(material)
                if role == ALICE:
                    vault.call(ask.StorePending(link=LINK, record=record, key=key, commit=b"commit"))
                    vault.call(ask.SettlePending(link=LINK, batch=batch, ready=True))
                    vault.call(ask.ReadyAnnounced(link=LINK, batches=(batch,)))
                else:
                    vault.call(ask.StoreReady(link=LINK, record=record, key=key, answer=b"answer"))
                    vault.call(ask.PeerReady(link=LINK, batches=(batch,)))
        identity.release()


def floor(directory: Path) -> dict[str, float]:
    """Durable commits per second of SQLite alone: 14 KiB each, as one request of 128 keys writes at one end."""
    connection = apsw.Connection(str(directory / "floor.db"))
    for pragma in PRAGMAS:
        connection.execute(pragma).fetchall()
    connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, data BLOB)")
    data, count = os.urandom(14 * 1024), 0
    start, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - start < 1.0:
        connection.execute("INSERT INTO rows (data) VALUES (?)", (data,))
        count += 1
    wall, cpu = time.monotonic() - start, time.process_time() - cpu
    connection.close()
    return {"commits_per_s": round(count / wall), "cpu_us_per_commit": round(cpu / count * 1e6)}


def counter_of_syncs(directory: Path) -> Path:
    """Build the library that counts the syncs of a process into which it is loaded."""
    source, library = directory / "syncs.c", directory / "syncs.so"
    source.write_text(SYNCS)
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return library


def rate(lines: list[dict[str, Any]], what: str, since: float, until: float) -> float:
    """Growth per second of a count between two moments."""
    inside = [line for line in lines if since <= line["at"] <= until]
    return float(inside[-1][what] - inside[0][what]) / (inside[-1]["at"] - inside[0]["at"])


def measure(keys: int, credit: int) -> dict[str, Any]:
    with Site() as site:
        two_nodes(site)
        for node in ENDS:
            site.write(node)
        put_in_stock(site, keys, credit)
        sqlite = floor(site.directory)
        environment = {**os.environ, "LD_PRELOAD": str(counter_of_syncs(site.directory))}
        command = [sys.executable, __file__]
        pipe = subprocess.PIPE
        nodes = {
            node: subprocess.Popen(
                [*command, "node", site.directory, node], stdin=pipe, stdout=pipe, text=True, env=environment
            )
            for node in ENDS
        }
        applications = {
            node: subprocess.Popen(
                [*command, "application", site.directory, node, str(keys), str(credit)], stdout=pipe, text=True
            )
            for node in ENDS
        }
        said = {node: [json.loads(line) for line in child.stdout or ()] for node, child in applications.items()}
        time.sleep(1.0)
        seen = {}
        for node, child in nodes.items():
            out, _ = child.communicate(timeout=60)
            seen[node] = [json.loads(line) for line in out.splitlines()]
        ends = [json.loads((site.directory / f"{ENDS[node][0]}.digests").read_text()) for node in applications]
        assert [len(end) for end in ends] == [keys, keys], "an application was given a key twice"
        both = ends[0].keys() & ends[1].keys()
        assert len(both) > 0.9 * keys
        assert all(ends[0][key] == ends[1][key] for key in both), "the applications hold different keys"
    reached = [
        [next(line["at"] for line in lines if line["keys"] >= share * keys) for lines in seen.values()]
        for share in (0.1, 0.9)
    ]
    since, until = map(max, reached)
    cpu = {
        **{f"node {name}": rate(lines, "cpu", since, until) for name, lines in seen.items()},
        **{f"application at {name}": rate(lines, "cpu", since, until) for name, lines in said.items()},
    }
    per_s = min(rate(lines, "keys", since, until) for lines in seen.values())
    syncs = {name: rate(lines, "syncs", since, until) for name, lines in seen.items()}
    return {
        "keys": keys,
        "credit": credit,
        "measured_s": round(until - since, 2),
        "keys_per_s": round(per_s),
        "cpu_us_per_key": round(sum(cpu.values()) / per_s * 1e6),
        "cpu_share": {name: round(share, 2) for name, share in cpu.items()},
        "fdatasync_per_s": {name: round(value) for name, value in syncs.items()},
        "keys_per_fdatasync": round(per_s / sum(syncs.values()), 1),
        "leaves_per_s": round(sum(rate(lines, "leaves", since, until) for lines in seen.values())),
        "floor": sqlite,
        "syncs_of_floor": round(sum(syncs.values()) / sqlite["commits_per_s"], 3),
        "load": round(os.getloadavg()[0], 1),
    }


def main(arguments: list[str]) -> None:
    match arguments:
        case ["node", directory, node]:
            asyncio.run(run_node(Path(directory), node))
        case ["application", directory, node, keys, credit]:
            run_application(Path(directory), node, int(keys), int(credit))
        case _:
            keys, credit = [*map(int, arguments), *DEFAULTS[len(arguments) :]]
            print(json.dumps(measure(keys, credit), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
