"""Alice: the transmitter's end of distillation."""

from collections import deque
from typing import Any, ClassVar

import msgspec

from qkdnode.distill.amplification import AmplifyJob, bits_in, seed_bytes, whole_grains
from qkdnode.distill.batch import QBER_HIGH, Batch, Machine, Phase, draw
from qkdnode.distill.effects import (
    Alarmed,
    Committed,
    Discarded,
    Done,
    Drawn,
    Effects,
    JournalPending,
    MessageReceived,
    PoolLevel,
    Purpose,
    Send,
    SiftedWindow,
    Tick,
    TransmitterWindowReady,
    Work,
)
from qkdnode.distill.reconciliation import Block, Stage, StartJob, StepJob
from qkdnode.distill.settings import Settings
from qkdnode.distill.verification import OUTCOME_BITS, TAG_BITS, FrameTagJob, TagJob, opened_bits
from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import ALICE
from qkdnode.native.secret import SecretBuffer
from qkdnode.native.sifting import Answer, answer_list
from qkdnode.wire.messages import (
    Amplify,
    BatchAbandoned,
    BatchClaim,
    BatchCommit,
    BatchEnd,
    BatchReport,
    BlockOutcome,
    BlockStart,
    BlockTag,
    FrameOutcome,
    FrameTags,
    OpenedFrames,
    Parities,
    SiftAnswer,
    SiftList,
)


class AnswerJob(msgspec.Struct, frozen=True):
    """Look up Bob's events in the transmitter's choices of one Window."""

    message: SiftList
    window: TransmitterWindowReady
    window_slots: int
    intensities: int

    def run(self) -> Answer:
        """The answer and Alice's sifted bits; the Window's choices are wiped: it is answered once."""
        message = self.message
        try:
            return answer_list(
                message.slots, message.bases, message.events, self.window.choices, self.window_slots, self.intensities
            )
        finally:
            self.window.choices.discard()


