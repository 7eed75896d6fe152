"""Rates: differences of counters over the last minutes, and nothing before there is something to tell."""

import pytest

from qkdnode.link.statistics import LinkStatistics
from qkdnode.node.rates import RATE_NS, SAMPLE_NS, SPENDING_NS, Rates

S = 10**9


def counts(seconds: float, *, spent: int = 0, verified: bool = True) -> LinkStatistics:
    """A link that sifts 1000 and makes 100 bits a second, at 2 % errors; 4 % in X."""
    return LinkStatistics(
        sifted_bits=round(1000 * seconds),
        secret_bits=round(100 * seconds),
        verified_bits=round(1000 * seconds) if verified else 0,
        errors=round(20 * seconds) if verified else 0,
        x_bits=round(100 * seconds),
        x_errors=round(4 * seconds),
        auth_spent_bits=spent,
    )


def test_nothing_is_told_of_one_moment() -> None:
    rates = Rates()
    assert (rates.sifted_bps, rates.qber, rates.days_left(1)) == (None, None, None)
    rates.take(0, counts(0))
    rates.take(S // 2, counts(0.5))
    assert (rates.sifted_bps, rates.secret_bps, rates.qber) == (None, None, None)


@pytest.mark.parametrize("step_s", [0.2, 1, 5, 60])
def test_rates_are_those_of_the_last_minutes(step_s: float) -> None:
    rates, now = Rates(), 0.0
    while now <= 1200:
        rates.take(round(now * S), counts(now))
        now += step_s
    assert rates.sifted_bps == pytest.approx(1000, rel=0.01)
    assert rates.secret_bps == pytest.approx(100, rel=0.01)
    assert rates.qber == pytest.approx(0.02, rel=0.01)
    assert len(rates._samples) <= 1200 * S // SAMPLE_NS + 2


def test_a_rate_that_changes_is_seen_within_five_minutes_and_the_past_is_forgotten() -> None:
    rates = Rates()
    for second in range(0, 4000, 5):
        rates.take(second * S, counts(min(second, 3000)))
    assert rates.sifted_bps == 0
    assert rates._samples[0].at_ns >= (3995 * S) - SPENDING_NS
    assert RATE_NS < 1000 * S


def test_before_the_first_block_the_test_basis_tells_the_error_rate() -> None:
    rates = Rates()
    for second in range(0, 50, 5):
        rates.take(second * S, counts(second, verified=False))
    assert rates.qber == pytest.approx(0.04)


def test_the_reserve_is_told_in_days_at_the_rate_of_the_last_hour() -> None:
    rates = Rates()
    for second in range(0, 1801, 10):
        assert (rates.days_left(1_000_000) is None) == (second <= 60)
        rates.take(second * S, counts(second, spent=128 * second))
    assert rates.days_left(128 * 86_400 * 10) == pytest.approx(10.0)


def test_what_spends_nothing_lasts_without_an_end() -> None:
    rates = Rates()
    for second in range(0, 300, 5):
        rates.take(second * S, counts(second, spent=4096))
    assert rates.days_left(65_536) is None
