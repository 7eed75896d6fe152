"""How long a look for keys that are due takes, and how many keys a timer ends per second, at several sizes of store.

    PYTHONPATH=agent python tests/benchmarks/retirement.py [KEYS ...]

One vault with so many keys cut and READY, half of them of its own allocating, and a policy under which they end after a
day. For each size: milliseconds of a look (every answer durable) while nothing is due, the median and the longest of
200; keys ended per second once all are due, and the longest page, over the first 200,000 keys at most. Prints JSON.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from agents import Site, two_nodes
from approving import application_of, policy
from restart import CREDENTIAL, draw_into, fill

from qkdnode.channel.identity import load_identity
from qkdnode.vault import requests as ask
from qkdnode.vault.retirement import RetireKeys
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.service import Vault

SIZES = (10_000, 1_000_000)
LOOKS, ENDED = 200, 200_000
DAY_NS = 86_400 * 10**9
TERMS = policy("max_age_at_release_s = 86400", name="its", purpose="session")


def opened(site: Site, ahead_ns: int) -> Vault:
    """Alice's vault, on a clock that is ahead."""
    return Vault.open(
        site.vault("alice"),
        root=CredentialFile(CREDENTIAL, site.directory),
        node="alice",
        draw_into=draw_into,
        signer=load_identity(site.directory / "alice.identity"),
        clock_ns=lambda: time.time_ns() + ahead_ns,
    )


def timed(vault: Any) -> tuple[float, Any]:
    """Milliseconds of a page, and its answer."""
    begun = time.perf_counter()
    answer = vault.call(RetireKeys())
    return (time.perf_counter() - begun) * 1e3, answer


def measure(keys: int) -> dict[str, Any]:
    """One size."""
    with Site() as site:
        two_nodes(site)
        site.directory.joinpath(CREDENTIAL).write_bytes(bytes(32))
        fill(site, keys)
        vault = opened(site, 0)
        vault.call(application_of(vault.call, "alice", time.time_ns(), TERMS))
        looks = []
        for _ in range(LOOKS):
            look_ms, done = timed(vault)
            assert not done.more, "nothing is due yet"
            looks.append(look_ms)
        vault.close()
        vault = opened(site, 2 * DAY_NS)
        ended, pages, begun = 0, [], time.perf_counter()
        while ended < min(keys, ENDED):
            page_ms, done = timed(vault)
            assert done.keys, "all are due"
            ended += done.keys
            pages.append(page_ms)
        took_s = time.perf_counter() - begun
        assert vault.call(ask.Status()).keys["destroyed"] == ended
        vault.close()
    return {
        "keys": keys,
        "look_ms": round(statistics.median(looks), 3),
        "longest_look_ms": round(max(looks), 2),
        "ended_keys_per_s": round(ended / took_s),
        "longest_page_ms": round(max(pages), 1),
    }


if __name__ == "__main__":
    print(json.dumps([measure(keys) for keys in map(int, sys.argv[1:])] or [measure(k) for k in SIZES], indent=2))
