"""Continuous health tests of raw QRNG bytes (NIST SP 800-90B, 4.4.1 and 4.4.2), without I/O.

A sample is a byte with `entropy_bits` of min-entropy. Both tests signal a failure when the count *reaches* its cutoff,
as step 4 of either algorithm has it ("If (B >= C)"); the reference implementations that compare with `>` are one
sample laxer.
"""

from enum import StrEnum
from fractions import Fraction
from math import ceil, comb, log2

import numpy as np
from numpy.typing import NDArray

from qkdnode.errors import LocalProtocolError

APT_WINDOW = 512  # 4.4.2 for samples of more than one bit
STARTUP_SAMPLES = 1024  # 4.3, requirement 4
DEFAULT_ALPHA = 2.0**-30

Samples = NDArray[np.uint8]


class HealthFailure(StrEnum):
    """Which test failed."""

    REPETITION = "repetition count test"
    PROPORTION = "adaptive proportion test"


def rct_cutoff(entropy_bits: float, alpha: float = DEFAULT_ALPHA) -> int:
    """C = 1 + ceil(-log2(alpha) / H): this many equal samples in a row fail (4.4.1)."""
    return 1 + ceil(-log2(alpha) / entropy_bits)


def apt_cutoff(entropy_bits: float, alpha: float = DEFAULT_ALPHA, window: int = APT_WINDOW) -> int:
    """C = 1 + critbinom(W, 2^-H, 1 - alpha): this many samples equal to the first of a window fail (4.4.2).

    critbinom is the smallest k with P(X <= k) >= 1 - alpha; summed in integers, from the rare end.
    """
    p = Fraction(2.0**-entropy_bits)
    hit, unit = p.as_integer_ratio()
    limit = Fraction(alpha) * unit**window
    k, beyond = window, 0
    while True:
        term = comb(window, k) * hit**k * (unit - hit) ** (window - k)
        if k == 0 or beyond + term > limit:
            return 1 + k
        beyond += term
        k -= 1


class HealthTests:
    """Both tests over one source, carried across chunk borders, and latched on failure.

    The first 1,024 samples after a (re)start are the start-up test: examined and discarded.
    """

    def __init__(self, *, entropy_bits: float, alpha: float = DEFAULT_ALPHA) -> None:
        if not 0 < entropy_bits <= 8:
            raise ValueError("a byte has between 0 and 8 bits of entropy")
        if not 0 < alpha < 1:
            raise ValueError("alpha is a probability")
        self.rct_cutoff = rct_cutoff(entropy_bits, alpha)
        self.apt_cutoff = apt_cutoff(entropy_bits, alpha)
        self.samples = 0
        self.failures = dict.fromkeys(HealthFailure, 0)
        self._failure: HealthFailure | None = None
        self._begin()

    def _begin(self) -> None:
        self._startup_left = STARTUP_SAMPLES
        self._run_value = -1
        self._run_length = 0
        self._window_value = -1
        self._window_count = 0
        self._window_left = 0

    @property
    def failure(self) -> HealthFailure | None:
        return self._failure

    @property
    def started(self) -> bool:
        """Whether the start-up test is passed and nothing has failed since."""
        return self._failure is None and self._startup_left == 0

    def restart(self, *, acknowledge: bool = False) -> None:
        """Back to the start-up test. A failure is only cleared when it is acknowledged."""
        if self._failure is not None and not acknowledge:
            raise LocalProtocolError(f"the {self._failure} has failed: restart only with an acknowledgement")
        self._failure = None
        self._begin()

    def examine(self, samples: Samples) -> Samples:
        """The view of `samples` that may be used: nothing after a failure, nothing of the start-up test."""
        if self._failure is not None or samples.size == 0:
            return samples[:0]
        self.samples += samples.size
        if self._repeats(samples):
            return self._fail(HealthFailure.REPETITION, samples)
        if self._dominates(samples):
            return self._fail(HealthFailure.PROPORTION, samples)
        skipped = min(self._startup_left, samples.size)
        self._startup_left -= skipped
        return samples[skipped:]

    def _fail(self, failure: HealthFailure, samples: Samples) -> Samples:
        self._failure = failure
        self.failures[failure] += 1
        return samples[:0]

    def _repeats(self, samples: Samples) -> bool:
        changes = np.flatnonzero(samples[1:] != samples[:-1]) + 1
        lengths = np.diff(changes, prepend=0, append=samples.size)
        if samples[0] == self._run_value:
            lengths[0] += self._run_length
        self._run_value = int(samples[-1])
        self._run_length = int(lengths[-1])
        return bool(lengths.max() >= self.rct_cutoff)

    def _dominates(self, samples: Samples) -> bool:
        head, rest = samples[: self._window_left], samples[self._window_left :]
        self._window_left -= head.size
        self._window_count += int(np.count_nonzero(head == self._window_value))
        highest = self._window_count
        whole = rest.size - rest.size % APT_WINDOW
        if whole:
            windows = rest[:whole].reshape(-1, APT_WINDOW)
            highest = max(highest, int(np.count_nonzero(windows == windows[:, :1], axis=1).max()))
        tail = rest[whole:]
        if tail.size:
            self._window_value = int(tail[0])
            self._window_count = int(np.count_nonzero(tail == self._window_value))
            self._window_left = APT_WINDOW - tail.size
            highest = max(highest, self._window_count)
        return highest >= self.apt_cutoff
