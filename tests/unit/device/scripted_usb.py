"""A USB bus after a script: pyusb's own core above it, whatever a test wants below."""

import errno
import struct
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import usb.core
from usb.backend import IBackend

TX, RX, QRNG = 1, 2, 3
SLOT_UNITS = 12800  # 20 Mslot/s


@dataclass
class ScriptedDevice:
    """Answers control requests from its fields; each bulk read takes one item of the script.

    Items: bytes to give, an errno to fail with, or something to call first. An empty script times out.
    """

    serial: str
    personality: int
    script: deque[bytes | int | Callable[[], None]] = field(default_factory=deque)
    session: int = 0
    sync_slots: int = 2000
    alarms: int = 0
    state: int = 0
    version: int = 1
    magic: int = 0x4B51
    plugged: bool = True
    claimed: bool = False
    forbidden: bool = False
    own_name: str | None = None
    requests: list[tuple[int, int]] = field(default_factory=list)
    on_start: Callable[["ScriptedDevice"], None] | None = None

    def info(self) -> bytes:
        own = (self.own_name or self.serial).encode()
        has_slots = self.personality != QRNG
        return struct.pack(
            "<HBBIQQIBBH16s16s",
            self.magic, self.version, self.personality, 0x010203, 20_000_000 * has_slots, self.sync_slots,
            SLOT_UNITS * has_slots, 2, 1, self.session, own, b"scripted",
        )  # fmt: skip

    def health(self) -> bytes:
        return struct.pack("<IIIiiiIIQQQQ", self.state, self.alarms, 1, 25000, 5000, 10, 0, 0, 0, 0, 0, 0)

    def config(self) -> bytes:
        return struct.pack("<II3I3II28x", int(0.85 * 2**32), 2, 500000, 150000, 0, 1 << 31, 1 << 31, 0, 50)

    def control_in(self, request: int) -> bytes:
        answers = {1: self.info, 2: self.health, 6: self.config}
        if request not in answers:
            raise trouble(errno.EPIPE)
        return answers[request]()

    def control_out(self, request: int, value: int) -> None:
        self.requests.append((request, value))
        if request == 8 and value == 1:
            self.session += 1
            if self.on_start is not None:
                self.on_start(self)
        elif request == 10:
            self.alarms &= ~value
            self.state = 0


def trouble(code: int) -> usb.core.USBError:
    kind = usb.core.USBTimeoutError if code == errno.ETIMEDOUT else usb.core.USBError
    return kind(errno.errorcode[code], errno=code)


class ScriptedBus(IBackend):
    """The backend; `factory` counts how often a new one was asked for."""

    def __init__(self, *devices: ScriptedDevice) -> None:
        self.devices = list(devices)
        self.backends = 0

    def factory(self) -> IBackend:
        self.backends += 1
        return self

    def enumerate_devices(self) -> list[ScriptedDevice]:
        return [device for device in self.devices if device.plugged]

    def get_device_descriptor(self, dev: ScriptedDevice) -> Any:
        return SimpleNamespace(
            bLength=18, bDescriptorType=1, bcdUSB=0x200, bDeviceClass=0, bDeviceSubClass=0, bDeviceProtocol=0,
            bMaxPacketSize0=64, idVendor=0x1209, idProduct=1, bcdDevice=0x100, iManufacturer=0, iProduct=0,
            iSerialNumber=3, bNumConfigurations=1, bus=1, address=1 + self.devices.index(dev), port_number=None,
            port_numbers=None, speed=3,
        )  # fmt: skip

    def get_configuration_descriptor(self, dev: ScriptedDevice, config: int) -> Any:
        if config:
            raise IndexError
        return SimpleNamespace(
            bLength=9, bDescriptorType=2, wTotalLength=32, bNumInterfaces=1, bConfigurationValue=1, iConfiguration=0,
            bmAttributes=0x80, bMaxPower=50, extra_descriptors=[],
        )  # fmt: skip

    def get_interface_descriptor(self, dev: ScriptedDevice, intf: int, alt: int, config: int) -> Any:
        if intf or alt or config:
            raise IndexError
        return SimpleNamespace(
            bLength=9, bDescriptorType=4, bInterfaceNumber=0, bAlternateSetting=0, bNumEndpoints=1, bInterfaceClass=255,
            bInterfaceSubClass=0, bInterfaceProtocol=0, iInterface=0, extra_descriptors=[],
        )  # fmt: skip

    def get_endpoint_descriptor(self, dev: ScriptedDevice, ep: int, intf: int, alt: int, config: int) -> Any:
        if ep:
            raise IndexError
        return SimpleNamespace(
            bLength=7, bDescriptorType=5, bEndpointAddress=0x81, bmAttributes=2, wMaxPacketSize=512, bInterval=0,
            bRefresh=0, bSynchAddress=0, extra_descriptors=[],
        )  # fmt: skip

    def _present(self, device: ScriptedDevice) -> ScriptedDevice:
        if not device.plugged:
            raise trouble(errno.ENODEV)
        return device

    def open_device(self, dev: ScriptedDevice) -> ScriptedDevice:
        if dev.forbidden:
            raise trouble(errno.EACCES)
        return self._present(dev)

    def close_device(self, dev_handle: ScriptedDevice) -> None:
        pass

    def set_configuration(self, dev_handle: ScriptedDevice, config_value: int) -> None:
        self._present(dev_handle)

    def get_configuration(self, dev_handle: ScriptedDevice) -> int:
        return 1

    def claim_interface(self, dev_handle: ScriptedDevice, intf: int) -> None:
        if dev_handle.claimed:
            raise trouble(errno.EBUSY)

    def release_interface(self, dev_handle: ScriptedDevice, intf: int) -> None:
        pass

    def clear_halt(self, dev_handle: ScriptedDevice, ep: int) -> None:
        dev_handle.requests.append((-1, ep))

    def ctrl_transfer(
        self, dev_handle: ScriptedDevice, bmRequestType: int, bRequest: int, wValue: int, wIndex: int,
        data: "array[int]", timeout: int,
    ) -> int:  # fmt: skip
        self._present(dev_handle)
        if bmRequestType == 0x40:
            dev_handle.control_out(bRequest, wValue)
            return 0
        if bmRequestType == 0x80 and bRequest == 6:
            text = dev_handle.serial.encode("utf-16-le")
            answer = b"\x04\x03\x09\x04" if wValue == 0x300 else bytes([2 + len(text), 3]) + text
        else:
            answer = dev_handle.control_in(bRequest)
        answer = answer[: len(data)]
        data[: len(answer)] = array("B", answer)
        return len(answer)

    def bulk_read(self, dev_handle: ScriptedDevice, ep: int, intf: int, buff: "array[int]", timeout: int) -> int:
        self._present(dev_handle)
        if not dev_handle.script:
            raise trouble(errno.ETIMEDOUT)
        item = dev_handle.script.popleft()
        if callable(item):
            item()
            return self.bulk_read(dev_handle, ep, intf, buff, timeout)
        if isinstance(item, int):
            raise trouble(item)
        assert len(item) <= len(buff)
        buff[: len(item)] = array("B", item)
        return len(item)


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
