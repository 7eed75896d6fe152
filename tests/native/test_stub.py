"""The emulated devices' C core: the link they show agrees with closed forms, and is one function of seed and slot."""

import hashlib
import itertools
import math
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from qkdnode.config import EmulatedEntropy, EmulatedOptics
from qkdnode.device.emulated import EmulatedDevice, emulated_qrng, emulated_rx, emulated_tx
from qkdnode.errors import KernelError
from qkdnode.native.stub import Device, Optics, kernels

FIRMWARE = Path(__file__).resolve().parents[2] / "firmware_stubs"
EPOCH_NS = 1_000_000_000_000
TAGS, CHOICES, RAW, SYNC, GAP = 1, 2, 3, 5, 6
SLOT_NS = 50
INTERVAL = 200_000  # slots between sync pulses at 20 Mslot/s
SECOND = 1_000_000_000
OPTICS = EmulatedOptics(seed=11, epoch_ns=EPOCH_NS, dead_time_ns=0)


def with_(optics: EmulatedOptics, **changes: Any) -> EmulatedOptics:
    return msgspec.structs.replace(optics, **changes)


def start(device: EmulatedDevice, now_ns: int) -> None:
    device.core.control_out(now_ns, 0x40, 0x08, 1, 0, b"")


def read(device: EmulatedDevice, now_ns: int) -> bytes:
    return b"".join(iter(lambda: device.core.bulk_in(now_ns, 1 << 20), b""))


def stream(device: EmulatedDevice, from_ns: int, to_ns: int) -> bytes:
    """All bytes of a stream started at one time and read at another, both since the epoch."""
    start(device, EPOCH_NS + from_ns)
    return read(device, EPOCH_NS + to_ns)


@dataclass
class Packet:
    kind: int
    session: int
    count: int
    sequence: int
    base: int
    records: bytes

    @property
    def words(self) -> list[int]:
        return list(struct.unpack(f"<{self.count}Q", self.records[: 8 * self.count]))


def packets(data: bytes) -> Iterator[Packet]:
    assert len(data) % 512 == 0
    for at in range(0, len(data), 512):
        magic, version, kind, session, count, sequence, base = struct.unpack_from("<HBBHHIQ", data, at)
        assert (magic, version) == (0x4B51, 1)
        assert struct.unpack_from("<I", data, at + 508)[0] == zlib.crc32(data[at : at + 508])
        assert not any(data[at + 20 + 8 * count : at + 508])
        yield Packet(kind, session, count, sequence, base, data[at + 20 : at + 508])


def of(kind: int, data: bytes) -> NDArray[np.uint8]:
    rows = np.frombuffer(data, np.uint8).reshape(-1, 512)
    return rows[rows[:, 3] == kind]


def choices(data: bytes) -> tuple[int, NDArray[np.uint8]]:
    """First slot and the nibbles of contiguous choice packets."""
    rows = of(CHOICES, data)
    bases = rows[:, 12:20].copy().view("<u8").ravel()
    assert (np.diff(bases) == 976).all()
    content = rows[:, 20:508]
    return int(bases[0]), np.stack([content & 15, content >> 4], axis=-1).ravel()


