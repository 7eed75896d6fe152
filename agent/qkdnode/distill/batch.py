"""One Batch at one end: its sifted bits, Blocks and ledger, and what Alice's and Bob's machines have in common."""

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, ClassVar

import msgspec

from qkdnode.distill.amplification import AmplifyJob, bits_in, secret_length
from qkdnode.distill.effects import (
    Alarmed,
    BatchFacts,
    BlockVerified,
    Discarded,
    Done,
    Draw,
    Drawn,
    Effects,
    Event,
    Forget,
    MessageReceived,
    PoolLevel,
    Purpose,
    Send,
    Tick,
)
from qkdnode.distill.estimation import Tally
from qkdnode.distill.framing import SiftedQueue
from qkdnode.distill.reconciliation import Block, Reconciliation, Stage, StartJob, StepJob
from qkdnode.distill.settings import Settings
from qkdnode.errors import LocalProtocolError, QkdnodeError, RemoteProtocolError
from qkdnode.ids import BatchId
from qkdnode.native.secret import SecretBuffer
from qkdnode.secrecy.epsilon import verification_error
from qkdnode.secrecy.ledger import Ledger
from qkdnode.wire.messages import BatchAbandoned, BlockStart, Disclosure, Message, Parities

QBER_HIGH = "QBER_HIGH"


class Phase(Enum):
    """Where a Batch stands at one end."""

    SIFTING = auto()
    ENDED = auto()  # no more Windows; Blocks are still being reconciled
    REPORTED = auto()  # every Block verified, Bob's totals sent or accepted
    AMPLIFYING = auto()  # the seed is announced
    CLAIMED = auto()  # Bob's settling tag is sent or verified
    JOURNALLING = auto()  # the vault is storing PENDING or READY: the Batch is its own from here on


class Batch:
    """The state of one Batch at one end."""

    def __init__(self, number: int, intensities: int, now_ns: int) -> None:
        self.number = number
        self.phase = Phase.SIFTING
        self.tally = Tally.of(intensities)
        self.queue = SiftedQueue()
        self.blocks: list[Block] = []
        self.reconciliations: dict[int, Reconciliation] = {}
        self.ledger = Ledger()
        self.started_ns = self.progress_ns = now_ns
        self.planned: dict[int, tuple[int, int]] = {}  # Blocks that await their seed: bits, frame_bits
        self.bits_out = self.refill_bits = 0
        self.key: SecretBuffer | None = None

    @property
    def verified(self) -> bool:
        """Whether every sifted bit is in a verified Block."""
        return self.queue.bits == 0 and all(block.stage is Stage.VERIFIED for block in self.blocks)

    def close(self) -> None:
        """Wipe every bit of it."""
        self.queue.close()
        for reconciliation in self.reconciliations.values():
            reconciliation.close()
        self.reconciliations.clear()
        for block in self.blocks:
            block.close()
        if self.key is not None:
            self.key.discard()
            self.key = None


