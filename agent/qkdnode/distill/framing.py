"""Frames and Blocks: cutting the sifted bits of a Batch at the same places at both ends."""

from collections import deque

import msgspec

from qkdnode.native.secret import WorkingBuffer
from qkdnode.native.sifting import Sifted, copy_bits

FRAMES_PER_BLOCK = 64
FRAME_BITS_MIN = 1 << 10


class Cut(msgspec.Struct, frozen=True):
    """The bits of one Block, frame-major; beyond `bits` the last Frame is public zeros."""

    bits: int
    frames: int
    frame_bits: int
    key: WorkingBuffer
    intensities: bytes  # 2 bits per sifted bit


class SiftedQueue:
    """Sifted bits of one Batch in the order of its Windows, waiting to be cut."""

    def __init__(self) -> None:
        self._windows: deque[Sifted] = deque()
        self._offset = 0  # bits already cut from the first
        self.bits = 0

    def append(self, sifted: Sifted) -> None:
        """Add a Window."""
        if sifted.bits:
            self._windows.append(sifted)
            self.bits += sifted.bits

    def cut(self, bits: int, frame_bits: int) -> Cut:
        """Take `bits` bits as Frames of frame_bits; the last may be short."""
        if not 0 < bits <= min(self.bits, FRAMES_PER_BLOCK * frame_bits):
            raise ValueError(f"cannot cut {bits} of {self.bits} bits into Frames of {frame_bits}")
        frames = -(-bits // frame_bits)
        key = WorkingBuffer(frames * frame_bits // 8)
        intensities = bytearray((2 * bits + 7) // 8)
        done = 0
        while done < bits:
            first = self._windows[0]
            count = min(bits - done, first.bits - self._offset)
            copy_bits(key, done, first.z_bits, self._offset, count)
            copy_bits(intensities, 2 * done, first.z_intensities, 2 * self._offset, 2 * count)
            done += count
            self._offset += count
            if self._offset == first.bits:
                first.z_bits.discard()
                self._windows.popleft()
                self._offset = 0
        self.bits -= bits
        return Cut(bits, frames, frame_bits, key, bytes(intensities))

    def close(self) -> None:
        """Wipe what was not cut."""
        for sifted in self._windows:
            sifted.z_bits.discard()
        self._windows.clear()
        self.bits = 0


def frame_bits_for(bits_per_second: float, fill_s: float, largest: int) -> int:
    """The largest Frame with which 64 Frames fill in about fill_s at this rate, a power of two."""
    frame_bits = FRAME_BITS_MIN
    while frame_bits < largest and 2 * frame_bits * FRAMES_PER_BLOCK <= bits_per_second * fill_s:
        frame_bits *= 2
    return frame_bits
