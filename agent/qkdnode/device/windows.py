"""Windows out of a device's stream: whole, in order, untouched by any gap, or counted as discarded; without I/O.

Window w covers slots [w W, (w + 1) W) of the transmitter's numbering.
"""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from qkdnode.native.secret import WorkingBuffer, wipe

DEFAULT_LIVE_LIMIT = 64

Patterns = NDArray[np.uint8]
Slots = NDArray[np.int64]


class Discard(StrEnum):
    """Why a Window was not emitted."""

    PARTIAL = "it began before the stream did"
    LOST = "packets were lost or damaged"
    REPORTED = "the device reported an overflow"
    REGRESSED = "slots or times went back"
    CONFLICT = "one sequence number carried two contents"
    CLOCK = "the receiver's clock was not locked to the transmitter's"
    DEVICE = "the device was lost, closed or unhealthy"
    BACKLOG = "earlier Windows were still held"


@dataclass(eq=False, slots=True, weakref_slot=True)
class TransmitterWindow:
    """The choices of one Window: a nibble per slot, even slots low; bit 0 basis, bit 1 value, bits 2-3 intensity."""

    index: int
    choices: WorkingBuffer

    def release(self) -> None:
        """Wipe the choices."""
        self.choices.wipe()


@dataclass(eq=False, slots=True, weakref_slot=True)
class ReceiverWindow:
    """The detections of one Window: slots (uint32, from its start, strictly rising) and detector patterns (uint8).

    Pattern bits: 0 Z0, 1 Z1, 2 X0, 3 X1. Both arrays lie in memory that is not dumped and is wiped when freed.
    """

    index: int
    slots: NDArray[np.uint32]
    patterns: Patterns

    def release(self) -> None:
        """Wipe the patterns."""
        wipe(self.patterns.data)


Window = TransmitterWindow | ReceiverWindow
W = TypeVar("W", TransmitterWindow, ReceiverWindow)


class Judgement(Generic[W]):
    """What became of each Window, each counted once; and how many emitted ones are still alive."""

    def __init__(self, live_limit: int) -> None:
        self.emitted = 0
        self.discarded: Counter[Discard] = Counter()
        self.recalled_too_late = 0  # times that Windows came into doubt after they were judged
        self.behind = False  # the stream began before Windows already judged: it yields none until it is past them
        self.misplaced = 0  # detections that the clock placed before their forerunner: dropped
        self.next_index = 0
        self._live: WeakSet[W] = WeakSet()
        self._live_limit = live_limit

    @property
    def full(self) -> bool:
        return len(self._live) >= self._live_limit

    def begin(self, index: int, since: Discard | None) -> None:
        """The stream begins in Window `index`. Those before it never were, or were missed for the reason given."""
        if since is not None and index > self.next_index:
            self.discard(self.next_index, index - 1, since)
        # The Window in which the last stream stopped was judged then; a new one may well begin inside it.
        self.behind = index + 1 < self.next_index
        self.next_index = max(self.next_index, index)

    def discard(self, first: int, last: int, reason: Discard) -> None:
        """Windows first to last are bad; those not judged yet are counted, with all before them."""
        if first < self.next_index:
            self.recalled_too_late += reason in (Discard.REGRESSED, Discard.CONFLICT)
        if last >= self.next_index:
            self.discarded[reason] += last + 1 - self.next_index
            self.next_index = last + 1

    def emit(self, window: W) -> W:
        self.emitted += 1
        self.next_index = window.index + 1
        self._live.add(window)
        return window


