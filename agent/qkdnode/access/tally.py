"""What is journalled of requests that come often: every one counts, and few leaves tell of all of them."""

import msgspec

MAX_TOPICS = 1024  # beyond it those known for longest are told of before their time


class Count(msgspec.Struct):
    """How many of one topic were not yet told of, and since when it has been silent."""

    untold: int
    told_s: float


class Tally:
    """Counts by topic: the first of a topic is told at once, those of the next `period_s` together when it is over.

    Nothing is lost but by a crash, and then at most the counts of one period. A topic is anything hashable.
    """

    def __init__(self, period_s: float, max_topics: int = MAX_TOPICS) -> None:
        self._period_s, self._max_topics = period_s, max_topics
        self._counts: dict[tuple[str, ...], Count] = {}

    def take(self, topic: tuple[str, ...], now_s: float) -> bool:
        """Count one; whether it is to be told of now, by itself."""
        known = self._counts.get(topic)
        if known is None:
            self._counts[topic] = Count(0, now_s)
            return True
        known.untold += 1
        return False

    def untold(self, topic: tuple[str, ...]) -> None:
        """One that was to be told of by itself could not be: it counts with those that follow."""
        self._counts[topic].untold += 1

    def due(self, now_s: float, *, everything: bool = False) -> list[tuple[tuple[str, ...], int]]:
        """Topics with how many of each are to be told of now: its period is over, or `everything` is to be told.

        A topic that came no more is forgotten: the next of it is told at once again.
        """
        told: list[tuple[tuple[str, ...], int]] = []
        for topic, count in list(self._counts.items()):
            ends = everything or len(self._counts) > self._max_topics
            if not ends and now_s - count.told_s < self._period_s:
                continue
            if count.untold:
                told.append((topic, count.untold))
            if ends or not count.untold:
                del self._counts[topic]
            else:
                count.untold, count.told_s = 0, now_s
        return told

    def give_back(self, topic: tuple[str, ...], untold: int, now_s: float) -> None:
        """What `due` gave could not be told: it counts with those that follow."""
        self._counts.setdefault(topic, Count(0, now_s)).untold += untold
