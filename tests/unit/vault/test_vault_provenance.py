"""The provenance of a Batch: signed once both ends have it, as its entry tells it, and nothing of it can be altered."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from signing import PUBLIC, Signing
from vaults import FIRST, LINK, End, Pair

from qkdnode.audit import receipt
from qkdnode.errors import AuditUnreadableError, LocalProtocolError, VaultError
from qkdnode.vault.provenance import ShowProvenance


def provenance_of(end: End, **named: Any) -> str:
    text: str = end.call(ShowProvenance(**(named if named else {"batch": str(FIRST)})))
    return text


def verified(text: str) -> receipt.Provenance:
    found = receipt.verify(text.encode(), PUBLIC)
    assert isinstance(found, receipt.Provenance)
    return found


def test_each_end_signs_how_the_batch_was_made(pair: Pair) -> None:
    pair.stock()
    for end, node, peer in ((pair.alice, "a", "b"), (pair.bob, "b", "a")):
        found = verified(provenance_of(end))
        assert found.valid, found.fault
        assert (found.node, found.batch) == (node, str(FIRST))
        assert found.record is not None
        assert found.record["peer"] == peer
        told = {"bits_out": 70_000, "refill_bits": 4096, "method": "rusca2018/1", "qber_z": 0.02, "eps_sec": 1e-10}
        assert told.items() <= found.record.items()
        assert {"devices": "TX-1", "policy": 0, "session": f"{FIRST.session:016x}"}.items() <= found.record.items()
        assert receipt.show(found).startswith(f"valid: node {node} has told")


def test_a_key_leads_to_the_record_of_its_batch(pair: Pair) -> None:
    pair.stock()
    (key_id,) = pair.ready(count=1)
    assert verified(provenance_of(pair.bob, key_id=key_id)).batch == str(FIRST)
    with pytest.raises(VaultError, match="holds no key"):
        provenance_of(pair.bob, key_id=type(key_id)(int=5))


def test_there_is_none_before_both_ends_have_the_batch_or_of_an_unknown_one(pair: Pair) -> None:
    pair.journal()
    with pytest.raises(VaultError, match="is pending"):
        provenance_of(pair.alice)
    with pytest.raises(VaultError, match="knows no Batch"):
        provenance_of(pair.alice, batch="0000000000000009-00000001")
    for wrong in ("x", "0000000000000009", "f000000000000009-00000001"):
        with pytest.raises(LocalProtocolError, match="no id of a Batch"):
            provenance_of(pair.alice, batch=wrong)
    with pytest.raises(VaultError, match="knows no Batch"):
        provenance_of(pair.alice, batch=str(FIRST), link="other")


def altered(whole: dict[str, Any], path: str, value: Any) -> str:
    made = copy.deepcopy(whole)
    place = made
    *way, last = path.split(".")
    for step in way:
        place = place[step]
    place[last] = value
    return receipt.write(made)


ALTERATIONS: dict[str, Any] = {
    "batch": "0000000000000001-00000002",
    "link": "other",
    "node": "c",
    "peer": "c",
    "record.qber_z": 0.001,
    "record.bits_out": 80_000,
    "made.position": 0,
    "made.proof": [],
    "settled": None,
    "limits": [],
}


def test_whatever_is_altered_is_found(pair: Pair) -> None:
    pair.stock()
    whole = json.loads(provenance_of(pair.alice))
    assert verified(receipt.write(whole)).valid
    for path, value in ALTERATIONS.items():
        assert not verified(altered(whole, path, value)).valid, path
    swapped = {**whole, "signature": whole["checkpoint"]}
    assert "is not of" in str(verified(receipt.write(swapped)).fault)
    other = json.loads(provenance_of(pair.bob))
    assert not verified(receipt.write({**whole, "signature": other["signature"]})).valid


CHECKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "the record": lambda its: {**its, "record": {**its["record"], "qber_z": 0.001}},
    "the peer": lambda its: {**its, "peer": "c"},
    "the batch": lambda its: {**its, "batch": "0000000000000001-00000002"},
    "the node": lambda its: {**its, "node": "c"},
    "the second entry": lambda its: {**its, "settled": its["made"]},
    "no second entry": lambda its: {**its, "settled": None},
}


@pytest.mark.parametrize("what", list(CHECKS))
def test_the_node_s_own_signature_makes_no_lie_about_the_log_true(pair: Pair, what: str) -> None:
    """A node that signs another record than its log has: the entries give it away."""
    from signing import SIGNING

    from qkdnode.audit.checkpoint import Checkpoint, sign_checkpoint
    from qkdnode.audit.merkle import leaf_hash

    pair.stock()
    whole = json.loads(provenance_of(pair.alice))
    del whole["signature"]
    lie = CHECKS[what](whole)
    root = leaf_hash(receipt.write(lie).encode())
    lie["signature"] = sign_checkpoint(Checkpoint(f"{lie['node']}.provenance", 1, root, 0), SIGNING)
    assert not verified(receipt.write(lie)).valid
    # And the same, signed as it is, is valid.
    whole["signature"] = sign_checkpoint(
        Checkpoint("a.provenance", 1, leaf_hash(receipt.write(whole).encode()), 0), SIGNING
    )
    assert verified(receipt.write(whole)).valid


def test_another_node_s_key_verifies_nothing(pair: Pair) -> None:
    pair.stock()
    text = provenance_of(pair.alice)
    stranger = Signing(b"\x07" * 32)
    found = receipt.verify(text.encode(), stranger.log_key)
    assert "public key" in str(found.fault)
    claimed = json.loads(text)
    claimed["public_key"] = receipt.base64.b64encode(stranger.log_key).decode()
    assert "another key" in str(receipt.verify(receipt.write(claimed).encode(), stranger.log_key).fault)


def test_what_is_no_provenance_is_unreadable(pair: Pair) -> None:
    pair.stock()
    whole = json.loads(provenance_of(pair.alice))
    for path, value in (("record", []), ("made", {}), ("format", "qkdnode-provenance/2"), ("format", ["x"])):
        with pytest.raises(AuditUnreadableError):
            receipt.verify(altered(whole, path, value).encode(), PUBLIC)


def test_a_stranger_needs_the_one_file(pair: Pair, tmp_path: Path) -> None:
    pair.stock()
    alone = tmp_path / "alone.py"
    shutil.copy(receipt.__file__, alone)
    file = tmp_path / "provenance.json"
    file.write_text(provenance_of(pair.alice))
    key = receipt.base64.b64encode(PUBLIC).decode()
    command = [sys.executable, "-I", str(alone), str(file), key]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"Batch {FIRST}" in done.stdout
    file.write_text(file.read_text().replace('"peer":"b"', '"peer":"c"'))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert LINK in file.read_text()
