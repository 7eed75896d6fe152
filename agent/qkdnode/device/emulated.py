"""Emulated QKD modules and QRNGs on an in-process USB bus: firmware_stubs/ below pyusb's own core."""

# pyusb has no types: what the methods of its IBackend return is guessed from bodies that only raise.
# pyright: reportIncompatibleMethodOverride=false

import errno
import itertools
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import expm1
from types import SimpleNamespace
from typing import Never

import usb.backend
import usb.core

from qkdnode.config import EmulatedEntropy, EmulatedOptics
from qkdnode.native.stub import Device, Entropy, Optics

VENDOR_ID, PRODUCT_ID = 0x1209, 0x0001  # for private testing only
BULK_IN, BULK_OUT, INTERRUPT_IN = 0x81, 0x01, 0x82
PACKET_BYTES = 512
PACKET_RECORDS = 61
SLOTS_PER_PACKET = 976
PAYLOAD_BYTES = 488
BUFFER_BYTES = 64 << 20
BUFFER_SECONDS = 16  # bounds what one late read of a dim receiver has to compute

UNITS_PER_NS = 256
NS_PER_S = 1_000_000_000
SYNCS_PER_S = 100

POLL_S = 0.001
INTERRUPT_POLL_S = 0.01
LINGER_S = 0.02  # the device ends a transfer so long after its first byte, full or not

VENDOR_INTERFACE, DFU_INTERFACE = 0, 1
LANGUAGE = 0x0409
LIBUSB_CODES = {
    errno.EACCES: -3,
    errno.ENODEV: -4,
    errno.ENOENT: -5,
    errno.EBUSY: -6,
    errno.ETIMEDOUT: -7,
    errno.EOVERFLOW: -8,
    errno.EPIPE: -9,
}


class EmulatedDevice:
    """One emulated device and whether it is plugged in. Several backends may look at the same one."""

    def __init__(self, serial: str, model: str, core: Device) -> None:
        self.serial = serial
        self.model = model
        self.core = core
        self.forbidden = False  # opening is refused with EACCES
        self.attachment: Attachment | None = Attachment(self)

    def inject(self, fault: str) -> None:
        """Spoil the running stream once: one of `qkdnode.native.stub.FAULTS`."""
        self.core.inject(fault)


class Attachment:
    """A device from plug to unplug, at one bus address."""

    _addresses = itertools.count(1)

    def __init__(self, device: EmulatedDevice) -> None:
        self.device = device
        self.address = next(self._addresses)
        self.claims: dict[int, Handle] = {}


