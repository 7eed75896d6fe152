"""Events per second from the vault to subscribers, each in a process of its own with the real client: one JSON object.

    PYTHONPATH=agent python tests/benchmarks/events.py [--rate 5000] [--seconds 8] [--subscribers 10] [--floor 200000]

Every event is a leaf of the audit log, journalled in batches of 100 at the given rate. `lost` and `out_of_order` count
what any subscriber did not get, or not in the order of the log. The floor is a plain PUB, without CURVE, numbers,
decoding or a log, that sends messages of one leaf's size one by one to as many plain subscribers in the same run.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from publishing import Publishing

from qkdnode.audit.events import NodeEvent
from qkdnode.client import Events, Occurrence
from qkdnode.vault.requests import RecordEvents, Status

BATCH = 100
PATIENCE_S = 60.0  # then what has not come counts as lost
TOPICS = ("keys.a-b", "keys.a-c", "link.a-b", "node")


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def follow(directory: str, endpoints: tuple[str, str], wanted: int, pipe: Connection) -> None:
    """One subscriber: report once it is ready, then what it got."""

    async def work() -> dict[str, Any]:
        publish, replay = endpoints
        async with Events(
            f"{directory}/app-a.identity", f"{directory}/a.public", publish=publish, replay=replay, topics=["*"]
        ) as events:
            while not events._order.up_to_date:
                await asyncio.sleep(0.01)
            pipe.send("ready")
            received, last, unordered, delay_s = 0, -1, 0, 0.0
            cpu, memory = cpu_s(), resident_mib()
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    while received < wanted:
                        item = await anext(events)
                        if isinstance(item, Occurrence) and item.event.kind == "node.tried":
                            received += 1
                            unordered += item.position <= last
                            last = item.position
                            delay_s = max(delay_s, time.time() - item.event.time_ns / 1e9)
            return {
                "received": received,
                "unordered": unordered,
                "ended": time.time(),
                "delay_s": delay_s,
                "repaired": events.statistics().repaired,
                "cpu_s": cpu_s() - cpu,
                "rss_growth": resident_mib() - memory,
            }

    pipe.send(asyncio.run(work()))


async def publish(directory: Path, rate: int, seconds: float, count: int) -> dict[str, Any]:
    node = Publishing(directory)
    async with node.running(heartbeat_s=1.0) as running:
        running.server._pace_s = 0.02  # as an agent does
        context = multiprocessing.get_context("spawn")
        total = int(rate * seconds) // BATCH * BATCH
        pipes, children = [], []
        for _ in range(count):
            here, there = context.Pipe()
            child = context.Process(target=follow, args=(str(directory), node.endpoints, total, there), daemon=True)
            child.start()
            pipes.append(here)
            children.append(child)
        for pipe in pipes:
            await asyncio.to_thread(pipe.recv)
        before_leaves = (await node.ask(Status())).leaves
        began, cpu, memory = time.time(), cpu_s(), resident_mib()
        for batch in range(total // BATCH):
            events = tuple(
                NodeEvent(
                    time_ns=time.time_ns(),
                    node="a",
                    topic=TOPICS[i % len(TOPICS)],
                    kind="node.tried",
                    subject=f"try {batch * BATCH + i}",
                    details={"link": "a-b", "bits": 256, "reason": "a sentence as long as most of them are"},
                )
                for i in range(BATCH)
            )
            await node.ask(RecordEvents(events=events))
            node.server.grew()
            await asyncio.sleep(max(0.0, began + (batch + 1) * BATCH / rate - time.time()))
        journalled = time.time() - began
        leaves = (await node.ask(Status())).leaves - before_leaves
        results = [await asyncio.to_thread(pipe.recv) for pipe in pipes]
        used, growth = cpu_s() - cpu, resident_mib() - memory
        for child in children:
            child.join()
        taken = max(result["ended"] for result in results) - began
    statistics = node.server.statistics()
    received = sum(result["received"] for result in results)
    return {
        "events": total,
        "leaves": leaves,
        "events_per_s": round(total / journalled),
        "subscribers": count,
        "deliveries": received,
        "deliveries_per_s": round(received / taken),
        "lost": total * count - received,
        "out_of_order": sum(result["unordered"] for result in results),
        "replays": statistics.replays,
        "pages": statistics.pages,
        "longest_delay_s": round(max(result["delay_s"] for result in results), 3),
        "node_cpu_share": round(used / taken, 3),
        "node_rss_growth_mib": round(growth, 1),
        "subscriber_cpu_share": round(sum(result["cpu_s"] for result in results) / count / taken, 3),
        "subscriber_rss_growth_mib": round(max(result["rss_growth"] for result in results), 1),
    }


def listen(endpoint: str, wanted: int, pipe: Connection) -> None:
    """A plain SUB: how many came until nothing more did."""
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    socket.recv()
    pipe.send("ready")
    while socket.recv() == b"first":
        pass
    received, ended = 1, time.time()
    while received < wanted and socket.poll(1000):
        socket.recv()
        received += 1
        ended = time.time()
    pipe.send((received, ended))
    context.destroy(0)


def naive(count: int, messages: int) -> dict[str, Any]:
    """The floor."""
    zeromq = zmq.Context()
    publisher = zeromq.socket(zmq.PUB)
    endpoint = f"tcp://127.0.0.1:{publisher.bind_to_random_port('tcp://127.0.0.1')}"
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    for _ in range(count):
        here, there = context.Pipe()
        child = context.Process(target=listen, args=(endpoint, messages, there), daemon=True)
        child.start()
        pipes.append(here)
        children.append(child)
    while not all(pipe.poll() for pipe in pipes):
        publisher.send(b"first")
        time.sleep(0.005)
    for pipe in pipes:
        pipe.recv()
    body = os.urandom(330)
    began = time.time()
    for _ in range(messages):
        publisher.send(body)
    results = [pipe.recv() for pipe in pipes]
    for child in children:
        child.join()
    zeromq.destroy(0)
    received = sum(result[0] for result in results)
    taken = max(result[1] for result in results) - began
    return {"deliveries_per_s": round(received / taken), "lost_share": round(1 - received / (messages * count), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--subscribers", type=int, default=10)
    parser.add_argument("--floor", type=int, default=100_000, help="messages of the plain PUB")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        result = asyncio.run(publish(Path(directory), options.rate, options.seconds, options.subscribers))
    floor = naive(options.subscribers, options.floor)
    result |= {
        "floor_naive_pub": floor,
        "ratio_to_floor": round(result["deliveries_per_s"] / floor["deliveries_per_s"], 3),
        "load_before": round(load, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
