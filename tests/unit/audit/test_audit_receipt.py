"""Receipts of destroyed keys: what a stranger accepts, and all that they do not."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from merkle_proofs import inclusion_proof
from signing import PUBLIC, SIGNING

from qkdnode.audit import receipt
from qkdnode.audit.checkpoint import Checkpoint, sign_checkpoint
from qkdnode.audit.merkle import leaf_hash, root_of
from qkdnode.errors import AuditUnreadableError

KEY_ID, OPENING = UUID("10101010-1010-4010-9010-101010101010"), bytes(range(32))
NAME = receipt.pseudonym_of(KEY_ID.bytes, OPENING)
Change = Callable[[dict[str, Any]], object]


def leaf(kind: str, details: dict[str, Any], keys: list[str] | None = None, outcome: str = "done") -> str:
    event = {"details": details, "kind": kind, "node": "a", "outcome": outcome, "time_ns": 5, "type": "key"}
    return json.dumps(event if keys is None else {**event, "keys": keys}, sort_keys=True)


DESTROYED = leaf("key.delivered", {"by": "application", "method": "crypto-erase"}, ["0" * 32, NAME])
READ = leaf("erasure.read_back", {"first": 1, "last": 3, "deleted": 2, "searched": 2, "found": 0})


def receipt_of(destroyed: str = DESTROYED, read: str | None = READ) -> dict[str, Any]:
    leaves = ["first", "second", destroyed, "third", read or "fourth", "last"]
    hashes = [leaf_hash(text.encode()) for text in leaves]
    note = sign_checkpoint(Checkpoint("a.audit", 6, root_of(hashes), 5), SIGNING)

    def entry(position: int) -> dict[str, Any]:
        proof = [step.hex() for step in inclusion_proof(hashes, position)]
        return {"leaf": leaves[position], "position": position, "proof": proof}

    return {
        "format": receipt.FORMAT,
        "key_id": str(KEY_ID),
        "opening": OPENING.hex(),
        "public_key": base64.b64encode(PUBLIC).decode(),
        "checkpoint": note,
        "destruction": entry(2),
        "read_back": None if read is None else entry(4),
        "limits": list(receipt.LIMITS),
    }


def verdict(made: dict[str, Any], key: bytes = PUBLIC) -> receipt.Verdict:
    return receipt.verify(receipt.write(made).encode(), key)


def test_a_receipt_shows_who_destroyed_which_key_when_and_how_the_files_were_searched() -> None:
    shown = verdict(receipt_of())
    assert (shown.valid, shown.key_id, shown.node, shown.time_ns) == (True, str(KEY_ID), "a", 5)
    assert shown.read_back.startswith("all of 2 data keys")
    assert all(limit in receipt.show(shown) for limit in receipt.LIMITS)


def test_a_receipt_without_a_search_says_so_and_a_search_of_a_sample_says_that() -> None:
    assert verdict(receipt_of(read=None)).read_back.startswith("none")
    sample = READ.replace('"deleted": 2', '"deleted": 9')
    assert verdict(receipt_of(read=sample)).read_back.startswith("a sample of 2 of 9")


def test_other_signatures_in_the_checkpoint_are_passed_over() -> None:
    made = receipt_of()
    made["checkpoint"] += "\u2014 witness " + base64.b64encode(bytes(2424)).decode() + "\n"
    made["checkpoint"] += "\u2014 a.audit " + base64.b64encode(bytes(2424)).decode() + "\n"
    assert verdict(made).valid


FORGERIES: dict[str, Change] = {
    "another key": lambda made: made.update(key_id=str(UUID(int=1))),
    "another opening": lambda made: made.update(opening=bytes(32).hex()),
    "no limits": lambda made: made.update(limits=[]),
    "a limit left out": lambda made: made["limits"].pop(),
    "another public key": lambda made: made.update(public_key=base64.b64encode(bytes(32)).decode()),
    "another size": lambda made: made.update(checkpoint=made["checkpoint"].replace("\n6\n", "\n7\n")),
    "no signature of ours": lambda made: made.update(
        checkpoint=f"{made['checkpoint'].rsplit(' ', 1)[0]} {base64.b64encode(bytes(68)).decode()}\n"
    ),
    "another position": lambda made: made["destruction"].update(position=3),
    "a position outside": lambda made: made["destruction"].update(position=6),
    "a proof cut short": lambda made: made["destruction"]["proof"].pop(),
    "a proof too long": lambda made: made["destruction"]["proof"].append("0" * 64),
    "a proof of other things": lambda made: made["destruction"].update(proof=[5]),
    "another entry": lambda made: made["destruction"].update(leaf=DESTROYED.replace("0" * 32, NAME)),
    "the search as the destruction": lambda made: made.update(destruction=made["read_back"]),
    "the destruction as the search": lambda made: made.update(read_back=made["destruction"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_receipt_of_which_anything_is_changed_is_invalid(name: str) -> None:
    made = receipt_of()
    FORGERIES[name](made)
    assert not verdict(made).valid


SIGNED: dict[str, tuple[str, str | None]] = {
    "a key that is not named": (DESTROYED.replace(NAME, "1" * 32), READ),
    "a step that destroyed nothing": (DESTROYED.replace("crypto-erase", "none"), READ),
    "a refused step": (leaf("key.delivered", {"method": "crypto-erase"}, [NAME], "refused"), READ),
    "a search that found something": (DESTROYED, READ.replace('"found": 0', '"found": 1')),
    "a search that was made before": (DESTROYED, READ.replace('"last": 3', '"last": 1')),
    "a search for later deletions": (DESTROYED, READ.replace('"first": 1', '"first": 3')),
    "a search that tells truths for numbers": (DESTROYED, READ.replace('"found": 0', '"found": false')),
    "an alarm in place of a search": (DESTROYED, READ.replace('"type": "key"', '"type": "alarm"')),
    "no event": ("[]", READ),
}


@pytest.mark.parametrize("name", SIGNED)
def test_an_entry_that_is_in_the_log_and_tells_of_something_else_is_no_destruction(name: str) -> None:
    assert not verdict(receipt_of(*SIGNED[name])).valid


def test_a_receipt_of_another_node_is_invalid() -> None:
    assert not verdict(receipt_of(), Ed25519PrivateKey.generate().public_key().public_bytes_raw()).valid


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[" * 10_000, b"\xff", b"1" * (receipt.MAX_BYTES + 1), receipt.write(receipt_of()).encode() + b"\n",
     receipt.write({**receipt_of(), "more": 1}).encode(), receipt.write({**receipt_of(), "read_back": {}}).encode(),
     receipt.write(receipt_of()).replace('"position":2', '"position":true').encode()],
)  # fmt: skip
def test_what_is_no_receipt_is_unreadable(data: bytes) -> None:
    with pytest.raises(AuditUnreadableError):
        receipt.verify(data, PUBLIC)


def test_a_stranger_verifies_with_the_one_file(tmp_path: Path) -> None:
    alone = tmp_path / "receipt.py"
    alone.write_text(Path(receipt.__file__).read_text())
    (tmp_path / "given").write_text(receipt.write(receipt_of()))
    key = base64.b64encode(PUBLIC).decode()
    ran = subprocess.run(
        [sys.executable, "-I", str(alone), str(tmp_path / "given"), key], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout.splitlines()[0][:5]) == (0, "valid")
    wrong = base64.b64encode(bytes(1344)).decode()
    assert receipt.main([str(tmp_path / "given"), wrong]) == 1
    assert receipt.main([str(alone), key]) == 2