class Handle:
    """An open device."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment


def emulated_tx(serial: str, optics: EmulatedOptics, *, buffer_bytes: int = BUFFER_BYTES) -> EmulatedDevice:
    """The transmitter of the channel `optics`."""
    config = _config(
        p_z=optics.p_z,
        intensities=optics.intensities,
        intensity_probabilities=optics.intensity_probabilities,
    )
    core = Device(
        "tx",
        serial,
        channel(optics),
        epoch_ns=optics.epoch_ns,
        rate_hz=optics.slot_rate_hz,
        capacity=buffer_bytes // PACKET_BYTES * SLOTS_PER_PACKET,
        intensities=len(optics.intensities),
        config=config,
    )
    return EmulatedDevice(serial, "emulated QKD-Tx", core)


def emulated_rx(serial: str, optics: EmulatedOptics, *, buffer_bytes: int = BUFFER_BYTES) -> EmulatedDevice:
    """The receiver of the channel `optics`."""
    bytes_per_slot = (
        PACKET_BYTES * mean_click_probability(optics) / PACKET_RECORDS
        + PACKET_BYTES * SYNCS_PER_S / optics.slot_rate_hz
    )
    core = Device(
        "rx",
        serial,
        channel(optics),
        epoch_ns=optics.epoch_ns,
        rate_hz=optics.slot_rate_hz,
        capacity=max(1, min(int(buffer_bytes / bytes_per_slot), BUFFER_SECONDS * optics.slot_rate_hz)),
        intensities=0,
        config=_config(p_z=optics.receiver_p_z, dead_time_ns=optics.dead_time_ns),
    )
    return EmulatedDevice(serial, "emulated QKD-Rx", core)


def emulated_qrng(serial: str, entropy: EmulatedEntropy, *, buffer_bytes: int = BUFFER_BYTES) -> EmulatedDevice:
    """A QRNG with the defects that `entropy` names."""
    core = Device(
        "qrng",
        serial,
        Entropy(
            seed=entropy.seed,
            one_limit=round((0.5 + entropy.bias) * 2**16),
            stuck_after=entropy.stuck_after_bytes,
        ),
        epoch_ns=entropy.epoch_ns,
        rate_hz=entropy.bytes_per_second,
        capacity=buffer_bytes // PACKET_BYTES * PAYLOAD_BYTES,
        intensities=0,
        config=_config(),
    )
    return EmulatedDevice(serial, "emulated QRNG", core)


def _config(
    *,
    p_z: float = 0.0,
    intensities: Sequence[float] = (),
    intensity_probabilities: Sequence[float] = (),
    dead_time_ns: int = 0,
) -> bytes:
    unused = [0] * (3 - len(intensities))
    return struct.pack(
        "<9I28x",
        _saturated(p_z),
        len(intensities),
        *(round(mu * 1e6) for mu in intensities),
        *unused,
        *map(_saturated, intensity_probabilities),
        *unused,
        dead_time_ns,
    )


def _saturated(probability: float) -> int:
    return min(round(probability * 2**32), 2**32 - 1)


def detection_probabilities(optics: EmulatedOptics) -> tuple[float, ...]:
    """Per intensity: 1 - exp(-eta mu), the pulse being detected at all."""
    transmittance = 10 ** (-optics.loss_db / 10)
    return tuple(-expm1(-transmittance * mu) for mu in optics.intensities)


def dark_pattern_probabilities(optics: EmulatedOptics) -> tuple[float, ...]:
    """Of the 16 sets of detectors that have a dark count in one slot."""
    dark = optics.dark_probability
    return tuple(dark ** pattern.bit_count() * (1 - dark) ** (4 - pattern.bit_count()) for pattern in range(16))


def click_probabilities(optics: EmulatedOptics) -> tuple[float, ...]:
    """Per intensity: any detector clicks, dead time apart."""
    any_dark = sum(dark_pattern_probabilities(optics)[1:])
    return tuple(lit + (1 - lit) * any_dark for lit in detection_probabilities(optics))


def mean_click_probability(optics: EmulatedOptics) -> float:
    """Per slot, over the transmitter's choice of intensity, dead time apart."""
    return sum(p * q for p, q in zip(optics.intensity_probabilities, click_probabilities(optics), strict=True))


def channel(optics: EmulatedOptics) -> Optics:
    """The parameters as the integer limits that the C optics compare uniforms with."""
    units_per_s = UNITS_PER_NS * NS_PER_S
    if units_per_s % optics.slot_rate_hz:
        raise ValueError(
            f"slot_rate_hz {optics.slot_rate_hz} does not divide {units_per_s}: a slot must be whole units"
        )
    cells = [p * q for p in optics.intensity_probabilities for q in (optics.p_z, 1 - optics.p_z)]
    choice_limits = _limits(itertools.accumulate(cells[:-1]), 31)
    dark = dark_pattern_probabilities(optics)
    any_dark = sum(dark[1:])
    dark_only = [0.0, *(p / any_dark for p in dark[1:])] if any_dark else dark
    eavesdropper_p_z = optics.p_z if optics.eavesdrop_p_z is None else optics.eavesdrop_p_z
    return Optics(
        seed=optics.seed,
        choice_limits=_padded(choice_limits, 5, 2**31),
        signal_limits=_padded(_limits(detection_probabilities(optics), 40), 3, 0),
        click_limits=_padded(_limits(click_probabilities(optics), 40), 3, 0),
        dark_limits=_limits(itertools.accumulate(dark), 32),
        dark_only_limits=_limits(itertools.accumulate(dark_only), 32),
        receiver_z_limit=round(optics.receiver_p_z * 2**32),
        misaligned_limit=round(optics.misalignment * 2**31),
        intercept_limit=round(optics.eavesdrop * 2**32),
        eavesdropper_z_limit=round(eavesdropper_p_z * 2**32),
        sync_interval_slots=optics.slot_rate_hz // SYNCS_PER_S,
        dead_slots=optics.dead_time_ns * optics.slot_rate_hz // NS_PER_S,
        slot_units=units_per_s // optics.slot_rate_hz,
        clock_offset=optics.clock_offset_ns * UNITS_PER_NS,
    )


