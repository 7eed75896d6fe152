"""Rotations that the policy asks for: what the vault cannot know of itself is gathered here, and it decides."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from qkdnode.errors import VaultError
from qkdnode.lifecycle.algorithms import Status, status_of
from qkdnode.node.algorithms import AlgorithmWatch
from qkdnode.node.links import NodeLink
from qkdnode.node.rates import Rates
from qkdnode.node.recorder import Recorder
from qkdnode.node.world import World
from qkdnode.vault.rotations import RotateDue
from qkdnode.watch.alarms import AlarmCode

LOOK_S = 10.0
# Of a device, or of what a link shows of its devices, while they last.
DEGRADING = frozenset(
    {
        AlarmCode.DEVICE_UNHEALTHY, AlarmCode.QBER_HIGH, AlarmCode.QBER_RISEN, AlarmCode.BIT_BIAS, AlarmCode.BASIS_BIAS,
        AlarmCode.STATE_ASYMMETRY, AlarmCode.DOUBLE_CLICKS, AlarmCode.PHOTOCURRENT, AlarmCode.LASER_POWER,
        AlarmCode.BIAS_VOLTAGE, AlarmCode.TEMPERATURE,
    }
)  # fmt: skip


class RotationWatch:
    """Has the rotations begun that the terms of classes ask for. `qrngs` are the serials of the node's."""

    def __init__(
        self,
        *,
        world: World,
        recorder: Recorder,
        links: Mapping[str, NodeLink],
        algorithms: AlgorithmWatch,
        qrngs: Callable[[], tuple[str, ...]],
        ask: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self._world, self._recorder, self._links = world, recorder, links
        self._algorithms, self._qrngs, self._ask = algorithms, qrngs, ask
        self._rates: dict[str, Rates] = {}
        self._slow_since_ns: dict[str, int] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                begun = await self._ask(RotateDue(deprecated=self.deprecated(), degraded=self.degraded()))
            except VaultError as error:
                self._recorder.alarm(error.code, "vault", str(error))
                continue
            if begun:
                for link in self._links.values():
                    link.link.agreement.rotated()

    def deprecated(self) -> dict[str, int]:
        """From when on algorithms are deprecated that are so on the day that counts."""
        found = {}
        for row in self._algorithms.registry.values():
            is_approved = status_of(row.id, self._algorithms.day, self._algorithms.registry) is Status.APPROVED
            if not is_approved and row.deprecated_from is not None:
                since = datetime.fromisoformat(row.deprecated_from).replace(tzinfo=UTC)
                found[row.id] = round(since.timestamp()) * 10**9
        return found

    def degraded(self) -> dict[str, int]:
        """Since when links are degraded, by the newest thing that is wrong with each."""
        found = {}
        for name, link in self._links.items():
            about = {name, link.module.serial, *self._qrngs()}
            moments = [
                alarm.first_ns
                for alarm in self._recorder.alarms.all()
                if alarm.active and alarm.code in DEGRADING and alarm.subject in about
            ]
            moments += self._slow(name, link)
            if moments:
                found[name] = max(moments)
        return found

    def _slow(self, name: str, link: NodeLink) -> list[int]:
        """Since when a link gives less key than its configuration wants."""
        rates = self._rates.setdefault(name, Rates())
        rates.take(self._world.monotonic_ns(), link.link.statistics)
        least, now = link.section.limits.least_secret_bps, rates.secret_bps
        if least is None or now is None or now >= least:
            self._slow_since_ns.pop(name, None)
            return []
        return [self._slow_since_ns.setdefault(name, self._world.wall_ns())]
