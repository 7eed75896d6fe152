"""Finite-key secret length of one Batch of a decoy-state BB84 link, by named and versioned methods.

Z is the key basis and X the test basis; k runs over the intensities mu, brightest first, sent with probability p_k.

    tau_n       = sum_k p_k e^-k k^n / n!              a pulse holds n photons
    s_B0, s_B1    lower bounds on detections of vacuum and of single photons in basis B
    v_X1          upper bound on errors of single photons in X
    phi_Z      <= v_X1 / s_X1 + gamma(eps_sec, v_X1 / s_X1, s_Z1, s_X1)
    l           = floor( s_Z0 + s_Z1 (1 - h(phi_Z)) - lambda_EC - 6 log2(K / eps_sec) - log2(2 / eps_cor) )

The methods differ in the bounds and in K. Sources: Rusca et al., Appl. Phys. Lett. 112, 171104 (2018), appendix, one
decoy, K = 19; Lim et al., Phys. Rev. A 89, 022307 (2014), two decoys, K = 21, there with the letters X and Z swapped.

The formulas return plausible numbers where their bounds mean nothing, so each bound is guarded: what fails a guard has
length 0 and a refusal that says why.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Protocol

import msgspec

from qkdnode.errors import ConfigError
from qkdnode.secrecy.counts import Counts
from qkdnode.secrecy.entropy import binary_entropy

MAX_INTENSITY = 10.0  # photons in a pulse: beyond it no decoy-state source is described
PROBABILITY_TOLERANCE = 1e-9


class SecretLength(msgspec.Struct, frozen=True, kw_only=True):
    """How many secret bits a Batch gives, by which method, and the bounds that it rests on.

    `bits` is 0 exactly if there is a `refusal`. Bounds that were not reached are None.
    """

    bits: int
    method: str
    eps_sec: float
    eps_cor: float
    phase_error: float | None = None
    s_z0: float | None = None
    s_z1: float | None = None
    s_x1: float | None = None
    v_x1: float | None = None
    refusal: str | None = None


class Method(Protocol):
    """A way to compute the secret length. `disclosed_bits` is lambda_EC: all that the ledger books.

    ValueError for parameters that describe no source or no security; never for any counts.
    """

    def __call__(
        self,
        counts: Counts,
        intensities: Sequence[float],
        probabilities: Sequence[float],
        disclosed_bits: int,
        eps_sec: float,
        eps_cor: float,
    ) -> SecretLength: ...


class _Bounds(msgspec.Struct, frozen=True):
    s_z0: float
    s_z1: float
    s_x1: float
    v_x1: float


class _Source(msgspec.Struct, frozen=True):
    """The transmitter's intensities, and what both papers derive from them."""

    mu: tuple[float, ...]
    p: tuple[float, ...]

    def tau(self, n: int) -> float:
        return sum(p * math.exp(-k) * k**n / math.factorial(n) for k, p in zip(self.mu, self.p, strict=True))

    def scaled(self, i: int, count: float) -> float:
        """(e^k / p_k) count, for the i-th intensity k."""
        return math.exp(self.mu[i]) / self.p[i] * count


def rusca2018(
    counts: Counts,
    intensities: Sequence[float],
    probabilities: Sequence[float],
    disclosed_bits: int,
    eps_sec: float,
    eps_cor: float,
) -> SecretLength:
    """One decoy: mu1 > mu2 > 0. The scaling e^k/p_k that is missing in the printed equation A18 is applied."""
    source = _source(counts, intensities, probabilities, 2)
    if source.mu[1] <= 0.0:
        raise ValueError("rusca2018 needs a decoy intensity above 0")
    _check_security(disclosed_bits, eps_sec, eps_cor)
    return _length("rusca2018/1", 19, counts, disclosed_bits, eps_sec, eps_cor, lambda: _rusca(counts, source, eps_sec))


