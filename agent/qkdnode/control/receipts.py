"""The receipt of a destroyed key, put together for a stranger who verifies it with qkdnode.audit.receipt."""

import base64
from typing import Any

from qkdnode.audit import receipt
from qkdnode.ids import KeyId
from qkdnode.vault.receipts import Entry, Evidence


def destruction_receipt(key_id: KeyId, evidence: Evidence) -> str:
    """The receipt, in its one spelling."""
    head = evidence.head
    return receipt.write(
        {
            "format": receipt.FORMAT,
            "key_id": str(key_id),
            "opening": evidence.opening.hex(),
            "public_key": base64.b64encode(head.public_key).decode(),
            "checkpoint": head.note,
            "destruction": _shown(evidence.destruction),
            "read_back": None if evidence.read_back is None else _shown(evidence.read_back),
            "limits": list(receipt.LIMITS),
        }
    )


def _shown(entry: Entry) -> dict[str, Any]:
    return {"leaf": entry.leaf, "position": entry.position, "proof": [step.hex() for step in entry.proof]}
