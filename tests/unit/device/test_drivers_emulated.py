"""The drivers over emulated devices: the same code as on real hardware, on a bus where time is the test's."""

import numpy as np
import pytest
from test_entropy import FirstBytes

from qkdnode.config import EmulatedEntropy, EmulatedOptics
from qkdnode.device.alarms import AlarmCode
from qkdnode.device.entropy import EntropyPool, SourceState
from qkdnode.device.module import ReceiverModule, TransmitterModule
from qkdnode.device.qrng import QrngModule
from qkdnode.device.sensors import SensorLimits
from qkdnode.device.windows import Discard, ReceiverWindow, TransmitterWindow

emulated = pytest.importorskip("qkdnode.device.emulated")

EPOCH_NS = 10**18
SLOTS = 1 << 16


class World:
    """A link of two modules and a QRNG, in a time that passes only while somebody waits for it."""

    def __init__(
        self, *, clock_offset_ns: int = 0, stuck_after_bytes: int | None = None, slot_rate_hz: int = 4_000_000
    ) -> None:
        optics = EmulatedOptics(seed=11, epoch_ns=EPOCH_NS, slot_rate_hz=slot_rate_hz, clock_offset_ns=clock_offset_ns)
        entropy = EmulatedEntropy(seed=12, epoch_ns=EPOCH_NS, stuck_after_bytes=stuck_after_bytes)
        self.now_ns = EPOCH_NS + 1_000_000_000
        self.devices = {
            "TX-1": emulated.emulated_tx("TX-1", optics),
            "RX-1": emulated.emulated_rx("RX-1", optics),
            "Q-1": emulated.emulated_qrng("Q-1", entropy),
        }
        self.bus = emulated.EmulatedBackend(list(self.devices.values()), clock=lambda: self.now_ns, wait=self.wait)
        self.pool = EntropyPool(extractor=FirstBytes, capacity_bytes=1 << 18)
        self.source = self.pool.attach("Q-1")
        self.tx = TransmitterModule("TX-1", lambda: self.bus, slots_per_window=SLOTS, clock=self.seconds)
        self.rx = ReceiverModule("RX-1", lambda: self.bus, slots_per_window=SLOTS, clock=self.seconds)
        self.qrng = QrngModule("Q-1", lambda: self.bus, self.source, clock=self.seconds)
        self.sent: list[TransmitterWindow] = []
        self.seen: list[ReceiverWindow] = []
        self.codes: list[AlarmCode] = []
        self.tx.listen(self.sent.append, lambda alarm: self.codes.append(alarm.code))
        self.rx.listen(self.seen.append, lambda alarm: self.codes.append(alarm.code))
        self.qrng.listen(lambda alarm: self.codes.append(alarm.code))

    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)

    def seconds(self) -> float:
        return self.now_ns / 1e9

    def run(self, *modules: TransmitterModule | ReceiverModule | QrngModule, seconds: float) -> None:
        until = self.now_ns + int(seconds * 1e9)
        while self.now_ns < until:
            for module in modules:
                self.wait(module.step())


