"""Drivers of QKD modules: a device on the bus becomes Windows and alarms."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Generic

import msgspec

from qkdnode.device.alarms import AlarmCode, OnAlarm
from qkdnode.device.assembly import Assembly, ReceiverAssembly, ScanCounters, TransmitterAssembly
from qkdnode.device.clock import ReceiverClock
from qkdnode.device.identity import DeviceConfig, DeviceHealth, DeviceInfo, Personality
from qkdnode.device.reader import Reader, ReaderState
from qkdnode.device.sensors import SensorLimits, Sensors
from qkdnode.device.transport import READ_BYTES, BackendFactory, Transport
from qkdnode.device.windows import DEFAULT_LIVE_LIMIT, Discard, ReceiverWindow, TransmitterWindow, W
from qkdnode.errors import DeviceError, DeviceProtocolError

NO_LIMITS = SensorLimits()
GAPS = (Discard.LOST, Discard.REPORTED, Discard.REGRESSED, Discard.CONFLICT)


class ModuleStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver has seen since it was made; `scan` is None until the device was first opened."""

    serial: str
    state: ReaderState
    openings: int
    bytes_read: int
    stalls: int
    scan: ScanCounters | None
    windows: int
    discarded: dict[Discard, int]
    recalled_too_late: int
    misplaced: int
    clock_locked: bool
    clock_losses: int
    clock_rate_ppm: float | None


def _time_base(info: DeviceInfo) -> tuple[int, int]:
    return info.slot_units, info.sync_interval_slots


def _clock_losses(assembly: Assembly[W]) -> int:
    return 0 if assembly.clock is None else assembly.clock.losses


def _gaps(assembly: Assembly[W]) -> Counter[Discard]:
    return Counter({reason: assembly.judgement.discarded[reason] for reason in GAPS})


