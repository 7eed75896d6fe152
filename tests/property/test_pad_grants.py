"""Two real vaults, crashes, and older copies put back at either end: no pad is reserved twice, or the ends refuse.

Copies are put back one at a time: both ends older without a session in between look like both after a power cut.
"""

import os
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from link_world import LINK, MEMORY, NODES, open_vault, provisioned

from qkdnode.authentication.pool import AuthKeyPool, Segment
from qkdnode.errors import PoolExhaustedError
from qkdnode.ids import ALICE, BOB, ROLES, PadAddress, other_role
from qkdnode.vault import requests as ask
from qkdnode.wire.messages import Greeting, Mark

TIMES = int(os.environ.get("QKDNODE_EXAMPLES", "1"))
PADS = 160


class Node:
    """One vault, the pool of its present run, and the copies that were taken of it."""

    def __init__(self, place: Path, role: str) -> None:
        self.place, self.role, self.runs = place, role, 0
        self.copies: list[Path] = []
        self.files = provisioned(PADS) / role
        self.start(self.files)

    def start(self, files: Path) -> None:
        self.runs += 1
        target = self.place / f"{self.role}-{self.runs}"
        copied(files, target)
        self.files = target
        self.vault = open_vault(target, self.role, random.Random(self.runs))
        state = self.vault.call(ask.OpenLink(link=LINK, role=self.role, peer=NODES[other_role(self.role)]))
        state.greeting_key.release()
        self.run, self.pool = state.start, AuthKeyPool(self.role)
        for one in state.segments:
            self.pool.add(Segment(one.segment, one.pads_per_direction, one.material, one.sending, one.seen))

    def stop(self) -> None:
        """As a kill leaves it."""
        left = self.place / f"{self.role}-{self.runs}-left"
        copied(self.files, left)
        self.vault.close()
        self.pool.close()
        self.files = left

    def copy(self) -> None:
        target = self.place / f"{self.role}-{self.runs}-copy-{len(self.copies)}"
        copied(self.files, target)
        self.copies.append(target)

    def says(self, granter: bytes) -> Greeting:
        counter = self.vault.call(ask.NextSession(link=LINK))
        stated = self.vault.call(ask.StateLink(link=LINK))
        lacks = self.pool.lacks(4, granter)
        return Greeting(NODES[self.role], LINK, b"pair", self.run, counter, b"", 0, False, "", stated, lacks, ())

    def reserve(self, count: int) -> tuple[PadAddress, ...]:
        request = ask.ReservePads(link=LINK, count=count, within=self.pool.allowed())
        try:
            pads: tuple[PadAddress, ...] = self.vault.call(request)
        except PoolExhaustedError:
            return ()
        for pad in pads:
            self.pool.reserved(pad)
        return pads


def copied(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for file in ("vault.db", "vault.db-wal", "credential"):
        if (source / file).exists():
            shutil.copy2(source / file, target / file)


def admitted(nodes: dict[str, Node]) -> bool:
    """Whether a session begins."""
    said = {role: nodes[role].says(nodes[other_role(role)].run) for role in ROLES}
    answers = {
        role: nodes[role].vault.call(ask.AdmitPeer(link=LINK, greeting=said[other_role(role)])) for role in ROLES
    }
    if any(answer.refused for answer in answers.values()):
        return False
    for role in ROLES:
        nodes[role].pool.admit(nodes[other_role(role)].run)
        nodes[role].pool.allow(answers[other_role(role)].granted)
    return True


# What an end does; each session begins by itself. A restore takes the last copy but `nth`.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("seen", "unseen", "unseen", "more", "crash", "copy", "copy", "restore", "restore")),
        st.sampled_from(ROLES),
        st.integers(0, 2),
    ),
    min_size=12,
    max_size=32,
)


@settings(max_examples=30 * TIMES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(STEPS)
@example(
    # Bob forgets a grant that Alice has not used yet; then Alice forgets that she used it.
    [("copy", BOB, 0), ("more", ALICE, 0), ("restore", BOB, 0), ("copy", ALICE, 0)]
    + 4 * [("unseen", ALICE, 2)]
    + [("restore", ALICE, 0), ("unseen", ALICE, 2)]
)
def test_no_pad_is_reserved_twice_whatever_copy_comes_back(steps: list[tuple[str, str, int]]) -> None:
    place = Path(tempfile.mkdtemp(prefix="qkdnode-grants-", dir=MEMORY))
    nodes = {role: Node(place, role) for role in ROLES}
    used: dict[str, set[PadAddress]] = {role: set() for role in ROLES}
    try:
        goes_on = admitted(nodes)
        assert goes_on
        for step, role, nth in steps:
            node, other = nodes[role], nodes[other_role(role)]
            if step == "crash" or (step == "restore" and node.copies):
                node.stop()
                node.start(node.copies[max(0, len(node.copies) - 1 - nth)] if step == "restore" else node.files)
                if not admitted(nodes):
                    break  # for an operator to provision the pair anew
            elif step == "copy":
                node.copy()
            elif step == "more":
                sending = node.vault.call(ask.StateLink(link=LINK)).sending
                node.pool.allow(other.vault.call(ask.GrantPads(link=LINK, count=8, sending=sending)))
            elif step != "restore":
                pads = node.reserve(1 + nth)
                assert used[role].isdisjoint(pads), f"{role} reserved {used[role] & set(pads)} again"
                used[role].update(pads)
                if step == "seen":
                    for pad in pads:
                        other.vault.call(ask.NoteSeen(link=LINK, marks=(Mark(pad.segment, pad.index + 1),)))
    finally:
        for node in nodes.values():
            node.vault.close()
            node.pool.close()
        shutil.rmtree(place)
