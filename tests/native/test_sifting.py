"""Sifting in C against a slow obvious reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdnode.errors import LocalProtocolError, RemoteProtocolError
from qkdnode.native.secret import WorkingBuffer, equal
from qkdnode.native.sifting import (
    Answer,
    Listing,
    answer_list,
    apply_answer,
    copy_bits,
    count_by_intensity,
    list_detections,
)

SLOTS = 4096


def bits_of(data: object, count: int) -> list[int]:
    return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[:count].tolist()  # type: ignore[call-overload]


def pairs_of(data: bytes, count: int) -> list[int]:
    bits = bits_of(data, 2 * count)
    return [bits[2 * i] + 2 * bits[2 * i + 1] for i in range(count)]


def window(seed: int, clicks: int = 700) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rising slots, click patterns of one or two detectors, and the transmitter's choices as nibbles."""
    generator = np.random.default_rng(seed)
    slots = np.sort(generator.choice(SLOTS, clicks, replace=False)).astype(np.uint32)
    patterns = (1 << generator.integers(0, 4, clicks)).astype(np.uint8)
    patterns |= np.where(generator.random(clicks) < 0.05, 1 << generator.integers(0, 4, clicks), 0).astype(np.uint8)
    nibbles = generator.integers(0, 8, SLOTS).astype(np.uint8)
    return slots, patterns, nibbles


def packed(nibbles: np.ndarray) -> np.ndarray:
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8)


def reference_list(
    slots: np.ndarray, patterns: np.ndarray, coins: list[int], dead_slots: int
) -> list[tuple[int, int, int]]:
    listed, last, used = [], -1, 0
    for slot, pattern in zip(slots.tolist(), patterns.tolist(), strict=True):
        dead = slot - last <= dead_slots
        last = slot
        z, x = pattern & 3, pattern >> 2
        if dead or (z and x):
            continue
        bit = (z or x) >> 1
        if (z or x) == 3:
            bit, used = coins[used], used + 1
        listed.append((slot, int(bool(x)), bit))
    return listed


def sift(seed: int, dead_slots: int = 1) -> tuple[Listing, Answer, np.ndarray, list[tuple[int, int, int]]]:
    slots, patterns, nibbles = window(seed)
    coins = np.random.default_rng(seed + 1).bytes(100)
    listing = list_detections(slots, patterns, coins, dead_slots)
    answer = answer_list(listing.slots, listing.bases, listing.events, packed(nibbles), SLOTS, 2)
    return listing, answer, nibbles, reference_list(slots, patterns, bits_of(coins, 800), dead_slots)


