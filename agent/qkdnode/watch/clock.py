"""The wall clock against a clock that does not step."""


class ClockWatch:
    """Sees the wall clock being set. What a time service slews, 0.5 ms a second, is far below any limit."""

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._ahead_ns: int | None = None

    def look(self, before_ns: int, wall_ns: int, after_ns: int) -> int | None:
        """A reading of the wall clock between two of the other; by how much it was set since the last one, if it was.

        A reading that took longer than half the limit, as this process was held up, says nothing and is left out.
        """
        if after_ns - before_ns > self._limit_ns / 2:
            return None
        ahead = wall_ns - (before_ns + after_ns) // 2
        last, self._ahead_ns = self._ahead_ns, ahead
        if last is None or abs(ahead - last) <= self._limit_ns:
            return None
        return ahead - last
