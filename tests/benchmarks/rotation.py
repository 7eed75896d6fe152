"""How long each step of a rotation takes two real vaults, each with its file and its syncs.

    PYTHONPATH=agent python tests/benchmarks/rotation.py [ROTATIONS [KEYS]]

Both vaults in one process and messages handed over at once: what the network and the applications need comes on top,
and so does the half second for which the old generation lingers after the cut, which is skipped. Each end has KEYS old
keys that wait for applications, and prepares as many. Per step the milliseconds until it stands at both ends, median
and 99th percentile: `agreed` from the operator's request; `prepared` cuts the keys, exchanges and says so; `cut` from
the second application's acknowledgement to the cut at both ends; `first_key` opens the first keys of the new generation
after it; `closed` until both are steady; `ended` moves the rows of the old one at both ends. Prints JSON.
"""

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "vault"))

from rotating import accept, begin, end_rows, look, offered, prepare, state_of
from vaults import LINK, End, Pair

from qkdnode.ids import BatchId
from qkdnode.lifecycle.rotation import LINGER_NS, Phase
from qkdnode.node.shadow import carry
from qkdnode.vault.requests import AllocateKeys, OpenKeys

ROTATIONS, KEYS = 200, 32


def cut(end: End, generation: int, keys: int) -> None:
    """Cut keys of a generation from an end's half."""
    its: dict[str, Any] = {"association": end.association, "count": keys, "size_bits": 256, "generation": generation}
    end.call(AllocateKeys(**its, entropy=os.urandom(16 * keys)))


def share(times: list[float], below: float) -> float:
    """The time below which so large a share of them is."""
    return round(sorted(times)[min(len(times) - 1, int(len(times) * below))], 2)


def measure(rotations: int, keys: int) -> dict[str, Any]:
    """So many rotations, one after another."""
    took_ms: dict[str, list[float]] = defaultdict(list)

    def timed(step: str, what: Callable[[], Any]) -> None:
        begun = time.perf_counter()
        what()
        took_ms[step].append((time.perf_counter() - begun) * 1e3)

    with tempfile.TemporaryDirectory() as name:
        pair = Pair(Path(name))

        def carried() -> None:
            carry(LINK, pair.alice.call, pair.bob.call)

        def agree() -> None:
            begin(pair.alice)
            carried()

        def make_keys(number: int) -> None:
            for end in pair.ends:
                cut(end, number, keys)
            carried()
            for end in pair.ends:
                prepare(end, keys)
            carried()

        def cut_over(number: int) -> None:
            accept(pair.bob, number)
            carried()

        def close() -> None:
            for end in pair.ends:
                look(end, LINK)
            carried()

        def open_first() -> None:
            ids = tuple(offered(pair.alice)[:keys])
            pair.alice.call(OpenKeys(key_ids=ids, application=pair.alice.association.local)).material.release()

        def end_all() -> None:
            for end in pair.ends:
                end_rows(end)
            carried()

        for number in range(2, rotations + 2):
            pair.stock(BatchId(1, number), bits_out=4 * 256 * keys + 4096)
            for end in pair.ends:
                cut(end, number - 1, keys)
            carried()
            timed("agreed", agree)
            timed("prepared", lambda number=number: make_keys(number))
            accept(pair.alice, number)
            carried()
            timed("cut", lambda number=number: cut_over(number))
            assert {state_of(end).phase for end in pair.ends} == {Phase.CUT}
            timed("first_key", open_first)
            for end in pair.ends:
                end.counter.ahead_ns += LINGER_NS
            timed("closed", close)
            assert {state_of(end).current for end in pair.ends} == {number}
            timed("ended", end_all)
        pair.close()
    steps = {step: {"p50_ms": share(its, 0.5), "p99_ms": share(its, 0.99)} for step, its in took_ms.items()}
    return {"rotations": rotations, "keys_of_each_end": keys, "steps": steps}


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    print(json.dumps(measure(*(given + [ROTATIONS, KEYS][len(given) :])), indent=2))
