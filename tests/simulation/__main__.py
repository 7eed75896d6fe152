"""`python -m simulation`: many runs and all controls; one summary line, and a status other than 0 if anything is wrong.

SIMULATE_SHORT=1 makes it end within a minute. `--seed N` plays one run and tells its story.
"""

import argparse
import os
import sys
import time

from simulation.controls import CONTROLS
from simulation.run import LIT_S, PERIOD_S, Simulation

HOURS, FAULTS_PER_HOUR = 1.0, 90.0
CONTROL_SEEDS = range(12)
SHORT, LONG = 4, 400


def main() -> int:
    """Play."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play this run alone and tell its story")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--runs", type=int, default=SHORT if os.environ.get("SIMULATE_SHORT") else LONG)
    parser.add_argument("--hours", type=float, default=HOURS, help="simulated hours of each run")
    parser.add_argument("--faults", type=float, default=FAULTS_PER_HOUR, help="faults in each simulated hour")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        outcome = Simulation(chosen.seed, hours=chosen.hours, faults_per_hour=chosen.faults).play()
        print(*outcome.story, *outcome.breaches, f"digest {outcome.digest}", sep="\n")
        return 1 if outcome.breaches else 0
    began = time.monotonic()
    events = hours = faults = keys = 0.0
    violations, cpu_s = 0, 0.0
    for seed in range(chosen.first, chosen.first + chosen.runs):
        outcome = Simulation(seed, hours=chosen.hours, faults_per_hour=chosen.faults).play()
        events, hours, cpu_s = events + outcome.events, hours + outcome.simulated_s / 3600, cpu_s + outcome.cpu_s
        faults, keys = faults + outcome.faults, keys + outcome.keys
        for breach in outcome.breaches:
            violations += 1
            print(
                f"seed {seed}: {breach}\n    replay: python -m simulation --seed {seed} --hours {chosen.hours:g} "
                f"--faults {chosen.faults:g}"
            )
    missed = [control.name for control in CONTROLS if not control.found(CONTROL_SEEDS)]
    for name in missed:
        print(f"not caught: {name}")
    print(
        f"simulate: {chosen.runs} runs, {hours:.0f} simulated hours, {faults:.0f} faults, {keys:.0f} keys, "
        f"{events:.0f} events ({events / max(cpu_s, 1e-9):.0f} events and {hours / max(cpu_s, 1e-9):.3f} simulated "
        f"hours per second and core, with {LIT_S:g} s of light in every {PERIOD_S:g} s), {violations} violations, "
        f"{len(CONTROLS) - len(missed)} of {len(CONTROLS)} planted bugs caught, {time.monotonic() - began:.0f} s"
    )
    return 1 if violations or missed else 0


if __name__ == "__main__":
    sys.exit(main())
