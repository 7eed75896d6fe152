"""The time that timers of keys are held to: begun from what the vault knows, made of both clocks, and confirmed."""

import asyncio
import threading
from collections.abc import Callable

from qkdnode.audit.events import Detail
from qkdnode.errors import ControlError
from qkdnode.lifecycle.clockguard import ClockGuard, Doubt, Limits, Reading, Standing
from qkdnode.node.recorder import Recorder
from qkdnode.watch.alarms import AlarmCode
from qkdnode.wire.control import ClockStatus

LOOK_S = 1.0
HELD_UP_NS = 10**9  # a reading of both clocks that took longer is taken again
ATTEMPTS = 4
SECOND_NS = 10**9
DEFAULT = Limits()


class NodeClock:
    """Trusted time of one run of a node. The vault's thread reads it at each request, the loop once a second."""

    def __init__(self, wall_ns: Callable[[], int], steady_ns: Callable[[], int], *, limits: Limits = DEFAULT) -> None:
        self._wall_ns, self._steady_ns, self._limits = wall_ns, steady_ns, limits
        self._gate = threading.Lock()
        self._guard: ClockGuard | None = None
        self._doubts: list[tuple[Doubt, Standing]] = []

    def begin(self, known_ns: int, withheld_ns: int) -> Callable[[], Standing]:
        """The vault is opened and knows of this time: from here on trusted time runs. Gives the clock."""
        with self._gate:
            self._guard = ClockGuard(self._reading(), known_ns=known_ns, withheld_ns=withheld_ns, limits=self._limits)
            self._note(self._guard.start)
        return self.read

    def now_ns(self) -> int:
        """Trusted time."""
        return self.read().trusted_ns

    def read(self) -> Standing:
        """What is trusted now."""
        with self._gate:
            if self._guard is None:
                raise RuntimeError("trusted time has not begun: the vault is not open")
            standing = self._guard.read(self._reading())
            self._note(standing)
        return standing

    def confirm(self, until_ns: int) -> Standing:
        """A person says that the wall clock is right up to this time."""
        with self._gate:
            if self._guard is None:
                raise RuntimeError("trusted time has not begun: the vault is not open")
            self._note(self._guard.read(self._reading()))
            return self._guard.confirm(until_ns)

    def take_doubts(self) -> list[tuple[Doubt, Standing]]:
        """What was noticed since the last call."""
        with self._gate:
            taken, self._doubts = self._doubts, []
        return taken

    def _reading(self) -> Reading:
        """Both clocks, as close together as this process is let."""
        left = ATTEMPTS
        while True:
            before = self._steady_ns()
            wall, after = self._wall_ns(), self._steady_ns()
            left -= 1
            if after - before <= HELD_UP_NS or not left:
                return Reading(wall, after)

    def _note(self, standing: Standing) -> None:
        if standing.doubt is not None:
            self._doubts.append((standing.doubt, standing))


WHAT_TO_DO = {
    Doubt.SET_FORWARD: "if the clock is right now, confirm it; if not, set it right",
    Doubt.SET_BACK: "set the wall clock right: trusted time goes on as it was and never goes back",
    Doubt.AHEAD_AT_START: "if the node was off for so long, confirm the wall clock; if not, set it right",
    Doubt.BEHIND_AT_START: "set the wall clock right: timers go on from the newest time that the vault knows",
}


class ClockCare:
    """Tells of doubts about the wall clock, and has it confirmed."""

    def __init__(self, node: str, clock: NodeClock, *, wall_ns: Callable[[], int], recorder: Recorder) -> None:
        self._node, self._clock, self._wall_ns, self._recorder = node, clock, wall_ns, recorder

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Leaves and the alarm for what was noticed; the alarm ends once both times agree."""
        standing = self._clock.read()
        for doubt, then in self._clock.take_doubts():
            self._recorder.record("node.clock_doubted", self._node, {"doubt": doubt.value, **_spans(then)})
            detail = f"{doubt}: the wall clock is {_difference(then)} trusted time; {WHAT_TO_DO[doubt]}"
            self._recorder.alarm(AlarmCode.CLOCK, self._node, detail)
        if max(standing.withheld_ns, standing.behind_ns) <= DEFAULT.stepped_ns:
            self._recorder.clear(AlarmCode.CLOCK, self._node)

    def status(self) -> ClockStatus:
        """Both times."""
        standing = self._clock.read()
        return ClockStatus(
            wall_ns=self._wall_ns(),
            trusted_ns=standing.trusted_ns,
            withheld_ns=standing.withheld_ns,
            behind_ns=standing.behind_ns,
        )

    def confirm(self, until_ns: int) -> ClockStatus:
        """An operator says that the wall clock is right up to a time; that they do was journalled before."""
        standing, wall_ns = self._clock.read(), self._wall_ns()
        if until_ns > wall_ns:
            raise ControlError("the wall clock has not come to that time: confirm it up to a time that is past")
        if until_ns <= standing.trusted_ns:
            raise ControlError("trusted time is past that already, and never goes back: there is nothing to confirm")
        after = self._clock.confirm(until_ns)
        details: dict[str, Detail] = {"before_ns": standing.trusted_ns, **_spans(after)}
        self._recorder.record("node.clock_confirmed", self._node, details)
        self.look()
        return self.status()


def _spans(standing: Standing) -> dict[str, Detail]:
    return {
        "trusted_ns": standing.trusted_ns,
        "withheld_s": standing.withheld_ns // SECOND_NS,
        "behind_s": standing.behind_ns // SECOND_NS,
    }


def _difference(standing: Standing) -> str:
    if standing.withheld_ns:
        return f"{standing.withheld_ns / SECOND_NS:.0f} s ahead of"
    return f"{standing.behind_ns / SECOND_NS:.0f} s behind"
