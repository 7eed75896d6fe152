"""Failure probabilities of tags, and their sum over a Batch."""

import pytest

from qkdnode.secrecy.epsilon import Epsilons, batch_epsilons, forgery_error, verification_error


def test_a_block_fails_verification_with_its_degree_over_the_field() -> None:
    assert verification_error(64 * 65536) == (64 * 65536 // 128 + 1) / 2**128
    assert verification_error(1) == verification_error(128) == 2 / 2**128
    assert verification_error(129) == 3 / 2**128


def test_a_short_tag_fails_as_often_as_it_is_short() -> None:
    assert verification_error(4096, 32) == 33 / 2**32
    assert verification_error(4096, 1) == 1.0


def test_a_tag_over_a_mebibyte_is_forged_with_about_2_to_the_minus_112() -> None:
    assert forgery_error(1 << 20) == (2**16 + 3) / 2**128
    assert forgery_error(0) == 3 / 2**128
    assert forgery_error(17) == 5 / 2**128


def test_a_batch_adds_up_its_blocks_and_tags() -> None:
    batch = batch_epsilons(1e-10, [4096, 4096], [100, 1000, 0], batches_per_seed=4)
    assert batch.sec == pytest.approx(4e-10)
    assert batch.cor == 2 * verification_error(4096)
    assert batch.auth == pytest.approx(forgery_error(100) + forgery_error(1000) + forgery_error(0), rel=1e-12)
    assert (batch + batch).total == pytest.approx(8e-10)


def test_no_total_is_above_certainty() -> None:
    assert Epsilons(0.9, 0.9, 0.9).total == 1.0


def test_what_cannot_be_tagged_is_refused() -> None:
    with pytest.raises(ValueError, match="no tag"):
        verification_error(-1)
    with pytest.raises(ValueError, match="no tag"):
        verification_error(1, 129)
    with pytest.raises(ValueError, match="no message"):
        forgery_error(-1)
    with pytest.raises(ValueError, match="makes no sense"):
        batch_epsilons(0.0, [], [])
