"""The tables of a key's life as text for the documentation: `python -m qkdnode.lifecycle.drawing`."""

from qkdnode.lifecycle.reasons import CODES, COMPROMISES
from qkdnode.lifecycle.rotation import PHASES
from qkdnode.lifecycle.rotation import WAYS as ROTATION_WAYS
from qkdnode.lifecycle.states import STAGES, STEPS, WAYS, Stage, State, after, state_of, steps


def diagram() -> str:
    """States and the steps between them, for Mermaid."""
    ways: dict[tuple[State, State], set[str]] = {}
    for stage, far, step, end, far_then in steps():
        before, then = state_of(stage, far), state_of(end, far_then)
        if before is not then:
            ways.setdefault((before, then), set()).add(step.value)
    lines = ["stateDiagram-v2", f"    [*] --> {_node(State.PRE_ACTIVE)}"]
    for before, ends in WAYS.items():
        for then in State:
            if then in ends:
                lines.append(f"    {_node(before)} --> {_node(then)}: {', '.join(sorted(ways[before, then]))}")
    return "\n".join(lines)


def stages() -> str:
    """Stages, the states they belong to, and where each step leads from them."""
    lines = ["| stage | state | bits here | what it is | steps |", "|---|---|---|---|---|"]
    for stage, standing in STAGES.items():
        state = f"{standing.state}; {State.ACTIVE} once both have it" if stage is Stage.DELIVERED else standing.state
        leads = [
            f"{step} → {end}" if end is not stage else f"{step}"
            for step in STEPS
            if (end := after(stage, True, step)) is not None
        ]
        held = "yes" if standing.holds else "no"
        lines.append(f"| {stage} | {state} | {held} | {standing.meaning} | {', '.join(leads) or 'none'} |")
    return "\n".join(lines)


def reasons() -> str:
    """Reasons to revoke, with their codes in KMIP."""
    lines = ["| reason | KMIP code | makes a key |", "|---|---|---|"]
    for reason, code in CODES.items():
        becomes = "compromised" if reason in COMPROMISES else "deactivated, or destroyed if it is not active yet"
        lines.append(f"| {reason} | {code} | {becomes} |")
    return "\n".join(lines)


def phases() -> str:
    """The phases of a rotation, and what is released and cut in each."""
    lines = [
        "| phase | released of the old | of the new | cut | told to the other end by | what it is |",
        "|---|---|---|---|---|---|",
    ]
    for phase, its in PHASES.items():
        tellers, new = ", ".join(its.tellers) or "nobody", "yes" if its.releases_new else "no"
        lines.append(f"| {phase} | {its.releases_old} | {new} | {its.cuts} | {tellers} | {its.meaning} |")
    return "\n".join(lines)


def rotation_ways() -> str:
    """The ways between the phases of a rotation."""
    lines = [
        "| from | to | who | what must have happened here | the other end is at least |",
        "|---|---|---|---|---|",
    ]
    for way in ROTATION_WAYS:
        cells = (way.start, way.end, way.role or "both", way.fact or "", way.peer or "")
        lines.append("| " + " | ".join(cells).replace("|  |", "| |") + " |")
    return "\n".join(lines).replace("|  |", "| |")


def _node(state: State) -> str:
    return state.replace("-", "").replace(" ", "")


if __name__ == "__main__":
    print(f"```mermaid\n{diagram()}\n```\n\n{stages()}\n\n{reasons()}\n\n{phases()}\n\n{rotation_ways()}")
