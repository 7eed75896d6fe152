"""The simulation's short form; `make simulate` plays hundreds of runs."""

import pytest

from simulation.controls import CONTROLS, Control
from simulation.run import Simulation, is_timed


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_no_rule_is_broken(seed: int) -> None:
    outcome = Simulation(1000 + seed, hours=0.35, faults_per_hour=120, timed=is_timed(seed)).play()
    assert outcome.breaches == ()
    assert outcome.faults > 20
    assert outcome.keys > 50
    assert outcome.told > 500


def test_one_integer_gives_the_same_run_again() -> None:
    first, again = (Simulation(7, hours=0.1, faults_per_hour=240).play() for _ in range(2))
    assert first.story == again.story
    assert (first.digest, first.events) == (again.digest, again.events)
    assert Simulation(8, hours=0.1, faults_per_hour=240).play().digest != first.digest


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_planted_bugs_are_found(control: Control) -> None:
    outcome = control.found(range(12))
    assert outcome is not None
    assert outcome.breaches