def _rusca(counts: Counts, source: _Source, eps_sec: float) -> _Bounds:
    (mu1, mu2), tau0, tau1 = source.mu, source.tau(0), source.tau(1)

    def delta(total: int) -> float:  # e1 = e2 = eps_sec / 19
        return math.sqrt(total * math.log(19 / eps_sec) / 2)

    def upper(n: tuple[int, ...], i: int) -> float:
        return source.scaled(i, n[i] + delta(sum(n)))

    def lower(n: tuple[int, ...], i: int) -> float:
        return source.scaled(i, n[i] - delta(sum(n)))

    def vacuum(n: tuple[int, ...]) -> float:
        return max(0.0, tau0 / (mu1 - mu2) * (mu1 * lower(n, 1) - mu2 * upper(n, 0)))

    def most_vacuum(n: tuple[int, ...], m: tuple[int, ...]) -> float:
        return min(2 * (tau0 * upper(m, i) + delta(sum(n))) for i in (0, 1))

    def single(n: tuple[int, ...], m: tuple[int, ...]) -> float:
        rest = mu2**2 / mu1**2 * upper(n, 0) + (mu1**2 - mu2**2) / mu1**2 * most_vacuum(n, m) / tau0
        return tau1 * mu1 / (mu2 * (mu1 - mu2)) * (lower(n, 1) - rest)

    return _Bounds(
        s_z0=vacuum(counts.n_z),
        s_z1=single(counts.n_z, counts.m_z),
        s_x1=single(counts.n_x, counts.m_x),
        v_x1=tau1 / (mu1 - mu2) * (upper(counts.m_x, 0) - lower(counts.m_x, 1)),
    )


def lim2014(
    counts: Counts,
    intensities: Sequence[float],
    probabilities: Sequence[float],
    disclosed_bits: int,
    eps_sec: float,
    eps_cor: float,
    clamp: bool = True,
) -> SecretLength:
    """Two decoys: mu1 > mu2 + mu3, mu2 > mu3 >= 0.

    `clamp` raises negative n^- and m^- to 0. That is sound, since an expectation is never negative, and worth 35-40 %
    of the key; without it the method is the paper's to the letter (but for s_B0, which no method lets fall below 0) and
    is recorded as lim2014-literal/1.
    """
    source = _source(counts, intensities, probabilities, 3)
    if source.mu[0] <= source.mu[1] + source.mu[2]:
        raise ValueError("lim2014 needs a first intensity above the sum of the other two")
    _check_security(disclosed_bits, eps_sec, eps_cor)
    name = "lim2014/1" if clamp else "lim2014-literal/1"
    return _length(name, 21, counts, disclosed_bits, eps_sec, eps_cor, lambda: _lim(counts, source, eps_sec, clamp))


def _lim(counts: Counts, source: _Source, eps_sec: float, clamp: bool) -> _Bounds:
    (mu1, mu2, mu3), tau0, tau1 = source.mu, source.tau(0), source.tau(1)
    least = 0.0 if clamp else -math.inf

    def deviation(n: tuple[int, ...]) -> float:
        return math.sqrt(sum(n) / 2 * math.log(21 / eps_sec))

    def upper(n: tuple[int, ...], i: int) -> float:
        return source.scaled(i, n[i] + deviation(n))

    def lower(n: tuple[int, ...], i: int) -> float:
        return max(least, source.scaled(i, n[i] - deviation(n)))

    def vacuum(n: tuple[int, ...]) -> float:
        return max(0.0, tau0 * (mu2 * lower(n, 2) - mu3 * upper(n, 1)) / (mu2 - mu3))

    def single(n: tuple[int, ...]) -> float:
        rest = (mu2**2 - mu3**2) / mu1**2 * (upper(n, 0) - vacuum(n) / tau0)
        return tau1 * mu1 * (lower(n, 1) - upper(n, 2) - rest) / (mu1 * (mu2 - mu3) - mu2**2 + mu3**2)

    return _Bounds(
        s_z0=vacuum(counts.n_z),
        s_z1=single(counts.n_z),
        s_x1=single(counts.n_x),
        v_x1=tau1 * (upper(counts.m_x, 1) - lower(counts.m_x, 2)) / (mu2 - mu3),
    )


METHODS: dict[str, Method] = {
    "rusca2018/1": rusca2018,
    "lim2014/1": lim2014,
    "lim2014-literal/1": partial(lim2014, clamp=False),
    "rusca2018": rusca2018,
    "lim2014": lim2014,
}


def method(name: str) -> Method:
    """The method of a name; ConfigError names the choices."""
    try:
        return METHODS[name]
    except KeyError:
        raise ConfigError(f"no secret-length method {name!r}; choose one of {', '.join(sorted(METHODS))}") from None


