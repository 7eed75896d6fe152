"""How fast an emulated device streams, out of its bulk endpoint, framing and CRC included."""

import time

from qkdnode.config import EmulatedEntropy, EmulatedOptics
from qkdnode.device.emulated import EmulatedDevice, emulated_qrng, emulated_rx, emulated_tx

READ_BYTES = 256 * 1024
STEP_NS = 10_000_000
START_STREAM = (0x40, 0x08, 1, 0, b"")


def emulation(*, personality: str, seconds: float) -> dict[str, object]:
    """Stream a `tx`, `rx` or `qrng` at the default parameters for that many CPU seconds of one core.

    Figures are per CPU second: 10^6 slots (None for a QRNG) and 10^6 bytes of packets.
    """
    device, slot_rate_hz = _device(personality)
    core = device.core
    buffer = bytearray(READ_BYTES)
    core.control_out(0, *START_STREAM)
    now_ns = received = 0
    began = time.process_time()
    while (spent := time.process_time() - began) < seconds:
        now_ns += STEP_NS
        while count := core.bulk_in_into(now_ns, buffer)[0]:
            received += count
    slots = slot_rate_hz * now_ns / 1e9
    return {
        "personality": personality,
        "kernel": core.kernel,
        "mslots_per_s": slots / spent / 1e6 if slots else None,
        "mbytes_per_s": received / spent / 1e6,
    }


def _device(personality: str) -> tuple[EmulatedDevice, int]:
    optics = EmulatedOptics(seed=1, epoch_ns=0)
    match personality:
        case "tx":
            return emulated_tx("TX", optics), optics.slot_rate_hz
        case "rx":
            return emulated_rx("RX", optics), optics.slot_rate_hz
        case "qrng":
            return emulated_qrng("QRNG", EmulatedEntropy(seed=1, epoch_ns=0, bytes_per_second=100_000_000)), 0
    raise ValueError(f"no personality {personality!r}: tx, rx or qrng")
