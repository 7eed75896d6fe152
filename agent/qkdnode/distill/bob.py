"""Bob: the receiver's end of distillation. He lists his detections, opens Blocks, corrects his bits, claims first."""

from typing import Any, ClassVar

import msgspec
import numpy as np

from qkdnode.distill.amplification import AmplifyJob, bits_in, predicted_profit, whole_grains
from qkdnode.distill.batch import QBER_HIGH, Batch, Machine, Phase, draw
from qkdnode.distill.effects import (
    Alarmed,
    Committed,
    Discarded,
    Done,
    Drawn,
    Effects,
    JournalReady,
    ListedWindow,
    MessageReceived,
    PoolLevel,
    Purpose,
    ReceiverWindowReady,
    Send,
    SiftedWindow,
    Tick,
    Work,
)
from qkdnode.distill.estimation import MIN_SAMPLE
from qkdnode.distill.framing import FRAMES_PER_BLOCK, frame_bits_for
from qkdnode.distill.reconciliation import Block, Stage, StartJob, StepJob
from qkdnode.distill.settings import Settings
from qkdnode.distill.verification import (
    OUTCOME_BITS,
    TAG_BITS,
    FrameTagJob,
    TagJob,
    count_opened,
    differing_frames,
)
from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import BOB, BatchId
from qkdnode.native.cascade import schedule
from qkdnode.native.secret import SecretBuffer
from qkdnode.native.sifting import Listing, Sifted, apply_answer, list_detections
from qkdnode.secrecy.ledger import booked_fields
from qkdnode.wire.messages import (
    Amplify,
    BatchAbandoned,
    BatchAnswer,
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

QBER_FLOOR = 0.002  # what a schedule is made for when nothing was ever wrong
DARK_EVENTS = 512  # with fewer detections a Window yields less key than the tag of its list costs
PAUSE_FIRST_S, PAUSE_MAX_S = 1.0, 600.0  # between a Batch that failed and the next list
DOUBLE_PATTERNS = (0b0011, 0b1100)  # both detectors of one basis


class ListJob(msgspec.Struct, frozen=True):
    """Make the list of one Window."""

    window: ReceiverWindowReady
    batch: int
    coins: SecretBuffer
    dead_slots: int

    def run(self) -> Listing:
        """The list and Bob's bits; the random bits for double clicks are wiped."""
        with self.coins:
            return list_detections(self.window.slots.data, self.window.patterns.data, self.coins, self.dead_slots)


class ApplyJob(msgspec.Struct, frozen=True):
    """Sift by Alice's answer."""

    listing: Listing
    message: SiftAnswer
    intensities: int

    def run(self) -> Sifted:
        """Bob's sifted bits; the listed bits are wiped."""
        message = self.message
        try:
            return apply_answer(self.listing, message.matched, message.intensities, message.x_bits, self.intensities)
        finally:
            self.listing.bits.discard()


class Bob(Machine):
    """Lists, opens Blocks, corrects, reports, and answers the commit. He alone decides what belongs to which Batch."""

    role = BOB

    def __init__(self, settings: Settings, session: int) -> None:
        super().__init__(settings, session)
        self.listening = True
        self._current: Batch | None = None
        self._awaiting: dict[int, tuple[int, Listing | None]] = {}  # Window -> its Batch and list, until answered
        self._drawing: dict[int, tuple[ReceiverWindowReady, int]] = {}
        self._qber = 0.0  # of the last verified Block
        self._bits_per_window = 0.0
        self._last_listed = -1
        self._claimed: dict[int, bytes] = {}  # Batches of this session that Bob has claimed, and the claims' tags
        self._pause_s = PAUSE_FIRST_S
        self._resume_ns = 0

    def close(self) -> None:
        for _, listing in self._awaiting.values():
            if listing is not None:
                listing.bits.discard()
        self._awaiting.clear()
        super().close()

    # --- sifting ---------------------------------------------------------------------------------------------------

    def on_window(self, event: ReceiverWindowReady) -> Effects:
        if not self.listening:
            return [Discarded("stopping", windows=1)]
        if not self.may_list:
            return [Discarded("pads-kept-for-settling", windows=1)]
        if self.now_ns < self._resume_ns:
            return [Discarded("backing-off", windows=1)]
        if event.slots.size < DARK_EVENTS:
            return [Discarded("dark", windows=1)]
        if len(self._awaiting) >= self.settings.lists_in_flight:
            return [Discarded("peer-behind", windows=1)]
        if event.index <= self._last_listed:
            return [Discarded("window-late", windows=1)]
        if self._current is None:
            if len(self.batches) >= self.settings.batches_in_flight:
                return [Discarded("batches-in-flight", windows=1)]
            self._current = self.batches[self.gone] = Batch(self.gone, self.settings.intensities, self.now_ns)
            self.gone += 1
        number = self._current.number
        self._last_listed = event.index
        self._awaiting[event.index] = (number, None)
        self._drawing[event.index] = (event, number)
        doubles = int(np.isin(event.patterns, DOUBLE_PATTERNS).sum())
        return [draw("coins", number, doubles // 8 + 1, window=event.index)]

    def on_coins(self, purpose: Purpose, random: SecretBuffer) -> Effects:
        window, number = self._drawing.pop(purpose.window)
        return [Work(ListJob(window, number, random, self.settings.agreed.dead_slots))]

    def on_listed(self, job: ListJob, listing: Listing) -> Effects:
        index = job.window.index
        self._awaiting[index] = (job.batch, listing)
        if job.batch not in self.batches:
            del self._awaiting[index]
            listing.bits.discard()
            return []
        return [
            *self._judge_clicks(listing),
            ListedWindow(index, listing.detectors, listing.double_clicks),
            Send(
                SiftList(
                    job.batch,
                    index,
                    listing.events,
                    listing.slots,
                    listing.bases,
                    listing.double_clicks,
                    listing.crossed_clicks,
                    listing.dead_clicks,
                )
            ),
        ]

    def _judge_clicks(self, listing: Listing) -> Effects:
        """Several detectors at once more often than dark counts and misalignment explain: a sign of bright light."""
        odd = listing.double_clicks + listing.crossed_clicks
        clicks = listing.events + listing.crossed_clicks
        if clicks < MIN_SAMPLE or odd <= self.settings.click_share_limit * clicks:
            return []
        return [Alarmed("CLICKS", f"{odd} of {clicks} detections of a Window had more than one click")]

    def on_answer(self, message: SiftAnswer) -> Effects:
        number, listing = self._awaiting.pop(message.window, (None, None))
        if number is None or listing is None or number != message.batch:
            raise RemoteProtocolError(f"answer for Window {message.window}, which was not listed")
        if number not in self.batches or not message.held:
            listing.bits.discard()
            return [Discarded("window-not-held", windows=1), *self._end_if_due()]
        # It counts as awaited until it is sifted: a Batch does not end with a Window half in it.
        self._awaiting[message.window] = (number, None)
        return [Work(ApplyJob(listing, message, self.settings.intensities))]

    def on_sifted(self, job: ApplyJob, sifted: Sifted) -> Effects:
        window = job.message.window
        del self._awaiting[window]
        batch = self.batches.get(job.message.batch)
        if batch is None:
            sifted.z_bits.discard()
            return []
        batch.tally.add_window(sifted)
        batch.queue.append(sifted)
        self._bits_per_window += (sifted.bits - self._bits_per_window) / min(batch.tally.windows, 16)
        effects: Effects = [SiftedWindow(window, sifted.bits, sifted.ones, sum(sifted.m_x), sum(sifted.n_x))]
        high = batch.tally.above(self.settings.agreed.qber_limit)
        if high:
            return [*effects, Alarmed(QBER_HIGH, high), *self.abandon(batch, QBER_HIGH)]
        return effects + self._open_blocks(batch) + self._end_if_due()

    # --- Blocks ----------------------------------------------------------------------------------------------------

    def _open_blocks(self, batch: Batch, last: bool = False) -> Effects:
        rate = self._bits_per_window / self.settings.window_s
        frame_bits = frame_bits_for(rate, self.settings.block_fill_s, self.settings.frame_bits_max)
        whole = FRAMES_PER_BLOCK * frame_bits
        effects: Effects = []
        left = batch.queue.bits - sum(bits for bits, _ in batch.planned.values())
        while left >= whole or (last and left > 0):
            block = len(batch.blocks) + len(batch.planned)
            batch.planned[block] = (min(whole, left), frame_bits)
            left -= min(whole, left)
            effects.append(draw("block", batch.number, 32, block=block))
        return effects

    def on_block_seed(self, purpose: Purpose, random: SecretBuffer) -> Effects:
        with random, memoryview(random) as view:
            seed = view.tobytes()
        batch = self.batches.get(purpose.batch)
        if batch is None:
            return []
        bits, frame_bits = batch.planned.pop(purpose.block)
        qber = max(self._qber or batch.tally.qber_x, QBER_FLOOR)
        passes = schedule(min(qber, 0.25), frame_bits, self.settings.profile)
        start = BlockStart(batch.number, purpose.block, -(-bits // frame_bits), frame_bits, bits, bytes(passes), seed)
        return [Send(start), *self.open_block(batch, start)]

    def reconciled(self, batch: Batch, block: Block) -> Effects:
        del batch.reconciliations[block.number]
        return self._compare(block)

    def on_tag(self, message: BlockTag) -> Effects:
        batch = self.batches.get(message.batch)
        if batch is None:
            return []
        if not 0 <= message.block < len(batch.blocks):
            raise RemoteProtocolError(f"tag for Block {message.block}, which is not open")
        block = batch.blocks[message.block]
        # Alice may be through the last round before Bob's worker is: keep her tag until then.
        if block.stage not in (Stage.RECONCILING, Stage.TAGGING) or block.tag is not None:
            raise RemoteProtocolError(f"tag for Block {message.block} out of turn")
        block.tag = message
        return self._compare(block) if block.stage is Stage.TAGGING else []

    def _compare(self, block: Block) -> Effects:
        message = block.tag
        if message is None:
            return []
        assert isinstance(message, BlockTag)
        if message.attempt != block.attempt:
            raise RemoteProtocolError(f"tag of attempt {message.attempt} for Block {message.block}")
        block.stage = Stage.COMPARING
        return [Work(TagJob(block, message.key))]

    def on_tagged(self, job: TagJob, tag: bytes) -> Effects:
        block = job.block
        batch = self.batches.get(block.start.batch)
        if batch is None:
            return []
        assert isinstance(block.tag, BlockTag)
        matched = tag == block.tag.tag
        block.tag = None
        block.tag_bits += TAG_BITS
        block.outcome_bits += OUTCOME_BITS
        effects: Effects = [Send(BlockOutcome(batch.number, block.number, block.attempt, matched))]
        if matched:
            block.stage = Stage.VERIFIED
            if not block.failed:
                self._qber = sum(block.errors) / block.cut.bits
            return effects + self.verified(batch, block) + self._report_if_done(batch)
        if block.attempt:
            return effects
        block.stage = Stage.LOCATING
        return effects

    def on_frame_tags(self, message: FrameTags) -> Effects:
        found = self.block_of(message, Stage.LOCATING)
        if found is None:
            return []
        _, block = found
        if len(message.tags) != 4 * block.cut.frames:
            raise RemoteProtocolError(f"{len(message.tags)} bytes of Frame tags for {block.cut.frames} Frames")
        block.tag = message
        return [Work(FrameTagJob(block, message.key))]

    def on_own_frame_tags(self, job: FrameTagJob, tags: bytes) -> Effects:
        block = job.block
        batch = self.batches.get(block.start.batch)
        if batch is None:
            return []
        assert isinstance(block.tag, FrameTags)
        block.failed = differing_frames(tags, block.tag.tags)
        block.tag = None
        block.tag_bits += 8 * len(tags)
        block.outcome_bits += block.cut.frames
        block.attempt = 1
        if not block.failed:
            return self.abandon(batch, "NOT_LOCATED")
        block.stage = Stage.OPENING
        return [Send(FrameOutcome(batch.number, block.number, block.failed.to_bytes(8, "little")))]

    def on_opened(self, message: OpenedFrames) -> Effects:
        found = self.block_of(message, Stage.OPENING)
        if found is None:
            return []
        _, block = found
        errors = count_opened(block, message.bits)
        if errors is None:
            raise RemoteProtocolError(f"opened Frames of Block {message.block} have the wrong length")
        block.errors = errors
        block.opened_bits = sum(block.frame_span(frame)[1] for frame in block.failed_frames())
        block.stage = Stage.TAGGING
        return []

    # --- from the end of sifting to the answer ---------------------------------------------------------------------

    def _end_if_due(self) -> Effects:
        batch, agreed = self._current, self.settings.agreed
        if batch is None or batch.number not in self.batches:
            return []
        if any(number == batch.number for number, _ in self._awaiting.values()):
            return []
        n_z = sum(batch.tally.n_z)
        aged = self.now_ns - batch.started_ns > self.settings.batch_deadline_s * 1e9
        if n_z < agreed.batch_bits and not aged:
            return []
        if not n_z or predicted_profit(self.settings, batch.tally, self._disclosed(batch)) <= 0:
            if n_z < agreed.batch_max_bits:
                return []
            return self.abandon(batch, "NO_SECRET")
        return self._end(batch)

    def _disclosed(self, batch: Batch) -> int:
        """What the verified Blocks have disclosed so far, under the booking in force."""
        fields = booked_fields(self.settings.agreed.booking)
        rows = [batch.ledger.block(number) for number in batch.ledger.blocks]
        return sum(getattr(row, field) for row in rows for field in fields)

    def _end(self, batch: Batch) -> Effects:
        batch.phase = Phase.ENDED
        batch.progress_ns = self.now_ns
        self._current = None
        tally = batch.tally
        end = BatchEnd(batch.number, tally.windows, tally.n_z, tally.n_x, tally.m_x)
        return [Send(end), *self._open_blocks(batch, last=True), *self._report_if_done(batch)]

    def stop(self, reason: str = "STOPPING") -> Effects:
        """List no more Windows; a Batch that has not ended is given up."""
        self.listening = False
        batch, self._current = self._current, None
        if batch is None or batch.number not in self.batches:
            return []
        before = self._resume_ns, self._pause_s
        effects = self.abandon(batch, reason)
        self._resume_ns, self._pause_s = before  # given up on purpose: that is no failure to back off from
        return effects

    def _report_if_done(self, batch: Batch) -> Effects:
        if batch.number not in self.batches or batch.phase is not Phase.ENDED or not batch.verified:
            return []
        batch.ledger.close()
        batch.phase = Phase.REPORTED
        return [Send(BatchReport(batch.number, batch.tally.m_z, self.disclosure_of(batch), self.refill_bits))]

    def on_amplify(self, message: Amplify) -> Effects:
        batch = self.batches.get(message.batch)
        if batch is None:
            return []
        if batch.phase is not Phase.REPORTED:
            raise RemoteProtocolError(f"seed of Batch {message.batch} out of turn")
        n = bits_in(batch.blocks)
        length = min(whole_grains(self.length_of(batch)), whole_grains(n))
        if (message.bits_in, message.bits_out) != (n, length) or not length:
            raise RemoteProtocolError(
                f"Batch {message.batch}: Alice hashes {message.bits_in} bits to {message.bits_out}, Bob {n} to {length}"
            )
        if message.refill_bits > length or message.refill_bits != whole_grains(message.refill_bits):
            raise RemoteProtocolError(f"refill of {message.refill_bits} bits from a Batch of {length}")
        batch.bits_out, batch.refill_bits = length, message.refill_bits
        batch.phase = Phase.AMPLIFYING
        family = self.settings.agreed.family
        return [Work(AmplifyJob(tuple(batch.blocks), n, length, family, message.seed), long=True)]

    def on_amplified(self, job: AmplifyJob, key: SecretBuffer) -> Effects:
        batch = self.batches.get(job.blocks[0].start.batch)
        if batch is None:
            key.discard()
            return []
        batch.key = key
        batch.phase = Phase.CLAIMED
        self._claimed[batch.number] = b""
        tally = batch.tally
        return [
            Send(
                BatchClaim(
                    self.batch_id(batch),
                    batch.bits_out,
                    batch.refill_bits,
                    tally.n_z,
                    tally.m_z,
                    tally.n_x,
                    tally.m_x,
                    self.disclosure_of(batch),
                )
            )
        ]

    def has_claimed(self, batch: BatchId) -> bool:
        """Whether Bob has sent a claim of this Batch in this session, so that Alice may be PENDING."""
        return batch.session == self.session and batch.number in self._claimed

    def is_journalling(self, batch: BatchId) -> bool:
        """Whether the commit of this Batch is accepted and READY is on its way into the vault."""
        held = self.batches.get(batch.number)
        return held is not None and batch.session == self.session and held.phase is Phase.JOURNALLING

    def claim_sent(self, number: int, tag: bytes) -> None:
        """The tag under which the claim of a Batch was sent: Alice's commit must repeat it."""
        self._claimed[number] = tag

    def committed_by_peer(self, message: BatchCommit) -> Effects | None:
        """Alice is PENDING, and her settling tag has verified; None if Bob has lost the Batch and must say so."""
        batch = self.batches.get(message.batch.number)
        if batch is None or message.batch != self.batch_id(batch) or batch.phase is not Phase.CLAIMED:
            return None
        ours = (batch.bits_out, batch.refill_bits, self._claimed.get(batch.number))
        if (message.bits_out, message.refill_bits, message.claim_tag) != ours or batch.key is None:
            return None
        batch.phase = Phase.JOURNALLING
        return [JournalReady(self.facts_of(batch), batch.key, BatchAnswer(message.batch, True))]

    def on_committed(self, event: Committed) -> Effects:
        self._pause_s = PAUSE_FIRST_S
        return self.finish(self.batches[event.batch.number])

    def drop(self, batch: Batch, reason: str) -> Effects:
        if batch is self._current:
            self._current = None
        self._resume_ns = self.now_ns + round(self._pause_s * 1e9)
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)
        return super().drop(batch, reason)

    def job_failed(self, job: Any, error: Exception) -> Effects:
        if isinstance(job, (ListJob, ApplyJob)):
            window = job.window.index if isinstance(job, ListJob) else job.message.window
            self._awaiting.pop(window, None)
        return super().job_failed(job, error)

    def batch_of_job(self, job: Any) -> Batch | None:
        if isinstance(job, ListJob):
            return self.batches.get(job.batch)
        if isinstance(job, ApplyJob):
            return self.batches.get(job.message.batch)
        return super().batch_of_job(job)

    def on_tick(self, event: Tick) -> Effects:
        return super().on_tick(event) + self._end_if_due()

    messages: ClassVar = {
        SiftAnswer: on_answer,
        Parities: Machine.on_parities,
        BlockTag: on_tag,
        FrameTags: on_frame_tags,
        OpenedFrames: on_opened,
        Amplify: on_amplify,
        BatchAbandoned: Machine.on_abandoned,
    }
    events: ClassVar = {
        ReceiverWindowReady: on_window,
        MessageReceived: Machine.on_message,
        Done: Machine.on_done,
        Drawn: Machine.on_drawn,
        Committed: on_committed,
        PoolLevel: Machine.on_pool_level,
        Tick: on_tick,
    }
    jobs: ClassVar = {
        ListJob: on_listed,
        ApplyJob: on_sifted,
        StartJob: Machine.on_started,
        StepJob: Machine.on_stepped,
        TagJob: on_tagged,
        FrameTagJob: on_own_frame_tags,
        AmplifyJob: on_amplified,
    }
    draws: ClassVar = {"coins": on_coins, "block": on_block_seed}