def errors(sent: TransmitterWindow, seen: ReceiverWindow, basis: int) -> tuple[int, int]:
    """Wrong and all bits of one basis where both chose it and one detector clicked."""
    nibbles = np.frombuffer(memoryview(sent.choices), np.uint8)
    choice = nibbles[seen.slots // 2] >> (4 * (seen.slots & 1)).astype(np.uint8)
    detectors = seen.patterns >> (2 * basis) & 3
    kept = (choice & 1 == basis) & ((detectors == 1) | (detectors == 2)) & (seen.patterns >> (2 - 2 * basis) & 3 == 0)
    wrong = (detectors[kept] == 2) != (choice[kept] >> 1 & 1 == 1)
    return int(np.count_nonzero(wrong)), int(np.count_nonzero(kept))


@pytest.mark.parametrize("clock_offset_ns", [0, 123_456_789, -987_654_321])
def test_both_ends_number_their_slots_alike(clock_offset_ns: int) -> None:
    world = World(clock_offset_ns=clock_offset_ns)
    world.run(world.tx, world.rx, seconds=0.3)
    common = sorted({window.index for window in world.sent} & {window.index for window in world.seen})
    assert len(common) >= 10
    sent = {window.index: window for window in world.sent}
    seen = {window.index: window for window in world.seen}
    wrong, kept = np.sum([errors(sent[index], seen[index], 0) for index in common], axis=0)
    assert kept > 30_000
    assert 0.012 < wrong / kept < 0.018
    assert world.codes == []


def test_a_replugged_transmitter_takes_up_the_same_link() -> None:
    world = World()
    world.run(world.tx, world.rx, seconds=0.1)
    world.bus.unplug("TX-1")
    world.run(world.tx, world.rx, seconds=0.2)
    world.bus.replug("TX-1")
    world.run(world.tx, world.rx, seconds=0.6)
    assert world.codes == [AlarmCode.DEVICE_LOST, AlarmCode.DEVICE_RESTORED]
    seen = {window.index: window for window in world.seen}
    last = [window for window in world.sent if window.index in seen][-1]
    assert last.index * SLOTS > 4_000_000 * 1.3
    wrong, kept = errors(last, seen[last.index], 0)
    assert wrong < 0.03 * kept
    indices = [window.index for window in world.sent]
    assert indices == sorted(set(indices))
    assert world.tx.statistics().discarded[Discard.DEVICE] >= 1


def test_a_module_that_nobody_reads_overflows_into_discarded_windows() -> None:
    world = World()
    world.run(world.tx, seconds=0.1)
    world.wait(60)
    world.run(world.tx, seconds=1.0)
    assert world.tx.statistics().discarded[Discard.REPORTED] > 0
    assert AlarmCode.DEVICE_GAP in world.codes
    indices = [window.index for window in world.sent]
    assert indices == sorted(set(indices))


FAULTS = ["stall", "nak", "crc", "gap", "drop", "truncate", "empty", "duplicate", "reorder", "session", "type"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("serial", ["TX-1", "RX-1"])
def test_no_fault_of_a_device_makes_a_wrong_window(fault: str, serial: str) -> None:
    quiet, world = World(), World()
    quiet.run(quiet.tx, quiet.rx, seconds=0.3)
    for _ in range(1 if fault == "nak" else 3):
        world.run(world.tx, world.rx, seconds=0.1)
        world.devices[serial].inject(fault)
    world.run(world.tx, world.rx, seconds=6.0 if fault == "nak" else 0.3)  # a device that NAKs does so for ever
    truth_sent = {window.index: window for window in quiet.sent}
    truth_seen = {window.index: window for window in quiet.seen}
    for window in world.sent:
        if window.index in truth_sent:
            assert memoryview(window.choices) == memoryview(truth_sent[window.index].choices)
    for detections in world.seen:
        if detections.index in truth_seen:
            assert np.array_equal(detections.slots, truth_seen[detections.index].slots)
            assert np.array_equal(detections.patterns, truth_seen[detections.index].patterns)
    assert world.sent[-1].index > truth_sent.popitem()[0]
    assert world.seen[-1].index > truth_seen.popitem()[0]


@pytest.mark.parametrize("serial", ["TX-1", "RX-1", "Q-1"])
def test_a_tampered_device_stays_closed_until_it_is_acknowledged(serial: str) -> None:
    world = World()
    module = {"TX-1": world.tx, "RX-1": world.rx, "Q-1": world.qrng}[serial]
    world.run(module, seconds=0.3)
    world.devices[serial].inject("tamper")
    world.run(module, seconds=3.0)
    assert world.codes == [AlarmCode.DEVICE_UNHEALTHY]
    assert world.pool.available_bytes == 0
    assert module.acknowledge()
    world.run(module, seconds=6.0)
    assert world.codes[-1] is AlarmCode.DEVICE_RESTORED


def test_an_emulated_qrng_feeds_the_pool() -> None:
    world = World()
    world.run(world.qrng, seconds=0.5)
    assert world.pool.healthy
    assert world.pool.available_bytes > 200_000
    assert world.codes == []


def test_a_stuck_emulated_qrng_is_found() -> None:
    world = World(stuck_after_bytes=1_200_000)
    world.run(world.qrng, seconds=0.6)
    assert world.source.state is SourceState.FAILED
    assert world.pool.available_bytes == 0
    assert AlarmCode.DEVICE_UNHEALTHY in world.codes


@pytest.mark.parametrize(
    ("serial", "expected"),
    [
        ("RX-1", {AlarmCode.PHOTOCURRENT, AlarmCode.BIAS_VOLTAGE}),
        ("TX-1", {AlarmCode.LASER_POWER, AlarmCode.BIAS_VOLTAGE}),
    ],
)
def test_bright_light_shows_in_the_sensors_whose_values_were_learnt(serial: str, expected: set[AlarmCode]) -> None:
    world = World(slot_rate_hz=100_000)
    module = {"RX-1": world.rx, "TX-1": world.tx}[serial]
    world.run(module, seconds=65)
    assert world.codes == []
    world.devices[serial].inject("blinding")
    world.run(module, seconds=3)
    assert set(world.codes) == expected
    world.bus.replug(serial)
    world.run(module, seconds=3)
    world.codes.clear()
    world.run(module, seconds=3)
    assert world.codes == []


def test_bright_light_shows_at_once_where_limits_are_given() -> None:
    world = World(slot_rate_hz=100_000)
    limits = SensorLimits(photocurrent_na=(0.0, 100.0))
    receiver = ReceiverModule("RX-1", lambda: world.bus, slots_per_window=SLOTS, clock=world.seconds, limits=limits)
    details: list[str] = []
    receiver.listen(lambda window: None, lambda alarm: details.append(alarm.detail))
    world.devices["RX-1"].inject("blinding")
    world.run(receiver, seconds=2.5)
    assert set(details) == {"photocurrent 150003 nA is not within 0 to 100"}
    assert len(details) == 2
