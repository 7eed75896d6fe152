"""The reading loop of one device: open, read, watch its health, lose it, come back.

One thread per device runs `step` over and over; a test runs it by hand under a clock of its own.
"""

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from qkdnode.device.alarms import AlarmCode, DeviceAlarm, OnAlarm
from qkdnode.device.identity import DeviceHealth, Personality
from qkdnode.device.transport import BackendFactory, Transport
from qkdnode.errors import DeviceError, DeviceLostError, DeviceNotFoundError, DeviceProtocolError, DeviceUnhealthyError

BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 5.0
HEALTH_EVERY_S = 1.0
SILENCE_S = 5.0
EMPTY_READ_PAUSE_S = 0.002

_CODES: tuple[tuple[type[DeviceError], AlarmCode], ...] = (
    (DeviceUnhealthyError, AlarmCode.DEVICE_UNHEALTHY),
    (DeviceProtocolError, AlarmCode.DEVICE_PROTOCOL),
    (DeviceLostError, AlarmCode.DEVICE_LOST),
    (DeviceNotFoundError, AlarmCode.DEVICE_LOST),
    (DeviceError, AlarmCode.DEVICE_UNUSABLE),
)


class ReaderState(StrEnum):
    """Whether the device is in use."""

    CLOSED = "closed"
    STREAMING = "streaming"


class Sink(Protocol):
    """What the bytes of a device flow into. Called from the reader's thread; must not block."""

    def opened(self, transport: Transport, session: int) -> None:
        """A stream begins. A DeviceError gives the device back."""
        ...

    def health(self, health: DeviceHealth) -> None:
        """What the device says of itself, once a second."""
        ...

    def received(self, data: memoryview) -> bool:
        """Stream of any length, valid during the call; whether a good packet was in it."""
        ...

    def closed(self, error: DeviceError | None) -> None:
        """The stream is over, or could not begin; what was not complete is void. None: closed on purpose."""
        ...


class Reader:
    """Keeps one device streaming into a sink, whatever happens on the bus.

    After any trouble everything is dropped and the device is opened anew on a new backend, 0.1 s later, then 0.2 s, up
    to 5 s, until a good packet arrives. An alarm is raised when a trouble begins or changes its kind, and when it ends.
    """

    def __init__(
        self,
        serial: str,
        personality: Personality,
        backend_factory: BackendFactory,
        sink: Sink,
        *,
        clock: Callable[[], float] = time.monotonic,
        startup_test: bool = False,
    ) -> None:
        self.serial = serial
        self.openings = 0
        self.bytes_read = 0
        self.stalls = 0
        self.on_alarm: OnAlarm | None = None
        self._personality = personality
        self._backend_factory = backend_factory
        self._sink = sink
        self._clock = clock
        self._startup_test = startup_test
        self._acknowledge = False
        self._transport: Transport | None = None
        self._backoff_s = BACKOFF_FIRST_S
        self._in_trouble = False
        self._told: AlarmCode | None = None
        self._heard_at = self._checked_at = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> ReaderState:
        return ReaderState.CLOSED if self._transport is None else ReaderState.STREAMING

    def acknowledge(self) -> bool:
        """Clear, at the next opening, what is latched. False, and nothing is cleared: no such alarm was raised."""
        if self._told is not AlarmCode.DEVICE_UNHEALTHY:
            return False
        self._told = None
        self._acknowledge = True
        return True

    def alarm(self, code: AlarmCode, detail: str) -> None:
        if self.on_alarm is not None:
            self.on_alarm(DeviceAlarm(code, self.serial, detail))

    def start(self) -> None:
        """Run the loop in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name=f"device {self.serial}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if any, and give the device back."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._close(None)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                pause_s = self.step()
                if pause_s:
                    self._stopping.wait(pause_s)
        except BaseException as error:
            # A fault of the program, perhaps of a callback: no more Windows, and that is told, not hidden.
            self._close(None)
            self.alarm(AlarmCode.DEVICE_LOST, f"its driver ended by a fault of the program ({type(error).__name__})")
            raise

    def step(self) -> float:
        """Open the device, or read from it once; how many seconds to wait before the next step."""
        try:
            if self._transport is None:
                self._open()
                return 0.0
            return self._read(self._transport)
        except DeviceError as error:
            self._close(error)
            self._report(error)
            pause_s = self._backoff_s
            self._backoff_s = min(2 * pause_s, BACKOFF_LAST_S)
            return pause_s

    def _open(self) -> None:
        acknowledge = self._acknowledge
        self._transport = Transport.open(
            self.serial,
            self._personality,
            self._backend_factory(),
            acknowledge=acknowledge,
            startup_test=self._startup_test,
        )
        self._sink.opened(self._transport, self._transport.start_stream())
        self._acknowledge = self._acknowledge and not acknowledge
        self.openings += 1
        self._heard_at = self._checked_at = self._clock()

    def _read(self, transport: Transport) -> float:
        data = transport.read()
        self.bytes_read += len(data)
        heard = bool(data) and self._sink.received(data)
        transport.wipe()
        now = self._clock()
        if heard:
            self._heard_at = now
            self._settle()
        elif now - self._heard_at > SILENCE_S:
            transport.check_health()
            raise DeviceLostError(
                f"device {self.serial} sent no good packet for {SILENCE_S:.0f} s; power it off and on"
            )
        if now - self._checked_at >= HEALTH_EVERY_S:
            self._checked_at = now
            transport.check_health()
            self._sink.health(transport.health)
        return 0.0 if data else EMPTY_READ_PAUSE_S

    def _settle(self) -> None:
        self._backoff_s = BACKOFF_FIRST_S
        if self._in_trouble:
            self._in_trouble, self._told = False, None
            self.alarm(AlarmCode.DEVICE_RESTORED, "the device streams again")

    def _report(self, error: DeviceError) -> None:
        code = next(code for kind, code in _CODES if isinstance(error, kind))
        self._in_trouble = True
        if code is not self._told:
            self._told = code
            self.alarm(code, str(error))

    def _close(self, error: DeviceError | None) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            self.stalls += transport.stalls
            transport.close()
        self._sink.closed(error)
