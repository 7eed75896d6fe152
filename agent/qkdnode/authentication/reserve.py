"""How long authentication key lasts, refills included."""

from collections import deque

SAMPLE_NS = 60 * 10**9
WINDOW_NS = 3600 * 10**9
LEAST_NS = 1800 * 10**9  # each half holds a Batch, and so a refill, if Batches come as they should
DAY_NS = 86_400 * 10**9


class Forecast:
    """Of one link. As refills come in lumps, the highest levels of the two halves of the last hour are compared."""

    def __init__(self, target_bits: int, reserve_bits: int) -> None:
        self._target_bits, self._reserve_bits = target_bits, reserve_bits
        self._levels: deque[tuple[int, int]] = deque()

    def take(self, now_ns: int, left_bits: int) -> None:
        """Remember how much is left; more often than every minute only the first counts."""
        levels = self._levels
        if levels and now_ns - levels[-1][0] < SAMPLE_NS:
            return
        levels.append((now_ns, left_bits))
        while levels[0][0] < now_ns - WINDOW_NS:
            levels.popleft()

    def days_left(self) -> float | None:
        """Days until the reserve is reached if it goes on like this. None: too early to tell, above the level that
        Batches refill to, or not falling."""
        levels = self._levels
        if not levels or levels[-1][0] - levels[0][0] < LEAST_NS:
            return None
        middle_ns = (levels[0][0] + levels[-1][0]) // 2
        before = max(left for at, left in levels if at <= middle_ns)
        lately = max(left for at, left in levels if at > middle_ns)
        if lately >= min(before, self._target_bits):
            return None
        per_day = (before - lately) * DAY_NS / (levels[-1][0] - middle_ns)
        return max(0, lately - self._reserve_bits) / per_day
