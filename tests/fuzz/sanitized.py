"""The parsers of the C core under gcc's address and undefined-behaviour sanitizers, guided by the edges they reach.

Each is compiled from the tree with a driver that reads inputs from a pipe, so that Python's mutators serve here too.
Once more each is compiled with a check taken out of its source, and the sanitizers must find that.
"""

import hashlib
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from fuzz import devices, kernels
from fuzz.lanes import Lane
from fuzz.mutation import Mutator, as_bytes, as_packets

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent / "native"
BUILD = ROOT / "build" / "fuzz" / "native"
COMPILE = (
    "-g",
    "-O1",
    "-std=gnu11",
    "-fno-omit-frame-pointer",
    "-fno-strict-aliasing",
    "-fno-sanitize-recover=all",
    "-fsanitize=address,undefined",
    "-U__gnu_linux__",
)
# Without the last there is one kernel for all CPUs: the loader asks which one to take before the sanitizer is up.
ENVIRONMENT = {
    "ASAN_OPTIONS": "abort_on_error=0:detect_leaks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
LENGTH = struct.Struct("<I")
ANSWER_S = 20.0
PLANTED_INPUTS = 40_000  # a planted bug takes one or two thousand, now and then several times that


class Bug(msgspec.Struct, frozen=True):
    """A check taken out of a source file."""

    what: str
    source: str
    old: str
    new: str


class Parser(msgspec.Struct, frozen=True, kw_only=True):
    """One parser of the C core."""

    name: str
    sources: tuple[str, ...]
    seeds: Callable[[], list[bytes]]
    mutators: tuple[Mutator, ...]
    share: float  # of the inputs
    bugs: tuple[Bug, ...]


def _sifting_seeds() -> list[bytes]:
    lists = [b"\0" + seed for seed in kernels.list_seeds()]
    return [*lists, b"\1" + struct.pack("<H", 9) + b"\x55\1\x0f\0\xff\1" + bytes([0x44, 0x44, 4, 9])]


def _cascade_seeds() -> list[bytes]:
    return [seed[:6] + b"\7" + seed[6:] for seed in kernels.cascade_seeds()]


PARSERS = (
    Parser(
        name="packets",
        sources=("ext/packets/packets_scan.c",),
        seeds=devices.packet_seeds,
        mutators=(as_packets,),
        share=1.0,
        bugs=(
            Bug(
                "a packet may claim more tags than it holds",
                "ext/packets/packets_scan.c",
                "count > QKN_PACKET_RECORDS",
                "0",
            ),
            Bug(
                "a read's end is looked past",
                "ext/packets/packets_scan.c",
                "part = part < bytes ? part : bytes;",
                "part = part < bytes + 1 ? part : bytes + 1;",
            ),
        ),
    ),
    Parser(
        name="sifting",
        sources=("ext/sifting/sift_window.c",),
        seeds=_sifting_seeds,
        mutators=(as_bytes,),
        share=1.0,
        bugs=(
            Bug(
                "a slot beyond the Window is looked up",
                "ext/sifting/sift_window.c",
                "if (slot >= window_slots)",
                "if (0)",
            ),
            Bug("a distance goes on past the list", "ext/sifting/sift_window.c", "n < available && n < 5", "n < 5"),
        ),
    ),
    Parser(
        name="cascade",
        sources=("ext/cascade/cascade_role.c", "ext/cascade/draws.c", "ext/cascade/slices.c"),
        seeds=_cascade_seeds,
        mutators=(as_bytes,),
        share=0.15,
        bugs=(
            Bug(
                "parities may be fewer than were asked for",
                "ext/cascade/cascade_role.c",
                "if (bytes != (sent_bits + 7) / 8)",
                "if (0)",
            ),
        ),
    ),
)


class Unbuilt(Exception):
    """The driver could not be compiled."""


def build(parser: Parser, bug: Bug | None = None) -> Path:
    """The driver of a parser, compiled anew only if a source has changed."""
    compiler = os.environ.get("CC") or "gcc"
    units = {name: (ROOT / name).read_text() for name in parser.sources}
    if bug is not None:
        if units[bug.source].count(bug.old) != 1:
            raise Unbuilt(f"{bug.source} does not read {bug.old!r} once: bring the planted bug up to date")
        units[bug.source] = units[bug.source].replace(bug.old, bug.new)
    digest = hashlib.sha256(repr((compiler, COMPILE, sorted(units.items()))).encode())
    folders = sorted({(ROOT / name).parent for name in parser.sources})
    for path in [*sorted(HERE.iterdir()), *(header for folder in folders for header in sorted(folder.glob("*.h")))]:
        digest.update(path.read_bytes())
    program = BUILD / f"{parser.name}-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    place = BUILD / f"{program.name}.{os.getpid()}"
    place.mkdir(parents=True)
    try:
        objects = []
        include = [f"-I{folder}" for folder in (HERE, ROOT / "ext/common", *folders)]
        for name, text in units.items():
            unit = place / Path(name).name
            unit.write_text(text)
            objects.append(_compile(compiler, unit, include, "-fsanitize-coverage=trace-pc"))
        for name in (f"{parser.name}.c", "driver.c", "coverage.c"):
            objects.append(_compile(compiler, HERE / name, include, output=place / f"main-{name}.o"))
        _run([compiler, *COMPILE, *map(str, objects), "-o", str(place / "program")])
        (place / "program").rename(program)
    finally:
        shutil.rmtree(place)
    return program


def _compile(compiler: str, unit: Path, include: list[str], *more: str, output: Path | None = None) -> Path:
    output = output or unit.with_suffix(".o")
    _run([compiler, *COMPILE, *more, *include, "-c", str(unit), "-o", str(output)])
    return output


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except OSError as error:
        raise Unbuilt(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise Unbuilt(
            f"{command[0]} fails: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else done.returncode}"
        )


class Driver:
    """A running driver."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", ""), **ENVIRONMENT},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def try_input(self, data: bytes) -> int | None:
        """New edges that the input reached; None if it ended or hung the driver."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(ANSWER_S, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(LENGTH.pack(len(data)) + data)
            self._process.stdin.flush()
            answer = self._process.stdout.read(LENGTH.size)
        except BrokenPipeError:
            return None
        finally:
            watchdog.cancel()
        return LENGTH.unpack(answer)[0] if len(answer) == LENGTH.size else None

    def last_words(self) -> str:
        """What the sanitizer says, in a line."""
        _, said = self._process.communicate(timeout=ANSWER_S)
        lines = said.decode("utf-8", "replace").splitlines()
        telling = [line for line in lines if "ERROR:" in line or "runtime error:" in line or "SUMMARY:" in line]
        return telling[0].strip()[:200] if telling else f"ended with status {self._process.returncode}"


def hunt(parser: Parser, program: Path, seed: int, inputs: int) -> tuple[int, bytes | None, str]:
    """Inputs tried, and the first that ends the driver with its last words."""
    rng = random.Random(f"{seed} {parser.name}")
    pool = parser.seeds()
    first, tried = len(pool), 0
    with Driver(program) as driver:
        for number in range(first + inputs):
            if number < first:
                data = pool[number]
            else:
                data = rng.choice(rng.choice((pool[:first], pool[-8:], pool)))
                for _ in range(rng.choice((1, 1, 2, 3))):
                    data = (rng.choice(parser.mutators) if rng.random() < 0.8 else as_bytes)(rng, data)[: 1 << 14]
            fresh = driver.try_input(data)
            tried += 1
            if fresh is None:
                return tried, data, driver.last_words()
            if fresh and number >= first:
                pool.append(data)
    return tried, None, ""


class start:
    """The lane in a thread of its own: its work is done by the drivers' processes."""

    def __init__(self, only: str | None, seed: int, short: bool, folder: Path) -> None:
        self._lane = Lane(engine="gcc address and undefined sanitizers with edge coverage")
        self._seed, self._inputs, self._folder = seed, 4_000 if short else 150_000, folder
        self._thread = None if only else threading.Thread(target=self._work)
        if only:
            self._lane.engine = "C core left out (--target)"

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def finish(self) -> Lane:
        """Wait for the lane."""
        if self._thread is not None:
            self._thread.join()
        return self._lane

    def _work(self) -> None:
        lane = self._lane
        if shutil.which(os.environ.get("CC") or "gcc") is None:
            lane.engine = "C core without sanitizers (no gcc; through its Python targets alone)"
            return
        try:
            for parser in PARSERS:
                self._hunt(parser)
        except (Unbuilt, subprocess.SubprocessError, OSError) as error:
            lane.failed = True
            lane.engine = f"C core NOT fuzzed ({error})"

    def _hunt(self, parser: Parser) -> None:
        lane = self._lane
        inputs = int(self._inputs * parser.share)
        tried, found, words = hunt(parser, build(parser), self._seed, inputs)
        lane.inputs += tried
        if found is not None:
            lane.findings += 1
            save(parser, found, words, self._folder)
        for bug in parser.bugs:
            lane.planted += 1
            program = build(parser, bug)
            tried, found, _ = hunt(parser, program, self._seed, PLANTED_INPUTS)
            lane.inputs += tried
            if found is None:
                lane.missed += 1
                print(f"fuzz: planted and NOT CAUGHT in {bug.source}: {bug.what}", file=sys.stderr)


def save(parser: Parser, data: bytes, words: str, folder: Path) -> None:
    """Keep the input of a finding and say how to see it again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"c.{parser.name}-{hashlib.sha256(data).hexdigest()[:12]}.input"
    path.write_bytes(data)
    print(
        f"fuzz: FINDING in the C core's {parser.name}: {words}\n    PYTHONPATH=tests python -m fuzz --replay {path}",
        file=sys.stderr,
    )


def replay(path: Path) -> int:
    """Judge one saved input; 1 if the sanitizers object."""
    parser = next(parser for parser in PARSERS if path.name.startswith(f"c.{parser.name}-"))
    with Driver(build(parser)) as driver:
        if driver.try_input(path.read_bytes()) is not None:
            print(f"{path}: in order")
            return 0
        print(f"{path}: {driver.last_words()}")
        return 1
