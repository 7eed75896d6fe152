"""Between two nodes: frames, the session that authenticates them, and the machines that believe an authentic peer."""

from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any

import numpy as np
from distill_pair import DistillEnd
from session_pair import NAMES, PARAMETERS, SessionEnd, exchange, opened_pair

from fuzz.engine import Violation
from fuzz.examples import example, integers
from fuzz.mutation import framed
from qkdnode.authentication import session as sessions
from qkdnode.distill import effects as fx
from qkdnode.errors import AuthenticationError, LocalProtocolError, QkdnodeError, RemoteProtocolError
from qkdnode.ids import ALICE, BOB, PadAddress, short_digest
from qkdnode.native.secret import WorkingBuffer
from qkdnode.vault.records import pack_batch, unpack_batch
from qkdnode.wire import codec
from qkdnode.wire.messages import KIND_OF_CODE, KINDS, Amplify, Greeting, Hello, Kind, Message, Protection

INT64 = range(-(2**63), 2**63)


def trailer_bytes(code: int) -> int:
    """Of a kind of message, as sent."""
    kind = KIND_OF_CODE.get(code)
    return 0 if kind is None else codec.TRAILER_BYTES[kind.protection]


as_frame = framed(trailer_bytes, [*KIND_OF_CODE, 0, 9, 255])


def frame_of(kind: Kind, message: Message) -> bytes:
    """The message in a frame whose trailer verifies nowhere."""
    role = kind.senders[-1]
    other = ALICE if role == BOB else BOB
    header = codec.Header(short_digest(NAMES[role]), short_digest(NAMES[other]), kind.code, role, 2, 2**32 + 1)
    return header.pack() + codec.encode_body(message) + bytes(codec.TRAILER_BYTES[kind.protection])


@cache
def _frames() -> tuple[bytes, ...]:
    return tuple(frame_of(kind, example(kind.body, ample=ample)) for kind in KINDS for ample in (False, True))


def frames() -> list[bytes]:
    """Each kind of message at its least and ample."""
    return list(_frames())


def take_frame(raw: bytes) -> Iterable[Hashable]:
    """What decodes is what was sent, byte for byte, in values that the rest of the node can hold."""
    frame = codec.decode(raw)
    again = codec.join(frame.header.pack(), codec.encode_body(frame.message), frame.trailer, frame.mac)
    if again != raw or frame.raw != raw or codec.kind_of(frame.message) is not frame.kind:
        raise Violation(f"{type(frame.message).__name__} decodes and encodes to other bytes")
    for value in integers(frame.message):
        if value not in INT64:
            raise Violation(f"{type(frame.message).__name__} holds an integer beyond 64 bits")
    for pad in _instances(frame.message, PadAddress):
        if codec.unpack_address(codec.pack_address(pad)) != pad or unpack_batch(pack_batch(pad.segment)) != pad.segment:
            raise Violation(f"{type(frame.message).__name__} holds an address that is not one")
    return (frame.kind.code, len(raw).bit_length())


def _instances(value: Any, kind: type) -> list[Any]:
    found = [value] if isinstance(value, kind) else []
    parts = value if isinstance(value, tuple) else ()
    if isinstance(value, codec.msgspec.Struct):
        parts = tuple(getattr(value, name) for name in value.__struct_fields__)
    return found + [each for part in parts for each in _instances(part, kind)]


# --- the session  ---

RAW, SEALED, HELLO = range(3)  # how the frame behind the first byte is sent


def session_seeds() -> list[bytes]:
    """Frames as an attacker sends them, and messages of a peer that has the keys."""
    return [bytes([how]) + raw for how in (RAW, SEALED) for raw in frames()] + [
        bytes([HELLO]) + frame_of(KIND_OF_CODE[2], Hello(PARAMETERS, PadAddress(codec.BatchId(0, 0), 1), (), "test"))
    ]


def take_in_session(data: bytes) -> Iterable[Hashable]:
    """Only what the peer sealed is accepted, and once."""
    how, raw = data[0] % 3 if data else RAW, data[1:]
    if how == HELLO:
        return _take_hello(raw)
    sender, receiver = opened_pair()
    if how == SEALED:
        frame = codec.decode(raw)
        if frame.header.role == BOB:
            sender, receiver = receiver, sender
        if isinstance(frame.message, Greeting):
            raise RemoteProtocolError("greetings are not sealed")
        try:
            sender.say(frame.message)
        except (LocalProtocolError, QkdnodeError) as error:
            raise RemoteProtocolError(f"the peer itself cannot say it: {error}") from None
        raw = sender.wire.pop()
    elif len(raw) > 18 and raw[18] == 1:
        sender, receiver = receiver, sender
    receiver.effects.clear()
    receiver.take(raw)
    accepted = len(receiver.accepted)
    # What settling tags cover is taken on trust until they come: by itself it makes no key.
    if accepted and how == RAW and codec.kind_of(receiver.accepted[-1]).protection is not Protection.TRANSCRIPT:
        raise Violation("a frame that nobody sealed was accepted")
    receiver.take(raw)
    # Settling messages are sent again until answered: their Batch's state guards them, not the session.
    if len(receiver.accepted) > accepted and not isinstance(receiver.accepted[-1], sessions.SETTLING):
        raise Violation("a frame was accepted twice")
    return (how, receiver.session.state, accepted, *(str(type(error)) for error in receiver.refused))


