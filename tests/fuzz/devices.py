"""What a device sends: packets, read in pieces of any size, and the records of its control endpoint."""

import struct
from collections.abc import Hashable, Iterable, Iterator

import device_packets as qmp
import numpy as np
from streams import receiver, transmitter

from fuzz.engine import Violation
from qkdnode.device.assembly import PIECE, ReceiverAssembly, TransmitterAssembly, types
from qkdnode.device.clock import ReceiverClock
from qkdnode.device.identity import (
    Personality,
    check_health,
    check_identity,
    decode_config,
    decode_health,
    decode_info,
)
from qkdnode.errors import DeviceError
from qkdnode.native import packets
from qkdnode.native.packets import PacketScanner

SESSION = 1
TX = types(packets.CHOICES, packets.SYNC, packets.GAP)
RX = types(packets.TAGS, packets.SYNC, packets.GAP)
QRNG = types(packets.RAW, packets.GAP)
SLOTS_PER_WINDOW = 4096
RUN_KINDS = (packets.CHOICES, packets.RAW, packets.CONDITIONED)


def _raw_stream() -> bytes:
    parts = [qmp.raw(SESSION, i, 488 * i, bytes([i + 1]) * 488) for i in range(4)]
    return b"".join([*parts, qmp.gap(SESSION, 4, 4 * 488, 976), qmp.raw(SESSION, 5, 6 * 488, b"\x55" * 488)])


def packet_seeds() -> list[bytes]:
    """Short streams of each kind of device behind one byte: which device, and how the stream is cut into reads."""
    tx, rx = b"".join(transmitter(6).packets), b"".join(receiver(16).packets[:32])
    gaps = b"".join((qmp.gap(SESSION, 0, 0, 976), qmp.choices(SESSION, 1, 976, bytes(488))))
    tags = b"".join((qmp.sync(SESSION, 0, 0, 5), qmp.tags(SESSION, 1, [((1 << 54) - 1, 1), (1 << 54, 2)])))
    return [
        bytes([kind + 3 * reads]) + stream
        for reads in (0, 5)
        for kind, stream in ((0, tx), (1, rx), (2, _raw_stream()), (0, gaps), (1, tags))
    ]


def cut_up(stream: bytes, reads: int) -> Iterator[bytes]:
    """The stream in reads whose sizes follow from one number; 0: one read."""
    if not reads:
        yield stream
        return
    sizes = ((reads * 37 + i * 101) % 1100 + 1 for i in range(1 << 30))
    at = 0
    while at < len(stream):
        size = next(sizes)
        yield stream[at : at + size]
        at += size


class Heard:
    """What a scanner makes of a stream, in values that do not depend on how it was cut into reads."""

    def __init__(self, kinds: int) -> None:
        self.scanner = PacketScanner(kinds)
        self.scanner.expect(SESSION)
        self.pieces: list[tuple[int, ...]] = []
        self.data = bytearray()
        self.clicks: list[tuple[int, int]] = []

    def feed(self, data: bytes) -> None:
        most = len(data) // 512 + 2
        areas = np.zeros(most * packets.PIECES_PER_PACKET, PIECE)
        payload = np.zeros(most * packets.PAYLOAD_BYTES, np.uint8)
        times = np.zeros(most * packets.TAGS_PER_PACKET, np.uint64)
        patterns = np.zeros(most * packets.TAGS_PER_PACKET, np.uint8)
        count = self.scanner.feed(data, areas, payload=payload, times=times, patterns=patterns)
        for kind, reason, items, offset, start, end in areas[:count].tolist():
            if kind in (packets.SYNC, packets.GAP):
                self.pieces.append((kind, start, end, reason))
            elif kind == packets.TAGS:
                part = slice(start, start + items)
                if part.stop > times.size:
                    raise Violation("a piece of tags lies outside its area")
                self.clicks += zip(times[part].tolist(), patterns[part].tolist(), strict=True)
            else:
                size = items // 2 if kind == packets.CHOICES else items
                if offset + size > payload.size:
                    raise Violation("a piece of payload lies outside its area")
                self.data += payload[offset : offset + size].tobytes()
                self._run(kind, start, items)

    def _run(self, kind: int, start: int, items: int) -> None:
        last = self.pieces[-1] if self.pieces else (0, 0, 0, 0)
        if last[0] == kind and last[1] + last[2] == start:
            self.pieces[-1] = (kind, last[1], last[2] + items, 0)
        else:
            self.pieces.append((kind, start, items, 0))


