"""Error verification of one Block: one 128-bit tag, and short tags per Frame to find a fault.

Tags are POLYVAL under a key that Alice draws after reconciliation; they are public, so their bits are booked, and one
bit for each announced outcome (arXiv:2507.21416).
"""

import msgspec
import numpy as np

from qkdnode.distill.reconciliation import Block
from qkdnode.native.polyval import polyval
from qkdnode.native.secret import WorkingBuffer
from qkdnode.native.sifting import copy_bits, count_by_intensity

TAG_BITS = 128
FRAME_TAG_BYTES = 4
OUTCOME_BITS = 1


def blank(bits: WorkingBuffer, frame_bits: int, frames: list[int]) -> WorkingBuffer:
    """A copy of a Block's bits in which these Frames are zero."""
    copy = WorkingBuffer.copy_of(bits)
    size = frame_bits // 8
    with memoryview(copy) as view:
        for frame in frames:
            view[frame * size : (frame + 1) * size] = bytes(size)
    return copy


class TagJob(msgspec.Struct, frozen=True):
    """The 128-bit tag of a Block's reconciled bits without its opened Frames."""

    block: Block
    key: bytes

    def run(self) -> bytes:
        """16 bytes."""
        assert self.block.result is not None
        if not self.block.failed:
            return polyval(self.key, self.block.result)
        with blank(self.block.result, self.block.cut.frame_bits, self.block.failed_frames()) as kept:
            return polyval(self.key, kept)


class FrameTagJob(msgspec.Struct, frozen=True):
    """32-bit tags of each Frame, in order."""

    block: Block
    key: bytes

    def run(self) -> bytes:
        """4 bytes per Frame."""
        assert self.block.result is not None
        size = self.block.cut.frame_bits // 8
        with memoryview(self.block.result) as view:
            return b"".join(
                polyval(self.key, view[frame * size : (frame + 1) * size])[:FRAME_TAG_BYTES]
                for frame in range(self.block.cut.frames)
            )


def differing_frames(ours: bytes, theirs: bytes) -> int:
    """One bit per Frame whose tags differ."""
    failed = 0
    for frame in range(len(ours) // FRAME_TAG_BYTES):
        span = slice(frame * FRAME_TAG_BYTES, (frame + 1) * FRAME_TAG_BYTES)
        failed |= (ours[span] != theirs[span]) << frame
    return failed


def opened_bits(block: Block) -> bytes:
    """Alice's bits of the failed Frames, one after the other: from here on public."""
    assert block.result is not None
    frames = block.failed_frames()
    opened = bytearray((sum(block.frame_span(frame)[1] for frame in frames) + 7) // 8)
    at = 0
    for frame in frames:
        first, bits = block.frame_span(frame)
        copy_bits(opened, at, block.result, first, bits)
        at += bits
    return bytes(opened)


def count_opened(block: Block, opened: bytes) -> tuple[int, ...] | None:
    """Bob: errors per intensity of the whole Block once failed Frames are opened, counted exactly.

    In verified Frames the corrected bits are Alice's, so his sifted bits differ from them just where they were wrong;
    opened Frames are compared with what Alice sent. None if `opened` has the wrong length.
    """
    assert block.result is not None
    frames = block.failed_frames()
    if len(opened) != (sum(block.frame_span(frame)[1] for frame in frames) + 7) // 8:
        return None
    at = 0
    with WorkingBuffer.copy_of(block.result) as truth:
        for frame in frames:
            first, bits = block.frame_span(frame)
            copy_bits(truth, first, opened, at, bits)
            at += bits
        errors = np.frombuffer(memoryview(truth), np.uint8) ^ np.frombuffer(memoryview(block.cut.key), np.uint8)
    return count_by_intensity(errors.data, block.cut.intensities, block.cut.bits, len(block.errors))
