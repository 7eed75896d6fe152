"""Driver of a QRNG: a device on the bus feeds one source of the entropy pool."""

import time
from collections.abc import Callable

import msgspec

from qkdnode.device.alarms import AlarmCode, OnAlarm
from qkdnode.device.assembly import Scan, ScanCounters, types
from qkdnode.device.entropy import Source, SourceState, SourceStatistics
from qkdnode.device.identity import DeviceHealth, DeviceInfo, Personality
from qkdnode.device.reader import Reader, ReaderState
from qkdnode.device.sensors import SensorLimits, Sensors
from qkdnode.device.transport import READ_BYTES, BackendFactory, Transport
from qkdnode.errors import DeviceError, DeviceUnhealthyError
from qkdnode.native import packets


class QrngStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver has seen since it was made."""

    serial: str
    state: ReaderState
    openings: int
    bytes_read: int
    stalls: int
    scan: ScanCounters
    source: SourceStatistics


class QrngModule:
    """One QRNG. Its raw bytes pass the agent's own health tests, start-up test included, at each opening.

    A failure of the device's or of the agent's tests is latched: the device stays closed, and nothing of it is drawn,
    until `acknowledge`.
    """

    def __init__(
        self,
        serial: str,
        backend_factory: BackendFactory,
        source: Source,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.serial = serial
        self.info: DeviceInfo | None = None
        self._source = source
        self._scan = Scan(types(packets.RAW, packets.GAP), READ_BYTES)
        self._reader = Reader(serial, Personality.QRNG, backend_factory, self, clock=clock, startup_test=True)
        self._acknowledged = False
        self._sensors = Sensors(Personality.QRNG, SensorLimits())

    def listen(self, on_alarm: OnAlarm) -> None:
        """Who is told; for a caller that runs `step` itself."""
        self._reader.on_alarm = on_alarm

    def start(self, on_alarm: OnAlarm) -> None:
        """Stream in a thread of its own until `stop`."""
        self.listen(on_alarm)
        self._reader.start()

    def step(self) -> float:
        """One step of the reading loop; seconds to wait before the next."""
        return self._reader.step()

    def stop(self) -> None:
        """End the thread and give the device back."""
        self._reader.stop()

    def acknowledge(self) -> bool:
        """A person has looked at the device: test it from the start at the next opening. False: nothing is latched."""
        self._acknowledged = self._reader.acknowledge()
        return self._acknowledged

    def opened(self, transport: Transport, session: int) -> None:
        acknowledged, self._acknowledged = self._acknowledged, False
        if not self._source.restart(acknowledge=acknowledged):
            raise self._failure()
        self.info = transport.info
        self._scan.scanner.expect(session)

    def received(self, data: memoryview) -> bool:
        before, was_healthy = self._scan.counters.packets, self._source.healthy
        gaps = 0
        for kind, _, count, offset, _, _ in self._scan.feed(data):
            if kind == packets.GAP:
                self._source.skip()
                gaps += 1
            elif kind == packets.RAW:
                self._source.push(self._scan.payload[offset : offset + count])
        self._scan.wipe()
        if self._source.state is SourceState.FAILED:
            raise self._failure()
        if gaps and was_healthy:
            self._reader.alarm(AlarmCode.DEVICE_GAP, f"{gaps} gaps in the raw stream")
        return self._scan.counters.packets > before

    def health(self, health: DeviceHealth) -> None:
        for code, detail in self._sensors.judge(health):
            self._reader.alarm(code, detail)

    def _failure(self) -> DeviceUnhealthyError:
        return DeviceUnhealthyError(
            f"QRNG {self.serial} failed ({self._source.reason}); everything of it not yet drawn is discarded; "
            "look at the device, then acknowledge the alarm"
        )

    def closed(self, error: DeviceError | None) -> None:
        if isinstance(error, DeviceUnhealthyError) and self._source.state is not SourceState.FAILED:
            self._source.fail("latched alarm of the device")
        elif error is not None:
            self._source.lose(error.code)
        else:
            self._source.lose("closed")

    def statistics(self) -> QrngStatistics:
        return QrngStatistics(
            serial=self.serial,
            state=self._reader.state,
            openings=self._reader.openings,
            bytes_read=self._reader.bytes_read,
            stalls=self._reader.stalls,
            scan=self._scan.counters,
            source=self._source.statistics(),
        )
