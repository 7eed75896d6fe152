"""The Merkle tree of the audit log: RFC 9162 section 2.1 (the tree of RFC 6962), SHA-256.

    leaf hash = H(0x00 || leaf);  node hash = H(0x01 || left || right);  the root of no leaves = H()

Positions count from 0. A proof is a tuple of 32-byte hashes in the order of the RFC.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import TypeAlias

HASH_BYTES = 32
MAX_LEAVES = (1 << 63) - 1
EMPTY_ROOT = hashlib.sha256(b"").digest()
KEPT_LEVEL = 8  # who keeps the log keeps hashes of complete subtrees of 256 leaves and more
Span: TypeAlias = tuple[int, int]  # leaves from the first to before the second
Subtree: TypeAlias = tuple[int, int, bytes]  # level, number among those of its level, hash
_SIZE = struct.Struct(">Q")


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of one leaf."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: one hash per complete subtree, largest first.

    Enough to append leaves and to know the root; it holds one hash per bit set in `size`.
    """

    __slots__ = ("_hashes", "_size")

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self._size = 0
        self._hashes: list[bytes] = []
        for item in leaf_hashes:
            self.append(item)

    @property
    def size(self) -> int:
        """Leaves in the tree."""
        return self._size

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The complete subtrees, largest (leftmost) first."""
        return tuple(self._hashes)

    def append(self, item: bytes, kept: list["Subtree"] | None = None) -> int:
        """Add a leaf by its hash; its position. Subtrees of KEPT_LEVEL and above that it completes go to `kept`."""
        if len(item) != HASH_BYTES:
            raise ValueError(f"a leaf hash has {HASH_BYTES} bytes, not {len(item)}")
        position = self._size
        merged, level = position, 0
        while merged & 1:
            item = node_hash(self._hashes.pop(), item)
            merged >>= 1
            level += 1
            if level >= KEPT_LEVEL and kept is not None:
                kept.append((level, merged, item))
        self._hashes.append(item)
        self._size = position + 1
        return position

    def root(self) -> bytes:
        """The root over all leaves so far."""
        return root_over(self._hashes)

    def copy(self) -> "Frontier":
        """An independent frontier of the same tree."""
        twin = Frontier()
        twin._size, twin._hashes = self._size, self._hashes.copy()
        return twin

    def encode(self) -> bytes:
        """The size as 8 bytes, big-endian, and the hashes."""
        return _SIZE.pack(self._size) + b"".join(self._hashes)

    @classmethod
    def decode(cls, data: bytes) -> "Frontier":
        """The inverse of encode; ValueError if the size does not fit the number of hashes."""
        if len(data) < _SIZE.size:
            raise ValueError(f"a frontier of {len(data)} bytes is cut short")
        (size,) = _SIZE.unpack_from(data)
        if size > MAX_LEAVES or len(data) != _SIZE.size + HASH_BYTES * size.bit_count():
            raise ValueError(f"a frontier of {size} leaves does not take {len(data)} bytes")
        frontier = cls()
        frontier._size = size
        frontier._hashes = [data[i : i + HASH_BYTES] for i in range(_SIZE.size, len(data), HASH_BYTES)]
        return frontier


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """The root over the given leaf hashes."""
    return Frontier(leaf_hashes).root()


def inclusion_path(position: int, size: int) -> tuple[Span, ...]:
    """The subtrees whose hashes prove the leaf at `position` in a tree of `size` leaves (RFC 9162 section 2.1.3.1)."""
    if not 0 <= position < size:
        raise ValueError(f"no leaf {position} in a tree of {size}")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if position < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return tuple(reversed(path))


def consistency_path(old_size: int, size: int) -> tuple[Span, ...]:
    """The subtrees whose hashes prove the first `old_size` of `size` leaves a prefix (RFC 9162 section 2.1.4.1).

    Empty for an empty or an equal old tree.
    """
    if not 0 <= old_size <= size:
        raise ValueError(f"a tree of {old_size} leaves is no prefix of one of {size}")
    if old_size in (0, size):
        return ()
    path = []
    start, end = 0, size
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    if start:
        path.append((start, end))
    return tuple(reversed(path))


def complete_subtrees(start: int, end: int) -> tuple[Span, ...]:
    """The complete subtrees, largest first, that the subtree over leaves `start` to `end` is made of.

    `start` is a multiple of the largest of them, as it is of every span of a path, and of a whole tree.
    """
    parts = []
    while start < end:
        width = 1 << (end - start).bit_length() - 1
        parts.append((start, start + width))
        start += width
    return tuple(parts)


def root_over(subtrees: Sequence[bytes]) -> bytes:
    """The root over complete subtrees, largest first."""
    if not subtrees:
        return EMPTY_ROOT
    root = subtrees[-1]
    for left in reversed(subtrees[:-1]):
        root = node_hash(left, root)
    return root


def inclusion_holds(leaf: bytes, position: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows the leaf hash at `position` of the tree of `size` leaves (RFC 9162 section 2.1.3.2)."""
    if not 0 <= position < size or not _are_hashes((leaf, root, *proof)):
        return False
    here, last, hashed = position, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if here & 1 or here == last:
            hashed = node_hash(step, hashed)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            hashed = node_hash(hashed, step)
        here, last = here >> 1, last >> 1
    return last == 0 and hashed == root


def consistency_holds(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows the old tree to be a prefix of the new one (RFC 9162 section 2.1.4.2)."""
    if not 0 <= old_size <= new_size or not _are_hashes((old_root, new_root, *proof)):
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    path = list(proof)
    if old_size.bit_count() == 1:
        path.insert(0, old_root)
    if not path:
        return False
    here, last = old_size - 1, new_size - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    old_hash = new_hash = path[0]
    for step in path[1:]:
        if last == 0:
            return False
        if here & 1 or here == last:
            old_hash, new_hash = node_hash(step, old_hash), node_hash(step, new_hash)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            new_hash = node_hash(new_hash, step)
        here, last = here >> 1, last >> 1
    return last == 0 and old_hash == old_root and new_hash == new_root


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _are_hashes(items: Iterable[bytes]) -> bool:
    return all(len(item) == HASH_BYTES for item in items)
