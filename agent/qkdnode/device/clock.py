"""Clock recovery: the receiver's time as slots of the transmitter, from the sync pulses both see; without I/O."""

from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.uint64]
Slots = NDArray[np.int64]


SLOT_LIMIT = 1 << 62


class Verdict(Enum):
    """What one sync pulse did to the clock."""

    SEARCHING = auto()  # not locked, before and after
    LOCKED = auto()  # this pulse completed the lock: slots are known from here on
    TRACKED = auto()  # locked, and the pulse agrees
    REJECTED = auto()  # locked, and the pulse is an outlier
    LOST = auto()  # so many outliers in a row that the clock must have jumped


class Pulse(NamedTuple):
    """Sync pulse `number` was seen at `time` (1/256 ns of the receiver)."""

    number: int
    time: int


class Fit(NamedTuple):
    """time = origin.time + offset + period * (number - origin.number), by least squares."""

    origin: Pulse
    offset: float
    period: float

    def residual(self, pulse: Pulse) -> float:
        return pulse.time - self.origin.time - self.offset - self.period * (pulse.number - self.origin.number)


def fitted(pulses: Sequence[Pulse]) -> Fit:
    """Distances are taken from the last pulse, so that doubles hold them exactly."""
    origin = pulses[-1]
    x = np.array([pulse.number - origin.number for pulse in pulses], np.float64)
    y = np.array([pulse.time - origin.time for pulse in pulses], np.float64)
    centred = x - x.mean()
    period = float(centred @ y / (centred @ centred))
    return Fit(origin, float(y.mean() - period * x.mean()), period)


class ReceiverClock:
    """A line through the last `memory` accepted pulses; pulse k left the transmitter with slot k * sync_slots.

    It locks when `needed` pulses in a row lie within a quarter of a slot of one line whose rate is within `limit_ppm`
    of nominal, and loses the lock after `patience` outliers in a row. A single outlier changes nothing.
    """

    def __init__(
        self,
        *,
        slot_units: int,
        sync_slots: int,
        memory: int = 32,
        needed: int = 5,
        patience: int = 3,
        limit_ppm: float = 100.0,
    ) -> None:
        if not patience < needed <= memory or needed < 3:
            raise ValueError("a lock needs three pulses or more, more than its loss, and no more than are remembered")
        self._sync_slots = sync_slots
        self._nominal = slot_units * sync_slots
        self._tolerance = slot_units / 4
        self._slack = limit_ppm * 1e-6
        self._needed = needed
        self._patience = patience
        self._pulses: deque[Pulse] = deque(maxlen=memory)
        self._outliers: list[Pulse] = []
        self._fit: Fit | None = None
        self.rejected = 0
        self.losses = 0

    @property
    def locked(self) -> bool:
        return self._fit is not None

    @property
    def rate_ppm(self) -> float | None:
        """How much faster than nominal the receiver's clock counts; None while not locked."""
        return None if self._fit is None else (self._fit.period / self._nominal - 1) * 1e6

    def reset(self) -> None:
        """Forget everything: the device's time may have begun anew."""
        self._pulses.clear()
        self._outliers.clear()
        self._fit = None

    def sync(self, number: int, time: int) -> Verdict:
        """Take one pulse."""
        pulse = Pulse(number, time)
        if self._fit is None:
            return Verdict.LOCKED if self._search(pulse) else Verdict.SEARCHING
        if number > self._pulses[-1].number and abs(self._fit.residual(pulse)) <= self._tolerance:
            self._pulses.append(pulse)
            self._outliers.clear()
            self._fit = fitted(self._pulses)
            return Verdict.TRACKED
        self.rejected += 1
        self._outliers.append(pulse)
        if len(self._outliers) < self._patience:
            return Verdict.REJECTED
        evidence = list(self._outliers)
        self.losses += 1
        self.reset()
        for pulse in evidence:
            self._search(pulse)
        return Verdict.LOST

    def _plausible(self, before: Pulse, after: Pulse) -> bool:
        pulses = after.number - before.number
        expected = pulses * self._nominal
        if pulses <= 0 or self.slot_of_pulse(after.number) >= SLOT_LIMIT:
            return False
        return abs(after.time - before.time - expected) <= self._slack * expected + 2 * self._tolerance

    def _search(self, pulse: Pulse) -> bool:
        if self._pulses and not self._plausible(self._pulses[-1], pulse):
            self._pulses.clear()
        self._pulses.append(pulse)
        if len(self._pulses) < self._needed:
            return False
        fit = fitted(self._pulses)
        if max(abs(fit.residual(seen)) for seen in self._pulses) > self._tolerance:
            self._pulses.popleft()
            return False
        self._fit = fit
        return True

    def slot_of_pulse(self, number: int) -> int:
        """The slot with which the transmitter sent this pulse."""
        return number * self._sync_slots

    def slots(self, times: Times) -> Slots:
        """The slots in which these times lie; the clock must be locked."""
        if self._fit is None:
            raise ValueError("the clock is not locked")
        origin, offset, period = self._fit
        since: Slots = (times - np.uint64(origin.time)).view(np.int64)
        within: Slots = np.floor((since - offset) * (self._sync_slots / period)).astype(np.int64)
        return within + self.slot_of_pulse(origin.number)

    def slot(self, time: int) -> int:
        """The slot in which this time lies."""
        return int(self.slots(np.array([time], np.uint64))[0])
