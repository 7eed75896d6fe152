"""Statistics of a link: what is seen how soon, and how often healthy counts are taken for a change."""

import random
from collections.abc import Callable
from statistics import mean

import numpy as np
import pytest

from qkdnode.distill.quality.drift import LEARNING_BLOCKS, Cusum, Drift
from qkdnode.distill.quality.limits import Range, States
from qkdnode.distill.quality.link import Finding, Limits, LinkQuality
from qkdnode.distill.quality.sensor import LEARNING_READINGS, Sensor, Tolerance

SAMPLE = 4096
USUAL, RISEN = 0.02, 0.025


def blocks_until(drift: Drift, draws: np.ndarray, of: int = SAMPLE) -> int | None:
    for number, count in enumerate(draws.tolist(), 1):
        if drift.add(count, of):
            return number
    return None


# --- CUSUM -----------------------------------------------------------------------------------------------------------


def test_a_rise_from_2_to_2_5_percent_is_seen_in_5_7_blocks_and_by_no_fixed_limit() -> None:
    draws = np.random.default_rng(2011).binomial(SAMPLE, RISEN, (4000, 64))
    delays = [blocks_until(Drift(expected=USUAL), row) for row in draws]
    assert None not in delays
    assert mean(delays) == pytest.approx(5.7, abs=0.15)
    sigma = (USUAL * (1 - USUAL) / SAMPLE) ** 0.5
    one_block = draws.ravel() / SAMPLE > USUAL + 4.5 * sigma
    assert 1 / one_block.mean() == pytest.approx(48, rel=0.25)
    assert (draws / SAMPLE).max() < 0.11


def test_healthy_blocks_give_a_false_alarm_in_tens_of_thousands() -> None:
    """52,000 for normal values; errors are binomial, whose tail is a little heavier: 50,000 here."""
    draws = np.random.default_rng(7).binomial(SAMPLE, USUAL, 1_000_000).tolist()
    drift = Drift(expected=USUAL)
    alarms = sum(drift.add(count, SAMPLE) for count in draws)
    assert 8 <= alarms <= 40


def test_the_average_run_of_normal_values_is_that_of_siegmunds_approximation() -> None:
    draws = random.Random(5)
    cusum = Cusum()
    alarms = sum(cusum.add(draws.gauss(0, 1)) for _ in range(1_000_000))
    assert 8 <= alarms <= 34  # 19 are expected


@pytest.mark.parametrize("of", [SAMPLE, 225_000], ids=["a slow link", "a fast one"])
def test_a_level_that_was_learnt_is_followed_and_a_rise_against_it_is_seen(of: int) -> None:
    generator = np.random.default_rng(3)
    drift = Drift(wander=5e-4)
    assert blocks_until(drift, generator.binomial(of, USUAL, LEARNING_BLOCKS), of) is None
    assert drift.level == pytest.approx(USUAL, rel=0.05)
    assert blocks_until(drift, generator.binomial(of, USUAL, 2000), of) is None
    seen = blocks_until(drift, generator.binomial(of, RISEN, 100), of)
    assert seen is not None
    assert seen <= 15


def test_a_slow_wander_of_the_level_is_no_rise() -> None:
    generator = np.random.default_rng(4)
    drift = Drift(wander=5e-4)
    wandering = USUAL + 0.001 * np.sin(np.arange(20_000) / 2000)
    draws = generator.binomial(SAMPLE, wandering)
    assert sum(drift.add(count, SAMPLE) for count in draws.tolist()) <= 3


@pytest.mark.parametrize(("factor", "direction"), [(1.5, 1), (0.5, -1)])
def test_both_directions_are_told_where_both_are_watched(factor: float, direction: int) -> None:
    generator = np.random.default_rng(5)
    drift = Drift(both=True, expected=0.1)
    found = [drift.add(count, SAMPLE) for count in generator.binomial(SAMPLE, 0.1 * factor, 10).tolist()]
    assert set(found) == {0, direction} or set(found) == {direction}
    rise_only = Drift(expected=0.1)
    assert blocks_until(rise_only, generator.binomial(SAMPLE, 0.05, 50)) is None


def test_what_hardly_ever_happens_is_no_alarm_by_not_happening() -> None:
    generator = np.random.default_rng(6)
    drift = Drift(wander_share=0.1, both=True)
    draws = generator.poisson(0.02, 20_000)
    assert sum(abs(drift.add(count, SAMPLE)) for count in draws.tolist()) == 0
    assert drift.add(40, SAMPLE) == 1


def test_a_rise_that_lasts_repeats_and_becomes_the_usual_in_the_end() -> None:
    drift = Drift(wander=5e-4)
    for _ in range(LEARNING_BLOCKS):
        drift.add(82, SAMPLE)
    found = [drift.add(123, SAMPLE) for _ in range(3000)]
    assert sum(found[:100]) >= 10
    assert sum(found[-500:]) == 0


# --- fixed limits and states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "of", "verdict"),
    [
        (0, 0, 0),
        (5, 10, 0),
        (9, 10, 0),  # far out, but by chance
        (5000, 10_000, 0),
        (5490, 10_000, 0),
        (5748, 10_000, 0),  # within five deviations of the limit
        (5760, 10_000, 1),
        (4240, 10_000, -1),
        (10_000, 10_000, 1),
    ],
)
def test_a_share_is_out_of_range_when_it_is_so_by_more_than_chance(count: int, of: int, verdict: int) -> None:
    assert Range(0.45, 0.55).judge(count, of) == verdict


def test_a_range_that_begins_at_nothing_has_no_lower_end() -> None:
    assert Range(0.0, 0.005).judge(0, 100_000) == 0


