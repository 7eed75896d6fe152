"""From the pieces of a scanned stream to Windows, for either kind of QKD module; without I/O."""

from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from qkdnode.device.clock import ReceiverClock, Verdict
from qkdnode.device.windows import (
    DEFAULT_LIVE_LIMIT,
    Discard,
    Judgement,
    Patterns,
    ReceiverWindow,
    ReceiverWindows,
    TransmitterWindow,
    TransmitterWindows,
    W,
)
from qkdnode.native import packets
from qkdnode.native.packets import PacketScanner
from qkdnode.native.secret import WorkingBuffer, wipe

PIECE = np.dtype(
    [("type", "<u4"), ("reason", "<u4"), ("count", "<u4"), ("offset", "<u4"), ("start", "<u8"), ("end", "<u8")]
)
DISCARD_OF_GAP = {
    packets.GAP_LOST: Discard.LOST,
    packets.GAP_REPORTED: Discard.REPORTED,
    packets.GAP_REGRESSED: Discard.REGRESSED,
    packets.GAP_CONFLICT: Discard.CONFLICT,
}
Piece = tuple[int, int, int, int, int, int]


def types(*kinds: int) -> int:
    """The scanner's mask of packet types."""
    return sum(1 << kind for kind in kinds)


class ScanCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What a scanner has met since it was made."""

    packets: int  # taken in sequence, whatever they carried
    crc_errors: int  # damaged stretches, each up to the next good packet
    skipped_bytes: int  # of those stretches
    stale_session: int
    sequence_gaps: int
    duplicates: int  # same sequence and content as one already taken
    late: int  # behind the sequence, never taken
    conflicts: int  # behind the sequence, other content than what was taken
    regressions: int
    malformed: int
    unknown: int
    reported_gaps: int
    missed_tags: int  # as far as the device counted them


class Scan:
    """A scanner with the areas for feeds of up to `feed_bytes`; what lies in them is wiped after each feed."""

    def __init__(self, kinds: int, feed_bytes: int) -> None:
        most = feed_bytes // packets.PACKET_BYTES + 1
        has_tags = bool(kinds >> packets.TAGS & 1)
        self.scanner = PacketScanner(kinds)
        self.feed_bytes = feed_bytes
        self._pieces = np.zeros(most * packets.PIECES_PER_PACKET, PIECE)
        self._payload = WorkingBuffer(1 if has_tags else most * packets.PAYLOAD_BYTES)
        self.payload = memoryview(self._payload)
        tags = most * packets.TAGS_PER_PACKET if has_tags else 1
        self.times: NDArray[np.uint64] = np.zeros(tags, np.uint64)
        self.patterns: Patterns = np.frombuffer(memoryview(WorkingBuffer(tags)), np.uint8)

    @property
    def counters(self) -> ScanCounters:
        return ScanCounters(**self.scanner.counters)

    def feed(self, data: memoryview) -> list[Piece]:
        """The pieces of `data`: type, reason, count, offset, start, end as PacketScanner tells."""
        count = self.scanner.feed(
            data, self._pieces.data, payload=self.payload, times=self.times.data, patterns=self.patterns.data
        )
        pieces: list[Piece] = self._pieces[:count].tolist()
        return pieces

    def wipe(self) -> None:
        self._payload.wipe()
        wipe(self.patterns.data)


class Assembly(Protocol[W]):
    """What turns the bytes of one QKD module into Windows."""

    @property
    def counters(self) -> ScanCounters: ...
    @property
    def judgement(self) -> Judgement[W]: ...
    @property
    def clock(self) -> ReceiverClock | None: ...
    def expect(self, session: int) -> None: ...
    def feed(self, data: memoryview) -> list[W]: ...
    def stop(self, reason: Discard) -> None: ...


class TransmitterAssembly:
    """Windows of choices out of a QKD-Tx's stream."""

    def __init__(self, *, slots_per_window: int, feed_bytes: int, live_limit: int = DEFAULT_LIVE_LIMIT) -> None:
        self._scan = Scan(types(packets.CHOICES, packets.SYNC, packets.GAP), feed_bytes)
        self._windows = TransmitterWindows(slots_per_window, live_limit=live_limit)

    @property
    def counters(self) -> ScanCounters:
        return self._scan.counters

    @property
    def judgement(self) -> Judgement[TransmitterWindow]:
        return self._windows.judgement

    @property
    def clock(self) -> None:
        """A transmitter numbers its slots itself."""

    def expect(self, session: int) -> None:
        self._scan.scanner.expect(session)

    def feed(self, data: memoryview) -> list[TransmitterWindow]:
        complete = []
        for kind, reason, count, offset, start, end in self._scan.feed(data):
            if kind == packets.CHOICES:
                complete += self._windows.choices(start, self._scan.payload[offset : offset + count // 2])
            elif kind == packets.GAP:
                self._windows.gap(start, end, DISCARD_OF_GAP[reason])
        self._scan.wipe()
        return complete

    def stop(self, reason: Discard) -> None:
        """The stream ends here; the next one begins with `expect`."""
        self._windows.stop(reason)


class ReceiverAssembly:
    """Windows of detections out of a QKD-Rx's stream.

    Tags wait for the next sync pulse that agrees with the clock, and only then get their slots, so that none is placed
    by a clock that has jumped. Up to `waiting_limit` tags can wait.
    """

    def __init__(
        self,
        *,
        slots_per_window: int,
        feed_bytes: int,
        clock: ReceiverClock,
        live_limit: int = DEFAULT_LIVE_LIMIT,
        waiting_limit: int = 1 << 20,
    ) -> None:
        self._clock = clock
        self._scan = Scan(types(packets.TAGS, packets.SYNC, packets.GAP), feed_bytes)
        self._windows = ReceiverWindows(slots_per_window, live_limit=live_limit)
        self._times: NDArray[np.uint64] = np.zeros(waiting_limit, np.uint64)
        self._patterns: Patterns = np.frombuffer(memoryview(WorkingBuffer(waiting_limit)), np.uint8)
        self._waiting = 0
        self._gaps: list[tuple[int, int, Discard]] = []

    @property
    def counters(self) -> ScanCounters:
        return self._scan.counters

    @property
    def clock(self) -> ReceiverClock:
        return self._clock

    @property
    def judgement(self) -> Judgement[ReceiverWindow]:
        return self._windows.judgement

    def expect(self, session: int) -> None:
        self._scan.scanner.expect(session)

    def feed(self, data: memoryview) -> list[ReceiverWindow]:
        complete = []
        for kind, reason, count, _, start, end in self._scan.feed(data):
            if kind == packets.TAGS:
                self._wait(slice(start, start + count))
            elif kind == packets.SYNC:
                complete += self._sync(start, end)
            elif kind == packets.GAP and self._clock.locked:
                self._gaps.append((start, end, DISCARD_OF_GAP[reason]))
        self._scan.wipe()
        return complete

    def _wait(self, part: slice) -> None:
        if not self._clock.locked:
            return
        times = self._scan.times[part]
        end = self._waiting + times.size
        if end > self._times.size:
            first = self._times[0] if self._waiting else times[0]
            self._gaps.append((int(first), int(times[-1]), Discard.BACKLOG))
            self._forget()
            return
        self._times[self._waiting : end] = times
        self._patterns[self._waiting : end] = self._scan.patterns[part]
        self._waiting = end

    def _forget(self) -> None:
        wipe(self._patterns[: self._waiting].data)
        self._waiting = 0

    def _sync(self, number: int, time: int) -> list[ReceiverWindow]:
        verdict = self._clock.sync(number, time)
        if verdict is Verdict.TRACKED:
            return self._place(number)
        if verdict is Verdict.REJECTED:
            return []
        self._forget()
        self._gaps.clear()
        if verdict is Verdict.LOST:
            self._windows.stop(Discard.CLOCK)
        if verdict is Verdict.LOCKED:
            self._windows.start(self._clock.slot_of_pulse(number))
        return []

    def _place(self, number: int) -> list[ReceiverWindow]:
        for start, end, reason in self._gaps:
            # A slot to either side: the ends are times of tags or pulses, and lie on slots' borders.
            self._windows.gap(self._clock.slot(start) - 1, self._clock.slot(end) + 2, reason)
        self._gaps.clear()
        if self._waiting:
            slots = self._clock.slots(self._times[: self._waiting])
            self._windows.detections(slots, self._patterns[: self._waiting])
            self._forget()
        return self._windows.progress(self._clock.slot_of_pulse(number))

    def stop(self, reason: Discard) -> None:
        """The stream ends here; the next one begins with `expect`, and the clock with a search."""
        self._forget()
        self._gaps.clear()
        self._clock.reset()
        self._windows.stop(reason)
