"""A link's counts, Window by Window and Block by Block, as findings: the code of an alarm and what was seen.

Counts only, never bits. Of secret bits at most a share is told, in whole percent and over thousands of them.
"""

from collections.abc import Sequence
from math import ceil

import msgspec

from qkdnode.distill.quality.drift import Drift
from qkdnode.distill.quality.limits import Range, States

BLOCK_BITS = 4_096  # sampled bits, or detections, that a judgement takes at least
BLOCK_S = 5.0  # and the time that it takes at least
QBER_WANDER = 5e-4
RATE_WANDER = 0.01
DETECTORS = ("Z0", "Z1", "X0", "X1")
Detections = tuple[int, int, int, int]


class Limits(msgspec.Struct, frozen=True):
    """What an operator says of a link; shares of one."""

    expected_qber: float | None = None  # None: learnt
    bit_bias: float = 0.05  # distance of the share of ones from a half
    basis_bias: float = 0.05  # distance of the share of detections in X from that of the receiver's choice
    double_clicks: tuple[float, float] = (0.0, 0.005)  # share of detections


class Finding(msgspec.Struct, frozen=True):
    """Something an operator should know."""

    code: str
    detail: str


class _Block:
    """Counts summed over Windows until there are enough to judge."""

    def __init__(self, size: int, windows: int) -> None:
        self._size, self._windows_due = size, windows
        self._windows = 0
        self._sums = [0] * size

    def add(self, counts: Sequence[int], of: int) -> list[int] | None:
        """Add a Window; the sums if the block is complete, counted by its element `of`."""
        self._windows += 1
        sums = self._sums
        for i, count in enumerate(counts):
            sums[i] += count
        if self._windows < self._windows_due or sums[of] < BLOCK_BITS:
            return None
        self._windows, self._sums = 0, [0] * self._size
        return sums


class LinkQuality:
    """The receiver's end of one link, over all its sessions."""

    def __init__(self, limits: Limits, *, p_z: float, window_slots: int, window_s: float) -> None:
        windows = max(1, ceil(BLOCK_S / window_s))
        self._window_slots, self._windows = window_slots, windows
        self._clicks = [0, 0]  # detections, Windows
        self._listed, self._sifted = _Block(6, windows), _Block(4, windows)
        self._blocks = _Block(2, 1)
        self._rate = Drift(wander_share=RATE_WANDER, both=True)
        self._qber = {basis: Drift(wander=QBER_WANDER, expected=limits.expected_qber) for basis in ("X", "Z")}
        self._doubles = Drift(wander_share=0.1, both=True)
        self._double_range = Range(*limits.double_clicks)
        self._bits = Range(0.5 - limits.bit_bias, 0.5 + limits.bit_bias)
        self._bases = Range(max(0.0, 1 - p_z - limits.basis_bias), min(1.0, 1 - p_z + limits.basis_bias))
        self._states = States()

    def clicks(self, detections: int) -> list[Finding]:
        """A Window of the receiver with so many detections, whether it is used or not: no light shows here."""
        sums = self._clicks
        sums[0] += detections
        sums[1] += 1
        if sums[1] < self._windows:
            return []
        slots = sums[1] * self._window_slots
        self._clicks = [0, 0]
        moved, usual = self._rate.add(sums[0], slots), self._rate.level
        if not moved:
            return []
        return [Finding("CLICK_RATE", f"{sums[0] / slots:.2e} detections a slot, {_way(moved)} the usual {usual:.2e}")]

    def listed(self, detectors: Detections, doubles: int) -> list[Finding]:
        """A Window that was listed: detections of one detector alone, and those of both detectors of a basis."""
        sums = self._listed.add((*detectors, doubles, sum(detectors) + doubles), of=5)
        if sums is None:
            return []
        z0, z1, x0, x1, doubles, events = sums
        return [
            *self._judge_states((z0, z1, x0, x1)),
            *self._judge_bases(x0 + x1, z0 + z1 + x0 + x1),
            *self._judge_bits("X", x1, x0 + x1),
            *self._judge_doubles(doubles, events),
        ]

    def sifted(self, bits: int, ones: int, x_bits: int, x_errors: int) -> list[Finding]:
        """A Window that was sifted: bits in Z and the ones among them, and the sample in X with its errors."""
        sums = self._sifted.add((bits, ones, x_bits, x_errors), of=2)
        if sums is None:
            return []
        return [*self._judge_bits("Z", sums[1], sums[0]), *self._judge_qber("X", sums[3], sums[2])]

    def verified(self, bits: int, errors: int) -> list[Finding]:
        """A verified Block in Z and the errors that were corrected in it."""
        sums = self._blocks.add((bits, errors), of=0)
        return [] if sums is None else self._judge_qber("Z", sums[1], sums[0])

    def _judge_qber(self, basis: str, errors: int, bits: int) -> list[Finding]:
        drift = self._qber[basis]
        if not drift.add(errors, bits):
            return []
        return [
            Finding(
                "QBER_RISEN", f"QBER {errors / bits:.4f} in basis {basis}, and for some time above {drift.level:.4f}"
            )
        ]

    def _judge_bits(self, basis: str, ones: int, bits: int) -> list[Finding]:
        if not self._bits.judge(ones, bits):
            return []
        return [Finding("BIT_BIAS", f"{ones / bits:.0%} of Bob's {bits} bits in basis {basis} are ones")]

    def _judge_bases(self, in_x: int, detections: int) -> list[Finding]:
        if not self._bases.judge(in_x, detections):
            return []
        return [Finding("BASIS_BIAS", f"{in_x / detections:.1%} of {detections} detections are in basis X")]

    def _judge_states(self, detectors: Detections) -> list[Finding]:
        odd = self._states.judge(detectors)
        if odd is None or self._states.shares is None:
            return []
        share, usual = detectors[odd] / sum(detectors), self._states.shares[odd]
        return [
            Finding(
                "STATE_ASYMMETRY", f"{share:.0%} of the detections are of detector {DETECTORS[odd]}, not {usual:.0%}"
            )
        ]

    def _judge_doubles(self, doubles: int, events: int) -> list[Finding]:
        out, moved = self._double_range.judge(doubles, events), self._doubles.add(doubles, events)
        if out:
            return [Finding("DOUBLE_CLICKS", f"{doubles} of {events} detections are double, {_way(out)} the range")]
        if moved:
            usual = self._doubles.level
            return [Finding("DOUBLE_CLICKS", f"{doubles} of {events} detections are double, {_way(moved)} {usual:.1e}")]
        return []


def _way(direction: int) -> str:
    return "above" if direction > 0 else "below"