class Alice(Machine):
    """Answers Bob's lists, follows his Blocks, verifies, announces the seed, and commits first."""

    role = ALICE

    def __init__(self, settings: Settings, session: int) -> None:
        super().__init__(settings, session)
        self._windows: dict[int, TransmitterWindowReady] = {}
        self._newest = -1  # highest Window that the module has completed or passed
        self._answered = -1  # highest Window that was listed
        self._lists: deque[tuple[SiftList, int]] = deque()
        self._answering = False  # answers leave in the order of the lists: one job at a time
        self._claim_tags: dict[int, bytes] = {}

    def close(self) -> None:
        for window in self._windows.values():
            window.choices.discard()
        self._windows.clear()
        super().close()

    # --- sifting ---------------------------------------------------------------------------------------------------

    def on_window(self, event: TransmitterWindowReady) -> Effects:
        effects: Effects = []
        if event.index <= self._answered:
            event.choices.discard()
            return [Discarded("window-late", windows=1)]
        self._windows[event.index] = event
        self._newest = max(self._newest, event.index)
        while len(self._windows) > self.settings.windows_kept:
            self._windows.pop(min(self._windows)).choices.discard()
            effects.append(Discarded("window-not-listed", windows=1))
        return effects + self._answer_lists()

    def on_list(self, message: SiftList) -> Effects:
        if message.window <= self._answered:
            raise RemoteProtocolError(f"Window {message.window} was listed before")
        if len(self._lists) >= 2 * self.settings.lists_in_flight:
            raise RemoteProtocolError("more lists in flight than the protocol allows")
        self._answered = message.window
        for index in [index for index in self._windows if index < message.window]:
            self._windows.pop(index).choices.discard()
        if message.batch not in self.batches and message.batch >= self.gone:
            self.batches[message.batch] = Batch(message.batch, self.settings.intensities, self.now_ns)
            self.gone = message.batch + 1
        self._lists.append((message, self.now_ns))
        return self._answer_lists()

    def _answer_lists(self) -> Effects:
        effects: Effects = []
        wait_ns = round(self.settings.window_wait_s * 1e9)
        while self._lists and not self._answering:
            message, since_ns = self._lists[0]
            window = self._windows.pop(message.window, None)
            if window is None and self._newest < message.window and self.now_ns - since_ns < wait_ns:
                break
            self._lists.popleft()
            if window is None or message.batch not in self.batches:
                if window is not None:
                    window.choices.discard()
                effects.append(Send(SiftAnswer(message.batch, message.window, False, b"", b"", b"")))
                effects.append(Discarded("window-not-held", windows=1))
            else:
                job = AnswerJob(message, window, self.settings.agreed.window_slots, self.settings.intensities)
                effects.append(Work(job))
                self._answering = True
        return effects

    def on_answered(self, job: AnswerJob, answer: Answer) -> Effects:
        message, sifted = job.message, answer.sifted
        self._answering = False
        reply: Effects
        batch = self.batches.get(message.batch)
        if batch is None:
            sifted.z_bits.discard()
            reply = [Send(SiftAnswer(message.batch, message.window, False, b"", b"", b""))]
        else:
            batch.tally.add_window(sifted)
            batch.queue.append(sifted)
            reply = [
                Send(
                    SiftAnswer(message.batch, message.window, True, answer.matched, answer.intensities, answer.x_bits)
                ),
                SiftedWindow(message.window, sifted.bits, sifted.ones, 0, sum(sifted.n_x)),
            ]
        return reply + self._answer_lists()

    def job_failed(self, job: Any, error: Exception) -> Effects:
        effects = super().job_failed(job, error)
        if isinstance(job, AnswerJob):
            self._answering = False
            refusal = Send(SiftAnswer(job.message.batch, job.message.window, False, b"", b"", b""))
            return [*effects, refusal, *self._answer_lists()]
        return effects

    def on_end(self, message: BatchEnd) -> Effects:
        batch = self.batches.get(message.batch)
        if batch is None:
            return []
        tally = batch.tally
        if batch.phase is not Phase.SIFTING:
            raise RemoteProtocolError(f"Batch {message.batch} ended twice")
        if (message.windows, message.n_z, message.n_x) != (tally.windows, tally.n_z, tally.n_x):
            raise RemoteProtocolError(f"the ends of Batch {message.batch} count differently")
        if len(message.m_x) != len(message.n_x) or any(m > n for m, n in zip(message.m_x, message.n_x, strict=True)):
            raise RemoteProtocolError("more errors than bits in X")
        tally.m_x = message.m_x
        batch.phase = Phase.ENDED
        high = tally.above(self.settings.agreed.qber_limit)
        if high:
            return [Alarmed(QBER_HIGH, high), *self.abandon(batch, QBER_HIGH)]
        return []

    # --- Blocks ----------------------------------------------------------------------------------------------------

    def on_block_start(self, message: BlockStart) -> Effects:
        batch = self.batches.get(message.batch)
        if batch is None:
            return []
        whole = message.frames * message.frame_bits
        last = batch.phase is Phase.ENDED and message.bits == batch.queue.bits
        if message.block != len(batch.blocks) or message.frame_bits & (message.frame_bits - 1):
            raise RemoteProtocolError(f"Block {message.block} of Batch {message.batch} out of turn")
        if not (message.bits == whole or (last and whole - message.frame_bits < message.bits < whole)):
            raise RemoteProtocolError(f"Block {message.block} of {message.bits} bits does not fill its Frames")
        if message.bits > batch.queue.bits or batch.phase not in (Phase.SIFTING, Phase.ENDED):
            raise RemoteProtocolError(f"Block {message.block} of {message.bits} bits, more than are sifted")
        return self.open_block(batch, message)

    def reconciled(self, batch: Batch, block: Block) -> Effects:
        del batch.reconciliations[block.number]
        return [draw("tag", batch.number, 16, block.number)]

    def on_tag_key(self, purpose: Purpose, random: SecretBuffer) -> Effects:
        batch = self.batches.get(purpose.batch)
        key = _public(random)
        if batch is None:
            return []
        block = batch.blocks[purpose.block]
        job = FrameTagJob(block, key) if block.stage is Stage.LOCATING else TagJob(block, key)
        return [Work(job)]

    def on_tagged(self, job: TagJob, tag: bytes) -> Effects:
        block = job.block
        if block.start.batch not in self.batches:
            return []
        block.stage = Stage.COMPARING
        block.tag_bits += TAG_BITS
        return [Send(BlockTag(block.start.batch, block.number, block.attempt, job.key, tag))]

    def on_outcome(self, message: BlockOutcome) -> Effects:
        found = self.block_of(message, Stage.COMPARING)
        if found is None:
            return []
        batch, block = found
        if message.attempt != block.attempt:
            raise RemoteProtocolError(f"outcome of attempt {message.attempt} for Block {message.block}")
        block.outcome_bits += OUTCOME_BITS
        if message.matched:
            block.stage = Stage.VERIFIED
            return self.verified(batch, block)
        if block.attempt:
            return self.abandon(batch, "NOT_VERIFIED")
        block.stage = Stage.LOCATING
        return [draw("tag", batch.number, 16, block.number)]

    def on_frame_tags(self, job: FrameTagJob, tags: bytes) -> Effects:
        block = job.block
        if block.start.batch not in self.batches:
            return []
        block.tag_bits += 8 * len(tags)
        return [Send(FrameTags(block.start.batch, block.number, job.key, tags))]

    def on_frame_outcome(self, message: FrameOutcome) -> Effects:
        found = self.block_of(message, Stage.LOCATING)
        if found is None:
            return []
        batch, block = found
        failed = int.from_bytes(message.failed, "little")
        block.outcome_bits += block.cut.frames
        if not failed or failed >> block.cut.frames:
            raise RemoteProtocolError(f"Block {message.block} failed, but no Frame of it did")
        block.failed = failed
        block.attempt = 1
        block.stage = Stage.TAGGING
        block.opened_bits = sum(block.frame_span(frame)[1] for frame in block.failed_frames())
        return [
            Send(OpenedFrames(batch.number, block.number, opened_bits(block))),
            draw("tag", batch.number, 16, block.number),
        ]

    # --- from totals to the commit ---------------------------------------------------------------------------------

    def on_report(self, message: BatchReport) -> Effects:
        batch = self.batches.get(message.batch)
        if batch is None:
            return []
        if batch.phase is not Phase.ENDED or not batch.verified:
            raise RemoteProtocolError(f"report of Batch {message.batch} out of turn")
        if len(message.m_z) != self.settings.intensities:
            raise RemoteProtocolError(f"errors of Batch {message.batch} for {len(message.m_z)} intensities")
        batch.ledger.close()
        opened = batch.ledger.totals().opened_bits
        counted = zip(message.m_z, batch.tally.m_z, batch.tally.n_z, strict=True)
        # Errors in opened Frames are known to Bob alone: there his count may exceed ours.
        if any(theirs < ours or theirs > n or (theirs != ours and not opened) for theirs, ours, n in counted):
            raise RemoteProtocolError(f"the ends count the errors of Batch {message.batch} differently")
        if message.ledger != self.disclosure_of(batch):
            raise RemoteProtocolError(f"the ledgers of Batch {message.batch} differ")
        batch.tally.m_z = message.m_z
        batch.phase = Phase.REPORTED
        high = batch.tally.above(self.settings.agreed.qber_limit)
        if high:
            return [Alarmed(QBER_HIGH, high), *self.abandon(batch, QBER_HIGH)]
        batch.bits_out = min(whole_grains(self.length_of(batch)), whole_grains(bits_in(batch.blocks)))
        if not batch.bits_out:
            return self.abandon(batch, "NO_SECRET")
        batch.refill_bits = min(whole_grains(max(self.refill_bits, message.refill_bits)), batch.bits_out)
        size = seed_bytes(self.settings.agreed, bits_in(batch.blocks), batch.bits_out)
        return [draw("seed", batch.number, size)]

    def on_seed(self, purpose: Purpose, random: SecretBuffer) -> Effects:
        batch = self.batches.get(purpose.batch)
        seed = _public(random)
        if batch is None:
            return []
        n = bits_in(batch.blocks)
        batch.phase = Phase.AMPLIFYING
        job = AmplifyJob(tuple(batch.blocks), n, batch.bits_out, self.settings.agreed.family, seed)
        return [
            Send(Amplify(batch.number, n, batch.bits_out, batch.refill_bits, seed)),
            Work(job, long=True),
        ]

    def on_amplified(self, job: AmplifyJob, key: SecretBuffer) -> Effects:
        batch = self.batches.get(job.blocks[0].start.batch)
        if batch is None:
            key.discard()
            return []
        batch.key = key
        return self._commit(batch)

    def claimed(self, message: BatchClaim, tag: bytes) -> Effects:
        """Bob's claim, whose settling tag has verified."""
        batch = self.batches.get(message.batch.number)
        if batch is None or message.batch != self.batch_id(batch):
            return []
        if batch.phase is not Phase.AMPLIFYING:
            raise RemoteProtocolError(f"claim of Batch {message.batch} out of turn")
        tally = batch.tally
        ours = BatchClaim(
            self.batch_id(batch),
            batch.bits_out,
            batch.refill_bits,
            tally.n_z,
            tally.m_z,
            tally.n_x,
            tally.m_x,
            self.disclosure_of(batch),
        )
        if message != ours:
            return [
                Alarmed("PROTOCOL", f"Bob's claim of Batch {message.batch} differs from what Alice holds"),
                *self.abandon(batch, "DISAGREE"),
            ]
        batch.phase = Phase.CLAIMED
        self._claim_tags[batch.number] = tag
        return self._commit(batch)

    def _commit(self, batch: Batch) -> Effects:
        if batch.phase is not Phase.CLAIMED or batch.key is None:
            return []
        commit = BatchCommit(
            self.batch_id(batch), self._claim_tags.pop(batch.number), batch.bits_out, batch.refill_bits
        )
        batch.phase = Phase.JOURNALLING
        return [JournalPending(self.facts_of(batch), batch.key, commit)]

    def on_committed(self, event: Committed) -> Effects:
        return self.finish(self.batches[event.batch.number])

    def on_tick(self, event: Tick) -> Effects:
        return super().on_tick(event) + self._answer_lists()

    def batch_of_job(self, job: Any) -> Batch | None:
        if isinstance(job, AnswerJob):
            return self.batches.get(job.message.batch)
        return super().batch_of_job(job)

    messages: ClassVar = {
        SiftList: on_list,
        BatchEnd: on_end,
        BlockStart: on_block_start,
        Parities: Machine.on_parities,
        BlockOutcome: on_outcome,
        FrameOutcome: on_frame_outcome,
        BatchReport: on_report,
        BatchAbandoned: Machine.on_abandoned,
    }
    events: ClassVar = {
        TransmitterWindowReady: on_window,
        MessageReceived: Machine.on_message,
        Done: Machine.on_done,
        Drawn: Machine.on_drawn,
        Committed: on_committed,
        PoolLevel: Machine.on_pool_level,
        Tick: on_tick,
    }
    jobs: ClassVar = {
        AnswerJob: on_answered,
        StartJob: Machine.on_started,
        StepJob: Machine.on_stepped,
        TagJob: on_tagged,
        FrameTagJob: on_frame_tags,
        AmplifyJob: on_amplified,
    }
    draws: ClassVar = {"tag": on_tag_key, "seed": on_seed}


def _public(random: SecretBuffer) -> bytes:
    """Random bytes that are about to be announced."""
    with random, memoryview(random) as view:
        return view.tobytes()