def take_packets(data: bytes) -> Iterable[Hashable]:
    """The size of the reads makes no difference; every byte is accounted for; what is told is in order."""
    how, stream = (data[0], data[1:]) if data else (0, b"")
    kinds = (TX, RX, QRNG)[how % 3]
    whole, parts = Heard(kinds), Heard(kinds)
    whole.feed(stream)
    for part in cut_up(stream, how // 3):
        parts.feed(part)
    if (whole.pieces, whole.data, whole.clicks) != (parts.pieces, parts.data, parts.clicks):
        raise Violation("the size of the reads changes what is heard")
    counters = whole.scanner.counters
    if counters["packets"] != parts.scanner.counters["packets"]:
        raise Violation("the size of the reads changes what is counted")
    met = sum(counters[name] for name in ("packets", "stale_session", "duplicates", "late", "conflicts"))
    if 512 * met + counters["skipped_bytes"] + whole.scanner.pending_bytes != len(stream):
        raise Violation("bytes of the stream are unaccounted for")
    for kind, start, end, reason in whole.pieces:
        if kind == packets.GAP and (start > end or not 1 <= reason <= 4):
            raise Violation(f"a gap from {start} to {end} for reason {reason}")
    return (
        how % 3,
        *((name, min(value, 3)) for name, value in counters.items() if value),
        len(whole.pieces).bit_length(),
        *{(piece[0], piece[3]) for piece in whole.pieces},
    )


def take_windows(data: bytes) -> Iterable[Hashable]:
    """Windows out of any stream come in rising order, whole, and within their slots."""
    how, stream = (data[0], data[1:]) if data else (0, b"")
    assembly: TransmitterAssembly | ReceiverAssembly
    if how % 3 == 1:
        clock = ReceiverClock(slot_units=12800, sync_slots=2000)
        assembly = ReceiverAssembly(
            slots_per_window=SLOTS_PER_WINDOW, feed_bytes=1 << 16, clock=clock, waiting_limit=1 << 12
        )
    else:
        assembly = TransmitterAssembly(slots_per_window=SLOTS_PER_WINDOW, feed_bytes=1 << 16)
    assembly.expect(SESSION)
    last, found = -1, 0
    for part in cut_up(stream, how // 3):
        for window in assembly.feed(memoryview(part)):
            if window.index <= last:
                raise Violation(f"Window {window.index} after Window {last}")
            last = window.index
            found += 1
            slots = getattr(window, "slots", None)
            if (
                slots is not None
                and slots.size
                and (int(slots[-1]) >= SLOTS_PER_WINDOW or np.any(np.diff(slots.astype(np.int64)) <= 0))
            ):
                raise Violation(f"Window {window.index} holds slots outside it or out of order")
    judgement = assembly.judgement
    return (how % 3, min(found, 4), *((str(reason), min(count, 3)) for reason, count in judgement.discarded.items()))


# --- records  ---

SERIAL = "RX-1"


def record_seeds() -> list[bytes]:
    """Records as a device gives them, behind one byte that says which."""
    info = struct.pack(
        "<HBBIQQIBBH16s16s", 0x4B51, 1, 2, 0x10200, 20_000_000, 2000, 12800, 2, 3, 7, SERIAL.encode(), b"QKD-Rx"
    )
    health = struct.pack("<IIIiiiIIQQQQ", 1, 0, 3, 25_000, 3300, 12, 0, 0, 99, 0, 0, 0)
    config = (2**31).to_bytes(4, "little") + (2).to_bytes(4, "little") + bytes(range(56))
    return [b"\0" + info, b"\1" + health, b"\2" + config]


def take_record(data: bytes) -> Iterable[Hashable]:
    """Records decode to values in range, or the device is refused with words about it."""
    which, record = (data[0] % 3, data[1:]) if data else (0, b"")
    if which == 0:
        info = decode_info(SERIAL, record)
        if info.personality in (1, 2) and not (info.slot_rate_hz and info.sync_interval_slots and info.slot_units):
            raise Violation("a QKD module without a time base was accepted")
        for wanted in Personality:
            try:
                check_identity(SERIAL, wanted, info)
            except DeviceError as error:
                str(error).encode()
        return (which, info.personality, info.emulated)
    if which == 1:
        health = decode_health(SERIAL, record)
        check_health(SERIAL, health)
        if health.failed or health.grave_alarms:
            raise Violation("a device that reports an alarm passes for healthy")
        return (which, health.streaming)
    config = decode_config(SERIAL, record)
    if len(config.intensities) != len(config.intensity_probabilities) or len(config.intensities) > 3:
        raise Violation("intensities and their probabilities differ in number")
    if not all(0 <= value <= 1 for value in (config.p_z, *config.intensity_probabilities)):
        raise Violation("a probability outside [0, 1]")
    return (which, len(config.intensities))
