"""The ledger: every disclosed bit is booked once, and none after it is closed."""

import math

import pytest

from qkdnode.errors import ConfigError, LocalProtocolError
from qkdnode.secrecy.entropy import binary_entropy
from qkdnode.secrecy.ledger import BOOKINGS, Ledger, LedgerTotals
from qkdnode.wire.messages import Disclosure


def busy() -> Ledger:
    """Two Blocks; a Frame of the second fails and is opened."""
    ledger = Ledger()
    ledger.add_sample(5000)
    ledger.add_parities(0, alice_bits=1000, bob_bits=900)
    ledger.add_tag(0, 128)
    ledger.add_outcome(0, 1)
    ledger.add_parities(1, alice_bits=1200, bob_bits=1100)
    ledger.add_tag(1, 128)
    ledger.add_outcome(1, 1)
    ledger.add_tag(1, 64 * 32)
    ledger.add_outcome(1, 64)
    ledger.open_frame(1, frame_bits=4096, alice_bits=300)
    ledger.add_retry(1)
    ledger.add_tag(1, 128)
    ledger.add_outcome(1, 1)
    return ledger


def test_the_totals_are_the_sums_over_all_blocks() -> None:
    totals = busy().close()
    assert totals == LedgerTotals(
        alice_bits=1900, bob_bits=2000, opened_bits=4096, tag_bits=3 * 128 + 64 * 32, outcome_bits=67
    )
    assert totals.disclosed("both") == 1900 + 2000 + 4096 + 2432 + 67
    ledger = busy()
    ledger.close()
    assert ledger.disclosed("both") == totals.disclosed("both")


def test_an_opened_frame_stands_in_place_of_alices_parities_of_it_only() -> None:
    block = busy().block(1)
    assert (block.alice_bits, block.bob_bits, block.opened_bits, block.replaced_bits) == (900, 1100, 4096, 300)
    assert block.retries == 1


def test_the_sample_is_counted_apart() -> None:
    ledger = busy()
    before = busy().close().disclosed("both")
    ledger.add_sample(10_000)
    assert ledger.sample_bits == 15_000
    assert ledger.close().disclosed("both") == before


def test_both_books_everything() -> None:
    assert set(BOOKINGS["both"]) == set(LedgerTotals.__struct_fields__)


def test_the_totals_are_what_the_wire_carries() -> None:
    assert Disclosure.__struct_fields__ == LedgerTotals.__struct_fields__


def test_no_length_is_drawn_from_an_open_ledger() -> None:
    ledger = busy()
    assert not ledger.closed
    for read in (ledger.totals, lambda: ledger.disclosed("both")):
        with pytest.raises(LocalProtocolError, match="still open"):
            read()


def test_nothing_is_booked_in_a_closed_ledger() -> None:
    ledger = busy()
    totals = ledger.close()
    for book in (
        lambda: ledger.add_parities(0, alice_bits=0, bob_bits=0),
        lambda: ledger.add_tag(0, 1),
        lambda: ledger.add_outcome(0, 1),
        lambda: ledger.add_retry(0),
        lambda: ledger.add_sample(1),
        lambda: ledger.open_frame(0, frame_bits=1, alice_bits=0),
    ):
        with pytest.raises(LocalProtocolError, match="closed"):
            book()
    ledger.block(0).alice_bits = 0  # a copy
    assert ledger.close() == totals


def test_what_was_never_booked_cannot_be_taken_back() -> None:
    ledger = busy()
    with pytest.raises(LocalProtocolError, match="Block 0: 1001 parities of an opened Frame, but only 1000 are booked"):
        ledger.open_frame(0, frame_bits=4096, alice_bits=1001)
    with pytest.raises(LocalProtocolError, match="negative"):
        ledger.add_parities(0, alice_bits=-1, bob_bits=0)
    assert ledger.close() == busy().close()


def test_an_empty_ledger_disclosed_nothing() -> None:
    ledger = Ledger()
    assert ledger.close().disclosed("both") == 0
    assert ledger.blocks == ()
    assert ledger.block(3).tag_bits == 0


def test_the_efficiency_counts_each_query_once() -> None:
    ledger = busy()
    assert ledger.efficiency(100_000, 0.02) == pytest.approx(2200 / (100_000 * binary_entropy(0.02)))
    assert ledger.efficiency(100_000, 0.0) == math.inf
    assert ledger.blocks == (0, 1)


def test_an_unknown_booking_is_answered_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"no booking 'alice'; choose one of both"):
        busy().close().disclosed("alice")
