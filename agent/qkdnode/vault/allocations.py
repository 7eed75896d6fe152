"""Allocation: the owner of a half cuts keys from it, the neighbour cuts the same, and only then is either supplied."""

import hashlib
import json
from uuid import UUID

from qkdnode.audit.events import MAX_DETAIL_CHARACTERS, Detail
from qkdnode.errors import LocalProtocolError, OutOfStockError, VaultError
from qkdnode.ids import Association, KeyId, binding_digest, other_role
from qkdnode.lifecycle.states import Stage
from qkdnode.vault import bundles, decoys, entitlements, generations, keys, marks, outbox, reach, revocations, stock
from qkdnode.vault.batches import known_link
from qkdnode.vault.bundles import Why
from qkdnode.vault.entitlements import Allotment
from qkdnode.vault.records import (
    ID_BYTES,
    KEYS_PER_BUNDLE,
    PENDING,
    READY,
    Batch,
    Bundle,
    KnownAssociation,
    Link,
    PeerRequest,
    pack_batch,
    unpack_batch,
)
from qkdnode.vault.requests import AcceptAllocation, AllocateKeys, AllocationAnswered, Associate, KeepDecoys
from qkdnode.vault.stock import Run
from qkdnode.vault.store import Store
from qkdnode.wire.codec import encode_body
from qkdnode.wire.messages import ACCEPTED, ALLOCATION_OUTCOMES, DENIED, NOT_SETTLED, REFUSED, Allocate

SIZES_BITS = range(8, 65536 + 1, 8)
NAME_CHARACTERS = range(1, 31 + 1)
RENEWED = Why("policy", "superseded")


def associate(store: Store, request: Associate) -> None:
    """Associate."""
    wanted = request.association
    for name in (wanted.local, wanted.remote):
        if len(name) not in NAME_CHARACTERS:
            raise LocalProtocolError(f"an application cannot be called {name!r}: 1 to 31 characters are allowed")
    local, remote = request.nodes
    binding = binding_digest(
        nodes=request.nodes,
        applications=(wanted.local, wanted.remote),
        source=wanted.source,
        purpose=request.purpose,
    )
    here, there = (json.dumps(sorted(set(names))) for names in request.services)
    known = entitlements.known_association(store, wanted)
    if known is None:
        number = store.scalar("SELECT coalesce(max(number), 0) + 1 FROM associations")
        row = KnownAssociation(
            number, wanted.local, wanted.remote, wanted.source, local, remote,
            request.link, request.purpose, request.key_class, binding, here, there,
        )  # fmt: skip
        names = {"local": _shown(store, wanted.local), "remote": _shown(store, wanted.remote)}
        store.create(row, "association.made", link=request.link, purpose=request.purpose, **names)
        store.associations_changed()
    elif (known.binding, known.link, known.class_) != (binding, request.link, request.key_class):
        raise LocalProtocolError(f"association {wanted} is known with other nodes, link, purpose or class")
    elif (known.services_local, known.services_remote) != (here, there):
        store.change(known, "association.services_changed", {}, services_local=here, services_remote=there)
        store.associations_changed()


def allocate_keys(store: Store, request: AllocateKeys) -> tuple[KeyId, ...]:
    """AllocateKeys."""
    count, size = request.count, request.size_bits
    if count < 1 or size not in SIZES_BITS or len(request.entropy) != ID_BYTES * count:
        raise LocalProtocolError(f"{count} keys of {size} bits with {len(request.entropy)} bytes for ids make no sense")
    association = entitlements.demand_association(store, request.association)
    supplied = generations.to_cut(store, association.number)
    generation = supplied[0] if request.generation is None else request.generation
    if generation not in supplied:
        raise LocalProtocolError(f"no keys of generation {generation} of {request.association} are cut now")
    return cut_ahead(store, request, association, generation)


def cut_ahead(store: Store, request: AllocateKeys, association: KnownAssociation, generation: int) -> tuple[KeyId, ...]:
    """Cut keys of a generation that the caller knows to be agreed, or proposed in a message that goes before."""
    count, size, link = request.count, request.size_bits, known_link(store, association.link)
    ids = _cut(store, request, link, association, entitlements.allot(store, association, count, size), generation)
    entitlements.book(store, association, count * size)
    return ids


