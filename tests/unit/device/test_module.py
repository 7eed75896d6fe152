"""Drivers of QKD modules over a scripted bus: Windows in, troubles out, and back again after any of them."""

import errno
import threading

import device_packets as qmp
import pytest
from scripted_usb import RX, TX, FakeClock, ScriptedBus, ScriptedDevice
from streams import receiver, transmitter

from qkdnode.device.alarms import AlarmCode, DeviceAlarm
from qkdnode.device.identity import Alarms
from qkdnode.device.module import ReceiverModule, TransmitterModule
from qkdnode.device.reader import ReaderState
from qkdnode.device.windows import Discard, TransmitterWindow, Window

SLOTS = 3000


class Station:
    """A transmitter on a scripted bus, driven by hand under a clock of its own."""

    def __init__(self, *others: ScriptedDevice) -> None:
        self.device = ScriptedDevice("TX-1", TX)
        self.bus = ScriptedBus(self.device, *others)
        self.clock = FakeClock()
        self.windows: list[TransmitterWindow] = []
        self.alarms: list[DeviceAlarm] = []
        self.truth = transmitter(0)
        self.module = TransmitterModule("TX-1", self.bus.factory, slots_per_window=SLOTS, clock=self.clock)
        self.module.listen(self.windows.append, self.alarms.append)

    def on_air(self, packets: int, first: int = 0) -> list[bytes]:
        """The packets of the present session if the device is open, else of the next one."""
        closed = self.module.statistics().state is ReaderState.CLOSED
        self.truth = transmitter(packets, session=self.device.session + closed, first=first)
        return self.truth.packets

    def run(self, steps: int = 200) -> None:
        for _ in range(steps):
            self.clock.now += self.module.step()

    @property
    def codes(self) -> list[AlarmCode]:
        return [alarm.code for alarm in self.alarms]


@pytest.fixture
def station() -> Station:
    return Station()


def test_windows_arrive_in_order_and_true(station: Station) -> None:
    station.device.script.extend(station.on_air(40))
    station.run(100)
    assert [window.index for window in station.windows] == list(range(13))
    assert all(station.truth.agrees(window, SLOTS) for window in station.windows)
    assert station.alarms == []
    statistics = station.module.statistics()
    assert (statistics.windows, statistics.openings, statistics.state) == (13, 1, ReaderState.STREAMING)
    assert statistics.scan is not None
    assert statistics.scan.packets == 48
    assert station.module.config is not None
    assert station.module.config.intensities == (0.5, 0.15)


def test_short_reads_and_timeouts_cost_nothing(station: Station) -> None:
    stream = b"".join(station.on_air(20))
    for at in range(0, len(stream), 700):
        station.device.script.extend([stream[at : at + 700], errno.ETIMEDOUT, b""])
    station.run(100)
    assert len(station.windows) == 6
    assert station.alarms == []


def test_a_gap_after_the_first_window_is_alarmed_and_one_before_is_only_counted(station: Station) -> None:
    packets = list(station.on_air(40))
    del packets[30]
    del packets[2]
    station.device.script.extend(packets)
    station.run()
    assert station.codes == [AlarmCode.DEVICE_GAP]
    assert Discard.LOST in station.alarms[0].detail
    assert station.module.statistics().discarded[Discard.LOST] == 2


def test_an_unplugged_device_comes_back_on_a_new_backend(station: Station) -> None:
    station.device.script.extend([*station.on_air(10), lambda: setattr(station.device, "plugged", False)])
    station.run(30)
    assert station.codes == [AlarmCode.DEVICE_LOST]
    assert "TX-1 was unplugged" in station.alarms[0].detail
    assert station.bus.backends > 3
    station.device.plugged = True
    station.device.script.extend(station.on_air(10, first=97600))
    station.run(40)
    assert station.codes == [AlarmCode.DEVICE_LOST, AlarmCode.DEVICE_RESTORED]
    assert [window.index for window in station.windows] == [0, 1, 2, 33, 34]
    assert all(station.truth.agrees(window, SLOTS) for window in station.windows[3:])
    assert station.module.statistics().openings == 2


