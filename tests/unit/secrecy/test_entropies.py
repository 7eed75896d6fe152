"""Entropies against values worked out elsewhere."""

import pytest

from qkdnode.secrecy.entropy import binary_entropy, most_common_value


@pytest.mark.parametrize(
    ("x", "h"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0), (0.11, 0.499916), (0.25, 0.811278), (0.01, 0.080793)]
)
def test_the_binary_entropy_has_its_known_values(x: float, h: float) -> None:
    assert binary_entropy(x) == pytest.approx(h, abs=1e-6)
    assert binary_entropy(1 - x) == pytest.approx(h, abs=1e-6)


def test_the_binary_entropy_is_exact_for_tiny_probabilities() -> None:
    assert binary_entropy(1e-18) == pytest.approx(1e-18 * (59.794705707972525 + 1.4426950408889634), rel=1e-12)


@pytest.mark.parametrize("x", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_has_no_entropy(x: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        binary_entropy(x)


def test_the_most_common_value_estimate_is_that_of_the_standards_example() -> None:
    """SP 800-90B section 6.3.1: 0 1 1 2 0 1 2 2 0 1 0 1 1 0 2 2 1 0 2 1 gives p 0.4, p_u 0.6895, H 0.5363."""
    samples = [0, 1, 1, 2, 0, 1, 2, 2, 0, 1, 0, 1, 1, 0, 2, 2, 1, 0, 2, 1]
    histogram = [samples.count(value) for value in range(3)]
    assert most_common_value(histogram) == pytest.approx(0.5363, abs=5e-5)


def test_a_constant_source_has_no_entropy_and_a_fair_one_less_than_all() -> None:
    assert str(most_common_value([1000, 0])) == "0.0"
    assert 0.98 < most_common_value([50_000, 50_000]) < 1.0
    assert 7.3 < most_common_value([400] * 256) < 8.0


@pytest.mark.parametrize("histogram", [[1], [0, 0], [3, -1]])
def test_too_few_samples_are_no_estimate(histogram: list[int]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        most_common_value(histogram)
