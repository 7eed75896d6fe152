"""`python -m simulation`: many runs and all controls; one summary line, and a status other than 0 if anything is wrong.

SIMULATE_SHORT=1 makes it end within two minutes: bugs that take long to show are not looked for. `--seed N` plays one
run and tells its story.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from simulation.controls import CONTROLS, is_found
from simulation.run import LIT_S, PERIOD_S, Simulation, is_timed, played

FAULTS_PER_HOUR = 90.0
CONTROL_SEEDS = range(12)
SHORT, LONG = (4, 0.5), (400, 1.0)  # runs, and simulated hours of each


def main() -> int:
    """Play."""
    runs, hours = SHORT if os.environ.get("SIMULATE_SHORT") else LONG
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play this run alone and tell its story")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--hours", type=float, default=hours, help="simulated hours of each run")
    parser.add_argument("--faults", type=float, default=FAULTS_PER_HOUR, help="faults in each simulated hour")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        outcome = Simulation(
            chosen.seed, hours=chosen.hours, faults_per_hour=chosen.faults, timed=is_timed(chosen.seed)
        ).play()
        print(*outcome.story, *outcome.breaches, f"digest {outcome.digest}", sep="\n")
        return 1 if outcome.breaches else 0
    began = time.monotonic()
    controls = [control for control in CONTROLS if not (control.deep and os.environ.get("SIMULATE_SHORT"))]
    with ProcessPoolExecutor(max_workers=os.cpu_count() or 2, mp_context=get_context("spawn")) as pool:
        # The runs are the longest, and of the planted bugs nobody knows beforehand.
        seeds = range(chosen.first, chosen.first + chosen.runs)
        runs = [pool.submit(played, seed, chosen.hours, chosen.faults) for seed in seeds]
        looks = {control.name: pool.submit(is_found, control.name, CONTROL_SEEDS) for control in controls}
        outcomes = [run.result() for run in runs]
        missed = [name for name, look in looks.items() if not look.result()]
    violations = 0
    for outcome in outcomes:
        for breach in outcome.breaches:
            violations += 1
            print(
                f"seed {outcome.seed}: {breach}\n    replay: python -m simulation --seed {outcome.seed} "
                f"--hours {chosen.hours:g} --faults {chosen.faults:g}"
            )
    for name in missed:
        print(f"not caught: {name}")
    simulated_h = sum(outcome.simulated_s for outcome in outcomes) / 3600
    events, cpu_s = sum(outcome.events for outcome in outcomes), sum(outcome.cpu_s for outcome in outcomes)
    faults, keys = sum(outcome.faults for outcome in outcomes), sum(outcome.keys for outcome in outcomes)
    told = sum(outcome.told for outcome in outcomes)
    print(
        f"simulate: {chosen.runs} runs, {simulated_h:.0f} simulated hours, {faults} faults, {keys} keys, {told} "
        f"entries told to subscribers, {events} events ({events / max(cpu_s, 1e-9):.0f} events and "
        f"{simulated_h / max(cpu_s, 1e-9):.3f} simulated hours per second and core, with {LIT_S:g} s of light in every "
        f"{PERIOD_S:g} s), {violations} violations, {len(controls) - len(missed)} of {len(controls)} planted bugs "
        f"caught, {len(CONTROLS) - len(controls)} not looked for, {time.monotonic() - began:.0f} s"
    )
    return 1 if violations or missed else 0


if __name__ == "__main__":
    sys.exit(main())
