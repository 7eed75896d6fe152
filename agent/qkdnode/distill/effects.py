"""What the distillation machines are told and what they ask for.

A machine takes one event at a time and returns effects. Heavy work is an effect too: a job whose result comes back as
`Done`. Randomness is an effect whose bytes come back as `Drawn`.
"""

from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from qkdnode.ids import BatchId
from qkdnode.native.secret import SecretBuffer, WorkingBuffer
from qkdnode.secrecy.ledger import LedgerTotals
from qkdnode.wire.messages import BatchAnswer, BatchCommit, Message


class Event(msgspec.Struct, frozen=True):
    """Base of events."""


class TransmitterWindowReady(Event, frozen=True):
    """Alice's module has a whole Window: a nibble per slot."""

    index: int
    choices: WorkingBuffer


class ReceiverWindowReady(Event, frozen=True):
    """Bob's module has a whole Window: rising slots relative to its start, and detector patterns."""

    index: int
    slots: NDArray[np.uint32]
    patterns: NDArray[np.uint8]


class MessageReceived(Event, frozen=True):
    """An authenticated, or to be authenticated by transcript, message of the peer."""

    message: Message


class Done(Event, frozen=True):
    """A job has ended; `result` is what its `run` returned, or the exception that it raised."""

    job: "Job"
    result: Any


class Drawn(Event, frozen=True):
    """Random bytes for an earlier Draw."""

    purpose: "Purpose"
    random: SecretBuffer


class Committed(Event, frozen=True):
    """The vault has journalled PENDING (Alice) or READY (Bob), and the message is sent."""

    batch: BatchId


class PoolLevel(Event, frozen=True):
    """What the authentication key that is left calls for: a refill, and whether Windows may still be listed."""

    refill_bits: int
    may_list: bool = True


class Tick(Event, frozen=True):
    """Time passes; monotonic nanoseconds."""

    now_ns: int


class Effect(msgspec.Struct, frozen=True):
    """Base of effects."""


class Send(Effect, frozen=True):
    """Give this message to the session and the channel."""

    message: Message


class Job(Protocol):
    """Work without the machine's state: a worker runs it."""

    def run(self) -> Any: ...


class Work(Effect, frozen=True):
    """Run a job on the lane of its length; results of one lane come back in the order of the jobs."""

    job: Any
    long: bool = False


class Purpose(msgspec.Struct, frozen=True):
    """What random bytes are for, so that the machine knows them when they come."""

    name: str
    batch: int = 0
    block: int = 0
    window: int = 0


class Draw(Effect, frozen=True):
    """Draw random bytes from the entropy pool."""

    purpose: Purpose
    size: int


class Discarded(Effect, frozen=True):
    """An outcome to be counted: Windows, or the sifted bits of a Batch, that make no key."""

    reason: str
    windows: int = 0
    bits: int = 0
    batch: int | None = None


class Alarmed(Effect, frozen=True):
    """Something an operator should know."""

    code: str
    detail: str


class ListedWindow(Effect, frozen=True):
    """Bob has listed a Window: detections of Z0, Z1, X0, X1 alone, and of both detectors of a basis."""

    window: int
    detectors: tuple[int, int, int, int]
    double_clicks: int


class SiftedWindow(Effect, frozen=True):
    """A Window was agreed: for the statistics. `ones` are among the bits of this end."""

    window: int
    bits: int
    ones: int
    x_errors: int
    x_bits: int


class BlockVerified(Effect, frozen=True):
    """A Block was verified: for the statistics."""

    batch: int
    block: int
    bits: int
    errors: int
    alice_bits: int
    bob_bits: int
    rounds: int
    opened_frames: int


class BatchFacts(msgspec.Struct, frozen=True):
    """How a Batch was made."""

    number: int
    bits_in: int
    bits_out: int
    refill_bits: int
    method: str
    booking: str
    family: str
    eps_sec: float
    eps_cor: float
    qber_z: float
    qber_x: float
    disclosed_bits: int
    n_z: tuple[int, ...]
    m_z: tuple[int, ...]
    n_x: tuple[int, ...]
    m_x: tuple[int, ...]
    windows: int
    efficiency: float
    ledger: LedgerTotals


class JournalPending(Effect, frozen=True):
    """Alice: journal PENDING with the sealed key and the commit's exact bytes, then send it; `Committed` comes back."""

    facts: BatchFacts
    key: SecretBuffer
    commit: BatchCommit


class JournalReady(Effect, frozen=True):
    """Bob: journal READY with the sealed key and the answer's exact bytes, then send it; `Committed` comes back."""

    facts: BatchFacts
    key: SecretBuffer
    answer: BatchAnswer


class Forget(Effect, frozen=True):
    """The Batch is over at this end: its transcript may go."""

    batch: int


Effects = list[Effect]
