"""Fixed limits of a share, and the shares of the four detectors against each other."""

from math import sqrt

DEVIATIONS = 5.0  # beyond a limit before it counts: 3 in ten million blocks that lie right on it
CHI_SQUARE = 45.0  # with three degrees of freedom: one block in a thousand million
STATE_WANDER = 0.02  # of a detector's share, from block to block, by itself
LEARNING_BLOCKS = 32
FOLLOWING = 1 / 512


class Range:
    """A share that has to lie within limits, which the operator gives; it learns nothing."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def judge(self, count: int, of: int) -> int:
        """One block: 1 if the share is above the range by more than chance, -1 if below, else 0."""
        if not of:
            return 0
        share = count / of
        if share > self._high + DEVIATIONS * sqrt(self._high * (1 - self._high) / of):
            return 1
        if share < self._low - DEVIATIONS * sqrt(self._low * (1 - self._low) / of):
            return -1
        return 0


class States:
    """Counts of the four detectors Z0, Z1, X0, X1 against the shares that they had in the first 32 blocks.

    Pearson's chi-square of each block, with a variance that grants each share 2 % of itself to wander. A change of one
    detector's efficiency against the others is how time-shift and blinding attacks show (Lydersen et al.,
    arXiv:1008.4593; Makarov et al., arXiv:quant-ph/0511032).
    """

    def __init__(self) -> None:
        self._learnt = [0, 0, 0, 0]
        self._blocks = 0
        self.shares: tuple[float, ...] | None = None

    def judge(self, counts: tuple[int, int, int, int]) -> int | None:
        """One block: the detector that differs most if they differ by more than chance, else None."""
        total = sum(counts)
        if not total:
            return None
        if self.shares is None:
            self._learn(counts)
            return None
        terms = []
        for count, share in zip(counts, self.shares, strict=True):
            expected = max(share * total, 1.0)
            terms.append((count - expected) ** 2 / (expected + (STATE_WANDER * expected) ** 2))
        if sum(terms) > CHI_SQUARE:
            return terms.index(max(terms))
        self.shares = tuple(
            share + FOLLOWING * (count / total - share) for count, share in zip(counts, self.shares, strict=True)
        )
        return None

    def _learn(self, counts: tuple[int, int, int, int]) -> None:
        self._blocks += 1
        self._learnt = [a + b for a, b in zip(self._learnt, counts, strict=True)]
        if self._blocks == LEARNING_BLOCKS:
            total = sum(self._learnt)
            self.shares = tuple(count / total for count in self._learnt)
