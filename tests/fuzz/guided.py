"""The same targets under atheris (libFuzzer over Python's bytecode), where it can be imported.

It runs in a process of its own: libFuzzer takes the process over and ends it. One process serves all targets that are
quick enough; the first byte of an input says which.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from fuzz.lanes import Lane

TESTS = Path(__file__).resolve().parents[1]
QUICK = 20.0  # cost
RUNS_SHORT, RUNS_PLANTED = 12_000, 3_000
PLANTED = "another spelling of a message is accepted"
LIMIT_S = 3600.0


class start:
    """The lane: two processes, one of them with a planted bug that it must find."""

    def __init__(self, only: str | None, seed: int, seconds: float | None, folder: Path) -> None:
        """For so many seconds, or so few runs if that is None."""
        self._only, self._seed, self._folder = only, seed, folder
        self._limit = f"-runs={RUNS_SHORT}" if seconds is None else f"-max_total_time={max(1, round(seconds))}"
        self._children: list[subprocess.Popen[str]] = []
        self._places = contextlib.ExitStack()
        self._said: list[Path] = []

    def __enter__(self) -> Self:
        if importlib.util.find_spec("atheris") is not None:
            self._spawn(self._limit, self._only, None)
            if self._only is None:
                self._spawn(f"-runs={RUNS_PLANTED}", "wire/frame", PLANTED)
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
            child.communicate()
        self._places.close()

    def _spawn(self, limit: str, only: str | None, plant: str | None) -> None:
        place = Path(self._places.enter_context(tempfile.TemporaryDirectory(prefix="qkdnode-fuzz-")))
        said = place / "findings"
        self._said.append(said)
        order = json.dumps({"only": only, "plant": plant, "findings": str(said)})
        self._children.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "fuzz.guided",
                    order,
                    limit,
                    f"-seed={self._seed % 2**31 or 1}",
                    "-timeout=60",
                    "-rss_limit_mb=4096",
                    f"-artifact_prefix={place}/",
                    str(place / "corpus"),
                ],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
                },
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def finish(self) -> Lane:
        """Wait for the lane."""
        if not self._children:
            return Lane(engine="no atheris (not installed: `pip install atheris`)")
        lane = Lane(engine=f"atheris {metadata.version('atheris')}")
        for at, child in enumerate(self._children):
            try:
                _, errors = child.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                errors = child.communicate()[1]
            found = (
                [json.loads(line) for line in self._said[at].read_text().splitlines()]
                if self._said[at].exists()
                else []
            )
            lane.inputs += sum(item["inputs"] for item in found if "inputs" in item)
            found = [item for item in found if "inputs" not in item]
            if at == 1:
                lane.planted += 1
                if not found:
                    lane.missed += 1
                    print(f"fuzz: planted and NOT CAUGHT by atheris: {PLANTED}", file=sys.stderr)
                continue
            for item in found:
                lane.findings += 1
                self._keep(item)
            if child.returncode and not found:
                lane.failed = True
                lane.engine += f" FAILED ({(errors.strip().splitlines() or ['no words'])[-1][:120]})"
        return lane

    def _keep(self, item: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / item["file"]
        path.write_bytes(bytes.fromhex(item["input"]))
        print(
            f"fuzz: FINDING by atheris in {item['target']}: {item['what']}\n"
            f"    PYTHONPATH=tests python -m fuzz --replay {path}",
            file=sys.stderr,
        )


def child(order: dict[str, Any], arguments: list[str]) -> None:
    """In the process that libFuzzer takes over."""
    import random
    import tracemalloc

    import atheris

    with atheris.instrument_imports(include=["qkdnode"]):
        from fuzz import controls
        from fuzz.engine import Guard, Judge
        from fuzz.targets import TARGET_OF_NAME, TARGETS

    targets = [TARGET_OF_NAME[order["only"]]] if order["only"] else [each for each in TARGETS if each.cost <= QUICK]
    judges = [Judge(target, traced=False) for target in targets]
    said = Path(order["findings"])
    seen: set[str] = set()

    def say(item: dict[str, Any]) -> None:
        with said.open("a") as file:
            file.write(json.dumps(item) + "\n")

    def one_input(data: bytes) -> None:
        if not data:
            return
        judge = judges[data[0] % len(judges)]
        guard.arm()
        _, finding = judge.try_input(data[1:])
        count = sum(judge.statistics.inputs for judge in judges)
        if count % 1000 == 0:
            say({"inputs": 1000})
        if finding is not None and finding.what not in seen:
            seen.add(finding.what)
            say(
                {
                    "target": finding.target,
                    "what": finding.what,
                    "file": finding.file_name,
                    "input": finding.input.hex(),
                }
            )

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        which = data[0] % len(targets) if data else 0
        rest = data[1:] or rng.choice(targets[which].seeds())
        if rng.random() < 0.3:
            rest = atheris.Mutate(rest, max(1, max_size - 1))
        else:
            rest = rng.choice(targets[which].mutators)(rng, rest)
        return (bytes([which]) + rest)[:max_size]

    corpus = Path(arguments[-1])
    corpus.mkdir()
    for which, target in enumerate(targets):
        for number, data in enumerate(target.seeds()):
            (corpus / f"{which:02}-{number:03}").write_bytes(bytes([which]) + data)
    tracemalloc.start()
    guard = Guard()
    with contextlib.ExitStack() as stack:
        if order["plant"]:
            control = next(each for each in controls.CONTROLS if each.what == order["plant"])
            stack.enter_context(controls.planted(control))
        stack.enter_context(guard)
        atheris.Setup([sys.argv[0], "-max_len=16384", *arguments], one_input, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    child(json.loads(sys.argv[1]), sys.argv[2:])
