"""A limit on how often something may be journalled, so that a stranger cannot fill the log."""

import msgspec

MAX_TOPICS = 1024  # the longest quiet one is forgotten


class Bucket(msgspec.Struct):
    """What is left to one topic."""

    tokens: float
    filled_s: float
    left_out: int


class Throttle:
    """A token bucket per topic: `burst` at once, then `per_s`."""

    def __init__(self, *, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._buckets: dict[str, Bucket] = {}

    def take(self, topic: str, now_s: float) -> int | None:
        """None if the topic must be silent now, else how many were left out since it last spoke."""
        bucket = self._buckets.pop(topic, None) or Bucket(float(self._burst), now_s, 0)
        self._buckets[topic] = bucket
        if len(self._buckets) > MAX_TOPICS:
            del self._buckets[next(iter(self._buckets))]
        bucket.tokens = min(float(self._burst), bucket.tokens + (now_s - bucket.filled_s) * self._per_s)
        bucket.filled_s = now_s
        if bucket.tokens < 1:
            bucket.left_out += 1
            return None
        bucket.tokens -= 1
        left_out, bucket.left_out = bucket.left_out, 0
        return left_out
