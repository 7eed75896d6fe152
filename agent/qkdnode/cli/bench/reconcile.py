"""Speed and disclosure of information reconciliation: both roles in one thread, exchanging their real messages."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qkdnode.native import cascade

FRAMES_PER_BLOCK = 64

Bits = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Keys:
    """The two keys of a Block, frame-major, and the public seed of its reconciliation."""

    alice: Bits
    bob: Bits
    seed: bytes


@dataclass(slots=True)
class Tally:
    """Sums over the Blocks of a run; cpu_seconds is that of both roles."""

    blocks: int = 0
    wrong_frames: int = 0
    rounds: int = 0
    alice_bits: int = 0
    bob_bits: int = 0
    wire_bits: int = 0
    cpu_seconds: float = 0.0


def draw_keys(generator: np.random.Generator, qber: float, frame_bits: int) -> Keys:
    """Random keys that differ in each bit with probability qber."""
    bits = FRAMES_PER_BLOCK * frame_bits
    alice = np.frombuffer(generator.bytes(bits // 8), dtype=np.uint8)
    errors = np.packbits(generator.random(bits, dtype=np.float32) < qber, bitorder="little")
    return Keys(alice, alice ^ errors, generator.bytes(32))


def reconcile_by_cascade(keys: Keys, qber: float, frame_bits: int, profile: str, tally: Tally) -> None:
    """Reconcile one Block by Cascade and add what it took to tally."""
    results = np.empty_like(keys.alice), np.empty_like(keys.bob)
    exponents = cascade.schedule(qber, frame_bits, profile)
    began = time.process_time()
    alice, bob = (
        cascade.Cascade(
            corrects=corrects,
            frames=FRAMES_PER_BLOCK,
            frame_bits=frame_bits,
            schedule=exponents,
            seed=keys.seed,
            key=key.data,
        )
        for corrects, key in ((False, keys.alice), (True, keys.bob))
    )
    wire_bytes = 0
    from_alice, from_bob = alice.step(None), bob.step(None)
    while from_alice is not None and from_bob is not None:
        wire_bytes += len(from_alice) + len(from_bob)
        from_alice, from_bob = alice.step(from_bob), bob.step(from_alice)
    for role, result in zip((alice, bob), results, strict=True):
        role.result_into(result.data)
        role.close()
    tally.cpu_seconds += time.process_time() - began
    tally.blocks += 1
    tally.wire_bits += 8 * wire_bytes
    tally.rounds += alice.rounds
    tally.alice_bits += alice.own_bits
    tally.bob_bits += bob.own_bits
    alice_frames, bob_frames = (result.reshape(FRAMES_PER_BLOCK, -1) for result in results)
    tally.wrong_frames += int(np.count_nonzero((alice_frames != bob_frames).any(axis=1)))


METHODS: dict[str, tuple[str, Callable[[Keys, float, int, str, Tally], None]]] = {
    "cascade": (cascade.KERNELS[0], reconcile_by_cascade),
}


def entropy(qber: float) -> float:
    """Binary entropy of a QBER in (0, 1), bits."""
    return -qber * math.log2(qber) - (1 - qber) * math.log2(1 - qber)


def reconcile(*, method: str, qber: float, frame_bits: int, profile: str, seconds: float) -> dict[str, object]:
    """Reconcile Blocks of 64 Frames for about `seconds` of CPU time and at least once.

    `mbps` is sifted key over the CPU time of both roles, `efficiency` Alice's bits over n h(qber), `frame_error_rate`
    by exact comparison, `rounds` the mean of the whole Block.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
    if not 0 < qber <= 0.25:
        raise ValueError(f"QBER {qber} is not in (0, 0.25]: without errors there is nothing to measure")
    kernel, reconcile_block = METHODS[method]
    generator = np.random.default_rng(0)
    tally = Tally()
    while tally.blocks == 0 or tally.cpu_seconds < seconds:
        reconcile_block(draw_keys(generator, qber, frame_bits), qber, frame_bits, profile, tally)
    frames = tally.blocks * FRAMES_PER_BLOCK
    return {
        "kernel": kernel,
        "method": method,
        "qber": qber,
        "frame_bits": frame_bits,
        "frames": frames,
        "mbps": frames * frame_bits / tally.cpu_seconds / 1e6,
        "efficiency": tally.alice_bits / (frames * frame_bits * entropy(qber)),
        "frame_error_rate": tally.wrong_frames / frames,
        "rounds": tally.rounds / tally.blocks,
        "wire_bits_per_parity": tally.wire_bits / tally.alice_bits,
        "alice_bits": tally.alice_bits,
        "bob_bits": tally.bob_bits,
    }
