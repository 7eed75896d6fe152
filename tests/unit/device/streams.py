"""Streams of QKD modules with a known truth behind them."""

import random
from dataclasses import dataclass

import device_packets as qmp
import numpy as np

from qkdnode.device.windows import ReceiverWindow, TransmitterWindow

UNITS = 12800
OFFSET = 5_000_000


@dataclass(frozen=True)
class TransmitterTruth:
    """Choices of slots [first, first + 976 * packets), and the packets that tell them."""

    session: int
    first: int
    nibbles: bytes
    packets: list[bytes]

    def agrees(self, window: TransmitterWindow, slots_per_window: int) -> bool:
        at = (window.index * slots_per_window - self.first) // 2
        size = slots_per_window // 2
        with memoryview(window.choices) as view:
            return at >= 0 and at + size <= len(self.nibbles) and view == self.nibbles[at : at + size]


def transmitter(
    packets: int, *, session: int = 1, first: int = 0, sequence: int = 0, sync_every: int = 5, seed: int = 1
) -> TransmitterTruth:
    nibbles = random.Random(seed).randbytes(488 * packets)
    stream = []
    for i in range(packets):
        base = first + 976 * i
        if i % sync_every == 0:
            stream.append(qmp.sync(session, sequence + len(stream), base // 2000, base // 2000 * 2000 * UNITS))
        stream.append(qmp.choices(session, sequence + len(stream), base, nibbles[488 * i : 488 * i + 488]))
    return TransmitterTruth(session, first, nibbles, stream)


@dataclass(frozen=True)
class ReceiverTruth:
    """Detections (slot, pattern) from the first pulse on, and the packets that tell them."""

    session: int
    slots: np.ndarray
    patterns: np.ndarray
    packets: list[bytes]

    def agrees(self, window: ReceiverWindow, slots_per_window: int) -> bool:
        start = window.index * slots_per_window
        inside = (self.slots >= start) & (self.slots < start + slots_per_window)
        return np.array_equal(self.slots[inside] - start, window.slots) and np.array_equal(
            self.patterns[inside], window.patterns
        )


def slot_time(slot: int, ppm: float = 0.0, offset: int = OFFSET) -> int:
    return offset + round((slot + 0.5) * UNITS * (1 + ppm * 1e-6))


def pulse_time(slot: int, ppm: float = 0.0, offset: int = OFFSET) -> int:
    return offset + round(slot * UNITS * (1 + ppm * 1e-6))


def receiver(
    pulses: int,
    *,
    session: int = 1,
    sequence: int = 0,
    first_pulse: int = 0,
    sync_slots: int = 2000,
    density: float = 0.05,
    ppm: float = 0.0,
    offset: int = OFFSET,
    seed: int = 1,
) -> ReceiverTruth:
    rng = np.random.default_rng(seed)
    all_slots, all_patterns, stream = [], [], []
    for pulse in range(first_pulse, first_pulse + pulses):
        start = pulse * sync_slots
        stream.append(qmp.sync(session, sequence + len(stream), pulse, pulse_time(start, ppm, offset)))
        slots = start + np.flatnonzero(rng.random(sync_slots) < density)
        patterns = rng.integers(1, 16, slots.size).astype(np.uint8)
        all_slots.append(slots)
        all_patterns.append(patterns)
        for at in range(0, slots.size, 61):
            clicks = [
                (slot_time(int(slot), ppm, offset), int(pattern))
                for slot, pattern in zip(slots[at : at + 61], patterns[at : at + 61], strict=True)
            ]
            stream.append(qmp.tags(session, sequence + len(stream), clicks))
    return ReceiverTruth(session, np.concatenate(all_slots), np.concatenate(all_patterns), stream)
