"""A slow, obvious writer of device packets (QMP/1), against which the parser is tested."""

import struct
import zlib
from collections.abc import Sequence

MAGIC = 0x4B51
TIME_MASK = (1 << 54) - 1


def packet(
    kind: int, session: int, sequence: int, base: int, records: bytes, *, count: int = 61, version: int = 1
) -> bytes:
    header = struct.pack("<HBBHHIQ", MAGIC, version, kind, session, count, sequence % 2**32, base)
    body = header + records.ljust(488, b"\0")
    return body + struct.pack("<I", zlib.crc32(body))


def tags(session: int, sequence: int, clicks: Sequence[tuple[int, int]]) -> bytes:
    """Clicks: (time in 1/256 ns, pattern)."""
    records = []
    previous = clicks[0][0]
    for time, pattern in clicks:
        rollover = (time >> 54) != (previous >> 54)
        records.append(((time & TIME_MASK) << 10) | rollover << 4 | pattern)
        previous = time
    return packet(1, session, sequence, clicks[0][0], struct.pack(f"<{len(records)}Q", *records), count=len(records))


def choices(session: int, sequence: int, first_slot: int, nibbles: bytes) -> bytes:
    """Nibbles: 488 bytes, the even slot in the low half."""
    assert len(nibbles) == 488
    return packet(2, session, sequence, first_slot, nibbles)


def raw(session: int, sequence: int, offset: int, data: bytes) -> bytes:
    assert len(data) == 488
    return packet(3, session, sequence, offset, data)


def sync(session: int, sequence: int, index: int, time: int) -> bytes:
    return packet(5, session, sequence, index, struct.pack("<Q", time), count=1)


def gap(session: int, sequence: int, start: int, missed: int, missed_tags: int = 0) -> bytes:
    return packet(6, session, sequence, start, struct.pack("<QQ", missed, missed_tags), count=2)


def corrupted(data: bytes, at: int, mask: int = 0x10) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
