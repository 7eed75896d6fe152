"""Privacy amplification of one Batch: how long the key may be, and the exact hash that makes it."""

from collections.abc import Sequence

import msgspec

from qkdnode.distill.estimation import Tally
from qkdnode.distill.reconciliation import Block
from qkdnode.distill.settings import Settings
from qkdnode.native.secret import SecretBuffer, WorkingBuffer
from qkdnode.native.sifting import copy_bits
from qkdnode.native.toeplitz import Toeplitz, seed_bits
from qkdnode.secrecy.counts import Counts
from qkdnode.secrecy.entropy import binary_entropy
from qkdnode.secrecy.length import METHODS, SecretLength
from qkdnode.wire.messages import Parameters

GRAIN_BITS = 512  # two halves of stock in whole 256-bit words
PAD_BITS = 128
SETTLING_TAGS = 3


def secret_length(agreed: Parameters, tally: Tally, disclosed_bits: int) -> SecretLength:
    """The finite-key length under the link's method, for these counts and this much disclosed."""
    return METHODS[agreed.method](
        Counts(tally.n_z, tally.m_z, tally.n_x, tally.m_x),
        agreed.intensities,
        agreed.intensity_probabilities,
        disclosed_bits,
        agreed.eps_sec,
        agreed.eps_cor,
    )


def whole_grains(bits: int) -> int:
    """Rounded down to what two halves of stock can hold."""
    return max(0, bits // GRAIN_BITS * GRAIN_BITS)


def predicted_profit(settings: Settings, tally: Tally, disclosed_bits: int) -> int:
    """Secret bits, less tags, that the Batch would yield if it ended now; may be negative.

    What is not reconciled yet is taken to disclose as the verified Blocks did, or 1.1 h(QBER) per direction.
    """
    n_z = sum(tally.n_z)
    if not n_z:
        return 0
    if tally.reconciled_bits:
        scale = n_z / tally.reconciled_bits
        predicted = round(disclosed_bits * scale)
        m_z = tuple(min(n, round(errors * scale)) for n, errors in zip(tally.n_z, tally.m_z, strict=True))
    else:
        both = 2 if settings.agreed.booking == "both" else 1
        predicted = round(1.1 * both * n_z * binary_entropy(min(tally.qber_x, 0.5)))
        m_z = tuple(round(n * tally.qber_x) for n in tally.n_z)
    supposed = msgspec.structs.replace(tally, m_z=m_z)
    spent = (tally.windows + SETTLING_TAGS) * PAD_BITS
    return secret_length(settings.agreed, supposed, predicted).bits - spent


def bits_in(blocks: Sequence[Block]) -> int:
    """Sifted bits that enter the hash: all but those of opened Frames."""
    return sum(block.cut.bits - sum(block.frame_span(frame)[1] for frame in block.failed_frames()) for block in blocks)


class AmplifyJob(msgspec.Struct, frozen=True):
    """Hash the reconciled bits of a Batch with an announced seed."""

    blocks: tuple[Block, ...]
    bits_in: int
    bits_out: int
    family: str
    seed: bytes

    def run(self) -> SecretBuffer:
        """The secret key of the Batch, bits_out bits."""
        source = WorkingBuffer((self.bits_in + 7) // 8)
        at = 0
        for block in self.blocks:
            assert block.result is not None
            opened = set(block.failed_frames())
            for frame in range(block.cut.frames):
                if frame not in opened:
                    first, bits = block.frame_span(frame)
                    copy_bits(source, at, block.result, first, bits)
                    at += bits
        assert at == self.bits_in
        key = SecretBuffer(self.bits_out // 8)
        matrix = Toeplitz(bits_in=self.bits_in, bits_out=self.bits_out, family=self.family)
        try:
            matrix.load_seed(self.seed)
            matrix.apply(source, key)
        finally:
            matrix.close()
            source.release()
        return key


def seed_bytes(agreed: Parameters, n: int, m: int) -> int:
    """How many random bytes the seed takes."""
    return (seed_bits(n, m, agreed.family) + 7) // 8
