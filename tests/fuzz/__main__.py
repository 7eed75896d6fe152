"""`python -m fuzz`: search every parser, prove by planted bugs that the search finds, print one summary line."""

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from fuzz import controls, guided, sanitized
from fuzz.engine import Finding, Target, replay, search
from fuzz.targets import TARGET_OF_NAME, TARGETS

ROOT = Path(__file__).resolve().parents[2]
SHORT = os.environ.get("FUZZ_SHORT") == "1"
INPUTS = 2_000 if SHORT else 20_000  # of a target of cost 1 in one round
LEAST = 12


def main() -> int:
    options = _options()
    if options.replay:
        return _replay(Path(options.replay))
    began = time.monotonic()
    targets = [TARGET_OF_NAME[options.target]] if options.target else list(TARGETS)
    seed = options.seed if options.seed is not None else 1 if SHORT else random.SystemRandom().randrange(2**31)
    print(f"fuzz: seed {seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the lanes' processes end with this one
    folder = Path(options.findings)
    with (
        guided.start(options.target, seed, None if SHORT else options.seconds, folder) as guide,
        sanitized.start(options.target, seed, SHORT, folder) as native,
    ):
        inputs, findings = _search(targets, seed, options.rounds, None if SHORT else options.seconds, options.corpus)
        planted, missed = _controls(options.target, seed)
        lanes = [guide.finish(), native.finish()]
    planted, missed = planted + sum(lane.planted for lane in lanes), missed + sum(lane.missed for lane in lanes)
    for finding in findings:
        save(finding, folder)
    bad = len(findings) + sum(lane.findings for lane in lanes)
    engines = ", ".join(["line coverage with structured mutation", *(lane.engine for lane in lanes)])
    inputs += sum(lane.inputs for lane in lanes)
    print(
        f"fuzz: seed {seed}, {len(targets)} targets, {inputs:,} inputs, {bad} findings, "
        f"{planted - missed} of {planted} planted bugs caught, {time.monotonic() - began:.0f} s; engines: {engines}"
    )
    return 1 if bad or missed or any(lane.failed for lane in lanes) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument(
        "--seed", type=int, help="all inputs follow from it (default: drawn and printed; 1 with FUZZ_SHORT=1)"
    )
    parser.add_argument("--rounds", type=int, help="end after so many rounds over all targets")
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no new round after so long (default 600)")
    parser.add_argument("--target", choices=sorted(TARGET_OF_NAME), metavar="NAME", help="only this one")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps inputs which reached something new")
    parser.add_argument("--findings", default=ROOT / "build" / "fuzz" / "findings", help="where findings are saved")
    parser.add_argument("--replay", metavar="FILE", help="judge one saved input and end")
    return parser.parse_args()


def _search(
    targets: list[Target], seed: int, rounds: int | None, seconds: float | None, corpus: Path | None
) -> tuple[int, list[Finding]]:
    """Rounds until one of the limits, one if there is none; no finding is reported twice."""
    began, inputs, number = time.monotonic(), 0, 0
    findings: dict[tuple[str, str], Finding] = {}
    while number < (rounds or (1 if seconds is None else 2**31)):
        for target in targets:
            kept: list[bytes] = []
            statistics, found = search(
                target,
                seed=seed + number,
                inputs=max(LEAST, int(INPUTS / target.cost)),
                stop_at=3,
                corpus=_read(corpus, target),
                kept=kept,
            )
            inputs += statistics.inputs
            for finding in found:
                findings.setdefault((finding.target, finding.what), finding)
            _write(corpus, target, kept)
        number += 1
        if seconds is not None and time.monotonic() - began > seconds:
            break
    return inputs, list(findings.values())


def _read(corpus: Path | None, target: Target) -> list[bytes]:
    folder = None if corpus is None else corpus / target.name.replace("/", ".")
    return [] if folder is None or not folder.is_dir() else [path.read_bytes() for path in sorted(folder.iterdir())]


def _write(corpus: Path | None, target: Target, kept: list[bytes]) -> None:
    if corpus is None:
        return
    folder = corpus / target.name.replace("/", ".")
    folder.mkdir(parents=True, exist_ok=True)
    for data in kept:
        (folder / Finding(target.name, "", data).file_name).write_bytes(data)


def _controls(only: str | None, seed: int) -> tuple[int, int]:
    planted = missed = 0
    for control in controls.CONTROLS:
        if only and control.target != only:
            continue
        planted += 1
        if controls.caught(control, seed) is None:
            missed += 1
            print(f"fuzz: planted and NOT CAUGHT in {control.target}: {control.what}", file=sys.stderr)
    return planted, missed


def save(finding: Finding, folder: Path) -> None:
    """Keep the input of a finding and say how to see it again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / finding.file_name
    path.write_bytes(finding.input)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    print(f"fuzz: FINDING in {finding.target}: {finding.what}", file=sys.stderr)
    print(f"    PYTHONPATH=tests {_interpreter()} -m fuzz --replay {path}", file=sys.stderr, flush=True)


def _interpreter() -> str:
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else "python"


def target_of(path: Path) -> Target:
    """The target of a saved input: its file's name begins with it."""
    matching = [target for target in TARGETS if path.name.startswith(target.name.replace("/", ".") + "-")]
    if not matching:
        raise SystemExit(f"fuzz: the name of {path} does not begin with that of a target")
    return max(matching, key=lambda target: len(target.name))


def _replay(path: Path) -> int:
    if path.name.startswith("c."):
        return sanitized.replay(path)
    finding = replay(target_of(path), path.read_bytes())
    print(f"{path}: {'in order' if finding is None else finding.what}")
    return 0 if finding is None else 1


if __name__ == "__main__":
    sys.exit(main())
