"""Rotations over a link that is cut: what the outbox holds for an association goes into a file, sealed, and comes out
at the other end into the same handlers that take it from the wire.

A file is sealed under 256 bits of the exporting end's half of the stock, which both ends have and neither uses again.
They are burnt here in the transaction that keeps the file, before it is written anywhere; there, in the one that
imports it. No key travels: both ends cut the keys of the next generation from what they hold.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qkdnode.access.approvals import Approved, GuardedRequest, Person, check_approvals, decode_approval
from qkdnode.audit.events import MAX_DETAIL_CHARACTERS, AccessEvent, Detail
from qkdnode.errors import (
    ApprovalError,
    LocalProtocolError,
    OutOfStockError,
    PolicyDeniedError,
    QkdnodeError,
    RemoteProtocolError,
    VaultError,
)
from qkdnode.ids import Association, other_role
from qkdnode.lifecycle.rotation import Phase
from qkdnode.vault import allocations, entitlements, outbox, reach, rotations, stock
from qkdnode.vault.batches import known_link
from qkdnode.vault.policies import is_signed
from qkdnode.vault.records import (
    ID_BYTES,
    READY,
    Batch,
    Courier,
    KnownAssociation,
    Link,
    Notice,
    pack_batch,
    unpack_batch,
)
from qkdnode.vault.requests import AcceptAllocation, AllocateKeys, AllocationAnswered, Request
from qkdnode.vault.rotations import BeginRotation, FollowRotation, GenerationPrepared, RotationState
from qkdnode.vault.store import Aftermath, Store
from qkdnode.wire import courier
from qkdnode.wire.courier import KEY_BITS, MAX_MESSAGES, MOST_SPENT, PURPOSE, Contents, File, Heading, Piece, Spot
from qkdnode.wire.messages import NOT_SETTLED, Allocate, Allocated, Message, Received

GUARDED = "rotate-import"  # the kind of the guarded request
MOST_KEYS = 256
_CONTENTS_BYTES = courier.SEALED_MAX - courier.TAG_BYTES - 4096  # what messages may take beside the rest
_spots = msgspec.msgpack.Decoder(tuple[Spot, ...])
_pieces = msgspec.msgpack.Decoder(tuple[Piece, ...])
_encode = msgspec.msgpack.Encoder().encode


class ExportBundle(Request, frozen=True):
    """Write what waits for the other end of an association into a file; a rotation is begun if none is on the way,
    unless `begin` is false: then VaultError if there is nothing to carry.

    Where the next generation is agreed and this end has cut none of it, `keys` of it are cut. `again`: the last file
    once more, to the byte. Answer: Exported.
    """

    association: Association
    by: str
    keys: int = 32
    size_bits: int = 256
    begin: bool = True
    again: bool = False


class ImportBundle(Request, frozen=True):
    """Take what a file of the other end says, as two people have approved. The file that was imported last may be
    imported again, and changes nothing. Answer: Imported."""

    file: bytes
    approvals: tuple[bytes, ...]
    people: tuple[Person, ...]
    by: str


class Exported(msgspec.Struct, frozen=True):
    """A file to be carried, and how the association stands now."""

    file: bytes
    number: int
    messages: int
    cut: int  # keys, of the next generation
    state: RotationState


class Imported(msgspec.Struct, frozen=True):
    """What was imported. `messages` of them were followed; `left`: those that could not be followed yet;
    `waits`: how many of this end wait for the other one."""

    number: int
    again: bool
    messages: int
    left: int
    waits: int
    state: RotationState


def file_digest(file: bytes) -> str:
    """By what people name a file to one another."""
    return hashlib.sha256(file).hexdigest()


def guarded_request(file: bytes) -> GuardedRequest:
    """What people approve: that this file is imported at the node that it is for. RemoteProtocolError if it is none."""
    its = courier.decode_file(file).heading
    particulars: dict[str, str | int] = {
        "file": file_digest(file), "number": its.number, "sender": its.sender, "link": its.link,
        "local": its.remote, "remote": its.local, "generation": its.generation,
    }  # fmt: skip
    return GuardedRequest(GUARDED, its.receiver, particulars, "number")


# --- out -------------------------------------------------------------------------------------------------------------


def export_bundle(store: Store, request: ExportBundle) -> Exported:
    """ExportBundle."""
    known = entitlements.demand_association(store, request.association)
    row, link = _row(store, known), known_link(store, known.link)
    if not 1 <= request.keys <= MOST_KEYS or request.size_bits not in allocations.SIZES_BITS:
        raise LocalProtocolError(f"{request.keys} keys of {request.size_bits} bits make no sense")
    if request.again:
        return _again(store, known, row, request)
    state, cut = _go_on(store, known, request)
    spent = _spots.decode(row.spent)
    pieces = tuple(_bounded([*_pieces.decode(row.answers), *map(courier.piece_of, _waiting(store, known))]))
    spot = _find_spot(store, link, known)
    heading = Heading(
        PURPOSE, store.node, link.peer, link.link, known.local, known.remote,
        state.number or state.current, row.sent + 1, spot, _drawn(store, courier.NONCE_BYTES),
    )  # fmt: skip
    plain = _encode(Contents(row.heard, spent, pieces))
    start = spot.offset_bits
    with (
        stock.cut(store, link.link, link.role, pack_batch(spot.batch), start, start + KEY_BITS) as key,
        memoryview(key) as view,
    ):
        sealed = AESGCM(view).encrypt(heading.nonce, plain, courier.associated(heading))
    file = courier.encode_file(File(heading, sealed))
    details = _told(store, request.by, file, heading) | {"messages": len(pieces), "cut": cut}
    kept = (*spent, spot)[-MOST_SPENT:]
    store.write(row, "rotation.exported", details, sent=heading.number, file=file, spent=_encode(kept))
    return Exported(file, heading.number, len(pieces), cut, state)


def _again(store: Store, known: KnownAssociation, row: Courier, request: ExportBundle) -> Exported:
    if not row.sent:
        raise VaultError(f"no file was ever written for {known.association}: there is none to be written again")
    heading = courier.decode_file(row.file).heading
    store.write(row, "rotation.exported_again", _told(store, request.by, row.file, heading))
    return Exported(row.file, row.sent, 0, 0, rotations.go_on(store, known))


def _go_on(store: Store, known: KnownAssociation, request: ExportBundle) -> tuple[RotationState, int]:
    """Begin a rotation, or take the one on the way as far as it goes here. The state, and how many keys were cut.

    Alice cuts hers with her proposal, which goes before them in the same file.
    """
    state, cut = rotations.go_on(store, known), 0
    is_new = state.phase is Phase.STEADY and request.begin
    if state.phase is Phase.STEADY and not request.begin and not _waiting(store, known):
        raise VaultError(f"nothing waits to be carried for {known.association}: no rotation is on the way here")
    if is_new:
        begun = BeginRotation(association=known.association, reason="operator", by=request.by)
        state = rotations.begin(store, begun)
    if state.phase in (Phase.PROPOSED, Phase.AGREED):
        if not state.outstanding:
            entropy = _drawn(store, ID_BYTES * request.keys)
            asked = AllocateKeys(
                association=known.association, count=request.keys, size_bits=request.size_bits, entropy=entropy
            )
            try:
                cut = len(allocations.cut_ahead(store, asked, known, state.number))
            except (PolicyDeniedError, OutOfStockError):
                if is_new:
                    raise
        _prepare(store, known)
    return rotations.go_on(store, known), cut


def _prepare(store: Store, known: KnownAssociation) -> None:
    """Once all that this end has cut is answered, its first keys are there."""
    if not any(isinstance(message, Allocate) for message in _waiting(store, known)):
        rotations.prepared(store, GenerationPrepared(association=known.association, keys=1))


def _drawn(store: Store, size: int) -> bytes:
    """Random bytes that are no secret."""
    with store.sealing.draw(size) as drawn, memoryview(drawn) as view:
        return view.tobytes()


def _find_spot(store: Store, link: Link, known: KnownAssociation) -> Spot:
    """Bits of this end's half that no compromise reaches."""
    for run in stock.usable_runs(store, link.link, link.role, KEY_BITS):
        batch = store.get(Batch, link.link, run.batch)
        if batch is None or batch.state != READY or not batch.usable:
            continue
        if run.end - run.start < KEY_BITS or reach.scope_of(store, link.link, run.batch, known.local, known.remote):
            continue
        return Spot(unpack_batch(run.batch), run.start)
    raise OutOfStockError(f"link {link.link!r} has no {KEY_BITS} bits in stock here to seal a file with")


