"""The random numbers of a node: its QRNGs and the pool that they feed."""

import asyncio
from collections.abc import Callable

from typing_extensions import Buffer

from qkdnode.config import Config
from qkdnode.device.alarms import OnAlarm
from qkdnode.device.entropy import DEFAULT_CAPACITY_BYTES, EntropyPool, PoolStatistics
from qkdnode.device.identity import DeviceInfo
from qkdnode.device.qrng import QrngModule, QrngStatistics
from qkdnode.errors import NoEntropyError
from qkdnode.native.secret import SecretBuffer
from qkdnode.native.toeplitz import Toeplitz
from qkdnode.node.devices import qrng_backend

READY_BYTES = 4096
START_WAIT_S = 20.0
LOOK_S = 0.02
DRAW_WAIT_S = 0.25


class Entropy:
    """The pool and its QRNGs. `on_change(healthy)` and `on_alarm` are called from the devices' threads."""

    def __init__(self, config: Config, *, on_change: Callable[[bool], None], on_alarm: OnAlarm) -> None:
        self._on_alarm = on_alarm
        seeds = [link.distill.batch_max_bits // 8 for link in config.link]
        self._pool = EntropyPool(
            capacity_bytes=max(DEFAULT_CAPACITY_BYTES, 2 * max(seeds, default=0)),
            extractor=lambda n, m: Toeplitz(bits_in=n, bits_out=m, family="modified", uses=None),
            on_change=on_change,
        )
        self._qrngs = [
            QrngModule(
                section.serial,
                qrng_backend(section),
                self._pool.attach(section.serial, entropy_bits=section.min_entropy_per_byte),
            )
            for section in config.qrng
        ]

    @property
    def healthy(self) -> bool:
        """Whether at least one QRNG is healthy."""
        return self._pool.healthy

    async def start(self) -> None:
        """Start the QRNGs and wait for the first random numbers. NoEntropyError if none come in time."""
        for qrng in self._qrngs:
            qrng.start(self._on_alarm)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_WAIT_S
        while not self._pool.healthy or self._pool.available_bytes < READY_BYTES:
            if loop.time() > deadline:
                raise NoEntropyError(
                    f"no QRNG delivered healthy random numbers within {START_WAIT_S:.0f} s: check the devices "
                    + ", ".join(qrng.serial for qrng in self._qrngs)
                )
            await asyncio.sleep(LOOK_S)

    def draw(self, size: int) -> SecretBuffer:
        """Random bytes now; EntropyShortError if the QRNGs are slower than the demand."""
        return self._pool.draw(size)

    def draw_into(self, buffer: Buffer) -> None:
        """Fill a buffer, waiting shortly for the QRNGs: for threads that may wait."""
        self._pool.draw_into(buffer, wait_s=DRAW_WAIT_S)

    def statistics(self) -> tuple[PoolStatistics, tuple[QrngStatistics, ...]]:
        """Counts of the pool and of each QRNG."""
        return self._pool.statistics(), tuple(qrng.statistics() for qrng in self._qrngs)

    def infos(self) -> dict[str, DeviceInfo | None]:
        """What each QRNG says of itself, by its serial; None for one that was not opened yet."""
        return {qrng.serial: qrng.info for qrng in self._qrngs}

    def acknowledge(self, serial: str) -> bool:
        """A person has looked at a QRNG: test it from the start at its next opening. False: nothing is latched."""
        return any(qrng.acknowledge() for qrng in self._qrngs if qrng.serial == serial)

    async def stop(self) -> None:
        """Stop the QRNGs."""
        for qrng in self._qrngs:
            await asyncio.to_thread(qrng.stop)
