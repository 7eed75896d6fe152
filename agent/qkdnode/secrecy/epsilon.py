"""Failure probabilities and how they add up.

Tags are values of a polynomial hash over GF(2^128) (POLYVAL, RFC 8452) under a key drawn after the data: two different
inputs of d blocks agree in t bits of it with probability at most d / 2^t, because d values of the key at most make
each of the 2^(128 - t) differences.
"""

from collections.abc import Iterable

import msgspec

BLOCK_BITS = 128
TAG_BITS = 128
HEADER_BLOCKS = 2  # sender, receiver, direction, session, counter
LENGTH_BLOCKS = 1


class Epsilons(msgspec.Struct, frozen=True):
    """How far keys may be from perfect: secret, equal at both ends, agreed with the right peer."""

    sec: float = 0.0
    cor: float = 0.0
    auth: float = 0.0

    def __add__(self, other: "Epsilons") -> "Epsilons":
        """Both together: failure probabilities add (union bound, universal composability)."""
        return Epsilons(self.sec + other.sec, self.cor + other.cor, self.auth + other.auth)

    @property
    def total(self) -> float:
        """The distance from ideal keys, all causes together."""
        return min(1.0, self.sec + self.cor + self.auth)


def verification_error(bits: int, tag_bits: int = TAG_BITS) -> float:
    """That a Block (or a Frame, with its short tag) of `bits` bits passes verification though the ends differ."""
    if bits < 0 or not 1 <= tag_bits <= TAG_BITS:
        raise ValueError(f"no tag of {tag_bits} bits over {bits} bits is used here")
    return _hash_error(-(-bits // BLOCK_BITS) + LENGTH_BLOCKS, tag_bits)


def forgery_error(message_bytes: int) -> float:
    """That one authentication tag over so many bytes is forged."""
    if message_bytes < 0:
        raise ValueError(f"no message has {message_bytes} bytes")
    return _hash_error(HEADER_BLOCKS - (-8 * message_bytes // BLOCK_BITS) + LENGTH_BLOCKS, TAG_BITS)


def batch_epsilons(
    eps_sec: float, block_bits: Iterable[int], tagged_bytes: Iterable[int], batches_per_seed: int = 1
) -> Epsilons:
    """The epsilons of one Batch: sizes of its verified Blocks and of its tagged messages and transcripts.

    A seed that amplifies several Batches books `eps_sec` once for each of them.
    """
    if not 0.0 < eps_sec < 1.0 or batches_per_seed < 1:
        raise ValueError(f"eps_sec {eps_sec} for {batches_per_seed} Batches under one seed makes no sense")
    return Epsilons(
        sec=min(1.0, eps_sec * batches_per_seed),
        cor=min(1.0, sum(map(verification_error, block_bits))),
        auth=min(1.0, sum(map(forgery_error, tagged_bytes))),
    )


def _hash_error(blocks: int, tag_bits: int) -> float:
    return min(1.0, blocks / 2.0**tag_bits)
