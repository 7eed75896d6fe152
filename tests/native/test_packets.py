"""The packet parser: whatever is not a good packet in sequence yields no data and is counted."""

import random
from dataclasses import dataclass, field

import device_packets as qmp
import numpy as np
import pytest

from qkdnode.errors import LocalProtocolError
from qkdnode.native import packets
from qkdnode.native.packets import PacketScanner

PIECE = np.dtype(
    [("type", "<u4"), ("reason", "<u4"), ("count", "<u4"), ("offset", "<u4"), ("start", "<u8"), ("end", "<u8")]
)
TX = 1 << packets.CHOICES | 1 << packets.SYNC | 1 << packets.GAP
RX = 1 << packets.TAGS | 1 << packets.SYNC | 1 << packets.GAP
QRNG = 1 << packets.RAW | 1 << packets.GAP
SESSION = 7


@dataclass
class Heard:
    """Everything a scanner yields, in plain values."""

    scanner: PacketScanner
    pieces: list[tuple[int, ...]] = field(default_factory=list)  # type, start, count or end, reason
    data: bytearray = field(default_factory=bytearray)
    clicks: list[tuple[int, int]] = field(default_factory=list)

    def feed(self, data: bytes, room: int = 600) -> None:
        areas = np.zeros(room * packets.PIECES_PER_PACKET, PIECE)
        payload = np.zeros(room * packets.PAYLOAD_BYTES, np.uint8)
        times = np.zeros(room * packets.TAGS_PER_PACKET, np.uint64)
        patterns = np.zeros(room * packets.TAGS_PER_PACKET, np.uint8)
        for piece in areas[: self.scanner.feed(data, areas, payload=payload, times=times, patterns=patterns)]:
            kind, reason, count, offset, start, end = (int(value) for value in piece)
            if kind in (packets.SYNC, packets.GAP):
                self.pieces.append((kind, start, end, reason))
                continue
            if kind == packets.TAGS:
                part = slice(start, start + count)
                self.clicks += zip(times[part].tolist(), patterns[part].tolist(), strict=True)
                continue
            size = count // 2 if kind == packets.CHOICES else count
            self.data += payload[offset : offset + size].tobytes()
            self.pieces.append((kind, start, count, 0))


def heard(types: int, stream: bytes, session: int = SESSION) -> Heard:
    scanner = PacketScanner(types)
    scanner.expect(session)
    result = Heard(scanner)
    result.feed(stream)
    return result


def nibbles(seed: int) -> bytes:
    return random.Random(seed).randbytes(488)


def choice_run(count: int, first: int = 0) -> list[bytes]:
    return [qmp.choices(SESSION, i, first + 976 * i, nibbles(i)) for i in range(count)]


def test_adjoining_choices_become_one_run() -> None:
    result = heard(TX, b"".join(choice_run(5, first=1952)))
    assert result.pieces == [(packets.CHOICES, 1952, 5 * 976, 0)]
    assert bytes(result.data) == b"".join(nibbles(i) for i in range(5))
    assert result.scanner.counters["packets"] == 5


@pytest.mark.parametrize("step", [1, 7, 64, 511, 512, 513, 1000])
def test_the_size_of_the_reads_does_not_matter(step: int) -> None:
    stream = b"".join(choice_run(6))
    scanner = PacketScanner(TX)
    scanner.expect(SESSION)
    result = Heard(scanner)
    for at in range(0, len(stream), step):
        result.feed(stream[at : at + step], room=4)
    assert bytes(result.data) == b"".join(nibbles(i) for i in range(6))
    assert scanner.pending_bytes == 0


def test_every_single_damaged_byte_is_seen() -> None:
    good = choice_run(3)
    for at in range(512):
        result = heard(TX, good[0] + qmp.corrupted(good[1], at) + good[2])
        assert result.pieces == [
            (packets.CHOICES, 0, 976, 0),
            (packets.GAP, 976, 1952, packets.GAP_LOST),
            (packets.CHOICES, 1952, 976, 0),
        ]
        assert result.scanner.counters["crc_errors"] == 1
        assert result.scanner.counters["skipped_bytes"] == 512