def _waiting(store: Store, known: KnownAssociation) -> list[Message]:
    """What the outbox holds for a rotation of an association, in its order."""
    rows = store.find_sound(Notice, "link = ? ORDER BY number", known.link)
    return [message for message in map(outbox.message_of, rows) if _is_about(message, known)]


def _is_about(message: Message, known: KnownAssociation) -> bool:
    if not isinstance(message, courier.CARRIED) or isinstance(message, Allocated | Received):
        return False
    return (message.local, message.remote) == (known.local, known.remote)


def _bounded(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """As many of the first as a file holds; the others go with the next."""
    left = _CONTENTS_BYTES
    for piece in pieces[:MAX_MESSAGES]:
        left -= len(piece.body) + 16
        if left < 0:
            return
        yield piece


# --- in --------------------------------------------------------------------------------------------------------------


def import_bundle(store: Store, request: ImportBundle) -> Imported:
    """ImportBundle. Why a file was refused is journalled with who asked."""
    try:
        return _imported(store, request)
    except (VaultError, ApprovalError, RemoteProtocolError, LocalProtocolError) as error:
        raise Aftermath(error, _refusal(request, error)) from None


def _imported(store: Store, request: ImportBundle) -> Imported:
    file = courier.decode_file(request.file)
    heading, digest = file.heading, hashlib.sha256(request.file).digest()
    wanted = guarded_request(request.file)
    if heading.receiver != store.node:
        raise VaultError(f"the file is for node {heading.receiver!r}, this is {store.node!r}: it was carried astray")
    approvals = [decode_approval(data, f"approval {i}") for i, data in enumerate(request.approvals, 1)]
    approved = check_approvals(wanted, approvals, request.people, store.now_ns, is_signed)
    known, link = _addressee(store, heading)
    row = _row(store, known)
    if heading.number == row.heard and digest == row.digest:
        return Imported(heading.number, True, 0, 0, len(_waiting(store, known)), rotations.go_on(store, known))
    _demand_newer(store, known, row, heading)
    contents = _opened(store, link, known, file)
    if contents.heard > row.sent:
        raise VaultError(
            f"the other end has imported number {contents.heard} of this end, which has written {row.sent}: this vault "
            "is an older copy of itself"
        )
    told = _told(store, request.by, request.file, heading) | _approvers(store, approved)
    # Journalled before what follows from it: the row is written anew once the answers are known.
    row = store.write(row, "rotation.imported", told, heard=heading.number, digest=digest)
    for spot in contents.spent:  # of files that were lost, or came too late
        _burn(store, link, spot)
    answers: list[Message] = []
    notices: list[int] = []
    left = 0
    for piece in contents.pieces:
        message = courier.message_of(piece)
        followed = _follow(store, link, known, message)
        if isinstance(followed, Allocated):
            answers.append(followed)
        elif followed:
            notices += [message.notice] if not isinstance(message, Allocate | Allocated | Received) else []
        else:
            left += 1
    if notices:
        answers.append(Received(tuple(notices)))
    lost = row.sent - contents.heard  # or on the way
    spent = _spots.decode(row.spent)[-lost:] if lost else ()
    packed = _encode(tuple(map(courier.piece_of, answers)))
    details: dict[str, Detail] = {"messages": len(answers), "left": left}
    store.write(row, "rotation.answered", details, answers=packed, spent=_encode(spent))
    _prepare(store, known)
    state, waits = rotations.go_on(store, known), len(_waiting(store, known))
    return Imported(heading.number, False, len(contents.pieces) - left, left, waits, state)


def _addressee(store: Store, heading: Heading) -> tuple[KnownAssociation, Link]:
    link = store.get(Link, heading.link)
    if link is None:
        raise VaultError(f"the file is about link {heading.link!r}, which this node does not have")
    if link.peer != heading.sender:
        raise VaultError(f"the file is from node {heading.sender!r}; link {link.link!r} leads to {link.peer!r}")
    return entitlements.demand_association(store, Association(heading.remote, heading.local, heading.link)), link


def _demand_newer(store: Store, known: KnownAssociation, row: Courier, heading: Heading) -> None:
    if heading.number <= row.heard:
        raise VaultError(
            f"the file has number {heading.number}, and number {row.heard} of {known.association} was imported: it is "
            "an old one; import the newest, or have the other end write one"
        )
    current = rotations.show(store, rotations.ShowRotation(association=known.association)).current
    if heading.generation < current:
        raise VaultError(f"the file is about generation {heading.generation}, and generation {current} is supplied")


def _opened(store: Store, link: Link, known: KnownAssociation, file: File) -> Contents:
    """What a file holds; the bits that it is sealed with are burnt."""
    heading, spot = file.heading, file.heading.spot
    batch = store.get(Batch, link.link, pack_batch(spot.batch))
    if batch is None or batch.state != READY or not batch.usable:
        raise VaultError(f"the file is sealed with bits of Batch {spot.batch}, which is not in stock here")
    if reach.scope_of(store, link.link, batch.batch, known.local, known.remote) is not None:
        raise VaultError(f"the file is sealed with bits of Batch {spot.batch}, which is compromised")
    start, end, half = spot.offset_bits, spot.offset_bits + KEY_BITS, other_role(link.role)
    if end > batch.half_bits or not stock.holds(store, link.link, half, batch.batch, start, end):
        raise VaultError("the file is sealed with bits that are not in stock here: they were used, or it was altered")
    with stock.cut(store, link.link, half, batch.batch, start, end) as key, memoryview(key) as view:
        try:
            plain = AESGCM(view).decrypt(heading.nonce, file.sealed, courier.associated(heading))
        except InvalidTag:
            raise VaultError("the file does not open: it was altered, or is from another pair of nodes") from None
    return courier.decode_contents(plain)


def _follow(store: Store, link: Link, known: KnownAssociation, message: courier.CarriedMessage) -> Allocated | bool:
    """Do with a message what the link does with it; the answer, or whether it was followed."""
    match message:
        case Allocated():
            allocate = outbox.waiting_allocate(store, link.link, message.request)
            if allocate is not None and _is_about(allocate, known):
                answer = AllocationAnswered(link=link.link, request=message.request, outcome=message.outcome)
                allocations.allocation_answered(store, answer)
            return True
        case Received():
            for number in message.notices:
                notice = store.get(Notice, link.link, number)
                its = None if notice is None else outbox.message_of(notice)
                if its is not None and _is_about(its, known) and not isinstance(its, Allocate):
                    outbox.clear(store, link.link, number)
            return True
    if (message.remote, message.local) != (known.local, known.remote):
        raise RemoteProtocolError(f"the file of {known.association} holds a message about {message.remote}")
    if isinstance(message, Allocate):
        outcome: Any = allocations.accept_allocation(store, AcceptAllocation(link=link.link, allocate=message))
        return False if outcome == NOT_SETTLED else Allocated(message.request, outcome)
    return rotations.follow(store, FollowRotation(link=link.link, message=message))


def _burn(store: Store, link: Link, spot: Spot) -> None:
    batch, start = store.get(Batch, link.link, pack_batch(spot.batch)), spot.offset_bits
    if batch is not None and start % 8 == 0 and start + KEY_BITS <= batch.half_bits:
        stock.burn(store, link.link, other_role(link.role), batch.batch, start, start + KEY_BITS)


def _refusal(request: ImportBundle, error: QkdnodeError) -> Callable[[Store], None]:
    def journal(store: Store) -> None:
        details: dict[str, Detail] = {
            "file": file_digest(request.file),
            "by": store.sealing.pseudonym(request.by.encode()),
            "approvals": len(request.approvals),
            "code": error.refusal if isinstance(error, ApprovalError) else error.code,
            "reason": str(error)[:MAX_DETAIL_CHARACTERS],
        }
        store.journal.record(AccessEvent, "rotations", "rotation.import_refused", "rotations", details, "refused")

    return journal


# --- parts -----------------------------------------------------------------------------------------------------------


def _row(store: Store, known: KnownAssociation) -> Courier:
    """The row of an association; not yet written, with leaf -1, if there is none. All must be there that were."""
    found = [row for row in store.every(Courier) if row.association == known.number]
    empty = _encode(())
    return found[0] if found else Courier(known.number, known.link, 0, b"", empty, 0, b"", empty, leaf=-1)


def _told(store: Store, by: str, file: bytes, heading: Heading) -> dict[str, Detail]:
    return {
        "number": heading.number,
        "of": heading.generation,
        "file": file_digest(file),
        "batch": str(heading.spot.batch),
        "offset": heading.spot.offset_bits,
        "by": store.sealing.pseudonym(by.encode()),
    }


def _approvers(store: Store, approved: Sequence[Approved]) -> dict[str, Detail]:
    pseudonym = store.sealing.pseudonym
    return {
        f"approved_by_{i}": f"{pseudonym(one.approval.operator.encode())} as {one.role}"
        for i, one in enumerate(approved, 1)
    }


HANDLERS: dict[Any, Any] = {ExportBundle: export_bundle, ImportBundle: import_bundle}
