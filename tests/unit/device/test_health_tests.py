"""SP 800-90B continuous health tests: cutoffs, semantics at the cutoff, chunk borders, latch and start-up."""

import numpy as np
import pytest

from qkdnode.device.health_tests import (
    APT_WINDOW,
    STARTUP_SAMPLES,
    HealthFailure,
    HealthTests,
    Samples,
    apt_cutoff,
    rct_cutoff,
)
from qkdnode.errors import LocalProtocolError

# entropy per sample, window, (RCT, APT) at alpha 2^-20, 2^-30, 2^-40
CUTOFFS = [
    (0.5, 1024, (41, 793), (61, 810), (81, 824)),
    (0.95, 1024, (23, 607), (33, 627), (44, 643)),
    (1, 1024, (21, 589), (31, 609), (41, 625)),
    (4, 512, (6, 62), (9, 71), (11, 78)),
    (8, 512, (4, 13), (5, 16), (6, 19)),
]


@pytest.mark.parametrize(("entropy_bits", "window", "at20", "at30", "at40"), CUTOFFS)
def test_the_cutoffs_are_those_of_the_standard(
    entropy_bits: float, window: int, at20: tuple[int, int], at30: tuple[int, int], at40: tuple[int, int]
) -> None:
    for exponent, expected in ((20, at20), (30, at30), (40, at40)):
        alpha = 2.0**-exponent
        assert (rct_cutoff(entropy_bits, alpha), apt_cutoff(entropy_bits, alpha, window)) == expected


def varied(count: int, seed: int = 1) -> Samples:
    """Samples in which no value ever follows itself."""
    steps = np.random.default_rng(seed).integers(1, 256, count)
    return np.cumsum(steps).astype(np.uint8)


def started(entropy_bits: float = 8, alpha: float = 2.0**-30) -> HealthTests:
    tests = HealthTests(entropy_bits=entropy_bits, alpha=alpha)
    assert tests.examine(varied(STARTUP_SAMPLES)).size == 0
    assert tests.started
    return tests


def fails(samples: Samples, chunk: int) -> HealthFailure | None:
    tests = started()
    for at in range(0, samples.size, chunk):
        tests.examine(samples[at : at + chunk])
    return tests.failure


@pytest.mark.parametrize("chunk", [1, 3, 100, 512, 5000])
@pytest.mark.parametrize("at", [0, 1, 510, 511, 512, 1000, 2990])
def test_the_repetition_test_fails_exactly_at_its_cutoff(chunk: int, at: int) -> None:
    cutoff = rct_cutoff(8)
    samples = varied(3000, seed=2)
    samples[at : at + cutoff + 1] = varied(cutoff + 1, seed=3)
    samples[at : at + cutoff - 1] = value = 200
    for neighbour in (at - 1, at + cutoff - 1):
        if neighbour >= 0:
            samples[neighbour] = 100
    assert fails(samples, chunk) is None
    samples[at + cutoff - 1] = value
    assert fails(samples, chunk) is HealthFailure.REPETITION


@pytest.mark.parametrize("chunk", [1, 7, 511, 512, 513, 4000])
def test_the_proportion_test_fails_exactly_at_its_cutoff(chunk: int) -> None:
    cutoff = apt_cutoff(8)
    samples = np.tile(np.arange(1, 256, dtype=np.uint8), 9)[: 4 * APT_WINDOW]
    window = samples[2 * APT_WINDOW : 3 * APT_WINDOW]
    window[0] = 0
    window[5 : 5 + 2 * (cutoff - 2) : 2] = 0
    assert np.count_nonzero(window == 0) == cutoff - 1
    assert fails(samples, chunk) is None
    window[-1] = 0
    assert fails(samples, chunk) is HealthFailure.PROPORTION


def test_the_proportion_test_counts_only_the_first_value_of_a_window() -> None:
    samples = np.tile(np.arange(1, 256, dtype=np.uint8), 3)[:APT_WINDOW]
    samples[1:400:2] = 0
    assert fails(samples, 512) is None


def test_good_bytes_pass_and_all_but_the_startup_samples_come_through() -> None:
    data = np.random.default_rng(4).integers(0, 256, 1 << 20, dtype=np.uint8)
    tests = HealthTests(entropy_bits=7.5)
    usable = np.concatenate([tests.examine(part) for part in np.array_split(data, 37)])
    assert np.array_equal(usable, data[STARTUP_SAMPLES:])
    assert tests.samples == data.size


def test_a_biased_source_fails() -> None:
    bits = np.random.default_rng(5).random((1 << 16, 8)) < 0.75
    tests = HealthTests(entropy_bits=7.5)
    tests.examine(np.packbits(bits, axis=1).reshape(-1))
    assert tests.failure is not None


def test_a_failure_latches_until_a_restart_with_acknowledgement() -> None:
    tests = started()
    assert tests.examine(np.zeros(100, np.uint8)).size == 0
    assert tests.failure is HealthFailure.REPETITION
    assert tests.examine(varied(5000)).size == 0
    with pytest.raises(LocalProtocolError, match="acknowledge"):
        tests.restart()
    tests.restart(acknowledge=True)
    assert tests.failure is None
    assert not tests.started
    assert tests.examine(varied(STARTUP_SAMPLES + 10)).size == 10
    assert tests.failures[HealthFailure.REPETITION] == 1


def test_a_stuck_source_fails_in_its_startup_test() -> None:
    tests = HealthTests(entropy_bits=6)
    tests.examine(np.full(STARTUP_SAMPLES, 7, np.uint8))
    assert tests.failure is HealthFailure.REPETITION


@pytest.mark.parametrize("entropy_bits", [0.0, 8.1])
def test_an_impossible_entropy_is_refused(entropy_bits: float) -> None:
    with pytest.raises(ValueError, match="entropy"):
        HealthTests(entropy_bits=entropy_bits)
