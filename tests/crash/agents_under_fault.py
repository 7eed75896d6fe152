"""Whole agents under faults at system calls: two nodes with link, supply and applications, one under the library.

After the fault the node is started again without; then both have to come to the same, as after any crash.
"""

import contextlib
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from crash import interposer
from crash.interposer import ACTS_OF, Fault, ordered
from crash.sweep import Found

INTEGRATION = Path(__file__).resolve().parents[1] / "integration"
MORE_KEYS = 40  # that each application gets after the fault
STRIKES_WITHIN_S = 12.0
SPREAD = {  # how far into a run of an agent calls of a kind are looked for
    interposer.WRITE: 1500,
    interposer.SYNC: 120,
    interposer.SEND: 400,
}


@contextlib.contextmanager
def environment(added: dict[str, str]) -> Iterator[None]:
    """For processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def drawn(number: int, seed: int) -> list[Fault]:
    """Faults, the same for the same seed."""
    draws = random.Random(f"agents {seed}")
    found = []
    for index in range(number):
        call = (interposer.SYNC, interposer.SEND, interposer.WRITE)[index % 3]
        nth = round(draws.random() ** 2 * SPREAD[call]) + 1
        found.append(Fault(("alice", "bob")[index // 3 % 2], call, nth, draws.choice(ACTS_OF[call])))
    return found


def run(fault: Fault) -> Found:
    """One run."""
    if str(INTEGRATION) not in sys.path:
        sys.path.append(str(INTEGRATION))
    from agents import Site, both_applications, two_nodes, wait_for_keys
    from test_agents import demand_equal_ends

    try:
        with Site() as site:
            two_nodes(site)
            fired = site.directory / "fired"
            applications = both_applications(site)
            agents = {}
            for node in ("alice", "bob"):
                armed = ordered(site.directory, fault, fired) if node == fault.role else {}
                with environment(armed):
                    agents[node] = site.agent(node)
            until = time.monotonic() + STRIKES_WITHIN_S
            while time.monotonic() < until and not (fired.exists() and fired.stat().st_size):
                time.sleep(0.05)
            struck = fired.exists() and fired.stat().st_size > 0
            time.sleep(0.3)
            agents[fault.role].kill()  # what the fault has left alive is cut off
            seen = {node: len(agent.lines) for node, agent in agents.items()}
            agents[fault.role] = site.agent(fault.role)
            for node, agent in agents.items():
                if node == fault.role:
                    agent.wait_for_event("session open")
                elif agent.child.poll() is None:
                    agent.wait_for_event("session open", after=seen[node])
            for application in applications:
                wait_for_keys(application, MORE_KEYS)
            for agent in agents.values():
                agent.child.terminate()
            for agent in agents.values():
                assert agent.wait() == 0, f"{agent.name} did not end in order: {agent.shown()}"
            for application in applications:
                application.stop()
            demand_equal_ends(site, *applications)
            return Found(int(struck))
    except AssertionError as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Found(1, (f"agents, fault {fault}: {where.line}: {error}",))


def runs(number: int, seed: int) -> Found:
    """Several runs."""
    return sum((run(fault) for fault in drawn(number, seed)), Found())