def _gamma(a: float, b: float, c: float, d: float, constant: int) -> float:
    """The sampling deviation of both papers; NaN where it is not defined."""
    spread, variance = (c + d) / (c * d), (1 - b) * b
    exponent = math.log2(spread / variance * constant**2 / a**2)
    return math.sqrt(spread * variance / math.log(2) * exponent) if exponent > 0 else math.nan


def _length(
    name: str,
    constant: int,
    counts: Counts,
    disclosed_bits: int,
    eps_sec: float,
    eps_cor: float,
    bounds_of: Callable[[], _Bounds],
) -> SecretLength:
    result = SecretLength(bits=0, method=name, eps_sec=eps_sec, eps_cor=eps_cor)
    n_z, n_x = sum(counts.n_z), sum(counts.n_x)

    def refuse(why: str) -> SecretLength:
        return msgspec.structs.replace(result, refusal=why)

    for what, total in (("detections in Z", n_z), ("detections in X", n_x), ("errors in X", sum(counts.m_x))):
        if total <= 0:  # at no error gamma vanishes, and a sample of any size would prove a perfect channel
            return refuse(f"no {what}: nothing can be bounded")

    bounds = bounds_of()
    s_z0, s_z1, s_x1, v_x1 = bounds.s_z0, bounds.s_z1, bounds.s_x1, bounds.v_x1
    result = msgspec.structs.replace(result, s_z0=s_z0, s_z1=s_z1, s_x1=s_x1, v_x1=v_x1)
    if not all(map(math.isfinite, (s_z0, s_z1, s_x1, v_x1))):
        return refuse("a bound is not a finite number")
    for basis, single in (("Z", s_z1), ("X", s_x1)):
        if single <= 0.0:
            return refuse(
                f"no single photon in {basis} is certain (bound {single:.0f}): too few detections or too many errors"
            )
    if s_z0 + s_z1 > n_z or s_x1 > n_x:
        return refuse("the counts contradict the intensities: more photons are certain than were detected")
    ratio = v_x1 / s_x1
    if not 0.0 < ratio < 0.5:
        return refuse(f"the error rate of single photons in X is bounded by {ratio:.3f} only, not within 0 and 1/2")
    phase_error = ratio + _gamma(eps_sec, ratio, s_z1, s_x1, constant)
    result = msgspec.structs.replace(result, phase_error=phase_error)
    if not 0.0 < phase_error < 0.5:
        return refuse(f"the phase error is bounded by {phase_error:.3f} only, not within 0 and 1/2")

    secret = s_z0 + s_z1 * (1.0 - binary_entropy(phase_error))
    spent = disclosed_bits + 6 * math.log2(constant / eps_sec) + math.log2(2 / eps_cor)
    bits = math.floor(secret - spent)
    if bits <= 0:
        return refuse(f"{secret:.0f} secret bits, but {spent:.0f} are spent on correction, verification and security")
    return msgspec.structs.replace(result, bits=bits)


def _source(counts: Counts, intensities: Sequence[float], probabilities: Sequence[float], number: int) -> _Source:
    mu, p = tuple(intensities), tuple(probabilities)
    if not len(mu) == len(p) == len(counts.n_z) == number:
        raise ValueError(f"{number} intensities are needed, with as many probabilities and counts")
    if not all(a > b for a, b in pairwise(mu)) or not 0.0 <= mu[-1] < mu[0] <= MAX_INTENSITY:
        raise ValueError(f"intensities must fall and lie between 0 and {MAX_INTENSITY:g} photons, not {mu}")
    if not all(0.0 < x < 1.0 for x in p) or abs(sum(p) - 1.0) > PROBABILITY_TOLERANCE:
        raise ValueError(f"probabilities of the intensities must lie between 0 and 1 and sum to 1, not {p}")
    return _Source(mu, p)


def _check_security(disclosed_bits: int, eps_sec: float, eps_cor: float) -> None:
    if not (0.0 < eps_sec < 1.0 and 0.0 < eps_cor < 1.0):
        raise ValueError(f"eps_sec and eps_cor must lie between 0 and 1, not {eps_sec} and {eps_cor}")
    if not disclosed_bits >= 0:
        raise ValueError(f"{disclosed_bits} bits cannot have been disclosed")
