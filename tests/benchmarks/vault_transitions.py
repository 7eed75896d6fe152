"""Audited transitions per second in group commits: each changes one protected row and has a leaf of its own.

    PYTHONPATH=agent python tests/benchmarks/vault_transitions.py [TRANSITIONS]

A transition is the news that the far application has one key: its Bundle's row is read and verified, the change is
journalled with a leaf of its own, the row's MAC renewed. 256 askers wait for their answers, each durable. Events as the
node records them, 64 in a request and a leaf each, are measured beside it. Prints JSON;
`floor` is the commits per second of SQLite alone on the same disk, one after another.
"""

import json
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "vault"))

import apsw
from vaults import LINK, Pair

from qkdnode.audit.events import LinkEvent
from qkdnode.vault.requests import PeerDelivered, RecordEvents, Status
from qkdnode.vault.schema import PRAGMAS

ASKERS, EVENTS, AT_ONCE, SIZE_BITS = 256, 64, 1024, 256


def floor(directory: Path) -> int:
    connection = apsw.Connection(str(directory / "floor.db"))
    for pragma in PRAGMAS:
        connection.execute(pragma).fetchall()
    connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, data BLOB)")
    count, until = 0, time.monotonic() + 1.0
    while time.monotonic() < until:
        connection.execute("INSERT INTO rows (data) VALUES (?)", (bytes(512),))
        count += 1
    connection.close()
    return count


def run(end: Any, requests: Any) -> tuple[float, float]:
    """Wall and CPU seconds until all are answered."""
    wall, cpu = time.perf_counter(), time.process_time()
    waiting: deque[Any] = deque()
    for request in requests:
        waiting.append(end.vault.ask(request))
        if len(waiting) == ASKERS:
            waiting.popleft().result()
    for answer in waiting:
        answer.result()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(count: int = 20_480) -> None:
    with tempfile.TemporaryDirectory() as directory:
        pair = Pair(Path(directory))
        pair.stock(bits_out=4 * count * SIZE_BITS)
        end = pair.alice
        ids = [key_id for _ in range(count // AT_ONCE) for key_id in pair.ready(end, AT_ONCE, SIZE_BITS)]
        count = len(ids)
        leaves = end.call(Status()).leaves
        application = end.association.remote
        told = (PeerDelivered(link=LINK, application=application, key_ids=(key_id,)) for key_id in ids)
        wall, cpu = run(end, told)
        added = end.call(Status()).leaves - leaves
        event = LinkEvent(time_ns=1, node="a", topic="link.metro", kind="link.tried", subject="metro")
        events_wall, events_cpu = run(end, (RecordEvents(events=(event,) * EVENTS) for _ in range(count // EVENTS)))
        for one in pair.ends:
            one.vault.close()
        print(
            json.dumps(
                {
                    "transitions": count,
                    "leaves": added,
                    "transitions_per_s": round(count / wall),
                    "cpu_us_per_transition": round(cpu / count * 1e6),
                    "events_per_s": round(count / events_wall),
                    "cpu_us_per_event": round(events_cpu / count * 1e6),
                    "floor_commits_per_s": floor(Path(directory)),
                    "load": round(os.getloadavg()[0], 1),
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