@pytest.mark.parametrize("step", [100, 512, 4096])
def test_a_truncated_packet_costs_only_itself(step: int) -> None:
    good = choice_run(4)
    stream = good[0] + good[1][:300] + good[2] + good[3]
    scanner = PacketScanner(TX)
    scanner.expect(SESSION)
    result = Heard(scanner)
    for at in range(0, len(stream), step):
        result.feed(stream[at : at + step])
    assert [piece[0] for piece in result.pieces].count(packets.GAP) == 1
    assert bytes(result.data) == nibbles(0) + nibbles(2) + nibbles(3)
    assert scanner.counters["crc_errors"] == 1
    assert scanner.counters["skipped_bytes"] == 300


def test_a_lost_packet_leaves_a_gap_up_to_the_next_data() -> None:
    good = choice_run(4)
    result = heard(TX, good[0] + good[3])
    assert (packets.GAP, 976, 2928, packets.GAP_LOST) in result.pieces
    assert result.scanner.counters["sequence_gaps"] == 1


def test_a_lost_sync_is_a_break_at_which_no_choices_are_missing() -> None:
    stream = qmp.choices(SESSION, 0, 0, nibbles(0)) + qmp.choices(SESSION, 2, 976, nibbles(1))
    assert (packets.GAP, 976, 976, packets.GAP_LOST) in heard(TX, stream).pieces


def test_repeats_and_latecomers_are_dropped_and_told_apart() -> None:
    good = choice_run(5)
    result = heard(TX, good[0] + good[0] + good[2] + good[1] + good[3] + good[2])
    counters = result.scanner.counters
    assert (counters["duplicates"], counters["late"], counters["conflicts"]) == (2, 1, 0)
    assert bytes(result.data) == nibbles(0) + nibbles(2) + nibbles(3)


def test_two_contents_under_one_sequence_number_spoil_the_range_they_claim() -> None:
    good = choice_run(3)
    other = qmp.choices(SESSION, 1, 976, nibbles(99))
    result = heard(TX, b"".join(good) + other)
    assert result.pieces[-1] == (packets.GAP, 976, 2928, packets.GAP_CONFLICT)
    assert result.scanner.counters["conflicts"] == 1


def test_slots_that_go_back_are_refused() -> None:
    stream = qmp.choices(SESSION, 0, 9760, nibbles(0)) + qmp.choices(SESSION, 1, 976, nibbles(1))
    result = heard(TX, stream)
    assert result.pieces[-1] == (packets.GAP, 976, 10736, packets.GAP_REGRESSED)
    assert bytes(result.data) == nibbles(0)


def test_packets_of_another_session_are_stale() -> None:
    result = heard(TX, qmp.choices(6, 0, 0, nibbles(0)) + qmp.choices(7, 0, 976, nibbles(1)))
    assert result.scanner.counters["stale_session"] == 1
    assert bytes(result.data) == nibbles(1)


def test_the_sequence_wraps() -> None:
    scanner = PacketScanner(TX)
    scanner.expect(SESSION)
    result = Heard(scanner)
    base = 0
    for sequence in (2**31 - 1, 2**32 - 2, 2**32 - 1, 0, 1):
        result.feed(qmp.choices(SESSION, sequence, base, nibbles(0)))
        base += 976
    assert scanner.counters["packets"] == 5
    assert scanner.counters["sequence_gaps"] == 2
    assert scanner.counters["late"] == 0


def test_the_devices_own_gap_marker_is_passed_on() -> None:
    good = choice_run(1)
    stream = good[0] + qmp.gap(SESSION, 1, 976, 97600, 5) + qmp.choices(SESSION, 2, 976 + 97600, nibbles(1))
    result = heard(TX, stream)
    assert result.pieces[1] == (packets.GAP, 976, 98576, packets.GAP_REPORTED)
    assert [piece[0] for piece in result.pieces].count(packets.GAP) == 1
    assert (result.scanner.counters["reported_gaps"], result.scanner.counters["missed_tags"]) == (1, 5)


def test_tags_are_unwrapped_across_the_rollover() -> None:
    edge = 3 << 54
    clicks = [(edge - 5, 1), (edge - 1, 2), (edge, 4), (edge + 9, 8), (edge + (1 << 53), 3)]
    result = heard(RX, qmp.tags(SESSION, 0, clicks) + qmp.tags(SESSION, 1, [(edge + (1 << 54), 15)]))
    assert result.clicks == [*clicks, (edge + (1 << 54), 15)]


