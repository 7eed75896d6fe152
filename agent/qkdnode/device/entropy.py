"""The entropy pool: the one place where the agent's random numbers come from.

QRNG bytes pass the health tests and a Toeplitz extractor, wait in locked memory, and are handed out once, each mixed
with a byte of the operating system. The operating system alone is never enough: without a healthy QRNG the pool
refuses.
"""

import os
import threading
import traceback
from collections.abc import Callable
from enum import StrEnum
from math import floor
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from qkdnode.device.health_tests import DEFAULT_ALPHA, HealthTests
from qkdnode.errors import EntropyShortError, NoEntropyError
from qkdnode.native.secret import SecretBuffer, WorkingBuffer, wipe

EXTRACTOR_INPUT_BITS = 8192
EXTRACTOR_INPUT_BYTES = EXTRACTOR_INPUT_BITS // 8
EPSILON_LOG2 = -64  # distance from uniform of one extracted block
DEFAULT_CAPACITY_BYTES = 2 << 20
DEFAULT_ENTROPY_BITS = 6.0
TURN_S = 0.05  # a draw that need not wait for the QRNGs takes microseconds, so its turn is worth waiting for

Bytes = NDArray[np.uint8]


class Extractor(Protocol):
    """A seeded linear hash that may be applied again and again (qkdnode.native.toeplitz.Toeplitz with uses=None)."""

    def load_seed(self, seed: Buffer) -> None: ...
    def apply(self, source: Buffer, out: Buffer) -> None: ...


def extracted_bits(entropy_bits: float) -> int:
    """Whole bytes, in bits, of n H / 8 - 2 log2(1/eps) out of n raw bits (leftover hash lemma)."""
    bits = floor(EXTRACTOR_INPUT_BITS * entropy_bits / 8 + 2 * EPSILON_LOG2) // 8 * 8
    if bits <= 0:
        raise ValueError(f"{entropy_bits} bits of entropy per byte are too few to extract from")
    return bits


class SourceState(StrEnum):
    """Where a source stands. Only HEALTHY ones count; what FAILED ones gave is discarded."""

    STARTING = "starting"
    HEALTHY = "healthy"
    LOST = "lost"
    FAILED = "failed"


class SourceStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One QRNG's share in the pool."""

    serial: str
    state: SourceState
    reason: str
    raw_bytes: int
    conditioned_bytes: int
    discarded_bytes: int
    overflow_bytes: int
    available_bytes: int


class PoolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The pool as a whole and per source."""

    healthy: bool
    available_bytes: int
    drawn_bytes: int
    refusals: int
    sources: tuple[SourceStatistics, ...]


class Ring:
    """First-in first-out bytes in locked memory; what is taken or dropped is wiped. The pool's lock guards it."""

    def __init__(self, capacity_bytes: int) -> None:
        self._memory = SecretBuffer(capacity_bytes)
        self._bytes: Bytes = np.frombuffer(memoryview(self._memory), np.uint8)
        self._start = 0
        self.held = 0

    @property
    def room(self) -> int:
        return self._bytes.size - self.held

    def _parts(self, start: int, count: int) -> list[Bytes]:
        start %= self._bytes.size
        first = min(count, self._bytes.size - start)
        return [self._bytes[start : start + first], self._bytes[: count - first]]

    def put(self, data: Bytes) -> None:
        at = 0
        for part in self._parts(self._start + self.held, data.size):
            part[:] = data[at : at + part.size]
            at += part.size
        self.held += data.size

    def mix_into(self, out: Bytes) -> None:
        """XOR the oldest bytes onto `out` and wipe them here."""
        at = 0
        for part in self._parts(self._start, out.size):
            mixed = out[at : at + part.size]
            np.bitwise_xor(mixed, part, out=mixed)
            wipe(part.data)
            at += part.size
        self._start = (self._start + out.size) % self._bytes.size
        self.held -= out.size

    def clear(self) -> int:
        """Wipe everything; how much was held."""
        dropped = self.held
        wipe(self._bytes.data)
        self._start = self.held = 0
        return dropped


