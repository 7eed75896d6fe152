"""Two distilling ends over two sessions, run synchronously: work at once, time by hand, a channel that a test plays."""

from collections import deque
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from session_pair import PARAMETERS, SessionEnd, exchange

from qkdnode.distill import effects as fx
from qkdnode.distill.alice import Alice
from qkdnode.distill.bob import Bob
from qkdnode.distill.settings import Settings
from qkdnode.errors import QkdnodeError, RemoteProtocolError
from qkdnode.ids import ALICE, BOB, BatchId
from qkdnode.native.secret import SecretBuffer, WorkingBuffer
from qkdnode.wire import codec
from qkdnode.wire.messages import BatchAnswer, BatchClaim, BatchCommit, Message, Parameters

SLOTS = 2**20
ETA, DARK, MISALIGNMENT = 0.28, 1e-6, 0.012


@lru_cache(maxsize=4)
def emitted(
    count: int, error: float = MISALIGNMENT, parameters: Parameters = PARAMETERS
) -> tuple[tuple[bytes, np.ndarray, np.ndarray], ...]:
    """Windows of one link: packed choices, and the detections that they cause. The same at every call."""
    windows = []
    for index in range(count):
        generator = np.random.default_rng((7, index))
        basis = (generator.random(SLOTS) >= parameters.p_z).astype(np.uint8)
        bit = generator.integers(0, 2, SLOTS, np.uint8)
        limits = np.cumsum(parameters.intensity_probabilities)[:-1]
        decoy = np.digitize(generator.random(SLOTS), limits).astype(np.uint8)
        mu = np.asarray(parameters.intensities)[decoy]
        clicks = np.flatnonzero(generator.random(SLOTS) < 1 - np.exp(-ETA * mu))
        measured = (generator.random(clicks.size) >= parameters.p_z).astype(np.uint8)
        wrong = (generator.random(clicks.size) < error).astype(np.uint8)
        other = generator.integers(0, 2, clicks.size, np.uint8)
        seen = np.where(measured == basis[clicks], bit[clicks] ^ wrong, other)
        nibbles = basis | (bit << 1) | (decoy << 2)
        choices = (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()
        windows.append((choices, clicks.astype(np.uint32), (1 << (seen + 2 * measured)).astype(np.uint8)))
    return tuple(windows)


class DistillEnd(SessionEnd):
    """A session end with its machine."""

    def __init__(self, role: str, parameters: Parameters = PARAMETERS, **choices: object) -> None:
        super().__init__(role, parameters, pads=512)
        self.settings = Settings(agreed=parameters, block_fill_s=0.02, **choices)  # type: ignore[arg-type]
        self.machine: Alice | Bob
        self.seen: list[fx.Effect] = []
        self.keys: dict[BatchId, bytes] = {}
        self.commits: dict[BatchId, bytes] = {}
        self.answers: dict[BatchId, bytes] = {}
        self.ready: set[BatchId] = set()
        self.abandoned: set[BatchId] = set()
        self.facts: fx.BatchFacts | None = None  # of the Batch journalled last
        self._random = np.random.default_rng(1 if role == ALICE else 2)
        self._todo: deque[fx.Event] = deque()
        self.on_draw: Callable[[fx.Purpose], None] = lambda purpose: None

    def start(self) -> None:
        self.machine = (Alice if self.role == ALICE else Bob)(self.settings, self.session.session)

    def feed(self, event: fx.Event) -> None:
        self._todo.append(event)
        while self._todo:
            try:
                self.run(self.machine.handle(self._todo.popleft()))
            except RemoteProtocolError as error:
                self.refused.append(error)

    def say(self, message: Message) -> None:
        super().say(message)
        if isinstance(message, BatchClaim) and isinstance(self.machine, Bob):
            self.machine.claim_sent(message.batch.number, self.wire[-1][-codec.TAG_BYTES :])

    def run(self, effects: fx.Effects) -> None:
        for effect in effects:
            match effect:
                case fx.Send(message=message):
                    self.say(message)
                case fx.Work(job=job):
                    try:
                        result = job.run()
                    except (QkdnodeError, ValueError) as error:
                        result = error
                    self._todo.append(fx.Done(job, result))
                case fx.Draw(purpose=purpose, size=size):
                    self.on_draw(purpose)
                    self._todo.append(fx.Drawn(purpose, SecretBuffer.copy_of(self._random.bytes(size))))
                case fx.JournalPending(facts=facts, key=key, commit=commit):
                    self.facts = facts
                    self.journal(commit.batch, key, self.sealed(commit), self.commits)
                case fx.JournalReady(facts=facts, key=key, answer=answer):
                    self.facts = facts
                    self.ready.add(answer.batch)
                    raw = self.sealed(answer)
                    self.journal(answer.batch, key, raw, self.answers)
                case fx.Forget(batch=batch):
                    self.session.forget_batch(batch)
                case _:
                    self.seen.append(effect)

    def journal(self, batch: BatchId, key: SecretBuffer, raw: bytes, into: dict[BatchId, bytes]) -> None:
        with key, memoryview(key) as view:
            self.keys[batch] = view.tobytes()
        into[batch] = raw
        self._todo.append(fx.Committed(batch))
        self.wire.append(raw)

    def sealed(self, message: Message) -> bytes:
        self.pool.grant(self.reserve(1))
        return self.session.seal(message)

    def take(self, raw: bytes) -> None:
        accepted = len(self.accepted)
        try:
            frame = codec.decode(raw)
            if isinstance(frame.message, BatchCommit):
                self.take_commit(frame, frame.message)
                return
            if isinstance(frame.message, BatchAnswer):
                self.take_answer(frame, frame.message)
                return
        except QkdnodeError as error:
            self.refused.append(error)
            return
        super().take(raw)
        if len(self.accepted) == accepted:
            return
        if isinstance(frame.message, BatchClaim):
            assert isinstance(self.machine, Alice)
            assert frame.trailer is not None
            self.run(self.machine.claimed(frame.message, frame.trailer.tag))
            self.feed(fx.Tick(self.machine.now_ns))
        else:
            self.feed(fx.MessageReceived(frame.message))

    def take_commit(self, frame: codec.Frame, commit: BatchCommit) -> None:
        assert isinstance(self.machine, Bob)
        if commit.batch in self.answers:
            self.wire.append(self.answers[commit.batch])
            return
        self.session.addressed(frame)
        effects = None
        try:
            self.session.opened(frame)
            effects = self.machine.committed_by_peer(commit)
        except QkdnodeError as error:
            self.refused.append(error)
        self.commits[commit.batch] = frame.raw
        if effects is not None:
            self.run(effects)
            self.feed(fx.Tick(self.machine.now_ns))
        else:
            self.abandoned.add(commit.batch)
            self.answers[commit.batch] = self.sealed(BatchAnswer(commit.batch, False))
            self.wire.append(self.answers[commit.batch])

    def take_answer(self, frame: codec.Frame, answer: BatchAnswer) -> None:
        if answer.batch not in self.commits or not self.session.verifies(frame):
            self.refused.append(RemoteProtocolError("an answer that does not verify"))
            return
        (self.ready if answer.ready else self.abandoned).add(answer.batch)

    def effects_of(self, kind: type[fx.Effect]) -> list[fx.Effect]:
        return [effect for effect in self.seen if isinstance(effect, kind)]


def opened(parameters: Parameters = PARAMETERS, **choices: object) -> tuple[DistillEnd, DistillEnd]:
    """Two ends with a session and fresh machines."""
    alice, bob = DistillEnd(ALICE, parameters, **choices), DistillEnd(BOB, parameters, **choices)
    alice.begin()
    exchange(alice, bob)
    alice.start()
    bob.start()
    return alice, bob


def shine(alice: DistillEnd, bob: DistillEnd, index: int, error: float = MISALIGNMENT, count: int = 20) -> None:
    """Both modules complete Window `index`."""
    choices, slots, patterns = emitted(count, error, alice.settings.agreed)[index]
    alice.feed(fx.TransmitterWindowReady(index, WorkingBuffer.copy_of(choices)))
    bob.feed(fx.ReceiverWindowReady(index, slots.copy(), patterns.copy()))


def settle(alice: DistillEnd, bob: DistillEnd) -> None:
    """Deliver until both wires are quiet."""
    while alice.wire or bob.wire:
        exchange(alice, bob, 1)