def test_the_pauses_between_attempts_double_up_to_five_seconds(station: Station) -> None:
    station.device.plugged = False
    assert [station.module.step() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    station.device.plugged = True
    station.device.script.append(station.on_air(1)[0])
    station.module.step()
    station.module.step()
    station.device.plugged = False
    assert station.module.step() == 0.1


def test_another_serial_in_its_place_is_not_used() -> None:
    other = ScriptedDevice("TX-9", TX, plugged=False)
    station = Station(other)

    def exchange() -> None:
        station.device.plugged, other.plugged = False, True

    station.device.script.extend([*station.on_air(5), exchange])
    station.run(30)
    assert station.codes == [AlarmCode.DEVICE_LOST]
    assert other.session == 0


def test_packets_of_the_session_before_do_not_survive_a_reopening(station: Station) -> None:
    packets = station.on_air(40)
    station.device.script.extend([*packets[:20], errno.EIO, *packets[20:]])
    station.run()
    statistics = station.module.statistics()
    assert statistics.scan is not None
    assert statistics.scan.stale_session == len(packets) - 20
    assert len(station.windows) == 5


def test_a_stall_is_cleared_without_a_new_opening(station: Station) -> None:
    packets = station.on_air(20)
    station.device.script.extend([*packets[:5], errno.EPIPE, *packets[5:]])
    station.run(60)
    assert len(station.windows) == 6
    assert station.module.statistics().openings == 1
    station.module.stop()
    assert station.module.statistics().stalls == 1


def test_a_device_that_naks_for_long_is_opened_anew(station: Station) -> None:
    station.device.script.extend(station.on_air(5))
    station.run(20)
    station.clock.now += 6
    station.run(1)
    assert station.codes == [AlarmCode.DEVICE_LOST]
    assert "no good packet" in station.alarms[0].detail


def test_bytes_without_a_good_packet_are_silence_too(station: Station) -> None:
    station.device.script.extend([station.on_air(5)[0], *([bytes(512)] * 1000)])
    for _ in range(100):
        station.module.step()
        station.clock.now += 0.1
    assert station.codes[0] is AlarmCode.DEVICE_LOST


def test_a_latched_alarm_stops_the_stream_until_it_is_acknowledged(station: Station) -> None:
    station.device.script.extend(station.on_air(10))
    station.run(5)
    assert station.module.acknowledge() is False
    station.device.alarms = Alarms.TAMPER
    station.clock.now += 2
    station.run(20)
    assert station.codes == [AlarmCode.DEVICE_UNHEALTHY]
    assert "tamper" in station.alarms[0].detail
    assert station.device.alarms == Alarms.TAMPER
    assert station.module.acknowledge() is True
    station.device.script.clear()
    station.device.script.extend(station.on_air(10, first=97600))
    station.run(40)
    assert station.codes[-1] is AlarmCode.DEVICE_RESTORED
    assert station.windows[-1].index == 34
    assert station.module.statistics().discarded[Discard.DEVICE] >= 1


def test_a_device_that_counts_its_slots_anew_is_alarmed(station: Station) -> None:
    station.device.script.extend([*station.on_air(10, first=976_000), errno.EIO])
    station.run(20)
    station.device.script.extend(station.on_air(10))
    station.run(20)
    assert station.codes == [AlarmCode.DEVICE_LOST, AlarmCode.DEVICE_RESTORED, AlarmCode.DEVICE_PROTOCOL]
    assert "slots lie before" in station.alarms[-1].detail
    assert station.windows[-1].index >= 976_000 // SLOTS


def test_a_device_that_may_not_be_opened_is_told_apart_from_a_lost_one(station: Station) -> None:
    station.device.plugged = False
    station.run(3)
    station.device.plugged, station.device.forbidden = True, True
    station.run(3)
    assert station.codes == [AlarmCode.DEVICE_LOST, AlarmCode.DEVICE_UNUSABLE]


def test_stop_gives_the_device_back_and_voids_the_open_window(station: Station) -> None:
    station.device.script.extend(station.on_air(5))
    station.run(20)
    station.module.stop()
    assert station.device.requests[-1] == (8, 0)
    assert station.module.statistics().state is ReaderState.CLOSED
    assert station.module.statistics().discarded == {Discard.DEVICE: 1}


def test_a_changed_slot_rate_is_not_accepted(station: Station) -> None:
    station.device.script.extend([*station.on_air(5), errno.EIO])
    station.run(6)
    station.device.sync_slots = 4000
    station.run(20)
    assert station.codes == [AlarmCode.DEVICE_LOST, AlarmCode.DEVICE_PROTOCOL]
    assert "changed its slot rate" in station.alarms[-1].detail


class Listening:
    """A receiver on a scripted bus."""

    def __init__(self) -> None:
        self.device = ScriptedDevice("RX-1", RX)
        self.windows: list[Window] = []
        self.alarms: list[DeviceAlarm] = []
        bus = ScriptedBus(self.device)
        self.module = ReceiverModule("RX-1", bus.factory, slots_per_window=5000, clock=FakeClock())
        self.module.listen(self.windows.append, self.alarms.append)

    def run(self, packets: list[bytes]) -> None:
        self.device.script.extend(packets)
        for _ in range(len(packets) + 5):
            self.module.step()


def test_a_receiver_tells_its_detections_in_the_transmitters_slots() -> None:
    listening, truth = Listening(), receiver(30, ppm=-12.0)
    listening.run(truth.packets)
    assert len(listening.windows) == 9
    assert all(truth.agrees(window, 5000) for window in listening.windows)  # type: ignore[arg-type]
    statistics = listening.module.statistics()
    assert statistics.clock_locked
    assert statistics.clock_rate_ppm == pytest.approx(-12.0, abs=0.01)
    assert listening.alarms == []


def test_a_jump_of_the_clock_is_alarmed() -> None:
    listening, early = Listening(), receiver(20)
    late = receiver(20, first_pulse=20, offset=90_000_000, sequence=len(early.packets))
    listening.run(early.packets + late.packets)
    assert AlarmCode.DEVICE_CLOCK in [alarm.code for alarm in listening.alarms]
    assert listening.module.statistics().clock_losses == 1


def test_time_that_goes_back_is_a_gap_and_no_window() -> None:
    listening, truth = Listening(), receiver(30)
    at = next(i for i, data in enumerate(truth.packets) if data[3] == 5 and data[12] == 16)
    back = qmp.tags(1, at, [(6_000_000, 1)])
    listening.run([*truth.packets[:at], back])
    later = receiver(14, first_pulse=16, sequence=at + 1, seed=7)
    listening.run(later.packets)
    assert listening.module.statistics().discarded[Discard.REGRESSED] == 1
    assert [alarm.code for alarm in listening.alarms] == [AlarmCode.DEVICE_GAP]


def test_a_module_runs_in_a_thread_of_its_own_until_it_is_stopped(station: Station) -> None:
    arrived, windows = threading.Event(), []

    def on_window(window: TransmitterWindow) -> None:
        windows.append(window)
        if len(windows) == 13:
            arrived.set()

    station.device.script.extend(station.on_air(40))
    station.module.start(on_window, station.alarms.append)
    assert arrived.wait(30)
    station.module.stop()
    assert not any("TX-1" in thread.name for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_faulty_callback_ends_the_driver_with_an_alarm_and_a_closed_device(station: Station) -> None:
    ended = threading.Event()

    def on_window(window: TransmitterWindow) -> None:
        raise ZeroDivisionError

    def on_alarm(alarm: DeviceAlarm) -> None:
        assert "ZeroDivisionError" in alarm.detail
        ended.set()

    station.device.script.extend(station.on_air(40))
    station.module.start(on_window, on_alarm)
    assert ended.wait(30)
    station.module.stop()
    assert station.device.requests[-1] == (8, 0)
