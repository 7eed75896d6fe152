"""How fast somebody may go on: at once as long as they are within their allowance, then at its rate."""


class Pace:
    """`burst` steps at once, then `per_s`; who goes faster waits."""

    def __init__(self, *, burst: int, per_s: float) -> None:
        self._burst, self._per_s = float(burst), per_s
        self._left, self._at_s = self._burst, 0.0

    def step(self, now_s: float) -> float:
        """Book one step; seconds to wait before it."""
        self._left = min(self._burst, self._left + max(0.0, now_s - self._at_s) * self._per_s) - 1
        self._at_s = now_s
        return max(0.0, -self._left / self._per_s)
