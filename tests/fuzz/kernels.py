"""What the C core takes from the peer: parities of reconciliation, sifting lists and answers."""

import struct
from collections.abc import Hashable, Iterable
from functools import cache

from fuzz.engine import Violation
from qkdnode.errors import RemoteProtocolError
from qkdnode.native.cascade import Cascade
from qkdnode.native.secret import WorkingBuffer
from qkdnode.native.sifting import answer_list, apply_answer, list_detections

# --- Cascade  ---

SHAPE = struct.Struct(
    "<BBBBBB"
)  # frames, log2 of their bits, passes; exponents step; errors; round from which the peer lies
SEED = bytes(range(32))


def _shape(data: bytes) -> tuple[int, int, tuple[int, ...], int, int]:
    frames, log2, passes, step, errors, start = SHAPE.unpack_from(data.ljust(SHAPE.size, b"\0"))
    log2 = 10 + log2 % 3
    exponents = tuple(min(log2, 1 + (step % 6) + p * (1 + step % 3)) for p in range(1 + passes % 8))
    return 1 + frames % 3, log2, exponents, errors, start % 40


@cache
def _keys(frames: int, bits: int, errors: int) -> tuple[bytes, bytes]:
    ours = bytes((i * 37 + (i >> 3) * 11) & 255 for i in range(frames * bits // 8))
    theirs = bytearray(ours)
    for i in range(errors):
        at = (i * 2654435761) % (8 * len(theirs))
        theirs[at // 8] ^= 1 << at % 8
    return ours, bytes(theirs)


def cascade_seeds() -> list[bytes]:
    """Shapes, and lies of a few bytes: what is xored into the peer's messages from some round on."""
    return [
        SHAPE.pack(frames, log2, passes, step, errors, start) + lie
        for frames, log2, passes, step, errors, start in ((0, 0, 2, 4, 9, 0), (2, 1, 3, 3, 30, 3), (1, 2, 1, 5, 100, 9))
        for lie in (b"", b"\1", bytes(8) + b"\x80", b"\xff" * 20)
    ]


def take_parities(data: bytes) -> Iterable[Hashable]:
    """Whatever the peer's parities, it ends: agreed, or with words about the peer; after that nothing goes on."""
    frames, log2, exponents, errors, start = _shape(data)
    lie = data[SHAPE.size :]
    ours, theirs = _keys(frames, 1 << log2, errors)
    bits = 1 << log2

    def make(corrects: bool, key: bytes) -> Cascade:
        return Cascade(corrects=corrects, frames=frames, frame_bits=bits, schedule=exponents, seed=SEED, key=key)

    alice, bob = make(False, ours), make(True, theirs)
    try:
        from_alice, from_bob = alice.step(None), bob.step(None)
        rounds = 0
        while from_alice is not None and from_bob is not None and rounds < 3000:
            told = from_alice
            if lie and rounds >= start:
                told = _lied(told, lie[(rounds - start) * 4 :] or b"")
            rounds += 1
            try:
                from_bob, from_alice = bob.step(told), alice.step(from_bob)
            except RemoteProtocolError:
                for end in (bob, alice):
                    _stays_closed(end)
                raise
        if bob.finished and alice.finished:
            result = WorkingBuffer(len(ours))
            bob.result_into(result)
            if not lie and bytes(memoryview(result)) != ours:
                raise Violation("two honest ends agree on different keys")
        if bob.own_bits != bob.peer_bits or bob.corrected > 8 * len(ours):
            raise Violation("the count of disclosed bits is not possible")
        return (frames, len(exponents), bob.finished, min(rounds, 60))
    finally:
        alice.close()
        bob.close()


def _lied(told: bytes, lie: bytes) -> bytes:
    if lie[:1] == b"\xfe":
        return told[:-1]
    if lie[:1] == b"\xfd":
        return told + b"\0"
    return bytes(a ^ b for a, b in zip(told, lie[: len(told)].ljust(len(told), b"\0"), strict=True))


def _stays_closed(end: Cascade) -> None:
    try:
        end.frame_errors()
    except RemoteProtocolError:
        try:
            end.step(b"")
        except RemoteProtocolError:
            return
        raise Violation("a Cascade that failed goes on") from None


# --- sifting  ---

SLOTS = 256
CHOICES = bytes((i * 73 + 5) & 0x77 for i in range(SLOTS // 2))  # intensities 0 and 1
LIST = struct.Struct("<H")


def list_seeds() -> list[bytes]:
    """Events, bases and distances: a list that fits, one over the end, and none."""
    return [
        LIST.pack(5) + b"\x15" + bytes([0, 3, 7, 0x80, 1, 0]),
        LIST.pack(0),
        LIST.pack(9) + b"\xff\x01" + bytes([30] * 9),
    ]


def take_list(data: bytes) -> Iterable[Hashable]:
    """Alice's answer to a list is the one that a slow reading of the documents gives, or both refuse."""
    if len(data) < LIST.size:
        raise RemoteProtocolError("no list")
    (events,) = LIST.unpack_from(data)
    size = (events + 7) // 8
    bases, slots = data[LIST.size : LIST.size + size], data[LIST.size + size :]
    expected = _slow_answer(slots, bases, events)
    try:
        answer = answer_list(slots, bases, events, CHOICES, SLOTS, 2)
    except RemoteProtocolError:
        if expected is not None:
            raise Violation("a list that fits is refused") from None
        raise
    if expected is None:
        raise Violation("a list that does not fit is answered")
    found = (answer.matched, answer.intensities, answer.x_bits, answer.sifted.n_z, answer.sifted.n_x)
    if found != expected:
        raise Violation("the answer to a list is not what the documents say")
    return (min(events, 20), len(answer.x_bits))


def _slow_answer(
    slots: bytes, bases: bytes, events: int
) -> tuple[bytes, bytes, bytes, tuple[int, ...], tuple[int, ...]] | None:
    """docs/protocol.md, SiftList and SiftAnswer, as it is written; None for a list that is not one."""
    if len(bases) != (events + 7) // 8 or events > SLOTS or (events % 8 and bases[-1] >> events % 8):
        return None
    at = slot = 0
    matched, intensities, x_bits = [], [], []
    n_z, n_x = [0, 0], [0, 0]
    for event in range(events):
        distance = shift = 0
        while True:
            if at >= len(slots) or shift > 28:
                return None
            byte, at = slots[at], at + 1
            distance |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if distance >> 32:
            return None
        slot += distance
        if slot >= SLOTS:
            return None
        choice = CHOICES[slot >> 1] >> 4 * (slot & 1) & 15
        slot += 1
        basis, bit, intensity = choice & 1, choice >> 1 & 1, choice >> 2
        fits = basis == bases[event >> 3] >> (event & 7) & 1
        matched.append(fits)
        if fits:
            intensities += [intensity & 1, intensity >> 1]
            (n_x if basis else n_z)[intensity] += 1
            if basis:
                x_bits.append(bit)
    if at != len(slots):
        return None
    return _packed(matched), _packed(intensities), _packed(x_bits), tuple(n_z), tuple(n_x)


def _packed(bits: list[int]) -> bytes:
    packed = bytearray((len(bits) + 7) // 8)
    for i, bit in enumerate(bits):
        packed[i >> 3] |= bit << (i & 7)
    return bytes(packed)


@cache
def _detections() -> tuple[bytes, bytes]:
    slots = struct.pack("<12I", *range(3, 51, 4))
    return slots, bytes([1, 2, 4, 8, 1, 2, 4, 8, 3, 12, 1, 4])


def answer_seeds() -> list[bytes]:
    """Lengths of the three fields of an answer, then the fields."""
    listing = list_detections(*_detections(), b"\xff", 0)
    answer = answer_list(listing.slots, listing.bases, listing.events, CHOICES, SLOTS, 2)
    fields = (answer.matched, answer.intensities, answer.x_bits)
    return [bytes(len(field) for field in fields) + b"".join(fields), b"\2\0\0\0\0", b"\2\3\1\xff\x0f\0\0\0\0"]


def take_answer(data: bytes) -> Iterable[Hashable]:
    """Bob takes an answer that fits his list, in which counts and lengths agree."""
    if len(data) < 3:
        raise RemoteProtocolError("no answer")
    a, b, c = data[:3]
    rest = data[3:]
    matched, intensities, x_bits = rest[:a], rest[a : a + b], rest[a + b : a + b + c]
    listing = list_detections(*_detections(), b"\xff", 0)
    sifted = apply_answer(listing, matched, intensities, x_bits, 2)
    ones = sum(byte.bit_count() for byte in matched)
    if sum(sifted.n_z) + sum(sifted.n_x) != ones or sifted.bits != sum(sifted.n_z):
        raise Violation("the counts of an answer do not add up")
    if any(m > n for m, n in zip(sifted.m_x, sifted.n_x, strict=True)):
        raise Violation("more errors than bits in X")
    return (ones, sifted.n_z, sifted.m_x)
