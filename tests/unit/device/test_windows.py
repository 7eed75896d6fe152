"""Windows are whole, ascending and true, whatever happens to the stream; what is not emitted is counted."""

import struct
from collections.abc import Callable

import device_packets as qmp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import UNITS, pulse_time, receiver, slot_time, transmitter

from qkdnode.device.assembly import ReceiverAssembly, TransmitterAssembly
from qkdnode.device.clock import ReceiverClock
from qkdnode.device.windows import Discard, ReceiverWindow, ReceiverWindows, TransmitterWindow, TransmitterWindows

TX_SLOTS = 3000
RX_SLOTS = 5000
FEED = 1 << 16


def tx_assembly(slots_per_window: int = TX_SLOTS, live_limit: int = 1000) -> TransmitterAssembly:
    made = TransmitterAssembly(slots_per_window=slots_per_window, feed_bytes=FEED, live_limit=live_limit)
    made.expect(1)
    return made


def rx_assembly(slots_per_window: int = RX_SLOTS, live_limit: int = 1000, waiting: int = 1 << 14) -> ReceiverAssembly:
    clock = ReceiverClock(slot_units=UNITS, sync_slots=2000)
    made = ReceiverAssembly(
        slots_per_window=slots_per_window, feed_bytes=FEED, clock=clock, live_limit=live_limit, waiting_limit=waiting
    )
    made.expect(1)
    return made


def fed(assembly: TransmitterAssembly | ReceiverAssembly, stream: bytes, step: int = FEED) -> list:
    return [
        window for at in range(0, len(stream), step) for window in assembly.feed(memoryview(stream)[at : at + step])
    ]


