"""The search: inputs that reach new lines, or draw a new answer, are kept and mutated further.

Coverage is the lines of the target's own modules (`sys.settrace`), beside what the target says of itself and the
wording of refusals with the values taken out: msgspec is C, and its messages tell how deep an input came. Everything
follows from the seed and the number of rounds, but for the bytes of ML-DSA-44 signatures, which OpenSSL draws anew each
time; only the guard against endless loops looks at a clock.
"""

import hashlib
import random
import re
import signal
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Hashable, Iterable
from types import CodeType, FrameType
from typing import Any

import msgspec

from fuzz.mutation import Mutator, as_bytes

SECONDS_PER_INPUT = 1.0  # of this thread's CPU time
SECONDS_PER_BYTE = 20e-6
BYTES_PER_INPUT = 4 << 20
BYTES_PER_BYTE = 256
RUNAWAY_S = 10.0  # of CPU time, after which an input is given up
KEPT_LIMIT = 2_000


class Violation(Exception):
    """An invariant of a target that an input breaks."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One parser and what holds for it.

    `run(input)` parses, checks the invariants (Violation or any exception that is not `allowed` is a finding) and gives
    features of what it met. `decoders` are the functions that it must reach, as "module.function" under qkdnode. `cost`
    is how many inputs of an average target one of this takes.
    """

    name: str
    run: Callable[[bytes], Iterable[Hashable] | None]
    seeds: Callable[[], list[bytes]]
    mutators: tuple[Mutator, ...]
    allowed: tuple[type[Exception], ...]
    modules: tuple[str, ...]
    decoders: tuple[str, ...]
    cost: float = 1.0
    max_bytes: int = 1 << 16
    memory: int = BYTES_PER_INPUT


class Finding(msgspec.Struct, frozen=True):
    """An input that a parser does not take as it must."""

    target: str
    what: str
    input: bytes

    @property
    def file_name(self) -> str:
        """Where the input is saved."""
        return f"{self.target.replace('/', '.')}-{hashlib.sha256(self.input).hexdigest()[:12]}.input"


class Statistics(msgspec.Struct):
    """Of one target."""

    inputs: int = 0
    refused: int = 0
    kept: int = 0
    lines: int = 0


class Runaway(BaseException):
    """Not an Exception: no parser's own handler may swallow it."""


_VALUES = re.compile(r"0x[0-9a-f]+|[0-9]+|'[^']*'|\"[^\"]*\"|`[^`]*`")


def wording(error: BaseException) -> str:
    """The message of an error without the values in it."""
    return f"{type(error).__name__}: {_VALUES.sub('~', str(error))[:200]}"


class Tracer:
    """The lines of some modules' files that were executed, as a set of (code, line)."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._files = {sys.modules[name].__file__ for name in modules}
        self._wanted: dict[CodeType, bool] = {}
        self.lines: set[tuple[CodeType, int]] = set()

    def __enter__(self) -> None:
        threading.settrace(self._enter)  # a vault works in a thread of its own, which the input starts
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        wanted = self._wanted.get(code)
        if wanted is None:
            wanted = self._wanted[code] = code.co_filename in self._files
        if not wanted:
            return None
        self.lines.add((code, frame.f_lineno))
        return self._line

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.lines.add((frame.f_code, frame.f_lineno))
        return self._line


def _give_up(*_: object) -> None:
    raise Runaway


class Judge:
    """Runs inputs of one target under its limits; the one place that says what is a finding."""

    def __init__(self, target: Target, *, traced: bool = True) -> None:
        self.target = target
        self.tracer = Tracer(target.modules) if traced else None
        self.statistics = Statistics()
        self._seen: set[Hashable] = set()

    def try_input(self, data: bytes) -> tuple[bool, Finding | None]:
        """Whether the input reached anything new, and what is wrong with how it was taken."""
        target, features = self.target, set[Hashable]()
        before = len(self.tracer.lines) if self.tracer else 0
        fault: str | None = None
        began, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        limit_s = SECONDS_PER_INPUT * max(1.0, target.cost / 50) + SECONDS_PER_BYTE * len(data)
        start = time.thread_time()
        try:
            if self.tracer is None:
                features.update(target.run(data) or ())
            else:
                with self.tracer:
                    features.update(target.run(data) or ())
        except target.allowed as error:
            self.statistics.refused += 1
            features.add(wording(error))
        except Runaway:
            fault = f"no end within {RUNAWAY_S:g} s of CPU time"
        except Exception as error:
            where = _innermost(error)
            fault = f"{wording(error)} at {where}" if not isinstance(error, Violation) else f"violated: {error}"
        spent = time.thread_time() - start
        _, peak = tracemalloc.get_traced_memory()
        self.statistics.inputs += 1
        if fault is None and spent > limit_s:
            fault = f"{spent:.1f} s of CPU time for {len(data)} bytes"
        if fault is None and peak - began > target.memory + BYTES_PER_BYTE * len(data):
            fault = f"{(peak - began) >> 10} KiB of memory for {len(data)} bytes"
        fresh = not features <= self._seen
        self._seen |= features
        if self.tracer:
            fresh = fresh or len(self.tracer.lines) > before
            self.statistics.lines = len(self.tracer.lines)
        return fresh, None if fault is None else Finding(target.name, fault, data)


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "?"
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"


class Guard:
    """Interrupts an input that never ends; CPU time, so that a busy machine does not."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGVTALRM, _give_up)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, self._before)

    @staticmethod
    def arm() -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, RUNAWAY_S)


def search(
    target: Target,
    *,
    seed: int,
    inputs: int,
    corpus: Iterable[bytes] = (),
    kept: list[bytes] | None = None,
    stop_at: int = 1,
) -> tuple[Statistics, list[Finding]]:
    """Try the seeds, then `inputs` mutations. Ends early at `stop_at` findings of different wording.

    `kept`, if given, receives every input that reached something new.
    """
    rng = random.Random(f"{seed} {target.name}")
    judge = Judge(target)
    pool = [*target.seeds(), *corpus]
    first = len(pool)
    findings: dict[str, Finding] = {}

    def attempt(data: bytes) -> bool:
        guard.arm()
        fresh, finding = judge.try_input(data)
        if finding is not None:
            findings.setdefault(finding.what, finding)
        return fresh

    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        with (guard := Guard()):
            for data in pool:
                attempt(data)
            for _ in range(inputs):
                if len(findings) >= stop_at:
                    break
                # The seeds, few and sound; the newest, for what was reached last is least explored; any other.
                data = rng.choice(rng.choice((pool[:first], pool[-8:], pool)))
                for _ in range(rng.choice((1, 1, 1, 2, 3))):
                    mutate = rng.choice(target.mutators) if rng.random() < 0.8 else as_bytes
                    data = mutate(rng, data)[: target.max_bytes]
                if attempt(data) and len(pool) < KEPT_LIMIT:
                    pool.append(data)
                    if kept is not None:
                        kept.append(data)
                    judge.statistics.kept += 1
    finally:
        if started:
            tracemalloc.stop()
    return judge.statistics, list(findings.values())


def replay(target: Target, data: bytes) -> Finding | None:
    """Judge one input."""
    judge = Judge(target, traced=False)
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        with (guard := Guard()):
            guard.arm()
            return judge.try_input(data)[1]
    finally:
        if started:
            tracemalloc.stop()