@pytest.mark.parametrize("odd", range(4))
@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_detector_that_changes_against_the_others_is_named(odd: int, factor: float) -> None:
    generator = np.random.default_rng(odd)
    usual = np.array([0.44, 0.40, 0.07, 0.09])
    states = States()
    for _ in range(2000):
        assert states.judge(tuple(generator.poisson(40_000 * usual).tolist())) is None
    usual[odd] *= factor
    assert states.judge(tuple(generator.poisson(40_000 * usual).tolist())) == odd


def test_all_detectors_together_may_change() -> None:
    states = States()
    for _ in range(LEARNING_BLOCKS):
        states.judge((4400, 4000, 700, 900))
    assert states.judge((2200, 2000, 350, 450)) is None
    assert states.judge((0, 0, 0, 0)) is None


# --- sensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "verdict"), [(3.0, 0), (20.0, 0), (2000.0, 1), (-40.0, -1)], ids=["usual", "noisy", "blinding", "dead"]
)
def test_what_a_sensor_showed_at_first_is_its_range(reading: float, verdict: int) -> None:
    generator = random.Random(1)
    sensor = Sensor(Tolerance(0.1, 20.0))
    for _ in range(LEARNING_READINGS):
        assert sensor.judge(3 + generator.gauss(0, 0.2)) == 0
    assert sensor.judge(reading) == verdict


def test_given_limits_hold_from_the_first_reading_on() -> None:
    sensor = Sensor(Tolerance(0.1, 20.0), (0.0, 50.0))
    assert [sensor.judge(reading) for reading in (0.0, 50.0, 51.0, -1.0)] == [0, 0, 1, -1]


# --- a link ----------------------------------------------------------------------------------------------------------

WINDOW_SLOTS, WINDOW_S, P_Z = 2**21, 0.105, 0.85


class World:
    """Counts of a healthy link, Window by Window, and what an attack or a fault changes in them."""

    def __init__(self, **limits: object) -> None:
        self.draws = np.random.default_rng(99)
        self.quality = LinkQuality(
            Limits(**limits),
            p_z=P_Z,
            window_slots=WINDOW_SLOTS,
            window_s=WINDOW_S,  # type: ignore[arg-type]
        )
        self.rate = 0.04
        self.detectors = np.array([0.425, 0.425, 0.075, 0.075])
        self.doubles = 2e-4
        self.ones = 0.5
        self.qber = 0.02

    def window(self) -> list[Finding]:
        events = int(self.draws.binomial(WINDOW_SLOTS, self.rate))
        detectors = self.draws.multinomial(events, self.detectors / self.detectors.sum()).tolist()
        x_bits = int(self.draws.binomial(events, 0.15 * 0.15))
        bits = int(self.draws.binomial(events, 0.85 * 0.85))
        return [
            *self.quality.clicks(events),
            *self.quality.listed(tuple(detectors), int(self.draws.poisson(self.doubles * events))),
            *self.quality.sifted(
                bits, int(self.draws.binomial(bits, self.ones)), x_bits, int(self.draws.binomial(x_bits, self.qber))
            ),
            *self.quality.verified(bits, int(self.draws.binomial(bits, self.qber))),
        ]

    def minutes(self, count: float) -> list[Finding]:
        return [finding for _ in range(int(count * 60 / WINDOW_S)) for finding in self.window()]


def set_to(**values: object) -> Callable[[World], None]:
    def change(world: World) -> None:
        for name, value in values.items():
            setattr(world, name, value)

    return change


def test_a_healthy_link_raises_nothing_for_an_hour() -> None:
    assert World().minutes(60) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (set_to(qber=0.025), "QBER_RISEN"),
        (set_to(ones=0.58), "BIT_BIAS"),
        (set_to(detectors=np.array([0.40, 0.45, 0.04, 0.11])), "BIT_BIAS"),
        (set_to(detectors=np.array([0.37, 0.37, 0.13, 0.13])), "BASIS_BIAS"),
        (set_to(detectors=np.array([0.30, 0.55, 0.075, 0.075])), "STATE_ASYMMETRY"),
        (set_to(rate=0.036), "CLICK_RATE"),
        (set_to(rate=0.044), "CLICK_RATE"),
        (set_to(doubles=0.006), "DOUBLE_CLICKS"),
        (set_to(doubles=0.0), "DOUBLE_CLICKS"),
    ],
    ids=["errors", "ones in Z", "ones in X", "a basis", "efficiencies", "loss", "light", "bright light", "blinded"],
)
def test_each_change_is_named_within_a_minute(change: Callable[[World], None], code: str) -> None:
    world = World()
    assert world.minutes(4) == []
    change(world)
    found = {finding.code for finding in world.minutes(1)}
    assert code in found
    assert found <= {code, "STATE_ASYMMETRY", "CLICK_RATE"}


def test_limits_that_are_given_hold_without_learning() -> None:
    world = World(expected_qber=0.02, double_clicks=(1e-4, 0.005))
    change = set_to(qber=0.03, doubles=0.0)
    change(world)
    assert {"QBER_RISEN", "DOUBLE_CLICKS"} <= {finding.code for finding in world.minutes(0.5)}


def test_a_window_without_light_shows_in_the_rate() -> None:
    world = World()
    assert world.minutes(4) == []
    found = [finding for _ in range(500) for finding in world.quality.clicks(3)]
    assert {finding.code for finding in found} == {"CLICK_RATE"}


def test_no_finding_tells_counts_of_key_bits_exactly() -> None:
    world = World()
    world.ones = 0.9
    details = [finding.detail for finding in world.minutes(1) if finding.code == "BIT_BIAS"]
    assert details
    assert all(detail.startswith("90% of Bob's ") for detail in details)
