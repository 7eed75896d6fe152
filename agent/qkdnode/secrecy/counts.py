"""What was detected and how often it was wrong, per basis and intensity."""

from collections.abc import Iterable

import msgspec

MAX_COUNT = 2**63 - 1


class Counts(msgspec.Struct, frozen=True):
    """Detections n and errors m in the key basis Z and the test basis X, brightest intensity first.

    Failed and opened Frames stay in n_z and m_z. ValueError if an error count exceeds its detections, a count is
    negative, or the numbers of intensities differ.
    """

    n_z: tuple[int, ...]
    m_z: tuple[int, ...]
    n_x: tuple[int, ...]
    m_x: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.n_z) == len(self.m_z) == len(self.n_x) == len(self.m_x) > 0:
            raise ValueError("counts need the same number of intensities, at least one, in both bases")
        for basis, detections, errors in (("Z", self.n_z, self.m_z), ("X", self.n_x, self.m_x)):
            for k, (n, m) in enumerate(zip(detections, errors, strict=True)):
                if not 0 <= m <= n <= MAX_COUNT:
                    raise ValueError(f"basis {basis}, intensity {k}: {m} errors in {n} detections cannot be")

    def __add__(self, other: "Counts") -> "Counts":
        """Both together; ValueError if the numbers of intensities differ."""
        return Counts(
            _sum(self.n_z, other.n_z), _sum(self.m_z, other.m_z), _sum(self.n_x, other.n_x), _sum(self.m_x, other.m_x)
        )

    @classmethod
    def none(cls, intensities: int) -> "Counts":
        """Nothing detected."""
        zeros = (0,) * intensities
        return cls(zeros, zeros, zeros, zeros)

    @property
    def qber_z(self) -> float | None:
        """Fraction of errors in Z; None before the first detection."""
        return _fraction(self.m_z, self.n_z)

    @property
    def qber_x(self) -> float | None:
        """Fraction of errors in X; None before the first detection."""
        return _fraction(self.m_x, self.n_x)


def _sum(left: Iterable[int], right: Iterable[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _fraction(errors: tuple[int, ...], detections: tuple[int, ...]) -> float | None:
    total = sum(detections)
    return sum(errors) / total if total else None