@pytest.mark.parametrize("slots_per_window", [2, 64, 976, 1000, 3000, 10_000])
@pytest.mark.parametrize("first", [0, 976 * 7])
def test_an_undisturbed_transmitter_loses_only_partial_windows(slots_per_window: int, first: int) -> None:
    truth = transmitter(40, first=first)
    made = tx_assembly(slots_per_window, live_limit=100_000)
    windows = fed(made, b"".join(truth.packets), step=5000)
    expected = range(-(-first // slots_per_window), (first + 40 * 976) // slots_per_window)
    assert [window.index for window in windows] == list(expected)
    assert all(truth.agrees(window, slots_per_window) for window in windows)
    assert made.judgement.discarded == ({Discard.PARTIAL: 1} if first % slots_per_window else {})


@pytest.mark.parametrize("ppm", [0.0, 31.0])
@pytest.mark.parametrize("first_pulse", [0, 11])
@pytest.mark.parametrize("slots_per_window", [100, 5000, 7001])
def test_an_undisturbed_receiver_tells_every_detection_once_locked(
    ppm: float, first_pulse: int, slots_per_window: int
) -> None:
    truth = receiver(40, first_pulse=first_pulse, ppm=ppm)
    made = rx_assembly(slots_per_window, live_limit=100_000)
    windows = fed(made, b"".join(truth.packets), step=3000)
    start, end = (first_pulse + 4) * 2000, (first_pulse + 39) * 2000
    expected = range(-(-start // slots_per_window), end // slots_per_window)
    assert [window.index for window in windows] == list(expected)
    assert all(truth.agrees(window, slots_per_window) for window in windows)


def test_a_quiet_receiver_still_completes_windows() -> None:
    truth = receiver(20, density=0)
    windows = fed(rx_assembly(), b"".join(truth.packets))
    assert [window.index for window in windows] == [2, 3, 4, 5, 6]
    assert not any(window.slots.size for window in windows)


def test_the_negative_of_a_clock_offset_is_no_obstacle() -> None:
    truth = receiver(30, first_pulse=50, offset=-1_000_000)
    windows = fed(rx_assembly(), b"".join(truth.packets))
    assert len(windows) == 9
    assert all(truth.agrees(window, RX_SLOTS) for window in windows)


def test_several_tags_in_one_slot_become_one_pattern() -> None:
    clicks = [(slot_time(10_100), 1), (slot_time(10_100) + 200, 2), (slot_time(10_101), 4)]
    stream = [qmp.sync(1, i, i, pulse_time(2000 * i)) for i in range(6)]
    stream += [qmp.tags(1, 6, clicks), *(qmp.sync(1, i + 1, i, pulse_time(2000 * i)) for i in range(6, 10))]
    windows = fed(rx_assembly(), b"".join(stream))
    assert windows[0].slots.tolist() == [100, 101]
    assert windows[0].patterns.tolist() == [3, 4]


def test_a_lost_choice_packet_discards_exactly_the_windows_it_touches() -> None:
    truth = transmitter(40)
    packets = list(truth.packets)
    lost = packets.pop(13)
    touched = {slot // TX_SLOTS for slot in (int.from_bytes(lost[12:20], "little") + d for d in (0, 975))}
    made = tx_assembly()
    windows = fed(made, b"".join(packets))
    assert {window.index for window in windows} == set(range(13)) - touched
    assert made.judgement.discarded == {Discard.LOST: len(touched)}


def test_an_overflow_marker_discards_everything_it_spans() -> None:
    before, after = transmitter(10), transmitter(10, first=97600, sequence=13)
    stream = [*before.packets, qmp.gap(1, 12, 9760, 97600 - 9760), *after.packets]
    made = tx_assembly()
    indices = [window.index for window in fed(made, b"".join(stream))]
    assert indices == [0, 1, 2, 33, 34]
    assert made.judgement.discarded == {Discard.REPORTED: 30}


def test_a_receiver_overflow_marker_discards_the_windows_of_its_time() -> None:
    truth = receiver(40)
    packets = list(truth.packets)
    number = next(i for i, data in enumerate(packets) if data[3] == 5 and data[12] == 20)
    marker = qmp.gap(1, number + 1, pulse_time(40_000), 3000 * UNITS, 7)
    rest = receiver(18, first_pulse=22, sequence=number + 2, seed=3)
    made = rx_assembly()
    windows = fed(made, b"".join([*packets[: number + 1], marker, *rest.packets]))
    indices = [window.index for window in windows]
    assert indices == [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14]
    assert made.judgement.discarded[Discard.REPORTED] == 1
    assert all((truth if window.index < 8 else rest).agrees(window, RX_SLOTS) for window in windows)


def test_a_jump_of_the_receivers_clock_discards_until_it_is_found_again() -> None:
    early = receiver(20)
    late = receiver(20, first_pulse=20, offset=5_000_000 + 3 * UNITS, sequence=len(early.packets), seed=2)
    made = rx_assembly()
    windows = fed(made, b"".join(early.packets + late.packets))
    assert made.clock.losses == 1
    assert made.judgement.discarded[Discard.CLOCK] >= 1
    assert all((early if window.index < 8 else late).agrees(window, RX_SLOTS) for window in windows)
    assert windows[-1].index == 14
    assert made.judgement.emitted + sum(made.judgement.discarded.values()) == 14


def test_a_window_held_back_by_too_many_tags_is_discarded() -> None:
    truth = receiver(30, density=0.9)
    made = rx_assembly(waiting=1000)
    assert fed(made, b"".join(truth.packets)) == []
    assert made.judgement.discarded[Discard.BACKLOG] > 0


@pytest.mark.parametrize("make", [tx_assembly, rx_assembly])
def test_a_consumer_that_holds_windows_loses_the_newest(make: Callable[..., TransmitterAssembly]) -> None:
    made = make(live_limit=3)
    stream = b"".join((transmitter(40) if make is tx_assembly else receiver(40)).packets)
    held = fed(made, stream)
    assert len(held) == 3
    assert made.judgement.discarded[Discard.BACKLOG] >= 3


def test_a_consumer_that_lets_go_gets_them_all() -> None:
    made, truth = tx_assembly(live_limit=3), transmitter(40)
    count = sum(len(made.feed(memoryview(packet))) for packet in truth.packets)
    assert count == 13
    assert not made.judgement.discarded


def test_a_stop_discards_the_open_window_and_what_was_missed() -> None:
    made = tx_assembly()
    fed(made, b"".join(transmitter(10).packets))
    made.stop(Discard.DEVICE)
    made.expect(2)
    windows = fed(made, b"".join(transmitter(10, session=2, first=97600).packets))
    assert [window.index for window in windows] == [33, 34]
    assert made.judgement.discarded == {Discard.DEVICE: 29, Discard.PARTIAL: 1}


def test_a_device_that_counts_its_slots_anew_repeats_no_window() -> None:
    made = tx_assembly()
    first = fed(made, b"".join(transmitter(10).packets))
    made.stop(Discard.DEVICE)
    made.expect(2)
    second = fed(made, b"".join(transmitter(20, session=2).packets))
    indices = [window.index for window in first + second]
    assert indices == sorted(set(indices))


def test_a_conflict_found_after_emission_is_counted() -> None:
    truth = transmitter(10)
    made = tx_assembly()
    stream = [*truth.packets, qmp.choices(1, 1, 0, bytes(488))]
    assert len(fed(made, b"".join(stream))) == 3
    assert made.judgement.recalled_too_late == 1
    assert made.judgement.discarded == {Discard.CONFLICT: 1}


def test_release_wipes_a_window() -> None:
    tx = fed(tx_assembly(), b"".join(transmitter(10).packets))[0]
    rx = fed(rx_assembly(), b"".join(receiver(10).packets))[0]
    assert rx.patterns.any()
    tx.release()
    rx.release()
    assert not np.frombuffer(memoryview(tx.choices), np.uint8).any()
    assert not rx.patterns.any()


def test_nothing_secret_stays_in_the_assembly_between_feeds() -> None:
    made = tx_assembly()
    fed(made, b"".join(transmitter(4).packets))
    assert not any(made._scan.payload)
    receiving = rx_assembly()
    fed(receiving, b"".join(receiver(20).packets))
    assert not receiving._scan.patterns.any()
    assert not receiving._patterns[receiving._waiting :].any()
    assert not receiving._windows._patterns[receiving._windows._held :].any()


@pytest.mark.parametrize("bad", [0, -2, 3])
def test_windows_of_impossible_size_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="slots"):
        TransmitterWindows(bad)
    if bad <= 0:
        with pytest.raises(ValueError, match="slots"):
            ReceiverWindows(bad)


def mutate(packets: list[bytes], mutations: list[tuple[str, int, int]]) -> list[bytes]:
    """What a bad bus or device could make of a stream."""
    stream = list(packets)
    for what, where, how in mutations:
        at = where % len(stream)
        if what == "drop":
            del stream[at : at + 1 + how % 7]
        elif what == "repeat":
            stream.insert((at + how % 9), stream[at])
        elif what == "swap":
            to = (at + 1 + how % 5) % len(stream)
            stream[at], stream[to] = stream[to], stream[at]
        elif what == "corrupt" and stream[at]:
            stream[at] = qmp.corrupted(stream[at], how % len(stream[at]), 1 << how % 8)
        elif what == "truncate":
            stream[at] = stream[at][: how % 512]
        elif what == "junk":
            stream.insert(at, bytes(how % 256 for _ in range(how % 700)))
        elif what == "stale" and len(stream[at]) == 512:
            sequence, base = struct.unpack_from("<IQ", stream[at], 8)
            stream.insert(at, qmp.packet(stream[at][3], 9, sequence, base, bytes(b ^ 5 for b in stream[at][20:508])))
        elif what == "retype" and len(stream[at]) == 512:
            sequence, base = struct.unpack_from("<IQ", stream[at], 8)
            stream[at] = qmp.packet(10 + how % 30, 1, sequence, base, stream[at][20:508])
        if not stream:
            break
    return stream


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "repeat", "swap", "corrupt", "truncate", "junk", "stale", "retype"]),
        st.integers(0, 1000),
        st.integers(0, 10_000),
    ),
    max_size=6,
)
TX_TRUTH = transmitter(30)
RX_TRUTH = receiver(30)


