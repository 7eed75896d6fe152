"""Inclusion proofs from leaves that pass by once, in their order: nothing but the proof is held."""

from qkdnode.audit.merkle import Frontier, leaf_hash


class Inclusion:
    """The proof that the leaf at `position` is in the tree of the first `size` leaves (RFC 9162 section 2.1.3.1)."""

    def __init__(self, position: int, size: int) -> None:
        if not 0 <= position < size:
            raise ValueError(f"no leaf {position} in a tree of {size}")
        beside = []
        start, end = 0, size
        while end - start > 1:
            middle = start + (1 << (end - start - 1).bit_length() - 1)
            if position < middle:
                beside.append((middle, end))
                end = middle
            else:
                beside.append((start, middle))
                start = middle
        self._position, self._size = position, size
        self._path = tuple(reversed(beside))
        self._subtrees = {span: Frontier() for span in beside}
        self._ahead = sorted(beside, reverse=True)
        self._taken = 0

    def take(self, leaf: bytes) -> None:
        """The next leaf, from the first of the log on; those after the tree are passed over."""
        at = self._taken
        self._taken += 1
        if at == self._position or at >= self._size:
            return
        while at >= self._ahead[-1][1]:
            self._ahead.pop()
        self._subtrees[self._ahead[-1]].append(leaf_hash(leaf))

    def proof(self) -> tuple[bytes, ...]:
        """The hashes, once all leaves have passed."""
        if self._taken < self._size:
            raise ValueError(f"{self._taken} of {self._size} leaves have passed")
        return tuple(self._subtrees[span].root() for span in self._path)
