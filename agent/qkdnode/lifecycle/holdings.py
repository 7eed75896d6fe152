"""What the two ends of a link hold in common, as a tree of hashes that both make alike: never of bits of key.

Stock and keys are told of by stretches: so many bits of one half of a Batch. Bundles belong to the stretch in which
they begin. A stretch's place in the tree is the hash of its name, so that the shape depends on nothing that happened:
sixteen children for each node, four levels, and buckets of stretches below. What is over and done with at both ends, or
was never more than a wish of one of them, is not listed: else two ends that agree would differ for ever.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterable, Sequence

from qkdnode.ids import ALICE, BOB, BatchId
from qkdnode.lifecycle.states import LETTERS, Stage
from qkdnode.wire.messages import Stretch

STRETCH_BITS = 1 << 18
FAN_OUT, LEVELS = 16, 4
HASH_BYTES = 32
NOTHING = bytes(HASH_BYTES)  # the hash of what holds nothing
NAME_BYTES = 17
ENTRY_BYTES = NAME_BYTES + HASH_BYTES
_NAME = struct.Struct(">QIcI")
_HALVES = {ALICE: b"a", BOB: b"b"}
_ROLES = {letter: role for role, letter in _HALVES.items()}
_NODE, _BUCKET = b"qkdnode holdings node/1\0", b"qkdnode holdings bucket/1\0"
_STRETCH, _BUNDLE = b"qkdnode holdings stretch/1\0", b"qkdnode holdings bundle/1\0"
Span = tuple[int, int]

# Keys at these stages alone do not make a Bundle worth listing: the other end may never have had it.
UNLISTED = frozenset(
    LETTERS[stage]
    for stage in (Stage.BURNT, Stage.DESTROYED, Stage.COMPROMISED, Stage.DESTROYED_COMPROMISED, Stage.DAMAGED)
)
_READY, _DELIVERED = LETTERS[Stage.READY], LETTERS[Stage.DELIVERED]
_TOGETHER = b"0123"  # ready or delivered: which applications have it, Alice's 1, Bob's 2
_ALIKE = {LETTERS[Stage.DAMAGED]: LETTERS[Stage.COMPROMISED]}  # both are what KMIP calls Compromised


def pack_stretch(stretch: Stretch) -> bytes:
    """17 bytes that sort as stretches do."""
    return _NAME.pack(stretch.batch.session, stretch.batch.number, _HALVES[stretch.half], stretch.number)


def unpack_stretch(name: bytes) -> Stretch:
    """The inverse of pack_stretch. ValueError if it is none."""
    if len(name) != NAME_BYTES:
        raise ValueError(f"the name of a stretch has {NAME_BYTES} bytes, not {len(name)}")
    session, number, half, place = _NAME.unpack(name)
    if half not in _ROLES or session >= 1 << 63:
        raise ValueError("a stretch is of Alice's half or of Bob's, in a session that can be")
    return Stretch(BatchId(session, number), _ROLES[half], place)  # type: ignore[arg-type]


def path_of(stretch: Stretch) -> bytes:
    """Where its bucket is: four steps from the root, a byte below 16 each."""
    head = hashlib.sha256(pack_stretch(stretch)).digest()
    return bytes((head[0] >> 4, head[0] & 15, head[1] >> 4, head[1] & 15))


def node_digest(path: bytes, children: Sequence[bytes]) -> bytes:
    """The hash over sixteen children."""
    if all(child == NOTHING for child in children):
        return NOTHING
    return hashlib.sha256(_NODE + bytes((len(path),)) + path + b"".join(children)).digest()


def bucket_digest(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The hash over a bucket's stretches: name and hash of each that holds something, by rising name."""
    listed = b"".join(name + digest for name, digest in entries if digest != NOTHING)
    return hashlib.sha256(_BUCKET + listed).digest() if listed else NOTHING


def stretch_digest(name: bytes, spans: Sequence[Span], bundles: Sequence[bytes]) -> bytes:
    """The hash over what is in stock, and over its Bundles by rising offset."""
    if not spans and not bundles:
        return NOTHING
    told = struct.pack(f">I{2 * len(spans)}Q", len(spans), *[end for span in spans for end in span])
    return hashlib.sha256(_STRETCH + name + told + b"".join(bundles)).digest()


def bundle_header(*, offset_bits: int, size_bits: int, key_class: str, binding: bytes, key_ids: bytes) -> bytes:
    """What of a Bundle never changes, and is the same at both ends: ids, size, class, and what it is bound to."""
    named = key_class.encode()
    told = struct.pack(">QIB", offset_bits, size_bits, len(named)) + named + bytes((len(binding),)) + binding
    return hashlib.sha256(_BUNDLE + told + key_ids).digest()


def bundle_digest(header: bytes, role: str, states: bytes, far: bytes) -> bytes | None:
    """The header and where its keys stand, seen from nowhere; None if it is not listed. `role` is whose view it is."""
    if UNLISTED.issuperset(states):
        return None
    return header + common_letters(role, states, far)


def common_letters(role: str, states: bytes, far: bytes) -> bytes:
    """A letter for each key, equal at both ends once they have heard all of each other."""
    ours, theirs = (1, 2) if role == ALICE else (2, 1)
    letters = bytearray(states)
    for place, letter in enumerate(states):
        if letter in (_READY, _DELIVERED):
            letters[place] = _TOGETHER[(ours if letter == _DELIVERED else 0) | (theirs if far[place] else 0)]
        else:
            letters[place] = _ALIKE.get(letter, letter)
    return bytes(letters)


def pack_entries(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Names and hashes of stretches, one after the other."""
    return b"".join(name + digest for name, digest in entries)


def unpack_entries(packed: bytes, path: bytes) -> list[tuple[bytes, bytes]]:
    """The inverse, checked: names rise, are names, and belong to the bucket. ValueError if not."""
    if len(packed) % ENTRY_BYTES:
        raise ValueError("half a stretch is told of")
    entries = [
        (packed[at : at + NAME_BYTES], packed[at + NAME_BYTES : at + ENTRY_BYTES])
        for at in range(0, len(packed), ENTRY_BYTES)
    ]
    names = [name for name, _ in entries]
    if any(first >= second for first, second in itertools.pairwise(names)):
        raise ValueError("stretches come in rising order, each once")
    if any(path_of(unpack_stretch(name)) != path for name in names):
        raise ValueError("a stretch stands in a bucket that is not its own")
    return entries


def missing_from(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """What of some spans none of the others has; both in any order."""
    left = sorted(spans)
    for a, b in sorted(others):
        if a < b:
            left = [(start, end) for x, y in left for start, end in ((x, min(y, a)), (max(x, b), y)) if start < end]
    return left


def joined(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, those that meet made one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
