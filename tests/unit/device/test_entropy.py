"""The entropy pool: healthy QRNG bytes, each used once, or nothing."""

import threading

import numpy as np
import pytest
from typing_extensions import Buffer

from qkdnode.device.entropy import EntropyPool, Source, SourceState, extracted_bits
from qkdnode.errors import NoEntropyError
from qkdnode.native.secret import SecretBuffer, equal

BLOCK = extracted_bits(6.0) // 8


class NaiveToeplitz:
    """y = T x over GF(2) with T[i][j] = s[i - j + n - 1], as a matrix."""

    def __init__(self, bits_in: int, bits_out: int) -> None:
        self.bits_in, self.bits_out = bits_in, bits_out

    def load_seed(self, seed: Buffer) -> None:
        bits = np.unpackbits(np.frombuffer(memoryview(seed), np.uint8), bitorder="little")
        self.windows = np.lib.stride_tricks.sliding_window_view(bits, self.bits_in)[: self.bits_out]

    def apply(self, source: Buffer, out: Buffer) -> None:
        x = np.unpackbits(np.frombuffer(memoryview(source), np.uint8), bitorder="little")[::-1]
        y = np.bitwise_xor.reduce(self.windows[:, x == 1], axis=1)
        np.frombuffer(memoryview(out), np.uint8)[:] = np.packbits(y, bitorder="little")


class FirstBytes:
    """Passes the first bytes of a block through: shows what goes where."""

    def __init__(self, bits_in: int, bits_out: int) -> None:
        self.bytes_out = bits_out // 8

    def load_seed(self, seed: Buffer) -> None:
        self.seed_bytes = len(memoryview(seed))

    def apply(self, source: Buffer, out: Buffer) -> None:
        memoryview(out)[:] = memoryview(source)[: self.bytes_out]


def no_random(count: int) -> bytes:
    return bytes(count)


