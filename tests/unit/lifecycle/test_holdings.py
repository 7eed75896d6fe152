"""The tree of what two ends hold: the same at both, whatever the order of events; and names that come from others."""

import itertools
import random

import pytest

from qkdnode.ids import ALICE, BOB, BatchId
from qkdnode.lifecycle.holdings import (
    FAN_OUT,
    LEVELS,
    NOTHING,
    bucket_digest,
    bundle_digest,
    bundle_header,
    common_letters,
    joined,
    missing_from,
    node_digest,
    pack_entries,
    pack_stretch,
    path_of,
    stretch_digest,
    unpack_entries,
    unpack_stretch,
)
from qkdnode.lifecycle.states import LETTERS, Stage
from qkdnode.wire.messages import Stretch

READY, DELIVERED = LETTERS[Stage.READY], LETTERS[Stage.DELIVERED]


def stretch(number: int, half: str = ALICE) -> Stretch:
    return Stretch(BatchId(number >> 4, number & 15), half, number % 3)  # type: ignore[arg-type]


def test_names_of_stretches_sort_as_they_do_and_come_back() -> None:
    some = [stretch(number, half) for number in range(300) for half in (ALICE, BOB)]
    names = [pack_stretch(one) for one in some]
    assert [unpack_stretch(name) for name in names] == some
    order = sorted(some, key=lambda one: (one.batch, one.half, one.number))
    assert [unpack_stretch(name) for name in sorted(names)] == order


@pytest.mark.parametrize("name", [b"", bytes(16), bytes(17), b"\xff" * 8 + bytes(4) + b"a" + bytes(4), bytes(18)])
def test_what_is_no_name_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="stretch"):
        unpack_stretch(name)


def test_stretches_spread_over_all_buckets() -> None:
    paths = {path_of(stretch(number)) for number in range(2000)}
    assert len(paths) > 1900
    assert all(len(path) == LEVELS and max(path) < FAN_OUT for path in paths)
    assert {path[0] for path in paths} == set(range(FAN_OUT))


def test_what_holds_nothing_is_as_if_it_was_not_there() -> None:
    name = pack_stretch(stretch(1))
    assert stretch_digest(name, [], []) == NOTHING
    assert bucket_digest([(name, NOTHING)]) == bucket_digest([]) == NOTHING
    assert node_digest(b"", [NOTHING] * FAN_OUT) == NOTHING
    assert bundle_digest(bytes(32), ALICE, bytes([LETTERS[Stage.DESTROYED]]), b"\0") is None


def test_each_thing_that_is_held_counts() -> None:
    name, other = pack_stretch(stretch(1)), pack_stretch(stretch(2))
    told = {
        stretch_digest(name, [], [b"x"]),
        stretch_digest(name, [(0, 8)], [b"x"]),
        stretch_digest(name, [(0, 16)], [b"x"]),
        stretch_digest(name, [(0, 8), (16, 24)], [b"x"]),
        stretch_digest(other, [(0, 8)], [b"x"]),
        stretch_digest(name, [(0, 8)], [b"y"]),
        stretch_digest(name, [(0, 8)], []),
    }
    assert len(told) == 7
    fields = {"offset_bits": 0, "size_bits": 256, "key_class": "qkd", "binding": bytes(32), "key_ids": bytes(16)}
    changed = [
        {"offset_bits": 8}, {"size_bits": 128}, {"key_class": "other"}, {"binding": b"\1" * 32}, {"key_ids": bytes(32)},
    ]  # fmt: skip
    headers = {bundle_header(**{**fields, **change}) for change in ({}, *changed)}  # type: ignore[arg-type]
    assert len(headers) == len(changed) + 1


def test_both_ends_give_a_key_the_same_letter_once_they_have_heard_all() -> None:
    for here, there in ((READY, READY), (READY, DELIVERED), (DELIVERED, READY), (DELIVERED, DELIVERED)):
        far_here, far_there = there == DELIVERED, here == DELIVERED
        at_alice = common_letters(ALICE, bytes([here]), bytes([far_here]))
        assert at_alice == common_letters(BOB, bytes([there]), bytes([far_there]))
        assert at_alice != common_letters(BOB, bytes([there]), bytes([not far_there]))
    letters = {common_letters(ALICE, bytes([LETTERS[stage]]), b"\0") for stage in Stage}
    assert len(letters) == len(Stage) - 1  # damaged and compromised are one


def test_pages_of_a_bucket_are_refused_unless_they_are_in_order_and_of_it() -> None:
    name = pack_stretch(stretch(5))
    path = path_of(stretch(5))
    page = pack_entries([(name, b"h" * 32)])
    assert unpack_entries(page, path) == [(name, b"h" * 32)]
    for wrong in (page + page, page[:-1], pack_entries([(bytes(17), b"h" * 32)])):
        with pytest.raises(ValueError, match="stretch"):
            unpack_entries(wrong, path)
    with pytest.raises(ValueError, match="bucket"):
        unpack_entries(page, bytes(4) if path != bytes(4) else b"\1" * 4)


def test_spans_are_joined_and_compared_as_sets_of_bits() -> None:
    draws = random.Random(3)
    for _ in range(300):
        sides = []
        for _ in range(2):
            edges = sorted(draws.sample(range(60), 2 * draws.randrange(5)))
            sides.append([(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)])
        here, there = ({bit for a, b in spans for bit in range(a, b)} for spans in sides)
        left = missing_from(draws.sample(sides[0], len(sides[0])), draws.sample(sides[1], len(sides[1])))
        assert {bit for a, b in left for bit in range(a, b)} == here - there
        both = joined([*sides[0], *sides[1]])
        assert {bit for a, b in both for bit in range(a, b)} == here | there
        assert all(first[1] < second[0] for first, second in itertools.pairwise(both))
