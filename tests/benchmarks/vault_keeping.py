"""What it costs to keep many keys: `python tests/benchmarks/vault_keeping.py KEYS` (10000 by default).

One end's vault is filled with READY keys of 256 bits in Bundles of 128. Then: bytes of disk for each key, rows and
indexes apart from the audit log; the median time of a release (open and acknowledge one key that is drawn at random,
synced); a pass over all records, and all data keys wrapped anew, each with its slowest page; a reading of the files for
what was deleted; resident memory.
"""

import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "vault"))

import apsw
from vaults import LINK, End, material_of, record_of

from qkdnode.ids import ALICE, BatchId
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.epochs import MoveDataKeys, RewrapKeys
from qkdnode.vault.readback import ReadBack
from qkdnode.vault.requests import (
    AllocateKeys,
    AllocationAnswered,
    KeysDelivered,
    NeighbourOutbox,
    OpenKeys,
    OutboxCleared,
    SettlePending,
    StorePending,
)
from qkdnode.vault.scrub import Scrub

SIZE_BITS, AT_ONCE, PER_BATCH = 256, 2048, 65_536
RELEASES = 300
LOG = {"leaves", "leaves_subject", "checkpoints"}
STOCK = {"chunks", "sqlite_autoindex_chunks_1", "chunks_of_kek"}


def fill(end: End, keys: int, run: int = 1, wanted: int | None = None) -> list[list[Any]]:
    """READY keys; ids of `wanted` runs of keys cut one after the other, and of some more, from all over; or of all."""
    ids: list[list[Any]] = []
    number = cut = 0
    sampled = max(1, keys // (run * (wanted or keys)))
    while cut < keys:
        number += 1
        batch, bits = BatchId(1, number), 2 * PER_BATCH * SIZE_BITS
        key = SecretBuffer.copy_of(material_of(batch, 8192) * (bits // 8192))
        end.call(StorePending(link=LINK, record=record_of(batch, bits, 0), key=key, commit=b"commit"))
        end.call(SettlePending(link=LINK, batch=batch, ready=True))
        for _ in range(PER_BATCH // AT_ONCE):
            count = min(AT_ONCE, keys - cut)
            if not count:
                break
            entropy = os.urandom(16 * count)
            asked = AllocateKeys(association=end.association, count=count, size_bits=SIZE_BITS, entropy=entropy)
            made = end.call(asked)
            runs = [made[i : i + run] for i in range(0, count - run + 1, run)]
            ids += runs[:: min(sampled, len(runs))] if runs else []
            cut += count
            waiting = end.call(NeighbourOutbox(link=LINK, limit=1000))
            answers = [AllocationAnswered(link=LINK, request=e.message.request, outcome="accepted") for e in waiting]
            for answer in [end.vault.ask(answer) for answer in answers]:
                answer.result()
            end.call(OutboxCleared(link=LINK, numbers=tuple(entry.number for entry in waiting)))
    return ids


def disk(end: End, keys: int) -> str:
    """Bytes for each key, by what they are for."""
    with end.tampering() as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection = apsw.Connection(str(end.path))
    sizes: dict[str, int] = dict(connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name").fetchall())
    connection.close()
    log = sum(size for name, size in sizes.items() if name in LOG)
    stock = sum(size for name, size in sizes.items() if name in STOCK)
    rows = sum(sizes.values()) - log - stock
    return f"{rows / keys:.0f} bytes of disk for each key in rows and indexes, {log / keys:.0f} in the audit log"


def release(end: End, ids: list[Any]) -> list[float]:
    """Seconds of each release."""
    taken = []
    for key_id in ids:
        begun = time.perf_counter()
        end.call(OpenKeys(key_ids=(key_id,), application=end.association.local)).material.release()
        end.call(KeysDelivered(application=end.association.local, key_ids=(key_id,), details={}))
        taken.append(time.perf_counter() - begun)
    return taken


def pages(end: End, page: Callable[[], bool]) -> tuple[float, list[float]]:
    """CPU seconds of all pages, and how long each took."""
    cpu, took = time.process_time(), []
    more = True
    while more:
        begun = time.perf_counter()
        more = page()
        took.append(time.perf_counter() - begun)
    return time.process_time() - cpu, sorted(took)


def shown(what: str, keys: int, cpu: float, took: list[float]) -> str:
    wall, last = sum(took), took[len(took) * 99 // 100]
    return (
        f"{what}: {keys / wall:.0f} keys/s, {cpu / keys * 1e6:.1f} us CPU each, {len(took)} pages, "
        f"median {statistics.median(took) * 1e3:.1f} ms, p99 {last * 1e3:.1f} ms, longest {took[-1] * 1e3:.1f} ms"
    )


def main(keys: int = 10_000) -> None:
    with tempfile.TemporaryDirectory() as directory:
        end = End(Path(directory), ALICE)
        end.provision()
        end.open_link()
        end.associate()
        begun = time.perf_counter()
        ids = fill(end, keys)
        print(f"{keys} keys cut in {time.perf_counter() - begun:.0f} s", flush=True)
        print(disk(end, keys), flush=True)
        drawn = [key_id for (key_id,) in random.Random(5).sample(ids, 2 * RELEASES)]
        release(end, drawn[:RELEASES])  # until the pages are warm
        taken = statistics.median(release(end, drawn[RELEASES:]))
        print(f"release of one key: median {taken * 1e3:.2f} ms", flush=True)
        end.call(Scrub(now=True))
        print(shown("scrub", keys, *pages(end, lambda: end.call(Scrub()).running)), flush=True)
        end.call(RewrapKeys(to="ChaCha20-Poly1305", by="max"))
        print(shown("re-wrap", keys, *pages(end, lambda: bool(end.call(MoveDataKeys())))), flush=True)
        size = end.path.stat().st_size
        cpu, took = pages(end, lambda: end.call(ReadBack()).running)
        longest = took[-1] * 1e3
        print(f"read-back: {size / sum(took) / 2**20:.0f} MiB/s, {cpu / size * 1e9:.1f} ns CPU for each byte, "
              f"longest page {longest:.1f} ms")  # fmt: skip
        print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB resident at most")
        end.vault.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
