"""What a node knows of itself at one moment, as its metrics need it: figures, no adapters.

Nothing here names an application, an association or a key.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

import msgspec

from qkdnode.device.entropy import PoolStatistics
from qkdnode.device.module import ModuleStatistics
from qkdnode.device.qrng import QrngStatistics
from qkdnode.vault.requests import VaultStatus

BEAT_S = 0.1
LAG_WINDOW_S = 60.0


class LinkCounts(Protocol):
    """What a link counts since its start (link.statistics.LinkStatistics)."""

    state: str
    sessions: int
    windows: int
    sifted_bits: int
    x_bits: int
    x_errors: int
    verified_bits: int
    errors: int
    qber_z: float
    alice_bits: int
    bob_bits: int
    blocks: int
    opened_frames: int
    batches_ready: int
    secret_bits: int
    auth_spent_bits: int
    auth_refilled_bits: int
    messages_discarded: int
    discards: dict[str, int]


class ChannelCounts(Protocol):
    """What the classical channel of a link counts (channel.neighbour.ChannelStatistics)."""

    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    connections: int
    disconnections: int
    refused: int
    discarded: int


class SupplyCounts(Protocol):
    """What the supply counts (supply.server.SupplyStatistics)."""

    connections: int
    refused_connections: int
    refused_sessions: int
    refused_subscriptions: int
    keys_sent: int
    keys_sent_again: int
    keys_delivered: int
    keys_not_opened: int
    failed_records: int
    discarded: int


class LinkFigures(msgspec.Struct, frozen=True):
    """One link."""

    link: str
    connected: bool
    counts: LinkCounts
    channel: ChannelCounts


class SupplyFigures(msgspec.Struct, frozen=True):
    """The supply of keys to applications."""

    subscriptions: int
    counts: SupplyCounts


class AlarmFigures(msgspec.Struct, frozen=True):
    """One alarm about one subject, which stays unnamed: it may be an association."""

    code: str
    severity: str
    active: bool
    count: int
    last_ns: int


class Figures(msgspec.Struct, frozen=True):
    """A node. `vault` is None while it does not answer, `pool` and `supply` where there is none."""

    version: str
    links: tuple[LinkFigures, ...]
    modules: tuple[ModuleStatistics, ...]
    qrngs: tuple[QrngStatistics, ...]
    pool: PoolStatistics | None
    vault: VaultStatus | None
    supply: SupplyFigures | None
    alarms: tuple[AlarmFigures, ...]
    loop_lag_s: float


class Readiness(msgspec.Struct, frozen=True):
    """Whether a node can do its work, or why not; and how its links are, which depend on others too."""

    reasons: tuple[str, ...]
    links: Mapping[str, str]

    @property
    def ready(self) -> bool:
        """Whether nothing stands against it."""
        return not self.reasons


class LoopLag:
    """How much later than wanted the event loop comes to what is due: the worst of the last minute or two."""

    def __init__(self) -> None:
        self._now = self._before = 0.0

    @property
    def worst_s(self) -> float:
        """The worst lag, in seconds."""
        return max(self._now, self._before)

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        turn = loop.time() + LAG_WINDOW_S
        while True:
            due = loop.time() + BEAT_S
            await asyncio.sleep(BEAT_S)
            now = loop.time()
            self._now = max(self._now, now - due)
            if now > turn:
                turn, self._before, self._now = now + LAG_WINDOW_S, self._now, 0.0
