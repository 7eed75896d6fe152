"""What a node shows of itself while it runs: its figures, whether its parts answer, whether it is ready."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from qkdnode import __version__
from qkdnode.config import WatchSection
from qkdnode.errors import DiskFullError, VaultError
from qkdnode.node.links import NodeLink
from qkdnode.node.world import NodeEntropy
from qkdnode.supply.server import SupplyServer
from qkdnode.vault import requests as ask
from qkdnode.watch.alarms import Alarm
from qkdnode.watch.figures import AlarmFigures, Figures, LinkFigures, LoopLag, Readiness, SupplyFigures
from qkdnode.watch.http import WatchServer

VAULT_ANSWERS_S = 2.0


class Parts(msgspec.Struct):
    """The parts of a node as far as they are made."""

    entropy: NodeEntropy | None = None
    links: Mapping[str, NodeLink] = msgspec.field(default_factory=dict)
    supply: SupplyServer | None = None
    vault_open: bool = False
    started: bool = False
    stopping: bool = False


class Watching:
    """Reads the parts of a node: `parts` gives them as they are now, `ask_vault` asks the vault."""

    def __init__(
        self,
        *,
        parts: Callable[[], Parts],
        alarms: Callable[[], tuple[Alarm, ...]],
        ask_vault: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self._parts, self._alarms, self._ask_vault = parts, alarms, ask_vault
        self._lag = LoopLag()
        self._measuring: asyncio.Task[None] | None = None
        self._server: WatchServer | None = None

    async def serve(self, section: WatchSection) -> tuple[str, int]:
        """Show it over HTTP; where. ConfigError if the address cannot be had."""
        self._server = WatchServer(figures=self.figures, alive=self.why_not_alive, readiness=self.readiness)
        await self._server.start(*section.address)
        self._measuring = asyncio.create_task(self._lag.run(), name="loop lag")
        return self._server.address

    async def close(self) -> None:
        """Show it no more."""
        if self._server is not None:
            await self._server.close()
        if self._measuring is not None:
            self._measuring.cancel()

    async def why_not_alive(self, within_s: float = VAULT_ANSWERS_S) -> str | None:
        """None if the vault's thread answers in time, from its file; so does the loop, or nobody would be told.

        A full disk is an answer: a node that is ended for it would not find more room. Before the vault is open there
        is nothing to ask.
        """
        if not self._parts().vault_open:
            return None
        try:
            async with asyncio.timeout(within_s):
                await self._ask_vault(ask.Alive())
        except TimeoutError:
            return f"the vault has not answered for {within_s:g} s: look at its disk and at the system log"
        except DiskFullError:
            return None
        except VaultError as error:
            return f"the vault does not answer: {error}"
        return None

    def readiness(self) -> Readiness:
        """Whether random numbers can be drawn, the vault is open and the links are made."""
        parts = self._parts()
        reasons = []
        if parts.stopping:
            reasons.append("the node is stopping")
        if parts.entropy is None or not parts.entropy.healthy:
            reasons.append("no QRNG is healthy: random numbers are refused")
        if not parts.vault_open:
            reasons.append("the vault is not open")
        if not parts.started:
            reasons.append("the links are not made yet")
        return Readiness(
            tuple(reasons), {name: link.link.statistics.state for name, link in sorted(parts.links.items())}
        )

    def status(self) -> str:
        """One line for the service manager."""
        readiness = self.readiness()
        links = ", ".join(f"{name} {state}" for name, state in readiness.links.items())
        return "; ".join([*readiness.reasons, links or "no link"])

    async def figures(self) -> Figures:
        """All figures; the vault's are left out if it does not answer in time."""
        parts = self._parts()
        pool, qrngs = (None, ()) if parts.entropy is None else parts.entropy.statistics()
        return Figures(
            version=__version__,
            links=tuple(
                LinkFigures(name, link.channel.connected, link.link.statistics, link.channel.statistics())
                for name, link in sorted(parts.links.items())
            ),
            modules=tuple(link.module.statistics() for _, link in sorted(parts.links.items())),
            qrngs=qrngs,
            pool=pool,
            vault=await self._vault_status() if parts.vault_open else None,
            supply=None
            if parts.supply is None
            else SupplyFigures(len(parts.supply.subscriptions()), parts.supply.statistics()),
            alarms=tuple(
                AlarmFigures(alarm.code, alarm.severity, alarm.active, alarm.count_of_run, alarm.last_ns)
                for alarm in self._alarms()
            ),
            loop_lag_s=self._lag.worst_s,
        )

    async def _vault_status(self) -> ask.VaultStatus | None:
        try:
            async with asyncio.timeout(VAULT_ANSWERS_S):
                status: ask.VaultStatus = await self._ask_vault(ask.Status())
        except (TimeoutError, VaultError):
            return None
        return status