def _limits(probabilities: Iterable[float], bits: int) -> list[int]:
    return [round(p * 2**bits) for p in probabilities]


def _padded(limits: list[int], length: int, value: int) -> list[int]:
    return limits + [value] * (length - len(limits))


DEVICE_DESCRIPTOR = {
    "bLength": 18,
    "bDescriptorType": 1,
    "bcdUSB": 0x0200,
    "bDeviceClass": 0,
    "bDeviceSubClass": 0,
    "bDeviceProtocol": 0,
    "bMaxPacketSize0": 64,
    "idVendor": VENDOR_ID,
    "idProduct": PRODUCT_ID,
    "bcdDevice": 0x0100,
    "iManufacturer": 1,
    "iProduct": 2,
    "iSerialNumber": 3,
    "bNumConfigurations": 1,
    "bus": 1,
    "speed": 3,
}
CONFIGURATION_DESCRIPTOR = SimpleNamespace(
    bLength=9,
    bDescriptorType=2,
    wTotalLength=9 + 9 + 3 * 7 + 9 + 9,
    bNumInterfaces=2,
    bConfigurationValue=1,
    iConfiguration=0,
    bmAttributes=0x80,
    bMaxPower=250,
    extra_descriptors=[],
)


def _interface(number: int, endpoints: int, triple: tuple[int, int, int], extra: bytes = b"") -> SimpleNamespace:
    return SimpleNamespace(
        bLength=9,
        bDescriptorType=4,
        bInterfaceNumber=number,
        bAlternateSetting=0,
        bNumEndpoints=endpoints,
        bInterfaceClass=triple[0],
        bInterfaceSubClass=triple[1],
        bInterfaceProtocol=triple[2],
        iInterface=0,
        extra_descriptors=list(extra),
    )


def _endpoint(address: int, attributes: int, packet_bytes: int, interval: int) -> SimpleNamespace:
    return SimpleNamespace(
        bLength=7,
        bDescriptorType=5,
        bEndpointAddress=address,
        bmAttributes=attributes,
        wMaxPacketSize=packet_bytes,
        bInterval=interval,
        bRefresh=0,
        bSynchAddress=0,
        extra_descriptors=[],
    )


# DFU 1.1 functional descriptor: download and upload, manifestation tolerant, will detach; 1 s, 4096 B, version 1.1.
DFU_FUNCTIONAL = struct.pack("<BBBHHH", 9, 0x21, 0x0F, 1000, 4096, 0x0110)
INTERFACES = (
    (
        _interface(VENDOR_INTERFACE, 3, (0xFF, 0, 0)),
        (_endpoint(BULK_IN, 2, 512, 0), _endpoint(INTERRUPT_IN, 3, 8, 4), _endpoint(BULK_OUT, 2, 512, 0)),
    ),
    (_interface(DFU_INTERFACE, 0, (0xFE, 1, 1), DFU_FUNCTIONAL), ()),
)


def _refuse(code: int, detail: str) -> Never:
    kind = usb.core.USBTimeoutError if code == errno.ETIMEDOUT else usb.core.USBError
    raise kind(f"{os.strerror(code)} ({detail})", LIBUSB_CODES[code], code)


