"""The in-process USB bus: pyusb's own core drives the emulated devices as it would drive real ones."""

import errno
import itertools
import struct
import zlib
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import usb.core
import usb.util

from qkdnode.config import EmulatedEntropy, EmulatedOptics
from qkdnode.device.emulated import EmulatedBackend, EmulatedDevice, emulated_qrng, emulated_rx, emulated_tx
from qkdnode.native.stub import FAULTS

EPOCH_NS = 5_000_000_000
OPTICS = EmulatedOptics(seed=4, epoch_ns=EPOCH_NS)
ENTROPY = EmulatedEntropy(seed=4, epoch_ns=EPOCH_NS)
VENDOR_IN, VENDOR_OUT = 0xC0, 0x40
INFO, HEALTH, CONFIG, STREAM, SELF_TEST, ACKNOWLEDGE, ZEROIZE = 0x01, 0x02, 0x06, 0x08, 0x09, 0x0A, 0x0B
IDLE, STREAMING, FAILED = 0, 1, 2
OVERFLOW, RCT, TAMPER = 1, 2, 32
HEADER_FIELDS = ("magic", "version", "type", "session", "count", "sequence", "base")
HEALTH_FIELDS = (
    *("state", "alarms", "boot", "temperature", "bias", "current", "rct", "apt"),
    *("packets", "overflows", "missed", "reserved"),
)


class Clock:
    """Emulated wall time that moves only when somebody waits."""

    def __init__(self) -> None:
        self.now_ns = EPOCH_NS + 1_000_000_000
        self.on_wait: Callable[[], object] = lambda: None

    def __call__(self) -> int:
        return self.now_ns

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)
        self.on_wait()


class Bus:
    def __init__(self, *devices: EmulatedDevice) -> None:
        self.clock = Clock()
        self.backend = EmulatedBackend(devices, clock=self.clock, wait=self.clock.wait)

    def find(self, serial: str) -> Any:
        return usb.core.find(
            backend=self.backend, idVendor=0x1209, custom_match=lambda device: device.serial_number == serial
        )


@pytest.fixture
def transmitter() -> EmulatedDevice:
    return emulated_tx("TX-7", OPTICS)


@pytest.fixture
def bus(transmitter: EmulatedDevice) -> Bus:
    return Bus(transmitter, emulated_rx("RX-7", OPTICS), emulated_qrng("Q-7", ENTROPY))


def start(device: Any) -> None:
    device.ctrl_transfer(VENDOR_OUT, STREAM, 1, 0)


def health(device: Any) -> dict[str, int]:
    answer = bytes(device.ctrl_transfer(VENDOR_IN, HEALTH, 0, 0, 64))
    return dict(zip(HEALTH_FIELDS, struct.unpack("<IIIiiiIIQQQQ", answer), strict=True))


def split(data: "array[int]") -> list[bytes]:
    return [bytes(data[at : at + 512]) for at in range(0, len(data), 512)]


def field(packet: bytes) -> dict[str, int]:
    return dict(zip(HEADER_FIELDS, struct.unpack_from("<HBBHHIQ", packet), strict=True))


def sealed(packet: bytes) -> bool:
    return len(packet) == 512 and struct.unpack_from("<I", packet, 508)[0] == zlib.crc32(packet[:508])


def refused(code: int) -> Any:
    return pytest.raises(usb.core.USBError, check=lambda error: error.errno == code)


def test_pyusb_finds_the_devices_and_reads_their_descriptors(bus: Bus) -> None:
    found = list(usb.core.find(find_all=True, backend=bus.backend, idVendor=0x1209, idProduct=1))
    assert [device.serial_number for device in found] == ["TX-7", "RX-7", "Q-7"]
    assert found[0].product == "emulated QKD-Tx"
    (configuration,) = found[0]
    vendor, dfu = configuration
    assert [endpoint.bEndpointAddress for endpoint in vendor] == [0x81, 0x82, 0x01]
    assert vendor.bInterfaceClass == 0xFF
    assert (dfu.bInterfaceClass, dfu.bInterfaceSubClass, dfu.bInterfaceProtocol) == (0xFE, 1, 1)
    assert bytes(dfu.extra_descriptors) == bytes.fromhex("09210fe80300101001")
    assert "1209:0001" in str(found[0])


