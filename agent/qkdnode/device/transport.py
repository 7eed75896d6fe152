"""USB transport of one device: found by serial, checked before use, read in large bulk transfers."""

import errno
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any, Self

import usb.backend.libusb1
import usb.core
import usb.util
from usb.backend import IBackend

from qkdnode.device.identity import (
    RECORD_BYTES,
    DeviceConfig,
    DeviceHealth,
    DeviceInfo,
    Personality,
    check_health,
    check_identity,
    decode_config,
    decode_health,
    decode_info,
)
from qkdnode.errors import DeviceError, DeviceLostError, DeviceNotFoundError, DeviceProtocolError
from qkdnode.native.secret import wipe

VENDOR_ID, PRODUCT_ID = 0x1209, 0x0001
INTERFACE = 0
BULK_IN = 0x81
READ_BYTES = 256 * 1024  # transfers of one packet manage 1 MB/s on real hosts
READ_TIMEOUT_MS = 100
CONTROL_TIMEOUT_MS = 1000
STALLS_IN_A_ROW = 8

_IN, _OUT = 0xC0, 0x40  # vendor requests to the device
ALL_ALARMS = 0xFFFF

BackendFactory = Callable[[], IBackend]


class Request(IntEnum):
    """Vendor requests."""

    INFO = 0x01
    HEALTH = 0x02
    CONFIG = 0x06
    STREAM = 0x08
    STARTUP_TEST = 0x09
    ACKNOWLEDGE = 0x0A


# errno -> error and what to do about it.
_TROUBLE: dict[int | None, tuple[type[DeviceError], str]] = {
    errno.ENODEV: (DeviceLostError, "was unplugged or reset; check its cable and power"),
    errno.ENXIO: (DeviceLostError, "was unplugged or reset; check its cable and power"),
    errno.ESHUTDOWN: (DeviceLostError, "was unplugged or reset; check its cable and power"),
    errno.ENOENT: (DeviceLostError, "was unplugged or reset; check its cable and power"),
    errno.ETIMEDOUT: (DeviceLostError, "does not answer; power it off and on"),
    errno.EBUSY: (DeviceError, "is in use by another process or driver; stop that one"),
    errno.EACCES: (DeviceError, "may not be opened by this user; install the udev rule and join its group"),
    errno.EPIPE: (DeviceProtocolError, "refuses a request; update its firmware"),
    errno.EOVERFLOW: (DeviceProtocolError, "sent more than was asked for; check cable and hub"),
}


def has_libusb() -> bool:
    """Whether libusb can be loaded here."""
    return usb.backend.libusb1.get_backend() is not None


def libusb_backend() -> IBackend:
    """A fresh libusb context; the old one may list devices that are gone."""
    backend = usb.backend.libusb1.get_backend()
    if backend is None:
        raise DeviceError("libusb-1.0 is not installed: install the package libusb-1.0-0 (libusb1 on some systems)")
    return backend


def trouble(serial: str, error: usb.core.USBError, doing: str) -> DeviceError:
    """The agent's error for a USB error."""
    kind, text = _TROUBLE.get(error.errno, (DeviceLostError, "fails on the bus; check cable, hub and power"))
    return kind(f"device {serial} {text} ({doing}: {error.strerror or error})")


@contextmanager
def _translated(serial: str, doing: str) -> Iterator[None]:
    try:
        yield
    except usb.core.USBError as error:
        raise trouble(serial, error, doing) from error


def _dispose(device: Any) -> None:
    with suppress(usb.core.USBError):
        usb.util.dispose_resources(device)


def _locate(serial: str, backend: IBackend) -> Any:
    """The pyusb device with this serial number."""
    unreadable: usb.core.USBError | None = None
    seen = []
    with _translated(serial, "listing the bus"):
        found: Any = usb.core.find(find_all=True, backend=backend, idVendor=VENDOR_ID, idProduct=PRODUCT_ID)
        devices = list(found)
    for device in devices:
        try:
            name = device.serial_number
        except usb.core.USBError as error:
            unreadable = error
            continue
        except ValueError:  # pyusb's word for string descriptors it may not read
            unreadable = usb.core.USBError("string descriptors cannot be read", errno=errno.EACCES)
            continue
        if name == serial:
            return device
        _dispose(device)
        seen.append(str(name))
    if unreadable is not None and unreadable.errno != errno.ENODEV:
        raise trouble(serial, unreadable, "reading serial numbers")
    others = f"; seen: {', '.join(sorted(seen))}" if seen else ""
    raise DeviceNotFoundError(f"device {serial} is not on the bus{others}; plug it in or correct its serial")


