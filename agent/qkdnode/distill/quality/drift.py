"""Small lasting changes of a share: CUSUM against a level that is given, or learnt and then followed slowly."""

from math import sqrt

SLACK, LIMIT = 0.5, 9.0  # k and h, in standard deviations of one block
LEARNING_BLOCKS = 32
FOLLOWING = 1 / 512  # of each later block, at most `CLIP` deviations of it, goes into the level
CLIP = 3.0


class Cusum:
    """One-sided CUSUM of standardised values (E. S. Page, Biometrika 41, 1954): sees a rise of 2 k soonest.

    By Siegmund's approximation (Sequential Analysis, 1985) with k = 0.5 and h = 9 normal values give a false alarm in
    some 52,000 on average; a rise by d deviations is seen after about (h + 1.2) / (d - k).
    """

    def __init__(self, slack: float = SLACK, limit: float = LIMIT) -> None:
        self._slack, self._limit = slack, limit
        self.sum = 0.0

    def add(self, value: float) -> bool:
        """Take the next value; whether the limit is passed. The sum then begins anew, so that what lasts repeats."""
        self.sum = max(0.0, self.sum + value - self._slack)
        if self.sum <= self._limit:
            return False
        self.sum = 0.0
        return True


class Drift:
    """A share of counts that rises, or where `both` also falls, against its level.

    `wander` (absolute) and `wander_share` (of the level) are how far the level of a healthy device moves by itself from
    block to block: beside it no sample is large enough to make a trifle an alarm. `expected` fixes the level; else the
    first 32 blocks are learnt and not judged, and later ones change the level slowly, so that what lasts for long
    becomes the usual: the limits beside this one do not follow.
    """

    def __init__(
        self, *, wander: float = 0.0, wander_share: float = 0.0, both: bool = False, expected: float | None = None
    ) -> None:
        self._wander, self._wander_share = wander, wander_share
        self._rise, self._fall = Cusum(), Cusum() if both else None
        self._fixed = expected is not None
        self._learnt = [0, 0, 0]  # blocks, counts, of
        self.level = expected

    def add(self, count: int, of: int) -> int:
        """Take a block of `count` out of `of`, at least one: 1 if the share has risen, -1 if it has fallen, else 0."""
        if self.level is None:
            self._learn(count, of)
            return 0
        rare = min(max(self.level, 1 / of), 0.5)  # one in a block says little of what hardly ever happens
        sigma = sqrt(rare * (1 - rare) / of + self._wander**2 + (self._wander_share * self.level) ** 2)
        value = (count / of - self.level) / sigma
        if not self._fixed:
            self.level += FOLLOWING * sigma * max(-CLIP, min(CLIP, value))
        risen = self._rise.add(value)
        fallen = self._fall is not None and self._fall.add(-value)
        return 1 if risen else -1 if fallen else 0

    def _learn(self, count: int, of: int) -> None:
        self._learnt = [self._learnt[0] + 1, self._learnt[1] + count, self._learnt[2] + of]
        if self._learnt[0] == LEARNING_BLOCKS:
            self.level = self._learnt[1] / self._learnt[2]