def test_info_names_the_device(bus: Bus) -> None:
    expected = {"TX-7": (1, 20_000_000, 12800, 2), "RX-7": (2, 20_000_000, 12800, 0), "Q-7": (3, 0, 0, 0)}
    for serial, (personality, rate, units, intensities) in expected.items():
        answer = bytes(bus.find(serial).ctrl_transfer(VENDOR_IN, INFO, 0, 0, 64))
        magic, version, kind, _, slot_rate, sync, slot_units, levels, flags, session, name, model = struct.unpack(
            "<HBBIQQIBBH16s16s", answer
        )
        assert (magic, version, kind) == (0x4B51, 1, personality)
        assert (slot_rate, sync, slot_units, levels) == (rate, rate // 100, units, intensities)
        assert (flags, session) == (3, 0)
        assert name.rstrip(b"\0").decode() == serial
        assert model.rstrip(b"\0").startswith(b"emulated")


def test_config_reports_the_optics(bus: Bus) -> None:
    def config(serial: str) -> tuple[int, ...]:
        return struct.unpack("<16I", bytes(bus.find(serial).ctrl_transfer(VENDOR_IN, CONFIG, 0, 0, 64)))

    assert config("TX-7")[:8] == (
        round(0.85 * 2**32), 2, 500_000, 150_000, 0, round(0.6 * 2**32), round(0.4 * 2**32), 0,
    )  # fmt: skip
    assert config("RX-7") == (round(0.85 * 2**32), 0, 0, 0, 0, 0, 0, 0, 50, *[0] * 7)
    assert not any(config("Q-7"))


@pytest.mark.parametrize(
    ("kind", "request_", "value", "index", "data"),
    [
        (VENDOR_IN, 0x03, 0, 0, 64),
        (VENDOR_OUT, 0x07, 0, 0, bytes(64)),
        (VENDOR_IN, 0x7F, 0, 0, 64),
        (VENDOR_IN, INFO, 0, 0, 63),
        (VENDOR_IN, INFO, 0, 0, 65),
        (VENDOR_IN, INFO, 0, 1, 64),
        (VENDOR_OUT, INFO, 0, 0, b""),
        (VENDOR_OUT, STREAM, 2, 0, b""),
        (VENDOR_OUT, STREAM, 1, 0, b"x"),
        (VENDOR_OUT, SELF_TEST, 0, 0, b""),
        (0x80, 0x55, 0, 0, 8),
        (0xC1, INFO, 0, 0, 64),
    ],
)
def test_unknown_requests_stall_and_leave_the_device_working(
    bus: Bus, kind: int, request_: int, value: int, index: int, data: Any
) -> None:
    device = bus.find("TX-7")
    with refused(errno.EPIPE):
        device.ctrl_transfer(kind, request_, value, index, data)
    assert health(device)["state"] == IDLE


def test_each_start_begins_a_new_session_at_sequence_zero(bus: Bus) -> None:
    device = bus.find("TX-7")
    sessions = []
    for _ in range(3):
        start(device)
        heads = [field(packet) for packet in split(device.read(0x81, 4096, 100))]
        assert [head["sequence"] for head in heads] == list(range(8))
        assert len({head["session"] for head in heads}) == 1
        sessions.append(heads[0]["session"])
        assert struct.unpack_from("<H", bytes(device.ctrl_transfer(VENDOR_IN, INFO, 0, 0, 64)), 30) == (sessions[-1],)
    assert 0 not in sessions
    assert len(set(sessions)) == 3


def test_an_idle_device_naks_until_the_timeout(bus: Bus) -> None:
    device = bus.find("TX-7")
    before = bus.clock()
    with pytest.raises(usb.core.USBTimeoutError, check=lambda error: error.errno == errno.ETIMEDOUT):
        device.read(0x81, 512, 250)
    assert bus.clock() - before == pytest.approx(250e6, abs=2e6)
    start(device)
    assert len(device.read(0x81, 512, 250)) == 512
    device.ctrl_transfer(VENDOR_OUT, STREAM, 0, 0)
    with refused(errno.ETIMEDOUT):
        device.read(0x81, 512, 250)


def test_a_timeout_with_partial_data_returns_the_data(bus: Bus) -> None:
    device = bus.find("Q-7")
    start(device)
    before = bus.clock()
    data = device.read(0x81, 1 << 16, 5)
    assert bus.clock() - before == pytest.approx(5e6, abs=1.1e6)
    assert len(data) in range(9 * 512, 11 * 512)
    assert all(map(sealed, split(data)))


def test_a_transfer_that_does_not_fill_is_ended_by_the_device(bus: Bus) -> None:
    device = bus.find("Q-7")
    start(device)
    before = bus.clock()
    assert len(device.read(0x81, 1 << 20, 10_000)) % 512 == 0
    assert bus.clock() - before < 30e6


def test_a_transfer_ends_when_the_clock_stands_still() -> None:
    backend = EmulatedBackend([emulated_tx("TX", OPTICS)], clock=lambda: EPOCH_NS, wait=lambda _: None)
    device = usb.core.find(backend=backend)
    start(device)
    with refused(errno.ETIMEDOUT):
        device.read(0x81, 512, 50)


@pytest.mark.parametrize("size", [1, 511, 513])
def test_a_buffer_that_ends_inside_a_packet_overflows(bus: Bus, size: int) -> None:
    device = bus.find("TX-7")
    start(device)
    with refused(errno.EOVERFLOW):
        device.read(0x81, size, 100)


def test_a_second_handle_cannot_claim_what_the_first_has(bus: Bus) -> None:
    first, second = bus.find("TX-7"), bus.find("TX-7")
    usb.util.claim_interface(first, 0)
    with refused(errno.EBUSY):
        usb.util.claim_interface(second, 0)
    usb.util.claim_interface(second, 1)
    usb.util.dispose_resources(first)
    usb.util.claim_interface(second, 0)


def test_a_device_without_rights_does_not_open(bus: Bus, transmitter: EmulatedDevice) -> None:
    device = next(usb.core.find(find_all=True, backend=bus.backend))
    transmitter.forbidden = True
    with refused(errno.EACCES):
        device.ctrl_transfer(VENDOR_IN, INFO, 0, 0, 64)


def test_an_unplugged_device_is_gone_and_comes_back_after_a_power_cycle(bus: Bus) -> None:
    device = bus.find("TX-7")
    start(device)
    device.read(0x81, 512, 100)
    session = struct.unpack_from("<H", bytes(device.ctrl_transfer(VENDOR_IN, INFO, 0, 0, 64)), 30)[0]
    bus.backend.unplug("TX-7")
    for use in (
        lambda: device.read(0x81, 512, 100),
        lambda: device.read(0x82, 8, 100),
        lambda: device.ctrl_transfer(VENDOR_IN, INFO, 0, 0, 64),
    ):
        with refused(errno.ENODEV):
            use()
    assert bus.find("TX-7") is None
    bus.backend.replug("TX-7")
    with refused(errno.ENODEV):
        device.read(0x81, 512, 100)
    again = bus.find("TX-7")
    assert again != device
    state = health(again)
    assert (state["boot"], state["state"], state["packets"]) == (2, IDLE, 0)
    start(again)
    assert field(split(again.read(0x81, 512, 100))[0])["session"] not in (0, session)


def test_unplugging_ends_a_read_that_waits(bus: Bus) -> None:
    device = bus.find("TX-7")
    device.get_active_configuration()
    bus.clock.on_wait = lambda: bus.backend.unplug("TX-7")
    with refused(errno.ENODEV):
        device.read(0x81, 512, 0)


def test_two_backends_see_one_device(transmitter: EmulatedDevice) -> None:
    one, other = Bus(transmitter), Bus(transmitter)
    device = one.find("TX-7")
    usb.util.claim_interface(device, 0)
    with refused(errno.EBUSY):
        usb.util.claim_interface(other.find("TX-7"), 0)
    other.backend.replug("TX-7")
    with refused(errno.ENODEV):
        device.ctrl_transfer(VENDOR_IN, INFO, 0, 0, 64)


def test_a_bus_has_one_device_per_serial() -> None:
    with pytest.raises(ValueError, match="one serial"):
        EmulatedBackend([emulated_tx("A", OPTICS), emulated_rx("A", OPTICS)])


def spoiled(device: Any, transmitter: EmulatedDevice, fault: str) -> list[bytes]:
    """Sixteen packets, the fault befalling the fifth."""
    start(device)
    head = split(device.read(0x81, 4 * 512, 100))
    transmitter.inject(fault)
    tail = split(device.read(0x81, 12 * 512, 100))
    return head + tail


def sequences(data: list[bytes]) -> list[int]:
    return [field(packet)["sequence"] for packet in data]


def test_injected_crc_error(bus: Bus, transmitter: EmulatedDevice) -> None:
    device = bus.find("TX-7")
    assert [i for i, packet in enumerate(spoiled(device, transmitter, "crc")) if not sealed(packet)] == [4]


def test_injected_packet_faults_show_in_the_sequence(bus: Bus, transmitter: EmulatedDevice) -> None:
    device = bus.find("TX-7")
    assert sequences(spoiled(device, transmitter, "drop")) == [*range(4), *range(5, 17)]
    assert sequences(spoiled(device, transmitter, "duplicate")) == [*range(5), *range(4, 15)]
    assert sequences(spoiled(device, transmitter, "reorder"))[:7] == [0, 1, 2, 3, 5, 4, 6]


def test_injected_stale_session_and_unknown_type(bus: Bus, transmitter: EmulatedDevice) -> None:
    device = bus.find("TX-7")
    heads = [field(packet) for packet in spoiled(device, transmitter, "session")]
    assert heads[4]["session"] != heads[3]["session"] == heads[5]["session"]
    data = spoiled(device, transmitter, "type")
    assert all(map(sealed, data))
    assert [field(packet)["type"] for packet in data[4:6]] == [0x7F, 2]


def test_injected_gap(bus: Bus, transmitter: EmulatedDevice) -> None:
    device = bus.find("TX-7")
    data = spoiled(device, transmitter, "gap")
    before, gap = field(data[3]), field(data[4])
    assert (gap["type"], gap["count"], gap["base"]) == (6, 2, before["base"] + 976)
    assert struct.unpack_from("<QQ", data[4], 20) == (9760, 0)
    after = next(field(packet) for packet in data[5:] if field(packet)["type"] == 2)
    assert after["base"] == gap["base"] + 9760
    assert health(device)["alarms"] == OVERFLOW


def test_injected_short_and_empty_transfers(bus: Bus, transmitter: EmulatedDevice) -> None:
    device = bus.find("TX-7")
    data = spoiled(device, transmitter, "truncate")
    assert [len(packet) for packet in data] == [512] * 4 + [200]
    assert spoiled(device, transmitter, "empty")[4:] == []


def test_injected_stall_lasts_until_the_halt_is_cleared(bus: Bus, transmitter: EmulatedDevice) -> None:
    device = bus.find("TX-7")
    with refused(errno.EPIPE):
        spoiled(device, transmitter, "stall")
    with refused(errno.EPIPE):
        device.read(0x81, 512, 100)
    device.clear_halt(0x81)
    assert sequences(split(device.read(0x81, 512, 100))) == [4]


def test_injected_silence_lasts_until_the_stream_is_started_again(bus: Bus, transmitter: EmulatedDevice) -> None:
    device = bus.find("TX-7")
    with refused(errno.ETIMEDOUT):
        spoiled(device, transmitter, "nak")
    with refused(errno.ETIMEDOUT):
        device.read(0x81, 512, 100)
    start(device)
    assert sequences(split(device.read(0x81, 512, 100))) == [0]


def test_an_alarm_is_latched_and_its_interrupt_comes_once(bus: Bus, transmitter: EmulatedDevice) -> None:
    device = bus.find("TX-7")
    with refused(errno.ETIMEDOUT):
        device.read(0x82, 8, 20)
    for sequence in (0, 1):
        transmitter.inject("tamper")
        transmitter.inject("tamper")
        assert struct.unpack("<II", bytes(device.read(0x82, 8, 20))) == (TAMPER, sequence)
        with refused(errno.ETIMEDOUT):
            device.read(0x82, 8, 20)
        assert health(device)["alarms"] == TAMPER
        device.ctrl_transfer(VENDOR_OUT, ACKNOWLEDGE, OVERFLOW, 0)
        assert health(device)["alarms"] == TAMPER
        device.ctrl_transfer(VENDOR_OUT, ACKNOWLEDGE, TAMPER, 0)
        assert health(device)["alarms"] == 0


def test_faults_are_named_and_need_a_stream(transmitter: EmulatedDevice) -> None:
    with pytest.raises(ValueError, match="no fault"):
        transmitter.inject("gremlin")
    for fault in FAULTS.keys() - {"tamper", "blinding"}:
        with pytest.raises(ValueError, match="no stream"):
            transmitter.inject(fault)


def test_a_failed_self_test_silences_the_stream_until_it_is_acknowledged() -> None:
    bus = Bus(emulated_qrng("Q", EmulatedEntropy(seed=1, epoch_ns=EPOCH_NS, stuck_after_bytes=1_100_000)))
    device = bus.find("Q")
    start(device)
    device.ctrl_transfer(VENDOR_OUT, SELF_TEST, 0, 0)
    assert len(device.read(0x81, 512, 100)) == 512
    bus.clock.now_ns += 1_000_000_000
    device.ctrl_transfer(VENDOR_OUT, SELF_TEST, 0, 0)
    state = health(device)
    assert (state["state"], state["rct"], state["apt"]) == (FAILED, 1, 1)
    assert state["alarms"] & RCT
    with refused(errno.ETIMEDOUT):
        device.read(0x81, 512, 100)
    with refused(errno.EPIPE):
        start(device)
    device.ctrl_transfer(VENDOR_OUT, ZEROIZE, 0, 0)
    assert health(device)["state"] == FAILED
    device.ctrl_transfer(VENDOR_OUT, ACKNOWLEDGE, 0xFFFF, 0)
    assert health(device)["state"] == IDLE
    start(device)


@pytest.mark.parametrize("stop", [lambda device: device.ctrl_transfer(VENDOR_OUT, ZEROIZE, 0, 0), lambda d: d.reset()])
def test_zeroize_and_bus_reset_stop_the_stream(bus: Bus, stop: Callable[[Any], object]) -> None:
    device = bus.find("RX-7")
    start(device)
    device.read(0x81, 512, 100)
    stop(device)
    assert health(device)["state"] == IDLE
    with refused(errno.ETIMEDOUT):
        device.read(0x81, 512, 100)


def test_transfers_the_device_does_not_have_are_refused(bus: Bus) -> None:
    device = bus.find("TX-7")
    with refused(errno.EPIPE):
        device.write(0x01, b"command", 100)
    assert not device.is_kernel_driver_active(0)
    with refused(errno.ENOENT):
        device.detach_kernel_driver(0)


def test_statistics_count_packets_per_boot(bus: Bus) -> None:
    device = bus.find("TX-7")
    for sent in itertools.accumulate([4, 8, 2]):
        start(device)
        device.read(0x81, 512 * (sent - health(device)["packets"]), 1000)
        assert health(device)["packets"] == sent
