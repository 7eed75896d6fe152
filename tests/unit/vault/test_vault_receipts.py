"""Receipts from a vault: for every key that is destroyed, for none that is here."""

import pytest
from signing import PUBLIC
from test_vault_epochs import read
from test_vault_keys import delivered
from vaults import End, Pair

from qkdnode.audit import receipt
from qkdnode.control.receipts import destruction_receipt
from qkdnode.errors import VaultError
from qkdnode.ids import KeyId
from qkdnode.vault.receipts import Destruction
from qkdnode.vault.revocations import RevokeKeys


def receipt_of(end: End, key_id: KeyId) -> receipt.Verdict:
    text = destruction_receipt(key_id, end.call(Destruction(key_id=key_id)))
    return receipt.verify(text.encode(), PUBLIC)


def test_a_delivered_key_has_a_receipt_and_after_the_files_were_read_with_that(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready(count=3)
    delivered(pair.alice, ids[:2])
    before = receipt_of(pair.alice, ids[1])
    assert (before.valid, before.happened, before.key_id) == (True, "key.delivered", str(ids[1]))
    assert before.read_back.startswith("none")
    delivered(pair.alice, ids[2:])
    assert read(pair.alice) == ()
    for key_id in ids:
        after = receipt_of(pair.alice, key_id)
        assert after.valid, after.fault
        assert after.read_back.startswith("all of ")


@pytest.mark.parametrize("reason", ["key-compromise", "superseded"])
def test_a_revoked_key_has_a_receipt_of_the_step_that_took_its_bits(pair: Pair, reason: str) -> None:
    pair.stock()
    ids = pair.ready(count=3)
    delivered(pair.alice, ids[:1])
    pair.alice.call(RevokeKeys(key_ids=ids, reason=reason, by="olga"))
    assert receipt_of(pair.alice, ids[0]).happened == "key.delivered"
    happened = "key.compromised" if reason == "key-compromise" else "key.destroyed"
    assert [receipt_of(pair.alice, key_id).happened for key_id in ids[1:]] == [happened] * 2


def test_a_key_that_is_here_or_not_known_or_damaged_has_none(pair: Pair) -> None:
    pair.stock()
    (held,) = pair.ready(count=1)
    with pytest.raises(VaultError, match="its bits are here"):
        receipt_of(pair.alice, held)
    with pytest.raises(VaultError, match="holds no key"):
        receipt_of(pair.alice, KeyId(int=5))
    (waiting,) = pair.allocate(pair.alice, count=1)
    with pytest.raises(VaultError, match="its bits are here"):
        receipt_of(pair.alice, waiting)
