"""Release times of a small and a large store in turn: `release_scale.py [FEW] [MANY]` (10,000 and 1,000,000 keys).

Two vaults hold READY keys of 256 bits. A mix of requests, the same for both, goes to the one and the other in turn, so
that what else the machine does meets both: one key, 16 that were cut together as applications are sent them, or 16 of
anywhere in the store are opened and acknowledged, journalled and synced. Shown are medians of wall time and of the
process's CPU time for each kind of request and for the mix, their ratios, the bytes of disk for each key, and how much
memory the process has resident with the large vault open. The first third of the requests warms the caches and does
not count.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "vault"))

from vault_keeping import disk, fill
from vaults import End

from qkdnode.ids import ALICE
from qkdnode.vault.requests import KeysDelivered, OpenKeys

KINDS = ("one", "16 together", "16 anywhere")
TOGETHER = 16
REQUESTS = 200  # of each kind and store
RUNS = REQUESTS + REQUESTS * (1 + TOGETHER) // TOGETHER + 1  # those of the second kind; broken up, those of the others


class Sample:
    """Ids of keys from all over a store, in an order drawn at random: as they were cut together, and one by one."""

    def __init__(self, runs: list[list[Any]]) -> None:
        random.Random(5).shuffle(runs)
        self._together = runs[:REQUESTS]
        self._single = [key_id for run in runs[REQUESTS:] for key_id in run]
        random.Random(6).shuffle(self._single)

    def draw(self, kind: str) -> list[Any]:
        """The ids of one request."""
        if kind == "16 together":
            return self._together.pop()
        return [self._single.pop() for _ in range(1 if kind == "one" else TOGETHER)]


def store(directory: Path, keys: int) -> tuple[End, Sample]:
    """A vault with so many READY keys."""
    directory.mkdir()
    end = End(directory, ALICE)
    end.provision()
    end.open_link()
    end.associate()
    begun = time.perf_counter()
    runs = fill(end, keys, TOGETHER, RUNS)
    print(f"{keys} keys cut in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return end, Sample(runs)


def release(end: End, ids: list[Any]) -> tuple[float, float]:
    """Wall and CPU seconds of one release."""
    wall, cpu = time.perf_counter(), time.process_time()
    end.call(OpenKeys(key_ids=tuple(ids), application=end.association.local)).material.release()
    end.call(KeysDelivered(application=end.association.local, key_ids=tuple(ids), details={}))
    return time.perf_counter() - wall, time.process_time() - cpu


def resident_mib() -> int:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def main(few: int = 10_000, many: int = 1_000_000) -> None:
    with tempfile.TemporaryDirectory() as directory:
        stores = [store(Path(directory) / name, keys) for name, keys in (("few", few), ("many", many))]
        taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(REQUESTS):
            for kind in KINDS:
                for which, (end, sample) in enumerate(stores):
                    taken.setdefault((kind, which), []).append(release(end, sample.draw(kind)))
        counted = {kind: [taken[kind, which][REQUESTS // 3 :] for which in (0, 1)] for kind in KINDS}
        counted["mix"] = [[one for kind in KINDS for one in counted[kind][which]] for which in (0, 1)]
        shown: dict[str, Any] = {"few": few, "many": many}
        for kind, some in counted.items():
            for what, column in (("wall", 0), ("cpu", 1)):
                medians = [statistics.median(one[column] for one in its) for its in some]
                shown[f"{kind}, {what} ms"] = [round(value * 1e3, 3) for value in medians]
                shown[f"{kind}, {what} ratio"] = round(medians[1] / medians[0], 3)
        shown["resident_mib"] = resident_mib()
        shown["disk"] = disk(stores[1][0], many)
        for end, _ in stores:
            end.vault.close()
        print(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