def keep_decoys(store: Store, request: KeepDecoys) -> tuple[KeyId, ...]:
    """KeepDecoys."""
    count, size = request.count, request.size_bits
    if count < 0 or size not in SIZES_BITS or len(request.entropy) != ID_BYTES * count:
        raise LocalProtocolError(f"{count} decoys of {size} bits with {len(request.entropy)} bytes for ids: no sense")
    association = entitlements.demand_association(store, request.association)
    link = known_link(store, association.link)
    allotment, due = entitlements.decoys_due(store, association, size)
    decoys.demand_missing(due, count)
    decoys.end(store, due.old, RENEWED)
    generation = generations.to_cut(store, association.number)[0]
    return _cut(store, request, link, association, allotment, generation, decoy=True) if count else ()


def _cut(
    store: Store,
    request: AllocateKeys | KeepDecoys,
    link: Link,
    association: KnownAssociation,
    allotment: Allotment,
    generation: int,
    *,
    decoy: bool = False,
) -> tuple[KeyId, ...]:
    """Cut keys from this end's half, Bundle by Bundle, and ask the neighbour to cut the same."""
    size, entropy = request.size_bits, request.entropy
    ids = [UUID(bytes=entropy[i : i + ID_BYTES], version=4) for i in range(0, len(entropy), ID_BYTES)]
    done = 0
    for run in _plan(store, request, link):
        these = ids[done : done + (run.end - run.start) // size]
        done += len(these)
        _demand_ready(store, link.link, run.batch)
        with stock.cut(store, link.link, link.role, run.batch, run.start, run.end) as material:
            packed = b"".join(key.bytes for key in these)
            cut = bundles.Cut(
                link.link, run.batch, link.role, run.start, size, packed,
                allotment.key_class, allotment.policy, allotment.binding, generation, decoy,
            )  # fmt: skip
            number = bundles.make(store, association, cut, Stage.ALLOCATED, material, own=True).number
            mark = marks.mark_on_the_way(store, number, packed, material, decoy=decoy)
        batch = unpack_batch(run.batch)
        message = Allocate(
            number, association.local, association.remote, batch, run.start, size, packed,
            allotment.key_class, allotment.agreed, generation, mark,
        )  # fmt: skip
        outbox.post(store, link.link, number, message)
    return tuple(ids)


def accept_allocation(store: Store, request: AcceptAllocation) -> str:
    """AcceptAllocation."""
    link, allocate = known_link(store, request.link), request.allocate
    half, batch = other_role(link.role), pack_batch(allocate.batch)
    digest = hashlib.sha256(encode_body(allocate)).digest()
    end = allocate.offset_bits + allocate.size_bits * (len(allocate.key_ids) // ID_BYTES)
    answered = store.get(PeerRequest, link.link, allocate.request)
    if answered is not None:
        if answered.digest == digest:
            return answered.outcome
        _burn(store, link.link, half, batch, allocate.offset_bits, end)
        subject = f"{link.link}/{allocate.request}"
        store.alarm("allocation.conflict", subject, REFUSED, reason="a request number came again with other content")
        return REFUSED
    settled = store.get(Batch, link.link, batch)
    if settled is not None and settled.state == PENDING:
        return NOT_SETTLED
    association = entitlements.known_association(store, Association(allocate.remote, allocate.local, link.link))
    if association is not None and generations.may_come(store, association.number, allocate.generation):
        return NOT_SETTLED  # its proposal is on the way
    reason, outcome, allotment = _refusal(store, association, allocate, settled, half, end), REFUSED, None
    if association is not None and reason is None:
        judged = entitlements.accept(store, association, allocate)
        reason, outcome = (judged, DENIED) if isinstance(judged, str) else (None, ACCEPTED)
        allotment = None if isinstance(judged, str) else judged
    details: dict[str, Detail] = {
        "batch": str(allocate.batch),
        "offset": allocate.offset_bits,
        "bits": allocate.size_bits,
        "keys": len(allocate.key_ids) // ID_BYTES,
    }
    row = PeerRequest(link.link, allocate.request, digest, outcome)
    if association is None or allotment is None:
        burnt = _burn(store, link.link, half, batch, allocate.offset_bits, end)
        why = None if reason is None else reason[:MAX_DETAIL_CHARACTERS]
        store.create(row, "allocation.refused", outcome, **details, reason=why, burnt_bits=burnt)
        return outcome
    store.create(row, "allocation.accepted", **details)
    with stock.cut(store, link.link, half, batch, allocate.offset_bits, end) as material:
        decoy = marks.came_as_decoy(allocate.mark, allocate.key_ids, material)
        cut = bundles.Cut(
            link.link, batch, half, allocate.offset_bits, allocate.size_bits, allocate.key_ids,
            allotment.key_class, allotment.policy, allotment.binding, allocate.generation, decoy,
        )  # fmt: skip
        bundles.make(store, association, cut, Stage.READY, material, own=False)
    return ACCEPTED


def allocation_answered(store: Store, request: AllocationAnswered) -> tuple[KeyId, ...]:
    """AllocationAnswered."""
    if request.outcome not in ALLOCATION_OUTCOMES:
        raise LocalProtocolError(f"{request.outcome!r} is no answer to an Allocate: {', '.join(ALLOCATION_OUTCOMES)}")
    allocate = outbox.waiting_allocate(store, request.link, request.request)
    if allocate is None or request.outcome == NOT_SETTLED:
        return ()
    bundle = store.get(Bundle, request.request)
    ready: list[KeyId] = []
    if bundle is not None and request.outcome == ACCEPTED:
        ready = keys.make_ready(store, bundle)
    elif bundle is not None:
        keys.burn(store, bundle)
    outbox.clear(store, request.link, request.request)
    return tuple(ready)


def _plan(store: Store, request: AllocateKeys | KeepDecoys, link: Link) -> list[Run]:
    """Where the keys are cut: runs of whole keys, no more of them in one run than one Allocate carries."""
    size, left, wanted = request.size_bits, request.count, request.association
    plan = []
    for run in stock.usable_runs(store, link.link, link.role, size):
        start = run.start
        if reach.scope_of(store, link.link, run.batch, wanted.local, wanted.remote) is not None:
            continue
        while left and (fit := min((run.end - start) // size, left, KEYS_PER_BUNDLE)):
            plan.append(Run(run.batch, start, start + fit * size))
            start += fit * size
            left -= fit
        if not left:
            return plan
    raise OutOfStockError(
        f"link {link.link!r} has stock for {request.count - left} of the {request.count} keys of {size} bits asked for"
    )


def _demand_ready(store: Store, link: str, batch: bytes) -> None:
    """The plan read no MACs: the Batch must be usable by a verified row."""
    row = store.get(Batch, link, batch)
    if row is None or row.state != READY or not row.usable:
        raise VaultError(f"Batch {unpack_batch(batch)} of link {link!r} is not settled")


def _refusal(
    store: Store, association: KnownAssociation | None, allocate: Allocate, batch: Batch | None, half: str, end: int
) -> str | None:
    """Why the peer's request cannot be; None if it can."""
    ids = bundles.split(allocate.key_ids)
    if association is None:
        return "unknown association"
    if allocate.generation not in generations.to_cut(store, association.number):
        return f"generation {allocate.generation} is not supplied"
    if batch is None or batch.state != READY:
        return "unknown Batch" if batch is None else f"Batch is {batch.state}"
    if allocate.size_bits not in SIZES_BITS or allocate.offset_bits % 8 or len(allocate.key_ids) % ID_BYTES:
        return "sizes and offsets are whole bytes"
    if not 0 < len(ids) <= KEYS_PER_BUNDLE or len(set(ids)) != len(ids):
        return "key ids are missing, repeated or too many"
    if end > batch.half_bits or not stock.holds(store, batch.link, half, batch.batch, allocate.offset_bits, end):
        return "bits are not in stock"
    if bundles.taken(store, ids):
        return "a key id is taken"
    if revocations.is_revoked(store, batch.link, ids):
        return "a key is revoked"
    if reach.scope_of(store, batch.link, batch.batch, allocate.local, allocate.remote) is not None:
        return "the Batch is compromised"
    return None


def _burn(store: Store, link: str, half: str, batch: bytes, start: int, end: int) -> int:
    start, end = start // 8 * 8, (end + 7) // 8 * 8
    return stock.burn(store, link, half, batch, start, end) if end > start else 0


def _shown(store: Store, application: str) -> str:
    return store.sealing.pseudonym(application.encode())


HANDLERS = {
    Associate: associate,
    AllocateKeys: allocate_keys,
    KeepDecoys: keep_decoys,
    AcceptAllocation: accept_allocation,
    AllocationAnswered: allocation_answered,
}
