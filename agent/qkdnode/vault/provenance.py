"""The provenance of a Batch: how it was made, as the log tells it, signed by the node as a whole."""

import base64
from typing import Any

import msgspec

from qkdnode.audit import events, receipt
from qkdnode.audit.checkpoint import Checkpoint, sign_checkpoint
from qkdnode.audit.merkle import leaf_hash
from qkdnode.errors import LocalProtocolError, VaultError
from qkdnode.ids import BatchId, KeyId
from qkdnode.vault import bundles, extract
from qkdnode.vault.batches import known_link
from qkdnode.vault.proofs import prove_inclusion
from qkdnode.vault.records import COMPROMISED, READY, Batch, pack_batch, unpack_batch
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store

_ABOUT = "SELECT position, leaf FROM leaves WHERE subject = ? ORDER BY position"
_NAMED = "SELECT link FROM batches WHERE batch = ? ORDER BY link"


class ShowProvenance(Request, frozen=True):
    """The signed record of a Batch, named by its id (and its link, if several have one of that id), or by a key of it.

    Answer: str, as qkdnode.audit.receipt verifies it. VaultError if both ends do not have it, or it is not known.
    """

    batch: str | None = None
    link: str | None = None
    key_id: KeyId | None = None


class Told(msgspec.Struct, frozen=True):
    """An entry of the log."""

    position: int
    event: events.AnyEvent


def show_provenance(store: Store, request: ShowProvenance) -> str:
    """ShowProvenance."""
    row = _of_key(store, request.key_id) if request.key_id is not None else _of_name(store, request)
    name = unpack_batch(row.batch)
    if row.state not in (READY, COMPROMISED):
        raise VaultError(f"Batch {name} of link {row.link!r} is {row.state}: only one that both ends have has a record")
    subject = row.subject(store.sealing.pseudonym)
    told = [Told(position, events.decode(leaf.encode())) for position, leaf in store.rows(_ABOUT, subject)]
    made = next((one for one in told if one.event.kind in receipt.MADE and "bits_out" in one.event.details), None)
    if made is None:
        raise VaultError(f"the log has no entry of how Batch {name} of link {row.link!r} was made")
    settled = next((one for one in told if one is not made and one.event.kind in receipt.SETTLED), None)
    head = extract.log_head(store, extract.LogHead())
    whole: dict[str, Any] = {
        "format": receipt.PROVENANCE_FORMAT,
        "node": store.node,
        "peer": known_link(store, row.link).peer,
        "link": row.link,
        "batch": str(name),
        "record": dict(made.event.details),
        "made": _entry(store, made, head.size),
        "settled": None if settled is None else _entry(store, settled, head.size),
        "checkpoint": head.note,
        "public_key": base64.b64encode(head.public_key).decode(),
        "limits": list(receipt.PROVENANCE_LIMITS),
    }
    return receipt.write({**whole, "signature": _sign(store, receipt.write(whole))})


def _sign(store: Store, text: str) -> str:
    """As a checkpoint over the one entry that the text is: so both keys of the node sign in forms that are theirs."""
    origin = f"{store.node}.provenance"
    checkpoint = Checkpoint(origin, 1, leaf_hash(text.encode()), store.now_ns)
    return sign_checkpoint(checkpoint, store.journal.signer)


def _entry(store: Store, told: Told, size: int) -> dict[str, Any]:
    leaf, proof = prove_inclusion(store, told.position, size)
    return {"leaf": leaf, "position": told.position, "proof": [step.hex() for step in proof]}


def _of_key(store: Store, key_id: KeyId) -> Batch:
    for chosen in bundles.choose(store, [key_id.bytes]):
        row = store.get(Batch, chosen.bundle.link, chosen.bundle.batch)
        if row is not None:
            return row
    raise VaultError(f"the vault holds no key {key_id}, or has set it aside as damaged")


def _of_name(store: Store, request: ShowProvenance) -> Batch:
    if request.batch is None or not receipt.BATCH.fullmatch(request.batch):
        raise LocalProtocolError(f"{request.batch!r} is no id of a Batch, such as 0000000100000001-00000001")
    session, number = (int(part, 16) for part in request.batch.split("-"))
    try:
        packed = pack_batch(msgspec.convert((session, number), BatchId))
    except msgspec.ValidationError:
        raise LocalProtocolError(f"{request.batch!r} is no id of a Batch: its session is too high") from None
    links = [link for (link,) in store.rows(_NAMED, packed) if request.link in (None, link)]
    if len(links) > 1:
        raise LocalProtocolError(f"links {', '.join(links)} each have a Batch {request.batch}: name the link")
    row = store.get(Batch, links[0], packed) if links else None
    if row is None:
        raise VaultError(f"the vault knows no Batch {request.batch}: see `qkdnode keys lineage`")
    return row


HANDLERS = {ShowProvenance: show_provenance}
