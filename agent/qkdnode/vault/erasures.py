"""Wrapped data keys that were deleted, until the file is read again for what may be left of them.

They are kept in memory alone. So that a search through the file costs no more than some nanoseconds for each byte, at
most `MOST` are kept between two searches; the others are counted.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

MOST = 4096
FRAGMENT_BYTES = 16
FRAGMENTS_AT = (0, 22, 44)  # in the 60 bytes of a wrapped key: a cell that is cut in two keeps two of them whole
WRAPPED_BYTES = 60
OVERLAP_BYTES = FRAGMENT_BYTES - 1


class Erased(msgspec.Struct, frozen=True):
    """What was deleted by the leaves from `first` to `last`: all of it counted, some of it kept to search for."""

    first: int
    last: int
    count: int
    wrapped: tuple[bytes, ...]


class Erasures:
    """Collects what the request in progress, then its group, deletes; `settled` has what is durable."""

    def __init__(self) -> None:
        self._request: list[bytes] = []
        self._group: list[tuple[int, int, list[bytes]]] = []
        self._first: int | None = None
        self._last = -1
        self._count = 0
        self._kept: list[bytes] = []
        self.wrapped_keks: dict[int, bytes] = {}  # deleted key-encryption keys, as they stood in the file

    @property
    def waiting(self) -> int:
        """Deleted, durably, and not searched for."""
        return self._count

    def note(self, wrapped: Any) -> None:
        """The request in progress deletes a wrapped data key."""
        if isinstance(wrapped, bytes) and len(wrapped) == WRAPPED_BYTES:
            self._request.append(wrapped)

    def end_request(self, first: int, last: int) -> None:
        """It stands; its leaves are at the positions from first to last."""
        if self._request:
            self._group.append((first, last, self._request))
            self._request = []

    def undo_request(self) -> None:
        """It was rolled back."""
        self._request = []

    def undo_group(self) -> None:
        """So was its whole group."""
        self._request, self._group = [], []

    def settle(self) -> None:
        """The group is committed."""
        for first, last, wrapped in self._group:
            self._first = first if self._first is None else self._first
            self._last = max(self._last, last)
            self._count += len(wrapped)
            self._kept += wrapped[: max(0, MOST - len(self._kept))]
        self._group = []

    def take(self) -> Erased | None:
        """What is to be searched for, once the write-ahead log is empty."""
        if self._first is None:
            return None
        taken = Erased(self._first, self._last, self._count, tuple(self._kept))
        self._first, self._last, self._count, self._kept = None, -1, 0, []
        return taken


class Search:
    """Looks for pieces of 16 bytes in pages of a file."""

    def __init__(self, fragments: Iterable[bytes]) -> None:
        self._fragments = frozenset(fragments)
        pairs = np.array([np.frombuffer(piece, "<u2")[:3] for piece in self._fragments]).reshape(-1, 3)
        self._tables = np.zeros((3, 1 << 16), bool)
        for table, column in zip(self._tables, pairs.T, strict=True):
            table[column] = True

    def found_in(self, page: bytes) -> int:
        """How many places of a page hold one of them."""
        data = np.frombuffer(page, np.uint8)
        found = 0
        for odd in (0, 1):
            words = data[odd : odd + (len(data) - odd) // 2 * 2].view("<u2")
            places = np.flatnonzero(self._tables[0][words[: max(0, len(words) - 2)]])
            for ahead in (1, 2):
                places = places[self._tables[ahead][words[places + ahead]]]
            found += sum(page[at : at + FRAGMENT_BYTES] in self._fragments for at in (2 * places + odd).tolist())
        return found


def fragments(wrapped: Iterable[bytes]) -> list[bytes]:
    """The pieces by which what is left of wrapped keys is found."""
    return [blob[at : at + FRAGMENT_BYTES] for blob in wrapped for at in FRAGMENTS_AT]
