"""Sensors of a device: photocurrent, bias voltage, temperature, against limits that are given or learnt."""

from math import sqrt

import msgspec

LEARNING_READINGS = 60
DEVIATIONS = 8.0


class Tolerance(msgspec.Struct, frozen=True):
    """How far a reading may lie from the learnt mean, beside eight of its standard deviations."""

    share: float  # of the mean's magnitude
    absolute: float  # in the reading's unit


class Sensor:
    """One reading a second or so. Without `limits` the first 60 are learnt and not judged.

    What is learnt is taken for healthy: a device that is attacked from the start needs limits from its data sheet.
    """

    def __init__(self, tolerance: Tolerance, limits: tuple[float, float] | None = None) -> None:
        self._tolerance = tolerance
        self.limits = limits
        self._readings, self._mean, self._squares = 0, 0.0, 0.0

    def judge(self, reading: float) -> int:
        """1 if it is above its limits, -1 if below, else 0."""
        if self.limits is None:
            self._learn(reading)
            return 0
        low, high = self.limits
        return 1 if reading > high else -1 if reading < low else 0

    def _learn(self, reading: float) -> None:
        """Mean and variance after B. P. Welford, Technometrics 4, 1962."""
        self._readings += 1
        off = reading - self._mean
        self._mean += off / self._readings
        self._squares += off * (reading - self._mean)
        if self._readings == LEARNING_READINGS:
            deviation = sqrt(self._squares / (self._readings - 1))
            room = DEVIATIONS * deviation + self._tolerance.share * abs(self._mean) + self._tolerance.absolute
            self.limits = (self._mean - room, self._mean + room)
