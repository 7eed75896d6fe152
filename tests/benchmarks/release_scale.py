"""Release times of a small and a large store, one after the other: `release_scale.py [FEW] [MANY]` (10,000, 1,000,000).

Two vaults hold READY keys of 256 bits. A mix of requests, the same for both, goes to the one and the other in turn, so
that what else the machine does meets both: one key, or 16 keys of anywhere in the store, are opened and acknowledged,
journalled and synced. Shown are medians of wall time and of the process's CPU time for each kind of request, their
ratios, the bytes of disk for each key, and how much memory the process has resident with the large vault open. The
first third of the requests warms the caches and does not count.
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

TOGETHER = (1, 16)
REQUESTS = 300  # of each kind and store
SAMPLE = 10_000


def store(directory: Path, keys: int) -> tuple[End, list[Any]]:
    """A vault with so many READY keys, and ids of some of them in an order drawn at random."""
    directory.mkdir()
    end = End(directory, ALICE)
    end.provision()
    end.open_link()
    end.associate()
    begun = time.perf_counter()
    ids = fill(end, keys, max(1, keys // SAMPLE))
    print(f"{keys} keys cut in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    random.Random(5).shuffle(ids)
    return end, ids


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
        taken: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for _ in range(REQUESTS):
            for together in TOGETHER:
                for which, (end, ids) in enumerate(stores):
                    chosen = [ids.pop() for _ in range(together)]
                    taken.setdefault((together, which), []).append(release(end, chosen))
        shown: dict[str, Any] = {"few": few, "many": many}
        for together in TOGETHER:
            for what, column in (("wall", 0), ("cpu", 1)):
                counted = [taken[together, which][REQUESTS // 3 :] for which in (0, 1)]
                medians = [statistics.median(one[column] for one in some) for some in counted]
                shown[f"{what}_ms_of_{together}"] = [round(value * 1e3, 3) for value in medians]
                shown[f"{what}_ratio_of_{together}"] = round(medians[1] / medians[0], 3)
        shown["resident_mib"] = resident_mib()
        shown["disk"] = disk(stores[1][0], many)
        for end, _ in stores:
            end.vault.close()
        print(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