class Source:
    """One QRNG's way into the pool. Made by `EntropyPool.attach`; `push` belongs to one thread."""

    def __init__(self, pool: "EntropyPool", serial: str, entropy_bits: float, alpha: float) -> None:
        bits_out = extracted_bits(entropy_bits)
        self.serial = serial
        self.tests = HealthTests(entropy_bits=entropy_bits, alpha=alpha)
        self.ring = Ring(pool.capacity_bytes)
        self.state = SourceState.STARTING
        self.reason = ""
        self.raw_bytes = self.conditioned_bytes = self.discarded_bytes = self.overflow_bytes = 0
        self._pool = pool
        self._extractor = pool.seeded_extractor(bits_out)
        self._block: Bytes = np.frombuffer(memoryview(WorkingBuffer(EXTRACTOR_INPUT_BYTES)), np.uint8)
        self._block_filled = 0
        self._extracted: Bytes = np.frombuffer(memoryview(WorkingBuffer(bits_out // 8)), np.uint8)

    @property
    def healthy(self) -> bool:
        return self.state is SourceState.HEALTHY

    def push(self, raw: Buffer) -> None:
        """Examine raw bytes and condition them. The caller wipes `raw`."""
        samples: Bytes = np.frombuffer(memoryview(raw), np.uint8)
        with self._pool.changing():
            if self.state in (SourceState.FAILED, SourceState.LOST):
                return
            self.raw_bytes += samples.size
            usable = self.tests.examine(samples)
            if self.tests.failure is not None:
                self._fail(str(self.tests.failure))
                return
            if self.tests.started:
                self.state = SourceState.HEALTHY
            self._condition(usable)

    def _condition(self, usable: Bytes) -> None:
        while usable.size:
            if self._block_filled == 0 and usable.size >= EXTRACTOR_INPUT_BYTES:
                self._extract(usable[:EXTRACTOR_INPUT_BYTES])
                usable = usable[EXTRACTOR_INPUT_BYTES:]
                continue
            part = usable[: EXTRACTOR_INPUT_BYTES - self._block_filled]
            self._block[self._block_filled : self._block_filled + part.size] = part
            self._block_filled += part.size
            usable = usable[part.size :]
            if self._block_filled == EXTRACTOR_INPUT_BYTES:
                self._extract(self._block)
                self._drop_block()

    def _extract(self, block: Bytes) -> None:
        if self.ring.room < self._extracted.size:
            self.overflow_bytes += self._extracted.size
            return
        self._extractor.apply(block.data, self._extracted.data)
        self.ring.put(self._extracted)
        wipe(self._extracted.data)
        self.conditioned_bytes += self._extracted.size

    def _drop_block(self) -> None:
        wipe(self._block.data)
        self._block_filled = 0

    def _fail(self, reason: str) -> None:
        self.state, self.reason = SourceState.FAILED, reason
        self._drop_block()
        self.discarded_bytes += self.ring.clear()

    def skip(self) -> None:
        """The raw stream has a gap here: no block is spliced across it."""
        with self._pool.changing():
            self._drop_block()

    def fail(self, reason: str) -> None:
        """Latch a failure; everything of this source not yet drawn is discarded at once."""
        with self._pool.changing():
            self._fail(reason)

    def lose(self, reason: str) -> None:
        """The device is away: what it gave stays good, but it no longer counts as a healthy source."""
        with self._pool.changing():
            self._drop_block()
            if self.state is not SourceState.FAILED:
                self.state, self.reason = SourceState.LOST, reason

    def restart(self, *, acknowledge: bool = False) -> bool:
        """Begin with the start-up test (at each opening). False: a failure is latched and not acknowledged."""
        with self._pool.changing():
            if self.state is SourceState.FAILED and not acknowledge:
                return False
            self.tests.restart(acknowledge=True)
            self._drop_block()
            self.state, self.reason = SourceState.STARTING, ""
            return True

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(
            serial=self.serial,
            state=self.state,
            reason=self.reason,
            raw_bytes=self.raw_bytes,
            conditioned_bytes=self.conditioned_bytes,
            discarded_bytes=self.discarded_bytes,
            overflow_bytes=self.overflow_bytes,
            available_bytes=self.ring.held,
        )


class Changing:
    """The pool's lock, held for one change; the callback runs after it is given back."""

    def __init__(self, pool: "EntropyPool") -> None:
        self._pool = pool

    def __enter__(self) -> None:
        self._pool.condition.acquire()

    def __exit__(self, *exception: object) -> None:
        pool = self._pool
        healthy = pool.healthy
        told, pool.last_told = pool.last_told, healthy
        pool.condition.notify_all()
        pool.condition.release()
        if healthy != told and pool.on_change is not None:
            pool.on_change(healthy)


class EntropyPool:
    """Conditioned QRNG bytes of all attached sources; thread-safe.

    `extractor(bits_in, bits_out)` makes an extractor; its seed comes from the operating system once, at attachment, and
    is kept: the extractor is strong, so a seed independent of the source may serve for ever. Each source has locked
    memory for `capacity_bytes`.
    """

    def __init__(
        self,
        *,
        extractor: Callable[[int, int], Extractor],
        capacity_bytes: int = DEFAULT_CAPACITY_BYTES,
        on_change: Callable[[bool], None] | None = None,
        os_random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if capacity_bytes < 2 * EXTRACTOR_INPUT_BYTES:
            raise ValueError("the pool needs room for at least two extracted blocks")
        self.capacity_bytes = capacity_bytes
        self.on_change = on_change
        self.condition = threading.Condition()
        self.last_told = False
        self.drawn_bytes = 0
        self.refusals = 0
        self._turn = threading.Lock()
        self._make_extractor = extractor
        self._os_random = os_random
        self._sources: list[Source] = []

    def changing(self) -> Changing:
        return Changing(self)

    def seeded_extractor(self, bits_out: int) -> Extractor:
        """An extractor under a fresh seed, of the n + m - 1 bits that any Toeplitz family is content with."""
        extractor = self._make_extractor(EXTRACTOR_INPUT_BITS, bits_out)
        with SecretBuffer.copy_of(self._os_random((EXTRACTOR_INPUT_BITS + bits_out) // 8)) as seed:
            extractor.load_seed(seed)
        return extractor

    def attach(
        self, serial: str, *, entropy_bits: float = DEFAULT_ENTROPY_BITS, alpha: float = DEFAULT_ALPHA
    ) -> Source:
        """A new source; `entropy_bits` is its assessed min-entropy per raw byte."""
        source = Source(self, serial, entropy_bits, alpha)
        with self.changing():
            self._sources.append(source)
        return source

    @property
    def healthy(self) -> bool:
        """Whether at least one source is attached and healthy now."""
        return any(source.healthy for source in self._sources)

    @property
    def available_bytes(self) -> int:
        return sum(source.ring.held for source in self._sources)

    def draw(self, nbytes: int, *, wait_s: float = 0.0) -> SecretBuffer:
        """A new buffer of random bytes, the caller's to release."""
        buffer = SecretBuffer(nbytes)
        self.draw_into(buffer, wait_s=wait_s)
        return buffer

    def draw_into(self, buffer: Buffer, *, wait_s: float = 0.0) -> None:
        """Fill a writable buffer; each piece of it waits up to `wait_s` for the QRNGs.

        NoEntropyError when no source is healthy, at once; EntropyShortError when too little has come in time. `buffer`
        is zero then.
        Up to half the capacity is given whole or not at all; what a larger draw has used before it fails is lost.
        """
        with memoryview(buffer) as view:
            if view.readonly:
                raise TypeError("random bytes are drawn into a writable buffer")
        if not self._turn.acquire(timeout=max(wait_s, TURN_S)):
            self._refuse(f"another draw is waiting for the QRNGs since {wait_s} s", EntropyShortError)
        out: Bytes = np.frombuffer(memoryview(buffer), np.uint8)
        try:
            for at in range(0, out.size, self.capacity_bytes // 2):
                self._draw_piece(out[at : at + self.capacity_bytes // 2], wait_s)
        except BaseException as error:
            wipe(out.data)
            traceback.clear_frames(error.__traceback__)  # views held there would keep the owner from releasing it
            raise
        finally:
            del out
            self._turn.release()

    def _draw_piece(self, out: Bytes, wait_s: float) -> None:
        with self.condition:
            self.condition.wait_for(lambda: not self.healthy or self.available_bytes >= out.size, wait_s)
            if not self.healthy:
                self._refuse(self._ill())
            if self.available_bytes < out.size:
                self._refuse(
                    f"{out.size} random bytes are wanted, {self.available_bytes} are there after {wait_s} s: "
                    "the QRNGs are slower than the demand",
                    EntropyShortError,
                )
            # An ordinary heap copy: without the QRNG's byte, which is wiped, it says nothing about the result.
            out[:] = np.frombuffer(self._os_random(out.size), np.uint8)
            at = 0
            for source in sorted(self._sources, key=lambda source: source.ring.held, reverse=True):
                part = out[at : at + min(source.ring.held, out.size - at)]
                source.ring.mix_into(part)
                at += part.size
            self.drawn_bytes += out.size

    def _ill(self) -> str:
        if not self._sources:
            return "no QRNG is attached: random numbers are refused; configure one"
        states = ", ".join(f"{s.serial} {s.state}{f' ({s.reason})' if s.reason else ''}" for s in self._sources)
        return f"no QRNG is healthy: random numbers are refused; check {states}"

    def _refuse(self, why: str, error: type[NoEntropyError] = NoEntropyError) -> None:
        self.refusals += 1
        raise error(why)

    def statistics(self) -> PoolStatistics:
        with self.condition:
            return PoolStatistics(
                healthy=self.healthy,
                available_bytes=self.available_bytes,
                drawn_bytes=self.drawn_bytes,
                refusals=self.refusals,
                sources=tuple(source.statistics() for source in self._sources),
            )
