"""What a node watches about itself while it runs: disk, wall clock, authentication key, random numbers."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from qkdnode.authentication.reserve import Forecast
from qkdnode.config import AlarmsSection
from qkdnode.node.links import NodeLink
from qkdnode.node.recorder import Recorder
from qkdnode.node.world import World
from qkdnode.watch.alarms import AlarmCode
from qkdnode.watch.clock import ClockWatch

LOOK_S = 1.0
LOOKS_FOR_DISK = 10  # every so many looks
ENOUGH = 1.1  # times the limit: the disk alarm ends
ENTROPY_QUIET_NS = 30 * 10**9
MIB = 1 << 20


class Vigil:
    """Raises and ends the alarms of one node about itself. `has_entropy` tells whether a QRNG is healthy."""

    def __init__(
        self,
        node: str,
        limits: AlarmsSection,
        directory: Path,
        *,
        world: World,
        recorder: Recorder,
        links: Mapping[str, NodeLink],
        has_entropy: Callable[[], bool],
    ) -> None:
        self._node, self._limits, self._directory = node, limits, directory
        self._world, self._recorder, self._links, self._has_entropy = world, recorder, links, has_entropy
        self._clock = ClockWatch(round(limits.clock_step_s * 1e9))
        self._forecasts: dict[str, Forecast] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        looks = 0
        while True:
            self._look_at_clock()
            self._look_at_authentication_key()
            if self._has_entropy():
                # Also when nobody saw a change: random numbers may have been too slow only.
                self._recorder.clear(AlarmCode.NO_ENTROPY, quiet_ns=ENTROPY_QUIET_NS)
            if looks % LOOKS_FOR_DISK == 0:
                await self._look_at_disk()
            looks += 1
            await asyncio.sleep(LOOK_S)

    def _look_at_clock(self) -> None:
        before_ns, wall_ns = self._world.monotonic_ns(), self._world.wall_ns()
        step_ns = self._clock.look(before_ns, wall_ns, self._world.monotonic_ns())
        if step_ns is not None:
            detail = f"the wall clock was set by {step_ns / 1e9:+.3f} s, or the machine slept"
            self._recorder.alarm(AlarmCode.CLOCK_STEP, self._node, detail)

    def _look_at_authentication_key(self) -> None:
        for name, link in self._links.items():
            wanted = link.section.authentication
            if name not in self._forecasts:
                self._forecasts[name] = Forecast(wanted.target_bits, wanted.reserve_bits)
            forecast = self._forecasts[name]
            forecast.take(self._world.monotonic_ns(), link.link.reserve_bits)
            days = forecast.days_left()
            if days is None or days >= self._limits.reserve_days:
                self._recorder.clear(AlarmCode.AUTH_RESERVE, name)
            elif not self._recorder.alarms.is_active(AlarmCode.AUTH_RESERVE, name):
                detail = f"{link.link.reserve_bits} bits of authentication key are left, for {days:.2f} days as it goes"
                self._recorder.alarm(AlarmCode.AUTH_RESERVE, name, detail)

    async def _look_at_disk(self) -> None:
        limit = self._limits.disk_free_bytes
        try:
            free = await self._world.free_bytes(self._directory)
        except OSError as error:
            self._recorder.alarm(AlarmCode.DISK_LOW, self._node, f"cannot tell how full the disk is: {error.strerror}")
            return
        if free < limit:
            detail = f"{free / MIB:.0f} MiB are free for the vault, less than {limit / MIB:.0f}"
            self._recorder.alarm(AlarmCode.DISK_LOW, self._node, detail)
        elif free >= ENOUGH * limit:
            self._recorder.clear(AlarmCode.DISK_LOW, self._node)
