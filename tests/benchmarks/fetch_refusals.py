"""Whether the time of a refusal tells why: unknown ids, another application's keys, destroyed keys and decoys.

    PYTHONPATH=agent python tests/benchmarks/fetch_refusals.py [KEYS [ASKS_IN_THE_VAULT [ASKS_OVER_THE_NETWORK]]]

First the vault's own answers, asked one at a time in a random order of the cases, each id once, as an attacker who has
stolen ids would. Then the answers as an application sees them, over the network. For each case: median and 99th
percentile, and how often a guess between it and an unknown id, from one time alone, would be right if it took the best
threshold (50 %: it tells nothing; so many guesses of noise alone come to what the last line says).
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID, uuid4

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "vault"))

from approving import policy
from vaults import HERE, LINK, Pair

from qkdnode.access.allowlist import AllowList
from qkdnode.channel.identity import load_identity, load_public_application
from qkdnode.client import AsyncSubscription, KeyRefusedError
from qkdnode.ids import Association
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.provision import provision_application, provision_node
from qkdnode.supply import server as supply
from qkdnode.supply.server import SupplyServer
from qkdnode.vault.fetches import FetchKeys
from qkdnode.vault.requests import Entitle, KeepDecoys
from qkdnode.vault.revocations import RevokeKeys

OTHER = Association("payroll", "archive", LINK)
CASES = ("unknown", "unknown too", "another's", "destroyed", "decoy")


def stocked(directory: Path, keys: int) -> tuple[Pair, dict[str, list[UUID]]]:
    """Two vaults with so many keys, and ids of each case."""
    pair = Pair(directory)
    pair.stock(bits_out=2 * (keys + 2048) * 256 + 8192)
    for end, association in zip(pair.ends, (OTHER, OTHER.mirrored()), strict=True):
        end.apply(policy("decoys = 128"))
        end.associate(association)
    ids: dict[str, list[UUID]] = {case: [] for case in CASES}
    for _ in range(keys // 128):
        ids["destroyed"] += pair.ready(count=128)
    for start in range(0, len(ids["destroyed"]), 1024):
        page = tuple(ids["destroyed"][start : start + 1024])
        pair.alice.call(RevokeKeys(key_ids=page, reason="superseded", by="olga"))
    pair.alice.association = OTHER
    for _ in range(4):
        ids["another's"] += pair.ready(count=128)
    pair.alice.association = HERE
    for _ in range(4):
        pair.ready(count=128)
    due = pair.alice.call(Entitle(association=HERE, size_bits=256)).decoys
    ids["decoy"] += pair.alice.call(
        KeepDecoys(association=HERE, count=due, size_bits=256, entropy=os.urandom(16 * due))
    )
    pair.exchange()
    return pair, ids


def order(ids: dict[str, list[UUID]], asks: int) -> Iterable[tuple[str, UUID]]:
    """Cases by chance; each id once, as long as there are enough."""
    for _ in range(asks):
        for case in random.sample(CASES, len(CASES)):
            yield case, uuid4() if case.startswith("unknown") else random.choice(ids[case])


def right_guesses(one: list[float], other: list[float]) -> float:
    """The share of right guesses between two kinds of times by the best threshold, either way round."""
    pool = sorted([(at, 0) for at in one] + [(at, 1) for at in other])
    best = 0.0
    below = [0, 0]
    for _, kind in pool:
        below[kind] += 1
        best = max(best, abs(below[0] / len(one) - below[1] / len(other)))
    return 0.5 + best / 2


def show(title: str, times: dict[str, list[float]]) -> None:
    print(title)
    for case in CASES:
        its = sorted(times[case])
        guess = right_guesses(times["unknown"], times[case]) if case != "unknown" else 0.5
        print(
            f"  {case:12} median {its[len(its) // 2] * 1e3:9.3f} ms  p99 {its[int(len(its) * 0.99)] * 1e3:9.3f} ms  "
            f"right guesses {guess:.1%}"
        )
    count = len(times["unknown"])
    chance = max(right_guesses(*([random.random() for _ in range(count)] for _ in range(2))) for _ in range(20))
    print(f"  of {count} asks each; noise alone comes to {chance:.1%}")


def in_the_vault(pair: Pair, ids: dict[str, list[UUID]], asks: int) -> None:
    times: dict[str, list[float]] = {case: [] for case in CASES}
    for case, key_id in order(ids, asks):
        request = FetchKeys(key_ids=(key_id,), association=HERE, size_bits=256)
        began = time.perf_counter()
        fetched = pair.alice.call(request)
        times[case].append(time.perf_counter() - began)
        assert fetched.refused == (key_id,)
        assert len(fetched.decoys) == (case == "decoy")
    show("the vault's answers", times)


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = os.urandom(len(view))


async def over_the_network(pair: Pair, directory: Path, ids: dict[str, list[UUID]], asks: int) -> None:
    supply.FETCHES_PER_S = 1e6  # the times are looked at, not the limit
    times: dict[str, list[float]] = {case: [] for case in CASES}
    provision_node("node", directory)
    provision_application("payroll", directory)

    async def ask(request: object) -> object:
        return await asyncio.wrap_future(pair.alice.vault.ask(request))  # type: ignore[arg-type]

    async def record(*_: object) -> None: ...

    with load_identity(directory / "node.identity") as identity:
        async with SupplyServer(
            identity,
            AllowList([load_public_application(directory / "payroll.public")]),
            ask=ask,
            draw_into=draw_into,
            decide=lambda association, size_bits: None,
            on_subscription=lambda state: None,
            record=record,
            key_class="its",
        ) as server:
            await server.start(f"ipc://{directory}/supply")
            async with AsyncSubscription(
                server.endpoint,
                identity=directory / "payroll.identity",
                node=directory / "node.public",
                remote="ledger",
                link=LINK,
                pushed=False,
                timeout=10.0,
            ) as keys:
                while not keys.statistics().subscribed:
                    await asyncio.sleep(0.01)
                for case, key_id in order(ids, asks):
                    began = time.perf_counter()
                    try:
                        await keys.fetch(key_id)
                    except KeyRefusedError:
                        times[case].append(time.perf_counter() - began)
    show("what an application sees", times)


def main(keys: int = 20_000, asks: int = 1_000, network: int = 60) -> None:
    random.seed(1)
    with tempfile.TemporaryDirectory(prefix="qkd-") as name:
        directory = Path(name)
        (directory / "vaults").mkdir(mode=0o700)
        pair, ids = stocked(directory / "vaults", keys)
        in_the_vault(pair, ids, asks)
        asyncio.run(over_the_network(pair, directory, ids, network))
        pair.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
