"""How soon a compromise is in force, and how fast rows follow it, at several sizes of the store.

    PYTHONPATH=agent python tests/benchmarks/revocation.py [KEYS ...]

Both vaults in one process, with so many keys cut and READY at both ends. For each size: milliseconds from the
operator's request to its answer at the first end (durable), and from the message to its confirmation at the other; what
the next release and the next look at the outbox take then, while no row has moved; keys moved per second, and the
longest page. The outbox is asked before the compromise too, for comparison. Prints JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from agents import Site, two_nodes
from restart import CREDENTIAL, ENDS, LINK, fill, opened

from qkdnode.errors import VaultError
from qkdnode.vault import requests as ask
from qkdnode.vault.revocations import RevocationsUnconfirmed
from qkdnode.vault.scopes import Compromise, FollowCompromise, MoveRows

SIZES = (10_000, 100_000)


def timed(vault: Any, request: Any) -> tuple[float, Any]:
    """Milliseconds, and the answer or what it was refused with."""
    begun = time.perf_counter()
    try:
        answer = vault.call(request)
    except VaultError as error:
        answer = error
    return round((time.perf_counter() - begun) * 1e3, 2), answer


def measure(keys: int) -> dict[str, Any]:
    """One size."""
    with Site() as site:
        two_nodes(site)
        site.directory.joinpath(CREDENTIAL).write_bytes(bytes(32))
        fill(site, keys)
        alice, bob = (opened(site, node) for node in ENDS)
        outbox = ask.ApplicationOutbox(application="app-a", limit=128)
        before_ms, rows = timed(alice, outbox)
        ids = tuple(row.key_id for row in rows)
        here_ms, _ = timed(alice, Compromise(kind="link", value=LINK, reason="key-compromise", by="olga"))
        (entry,) = alice.call(RevocationsUnconfirmed(link=LINK))
        there_ms, _ = timed(bob, FollowCompromise(link=LINK, message=entry.message))
        release_ms, refused = timed(alice, ask.OpenKeys(key_ids=ids, application="app-a"))
        assert isinstance(refused, VaultError), "a compromised key was opened"
        empty_ms, left = timed(alice, outbox)
        assert left == (), "a compromised key is offered"
        begun, pages = time.perf_counter(), []
        while True:
            page_ms, more = timed(alice, MoveRows())
            pages.append(page_ms)
            if not more:
                break
        moved_s = time.perf_counter() - begun
        (scope,) = alice.call(ask.Status()).keys.items()
        assert scope == ("compromised", keys), scope
        for vault in (alice, bob):
            vault.close()
    return {
        "keys": keys,
        "in_force_here_ms": here_ms,
        "in_force_there_ms": there_ms,
        "release_refused_ms": release_ms,
        "outbox_before_ms": before_ms,
        "outbox_then_ms": empty_ms,
        "moved_keys_per_s": round(keys / moved_s),
        "longest_page_ms": max(pages),
    }


if __name__ == "__main__":
    print(json.dumps([measure(keys) for keys in map(int, sys.argv[1:])] or [measure(k) for k in SIZES], indent=2))