class Transport:
    """One opened and checked device. Belongs to one thread."""

    def __init__(self, serial: str, device: Any) -> None:
        self.serial = serial
        self.stalls = 0
        self.info: DeviceInfo
        self.health: DeviceHealth
        self.config: DeviceConfig
        self._device = device
        self._stalls_in_a_row = 0
        self._buffer = array("B", bytes(READ_BYTES))

    @classmethod
    def open(
        cls,
        serial: str,
        personality: Personality,
        backend: IBackend,
        *,
        acknowledge: bool = False,
        startup_test: bool = False,
    ) -> Self:
        """Find, claim and check the device: identity, then health, then configuration.

        `acknowledge` first clears what it has latched; otherwise only alarms about lost data are cleared.
        """
        transport = cls(serial, _locate(serial, backend))
        try:
            transport._prepare(personality, acknowledge, startup_test)
        except BaseException:
            transport.close()
            raise
        return transport

    def _prepare(self, personality: Personality, acknowledge: bool, startup_test: bool) -> None:
        with _translated(self.serial, "claiming it"):
            self._device.set_configuration()
            usb.util.claim_interface(self._device, INTERFACE)
        self.info = decode_info(self.serial, self._ask(Request.INFO))
        check_identity(self.serial, personality, self.info)
        if acknowledge:
            self._tell(Request.ACKNOWLEDGE, ALL_ALARMS)
        if startup_test:
            self._tell(Request.STARTUP_TEST)
        self.check_health()
        if self.health.alarms:
            self._tell(Request.ACKNOWLEDGE, int(self.health.alarms))
        self.config = decode_config(self.serial, self._ask(Request.CONFIG))

    def _ask(self, request: Request) -> bytes:
        with _translated(self.serial, f"asking for {request.name.lower()}"):
            return bytes(self._device.ctrl_transfer(_IN, request, 0, 0, RECORD_BYTES, CONTROL_TIMEOUT_MS))

    def _tell(self, request: Request, value: int = 0) -> None:
        with _translated(self.serial, f"requesting {request.name.lower().replace('_', ' ')}"):
            self._device.ctrl_transfer(_OUT, request, value, 0, None, CONTROL_TIMEOUT_MS)

    def check_health(self) -> None:
        """Read health; DeviceUnhealthyError where a person has to look."""
        self.health = decode_health(self.serial, self._ask(Request.HEALTH))
        check_health(self.serial, self.health)

    def start_stream(self) -> int:
        """Start (again) from a new session; its number."""
        self._tell(Request.STREAM, 1)
        self.info = decode_info(self.serial, self._ask(Request.INFO))
        if self.info.session == 0:
            raise DeviceProtocolError(f"device {self.serial} streams without a session number: update its firmware")
        return self.info.session

    def read(self) -> memoryview:
        """Up to READ_BYTES of stream, perhaps none; valid until the next read. The caller calls `wipe`."""
        try:
            count = int(self._device.read(BULK_IN, self._buffer, READ_TIMEOUT_MS))
        except usb.core.USBError as error:
            if error.errno == errno.EPIPE:
                self._clear_stall()
            elif error.errno != errno.ETIMEDOUT:
                raise trouble(self.serial, error, "reading its stream") from error
            count = 0
        if count:
            self._stalls_in_a_row = 0
        return memoryview(self._buffer)[:count]

    def wipe(self) -> None:
        wipe(self._buffer)

    def _clear_stall(self) -> None:
        self.stalls += 1
        self._stalls_in_a_row += 1
        if self._stalls_in_a_row > STALLS_IN_A_ROW:
            raise DeviceProtocolError(f"device {self.serial} stalls its stream again and again; power it off and on")
        with _translated(self.serial, "clearing a stall"):
            self._device.clear_halt(BULK_IN)

    def close(self) -> None:
        """Stop the stream if the device still listens, and give it back."""
        self.wipe()
        with suppress(DeviceError):
            self._tell(Request.STREAM, 0)
        _dispose(self._device)
