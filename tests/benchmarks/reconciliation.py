"""How long two ends take to compare what they hold, and what it costs on the wire, at several sizes of the store.

    PYTHONPATH=agent python tests/benchmarks/reconciliation.py [KEYS ...]

Both vaults in one process, with so many keys cut and READY at both ends, in full Bundles. For each size: seconds until
the root is made when no hash is kept, and the longest request of that; milliseconds until it is made again after one
key was delivered; and for equal stores, and after one end has revoked a key of 1, then of 10, then of 100 Bundles, of
which the other has not heard: milliseconds of a comparison at that other end, its questions, and bytes both ways with
frames and their protection included. Prints JSON.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import apsw
from agents import Site, two_nodes
from restart import CREDENTIAL, ENDS, LINK, fill, opened

from qkdnode.link.comparison import Comparison
from qkdnode.link.surroundings import Surroundings
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import requests as ask
from qkdnode.vault.holdings import HoldingsNode
from qkdnode.vault.inventory import ListKeys
from qkdnode.vault.revocations import RevokeKeys
from qkdnode.wire import codec
from qkdnode.wire.messages import Message

SIZES = (10_000, 100_000)
DIFFERENCES = (0, 1, 10, 100)
PER_BUNDLE = 128
FRAME_BYTES = 32 + 32  # header and HMAC


class Side:
    """One end: its vault, its Comparison, and the bytes that it has sent."""

    name, is_open = LINK, True

    def __init__(self, node: str, vault: Any) -> None:
        self.peer, self.vault, self.sent_bytes = ENDS[node][3], vault, 0
        self.other: Side
        self.around = Surroundings(
            ask=lambda request: asyncio.wrap_future(vault.ask(request)),
            draw=SecretBuffer,
            alarm=lambda code, subject, detail: None,
            clear=lambda code, subject: None,
            record=lambda kind, subject, details: None,
            notify_supply=lambda application: None,
            monotonic_ns=time.monotonic_ns,
            log=None,
        )
        self.comparison = Comparison(self)

    def send_soon(self, message: Message) -> None:
        self.sent_bytes += FRAME_BYTES + len(codec.encode_body(message))
        asyncio.get_running_loop().call_soon(self.other.comparison.take, message)


def make_root(vault: Any) -> tuple[float, float]:
    """Seconds until the root is made, and the longest request, in milliseconds."""
    begun, longest = time.perf_counter(), 0.0
    while True:
        asked = time.perf_counter()
        node = vault.call(HoldingsNode(link=LINK))
        longest = max(longest, time.perf_counter() - asked)
        if not node.stale:
            return round(time.perf_counter() - begun, 3), round(1e3 * longest, 1)


def forget_hashes(site: Site, node: str) -> None:
    """As if none had ever been made."""
    stale = "UPDATE digests SET digest = x'', mac = x'' WHERE level = 5"
    _execute(site, stale, "DELETE FROM digests WHERE level < 5", node=node)


async def compare(vaults: dict[str, Any]) -> dict[str, Any]:
    """One comparison that bob begins."""
    sides = {node: Side(node, vault) for node, vault in vaults.items()}
    sides["alice"].other, sides["bob"].other = sides["bob"], sides["alice"]
    answering = [asyncio.create_task(side.comparison.run()) for side in sides.values()]
    begun = time.perf_counter()
    await sides["bob"].comparison._look()
    took_ms = round(1e3 * (time.perf_counter() - begun), 1)
    for task in answering:
        task.cancel()
    state = sides["bob"].comparison.state
    assert not state.failed, state.failed
    return {
        "ms": took_ms,
        "questions": state.questions,
        "stretches": state.stretches,
        "bytes": sum(side.sent_bytes for side in sides.values()),
        "found": dict(state.found),
    }


def revoke_unheard(alice: Any, site: Site, count: int) -> None:
    """A key of each of as many Bundles, spread over the store, of which the neighbour never hears."""
    numbers = [number for (number,) in _execute(site, "SELECT number FROM bundles ORDER BY number")]
    chosen = numbers[:: max(1, len(numbers) // count)][:count]
    ids = [alice.call(ListKeys(after=number * PER_BUNDLE, limit=1, state="ready")).keys[0].key_id for number in chosen]
    alice.call(RevokeKeys(key_ids=tuple(ids), reason="superseded", by="olga"))
    _execute(site, "DELETE FROM outbox")


def _execute(site: Site, *statements: str, node: str = "alice") -> list[Any]:
    connection = apsw.Connection(str(site.vault(node)))
    try:
        return [connection.execute(statement).fetchall() for statement in statements][-1]
    finally:
        connection.close()


def measure(keys: int) -> dict[str, Any]:
    """One size."""
    with Site() as site:
        two_nodes(site)
        site.directory.joinpath(CREDENTIAL).write_bytes(bytes(32))
        fill(site, keys)
        for node in ENDS:
            forget_hashes(site, node)
        vaults = {node: opened(site, node) for node in ENDS}
        first_s, longest_ms = make_root(vaults["bob"])
        make_root(vaults["alice"])
        key_id = vaults["bob"].call(ask.ApplicationOutbox(application="app-b", limit=1))[0].key_id
        vaults["bob"].call(ask.KeysDelivered(application="app-b", key_ids=(key_id,), details={}))
        vaults["alice"].call(ask.PeerDelivered(link=LINK, application="app-b", key_ids=(key_id,)))
        for entry in vaults["bob"].call(ask.NeighbourOutbox(link=LINK)):
            vaults["bob"].call(ask.OutboxCleared(link=LINK, numbers=(entry.number,)))
        again_s, _ = make_root(vaults["bob"])
        compared, planted = {}, 0
        for count in DIFFERENCES:
            if count > planted:
                revoke_unheard(vaults["alice"], site, count)
                planted = count
            compared[count] = asyncio.run(compare(vaults))
        for vault in vaults.values():
            vault.close()
    return {
        "keys": keys,
        "root_from_nothing_s": first_s,
        "longest_request_ms": longest_ms,
        "root_after_one_key_ms": round(1e3 * again_s, 1),
        "compared": compared,
    }


if __name__ == "__main__":
    print(json.dumps([measure(keys) for keys in map(int, sys.argv[1:])] or [measure(k) for k in SIZES], indent=2))