@pytest.mark.parametrize("dead_slots", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_list_is_what_the_definition_says(seed: int, dead_slots: int) -> None:
    listing, _, _, expected = sift(seed, dead_slots)
    assert listing.events == len(expected)
    assert bits_of(listing.bases, listing.events) == [basis for _, basis, _ in expected]
    assert bits_of(listing.bits, listing.events) == [bit for _, _, bit in expected]
    assert listing.events + listing.crossed_clicks + listing.dead_clicks == 700
    assert 0 < listing.double_clicks < 50


@pytest.mark.parametrize("seed", range(5))
def test_detectors_that_clicked_alone_and_ones_among_key_bits_are_counted(seed: int) -> None:
    slots, patterns, _ = window(seed)
    listing, answer, _, expected = sift(seed)
    of_slot = dict(zip(slots.tolist(), patterns.tolist(), strict=True))
    alone = [of_slot[slot] for slot, _, _ in expected if of_slot[slot] in (1, 2, 4, 8)]
    assert listing.detectors == tuple(alone.count(1 << detector) for detector in range(4))
    assert sum(listing.detectors) + listing.double_clicks == listing.events
    assert answer.sifted.ones == sum(bits_of(answer.sifted.z_bits, answer.sifted.bits)) > 0
    sifted = apply_answer(listing, answer.matched, answer.intensities, answer.x_bits, 2)
    assert sifted.ones == sum(bits_of(sifted.z_bits, sifted.bits)) > 0


@pytest.mark.parametrize("seed", range(5))
def test_both_ends_sift_the_same_events(seed: int) -> None:
    listing, answer, nibbles, expected = sift(seed)
    matched = [(slot, basis, bit) for slot, basis, bit in expected if nibbles[slot] & 1 == basis]
    sifted = apply_answer(listing, answer.matched, answer.intensities, answer.x_bits, 2)
    z = [(slot, bit) for slot, basis, bit in matched if not basis]
    assert sifted.bits == answer.sifted.bits == len(z)
    assert bits_of(sifted.z_bits, len(z)) == [bit for _, bit in z]
    assert bits_of(answer.sifted.z_bits, len(z)) == [int(nibbles[slot] >> 1 & 1) for slot, _ in z]
    assert pairs_of(sifted.z_intensities, len(z)) == [int(nibbles[slot] >> 2) for slot, _ in z]
    assert answer.sifted.z_intensities == sifted.z_intensities
    for k in range(2):
        assert sifted.n_z[k] == sum(nibbles[slot] >> 2 == k for slot, _ in z)
        in_x = [(slot, bit) for slot, basis, bit in matched if basis and nibbles[slot] >> 2 == k]
        assert sifted.n_x[k] == len(in_x)
        assert sifted.m_x[k] == sum(bit != nibbles[slot] >> 1 & 1 for slot, bit in in_x)
    assert (answer.sifted.n_z, answer.sifted.n_x) == (sifted.n_z, sifted.n_x)


def test_distances_of_every_length_survive_the_list() -> None:
    slots = np.array([0, 1, 128, 129, 16_600, 3_000_000], np.uint32)
    listing = list_detections(slots, np.full(6, 2, np.uint8), b"", 0)
    nibbles = np.zeros(3_000_002, np.uint8)
    nibbles[slots] = [2, 0, 2, 2, 0, 2]
    answer = answer_list(listing.slots, listing.bases, 6, packed(nibbles), 3_000_001, 1)
    assert bits_of(answer.sifted.z_bits, 6) == [1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("slots", "bases", "events", "fault"),
    [
        (b"\x01", b"\x00", 2, "truncated"),
        (b"\x80", b"\x00", 1, "truncated"),
        (b"\xff\xff\xff\xff\xff", b"\x00", 1, "truncated"),
        (b"\x01\x02", b"\x00", 1, "follow"),
        (b"\x01", b"\x02", 1, "follow"),
        (b"\x80\x40", b"\x00", 1, "outside"),
        (b"\x01", b"\x00\x00", 1, "length"),
        (b"\x01", b"", 1, "length"),
    ],
)
def test_a_malformed_list_is_refused(slots: bytes, bases: bytes, events: int, fault: str) -> None:
    with pytest.raises(RemoteProtocolError, match=fault):
        answer_list(slots, bases, events, bytes(SLOTS // 2), SLOTS, 2)


def test_an_intensity_that_the_module_should_not_send_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="intensity"):
        answer_list(b"\x00", b"\x00", 1, b"\x0c" + bytes(99), 200, 3)


def test_detections_out_of_order_are_refused() -> None:
    with pytest.raises(LocalProtocolError, match="rising"):
        list_detections(np.array([5, 5], np.uint32), np.array([1, 1], np.uint8), b"", 0)


def test_double_clicks_without_random_bits_are_refused() -> None:
    with pytest.raises(LocalProtocolError, match="random bits"):
        list_detections(np.array([5], np.uint32), np.array([3], np.uint8), b"", 0)


@given(st.data())
def test_an_answer_that_does_not_fit_is_refused_or_only_changes_what_it_may(data: st.DataObject) -> None:
    listing, answer, _, _ = sift(7)
    fields = [bytearray(answer.matched), bytearray(answer.intensities), bytearray(answer.x_bits)]
    field = data.draw(st.sampled_from(fields))
    change = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if change == "flip":
        field[data.draw(st.integers(0, len(field) - 1))] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del field[-1]
    else:
        field.append(0)
    try:
        sifted = apply_answer(listing, *map(bytes, fields), 2)
    except RemoteProtocolError:
        return
    assert change == "flip"
    assert sum(sifted.n_z) == sifted.bits <= listing.events
    assert all(m <= n for m, n in zip(sifted.m_x, sifted.n_x, strict=True))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 300), st.integers(0, 2**32))
def test_copied_bits_land_where_they_should_and_nowhere_else(at: int, start: int, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    source, target = generator.bytes(50), bytearray(generator.bytes(50))
    expected = bits_of(bytes(target), 400)
    expected[at : at + count] = bits_of(source, 400)[start : start + count]
    copy_bits(target, at, source, start, count)
    assert bits_of(bytes(target), 400) == expected


def test_copying_beyond_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        copy_bits(WorkingBuffer(2), 9, b"\xff", 0, 8)
    with pytest.raises(ValueError, match="beyond"):
        copy_bits(WorkingBuffer(2), 0, b"\xff", 1, 8)


@given(st.integers(0, 200), st.integers(0, 2**32))
def test_errors_are_counted_by_intensity(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask, intensities = generator.bytes(26), generator.bytes(51)
    expected = [0, 0, 0]
    for bit, k in zip(bits_of(mask, count), pairs_of(intensities, count), strict=True):
        if k < 3:
            expected[k] += bit
    assert count_by_intensity(mask, intensities, count, 3) == tuple(expected)


def test_key_bits_of_a_listing_are_in_a_working_buffer() -> None:
    listing, answer, _, _ = sift(3)
    assert isinstance(listing.bits, WorkingBuffer)
    assert isinstance(answer.sifted.z_bits, WorkingBuffer)
    assert not equal(listing.bits, bytes(len(listing.bits)))
