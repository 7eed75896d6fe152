"""The lineage of one key: from the devices whose photons it is made of to its end, as the vault and its log tell it."""

from typing import Any

import msgspec

from qkdnode.audit import events
from qkdnode.errors import VaultDamagedError, VaultError
from qkdnode.ids import KeyId
from qkdnode.vault import bundles, reach
from qkdnode.vault.inventory import ListedKey, listed
from qkdnode.vault.records import Batch, Bundle, unpack_batch
from qkdnode.vault.requests import BatchRecord, Request
from qkdnode.vault.store import Store

MOST_LEAVES = 1024  # of one Bundle's and of its Batch's, read for one answer
_record = msgspec.msgpack.Decoder(BatchRecord)
_LEAVES = "SELECT position, leaf FROM leaves WHERE subject = ? ORDER BY position LIMIT ?"


class ShowLineage(Request, frozen=True):
    """Where a key comes from and what became of it. Answer: Lineage. VaultError if the vault does not know it."""

    key_id: KeyId


class LineageStep(msgspec.Struct, frozen=True):
    """One leaf of the audit log that tells of the key, or of the Batch that it was cut from."""

    position: int
    time_ns: int
    happened: str
    outcome: str
    details: dict[str, str | int | float | bool | None]


class Lineage(msgspec.Struct, frozen=True):
    """Answer to ShowLineage."""

    key: ListedKey
    batch: BatchRecord
    batch_state: str
    made_ns: int
    settled_ns: int | None
    services: tuple[tuple[str, ...], tuple[str, ...]]  # of the application here, and of the far one
    scope: int | None  # the compromise that reaches it
    steps: tuple[LineageStep, ...]


def show_lineage(store: Store, request: ShowLineage) -> Lineage:
    """ShowLineage."""
    for chosen in bundles.choose(store, [request.key_id.bytes]):
        return _lineage(store, chosen.bundle, chosen.places[0])
    raise VaultError(f"the vault holds no key {request.key_id}, or has set it aside as damaged")


def _lineage(store: Store, bundle: Bundle, place: int) -> Lineage:
    key_id = bundle.key_id(place)
    batch = store.get(Batch, bundle.link, bundle.batch)
    association = store.get_association(bundle.association)
    if batch is None or association is None:
        raise VaultDamagedError(
            f"Batch {unpack_batch(bundle.batch)} of link {bundle.link!r}, or the association of its keys, is not in "
            "the vault any more: look for who wrote to the vault file"
        )
    scope = reach.scope_of_bundle(store, bundle)
    pseudonym = store.sealing.pseudonym(key_id)
    steps = _told(store, batch, None) + _told(store, bundle, pseudonym)
    return Lineage(
        key=listed(store, bundle, place),
        batch=_record.decode(batch.record),
        batch_state=batch.state,
        made_ns=batch.made_ns,
        settled_ns=batch.settled_ns,
        services=(_names(association.services_local), _names(association.services_remote)),
        scope=None if scope is None else scope.number,
        steps=tuple(sorted(steps, key=lambda step: step.position)),
    )


def _told(store: Store, row: Batch | Bundle, pseudonym: str | None) -> list[LineageStep]:
    """What the log tells of a row; of a Bundle only what concerns one key."""
    subject = row.subject(store.sealing.pseudonym)
    rows: list[Any] = store.connection.execute(_LEAVES, (subject, MOST_LEAVES)).fetchall()
    told = []
    for position, leaf in rows:
        event = events.decode(leaf.encode())
        if pseudonym is None or (event.keys is not msgspec.UNSET and pseudonym in event.keys):
            told.append(LineageStep(position, event.time_ns, event.kind, event.outcome, dict(event.details)))
    return told


def _names(services: str) -> tuple[str, ...]:
    return msgspec.json.decode(services, type=tuple[str, ...])


HANDLERS = {ShowLineage: show_lineage}