def random_bytes(count: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def pool_of(capacity_bytes: int = 1 << 16) -> EntropyPool:
    return EntropyPool(extractor=FirstBytes, capacity_bytes=capacity_bytes, os_random=no_random)


def healthy(pool: EntropyPool, serial: str = "QRNG-1") -> Source:
    source = pool.attach(serial)
    source.push(random_bytes(1024))
    assert source.healthy
    return source


def drawn(pool: EntropyPool, count: int) -> bytes:
    buffer = bytearray(count)
    pool.draw_into(buffer)
    return bytes(buffer)


def test_the_block_length_follows_the_leftover_hash_lemma() -> None:
    assert extracted_bits(6.0) == 6016  # 8192 * 6/8 - 2 * 64
    assert extracted_bits(8.0) == 8064
    with pytest.raises(ValueError, match="too few"):
        extracted_bits(0.1)


def test_conditioned_bytes_come_out_once_and_in_order() -> None:
    pool = pool_of()
    source = healthy(pool)
    raw = random_bytes(4 * 1024, seed=2)
    source.push(raw[:1500])
    source.push(raw[1500:])
    expected = b"".join(raw[at : at + BLOCK] for at in range(0, 4096, 1024))
    assert pool.available_bytes == 4 * BLOCK
    assert drawn(pool, 1000) + drawn(pool, 2008) == expected
    assert pool.available_bytes == 0
    with pytest.raises(NoEntropyError, match="are wanted"):
        drawn(pool, 1)


def test_the_extractor_is_the_toeplitz_product_of_raw_bytes() -> None:
    pool = EntropyPool(extractor=NaiveToeplitz, capacity_bytes=1 << 15, os_random=lambda n: random_bytes(n, seed=9))
    source = healthy(pool)
    raw = random_bytes(1024, seed=3)
    source.push(raw)
    seed = np.unpackbits(np.frombuffer(random_bytes((8192 + 6016) // 8, seed=9), np.uint8), bitorder="little").tolist()
    x = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little").tolist()
    first_bits = [sum(seed[i - j + 8191] & x[j] for j in range(8192)) & 1 for i in range(8)]
    mask = np.unpackbits(np.frombuffer(random_bytes(1, seed=9), np.uint8), bitorder="little")
    out = np.unpackbits(np.frombuffer(drawn(pool, 1), np.uint8), bitorder="little")
    assert (out ^ mask).tolist() == first_bits


def test_each_byte_is_mixed_with_one_of_the_operating_system() -> None:
    asked: list[int] = []

    def counting(count: int) -> bytes:
        asked.append(count)
        return b"\xff" * count

    pool = EntropyPool(extractor=FirstBytes, capacity_bytes=1 << 16, os_random=counting)
    source = healthy(pool)
    raw = random_bytes(1024, seed=4)
    source.push(raw)
    assert drawn(pool, 100) == bytes(byte ^ 0xFF for byte in raw[:100])
    assert asked == [(8192 + 6016) // 8, 100]


def test_drawn_bytes_are_wiped_from_the_ring() -> None:
    pool = pool_of()
    source = healthy(pool)
    source.push(random_bytes(1024, seed=5))
    drawn(pool, BLOCK)
    assert not source.ring._bytes.any()
    assert not source._block.any()
    assert not source._extracted.any()


def test_without_a_source_or_before_its_startup_test_nothing_is_given() -> None:
    pool = pool_of()
    with pytest.raises(NoEntropyError, match="no QRNG is attached"):
        pool.draw(1)
    source = pool.attach("QRNG-1")
    source.push(random_bytes(1023))
    assert not pool.healthy
    with pytest.raises(NoEntropyError, match="QRNG-1 starting"):
        pool.draw(1)


@pytest.mark.parametrize("bad", [bytes(200), b"ab" * 400], ids=["stuck", "periodic"])
def test_a_failing_source_takes_back_everything_not_yet_drawn(bad: bytes) -> None:
    pool = pool_of()
    source = healthy(pool)
    source.push(random_bytes(8192, seed=6))
    source.push(bad)
    assert source.state is SourceState.FAILED
    assert pool.available_bytes == 0
    assert not source.ring._bytes.any()
    with pytest.raises(NoEntropyError, match="test"):
        pool.draw(1, wait_s=10)
    source.push(random_bytes(8192, seed=7))
    assert pool.available_bytes == 0


def test_a_failed_source_returns_only_by_acknowledgement_and_startup_test() -> None:
    pool = pool_of()
    source = healthy(pool)
    source.fail("device alarm")
    assert source.restart() is False
    assert source.restart(acknowledge=True) is True
    assert not pool.healthy
    source.push(random_bytes(2048))
    assert pool.healthy
    assert pool.available_bytes == BLOCK


def test_the_failure_of_one_source_leaves_the_others() -> None:
    pool = pool_of()
    first, second = healthy(pool, "A"), healthy(pool, "B")
    first.push(random_bytes(2048, seed=1))
    second.push(raw := random_bytes(1024, seed=2))
    first.fail("tamper")
    assert pool.healthy
    assert drawn(pool, BLOCK) == raw[:BLOCK]


def test_a_draw_gathers_from_all_sources() -> None:
    pool = pool_of()
    first, second = healthy(pool, "A"), healthy(pool, "B")
    first.push(a := random_bytes(2048, seed=1))
    second.push(b := random_bytes(1024, seed=2))
    assert drawn(pool, 3 * BLOCK) == a[:BLOCK] + a[1024 : 1024 + BLOCK] + b[:BLOCK]


def test_no_block_is_spliced_across_a_gap() -> None:
    pool = pool_of()
    source = healthy(pool)
    source.push(random_bytes(1000, seed=1))
    source.skip()
    source.push(raw := random_bytes(1024, seed=2))
    assert drawn(pool, BLOCK) == raw[:BLOCK]


def test_a_lost_source_no_longer_counts_but_its_bytes_stay_good() -> None:
    pool = pool_of()
    first, second = healthy(pool, "A"), healthy(pool, "B")
    first.push(raw := random_bytes(1024, seed=1))
    first.lose("unplugged")
    second.lose("unplugged")
    with pytest.raises(NoEntropyError, match="unplugged"):
        pool.draw(1)
    second.restart()
    second.push(random_bytes(1024))
    assert drawn(pool, BLOCK) == raw[:BLOCK]


def test_the_ring_is_bounded_and_wraps() -> None:
    pool = pool_of(1 << 14)
    source = healthy(pool)
    source.push(random_bytes(1 << 16, seed=1))
    full = (1 << 14) // BLOCK * BLOCK
    assert pool.available_bytes == full
    for seed in range(40):
        drawn(pool, BLOCK)
        source.push(raw := random_bytes(1024, seed=seed))
    drawn(pool, full - BLOCK)
    assert drawn(pool, BLOCK) == raw[:BLOCK]


def test_a_refused_draw_leaves_no_trace_and_spends_nothing() -> None:
    pool = pool_of()
    source = healthy(pool)
    source.push(random_bytes(1024, seed=1))
    buffer = bytearray(b"\xaa" * (BLOCK + 1))
    with pytest.raises(NoEntropyError):
        pool.draw_into(buffer)
    assert not any(buffer)
    assert pool.available_bytes == BLOCK


def test_a_waiting_draw_is_served_when_bytes_arrive() -> None:
    pool = pool_of()
    source = healthy(pool)
    result: list[bytes] = []

    def wait() -> None:
        with pool.draw(BLOCK, wait_s=60) as buffer:
            assert not equal(buffer, bytes(BLOCK))
            result.append(b"served")

    thread = threading.Thread(target=wait)
    thread.start()
    source.push(random_bytes(1024, seed=1))
    thread.join(60)
    assert result == [b"served"]


def test_a_waiting_draw_gives_up_as_soon_as_the_last_source_fails() -> None:
    pool = pool_of()
    source = healthy(pool)
    refused = threading.Event()

    def wait() -> None:
        with pytest.raises(NoEntropyError):
            pool.draw(BLOCK, wait_s=60)
        refused.set()

    thread = threading.Thread(target=wait)
    thread.start()
    source.fail("tamper")
    assert refused.wait(30)
    thread.join(30)


def test_a_large_draw_is_served_piece_by_piece() -> None:
    pool = pool_of(1 << 14)
    source = healthy(pool)
    stop = threading.Event()

    def feed() -> None:
        seed = 0
        while not stop.is_set():
            source.push(random_bytes(8192, seed=(seed := seed + 1)))

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        with pool.draw(100_000, wait_s=60) as buffer:
            assert np.unique(np.frombuffer(memoryview(buffer), np.uint8)).size == 256
    finally:
        stop.set()
        thread.join(30)


def test_changes_of_health_are_told_once() -> None:
    told: list[bool] = []
    pool = EntropyPool(extractor=FirstBytes, capacity_bytes=1 << 15, on_change=told.append, os_random=no_random)
    source = healthy(pool)
    source.push(random_bytes(4096))
    source.fail("tamper")
    source.fail("tamper")
    assert told == [True, False]


def test_random_bytes_are_not_drawn_into_a_constant() -> None:
    pool = pool_of()
    healthy(pool)
    with pytest.raises(TypeError, match="writable"):
        pool.draw_into(bytes(4))


def test_concurrent_draws_never_share_a_byte() -> None:
    pool = pool_of(1 << 17)
    source = healthy(pool)
    counter = np.arange(1 << 15, dtype="<u4")
    # Words that count up are told apart wherever they end up; the tests see them as varied enough at low entropy.
    raw = counter.view(np.uint8)
    source.tests.rct_cutoff = source.tests.apt_cutoff = 1000
    source.push(raw.data)
    words: list[int] = []

    def take() -> None:
        for _ in range(200):
            words.extend(np.frombuffer(drawn(pool, 4), "<u4").tolist())

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(words) == 800 == len(set(words))


def test_the_error_of_a_refused_draw_holds_no_view_of_the_buffer() -> None:
    pool = EntropyPool(extractor=FirstBytes)
    buffer = SecretBuffer(32)
    with pytest.raises(NoEntropyError, match="no QRNG is attached") as refused:
        pool.draw_into(buffer)
    buffer.release()
    assert buffer.released
    assert refused.value.__traceback__ is not None
