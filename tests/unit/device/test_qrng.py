"""The QRNG driver: healthy bytes reach the pool, a failing device gives nothing more until a person has looked."""

import errno

import device_packets as qmp
import numpy as np
import pytest
from scripted_usb import QRNG, FakeClock, ScriptedBus, ScriptedDevice
from test_entropy import BLOCK, FirstBytes, no_random

from qkdnode.device.alarms import AlarmCode, DeviceAlarm
from qkdnode.device.entropy import EntropyPool, SourceState
from qkdnode.device.identity import Alarms
from qkdnode.device.qrng import QrngModule
from qkdnode.errors import NoEntropyError


class Lab:
    """A QRNG on a scripted bus, feeding a pool."""

    def __init__(self) -> None:
        self.device = ScriptedDevice("Q-1", QRNG)
        self.bus = ScriptedBus(self.device)
        self.clock = FakeClock()
        self.pool = EntropyPool(extractor=FirstBytes, capacity_bytes=1 << 16, os_random=no_random)
        self.source = self.pool.attach("Q-1")
        self.alarms: list[DeviceAlarm] = []
        self.module = QrngModule("Q-1", self.bus.factory, self.source, clock=self.clock)
        self.module.listen(self.alarms.append)

    def run(self, steps: int = 40) -> None:
        for _ in range(steps):
            self.clock.now += self.module.step()

    def stream(self, data: bytes, sequence: int = 0, offset: int = 0) -> list[bytes]:
        """The packets of the present session if it is open, else of the next one."""
        session = self.device.session + (self.module.statistics().state == "closed")
        return [
            qmp.raw(session, sequence + i, offset + at, data[at : at + 488])
            for i, at in enumerate(range(0, len(data), 488))
        ]

    @property
    def codes(self) -> list[AlarmCode]:
        return [alarm.code for alarm in self.alarms]


def good(packets: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(488 * packets)


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_bytes_after_the_startup_samples_reach_the_pool(lab: Lab) -> None:
    data = good(30)
    lab.device.script.extend(lab.stream(data))
    lab.run()
    assert lab.pool.available_bytes == (len(data) - 1024) // 1024 * BLOCK
    with lab.pool.draw(BLOCK) as buffer, memoryview(buffer) as view:
        assert view == data[1024 : 1024 + BLOCK]
    assert (9, 0) in lab.device.requests
    assert lab.alarms == []


@pytest.mark.parametrize(
    "bad",
    [bytes(488 * 3), b"\x00\xff" * 244 * 3, np.random.default_rng(2).integers(0, 8, 488 * 6, np.uint8).tobytes()],
    ids=["stuck", "periodic", "biased"],
)
def test_a_defect_stops_the_supply_until_it_is_acknowledged(lab: Lab, bad: bytes) -> None:
    lab.device.script.extend([*lab.stream(good(30) + bad)])
    lab.run(100)
    assert lab.codes == [AlarmCode.DEVICE_UNHEALTHY]
    assert lab.pool.available_bytes == 0
    with pytest.raises(NoEntropyError, match="Q-1 failed"):
        lab.pool.draw(1)
    assert lab.module.acknowledge()
    lab.device.script.clear()
    lab.device.script.extend(lab.stream(good(10, seed=3)))
    lab.run()
    assert lab.pool.healthy
    assert lab.codes == [AlarmCode.DEVICE_UNHEALTHY, AlarmCode.DEVICE_RESTORED]


def test_a_device_stuck_from_the_start_never_counts(lab: Lab) -> None:
    lab.device.script.extend(lab.stream(bytes(488 * 10)))
    lab.run()
    assert lab.source.state is SourceState.FAILED
    assert not lab.pool.healthy


def test_the_devices_own_alarm_discards_what_was_not_drawn(lab: Lab) -> None:
    lab.device.script.extend(lab.stream(good(30)))
    lab.run()
    assert lab.pool.available_bytes
    lab.device.alarms = Alarms.REPETITION
    lab.clock.now += 2
    lab.run(5)
    assert lab.pool.available_bytes == 0
    assert lab.codes == [AlarmCode.DEVICE_UNHEALTHY]
    assert "repetition" in lab.alarms[0].detail


def test_an_unplugged_device_starts_with_its_startup_test_again(lab: Lab) -> None:
    lab.device.script.extend([*lab.stream(good(30)), errno.ENODEV])
    lab.run(35)
    lab.device.script.extend(lab.stream(good(2, seed=4)))
    lab.run(5)
    assert lab.source.state is SourceState.STARTING
    with pytest.raises(NoEntropyError):
        lab.pool.draw(1)
    lab.device.script.extend(lab.stream(good(5, seed=5), sequence=2, offset=976))
    lab.run(10)
    assert lab.pool.healthy
    assert lab.codes[0] is AlarmCode.DEVICE_LOST


def test_a_gap_in_the_raw_stream_is_alarmed_and_not_spliced(lab: Lab) -> None:
    packets = lab.stream(good(30))
    del packets[10]
    lab.device.script.extend(packets)
    lab.run()
    assert lab.codes == [AlarmCode.DEVICE_GAP]
    assert lab.pool.available_bytes < 28 * 488 // 1024 * BLOCK


def test_a_slow_drip_yields_little_but_never_unhealthy_bytes(lab: Lab) -> None:
    for packet in lab.stream(good(6)):
        lab.device.script.extend([packet, errno.ETIMEDOUT])
        for _ in range(2):
            lab.module.step()
            lab.clock.now += 1.5
    assert lab.pool.healthy
    assert lab.pool.available_bytes == BLOCK
    with pytest.raises(NoEntropyError, match="slower than the demand"):
        lab.pool.draw(BLOCK + 1)


def test_stop_leaves_the_pool_without_this_source(lab: Lab) -> None:
    lab.device.script.extend(lab.stream(good(30)))
    lab.run()
    lab.module.stop()
    assert not lab.pool.healthy
    assert lab.module.statistics().source.state is SourceState.LOST