def test_a_rollover_bit_that_contradicts_the_times_makes_the_packet_malformed() -> None:
    good = bytearray(qmp.tags(SESSION, 0, [(1000, 1), (2000, 1)])[:508])
    good[20 + 8] |= 0x10
    result = heard(RX, qmp.packet(1, SESSION, 0, 1000, bytes(good[20:508]), count=2))
    assert result.clicks == []
    assert result.scanner.counters["malformed"] == 1


def test_time_that_goes_back_is_refused_until_it_catches_up() -> None:
    runs = [[(1000, 1), (5000, 2)], [(2000, 4)], [(6000, 8)]]
    result = heard(RX, b"".join(qmp.tags(SESSION, i, run) for i, run in enumerate(runs)))
    assert result.clicks == [(1000, 1), (5000, 2), (6000, 8)]
    assert result.pieces == [(packets.GAP, 2000, 5000, packets.GAP_REGRESSED)]


def test_tags_lost_between_two_syncs_leave_a_gap_between_known_times() -> None:
    stream = qmp.sync(SESSION, 0, 1, 1000) + qmp.tags(SESSION, 1, [(1500, 1)]) + qmp.sync(SESSION, 3, 2, 9000)
    assert heard(RX, stream).pieces == [
        (packets.SYNC, 1, 1000, 0),
        (packets.GAP, 1500, 9000, packets.GAP_LOST),
        (packets.SYNC, 2, 9000, 0),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        qmp.packet(1, SESSION, 0, 0, b"", count=0),
        qmp.packet(1, SESSION, 0, 0, bytes(488), count=62),
        qmp.packet(1, SESSION, 0, 256, bytes(8), count=1),
        qmp.tags(SESSION, 0, [(5000, 0)]),
        qmp.packet(1, SESSION, 0, 9, bytes(488), count=1, version=2),
        qmp.packet(5, SESSION, 0, 9, bytes(488), count=2),
        qmp.gap(SESSION, 0, 2**64 - 1, 2**64 - 1),
    ],
    ids=["no tags", "too many tags", "wrong base", "no detector", "version", "sync count", "gap beyond time"],
)
def test_what_the_format_does_not_allow_is_malformed(bad: bytes) -> None:
    result = heard(RX, bad)
    assert result.scanner.counters["malformed"] == 1
    assert result.clicks == []


@pytest.mark.parametrize("count", [0, 60, 62])
def test_choices_and_raw_bytes_come_in_full_packets_only(count: int) -> None:
    for kind, types in ((2, TX), (3, QRNG)):
        result = heard(types, qmp.packet(kind, SESSION, 0, 0, bytes(488), count=count))
        assert result.scanner.counters["malformed"] == 1
        assert not result.data


def test_an_unexpected_type_is_counted_and_breaks_the_stream() -> None:
    good = choice_run(3)
    result = heard(TX, good[0] + qmp.packet(9, SESSION, 1, 0, b"") + qmp.choices(SESSION, 2, 976, nibbles(1)))
    assert result.scanner.counters["unknown"] == 1
    assert result.pieces == [
        (packets.CHOICES, 0, 976, 0),
        (packets.GAP, 976, 976, packets.GAP_LOST),
        (packets.CHOICES, 976, 976, 0),
    ]


def test_raw_bytes_adjoin_by_their_offset() -> None:
    result = heard(QRNG, qmp.raw(SESSION, 0, 0, nibbles(0)) + qmp.raw(SESSION, 1, 488, nibbles(1)))
    assert result.pieces == [(packets.RAW, 0, 976, 0)]
    assert bytes(result.data) == nibbles(0) + nibbles(1)


def test_nothing_is_taken_before_the_session_is_known() -> None:
    with pytest.raises(LocalProtocolError, match="expect"):
        Heard(PacketScanner(TX)).feed(choice_run(1)[0])


def test_areas_that_could_overflow_are_refused_before_anything_is_taken() -> None:
    scanner = PacketScanner(TX)
    scanner.expect(SESSION)
    with pytest.raises(ValueError, match="too small"):
        Heard(scanner).feed(b"".join(choice_run(3)), room=2)
    assert scanner.counters["packets"] == 0


def test_random_bytes_are_never_data() -> None:
    noise = bytearray(random.Random(5).randbytes(100_000))
    for at in range(0, len(noise) - 4, 97):
        noise[at : at + 4] = qmp.choices(SESSION, 0, 0, nibbles(0))[:4]
    result = heard(TX, bytes(noise))
    assert result.pieces == []
    assert result.scanner.counters["packets"] == 0