def tags(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Slots and patterns, from tags whose times fit 54 bits."""
    rows = of(TAGS, data)
    count = rows[:, 6].astype(np.int64)
    words = rows[:, 20:508].copy().view("<u8")[np.arange(61) < count[:, None]]
    times = words >> np.uint64(10)
    assert ((times - np.uint64(6400)) % np.uint64(12800) == 0).all()
    return (times // np.uint64(12800)).astype(np.int64), (words & np.uint64(15)).astype(np.uint8)


def link(optics: EmulatedOptics, seconds: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Per slot from 0 on: the transmitter's nibble and the receiver's pattern."""
    elapsed = int(seconds * SECOND)
    first, nibbles = choices(stream(emulated_tx("TX", optics), 0, elapsed))
    assert first == 0
    slots, patterns = tags(stream(emulated_rx("RX", optics), 0, elapsed))
    seen = np.zeros(len(nibbles), np.uint8)
    inside = slots < len(nibbles)
    seen[slots[inside]] = patterns[inside]
    return nibbles, seen


def close(count: int, trials: int, probability: float) -> bool:
    """Within five standard deviations of a binomial, with room for the tails of rare events."""
    return abs(count - trials * probability) <= 5 * math.sqrt(trials * probability * (1 - probability)) + 3


def pattern_law(optics: EmulatedOptics, mu: float, basis: int, bit: int) -> NDArray[np.float64]:
    """Probabilities of the 16 click patterns of a slot, written down from the physics alone."""
    lit = 1 - math.exp(-(10 ** (-optics.loss_db / 10)) * mu)
    eve_z = optics.p_z if optics.eavesdrop_p_z is None else optics.eavesdrop_p_z
    photons: list[tuple[float, int, int]] = [(1 - optics.eavesdrop, basis, bit)]
    for eve, chance in enumerate((eve_z, 1 - eve_z)):
        for value in (0, 1):
            odds = float(value == bit) if eve == basis else 0.5
            photons.append((optics.eavesdrop * chance * odds, eve, value))
    light = np.zeros(16)
    light[0] = 1 - lit
    for share, sent, value in photons:
        for measured, chance in enumerate((optics.receiver_p_z, 1 - optics.receiver_p_z)):
            for click in (0, 1):
                right = 1 - optics.misalignment if click == value else optics.misalignment
                light[1 << (2 * measured + click)] += lit * share * chance * (right if measured == sent else 0.5)
    law = np.zeros(16)
    for a, b in itertools.product(range(16), range(16)):
        dark = optics.dark_probability ** b.bit_count() * (1 - optics.dark_probability) ** (4 - b.bit_count())
        law[a | b] += light[a] * dark
    return law


WORLDS = {
    "default": OPTICS,
    "two decoys": with_(OPTICS, intensities=(0.7, 0.2, 0.01), intensity_probabilities=(0.5, 0.3, 0.2), p_z=0.5),
    "bright and dark": with_(OPTICS, seed=12, loss_db=0.0, dark_probability=0.03, misalignment=0.1, receiver_p_z=0.4),
    "only dark": with_(OPTICS, loss_db=60.0, dark_probability=1e-3),
    "some eavesdropping": with_(OPTICS, seed=13, eavesdrop=0.3, eavesdrop_p_z=0.5, dark_probability=1e-3),
    "all eavesdropped": with_(OPTICS, seed=14, eavesdrop=1.0),
    "extremes": with_(OPTICS, p_z=1.0, receiver_p_z=0.0, misalignment=0.0, dark_probability=0.0),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_every_click_pattern_is_as_frequent_as_the_physics_says(world: EmulatedOptics) -> None:
    nibbles, seen = link(world, 0.15)
    for k, basis, bit in itertools.product(range(len(world.intensities)), (0, 1), (0, 1)):
        here = seen[nibbles == (basis | bit << 1 | k << 2)]
        law = pattern_law(world, world.intensities[k], basis, bit)
        counts = np.bincount(here, minlength=16)
        for pattern in range(16):
            assert close(int(counts[pattern]), len(here), law[pattern]), (k, basis, bit, pattern)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_the_transmitter_chooses_with_the_configured_probabilities(world: EmulatedOptics) -> None:
    _, nibbles = choices(stream(emulated_tx("TX", world), 0, SECOND // 10))
    counts = np.bincount(nibbles, minlength=16)
    for nibble in range(16):
        basis, k = nibble & 1, nibble >> 2
        share = world.intensity_probabilities[k] if k < len(world.intensities) else 0.0
        assert close(int(counts[nibble]), len(nibbles), share * (1 - world.p_z if basis else world.p_z) / 2)


def test_gain_and_qber_follow_their_closed_forms_per_intensity_and_basis() -> None:
    nibbles, seen = link(OPTICS, 0.5)
    transmittance = 10 ** (-OPTICS.loss_db / 10)
    for k, mu in enumerate(OPTICS.intensities):
        of_k = seen[nibbles >> 2 == k]
        gain = 1 - (1 - OPTICS.dark_probability) ** 4 * math.exp(-transmittance * mu)
        assert close(int(np.count_nonzero(of_k)), len(of_k), gain)
        for basis in (0, 1):
            both = (nibbles >> 2 == k) & (nibbles & 1 == basis)
            alice, bob = nibbles[both] >> 1 & 1, seen[both] >> (2 * basis)
            sifted = (bob == 1) | (bob == 2)
            errors = np.count_nonzero(bob[sifted] >> 1 != alice[sifted])
            assert close(int(errors), int(np.count_nonzero(sifted)), OPTICS.misalignment)


def test_an_eavesdropper_shows_in_the_qber_and_not_in_the_gain() -> None:
    quiet_nibbles, quiet = link(OPTICS, 0.2)
    nibbles, seen = link(with_(OPTICS, eavesdrop=1.0), 0.2)
    assert np.array_equal(nibbles, quiet_nibbles)
    assert np.array_equal(seen != 0, quiet != 0)
    for basis, expected in ((0, 0.075 + 0.85 * 0.015), (1, 0.425 + 0.15 * 0.015)):
        bob = seen >> (2 * basis)
        sifted = (nibbles & 1 == basis) & ((bob == 1) | (bob == 2))
        errors = np.count_nonzero(bob[sifted] >> 1 != nibbles[sifted] >> 1 & 1)
        assert close(int(errors), int(np.count_nonzero(sifted)), expected)


def test_neighbouring_slots_are_independent() -> None:
    nibbles, seen = link(OPTICS, 0.2)
    clicked = seen != 0
    share = np.count_nonzero(clicked) / len(clicked)
    for lag in (1, 2, 4, 16, 32, 64, 256, 1024):
        pairs = len(clicked) - lag
        assert close(int(np.count_nonzero(clicked[:-lag] & clicked[lag:])), pairs, share**2)
        assert close(int(np.count_nonzero((nibbles[:-lag] ^ nibbles[lag:]) & 2)), pairs, 0.5)
        assert close(int(np.count_nonzero((nibbles[:-lag] & nibbles[lag:]) & 1)), pairs, 0.15**2)


def test_different_seeds_give_different_links() -> None:
    one, other = (choices(stream(emulated_tx("TX", with_(OPTICS, seed=s)), 0, SECOND // 100))[1] for s in (1, 2**40))
    assert close(int(np.count_nonzero((one ^ other) & 2)), len(one), 0.5)


@pytest.mark.parametrize(("dead_time_ns", "dead_slots"), [(49, 0), (50, 1), (199, 3), (5_000, 100)])
def test_dead_time_suppresses_a_detector_and_ends_at_the_sync_pulse(dead_time_ns: int, dead_slots: int) -> None:
    bright = with_(OPTICS, loss_db=1.0, dark_probability=0.01)
    elapsed = 2 * INTERVAL * SLOT_NS + 200_000
    slots, patterns = tags(stream(emulated_rx("RX", bright), 0, elapsed))
    expected, alive_from, interval = [], [0, 0, 0, 0], 0
    for slot, pattern in zip(slots.tolist(), patterns.tolist(), strict=True):
        if slot // INTERVAL != interval:
            interval, alive_from = slot // INTERVAL, [0, 0, 0, 0]
        alive = [d for d in range(4) if pattern >> d & 1 and slot >= alive_from[d]]
        for d in alive:
            alive_from[d] = slot + dead_slots + 1
        if alive:
            expected.append((slot, sum(1 << d for d in alive)))
    slots, patterns = tags(stream(emulated_rx("RX", with_(bright, dead_time_ns=dead_time_ns)), 0, elapsed))
    # The open packet of the last interval waits for its tags in both streams, with other tags in each.
    common = min(len(expected), len(slots))
    assert common > 1000
    assert list(zip(slots.tolist(), patterns.tolist(), strict=True))[:common] == expected[:common]


@pytest.mark.parametrize("make", [emulated_tx, emulated_rx])
def test_a_device_opened_late_joins_the_same_link(make: Any) -> None:
    world = with_(OPTICS, dead_time_ns=2_000, eavesdrop=0.2)
    whole = stream(make("A", world), 0, SECOND // 10)
    late = stream(make("A", world), 33_333_333, SECOND // 10)
    if make is emulated_tx:
        (_, all_of_it), (first, rest) = choices(whole), choices(late)
        assert first == -(-33_333_333 // SLOT_NS // 976) * 976
        assert np.array_equal(rest, all_of_it[first:])
    else:
        (all_slots, all_patterns), (slots, patterns) = tags(whole), tags(late)
        kept = all_slots >= 33_333_333 // SLOT_NS
        size = min(np.count_nonzero(kept), len(slots))
        assert size > 50_000
        assert np.array_equal(slots[:size], all_slots[kept][:size])
        assert np.array_equal(patterns[:size], all_patterns[kept][:size])


def test_how_the_stream_is_read_does_not_change_it() -> None:
    device = emulated_rx("RX", OPTICS)
    at_once = stream(device, 7_000_000, 60_000_000)
    start(device, EPOCH_NS + 7_000_000)
    pieces = []
    for now in range(7_000_000, 60_000_001, 137_000):
        pieces += iter(lambda now=now: device.core.bulk_in(EPOCH_NS + now, 1536), b"")  # type: ignore[misc]
    pieces.append(read(device, EPOCH_NS + 60_000_000))
    content = [bytes([p.kind]) + p.base.to_bytes(8, "little") + p.records for p in packets(b"".join(pieces))]
    assert content == [bytes([p.kind]) + p.base.to_bytes(8, "little") + p.records for p in packets(at_once)]


def digests(kernel: str | None = None) -> list[str]:
    world = with_(OPTICS, seed=2**62 + 5, eavesdrop=0.4, dead_time_ns=300, dark_probability=1e-2)
    devices = [
        emulated_tx("TX", world),
        emulated_rx("RX", world),
        emulated_qrng("Q", EmulatedEntropy(seed=2**61 + 9, epoch_ns=EPOCH_NS)),
    ]
    assert all(kernel in (None, device.core.kernel) for device in devices)
    far = 250_000 * SECOND  # the slot number has passed 2^32 blocks of choices
    return [hashlib.sha256(stream(device, far, far + SECOND // 20)).hexdigest() for device in devices]


@pytest.mark.parametrize("kernel", kernels())
def test_all_kernels_show_one_link(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKDNODE_KERNEL", "portable")
    definition = digests("portable")
    monkeypatch.setenv("QKDNODE_KERNEL", f"another,{kernel}")
    assert digests(kernel) == definition


def test_an_unknown_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKDNODE_KERNEL", "abacus")
    with pytest.raises(KernelError, match="abacus"):
        emulated_tx("TX", OPTICS)


def test_two_processes_see_one_link() -> None:
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
    code += "import test_stub; print(*test_stub.digests())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == digests()


def philox(seed: int, stream_number: int, index: int) -> list[int]:
    """Philox4x32-10 as in the paper, one block."""
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    c = [index & 0xFFFFFFFF, index >> 32, stream_number, 0]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k0, b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def test_the_generator_is_philox() -> None:
    assert philox(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # Random123 kat_vectors
    fair = emulated_qrng("Q", EmulatedEntropy(seed=2**62 + 77, epoch_ns=EPOCH_NS, bias=0.0))
    raw = b"".join(p.records for p in packets(stream(fair, 0, 2_000_000)))
    for chunk in range(4):
        blocks = [philox(2**62 + 77, 4, (16 * chunk + 15) * 16 + lane) for lane in range(16)]
        words = [~blocks[lane][w] & 0xFFFFFFFF for w in range(4) for lane in range(16)]
        assert raw[256 * chunk : 256 * (chunk + 1)] == struct.pack("<64I", *words)


def test_time_tags_carry_54_bits_of_time_and_mark_the_rollover() -> None:
    wrap_ns = 2**46
    world = with_(OPTICS, clock_offset_ns=wrap_ns - 5_000_000 - 12_345)
    plain = tags(stream(emulated_rx("RX", OPTICS), 0, 30_000_000))
    recovered, rollovers = [], 0
    for packet in packets(stream(emulated_rx("RX", world), 0, 30_000_000)):
        if packet.kind != TAGS:
            continue
        time = packet.base
        for i, word in enumerate(packet.words):
            rolled = word >> 4 & 1
            rollovers += rolled
            time = ((time >> 54) + rolled) << 54 | word >> 10
            assert i > 0 or time == packet.base
            recovered.append(((time - world.clock_offset_ns * 256 - 6400) // 12800, word & 15))
    assert recovered == list(zip(plain[0].tolist(), plain[1].tolist(), strict=True))
    assert rollovers == 1
    assert recovered[-1][0] * SLOT_NS > 5_000_000 + 12_345


@pytest.mark.parametrize("offset_ns", [0, 987_654_321, -123_456])
def test_a_sync_pulse_follows_all_earlier_tags(offset_ns: int) -> None:
    world = with_(OPTICS, clock_offset_ns=offset_ns)
    newest, pulses = 0, []
    for packet in packets(stream(emulated_rx("RX", world), 25_000_000, 75_000_001)):
        if packet.kind == SYNC:
            newest = packet.words[0]
            pulses.append(packet.base)
            assert newest == packet.base * INTERVAL * 12800 + offset_ns * 256
        else:
            times = [word >> 10 for word in packet.words]
            assert times == sorted(times)
            assert times[0] >= newest
            newest = times[-1]
    assert pulses == [3, 4, 5, 6, 7]


def test_the_transmitter_sends_each_sync_pulse_before_the_packet_with_its_slot() -> None:
    pulses, next_slot = [], 0
    for packet in packets(stream(emulated_tx("TX", OPTICS), 0, 40_000_000)):
        if packet.kind == SYNC:
            assert packet.words == [packet.base * INTERVAL * 12800]
            assert next_slot <= packet.base * INTERVAL < next_slot + 976
            pulses.append(packet.base)
        else:
            assert (packet.kind, packet.count, packet.base) == (CHOICES, 61, next_slot)
            next_slot += 976
    assert pulses == [0, 1, 2, 3]


def test_nothing_is_sent_about_the_future_or_before_the_epoch() -> None:
    for make in (emulated_tx, emulated_rx):
        device = make("A", OPTICS)
        start(device, 5)
        assert read(device, EPOCH_NS - 1) == b""
    first, nibbles = choices(stream(emulated_tx("TX", OPTICS), 0, 976 * SLOT_NS))
    assert (first, len(nibbles)) == (0, 976)
    device = emulated_tx("TX", OPTICS)
    assert stream(device, 0, 976 * SLOT_NS - 1) == b""


@pytest.mark.parametrize("kind", ["tx", "rx", "qrng"])
def test_an_unread_device_overflows_into_a_gap_marker(kind: str) -> None:
    make = {
        "tx": lambda: emulated_tx("A", OPTICS, buffer_bytes=100 * 512),
        "rx": lambda: emulated_rx("A", OPTICS, buffer_bytes=100 * 512),
        "qrng": lambda: emulated_qrng("A", EmulatedEntropy(seed=1, epoch_ns=EPOCH_NS), buffer_bytes=100 * 512),
    }[kind]
    device = make()
    received = list(packets(stream(device, 0, SECOND)))
    gap = next(p for p in received if p.kind == GAP)
    data = [p for p in received if p.kind not in (SYNC, GAP)]
    assert [p.sequence for p in received] == list(range(len(received)))
    assert (gap.kind, gap.count) == (GAP, 2)
    assert 90 <= len(data) <= 110
    if kind == "tx":
        assert gap.base == data[-1].base + 976 == 100 * 976
        end = -(-SECOND // SLOT_NS // 976) * 976
    elif kind == "rx":
        assert gap.base > data[-1].words[-1] >> 10
        end = SECOND * 256
    else:
        assert gap.base == data[-1].base + 488 == 100 * 488
        end = -(-1_000_000 // 488) * 488
    assert gap.base + gap.words[0] == end
    after = list(packets(read(device, EPOCH_NS + SECOND + 2_000_000)))
    assert after
    assert all(p.base >= end or p.kind == SYNC for p in after)
    assert all(word >> 10 >= end for p in after if p.kind == TAGS for word in p.words)
    health = struct.unpack("<IIIiiiIIQQQQ", device.core.control_in(EPOCH_NS, 0xC0, 2, 0, 0, 64))
    assert health[1] == 1
    assert health[9:11] == (1, gap.words[0])


def test_the_random_stream_has_the_configured_bias() -> None:
    for bias in (-0.5, -0.2, 0.0, 0.01, 0.3, 0.5):
        device = emulated_qrng("Q", EmulatedEntropy(seed=3, epoch_ns=EPOCH_NS, bias=bias))
        raw = np.frombuffer(b"".join(p.records for p in packets(stream(device, 0, SECOND // 2))), np.uint8)
        ones = np.unpackbits(raw, bitorder="little").reshape(-1, 8).sum(axis=0)
        for count in ones:
            assert close(int(count), len(raw), round((0.5 + bias) * 65536) / 65536)


def test_a_stuck_generator_repeats_the_byte_it_is_stuck_on() -> None:
    good = emulated_qrng("Q", EmulatedEntropy(seed=3, epoch_ns=EPOCH_NS))
    stuck = emulated_qrng("Q", EmulatedEntropy(seed=3, epoch_ns=EPOCH_NS, stuck_after_bytes=12_345))
    expected, seen = (b"".join(p.records for p in packets(stream(d, 0, 30_000_000))) for d in (good, stuck))
    assert seen[:12_346] == expected[:12_346]
    assert set(seen[12_345:]) == {expected[12_345]}


def test_parameters_that_no_device_can_have_are_refused() -> None:
    with pytest.raises(ValueError, match="divide"):
        emulated_tx("TX", with_(OPTICS, slot_rate_hz=30_000_000))
    with pytest.raises(ValueError, match="1 to 16"):
        emulated_tx("a serial too long", OPTICS)
    with pytest.raises(ValueError, match="lengths"):
        Optics(
            seed=0, choice_limits=[], signal_limits=[], click_limits=[], dark_limits=[], dark_only_limits=[],
            receiver_z_limit=0, misaligned_limit=0, intercept_limit=0, eavesdropper_z_limit=0, sync_interval_slots=1,
            dead_slots=0, slot_units=1, clock_offset=0,
        )  # fmt: skip
    with pytest.raises(ValueError, match="personality"):
        Device("toaster", "T", None, epoch_ns=0, rate_hz=1, capacity=1, intensities=0, config=bytes(64))  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_core_builds_without_floats_operating_system_or_fault_injection(tmp_path: Path) -> None:
    sources = sorted([*FIRMWARE.glob("core/*.c"), *FIRMWARE.glob("personalities/*.c")])
    flags = ["-std=c11", "-O1", "-ffreestanding", "-mgeneral-regs-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run(["cc", *flags, f"-I{FIRMWARE}", "-c", *map(str, sources)], cwd=tmp_path, check=True)
    objects = list(tmp_path.glob("*.o"))
    assert len(objects) == len(sources)
    if shutil.which("nm"):
        done = subprocess.run(["nm", *map(str, objects)], capture_output=True, text=True, check=True)
        rows = [line.split() for line in done.stdout.splitlines() if line and not line.endswith(":")]
        defined = {row[-1] for row in rows if row[-2] != "U"}
        wanted = {row[-1] for row in rows if row[-2] == "U"}
        assert "qmp_control" in defined
        assert not any("fault" in name for name in defined | wanted)
        assert wanted - defined <= {"memcpy", "memset", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
