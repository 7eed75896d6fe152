"""Entries that the offline verifier reads per second, from an export as a node writes it.

    PYTHONPATH=agent python tests/benchmarks/audit_verifier.py [ENTRIES [KEYS]]

The leaves are those of a vault at work (stock is cut, keys are allocated by KEYS at once and answered), repeated with
numbers and times of their own, with a hybrid-signed checkpoint every 1,000 and a witness's signature on each tenth.
`verifier.py` runs alone, in a process of its own, as a stranger runs it. Prints JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "vault"))

from signing import OTHER, PUBLIC, SIGNING
from vaults import Pair

from qkdnode.audit import verifier
from qkdnode.audit.checkpoint import Checkpoint, cosign, sign_checkpoint
from qkdnode.audit.export import header_line, page_lines
from qkdnode.audit.merkle import Frontier, leaf_hash
from qkdnode.vault.requests import LeavesAfter

CHECKPOINT_LEAVES, COSIGNED = 1000, 10


def samples(directory: Path, keys: int) -> list[dict[str, Any]]:
    """Events of a vault at work."""
    pair = Pair(directory)
    pair.stock(bits_out=2_000_000)
    for _ in range(20):
        pair.ready(pair.alice, keys)
    leaves = pair.alice.call(LeavesAfter(position=0, limit=4096))
    for end in pair.ends:
        end.vault.close()
    return [json.loads(leaf) for _, leaf in leaves]


def write(file: Path, count: int, events: list[dict[str, Any]]) -> None:
    topics: dict[str, int] = {}
    frontier = Frontier()
    with file.open("w", encoding="utf-8") as out:
        out.write(header_line("a.audit", PUBLIC))
        for first in range(0, count, CHECKPOINT_LEAVES):
            leaves = []
            for position in range(first, min(count, first + CHECKPOINT_LEAVES)):
                event = events[position % len(events)]
                topics[event["topic"]] = number = topics.get(event["topic"], 0) + 1
                event = {**event, "topic_sequence": number, "time_ns": 1_700_000_000_000_000_000 + position}
                leaves.append(json.dumps(event, ensure_ascii=False, separators=(",", ":"), sort_keys=True))
                frontier.append(leaf_hash(leaves[-1].encode()))
            checkpoint = Checkpoint("a.audit", frontier.size, frontier.root(), event["time_ns"])
            note = sign_checkpoint(checkpoint, SIGNING)
            if first // CHECKPOINT_LEAVES % COSIGNED == 0:
                note += cosign("b.witness", event["time_ns"] // 10**9, checkpoint, OTHER)
            out.writelines(page_lines(first, leaves, [(frontier.size, note)]))


def main(count: int = 1_000_000, keys: int = 16) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file, alone = directory / "audit.log", directory / "verifier.py"
        (directory / "ends").mkdir(mode=0o700)
        write(file, count, samples(directory / "ends", keys))
        alone.write_text(Path(verifier.__file__).read_text())
        for key, public in (("a.pub", PUBLIC), ("b.pub", OTHER.log_key)):
            fields = {"ed25519": verifier.base64.b64encode(public[:32]).decode()}
            fields["mldsa44"] = verifier.base64.b64encode(public[32:]).decode()
            (directory / key).write_text(json.dumps(fields))
        arguments = [str(file), "--key", str(directory / "a.pub"), "--witness", str(directory / "b.pub")]
        begun = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-I", str(alone), *arguments], capture_output=True, text=True, check=False
        )
        seconds, used = time.perf_counter() - begun, os.times()
        print(
            json.dumps(
                {
                    "entries": count,
                    "bytes_per_entry": round(file.stat().st_size / count),
                    "said": ran.stdout.splitlines(),
                    "seconds": round(seconds, 2),
                    "cpu_seconds": round(used.children_user + used.children_system, 2),
                    "entries_per_s": round(count / seconds),
                    "load": round(os.getloadavg()[0], 1),
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