class EmulatedBackend(usb.backend.IBackend):  # type: ignore[misc]
    """An in-process USB bus: pyusb's real core above, the device core of firmware_stubs/ below.

    Errors are USBErrors with the errno of Linux: EPIPE stall, ETIMEDOUT NAK, ENODEV unplugged, EBUSY claimed by another
    handle, EACCES not permitted, EOVERFLOW more data than room. A timeout with partial data returns the data. `clock`
    is the emulated wall clock in nanoseconds, `wait` is called with seconds while an endpoint has nothing to send.
    """

    def __init__(
        self,
        devices: Sequence[EmulatedDevice],
        *,
        clock: Callable[[], int] = time.time_ns,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._devices = {device.serial: device for device in devices}
        if len(self._devices) != len(devices):
            raise ValueError("two emulated devices have one serial")
        self._clock = clock
        self._wait = wait

    def unplug(self, serial: str) -> None:
        """Take the device off the bus: open handles fail with ENODEV, it is not enumerated."""
        self._devices[serial].attachment = None

    def replug(self, serial: str) -> None:
        """Power cycle: a new address and boot count, no stream."""
        device = self._devices[serial]
        self.unplug(serial)
        device.core.power_cycle()
        device.attachment = Attachment(device)

    def enumerate_devices(self) -> list[Attachment]:
        return [device.attachment for device in self._devices.values() if device.attachment]

    def get_parent(self, dev: Attachment) -> None:
        return None

    def get_device_descriptor(self, dev: Attachment) -> SimpleNamespace:
        port = 1 + list(self._devices).index(dev.device.serial)
        return SimpleNamespace(**DEVICE_DESCRIPTOR, address=dev.address, port_number=port, port_numbers=(port,))

    def get_configuration_descriptor(self, dev: Attachment, config: int) -> SimpleNamespace:
        return (CONFIGURATION_DESCRIPTOR,)[config]

    def get_interface_descriptor(self, dev: Attachment, intf: int, alt: int, config: int) -> SimpleNamespace:
        return (INTERFACES[intf][0],)[alt]

    def get_endpoint_descriptor(self, dev: Attachment, ep: int, intf: int, alt: int, config: int) -> SimpleNamespace:
        return INTERFACES[intf][1][ep]

    def open_device(self, dev: Attachment) -> Handle:
        if dev.device.attachment is not dev:
            _refuse(errno.ENODEV, dev.device.serial)
        if dev.device.forbidden:
            _refuse(errno.EACCES, dev.device.serial)
        return Handle(dev)

    def close_device(self, dev_handle: Handle) -> None:
        claims = dev_handle.attachment.claims
        for interface in [number for number, holder in claims.items() if holder is dev_handle]:
            del claims[interface]

    def set_configuration(self, dev_handle: Handle, config_value: int) -> None:
        self._reached(dev_handle)

    def get_configuration(self, dev_handle: Handle) -> int:
        self._reached(dev_handle)
        return int(CONFIGURATION_DESCRIPTOR.bConfigurationValue)

    def set_interface_altsetting(self, dev_handle: Handle, intf: int, altsetting: int) -> None:
        self._reached(dev_handle)

    def claim_interface(self, dev_handle: Handle, intf: int) -> None:
        self._reached(dev_handle)
        if dev_handle.attachment.claims.setdefault(intf, dev_handle) is not dev_handle:
            _refuse(errno.EBUSY, f"interface {intf} is claimed")

    def release_interface(self, dev_handle: Handle, intf: int) -> None:
        self._reached(dev_handle)
        if dev_handle.attachment.claims.pop(intf, None) is not dev_handle:
            _refuse(errno.ENOENT, f"interface {intf} was not claimed")

    def is_kernel_driver_active(self, dev_handle: Handle, intf: int) -> bool:
        self._reached(dev_handle)
        return False

    def detach_kernel_driver(self, dev_handle: Handle, intf: int) -> None:
        _refuse(errno.ENOENT, "no kernel driver is bound")

    def attach_kernel_driver(self, dev_handle: Handle, intf: int) -> None:
        _refuse(errno.ENOENT, "no kernel driver is bound")

    def reset_device(self, dev_handle: Handle) -> None:
        self._reached(dev_handle).core.reset()

    def clear_halt(self, dev_handle: Handle, ep: int) -> None:
        self._reached(dev_handle).core.clear_halt()

    def ctrl_transfer(
        self,
        dev_handle: Handle,
        bmRequestType: int,
        bRequest: int,
        wValue: int,
        wIndex: int,
        data: "array[int]",
        timeout: int,
    ) -> int:
        device = self._reached(dev_handle)
        try:
            if not bmRequestType & 0x80:
                return device.core.control_out(self._clock(), bmRequestType, bRequest, wValue, wIndex, data)
            answer = self._standard(device, bmRequestType, bRequest, wValue) or device.core.control_in(
                self._clock(), bmRequestType, bRequest, wValue, wIndex, len(data)
            )
        except BrokenPipeError as stall:
            _refuse(errno.EPIPE, str(stall))
        count = min(len(answer), len(data))
        memoryview(data)[:count] = memoryview(answer)[:count]
        return count

    def _standard(self, device: EmulatedDevice, kind: int, request: int, value: int) -> bytes | None:
        """The answers that a USB stack gives without asking the device core."""
        strings = ("", "qkdnode", device.model, device.serial)
        if (kind, request) == (0x80, 0x00):
            return bytes(2)
        if (kind, request, value >> 8) != (0x80, 0x06, 3) or value & 0xFF >= len(strings):
            return None
        text = strings[value & 0xFF].encode("utf-16-le") or struct.pack("<H", LANGUAGE)
        return bytes((2 + len(text), 3)) + text

    def bulk_write(self, dev_handle: Handle, ep: int, intf: int, data: "array[int]", timeout: int) -> int:
        self._reached(dev_handle, intf)
        _refuse(errno.EPIPE, "the device takes no bulk commands")

    def bulk_read(self, dev_handle: Handle, ep: int, intf: int, buff: "array[int]", timeout: int) -> int:
        """Until the buffer is full, the device ends the transfer or the time is up; 0 ms waits for ever."""
        if ep != BULK_IN:
            _refuse(errno.ENOENT, f"no bulk endpoint {ep:#04x}")
        with memoryview(buff) as items, items.cast("B") as view:
            if view.nbytes % PACKET_BYTES or not view.nbytes:
                _refuse(errno.EOVERFLOW, f"packets of {PACKET_BYTES} bytes into {view.nbytes}")
            filled = 0
            linger_s: float | None = None
            for elapsed_s in self._polls(timeout, POLL_S):
                try:
                    count, ended = self._reached(dev_handle, intf).core.bulk_in_into(self._clock(), view[filled:])
                except BrokenPipeError as stall:
                    _refuse(errno.EPIPE, str(stall))
                filled += count
                if filled and linger_s is None:
                    linger_s = elapsed_s + LINGER_S
                if ended or filled == view.nbytes or (linger_s is not None and elapsed_s >= linger_s):
                    return filled
            return filled or _refuse(errno.ETIMEDOUT, "the bulk endpoint has nothing to send")

    def intr_read(self, dev_handle: Handle, ep: int, intf: int, buff: "array[int]", timeout: int) -> int:
        if ep != INTERRUPT_IN:
            _refuse(errno.ENOENT, f"no interrupt endpoint {ep:#04x}")
        for _ in self._polls(timeout, INTERRUPT_POLL_S):
            alarm = self._reached(dev_handle, intf).core.interrupt_in()
            if alarm:
                memoryview(buff)[: len(alarm)] = memoryview(alarm)
                return len(alarm)
        _refuse(errno.ETIMEDOUT, "no alarm waits")

    def _polls(self, timeout_ms: int, every_s: float) -> Iterator[float]:
        """Seconds elapsed at each poll, until the time is up. Both the clock and the waits count as time, so that
        neither a clock that stands still nor one that is stepped back makes a transfer endless."""
        started_ns = self._clock()
        limit_s = timeout_ms / 1000 if timeout_ms else float("inf")
        waited_s = elapsed_s = 0.0
        while True:
            yield elapsed_s
            if elapsed_s >= limit_s:
                return
            pause_s = min(every_s, limit_s - elapsed_s)
            self._wait(pause_s)
            waited_s += pause_s
            elapsed_s = max(waited_s, (self._clock() - started_ns) / NS_PER_S)

    def intr_write(self, dev_handle: Handle, ep: int, intf: int, data: "array[int]", timeout: int) -> int:
        _refuse(errno.ENOENT, "no interrupt OUT endpoint")

    def _reached(self, handle: Handle, interface: int | None = None) -> EmulatedDevice:
        """The device behind a handle, if it is still plugged in and no other handle has the interface."""
        device = handle.attachment.device
        if device.attachment is not handle.attachment:
            _refuse(errno.ENODEV, device.serial)
        if interface is not None and handle.attachment.claims.get(interface, handle) is not handle:
            _refuse(errno.EBUSY, f"interface {interface} is claimed")
        return device
