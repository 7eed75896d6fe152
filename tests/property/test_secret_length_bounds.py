"""Whatever is counted, the secret length is an answer, and never more than what was detected."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdnode.secrecy.counts import MAX_COUNT, Counts
from qkdnode.secrecy.length import METHODS, method

NAMES = [name for name in METHODS if "/" in name]
SOURCES = {2: ((0.5, 0.15), (0.7, 0.3)), 3: ((0.5, 0.1, 2e-4), (0.7, 0.2, 0.1))}


def intensities_of(name: str) -> int:
    return 2 if name.startswith("rusca") else 3


@st.composite
def counts(draw: st.DrawFn, intensities: int) -> Counts:
    size = st.one_of(st.integers(0, 50), st.integers(0, 10**7), st.integers(0, MAX_COUNT))
    rows: list[tuple[int, ...]] = []
    for _ in range(2):
        detections = draw(st.tuples(*[size] * intensities))
        rows += [detections, tuple(draw(st.integers(0, n)) for n in detections)]
    return Counts(*rows)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_counts_raise_or_give_more_than_was_detected(name: str, data: st.DataObject) -> None:
    seen = data.draw(counts(intensities_of(name)))
    disclosed = data.draw(st.integers(0, 10**7))
    eps = data.draw(st.floats(1e-30, 0.999))
    result = method(name)(seen, *SOURCES[intensities_of(name)], disclosed, eps, eps)
    assert (result.bits == 0) is (result.refusal is not None)
    assert 0 <= result.bits <= max(0, sum(seen.n_z) - disclosed)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(scale=st.floats(0.2, 20), more=st.integers(1, 10**6), share=st.floats(0, 0.05))
def test_disclosure_and_errors_never_lengthen_the_key(name: str, scale: float, more: int, share: float) -> None:
    source = SOURCES[intensities_of(name)]
    mu, p = source
    n_z = tuple(int(scale * 1e8 * k * q) + 200 for k, q in zip(mu, p, strict=True))
    n_x = tuple(n // 20 for n in n_z)
    m_x = tuple(n // 100 for n in n_x)
    base = Counts(n_z, (0,) * len(mu), n_x, m_x)
    worse = Counts(n_z, (0,) * len(mu), n_x, tuple(m + int(share * n) for m, n in zip(m_x, n_x, strict=True)))
    length = method(name)
    bits = length(base, *source, 1000, 1e-10, 1e-15).bits
    assert bits > 0
    assert length(base, *source, 1000 + more, 1e-10, 1e-15).bits == max(0, bits - more)
    assert length(worse, *source, 1000, 1e-10, 1e-15).bits <= bits
    assert length(base, *source, 1000, 1e-11, 1e-15).bits < bits
    assert length(base, *source, 1000, 1e-10, 1e-16).bits < bits
