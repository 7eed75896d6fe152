"""Which stretches of stock and Bundles have changed: their hashes are to be made anew before two ends compare.

What is touched is written in the transaction of the change, so that no hash outlives what it is over.
"""

from typing import Any

import apsw

from qkdnode.ids import ROLES
from qkdnode.lifecycle.holdings import LEVELS, STRETCH_BITS, pack_stretch, path_of
from qkdnode.vault.records import Batch, Bundle, Chunk, Record, unpack_batch
from qkdnode.wire.messages import Stretch

OF_STRETCHES = LEVELS + 1  # their level in the table, below the buckets
CHUNK_BITS = 8 * 4096
_STALE = f"INSERT OR REPLACE INTO digests VALUES (?, {OF_STRETCHES}, ?, x'', x'')"
_NODES = "DELETE FROM digests WHERE link = ? AND level = ? AND path = ?"
_ALL = (
    f"UPDATE digests SET digest = x'', mac = x'' WHERE level = {OF_STRETCHES}",
    f"DELETE FROM digests WHERE level < {OF_STRETCHES}",
)
_Place = tuple[str, bytes, str, int]


class Stretches:
    """Gathers what the request in progress touches."""

    def __init__(self) -> None:
        self._touched: set[_Place] = set()
        self._stale: set[_Place] = set()  # known to be to be made anew already
        self._all = False

    def touch(self, row: Record) -> None:
        """A row was written or deleted."""
        if isinstance(row, Bundle):
            self._add((row.link, row.batch, row.half, row.offset_bits // STRETCH_BITS))
        elif isinstance(row, Chunk):
            self._add((row.link, row.batch, row.half, row.number * CHUNK_BITS // STRETCH_BITS))
        elif isinstance(row, Batch):
            for half in ROLES:
                for number in range(-(-row.half_bits // STRETCH_BITS)):
                    self._add((row.link, row.batch, half, number))

    def touch_all(self) -> None:
        """Rows were changed that do not say which."""
        self._all = True

    def made(self, link: str, stretch: Stretch, batch: bytes) -> None:
        """The hash of one is what it should be, until it is touched again."""
        self._stale.discard((link, batch, stretch.half, stretch.number))

    def write(self, connection: apsw.Connection) -> None:
        """Have the hashes of what was touched made anew."""
        if self._all:
            for statement in _ALL:
                connection.execute(statement)
            self._all = False
        if not self._touched:
            return
        rows, nodes = list[Any](), set[tuple[str, int, bytes]]()
        for place in self._touched:
            link, batch, half, number = place
            stretch = Stretch(unpack_batch(batch), half, number)  # type: ignore[arg-type]
            path = path_of(stretch)
            rows.append((link, path + pack_stretch(stretch)))
            nodes.update((link, level, path[:level]) for level in range(LEVELS + 1))
        connection.executemany(_STALE, rows)
        connection.executemany(_NODES, sorted(nodes))
        self._stale |= self._touched
        self._touched.clear()

    def forget(self) -> None:
        """What was gathered or written may have been rolled back."""
        self._touched.clear()
        self._stale.clear()
        self._all = False

    def _add(self, place: _Place) -> None:
        if place not in self._stale:
            self._touched.add(place)