def _take_hello(raw: bytes) -> Iterable[Hashable]:
    """A Hello with other contents under the peer's true tag."""
    frame = codec.decode(raw)
    if not isinstance(frame.message, Hello):
        raise RemoteProtocolError("not a Hello")
    alice, bob = SessionEnd(ALICE), SessionEnd(BOB)
    alice.begin()
    while not any(codec.decode(sent).header.kind == frame.header.kind for sent in alice.wire):
        exchange(alice, bob, 1)
    genuine = codec.decode(alice.wire.pop())
    assert genuine.trailer is not None
    alice.session._send_next = genuine.header.counter
    bob.take(alice.session._tagged(frame.message, genuine.trailer.pad))
    return (bob.session.state, len(bob.effects), *(str(type(error)) for error in bob.refused))


# --- distillation  ---

SMALL = codec.msgspec.structs.replace(
    PARAMETERS, window_slots=2**17, batch_bits=10_000, batch_max_bits=40_000, eps_sec=0.5, eps_cor=0.1, qber_limit=0.2
)


@cache
def window() -> tuple[bytes, np.ndarray, np.ndarray]:
    """One Window of a link without much loss: packed choices, and the detections that they cause."""
    slots, generator = SMALL.window_slots, np.random.default_rng(7)
    basis = (generator.random(slots) >= SMALL.p_z).astype(np.uint8)
    bit = generator.integers(0, 2, slots, np.uint8)
    decoy = (generator.random(slots) >= SMALL.intensity_probabilities[0]).astype(np.uint8)
    mu = np.asarray(SMALL.intensities)[decoy]
    clicks = np.flatnonzero(generator.random(slots) < 1 - np.exp(-mu))
    measured = (generator.random(clicks.size) >= SMALL.p_z).astype(np.uint8)
    wrong = (generator.random(clicks.size) < 0.01).astype(np.uint8)
    other = generator.integers(0, 2, clicks.size, np.uint8)
    seen = np.where(measured == basis[clicks], bit[clicks] ^ wrong, other)
    nibbles = basis | (bit << 1) | (decoy << 2)
    choices = (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()
    return choices, clicks.astype(np.uint32), (1 << (seen + 2 * measured)).astype(np.uint8)


class TamperingEnd(DistillEnd):
    """An end whose `at`-th message of the Batch is another one, properly sealed: a peer with keys that lies."""

    at = -1
    instead: Message | None = None
    said: list[Message]

    def say(self, message: Message) -> None:
        if self.open and hasattr(self, "said"):
            self.said.append(message)
            if len(self.said) - 1 == self.at and self.instead is not None:
                message = self.instead
        try:
            super().say(message)
        except AuthenticationError as error:
            if message is not self.instead:
                raise
            raise RemoteProtocolError(f"the liar's own session does not seal it: {error}") from None


def distil(at: int, instead: Message | None, role: str = BOB) -> tuple[TamperingEnd, TamperingEnd]:
    """One Batch, in which the `at`-th message of the end `role` is replaced by `instead`."""
    alice, bob = TamperingEnd(ALICE, SMALL), TamperingEnd(BOB, SMALL)
    alice.begin()
    exchange(alice, bob)
    alice.start()
    bob.start()
    for end in (alice, bob):
        end.said = []
    liar = bob if role == BOB else alice
    liar.at, liar.instead = at, instead
    choices, slots, patterns = window()
    alice.feed(fx.TransmitterWindowReady(0, WorkingBuffer.copy_of(choices)))
    bob.feed(fx.ReceiverWindowReady(0, slots.copy(), patterns.copy()))
    for now_ns in (10**9, 10**12, 2 * 10**12):
        for end in (alice, bob):
            end.feed(fx.Tick(now_ns))
        for _ in range(200):
            if not (alice.wire or bob.wire):
                break
            exchange(alice, bob, 1)
    return alice, bob


@cache
def _said() -> tuple[bytes, ...]:
    """The messages of an honest Batch, each with its place."""
    alice, bob = distil(-1, None)
    found, kinds = [], set()
    for end in (alice, bob):
        for at, message in enumerate(end.said):
            kind = codec.kind_of(message)
            if (end.role, kind.code) in kinds and at % 40:
                continue  # of many rounds a few will do
            kinds.add((end.role, kind.code))
            frame = bytearray(frame_of(kind, message))
            frame[18] = codec.DIRECTION_OF_SENDER[end.role]
            found.append(at.to_bytes(2, "little") + bytes(frame))
    return tuple(found)


def distil_seeds() -> list[bytes]:
    """Each kind of message of an honest Batch at its place."""
    return list(_said())


def take_in_distillation(data: bytes) -> Iterable[Hashable]:
    """Whatever an authentic peer says, this end answers, refuses or abandons; two READY ends hold the same key."""
    if len(data) < 2:
        raise RemoteProtocolError("no place")
    frame = codec.decode(data[2:])
    alice, bob = distil(int.from_bytes(data[:2], "little") % 512, frame.message, frame.header.role)
    for batch in alice.ready & bob.ready:
        # Whose seed differs from the one it sent has a key of its own, which nobody can keep it from having.
        if alice.keys[batch] != bob.keys[batch] and not isinstance(frame.message, Amplify):
            raise Violation(f"both ends are READY with different keys of Batch {batch}")
    alike = {type(error).__name__ for end in (alice, bob) for error in end.refused}
    for end in (alice, bob):
        for error in end.refused:
            if not isinstance(error, QkdnodeError):
                raise Violation(f"refused for {error!r}")
        end.machine.close()
        end.session.close()
    return (frame.header.role, frame.kind.code, len(alice.ready), len(bob.ready), *sorted(alike))
