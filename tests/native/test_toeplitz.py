"""Toeplitz hashing: every shape and kernel against the definition read bit by bit."""

import hashlib
import os
import pickle
import random
import threading
from collections.abc import Callable

import pytest

from qkdnode.errors import LocalProtocolError
from qkdnode.native.secret import WorkingBuffer, equal
from qkdnode.native.toeplitz import FAMILIES, KERNELS, Toeplitz, seed_bits

Kernel = Callable[[str], None]

# Odd sizes, bytes and words left unfilled, one row, one column, squares, tiles that overhang.
SHAPES = [
    (1, 1), (2, 1), (2, 2), (7, 3), (8, 8), (9, 1), (63, 62), (64, 32), (64, 64), (65, 1), (65, 64), (65, 65),
    (127, 50), (129, 128), (500, 499), (511, 7), (512, 512), (513, 512), (513, 1), (1000, 333), (1025, 512),
    (1537, 1024), (2047, 1), (2049, 1025), (3000, 1543), (3333, 2999), (4095, 2048), (4096, 4095), (4096, 600),
    (4100, 900),
]  # fmt: skip


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Demand a kernel for what is constructed next."""
    return lambda name: monkeypatch.setenv("QKDNODE_KERNEL", name)


def packed(value: int, bits: int) -> bytes:
    return value.to_bytes((bits + 7) // 8, "little")


def hashed(n: int, m: int, family: str, seed: bytes, source: bytes) -> bytes:
    hashing = Toeplitz(bits_in=n, bits_out=m, family=family)
    hashing.load_seed(seed)
    out = bytearray(b"\xff" * ((m + 7) // 8))
    hashing.apply(source, out)
    hashing.close()
    return bytes(out)


def dense_product(n: int, m: int, seed: int, source: int) -> int:
    """y_i = XOR_j s[i - j + n - 1] x_j, one row at a time."""
    turned = int(f"{seed:0{n + m - 1}b}"[::-1], 2)  # bit j + m - 1 - i is s[i - j + n - 1]
    return sum(((turned >> (m - 1 - i)) & source).bit_count() % 2 << i for i in range(m))


def by_definition(n: int, m: int, family: str, seed: int, source: int) -> bytes:
    seed &= (1 << seed_bits(n, m, family)) - 1
    if family == "toeplitz":
        return packed(dense_product(n, m, seed, source), m)
    columns = n - m
    if columns == 0:
        return packed(source, m)
    return packed(dense_product(columns, m, seed, source & ((1 << columns) - 1)) ^ source >> columns, m)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_the_definition_bit_by_bit(name: str, family: str, kernel: Kernel) -> None:
    kernel(name)
    draw = random.Random(1)
    for n, m in SHAPES:
        for _ in range(3):
            source = draw.getrandbits(n)
            seed = draw.getrandbits(seed_bits(n, m, family))
            got = hashed(n, m, family, packed(seed, seed_bits(n, m, family)), packed(source, n))
            assert got == by_definition(n, m, family, seed, source), (n, m)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "m"), [(70, 33), (200, 130), (1100, 515)])
def test_unit_vectors_find_each_entry_of_the_matrix(name: str, family: str, n: int, m: int, kernel: Kernel) -> None:
    kernel(name)
    length = seed_bits(n, m, family)
    columns = n if family == "toeplitz" else n - m
    for j in {0, 1, 31, columns - 1, columns % n, n - 1}:
        for k in {0, 1, m - 2, m - 1, m, columns - 1, columns, length - 1}:
            entry = k + j - (columns - 1)  # the row in which seed bit k meets column j
            expected = 1 << entry if j < columns and 0 <= entry < m else 0
            if j >= columns:
                expected = 1 << (j - columns)
            assert hashed(n, m, family, packed(1 << k, length), packed(1 << j, n)) == packed(expected, m), (j, k)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "portable"])
@pytest.mark.parametrize(
    ("n", "m"),
    [(1 << 14, 1 << 13), (20_011, 2_477), (33_333, 33_332), (65_536, 9_830), (100_003, 60_001), (262_139, 24_577)],
)
def test_kernels_are_identical_to_the_portable_one(name: str, family: str, n: int, m: int, kernel: Kernel) -> None:
    draw = random.Random(n)
    seed, source = draw.randbytes(seed_bits(n, m, family) // 8 + 1), draw.randbytes((n + 7) // 8)
    kernel("portable")
    expected = hashed(n, m, family, seed, source)
    kernel(name)
    assert hashed(n, m, family, seed, source) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_hashing_is_linear_in_source_and_seed(family: str) -> None:
    n, m = 9001, 4003
    draw = random.Random(2)
    length = seed_bits(n, m, family)
    x, y = draw.getrandbits(n), draw.getrandbits(n)
    s, t = draw.getrandbits(length), draw.getrandbits(length)

    def value(seed: int, source: int) -> int:
        return int.from_bytes(hashed(n, m, family, packed(seed, length), packed(source, n)), "little")

    assert value(s, x) ^ value(s, y) == value(s, x ^ y)
    assert value(s, x) ^ value(t, x) == value(s ^ t, x) ^ value(0, x)


def test_a_source_moved_up_one_moves_the_hash_up_one() -> None:
    """The Toeplitz property: (T x 2x) and 2 (T x x) share every row but the first."""
    n, m = 5003, 2501
    draw = random.Random(3)
    source, seed = draw.getrandbits(n - 1), packed(draw.getrandbits(n + m - 1), n + m - 1)
    plain = int.from_bytes(hashed(n, m, "toeplitz", seed, packed(source, n)), "little")
    moved = int.from_bytes(hashed(n, m, "toeplitz", seed, packed(source << 1, n)), "little")
    assert moved >> 1 == plain & ((1 << (m - 1)) - 1)


def rank(rows: list[int]) -> int:
    found = 0
    while rows:
        pivot = rows.pop()
        if pivot:
            found += 1
            low = pivot & -pivot
            rows = [row ^ pivot if row & low else row for row in rows]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_have_the_rank_of_their_family(family: str) -> None:
    """Modified matrices contain the identity; a random 32 x 48 Toeplitz matrix lacks rank with probability 2^-17."""
    n, m = 48, 32
    draw = random.Random(4)
    for _ in range(20):
        seed = packed(draw.getrandbits(seed_bits(n, m, family)), seed_bits(n, m, family))
        columns = [int.from_bytes(hashed(n, m, family, seed, packed(1 << j, n)), "little") for j in range(n)]
        assert rank(columns) == m


def test_the_modified_family_of_a_square_is_the_identity() -> None:
    source = random.Random(5).randbytes(100)
    assert hashed(800, 800, "modified", bytes(100), source) == source


def shake(label: str, bits: int) -> bytes:
    value = int.from_bytes(hashlib.shake_128(label.encode()).digest((bits + 7) // 8), "little")
    return packed(value & ((1 << bits) - 1), bits)


def vector(n: int, m: int, family: str) -> bytes:
    """The published inputs: source and seed are SHAKE-128 of a label."""
    letter = {"toeplitz": "T", "modified": "M"}[family]
    seed = shake(f"pa-s{letter}-{n}-{m}", seed_bits(n, m, family))
    return hashed(n, m, family, seed, shake(f"pa-x-{n}-{m}", n))


@pytest.mark.parametrize(
    ("n", "m", "toeplitz", "modified"),
    [
        (64, 32, "49487ece", "9f14da44"),
        (128, 64, "bb818dd33b08bfa6", "8960e8364eecd572"),
        (50, 23, "62c840", "ebd75c"),
        (128, 96, "6cc8d66b63ef1e05bc89fa62", "327d500c9421e7da4081096f"),
        (100, 1, "01", "01"),
        (65, 65, "0afd13664f44a89c01", None),
    ],
)
@pytest.mark.parametrize("name", KERNELS)
def test_small_vectors(name: str, n: int, m: int, toeplitz: str, modified: str | None, kernel: Kernel) -> None:
    kernel(name)
    assert vector(n, m, "toeplitz").hex() == toeplitz
    if modified is not None:
        assert vector(n, m, "modified").hex() == modified


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("n", "m", "family", "digest"),
    [
        (1 << 20, 1 << 19, "modified", "8ddc55d9f73d7d77575b0565b3b69cfe4051846bb680129f285746f61e813f42"),
        (1 << 20, 1 << 19, "toeplitz", "0a66cf14fbdf06d66b69ee759d7b3ccb88db51c573268ba23779255b433c1a18"),
        (1 << 22, 1 << 21, "modified", "3729b9abc2a2bb6931f69a70dc1baa72fcdf8d16eaf5b7352a63c9e5f67f842e"),
    ],
)
def test_large_vectors(name: str, n: int, m: int, family: str, digest: str, kernel: Kernel) -> None:
    kernel(name)
    assert hashlib.sha256(vector(n, m, family)).hexdigest() == digest


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_beyond_seed_and_source_do_not_matter(family: str) -> None:
    n, m = 1003, 499
    draw = random.Random(6)
    length = seed_bits(n, m, family)
    seed, source = draw.getrandbits(length), draw.getrandbits(n)
    junk_seed = packed(seed | 0x5A5A5A5A5A << length, length + 40)
    junk_source = packed(source | (1 << (n + 5) // 8 * 8) - (1 << n), n)
    clean = hashed(n, m, family, packed(seed, length), packed(source, n))
    assert hashed(n, m, family, junk_seed, junk_source) == clean
    assert clean[-1] >> m % 8 == 0


def test_a_second_seed_leaves_nothing_of_the_first() -> None:
    hashing = Toeplitz(bits_in=1000, bits_out=300, uses=None)
    source, first, second = bytes(range(125)), bytearray(38), bytearray(38)
    hashing.load_seed(b"\x5a" * 125)
    hashing.apply(source, first)
    hashing.load_seed(b"\xff" * 125)
    hashing.apply(source, second)
    hashing.load_seed(b"\x5a" * 125)
    hashing.apply(source, second)
    assert first == second


def test_a_seed_serves_the_uses_declared_and_no_more() -> None:
    hashing = Toeplitz(bits_in=64, bits_out=32, uses=2)
    out = bytearray(4)
    with pytest.raises(LocalProtocolError, match="load a seed"):
        hashing.apply(bytes(8), out)
    for _ in range(2):
        hashing.load_seed(bytes(8))
        hashing.apply(bytes(8), out)
        hashing.apply(bytes(8), out)
        with pytest.raises(LocalProtocolError, match="served its 2 uses"):
            hashing.apply(bytes(8), out)


def test_a_refused_call_does_not_spend_a_use() -> None:
    hashing = Toeplitz(bits_in=64, bits_out=32)
    hashing.load_seed(bytes(8))
    with pytest.raises(ValueError, match="do not fit"):
        hashing.apply(bytes(7), bytearray(4))
    with pytest.raises(BufferError):
        hashing.apply(bytes(8), bytes(4))
    hashing.apply(bytes(8), bytearray(4))


def test_an_extractor_reuses_its_seed_by_design() -> None:
    extractor = Toeplitz(bits_in=8192, bits_out=6000, uses=None)
    extractor.load_seed(os.urandom(1024))
    out = bytearray(750)
    first = bytearray(750)
    extractor.apply(bytes(range(256)) * 4, first)
    for _ in range(100):
        extractor.apply(bytes(range(256)) * 4, out)
    assert out == first


def test_source_and_output_are_locked_buffers_or_the_same_memory() -> None:
    seed, source = bytes(range(64)), bytes(range(100, 164))
    expected = hashed(512, 512, "toeplitz", seed * 2, source)
    hashing = Toeplitz(bits_in=512, bits_out=512, family="toeplitz", uses=None)
    with WorkingBuffer.copy_of(seed * 2) as locked_seed, WorkingBuffer.copy_of(source) as both:
        hashing.load_seed(locked_seed)
        hashing.apply(both, both)
        assert equal(both, expected)


def test_threads_have_a_hash_each() -> None:
    n, m = 1 << 18, 1 << 17
    seed, source = os.urandom(n // 8), os.urandom(n // 8)
    expected = hashed(n, m, "modified", seed, source)
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(hashed(n, m, "modified", seed, source))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 3


@pytest.mark.parametrize(("n", "m"), [(0, 0), (8, 0), (8, 9), (8, -1), ((1 << 30) + 1, 8), (1 << 70, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_that_are_no_hash_are_refused(n: int, m: int, family: str) -> None:
    with pytest.raises(ValueError, match="not hashed"):
        Toeplitz(bits_in=n, bits_out=m, family=family)
    with pytest.raises(ValueError, match="not hashed"):
        seed_bits(n, m, family)


def test_unknown_families_short_seeds_and_no_uses_are_refused() -> None:
    with pytest.raises(ValueError, match="no family 'hankel'"):
        Toeplitz(bits_in=8, bits_out=4, family="hankel")
    with pytest.raises(ValueError, match="at least one use"):
        Toeplitz(bits_in=8, bits_out=4, uses=0)
    with pytest.raises(ValueError, match="no seed of 191 bits"):
        Toeplitz(bits_in=128, bits_out=64, family="toeplitz").load_seed(bytes(23))


def test_a_closed_hash_is_refused_and_close_may_be_repeated() -> None:
    hashing = Toeplitz(bits_in=64, bits_out=32)
    hashing.load_seed(bytes(8))
    hashing.close()
    hashing.close()
    with pytest.raises(ValueError, match="closed"):
        hashing.apply(bytes(8), bytearray(4))
    with pytest.raises(ValueError, match="closed"):
        hashing.load_seed(bytes(8))


def test_a_hash_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Toeplitz(bits_in=64, bits_out=32))


@pytest.mark.parametrize(("family", "bits"), [("toeplitz", 149), ("modified", 99)])
def test_seed_bits(family: str, bits: int) -> None:
    assert seed_bits(100, 50, family) == bits