def accounted(assembly: TransmitterAssembly | ReceiverAssembly, windows: list, first: int) -> bool:
    judgement = assembly.judgement
    indices = [window.index for window in windows]
    return indices == sorted(set(indices)) and (
        not judgement.next_index
        or judgement.next_index - first <= judgement.emitted + sum(judgement.discarded.values()) <= judgement.next_index
    )


@settings(max_examples=150, deadline=None)
@given(mutations=MUTATIONS, step=st.integers(1, 9000))
def test_no_stream_makes_a_wrong_transmitter_window(mutations: list[tuple[str, int, int]], step: int) -> None:
    made = tx_assembly()
    windows: list[TransmitterWindow] = fed(made, b"".join(mutate(TX_TRUTH.packets, mutations)), step=max(step, 50))
    assert all(TX_TRUTH.agrees(window, TX_SLOTS) for window in windows)
    assert accounted(made, windows, 9)
    if not mutations:
        assert len(windows) == 9


@settings(max_examples=150, deadline=None)
@given(mutations=MUTATIONS, step=st.integers(1, 9000))
def test_no_stream_makes_a_wrong_receiver_window(mutations: list[tuple[str, int, int]], step: int) -> None:
    made = rx_assembly()
    windows: list[ReceiverWindow] = fed(made, b"".join(mutate(RX_TRUTH.packets, mutations)), step=max(step, 50))
    assert all(RX_TRUTH.agrees(window, RX_SLOTS) for window in windows)
    assert accounted(made, windows, 11)
    if not mutations:
        assert len(windows) == 9
