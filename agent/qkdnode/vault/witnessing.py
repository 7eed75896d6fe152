"""Witnessing: what neighbours sign of this log, and what this node signs of theirs."""

from functools import partial

import msgspec

from qkdnode.audit.checkpoint import Checkpoint, cosign, parse, verify, verify_cosignature
from qkdnode.audit.events import Detail
from qkdnode.audit.witness import NOTHING, Finding, Seen, judge
from qkdnode.errors import AuditError, LocalProtocolError, VaultDamagedError
from qkdnode.vault.journal import NOTES
from qkdnode.vault.proofs import prove_consistency
from qkdnode.vault.records import Link, Witnessed, witnessed_subject
from qkdnode.vault.requests import Request
from qkdnode.vault.rows import read_rows
from qkdnode.vault.store import Aftermath, Store

CONTRADICTION_NS = 600 * 10**9  # so often at most is a leaf written of checkpoints that do not go together
SECOND_NS = 10**9
_COSIGNED = "SELECT max(size) FROM cosignatures WHERE witness = ?"
_NOTE = "SELECT note FROM checkpoints WHERE size = ?"
_KEEP = "INSERT OR REPLACE INTO cosignatures VALUES (?, ?, ?)"


class NextCheckpoint(Request, frozen=True):
    """Sign what the log has now, for a witness. Answer: Growth, or None where its signature would say nothing new.

    The proof goes from `old_size`; without it from what the witness has signed last, as far as is known here.
    """

    witness: str
    old_size: int | None = None


class Growth(msgspec.Struct, frozen=True):
    """A checkpoint, and that the log goes on in it from an older size."""

    old_size: int
    proof: tuple[bytes, ...]
    size: int
    note: str


class KeepCosignature(Request, frozen=True):
    """Keep what a witness has signed of a checkpoint of this log. Answer: bool, False if it is not its signature."""

    witness: str
    log_key: bytes
    size: int
    line: str


class Witness(Request, frozen=True):
    """Sign the checkpoint of a neighbour's log if that goes on from the one signed last. Answer: Deposition.

    VaultDamagedError if what was signed last is not known for certain.
    """

    link: str
    origin: str
    log_key: bytes
    old_size: int
    proof: tuple[bytes, ...]
    note: str


class Deposition(msgspec.Struct, frozen=True):
    """What became of a neighbour's checkpoint: the line that was signed, or why none was."""

    size: int  # of the checkpoint; 0 if it is none
    cosigned: int  # size of the checkpoint that is signed last
    line: str = ""
    refused: str = ""  # "invalid", or a Finding


def next_checkpoint(store: Store, request: NextCheckpoint) -> Growth | None:
    """NextCheckpoint."""
    note, size = store.journal.checkpoint(), store.journal.size
    old_size = request.old_size
    if old_size is None:
        old_size = cosigned_size(store, request.witness)
        if old_size == size:
            return None
    if not 0 <= old_size <= size:
        raise LocalProtocolError(f"the log has {size} entries: it cannot go on from {old_size}")
    return Growth(old_size, prove_consistency(store, old_size, size), size, note)


def cosigned_size(store: Store, witness: str) -> int:
    """How many entries the newest checkpoint has that a witness has signed."""
    ((size,),) = store.rows(_COSIGNED, witness)
    return size if isinstance(size, int) else 0


def keep_cosignature(store: Store, request: KeepCosignature) -> bool:
    """KeepCosignature. As a checkpoint, it is no change of state but a word on one: it has no leaf."""
    notes = read_rows(store.connection, (str,), NOTES, _NOTE, request.size)
    if not notes:
        return False
    try:
        verify_cosignature(request.line, parse(notes[0][0]).checkpoint, request.witness, request.log_key)
    except AuditError:
        return False
    store.connection.execute(_KEEP, (request.size, request.witness, request.line))
    return True


def witness(store: Store, request: Witness) -> Deposition:
    """Witness: what is signed stands in the vault before anybody hears of it."""
    link = store.get(Link, request.link)
    if link is None:
        raise LocalProtocolError(f"link {request.link!r} is not known to the vault")
    row = store.get(Witnessed, request.link, link.pair)
    subject = witnessed_subject(request.link, link.pair)
    if row is None and store.journal.newest(subject) is not None:
        raise Aftermath(_lost(request.link), partial(_tell_lost, subject=subject))
    seen = NOTHING if row is None else Seen(row.size, row.root)
    try:
        checkpoint = verify(request.note, request.log_key)
    except AuditError:
        return Deposition(0, seen.size, refused="invalid")
    if checkpoint.origin != request.origin:
        return Deposition(0, seen.size, refused="invalid")
    finding = judge(seen, request.old_size, request.proof, checkpoint)
    if finding is Finding.GOES_ON:
        _remember(store, link, row, checkpoint, request.note)
        name, time_s = f"{store.node}.witness", store.now_ns // SECOND_NS
        return Deposition(checkpoint.size, checkpoint.size, cosign(name, time_s, checkpoint, store.journal.signer))
    if finding is Finding.SIZE:
        return Deposition(checkpoint.size, seen.size, refused=finding.value)
    if row is None:  # a first checkpoint with a proof that is none: there is nothing that it contradicts
        return Deposition(0, 0, refused="invalid")
    _contradicted(store, row, finding, checkpoint, request.note)
    return Deposition(checkpoint.size, seen.size, refused=finding.value)


def _remember(store: Store, link: Link, row: Witnessed | None, checkpoint: Checkpoint, note: str) -> None:
    details: dict[str, Detail] = {"log": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
    if row is None:
        fresh = Witnessed(
            link.link, link.pair, checkpoint.origin, checkpoint.size, checkpoint.root, note, store.now_ns, "", 0
        )
        store.create(fresh, "log.cosigned", **details)
    elif row.size != checkpoint.size:
        details["from"] = row.size
        store.change(
            row, "log.cosigned", details,
            size=checkpoint.size, root=checkpoint.root, note=note, signed_ns=store.now_ns,
        )  # fmt: skip


def _contradicted(store: Store, row: Witnessed, finding: Finding, checkpoint: Checkpoint, note: str) -> None:
    """Both checkpoints are signed by the neighbour: together they are the proof, and are kept."""
    if row.contradiction and 0 <= store.now_ns - row.contradicted_ns < CONTRADICTION_NS:
        return
    details: dict[str, Detail] = {
        "log": row.origin,
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "cosigned": row.size,
        "cosigned_root": row.root.hex(),
    }
    store.change(
        row, "log.contradicted", details, finding.value, contradiction=note, contradicted_ns=store.now_ns
    )  # fmt: skip


def _lost(link: str) -> VaultDamagedError:
    return VaultDamagedError(
        f"the vault lacks what this node has signed last of the log at the far end of link {link!r}: no more of it is "
        "signed; look for who wrote to the vault file, and provision the pair anew"
    )


def _tell_lost(store: Store, subject: str) -> None:
    store.alarm("record.missing", f"record/{subject}"[:128], "found", reason="the log tells of it, the vault lacks it")


HANDLERS = {NextCheckpoint: next_checkpoint, KeepCosignature: keep_cosignature, Witness: witness}