class TransmitterWindows:
    """Assembles the choices of a QKD-Tx. A Window still open is kept in one buffer of slots_per_window / 2 bytes."""

    def __init__(self, slots_per_window: int, *, live_limit: int = DEFAULT_LIVE_LIMIT) -> None:
        if slots_per_window <= 0 or slots_per_window % 2:
            raise ValueError("a Window has a positive, even number of slots")
        self.slots_per_window = slots_per_window
        self.judgement: Judgement[TransmitterWindow] = Judgement(live_limit)
        self._position: int | None = None
        self._stopped: Discard | None = None
        self._open: WorkingBuffer | None = None

    def choices(self, first: int, nibbles: memoryview) -> list[TransmitterWindow]:
        """Take the choices of slots first, first + 1, ... (first is even); the Windows this completes."""
        if self._position is None:
            self.judgement.begin(first // self.slots_per_window, self._stopped)
            if first % self.slots_per_window:
                self._spoil(first, first, Discard.PARTIAL)
        elif first != self._position:
            self.gap(self._position, first, Discard.LOST if first > self._position else Discard.REGRESSED)
            if first < self._position:
                return []
        complete = []
        slot, end = first, first + 2 * len(nibbles)
        while slot < end:
            index, offset = divmod(slot, self.slots_per_window)
            if offset == 0:
                self._begin(index)
            count = min(end - slot, self.slots_per_window - offset)
            if self._open is not None:
                at = (slot - first) // 2
                with memoryview(self._open) as view:
                    view[offset // 2 : (offset + count) // 2] = nibbles[at : at + count // 2]
            slot += count
            if offset + count == self.slots_per_window and self._open is not None:
                complete.append(self.judgement.emit(TransmitterWindow(index, self._open)))
                self._open = None
        self._position = end
        return complete

    def _begin(self, index: int) -> None:
        if index < self.judgement.next_index:
            return
        if self.judgement.full:
            self.judgement.discard(index, index, Discard.BACKLOG)
            return
        self._open = WorkingBuffer(self.slots_per_window // 2)

    def _spoil(self, start: int, end: int, reason: Discard) -> None:
        first = start // self.slots_per_window
        self.judgement.discard(first, max(first, (end - 1) // self.slots_per_window), reason)
        self._open = None

    def gap(self, start: int, end: int, reason: Discard) -> None:
        """Slots [start, end) are missing or in doubt, and with them every Window they touch."""
        if self._position is None:
            return
        behind = start < self._position
        self._spoil(start, max(end, self._position + 1) if behind else end, reason)
        self._position = max(end, self._position)

    def stop(self, reason: Discard) -> None:
        """The stream ends here: the open Window is discarded, as are those up to where it begins again."""
        if self._position is not None and self._position % self.slots_per_window:
            self._spoil(self._position, self._position, reason)
        if self._position is not None:
            self._stopped = reason
        self._position = None
        self._open = None


class ReceiverWindows:
    """Assembles the detections of a QKD-Rx; a Window is complete once progress has passed its end."""

    def __init__(
        self, slots_per_window: int, *, live_limit: int = DEFAULT_LIVE_LIMIT, detections_limit: int | None = None
    ) -> None:
        if slots_per_window <= 0:
            raise ValueError("a Window has a positive number of slots")
        self.slots_per_window = slots_per_window
        self.judgement: Judgement[ReceiverWindow] = Judgement(live_limit)
        limit = slots_per_window // 2 + (1 << 16) if detections_limit is None else detections_limit
        self._slots: Slots = np.frombuffer(memoryview(WorkingBuffer(8 * limit)), np.int64)
        self._patterns: Patterns = np.frombuffer(memoryview(WorkingBuffer(limit)), np.uint8)
        self._held = 0
        self._spoiled: list[tuple[int, int, Discard]] = []
        self._progress: int | None = None
        self._stopped: Discard | None = None

    def start(self, slot: int) -> None:
        """From this slot on every detection will be told."""
        index, offset = divmod(slot, self.slots_per_window)
        self.judgement.begin(index, self._stopped)
        if offset:
            self.judgement.discard(index, index, Discard.PARTIAL)
        self._progress = slot

    def detections(self, slots: Slots, patterns: Patterns) -> None:
        """Take detections in order of time; those of Windows judged already are dropped. The caller wipes its own."""
        if slots.size == 0:
            return
        floor = self._slots[self._held - 1] if self._held else slots[0]
        in_order = slots == np.maximum(np.maximum.accumulate(slots), floor)
        self.judgement.misplaced += slots.size - int(np.count_nonzero(in_order))
        wanted = in_order & (slots >= self.judgement.next_index * self.slots_per_window)
        end = self._held + int(np.count_nonzero(wanted))
        if end > self._slots.size:
            self.gap(int(slots[0]), int(slots[-1]) + 1, Discard.BACKLOG)
            return
        np.compress(wanted, slots, out=self._slots[self._held : end])
        np.compress(wanted, patterns, out=self._patterns[self._held : end])
        self._held = end

    def gap(self, start: int, end: int, reason: Discard) -> None:
        """Slots [start, end) are missing or in doubt, and with them every Window they touch."""
        if self._progress is None:
            return
        if start < self._progress:
            end = max(end, self._progress + 1)
        first = start // self.slots_per_window
        last = max(first, (end - 1) // self.slots_per_window)
        if first < self.judgement.next_index:
            self.judgement.discard(first, self.judgement.next_index - 1, reason)
        self._spoiled.append((first, last, reason))

    def progress(self, slot: int) -> list[ReceiverWindow]:
        """Every detection before `slot` was told; the Windows this completes."""
        complete: list[ReceiverWindow] = []
        if self._progress is None or slot <= self._progress:
            return complete
        self._progress = slot
        end = slot // self.slots_per_window
        while (index := self.judgement.next_index) < end:
            bad = next((spoil for spoil in self._spoiled if spoil[0] <= index <= spoil[1]), None)
            if bad is not None:
                self.judgement.discard(index, min(bad[1], end - 1), bad[2])
            elif self.judgement.full:
                self.judgement.discard(index, end - 1, Discard.BACKLOG)
            else:
                complete.append(self.judgement.emit(self._merged(index)))
            self._forget(self._count_before(self.judgement.next_index))
        self._spoiled = [spoil for spoil in self._spoiled if spoil[1] >= end]
        return complete

    def _count_before(self, index: int) -> int:
        return int(np.searchsorted(self._slots[: self._held], index * self.slots_per_window))

    def _merged(self, index: int) -> ReceiverWindow:
        """Window `index` out of the front of what is held; detections of one slot become one pattern."""
        count = self._count_before(index + 1)
        relative = self._slots[:count] - index * self.slots_per_window
        firsts = np.flatnonzero(np.diff(relative, prepend=-1))
        memory = memoryview(WorkingBuffer(max(1, 5 * firsts.size)))
        slots: NDArray[np.uint32] = np.frombuffer(memory, np.uint32, firsts.size)
        patterns: Patterns = np.frombuffer(memory, np.uint8, firsts.size, 4 * firsts.size)
        if firsts.size == count:
            slots[:] = relative
            patterns[:] = self._patterns[:count]
        else:
            slots[:] = relative[firsts]
            np.bitwise_or.reduceat(self._patterns[:count], firsts, out=patterns)
        return ReceiverWindow(index, slots, patterns)

    def _forget(self, count: int) -> None:
        left = self._held - count
        self._slots[:left] = self._slots[count : self._held]
        self._patterns[:left] = self._patterns[count : self._held]
        wipe(self._patterns[left : self._held].data)
        self._held = left

    def stop(self, reason: Discard) -> None:
        """The stream ends here: Windows not yet emitted are discarded, as are those up to where it begins again."""
        if self._progress is not None:
            index, offset = divmod(self._progress, self.slots_per_window)
            if offset:
                self.judgement.discard(index, index, reason)
            self._stopped = reason
        self._forget(self._held)
        self._spoiled.clear()
        self._progress = None
