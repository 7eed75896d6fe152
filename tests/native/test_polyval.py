"""POLYVAL: the vectors of RFC 8452, the definition over the field, joining, padding, and every kernel alike."""

import pickle
import random
import threading

import pytest

from qkdnode.native.polyval import KERNELS, Polyval, polyval
from qkdnode.native.secret import SecretBuffer

POLYNOMIAL = 1 << 128 | 1 << 127 | 1 << 126 | 1 << 121 | 1


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("QKDNODE_KERNEL", request.param)
    return str(request.param)


def dot(a: int, b: int) -> int:
    """a b x^-128, one bit of a at a time; dividing by x adds the polynomial, whose constant term is 1, where needed."""
    product = 0
    for i in range(128):
        product ^= (b if a >> i & 1 else 0) << i
    for _ in range(128):
        product = (product ^ POLYNOMIAL if product & 1 else product) >> 1
    return product


def by_definition(key: bytes, data: bytes) -> bytes:
    h, total = int.from_bytes(key, "little"), 0
    for at in range(0, len(data), 16):
        total = dot(total ^ int.from_bytes(data[at : at + 16], "little"), h)
    return total.to_bytes(16, "little")


def test_the_vector_of_rfc_8452_appendix_a(kernel: str) -> None:
    key = bytes.fromhex("25629347589242761d31f826ba4b757b")
    blocks = bytes.fromhex("4f4f95668c83dfb6401762bb2d01a262d1a24ddd2721d006bbe45f20d3c9f362")
    assert polyval(key, blocks).hex() == "f7a3b47b846119fae5b7866cf5e5b77e"


def test_the_field_example_of_rfc_8452_section_3(kernel: str) -> None:
    a = bytes.fromhex("66e94bd4ef8a2c3b884cfa59ca342b2e")
    b = bytes.fromhex("ff000000000000000000000000000000")
    assert polyval(b, a).hex() == polyval(a, b).hex() == "ebe563401e7e91ea3ad6426b8140c394"


def test_every_kernel_is_the_definition(kernel: str) -> None:
    draw = random.Random(1)
    for size in [*range(160), 255, 256, 257, 1000]:
        key, data = draw.randbytes(16), draw.randbytes(size)
        running = Polyval(key)
        assert running.kernel == kernel
        running.update(data)
        assert running.digest() == by_definition(key, data), size
        assert running.blocks == (size + 15) // 16


@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x80, 0x01])
def test_extreme_operands(byte: int, kernel: str) -> None:
    """All ones fill every column of a product, where an integer multiplication with holes would carry over."""
    for other in (0x00, 0xFF, 0x80, 0x01, 0xF0):
        key, data = bytes([byte]) * 16, bytes([other]) * 320
        assert polyval(key, data) == by_definition(key, data)


def test_kernels_are_identical_on_large_data(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(2)
    key, data = draw.randbytes(16), draw.randbytes(100_003)
    found = set()
    for name in KERNELS:
        monkeypatch.setenv("QKDNODE_KERNEL", name)
        found.add(polyval(key, data))
    assert len(found) == 1


def test_each_update_is_filled_up_to_whole_blocks(kernel: str) -> None:
    running = Polyval(b"k" * 16)
    running.update(b"abc")
    running.update(b"")
    running.update(b"0123456789abcdefg")
    assert running.blocks == 3
    assert running.digest() == polyval(b"k" * 16, b"abc" + bytes(13) + b"0123456789abcdefg" + bytes(15))


def test_appending_a_hash_is_absorbing_its_blocks(kernel: str) -> None:
    draw = random.Random(3)
    key = draw.randbytes(16)
    for first, second in [(0, 0), (0, 5), (5, 0), (16, 16), (17, 31), (160, 4096), (4096, 160), (33, 20_000)]:
        head, tail = draw.randbytes(first), draw.randbytes(second)
        whole, start, end = Polyval(key), Polyval(key), Polyval(key)
        whole.update(head)
        whole.update(tail)
        start.update(head)
        end.update(tail)
        start.append(end)
        assert start.digest() == whole.digest(), (first, second)
        assert start.blocks == whole.blocks
        start.update(b"more")
        whole.update(b"more")
        assert start.digest() == whole.digest()


def test_a_hash_may_be_appended_to_itself(kernel: str) -> None:
    twice, once = Polyval(b"k" * 16), Polyval(b"k" * 16)
    once.update(b"x" * 48)
    twice.update(b"x" * 96)
    once.append(once)
    assert once.digest() == twice.digest()
    assert once.blocks == 6


def test_hashes_under_two_keys_are_not_joined() -> None:
    with pytest.raises(ValueError, match="one key"):
        Polyval(b"k" * 16).append(Polyval(b"k" * 15 + b"l"))


def test_a_copy_goes_on_alone(kernel: str) -> None:
    running = Polyval(b"k" * 16)
    running.update(b"shared")
    twin = running.copy()
    running.update(b"mine")
    assert twin.digest() == polyval(b"k" * 16, b"shared")
    twin.update(b"mine")
    assert twin.digest() == running.digest()
    assert twin.blocks == running.blocks


def test_masked_is_the_digest_under_a_pad() -> None:
    running = Polyval(b"k" * 16)
    running.update(b"message")
    assert running.masked(bytes(16)) == running.digest()
    with SecretBuffer.copy_of(b"\xa5" * 16) as pad:
        assert running.masked(pad) == bytes(byte ^ 0xA5 for byte in running.digest())


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_keys_and_pads_have_sixteen_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Polyval(bytes(size))
    with pytest.raises(ValueError, match="16 bytes"):
        Polyval(bytes(16)).masked(bytes(size))


def test_a_closed_hash_is_refused_and_close_may_be_repeated() -> None:
    running = Polyval(b"k" * 16)
    running.close()
    running.close()
    for attempt in (lambda: running.update(b""), running.digest, running.copy, lambda: running.masked(bytes(16))):
        with pytest.raises(ValueError, match="closed"):
            attempt()
    with pytest.raises(ValueError, match="closed"):
        Polyval(b"k" * 16).append(running)


def test_a_hash_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Polyval(b"k" * 16))


def test_the_key_may_be_a_locked_buffer_and_is_not_held(kernel: str) -> None:
    key = SecretBuffer.copy_of(b"k" * 16)
    running = Polyval(key)
    key.release()
    running.update(b"message")
    assert running.digest() == polyval(b"k" * 16, b"message")


def test_threads_hash_at_the_same_time() -> None:
    data = random.Random(4).randbytes(1 << 20)
    expected = polyval(b"k" * 16, data)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(polyval(b"k" * 16, data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4
