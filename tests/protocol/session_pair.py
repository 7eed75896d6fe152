"""Two sessions with a provisioned pool each, and the small part of a vault that they need."""

import hashlib

from qkdnode.authentication import session as sessions
from qkdnode.authentication.pool import AuthKeyPool, Segment
from qkdnode.authentication.session import Session, State
from qkdnode.errors import AuthenticationError, RemoteProtocolError
from qkdnode.ids import ALICE, BOB, PROVISIONED, BatchId, PadAddress
from qkdnode.native.secret import SecretBuffer
from qkdnode.wire import codec
from qkdnode.wire.messages import Greeting, Hello, Mark, Message, PadSpan, Parameters, Statement

PADS = 64
NAMES = {ALICE: "node-a", BOB: "node-b"}
PARAMETERS = Parameters(
    protocol=1,
    link="a-b",
    slot_rate_hz=20_000_000,
    window_slots=2**20,
    p_z=0.85,
    intensities=(0.5, 0.15),
    intensity_probabilities=(0.6, 0.4),
    method="rusca2018/1",
    booking="both",
    family="modified",
    eps_sec=1e-9,
    eps_cor=1e-15,
    qber_limit=0.08,
    batch_bits=1_000_000,
    batch_max_bits=3_000_000,
    dead_slots=0,
)


def pair_material(pads: int = PADS) -> SecretBuffer:
    """The same key at both ends, two halves of `pads` pads."""
    return SecretBuffer.copy_of(b"".join(hashlib.sha256(i.to_bytes(4)).digest() for i in range(pads)))


class SessionEnd:
    """One end: marks that only rise, counters that only rise, and what it has put on the wire."""

    def __init__(
        self,
        role: str,
        parameters: Parameters = PARAMETERS,
        pads: int = PADS,
        marks: int = 0,
        run: bytes = b"start 01",
    ) -> None:
        self.role = role
        self.pool = AuthKeyPool(role)
        self.pool.add(Segment(PROVISIONED, pads, pair_material(pads), marks, 0))
        self.mark = marks
        self.counter = 0
        self.granted = marks  # of the peer's half
        self.refuses = ""  # what the vault finds of the peer's Greeting
        peer = BOB if role == ALICE else ALICE
        self.session = Session(
            node=NAMES[role],
            peer=NAMES[peer],
            role=role,
            link="a-b",
            pair=b"pair",
            start=run,
            greeting_key=SecretBuffer.copy_of(bytes(range(64))),
            parameters=parameters,
            pool=self.pool,
            software="test",
        )
        self.wire: list[bytes] = []
        self.accepted: list[Message] = []
        self.effects: list[sessions.Effect] = []
        self.refused: list[Exception] = []
        self.used: list[PadAddress] = []

    @property
    def open(self) -> bool:
        return self.session.state is State.OPEN

    def begin(self) -> None:
        self.follow(self.session.begin(()))

    def reserve(self, count: int) -> tuple[PadAddress, ...]:
        pads = tuple(PadAddress(PROVISIONED, self.mark + i) for i in range(count))
        self.mark += count
        assert not set(pads) & set(self.used), "a pad was reserved twice"
        self.used.extend(pads)
        return pads

    def follow(self, effects: list[sessions.Effect]) -> None:
        todo = list(effects)
        while todo:
            effect = todo.pop(0)
            match effect:
                case sessions.Send(raw=raw):
                    self.wire.append(raw)
                case sessions.DrawCounter():
                    self.counter += 1
                    todo = self.session.counter_drawn(effect, self.counter) + todo
                case sessions.Greet():
                    self.wire.append(self.session.greeting(effect, self.statement()))
                case sessions.Admit(greeting=greeting):
                    granted = self.grant(greeting) if not self.refuses else ()
                    todo = self.session.admitted(greeting, granted, self.refuses) + todo
                case sessions.ReservePads(count=count):
                    span = self.pool.allowed()[-1]
                    self.mark = max(self.mark, span.first)
                    pads = self.reserve(count)
                    assert pads[-1].index < span.end, "a pad was not granted"
                    for pad in pads:
                        self.pool.reserved(pad)
                    todo = self.session.pads_reserved(pads) + todo
                case _:
                    self.effects.append(effect)

    def statement(self) -> Statement:
        return Statement(b"", 0, BatchId(0, 0), (Mark(PROVISIONED, self.mark),), ())

    def grant(self, greeting: Greeting) -> tuple[PadSpan, ...]:
        """Beyond what was granted before; `say` takes pads of its half as if more had been granted meanwhile."""
        first = max([self.granted, *(mark.index for mark in greeting.statement.sending)])
        self.granted = first + greeting.wanted
        return (PadSpan(PROVISIONED, first, self.granted),) if greeting.wanted else ()

    def say(self, message: Message) -> None:
        if not self.pool.granted:
            self.pool.grant(self.reserve(1))
        self.wire.append(self.session.seal(message))

    def take(self, raw: bytes) -> None:
        """What the driver does with a frame, up to the machines."""
        try:
            frame = codec.decode(raw)
            self.session.addressed(frame)
            if isinstance(frame.message, Greeting):
                self.follow(self.session.greeted(frame))
                return
            self.session.opened(frame)
        except (RemoteProtocolError, AuthenticationError) as error:
            self.refused.append(error)
            return
        if isinstance(frame.message, Hello):
            self.follow(self.session.hello(frame))
        else:
            self.accepted.append(frame.message)


def exchange(alice: SessionEnd, bob: SessionEnd, rounds: int = 8) -> None:
    """Deliver everything on the wire, in order, until it is quiet."""
    for _ in range(rounds):
        for sender, receiver in ((alice, bob), (bob, alice)):
            frames, sender.wire = sender.wire, []
            for raw in frames:
                receiver.take(raw)


def opened_pair() -> tuple[SessionEnd, SessionEnd]:
    """Both ends with an open session."""
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    alice.begin()
    exchange(alice, bob)
    assert alice.open
    assert bob.open
    return alice, bob
