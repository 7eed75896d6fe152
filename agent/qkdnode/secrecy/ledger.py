"""The ledger of one Batch: every bit about its key that crossed the channel, and what of it is subtracted."""

import math

import msgspec

from qkdnode.errors import ConfigError, LocalProtocolError
from qkdnode.secrecy.entropy import binary_entropy

# Which totals a booking subtracts. A named proof may leave some out; its conditions belong beside its name.
BOOKINGS: dict[str, tuple[str, ...]] = {
    "both": ("alice_bits", "bob_bits", "opened_bits", "tag_bits", "outcome_bits"),
}


class LedgerTotals(msgspec.Struct, frozen=True):
    """Totals of a closed ledger, in bits: both ends must have the same. The fields of the wire's Disclosure."""

    alice_bits: int
    bob_bits: int
    opened_bits: int
    tag_bits: int
    outcome_bits: int

    def disclosed(self, booking: str) -> int:
        """lambda_EC: what this booking subtracts from the secret length."""
        return sum(getattr(self, field) for field in booked_fields(booking))


class BlockDisclosure(msgspec.Struct):
    """What one Block disclosed, in bits."""

    alice_bits: int = 0  # parities sent by Alice, without those of opened Frames
    bob_bits: int = 0  # parities sent by Bob, with those of opened Frames
    opened_bits: int = 0  # bits of failed Frames that Alice sent
    replaced_bits: int = 0  # Alice's parities of opened Frames, which their bits stand for
    tag_bits: int = 0
    outcome_bits: int = 0
    retries: int = 0


class Ledger:
    """What one Batch disclosed, Block by Block. It must be closed before a length can be drawn from it.

    The sample in the test basis is counted apart: its bits were never part of the key.
    """

    __slots__ = ("_blocks", "_closed", "_sample_bits")

    def __init__(self) -> None:
        self._blocks: dict[int, BlockDisclosure] = {}
        self._sample_bits = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether all is booked."""
        return self._closed

    @property
    def sample_bits(self) -> int:
        """Bits of the test basis that were compared in public."""
        return self._sample_bits

    def block(self, block: int) -> BlockDisclosure:
        """A copy of what a Block has disclosed so far; all zero if nothing."""
        return msgspec.structs.replace(self._blocks.get(block, BlockDisclosure()))

    @property
    def blocks(self) -> tuple[int, ...]:
        """The Blocks that have disclosed anything, in order."""
        return tuple(sorted(self._blocks))

    def add_parities(self, block: int, *, alice_bits: int, bob_bits: int) -> None:
        """Reconciliation parities that the two ends sent."""
        row = self._open_row(block, alice_bits, bob_bits)
        row.alice_bits += alice_bits
        row.bob_bits += bob_bits

    def add_tag(self, block: int, bits: int) -> None:
        """A verification tag of a Block, or the tags of its Frames."""
        self._open_row(block, bits).tag_bits += bits

    def add_outcome(self, block: int, bits: int) -> None:
        """The answer to a tag: whether it matched, or which Frames failed."""
        self._open_row(block, bits).outcome_bits += bits

    def add_retry(self, block: int) -> None:
        """A Block is reconciled or verified again: a statistic, what it sends is booked as it is sent."""
        self._open_row(block).retries += 1

    def add_sample(self, bits: int) -> None:
        """Bits of the test basis compared in public."""
        self._check(bits)
        self._sample_bits += bits

    def open_frame(self, block: int, *, frame_bits: int, alice_bits: int) -> None:
        """Alice sent the bits of a failed Frame: they are booked in place of `alice_bits`, her parities of it.

        Bob's parities of it stay. LocalProtocolError if more parities are taken back than the Block has booked.
        """
        row = self._open_row(block, frame_bits, alice_bits)
        if alice_bits > row.alice_bits:
            raise LocalProtocolError(
                f"Block {block}: {alice_bits} parities of an opened Frame, but only {row.alice_bits} are booked"
            )
        row.alice_bits -= alice_bits
        row.replaced_bits += alice_bits
        row.opened_bits += frame_bits

    def close(self) -> LedgerTotals:
        """Book nothing more; the totals. Closing again changes nothing."""
        self._closed = True
        return self.totals()

    def totals(self) -> LedgerTotals:
        """The totals of the closed ledger. LocalProtocolError while it is open."""
        if not self._closed:
            raise LocalProtocolError("the ledger is still open: no length may be drawn from it before it is closed")
        return LedgerTotals(**{field: self._total(field) for field in LedgerTotals.__struct_fields__})

    def disclosed(self, booking: str) -> int:
        """What the booking subtracts, in bits. LocalProtocolError while the ledger is open."""
        return self.totals().disclosed(booking)

    def efficiency(self, bits: int, qber: float) -> float:
        """f: Alice's parities, each query once, over the Shannon limit of `bits` reconciled bits at this QBER.

        The bits of opened Frames belong to `bits`. Infinite where nothing had to be corrected.
        """
        limit = bits * binary_entropy(qber)
        return (self._total("alice_bits") + self._total("replaced_bits")) / limit if limit else math.inf

    def _total(self, field: str) -> int:
        return sum(getattr(row, field) for row in self._blocks.values())

    def _open_row(self, block: int, *amounts: int) -> BlockDisclosure:
        self._check(*amounts)
        return self._blocks.setdefault(block, BlockDisclosure())

    def _check(self, *amounts: int) -> None:
        if self._closed:
            raise LocalProtocolError("the ledger is closed: nothing may be disclosed about this Batch any more")
        if any(amount < 0 for amount in amounts):
            raise LocalProtocolError(f"a disclosure cannot be negative: {amounts}")


def booked_fields(booking: str) -> tuple[str, ...]:
    """The totals that a booking subtracts; ConfigError names the choices."""
    try:
        return BOOKINGS[booking]
    except KeyError:
        raise ConfigError(f"no booking {booking!r}; choose one of {', '.join(sorted(BOOKINGS))}") from None
