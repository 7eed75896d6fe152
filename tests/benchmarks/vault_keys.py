"""Keys per second through two vaults in one process: allocate, accept, answer, open, deliver, and tell each other.

    PYTHONPATH=agent python tests/benchmarks/vault_keys.py [ROUNDS [KEYS_PER_ROUND]]

Every key runs its whole life at both ends, every answer durable. One vault does half of the work that is counted. A
key makes seven transitions: allocated, ready, delivered and known to be delivered at the far end where it was
allocated, all but the first at the other end. Requests for more than 128 keys are cut into several.
"""

import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "vault"))

from vaults import LINK, Pair

from qkdnode.vault.requests import (
    ApplicationOutbox,
    KeysDelivered,
    NeighbourOutbox,
    OpenKeys,
    OutboxCleared,
    PeerDelivered,
    Status,
)

SIZE_BITS = 256
TRANSITIONS = 7


def live(pair: Pair, keys: int) -> None:
    """One round: Alice allocates, and all keys reach both applications."""
    pair.ready(pair.alice, keys, SIZE_BITS)
    for end in pair.ends:
        application = end.association.local
        ids = tuple(row.key_id for row in end.call(ApplicationOutbox(application=application, limit=keys)))
        pages = [ids[i : i + 128] for i in range(0, keys, 128)]
        for opened in [end.vault.ask(OpenKeys(key_ids=page, application=application)) for page in pages]:
            opened.result().material.release()
        end.call(KeysDelivered(application=application, key_ids=ids, details={}))
    for end, other in (pair.ends, pair.ends[::-1]):
        entries = end.call(NeighbourOutbox(link=LINK))
        for entry in entries:
            packed = entry.message.key_ids
            ids = tuple(UUID(bytes=packed[i : i + 16]) for i in range(0, len(packed), 16))
            other.call(PeerDelivered(link=LINK, application=entry.message.application, key_ids=ids))
        end.call(OutboxCleared(link=LINK, numbers=tuple(entry.number for entry in entries)))


def main(rounds: int = 10, keys: int = 256) -> None:
    with tempfile.TemporaryDirectory() as directory:
        pair = Pair(Path(directory))
        pair.stock(bits_out=2 * rounds * keys * SIZE_BITS + 8192)
        leaves = sum(end.call(Status()).leaves for end in pair.ends)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            live(pair, keys)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        leaves = sum(end.call(Status()).leaves for end in pair.ends) - leaves
        pair.close()
    count = rounds * keys
    print(
        f"{count} keys of {SIZE_BITS} bits through both ends: {count / wall:.0f}/s, "
        f"{cpu / count * 1e6:.0f} us CPU each; "
        f"transitions_per_s {TRANSITIONS * count / wall:.0f}, in {leaves / wall:.0f} leaves/s"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
