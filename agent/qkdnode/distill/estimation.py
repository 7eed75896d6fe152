"""Parameter estimation: what one Batch has counted, and whether it may go on."""

import msgspec

from qkdnode.native.sifting import Sifted

MIN_SAMPLE = 1_000


def added(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Counts per intensity, summed."""
    return tuple(x + y for x, y in zip(a, b, strict=True))


class Tally(msgspec.Struct):
    """Counts of a Batch per intensity, brightest first; m_x stays zero at Alice's end until Bob reports it."""

    n_z: tuple[int, ...]
    n_x: tuple[int, ...]
    m_x: tuple[int, ...]
    m_z: tuple[int, ...]
    reconciled_bits: int = 0  # sifted bits in verified Blocks
    windows: int = 0

    @classmethod
    def of(cls, intensities: int) -> "Tally":
        """Nothing counted yet."""
        zero = (0,) * intensities
        return cls(zero, zero, zero, zero)

    def add_window(self, sifted: Sifted) -> None:
        """Count one agreed Window."""
        self.n_z, self.n_x, self.m_x = (
            added(self.n_z, sifted.n_z),
            added(self.n_x, sifted.n_x),
            added(self.m_x, sifted.m_x),
        )
        self.windows += 1

    def add_block(self, bits: int, errors: tuple[int, ...]) -> None:
        """Count one verified Block."""
        self.m_z = added(self.m_z, errors)
        self.reconciled_bits += bits

    @property
    def qber_x(self) -> float:
        """Error rate in X; 0.5 while nothing was sampled."""
        return sum(self.m_x) / sum(self.n_x) if sum(self.n_x) else 0.5

    @property
    def qber_z(self) -> float:
        """Error rate in Z from corrected errors; that of X while no Block is verified."""
        return sum(self.m_z) / self.reconciled_bits if self.reconciled_bits else self.qber_x

    def above(self, limit: float) -> str | None:
        """Which basis shows more errors than the limit, with enough of a sample to say so; None if neither."""
        samples = {"X": (sum(self.m_x), sum(self.n_x)), "Z": (sum(self.m_z), self.reconciled_bits)}
        for basis, (errors, bits) in samples.items():
            if bits >= MIN_SAMPLE and errors > limit * bits:
                return f"QBER {errors / bits:.4f} in basis {basis} over {bits} bits is above the limit {limit}"
        return None
