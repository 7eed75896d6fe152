"""The receipt of a destroyed key, put together for a stranger who verifies it with qkdnode.audit.receipt."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

from qkdnode.audit import receipt
from qkdnode.audit.inclusion import Inclusion
from qkdnode.errors import VaultError
from qkdnode.ids import KeyId
from qkdnode.vault.receipts import Destruction, Entry, Evidence
from qkdnode.vault.requests import LeavesAfter

PAGE = 512
Ask = Callable[[Any], Awaitable[Any]]


async def destruction_receipt(key_id: KeyId, ask: Ask) -> str:
    """The receipt, in its one spelling. VaultError if the key is not destroyed here, or not known."""
    evidence: Evidence = await ask(Destruction(key_id=key_id))
    head, entries = evidence.head, [evidence.destruction]
    if evidence.read_back is not None and evidence.read_back.position < head.size:
        entries.append(evidence.read_back)
    proofs = await prove_inclusion([entry.position for entry in entries], head.size, ask)
    shown = [_shown(entry, proof) for entry, proof in zip(entries, proofs, strict=True)]
    return receipt.write(
        {
            "format": receipt.FORMAT,
            "key_id": str(key_id),
            "opening": evidence.opening.hex(),
            "public_key": base64.b64encode(head.public_key).decode(),
            "checkpoint": head.note,
            "destruction": shown[0],
            "read_back": shown[1] if len(shown) > 1 else None,
            "limits": list(receipt.LIMITS),
        }
    )


async def prove_inclusion(positions: list[int], size: int, ask: Ask) -> list[tuple[bytes, ...]]:
    """That these leaves are in the tree of the first `size`: those are read once, in pages between other requests."""
    proofs = [Inclusion(position, size) for position in positions]
    at = 0
    while at < size:
        page: tuple[tuple[int, str], ...] = await ask(LeavesAfter(position=at, limit=min(PAGE, size - at)))
        if not page or page[0][0] != at:
            raise VaultError(f"the log lacks entry {at}: there is no receipt; export it for evidence")
        for _, leaf in page:
            for proof in proofs:
                proof.take(leaf.encode())
        at += len(page)
    return [proof.proof() for proof in proofs]


def _shown(entry: Entry, proof: tuple[bytes, ...]) -> dict[str, Any]:
    return {"leaf": entry.leaf, "position": entry.position, "proof": [step.hex() for step in proof]}
