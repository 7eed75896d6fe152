"""`python -m crash`: all of it; one summary line, and a status other than 0 if anything is wrong or not caught.

CRASH_SHORT=1 makes it end within a minute. `--part` does a part of it alone: the long run can be done in pieces.
`--fault`, `--state` play one point again that a line has named.
"""

import argparse
import os
import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import msgspec

from crash import agents_under_fault, leaks, powerloss, sweep
from crash.controls import CONTROLS
from crash.interposer import CALLS, SEND, SYNC, TRUNCATE, UNLINK, WRITE, Fault
from crash.nursery import Nursery
from crash.powerloss import Cuts, Recorded
from crash.sweep import Found
from qkdnode.ids import ROLES

DESCRIPTION = __doc__
OPERATIONS, DISTINCT = 1160, 0.57  # of one recording, and the share of draws that give a new state: about
FAULTS, STATES, BUGS, LEAKS, AGENTS = PARTS = ("faults", "states", "bugs", "leaks", "agents")


class Budget(msgspec.Struct, frozen=True):
    """How much is done."""

    strides: dict[int, int]  # every so many calls of a kind
    states: int  # rebuilt after a power loss
    control_stride: int
    dumps: bool
    agents: int  # runs of whole agents


LONG = Budget(dict.fromkeys(CALLS, 1), 100_000, 3, True, 24)
SHORT = Budget({WRITE: 290, SYNC: 29, TRUNCATE: 4, UNLINK: 4, SEND: 90}, 1_500, 9, False, 1)
_nursery: Nursery | None = None


def nursery() -> Nursery:
    """This process's own."""
    global _nursery
    if _nursery is None:
        _nursery = Nursery()
    return _nursery


def _sweep(line: sweep.Line) -> Found:
    return sweep.sweep(nursery(), line)


def _sweep_control(name: str) -> Found:
    return sweep.uncaught(nursery(), _named(name))


def _power_control(stride: int, name: str) -> Found:
    return powerloss.uncaught(nursery(), _named(name), stride)


def _leak_control(name: str) -> Found:
    return leaks.uncaught(_named(name))


def _record(role: str) -> Recorded:
    return powerloss.Recording(nursery(), role).record()


def _named(name: str) -> sweep.Control:
    return next(control for control in CONTROLS if control.name == name)


def cuts_for(states: int, shares: int, seed: int) -> list[Cuts]:
    """Cuts that rebuild about so many states of both ends, in shares: at every cut 3 sure states and 2 of each draw."""
    each = states / len(ROLES)
    stride = max(1, round(OPERATIONS * 4 / each))
    draws = max(1, round((each / (OPERATIONS * DISTINCT) * stride - 3) / 2))
    return [Cuts(share * stride, shares * stride, draws, seed) for share in range(shares)]


def run(budget: Budget, seed: int, parts: Container[str] = PARTS) -> int:
    """Everything, or these parts of it; the exit status."""
    began = time.monotonic()
    faults, losses, caught = Found(), Found(), Found()
    with ProcessPoolExecutor(max_workers=os.cpu_count() or 2, mp_context=get_context("spawn")) as pool:
        recorded = [pool.submit(_record, role) for role in ROLES if STATES in parts]
        lines = [pool.submit(_sweep, line) for line in sweep.lines(budget.strides, offset=seed) if FAULTS in parts]
        if FAULTS in parts and budget is not SHORT:
            keeping = sweep.lines({**budget.strides, WRITE: 3, SYNC: 3}, offset=seed, script="keeping")
            lines += [pool.submit(_sweep, line) for line in keeping]
        looks: list[Future[Found]] = []
        if BUGS in parts:
            stride = budget.control_stride
            looks += [pool.submit(_sweep_control, control.name) for control in sweep.controls()]
            looks += [pool.submit(_power_control, stride, control.name) for control in powerloss.controls()]
            looks += [pool.submit(_leak_control, control.name) for control in leaks.controls()]
        leak = pool.submit(partial(leaks.scan, dump=budget.dumps)) if LEAKS in parts else None
        agents = pool.submit(agents_under_fault.runs, budget.agents, seed) if AGENTS in parts else None
        checks = [
            pool.submit(powerloss.check, future.result(), cuts)
            for future in recorded
            for cuts in cuts_for(budget.states, 4 if budget is SHORT else 32, seed)
        ]
        losses = sum((check.result() for check in checks), losses)
        faults = sum((line.result() for line in lines), faults)
        looked = [look.result() for look in looks]
        caught = sum(looked, caught)
        leaked, searched = leak.result() if leak is not None else (Found(), "no scans")
        whole = agents.result() if agents is not None else Found()
    violations = faults.violations + losses.violations + leaked.violations + whole.violations
    for violation in violations + caught.violations:
        print(violation)
    missed = sum(bool(look.violations) for look in looked)
    print(
        f"crash: seed {seed}, {faults.points} faults at system calls of vaults, {whole.points} of whole agents, by the "
        f"interposing library, {losses.points} states after a power loss, {searched}, "
        f"{len(violations)} violations, {len(looked) - missed} of {len(looked)} planted bugs caught, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if violations or missed else 0


def replay(play: Callable[[Nursery], Found]) -> int:
    """One point alone."""
    with Nursery() as own:
        found = play(own)
    print(*found.violations, f"{found.points} points, {len(found.violations)} violations", sep="\n")
    return 1 if found.violations or not found.points else 0


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument("--seed", type=int, default=0, help="where the loops begin and what is drawn")
    parser.add_argument("--fault", help="play this fault alone: ROLE:CALL:NTH:ACT")
    parser.add_argument("--script", default="", choices=["", "keeping"], help="what is played under --fault")
    parser.add_argument("--state", help="rebuild this state alone: ROLE:OPERATION:LOSS:SEED.DRAW")
    parser.add_argument("--states", type=int, help="states to rebuild")
    parser.add_argument("--part", action="append", choices=PARTS, help="do this part alone; may be given again")
    chosen = parser.parse_args()
    if chosen.fault:
        return replay(lambda own: sweep.replay(own, Fault.parse(chosen.fault), chosen.script))
    if chosen.state:
        return replay(lambda own: powerloss.replay(own, chosen.state))
    budget = SHORT if os.environ.get("CRASH_SHORT") else LONG
    if chosen.states:
        budget = msgspec.structs.replace(budget, states=chosen.states)
    return run(budget, chosen.seed, chosen.part or PARTS)
