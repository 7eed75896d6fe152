"""Privacy amplification: input bits per CPU second, a fresh seed loaded for each iteration."""

import os
import time

from qkdnode.native.toeplitz import Toeplitz, seed_bits


def amplify(*, bits: int, ratio: float, family: str, seconds: float) -> dict[str, object]:
    """Hash `bits` bits to `ratio` of them for `seconds` of CPU time; drawing the seed is not counted."""
    bits_out = max(1, int(bits * ratio))
    seed_bytes = (seed_bits(bits, bits_out, family) + 7) // 8
    source, out = os.urandom((bits + 7) // 8), bytearray((bits_out + 7) // 8)
    hashing = Toeplitz(bits_in=bits, bits_out=bits_out, family=family)
    spent = 0.0
    rounds = 0
    while spent < seconds:
        seed = os.urandom(seed_bytes)
        begin = time.process_time()
        hashing.load_seed(seed)
        hashing.apply(source, out)
        spent += time.process_time() - begin
        rounds += 1
    mbps = bits * rounds / spent / 1e6
    return {"kernel": hashing.kernel, "bits_in": bits, "bits_out": bits_out, "family": family, "mbps": mbps}
