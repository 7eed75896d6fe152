"""Which kernel of a family runs: the one demanded by QKDNODE_KERNEL, else the fastest that runs here.

The demand is a list of names separated by commas; a family takes the first name that it knows. A demand that cannot be
met is a KernelError, never another kernel.
"""

from collections.abc import Mapping
from enum import IntEnum

from qkdnode.errors import KernelError


class State(IntEnum):
    """Whether a kernel can run, as the C families number it (isa.h)."""

    RUNS = 0
    NOT_BUILT = 1
    CPU_LACKS = 2


FAULTS = {
    State.NOT_BUILT: "is not built into this {family}: build it for an architecture that has it, or choose",
    State.CPU_LACKS: "of {family} needs instructions that this CPU or operating system lacks: choose",
}


def runnable(kernels: Mapping[str, State]) -> tuple[str, ...]:
    """The names of the kernels that run here, fastest first."""
    return tuple(name for name, state in kernels.items() if state is State.RUNS)


def chosen(family: str, kernels: Mapping[str, State], demand: str | None) -> str:
    """The kernel to use out of `kernels`, ordered fastest first, under the text of QKDNODE_KERNEL."""
    here = runnable(kernels)
    names = [name.strip() for name in (demand or "").split(",") if name.strip()]
    if not names:
        return here[0]
    known = next((name for name in names if name in kernels), None)
    if known is None:
        raise KernelError(
            f"QKDNODE_KERNEL={demand} names no kernel of {family}, which knows {', '.join(kernels)}: "
            f"add one of {', '.join(here)}"
        )
    fault = FAULTS.get(kernels[known])
    if fault is not None:
        raise KernelError(
            f"QKDNODE_KERNEL={demand}: kernel {known} {fault.format(family=family)} one of {', '.join(here)}"
        )
    return known
