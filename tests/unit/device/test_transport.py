"""Opening a device: found by serial, checked before use, and errors that say what to do."""

import errno

import pytest
from scripted_usb import QRNG, RX, TX, ScriptedBus, ScriptedDevice

from qkdnode.device import transport as transport_module
from qkdnode.device.identity import Alarms, Personality
from qkdnode.device.transport import Transport, libusb_backend
from qkdnode.errors import (
    DeviceError,
    DeviceLostError,
    DeviceNotFoundError,
    DeviceProtocolError,
    DeviceUnhealthyError,
)


def opened(device: ScriptedDevice, **options: bool) -> Transport:
    return Transport.open("TX-1", Personality.TRANSMITTER, ScriptedBus(ScriptedDevice("TX-0", TX), device), **options)


def test_a_device_is_found_by_its_serial_and_read_out() -> None:
    transport = opened(ScriptedDevice("TX-1", TX))
    info = transport.info
    assert (info.serial, info.slot_rate_hz, info.slot_units, info.firmware) == ("TX-1", 20_000_000, 12800, "1.2.3")
    assert info.emulated
    assert not info.fault_injection
    assert transport.config.p_z == pytest.approx(0.85)
    assert transport.config.intensities == (0.5, 0.15)
    assert transport.config.intensity_probabilities == (0.5, 0.5)
    assert transport.config.dead_time_ns == 50
    assert transport.health.temperature_mc == 25000


def test_a_stream_starts_with_a_new_session_and_ends_on_close() -> None:
    device = ScriptedDevice("TX-1", TX)
    transport = opened(device)
    assert (transport.start_stream(), transport.start_stream()) == (1, 2)
    transport.close()
    assert device.requests == [(8, 1), (8, 1), (8, 0)]


def plain(**fields: object) -> ScriptedDevice:
    return ScriptedDevice("TX-1", **{"personality": TX, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "kind", "text"),
    [
        (ScriptedDevice("TX-2", TX), DeviceNotFoundError, r"TX-1 is not on the bus; seen: TX-0, TX-2; plug it in"),
        (plain(personality=RX), DeviceError, "TX-1 is a QKD-Rx, not a QKD-Tx: correct the serial"),
        (plain(personality=7), DeviceError, "unknown kind"),
        (plain(version=2), DeviceProtocolError, "version 2 of the device protocol"),
        (plain(magic=1), DeviceProtocolError, "does not speak"),
        (plain(own_name="XX"), DeviceError, "calls itself XX"),
        (plain(sync_slots=0), DeviceProtocolError, "do not fit together"),
        (plain(alarms=Alarms.TAMPER | Alarms.TEMPERATURE), DeviceUnhealthyError, "temperature, tamper; look at"),
        (plain(state=2), DeviceUnhealthyError, "failed state"),
        (plain(claimed=True), DeviceError, "TX-1 is in use by another process or driver; stop that one"),
        (plain(forbidden=True), DeviceError, "TX-1 may not be opened by this user; install the udev rule"),
    ],
)
def test_a_device_that_cannot_be_used_is_named_with_what_to_do(
    device: ScriptedDevice, kind: type[DeviceError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        opened(device)


def test_alarms_about_lost_data_are_cleared_at_opening() -> None:
    device = ScriptedDevice("TX-1", TX, alarms=Alarms.OVERFLOW | Alarms.STREAM_FAULT)
    opened(device)
    assert device.alarms == 0


def test_latched_alarms_are_cleared_only_when_acknowledged() -> None:
    device = ScriptedDevice("TX-1", TX, alarms=Alarms.TAMPER)
    with pytest.raises(DeviceUnhealthyError):
        opened(device)
    assert device.alarms == Alarms.TAMPER
    opened(device, acknowledge=True)
    assert device.alarms == 0


def test_the_devices_own_startup_test_is_run_before_its_health_is_read() -> None:
    device = ScriptedDevice("TX-1", TX)
    opened(device, startup_test=True)
    assert device.requests == [(9, 0)]


def test_a_stalled_read_is_cleared_and_counted() -> None:
    device = ScriptedDevice("TX-1", TX)
    transport = opened(device)
    device.script.extend([errno.EPIPE, b"abc"])
    assert not transport.read()
    assert bytes(transport.read()) == b"abc"
    assert transport.stalls == 1
    assert (-1, 0x81) in device.requests


def test_a_device_that_only_stalls_is_given_up() -> None:
    device = ScriptedDevice("TX-1", TX)
    transport = opened(device)
    device.script.extend([errno.EPIPE] * 20)
    for _ in range(8):
        assert not transport.read()
    with pytest.raises(DeviceProtocolError, match="again and again"):
        transport.read()


def test_naks_and_zero_length_reads_yield_nothing() -> None:
    device = ScriptedDevice("TX-1", TX)
    transport = opened(device)
    device.script.extend([errno.ETIMEDOUT, b""])
    assert not transport.read()
    assert not transport.read()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENODEV, DeviceLostError),
        (errno.EIO, DeviceLostError),
        (errno.EOVERFLOW, DeviceProtocolError),
        (errno.EACCES, DeviceError),
    ],
)
def test_bus_errors_become_device_errors(code: int, kind: type[DeviceError]) -> None:
    device = ScriptedDevice("TX-1", TX)
    transport = opened(device)
    device.script.append(code)
    with pytest.raises(kind, match=r"device TX-1 .*reading its stream"):
        transport.read()


def test_an_unplugged_device_can_still_be_closed() -> None:
    device = ScriptedDevice("TX-1", TX)
    transport = opened(device)
    device.plugged = False
    transport.close()


def test_what_was_read_is_wiped() -> None:
    device = ScriptedDevice("TX-1", TX)
    transport = opened(device)
    device.script.append(b"raw key")
    view = transport.read()
    transport.wipe()
    assert bytes(view) == bytes(7)


def test_missing_libusb_is_told_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module.usb.backend.libusb1, "get_backend", lambda: None)
    with pytest.raises(DeviceError, match=r"install the package libusb-1\.0-0"):
        libusb_backend()


def test_a_qrng_needs_no_slots() -> None:
    bus = ScriptedBus(ScriptedDevice("Q-1", QRNG, sync_slots=0))
    assert Transport.open("Q-1", Personality.QRNG, bus).info.slot_rate_hz == 0
