"""What shows that a key was destroyed: the entry of the log that tells of it, and a signed checkpoint over it."""

from typing import Any

import msgspec

from qkdnode.audit import events
from qkdnode.errors import VaultError
from qkdnode.ids import KeyId
from qkdnode.lifecycle.states import HOLDING
from qkdnode.vault import bundles, extract
from qkdnode.vault.bundles import CRYPTO_ERASE
from qkdnode.vault.extract import SignedHead
from qkdnode.vault.proofs import prove_inclusion
from qkdnode.vault.readback import erasure_subject
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store

_ABOUT = "SELECT position, leaf FROM leaves WHERE subject = ? ORDER BY position"
_READING = (
    "SELECT position, leaf FROM leaves WHERE subject >= 'erasure/' AND subject <= ? ORDER BY subject DESC LIMIT 1"
)


class Destruction(Request, frozen=True):
    """What shows that a key is destroyed here. Answer: Evidence.

    VaultError if its bits are held, or it is not known.
    """

    key_id: KeyId


class Entry(msgspec.Struct, frozen=True):
    """An entry of the log."""

    position: int
    leaf: str
    proof: tuple[bytes, ...]  # that it is in the tree under the head


class Evidence(msgspec.Struct, frozen=True):
    """Answer to Destruction. `opening` shows that the key's name in the entry is this key's."""

    opening: bytes
    destruction: Entry
    read_back: Entry | None
    head: SignedHead


def destruction(store: Store, request: Destruction) -> Evidence:
    """Destruction."""
    raw = request.key_id.bytes
    found = bundles.choose(store, [raw])
    if not found:
        raise VaultError(f"the vault holds no key {request.key_id}, or has set it aside as damaged")
    bundle, (place,) = found[0].bundle, found[0].places
    if bundle.states[place] in HOLDING:
        raise VaultError(f"key {request.key_id} is {bundle.stage(place)}: its bits are here, there is no receipt")
    subject, name = bundle.subject(store.sealing.pseudonym), store.sealing.pseudonym(raw)
    for position, leaf in store.rows(_ABOUT, subject):
        event = events.decode(leaf.encode())
        if event.details.get("method") == CRYPTO_ERASE and event.keys and name in event.keys:
            head = extract.log_head(store, extract.LogHead())
            read_back = _reading(store, position, head.size)
            return Evidence(store.sealing.opening(raw), _entry(store, position, head.size), read_back, head)
    raise VaultError(f"the log has no entry of the destruction of key {request.key_id}: there is no receipt")


def _entry(store: Store, position: int, size: int) -> Entry:
    leaf, proof = prove_inclusion(store, position, size)
    return Entry(position, leaf, proof)


def _reading(store: Store, position: int, size: int) -> Entry | None:
    """The search of the files that was made for what this entry tells of."""
    for at, leaf in store.rows(_READING, erasure_subject(position)):
        event = events.decode(leaf.encode())
        last: Any = event.details.get("last")
        if event.outcome == "done" and isinstance(last, int) and position <= last:
            return _entry(store, at, size)
    return None


HANDLERS = {Destruction: destruction}
