"""Buffers for key material: locked, wiped, leased, and never turned into bytes."""

import copy
import pickle

import pytest

from qkdnode.native.secret import LockedBuffer, SecretBuffer, WorkingBuffer, equal, locked_mode, wipe

KINDS = [SecretBuffer, WorkingBuffer]


def test_this_machine_can_lock_memory() -> None:
    assert locked_mode() in ("memfd_secret", "mlock")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 31, 32, 33, 4096, 70_000, 300_000])
def test_a_new_buffer_is_zero_and_writable(kind: type[LockedBuffer], size: int) -> None:
    buffer = kind(size)
    with memoryview(buffer) as view:
        assert len(view) == size == len(buffer)
        assert not any(view)
        view[-1] = 7
        assert view[size - 1] == 7


@pytest.mark.parametrize("kind", KINDS)
def test_release_waits_for_the_last_lease_and_then_refuses_new_ones(kind: type[LockedBuffer]) -> None:
    buffer = kind(32)
    view = memoryview(buffer)
    with pytest.raises(BufferError, match="in use"):
        buffer.release()
    view.release()
    buffer.release()
    buffer.release()
    assert buffer.released
    with pytest.raises(ValueError, match="released"):
        memoryview(buffer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_discarded_buffer_lives_until_its_last_view_is_given_back(kind: type[LockedBuffer]) -> None:
    buffer = kind(32)
    view = memoryview(buffer)
    view[0] = 9
    buffer.discard()
    assert buffer.released
    assert view[0] == 9
    with pytest.raises(ValueError, match="released"):
        memoryview(buffer)
    view.release()
    buffer.release()


@pytest.mark.parametrize("kind", KINDS)
def test_contents_do_not_become_bytes_pickles_copies_or_text(kind: type[LockedBuffer]) -> None:
    buffer = kind.copy_of(b"marker" * 6)  # type: ignore[attr-defined]
    for forbidden in (bytes, pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            forbidden(buffer)
    assert "marker" not in repr(buffer)
    assert "marker" not in str(buffer)


def test_freed_slots_are_wiped_before_they_are_used_again() -> None:
    first = [SecretBuffer.copy_of(b"\xff" * 32) for _ in range(9000)]
    for buffer in first:
        buffer.release()
    for buffer in [SecretBuffer(32) for _ in range(9000)]:
        with memoryview(buffer) as view:
            assert not any(view)


def test_neighbouring_buffers_do_not_overlap() -> None:
    sizes = [1, 32, 33, 64, 100, 4096] * 40
    buffers = [SecretBuffer.copy_of(bytes([i % 251]) * size) for i, size in enumerate(sizes)]
    for i, buffer in enumerate(buffers):
        if i % 3 == 0:
            buffer.release()
    again = [SecretBuffer.copy_of(b"\xee" * 48) for _ in range(60)]
    for i, buffer in enumerate(buffers):
        if i % 3:
            assert equal(buffer, bytes([i % 251]) * sizes[i])
    assert all(equal(buffer, b"\xee" * 48) for buffer in again)


def test_copy_of_takes_exactly_the_source() -> None:
    source = bytearray(b"0123456789")
    buffer = WorkingBuffer.copy_of(memoryview(source)[2:5])
    assert equal(buffer, b"234")


def test_wipe_zeroes_a_foreign_buffer() -> None:
    source = bytearray(b"secret")
    wipe(source)
    assert source == bytes(6)
    with pytest.raises(BufferError):
        wipe(b"immutable")


@pytest.mark.parametrize(
    ("a", "b", "same"), [(b"", b"", True), (b"ab", b"ab", True), (b"ab", b"aB", False), (b"a", b"ab", False)]
)
def test_equal(a: bytes, b: bytes, same: bool) -> None:
    assert equal(a, b) is same


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_buffer_is_refused(kind: type[LockedBuffer], size: int) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        kind(size)
