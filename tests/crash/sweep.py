"""The loop over system calls: each kind at each end, failed in each way, at every call until none is left."""

from collections.abc import Iterator

import msgspec

from crash.controls import CONTROLS, TRIAL, Control
from crash.interposer import ACTS_OF, CALLS, KILL_AFTER, SEND, Fault
from crash.nursery import Nursery
from crash.trial import KEEPING_SCRIPT, ROLLBACK_SCRIPT, SCRIPT, Trial
from qkdnode.ids import ROLES

SCRIPTS = {"": SCRIPT, "kills": SCRIPT, "rollback": ROLLBACK_SCRIPT, "keeping": KEEPING_SCRIPT}


class Found(msgspec.Struct, frozen=True):
    """What a part of the harness did, and what it found."""

    points: int = 0
    violations: tuple[str, ...] = ()

    def __add__(self, other: "Found") -> "Found":
        return Found(self.points + other.points, self.violations + other.violations)


class Line(msgspec.Struct, frozen=True):
    """One kind of call at one end, failed in one way, at every `stride`th call from the `first` on."""

    role: str
    call: int
    act: int
    first: int = 1
    stride: int = 1
    script: str = ""


def lines(stride: dict[int, int], *, offset: int = 0, script: str = "") -> list[Line]:
    """All of them; `stride` by kind of call, every call where it says nothing."""
    found = []
    for call in CALLS:
        step = stride.get(call, 1)
        for number, act in enumerate(ACTS_OF[call]):
            for role in ROLES:
                found.append(Line(role, call, act, 1 + (offset + number * 7) % step, step, script))
    return found


def sweep(nursery: Nursery, line: Line) -> Found:
    """Until a run ends without the fault: there are no more such calls."""
    points, violations = 0, []
    nth = line.first
    while True:
        fault = Fault(line.role, line.call, nth, line.act)
        trial = Trial(nursery, fault, script=SCRIPTS[line.script]).play()
        named = f"--fault {fault}" + f" --script {line.script}" * bool(line.script)
        violations += [f"{named}: {violation}" for violation in trial.violations]
        if not trial.fired:
            return Found(points, tuple(violations))
        points += 1
        nth += line.stride


def replay(nursery: Nursery, fault: Fault, script: str = "") -> Found:
    """One point again."""
    trial = Trial(nursery, fault, script=SCRIPTS[script]).play()
    return Found(int(trial.fired), tuple(f"--fault {fault}: {violation}" for violation in trial.violations))


def _after_promises(nursery: Nursery) -> Iterator[Fault]:
    """Kills right after an end has said what it may never take back."""
    ends = Trial(nursery, None).play().ends
    for promise in ("recorded", "tagged", "ready", "to peer"):
        for role in ROLES:
            for nth in [number for number, name in enumerate(ends[role].sent, 1) if name == promise][:4]:
                yield Fault(role, SEND, nth, KILL_AFTER)


def uncaught(nursery: Nursery, control: Control) -> Found:
    """Look for a planted bug; it is a violation of the harness if it is not found, or found as something else."""
    script, excused = SCRIPTS[control.scenario], ("PoolExhaustedError",) if control.scenario == "rollback" else ()
    points, found = 0, list[str]()
    for fault in _after_promises(nursery) if control.scenario == "kills" else (None,):
        points += 1
        found = Trial(nursery, fault, control=control.name, script=script, excused=excused).play().violations
        if any(control.found_as in violation for violation in found):
            return Found(points)
    return Found(points, (f"control not caught: {control.name}: {found}",))


def controls() -> tuple[Control, ...]:
    """The bugs that this part must find."""
    return tuple(control for control in CONTROLS if control.part == TRIAL)
