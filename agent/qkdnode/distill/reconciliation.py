"""Information reconciliation of one Block: the rounds of Cascade, as jobs around a queue of the peer's messages."""

from collections import deque
from collections.abc import Callable
from enum import Enum, auto

import msgspec

from qkdnode.distill.effects import Effects, Send, Work
from qkdnode.distill.framing import Cut
from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import BOB
from qkdnode.native.cascade import Cascade
from qkdnode.native.secret import WorkingBuffer
from qkdnode.native.sifting import count_by_intensity
from qkdnode.wire.messages import BlockStart, BlockTag, FrameTags, Parities

# A peer is at most one round ahead: it needs our bits of a round before it can send the next.
ROUNDS_AHEAD = 2


class Stage(Enum):
    """Where a Block stands."""

    RECONCILING = auto()
    TAGGING = auto()  # reconciled; Alice's tag is being made, or awaited by Bob
    COMPARING = auto()  # Bob compares; Alice awaits his outcome
    LOCATING = auto()  # the tags differed: which Frames are at fault
    OPENING = auto()  # failed Frames are known; Alice opens them
    VERIFIED = auto()


class Block(msgspec.Struct):
    """One Block of a Batch at one end."""

    number: int
    start: BlockStart
    cut: Cut
    stage: Stage = Stage.RECONCILING
    attempt: int = 0
    failed: int = 0  # one bit per opened Frame
    result: WorkingBuffer | None = None
    tag: BlockTag | FrameTags | None = None  # Bob: Alice's, until compared
    errors: tuple[int, ...] = ()  # per intensity
    alice_bits: int = 0
    bob_bits: int = 0
    tag_bits: int = 0
    outcome_bits: int = 0
    opened_bits: int = 0
    rounds: int = 0
    corrected: int = 0

    def frame_span(self, frame: int) -> tuple[int, int]:
        """First bit of a Frame in the Block, and how many sifted bits it holds (the last may be short)."""
        first = frame * self.cut.frame_bits
        return first, min(self.cut.frame_bits, self.cut.bits - first)

    def failed_frames(self) -> list[int]:
        """The opened Frames."""
        return [frame for frame in range(self.cut.frames) if self.failed >> frame & 1]

    def close(self) -> None:
        """Wipe the bits."""
        self.cut.key.discard()
        if self.result is not None:
            self.result.discard()
            self.result = None


class StartJob(msgspec.Struct, frozen=True):
    """Set up one role's Cascade and make its first message."""

    corrects: bool
    start: BlockStart
    key: WorkingBuffer

    def run(self) -> tuple[Cascade, bytes | None]:
        """The instance and the bits of round 0."""
        cascade = Cascade(
            corrects=self.corrects,
            frames=self.start.frames,
            frame_bits=self.start.frame_bits,
            schedule=tuple(self.start.schedule),
            seed=self.start.seed,
            key=self.key,
        )
        return cascade, cascade.step(None)


class StepJob(msgspec.Struct, frozen=True):
    """One round: the peer's bits in, our bits of the next round out."""

    cascade: Cascade
    received: bytes

    def run(self) -> bytes | None:
        """The bits of the next round, or None at the end."""
        return self.cascade.step(self.received)


class Reconciliation:
    """The rounds of one Block; `finished` is called once both ends have gone through the same rounds."""

    def __init__(self, role: str, block: Block, finished: Callable[[Block], Effects]) -> None:
        self.block = block
        self._role = role
        self._finished = finished
        self._cascade: Cascade | None = None
        self._received: deque[Parities] = deque()
        self._round = 0  # of the peer's message that comes next
        self._busy = True

    def start(self) -> Effects:
        """Set up in a worker."""
        return [Work(StartJob(self._role == BOB, self.block.start, self.block.cut.key))]

    def parities(self, message: Parities) -> Effects:
        """The peer's bits of one round, in order."""
        if message.round != self._round + len(self._received) or len(self._received) >= ROUNDS_AHEAD:
            raise RemoteProtocolError(f"reconciliation round {message.round} of Block {message.block} out of order")
        self._received.append(message)
        return self._pump()

    def started(self, result: tuple[Cascade, bytes | None]) -> Effects:
        """The worker has set up: send round 0."""
        self._cascade, first = result
        self._busy = False
        return self._sent(0, first)

    def stepped(self, bits: bytes | None) -> Effects:
        """The worker has made the next round."""
        self._busy = False
        return self._sent(self._round, bits)

    def holds(self, cascade: Cascade) -> bool:
        """Whether this is the instance behind it."""
        return self._cascade is cascade

    def close(self) -> None:
        """Wipe the state, unless a worker still holds it."""
        if self._cascade is not None and not self._busy:
            self._cascade.close()

    def _sent(self, number: int, bits: bytes | None) -> Effects:
        if bits is None:
            return self._finish()
        start = self.block.start
        return [Send(Parities(start.batch, start.block, number, bits)), *self._pump()]

    def _pump(self) -> Effects:
        if self._busy or self._cascade is None or not self._received:
            return []
        message = self._received.popleft()
        self._round += 1
        self._busy = True
        return [Work(StepJob(self._cascade, message.bits))]

    def _finish(self) -> Effects:
        assert self._cascade is not None
        block, cut, cascade = self.block, self.block.cut, self._cascade
        if self._received:
            raise RemoteProtocolError(f"parities of Block {block.number} beyond its last round")
        block.result = WorkingBuffer(len(cut.key))
        cascade.result_into(block.result)
        mask = bytearray(len(cut.key))
        cascade.error_mask_into(mask)
        block.errors = count_by_intensity(mask, cut.intensities, cut.bits, len(block.errors))
        own, peer = cascade.own_bits, cascade.peer_bits
        block.alice_bits, block.bob_bits = (peer, own) if self._role == BOB else (own, peer)
        block.rounds, block.corrected = cascade.rounds, cascade.corrected
        block.stage = Stage.TAGGING
        cascade.close()
        self._cascade = None
        return self._finished(block)