class Machine:
    """Base of both ends: dispatch by event and by message, Blocks in flight, and how a Batch is given up."""

    role: ClassVar[str]
    messages: ClassVar[dict[type[Message], Callable[[Any, Any], Effects]]]
    events: ClassVar[dict[type[Event], Callable[[Any, Any], Effects]]]
    jobs: ClassVar[dict[type, Callable[[Any, Any, Any], Effects]]]
    draws: ClassVar[dict[str, Callable[[Any, Purpose, SecretBuffer], Effects]]]

    def __init__(self, settings: Settings, session: int) -> None:
        self.settings = settings
        self.session = session
        self.now_ns = 0
        self.refill_bits = 0
        self.may_list = True
        self.batches: dict[int, Batch] = {}
        self.gone = 0  # Batches below this number are over unless in `batches`

    def handle(self, event: Event) -> Effects:
        """Take one event; RemoteProtocolError if the peer broke a rule (the Batch it names is then given up)."""
        return self.events[type(event)](self, event)

    def close(self) -> None:
        """Wipe everything in flight, but for the keys that the vault is storing."""
        for batch in self.batches.values():
            if batch.phase is Phase.JOURNALLING:
                batch.key = None
            batch.close()
        self.batches.clear()

    # --- events both ends know -------------------------------------------------------------------------------------

    def on_tick(self, event: Tick) -> Effects:
        self.now_ns = event.now_ns
        stall_ns = round(self.settings.batch_stall_s * 1e9)
        effects: Effects = []
        for batch in list(self.batches.values()):
            waiting = batch.phase not in (Phase.SIFTING, Phase.JOURNALLING)
            if waiting and self.now_ns - batch.progress_ns > stall_ns:
                effects += self.abandon(batch, "STALLED")
        return effects

    def on_pool_level(self, event: PoolLevel) -> Effects:
        self.refill_bits = event.refill_bits
        self.may_list = event.may_list
        return []

    def on_message(self, event: MessageReceived) -> Effects:
        message = event.message
        handler = self.messages.get(type(message))
        if handler is None:
            raise RemoteProtocolError(f"{type(message).__name__} is not for {self.role}")
        number = getattr(message, "batch", None)
        if isinstance(number, int) and number in self.batches:
            self.batches[number].progress_ns = self.now_ns
        try:
            return handler(self, message)
        except RemoteProtocolError as error:
            batch = self.batches.get(number) if isinstance(number, int) else None
            if batch is None or batch.phase is Phase.JOURNALLING:
                raise
            return [Alarmed("PROTOCOL", str(error)), *self.abandon(batch, "PROTOCOL")]

    def on_done(self, event: Done) -> Effects:
        if isinstance(event.result, Exception):
            return self.job_failed(event.job, event.result)
        return self.jobs[type(event.job)](self, event.job, event.result)

    def on_drawn(self, event: Drawn) -> Effects:
        return self.draws[event.purpose.name](self, event.purpose, event.random)

    def job_failed(self, job: Any, error: Exception) -> Effects:
        """A job raised: the Batch it belongs to is given up. Only errors of the project are expected."""
        batch = self.batch_of_job(job)
        if batch is None:
            return []
        if not isinstance(error, (QkdnodeError, ValueError)):
            raise error
        return [Alarmed("PROTOCOL", f"Batch {batch.number}: {error}"), *self.abandon(batch, "PROTOCOL")]

    def batch_of_job(self, job: Any) -> Batch | None:
        """The Batch in flight that a job works for."""
        for batch in self.batches.values():
            if isinstance(job, StartJob) and job.start.batch == batch.number:
                return batch
            if isinstance(job, AmplifyJob) and job.blocks and job.blocks[0].start.batch == batch.number:
                return batch
            block = getattr(job, "block", None)
            if isinstance(block, Block) and block.start.batch == batch.number:
                return batch
            if isinstance(job, StepJob) and any(r.holds(job.cascade) for r in batch.reconciliations.values()):
                return batch
        return None

    # --- Blocks in flight ------------------------------------------------------------------------------------------

    def open_block(self, batch: Batch, start: BlockStart) -> Effects:
        """Cut the Block's bits and begin its reconciliation."""
        cut = batch.queue.cut(start.bits, start.frame_bits)
        block = Block(start.block, start, cut, errors=(0,) * self.settings.intensities)
        batch.blocks.append(block)
        reconciliation = Reconciliation(self.role, block, lambda done: self.reconciled(batch, done))
        batch.reconciliations[block.number] = reconciliation
        return reconciliation.start()

    def on_parities(self, message: Parities) -> Effects:
        batch = self.batches.get(message.batch)
        if batch is None:
            return []
        reconciliation = batch.reconciliations.get(message.block)
        if reconciliation is None:
            raise RemoteProtocolError(f"parities for Block {message.block} of Batch {message.batch}, which is not open")
        return reconciliation.parities(message)

    def on_started(self, job: StartJob, result: Any) -> Effects:
        reconciliation = self.reconciliation_of(job.start.batch, job.start.block)
        if reconciliation is None:
            result[0].close()
            return []
        return reconciliation.started(result)

    def on_stepped(self, job: StepJob, result: Any) -> Effects:
        for batch in self.batches.values():
            for reconciliation in batch.reconciliations.values():
                if reconciliation.holds(job.cascade):
                    return reconciliation.stepped(result)
        job.cascade.close()
        return []

    def reconciliation_of(self, batch: int, block: int) -> Reconciliation | None:
        """The running reconciliation of a Block, if it is still wanted."""
        return self.batches[batch].reconciliations.get(block) if batch in self.batches else None

    def reconciled(self, batch: Batch, block: Block) -> Effects:
        """A Block has gone through its rounds; what follows is each end's own."""
        raise NotImplementedError

    def block_of(self, message: Any, *stages: Any) -> tuple[Batch, Block] | None:
        """The Batch and Block of a message, which must stand at one of these stages; None if the Batch is over."""
        batch = self.batches.get(message.batch)
        if batch is None:
            return None
        if not 0 <= message.block < len(batch.blocks) or batch.blocks[message.block].stage not in stages:
            raise RemoteProtocolError(f"{type(message).__name__} for Block {message.block} out of turn")
        return batch, batch.blocks[message.block]

    def verified(self, batch: Batch, block: Block) -> Effects:
        """Count and book a verified Block."""
        batch.tally.add_block(block.cut.bits, block.errors)
        ledger = batch.ledger
        ledger.add_parities(block.number, alice_bits=block.alice_bits, bob_bits=block.bob_bits)
        ledger.add_tag(block.number, block.tag_bits)
        ledger.add_outcome(block.number, block.outcome_bits)
        if block.failed:
            # How many of Alice's parities were of the opened Frames is not counted apart: all of them stay booked.
            ledger.open_frame(block.number, frame_bits=block.opened_bits, alice_bits=0)
        effects: Effects = [
            BlockVerified(
                batch.number,
                block.number,
                block.cut.bits,
                sum(block.errors),
                block.alice_bits,
                block.bob_bits,
                block.rounds,
                len(block.failed_frames()),
            )
        ]
        high = batch.tally.above(self.settings.agreed.qber_limit)
        if high:
            return [*effects, Alarmed(QBER_HIGH, high), *self.abandon(batch, QBER_HIGH)]
        return effects

    # --- the end of a Batch ----------------------------------------------------------------------------------------

    def length_of(self, batch: Batch) -> int:
        """Secret bits of a Batch with a closed ledger, before rounding; 0 if its tags do not reach eps_cor."""
        if sum(verification_error(block.cut.bits) for block in batch.blocks) > self.settings.agreed.eps_cor:
            return 0
        return secret_length(
            self.settings.agreed, batch.tally, batch.ledger.disclosed(self.settings.agreed.booking)
        ).bits

    def disclosure_of(self, batch: Batch) -> Disclosure:
        """The closed ledger as it goes over the wire."""
        return Disclosure(**msgspec.structs.asdict(batch.ledger.totals()))

    def facts_of(self, batch: Batch) -> BatchFacts:
        """How the Batch was made."""
        agreed, tally = self.settings.agreed, batch.tally
        return BatchFacts(
            number=batch.number,
            bits_in=bits_in(batch.blocks),
            bits_out=batch.bits_out,
            refill_bits=batch.refill_bits,
            method=agreed.method,
            booking=agreed.booking,
            family=agreed.family,
            eps_sec=agreed.eps_sec,
            eps_cor=agreed.eps_cor,
            qber_z=tally.qber_z,
            qber_x=tally.qber_x,
            disclosed_bits=batch.ledger.disclosed(agreed.booking),
            n_z=tally.n_z,
            m_z=tally.m_z,
            n_x=tally.n_x,
            m_x=tally.m_x,
            windows=tally.windows,
            efficiency=batch.ledger.efficiency(sum(tally.n_z), tally.qber_z),
            ledger=batch.ledger.totals(),
        )

    def batch_id(self, batch: Batch) -> BatchId:
        """The Batch's name on the link."""
        return BatchId(self.session, batch.number)

    def abandon(self, batch: Batch, reason: str) -> Effects:
        """Give up a Batch that is not claimed, and tell the peer."""
        if batch.phase is Phase.JOURNALLING:
            raise LocalProtocolError(f"Batch {batch.number} is being journalled and cannot be given up")
        return [Send(BatchAbandoned(batch.number, reason)), *self.drop(batch, reason)]

    def drop(self, batch: Batch, reason: str) -> Effects:
        """Forget a Batch and count what is lost."""
        del self.batches[batch.number]
        bits = sum(batch.tally.n_z)
        batch.close()
        return [Discarded(reason, bits=bits, batch=batch.number), Forget(batch.number)]

    def on_abandoned(self, message: BatchAbandoned) -> Effects:
        batch = self.batches.get(message.batch)
        if batch is None or batch.phase is Phase.JOURNALLING:
            return []
        alarms: Effects = []
        if message.reason == QBER_HIGH:
            alarms = [Alarmed(QBER_HIGH, f"the peer gave up Batch {message.batch}: its error rate is above the limit")]
        return [*alarms, *self.drop(batch, message.reason)]

    def finish(self, batch: Batch) -> Effects:
        """The Batch is journalled here; its key has moved into the vault."""
        batch.key = None
        del self.batches[batch.number]
        batch.close()
        return []


def draw(purpose: str, batch: int, size: int, block: int = 0, window: int = 0) -> Draw:
    """Ask for random bytes."""
    return Draw(Purpose(purpose, batch, block, window), size)
