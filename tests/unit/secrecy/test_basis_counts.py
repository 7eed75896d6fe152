"""Counts: what cannot be counted is refused, the rest adds up."""

import pytest

from qkdnode.secrecy.counts import Counts


def test_counts_add_intensity_by_intensity() -> None:
    first = Counts((10, 5), (1, 2), (4, 3), (0, 1))
    assert first + Counts((1, 2), (1, 0), (1, 1), (1, 1)) == Counts((11, 7), (2, 2), (5, 4), (1, 2))
    assert first + Counts.none(2) == first


def test_the_qber_is_over_all_intensities_and_unknown_before_the_first_detection() -> None:
    counts = Counts((60, 40), (1, 1), (30, 20), (4, 1))
    assert (counts.qber_z, counts.qber_x) == (0.02, 0.1)
    assert (Counts.none(2).qber_z, Counts.none(2).qber_x) == (None, None)


def test_counts_of_different_sources_do_not_add() -> None:
    with pytest.raises(ValueError, match="argument"):
        Counts.none(2) + Counts.none(3)


@pytest.mark.parametrize(
    ("n_z", "m_z", "n_x", "m_x", "why"),
    [
        ((), (), (), (), "at least one"),
        ((1, 1), (0, 0), (1,), (0,), "same number"),
        ((1, 1), (0, 0), (1, 1), (0,), "same number"),
        ((1, 1), (0, 2), (1, 1), (0, 0), "basis Z, intensity 1: 2 errors in 1"),
        ((1, 1), (0, 0), (1, 1), (2, 0), "basis X, intensity 0: 2 errors in 1"),
        ((-1, 1), (-1, 0), (1, 1), (0, 0), "basis Z, intensity 0"),
        ((2**63, 1), (0, 0), (1, 1), (0, 0), "basis Z, intensity 0"),
    ],
)
def test_counts_that_cannot_be_are_refused(
    n_z: tuple[int, ...], m_z: tuple[int, ...], n_x: tuple[int, ...], m_x: tuple[int, ...], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        Counts(n_z, m_z, n_x, m_x)
