"""How fast a link goes: the differences of its counters over the last minutes."""

from collections import deque

import msgspec

from qkdnode.link.statistics import LinkStatistics

SAMPLE_NS = 5 * 10**9
RATE_NS = 300 * 10**9  # of key
SPENDING_NS = 3600 * 10**9  # of authentication key: a session's opening is spread over what follows
LEAST_NS = 10**9
LEAST_SPENDING_NS = 60 * 10**9
DAY_NS = 86_400 * 10**9


class Sample(msgspec.Struct, frozen=True):
    """The counters at one moment of a clock that does not step."""

    at_ns: int
    sifted_bits: int
    secret_bits: int
    verified_bits: int
    errors: int
    x_bits: int
    x_errors: int
    spent_bits: int


class Rates:
    """Of one link. Each method gives None while there is too little to tell."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def take(self, now_ns: int, counts: LinkStatistics) -> None:
        """Remember the counters; more often than every 5 s only the newest is replaced."""
        sample = Sample(
            now_ns,
            counts.sifted_bits,
            counts.secret_bits,
            counts.verified_bits,
            counts.errors,
            counts.x_bits,
            counts.x_errors,
            counts.auth_spent_bits,
        )
        samples = self._samples
        if len(samples) > 1 and samples[-1].at_ns - samples[-2].at_ns < SAMPLE_NS:
            samples.pop()
        samples.append(sample)
        while samples[0].at_ns < now_ns - SPENDING_NS:
            samples.popleft()

    @property
    def sifted_bps(self) -> float | None:
        """Sifted bits per second."""
        return self._per_s("sifted_bits")

    @property
    def secret_bps(self) -> float | None:
        """The secret key rate: stock and refill, in bits per second."""
        return self._per_s("secret_bits")

    @property
    def qber(self) -> float | None:
        """Errors among the corrected bits; before the first Block those of the test basis."""
        ends = self._ends(RATE_NS, LEAST_NS)
        if ends is None:
            return None
        first, last = ends
        if last.verified_bits > first.verified_bits:
            return (last.errors - first.errors) / (last.verified_bits - first.verified_bits)
        if last.x_bits > first.x_bits:
            return (last.x_errors - first.x_errors) / (last.x_bits - first.x_bits)
        return None

    def days_left(self, reserve_bits: int) -> float | None:
        """How long authentication key lasts if it is spent as in the last hour and never refilled.

        None before a minute is over, and while nothing is spent.
        """
        ends = self._ends(SPENDING_NS, LEAST_SPENDING_NS)
        if ends is None or ends[1].spent_bits == ends[0].spent_bits:
            return None
        first, last = ends
        per_day = (last.spent_bits - first.spent_bits) * DAY_NS / (last.at_ns - first.at_ns)
        return reserve_bits / per_day

    def _per_s(self, name: str) -> float | None:
        ends = self._ends(RATE_NS, LEAST_NS)
        if ends is None:
            return None
        first, last = ends
        difference: int = getattr(last, name) - getattr(first, name)
        return difference * 1e9 / (last.at_ns - first.at_ns)

    def _ends(self, window_ns: int, least_ns: int) -> tuple[Sample, Sample] | None:
        if not self._samples:
            return None
        last = self._samples[-1]
        first = next(sample for sample in self._samples if sample.at_ns >= last.at_ns - window_ns)
        return (first, last) if last.at_ns - first.at_ns >= least_ns else None
