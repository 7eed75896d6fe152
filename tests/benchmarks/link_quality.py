"""What the statistics of a link cost for each Window, beside counting its detectors in numpy. Prints JSON."""

import json
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from qkdnode.distill.quality.link import Limits, LinkQuality

ROUNDS = 5_000


def median_us(work: Callable[[], object]) -> float:
    costs = []
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        work()
        costs.append(time.perf_counter_ns() - began)
    return median(costs) / 1e3


def main() -> None:
    quality = LinkQuality(Limits(), p_z=0.85, window_slots=2**21, window_s=0.105)
    patterns = np.random.default_rng(1).integers(1, 5, 80_000).astype(np.uint8)

    def window() -> None:
        quality.clicks(80_000)
        quality.listed((34_000, 34_000, 6_000, 6_000), 16)
        quality.sifted(60_000, 30_000, 1_800, 36)

    cost, floor = median_us(window), median_us(lambda: np.bincount(patterns, minlength=16))
    print(json.dumps({"window_us": round(cost, 2), "bincount_us": round(floor, 2), "ratio": round(cost / floor, 4)}))


if __name__ == "__main__":
    main()