class QkdModule(Generic[W]):
    """One QKD module. `on_window` and `on_alarm` are called from the reader's thread and must not block.

    A consumer that still holds `live_limit` Windows gets no new ones: the newest are dropped whole and counted.
    Windows come in ascending order, also across re-openings: a device that counts its slots anew yields none, with an
    alarm, until it is past the last one. Gaps before the first Window of an opening are counted
    but raise no alarm.
    """

    def __init__(
        self,
        serial: str,
        personality: Personality,
        backend_factory: BackendFactory,
        assemble: Callable[[DeviceInfo], Assembly[W]],
        *,
        limits: SensorLimits = NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.serial = serial
        self.info: DeviceInfo | None = None
        self.config: DeviceConfig | None = None
        self._reader = Reader(serial, personality, backend_factory, self, clock=clock)
        self._assemble: Callable[[DeviceInfo], Assembly[W]] = assemble
        self._assembly: Assembly[W] | None = None
        self._on_window: Callable[[W], None] | None = None
        self._windows_since_opening = 0
        self._sensors = Sensors(personality, limits)

    def listen(self, on_window: Callable[[W], None], on_alarm: OnAlarm) -> None:
        """Who is told; for a caller that runs `step` itself."""
        self._on_window = on_window
        self._reader.on_alarm = on_alarm

    def start(self, on_window: Callable[[W], None], on_alarm: OnAlarm) -> None:
        """Stream in a thread of its own until `stop`."""
        self.listen(on_window, on_alarm)
        self._reader.start()

    def step(self) -> float:
        """One step of the reading loop; seconds to wait before the next."""
        return self._reader.step()

    def stop(self) -> None:
        """End the thread and give the device back."""
        self._reader.stop()

    def acknowledge(self) -> bool:
        """A person has looked at the device: clear its latched alarms at the next opening. False: there are none."""
        return self._reader.acknowledge()

    def opened(self, transport: Transport, session: int) -> None:
        info = transport.info
        if self.info is not None and self._assembly is not None and _time_base(info) != _time_base(self.info):
            raise DeviceProtocolError(
                f"device {self.serial} has changed its slot rate or sync interval: restart the agent"
            )
        self.info, self.config = info, transport.config
        if self._assembly is None:
            self._assembly = self._assemble(info)
        self._assembly.expect(session)
        self._windows_since_opening = 0

    def received(self, data: memoryview) -> bool:
        assembly = self._assembly
        assert assembly is not None
        behind = assembly.judgement.behind
        packets, losses, gaps = assembly.counters.packets, _clock_losses(assembly), _gaps(assembly)
        for window in assembly.feed(data):
            self._windows_since_opening += 1
            if self._on_window is not None:
                self._on_window(window)
        if assembly.judgement.behind and not behind:
            self._reader.alarm(
                AlarmCode.DEVICE_PROTOCOL, "its slots lie before those already used: restart the agents of both ends"
            )
        if _clock_losses(assembly) > losses:
            self._reader.alarm(AlarmCode.DEVICE_CLOCK, "the receiver's clock jumped against the sync pulses")
        if self._windows_since_opening:
            for reason, count in (_gaps(assembly) - gaps).items():
                self._reader.alarm(AlarmCode.DEVICE_GAP, f"{count} Windows discarded: {reason}")
        return assembly.counters.packets > packets

    def health(self, health: DeviceHealth) -> None:
        for code, detail in self._sensors.judge(health):
            self._reader.alarm(code, detail)

    def closed(self, error: DeviceError | None) -> None:
        if self._assembly is not None:
            self._assembly.stop(Discard.DEVICE)

    def statistics(self) -> ModuleStatistics:
        reader, assembly = self._reader, self._assembly
        judgement = None if assembly is None else assembly.judgement
        clock = None if assembly is None else assembly.clock
        return ModuleStatistics(
            serial=self.serial,
            state=reader.state,
            openings=reader.openings,
            bytes_read=reader.bytes_read,
            stalls=reader.stalls,
            scan=None if assembly is None else assembly.counters,
            windows=0 if judgement is None else judgement.emitted,
            discarded={} if judgement is None else dict(judgement.discarded),
            recalled_too_late=0 if judgement is None else judgement.recalled_too_late,
            misplaced=0 if judgement is None else judgement.misplaced,
            clock_locked=clock is not None and clock.locked,
            clock_losses=0 if clock is None else clock.losses,
            clock_rate_ppm=None if clock is None else clock.rate_ppm,
        )


class TransmitterModule(QkdModule[TransmitterWindow]):
    """Driver of a QKD-Tx."""

    def __init__(
        self,
        serial: str,
        backend_factory: BackendFactory,
        *,
        slots_per_window: int,
        live_limit: int = DEFAULT_LIVE_LIMIT,
        limits: SensorLimits = NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def assemble(_: DeviceInfo) -> TransmitterAssembly:
            return TransmitterAssembly(slots_per_window=slots_per_window, feed_bytes=READ_BYTES, live_limit=live_limit)

        super().__init__(serial, Personality.TRANSMITTER, backend_factory, assemble, limits=limits, clock=clock)


class ReceiverModule(QkdModule[ReceiverWindow]):
    """Driver of a QKD-Rx; its slots are the transmitter's, by the sync pulses."""

    def __init__(
        self,
        serial: str,
        backend_factory: BackendFactory,
        *,
        slots_per_window: int,
        live_limit: int = DEFAULT_LIVE_LIMIT,
        limits: SensorLimits = NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def assemble(info: DeviceInfo) -> ReceiverAssembly:
            return ReceiverAssembly(
                slots_per_window=slots_per_window,
                feed_bytes=READ_BYTES,
                clock=ReceiverClock(slot_units=info.slot_units, sync_slots=info.sync_interval_slots),
                live_limit=live_limit,
            )

        super().__init__(serial, Personality.RECEIVER, backend_factory, assemble, limits=limits, clock=clock)
