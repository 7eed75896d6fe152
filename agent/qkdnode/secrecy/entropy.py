"""Entropies, in bits."""

import math
from collections.abc import Sequence

_Z_995 = 2.576  # SP 800-90B section 6.3.1: the normal quantile of a 99 % interval


def binary_entropy(x: float) -> float:
    """h(x) = -x log2 x - (1-x) log2(1-x) for x in [0, 1]; h(0) = h(1) = 0."""
    if not 0.0 <= x <= 1.0:
        raise ValueError(f"the binary entropy is of a probability, not of {x}")
    if x in (0.0, 1.0):
        return 0.0
    return -x * math.log2(x) - (1.0 - x) * math.log1p(-x) / math.log(2.0)


def most_common_value(histogram: Sequence[int]) -> float:
    """Min-entropy per sample by the most-common-value estimate (NIST SP 800-90B section 6.3.1).

    `histogram` holds how often each value was seen. Never negative; 0 for a constant source.
    """
    total = sum(histogram)
    if total < 2 or min(histogram) < 0:
        raise ValueError("an estimate of min-entropy needs at least two samples and no negative counts")
    p = max(histogram) / total
    bound = min(1.0, p + _Z_995 * math.sqrt(p * (1.0 - p) / (total - 1)))
    return -math.log2(bound) + 0.0
