"""The policy as a numbered chain of records: who approved which document, one after the other, and which is in force.

A version never changes and never goes: a rollback is a new version with an older document. What is in force is read
from rows that are verified, each as all rows are, and together: numbers without a gap, each record naming the digest of
the one before, approvals that verify, and no leaf in the log of a version that is not there. If that fails nothing is
allocated and nothing released.
"""

import base64
import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from qkdnode.access.approvals import (
    Approved,
    GuardedRequest,
    Person,
    check_approvals,
    decode_approval,
)
from qkdnode.audit.events import MAX_DETAIL_CHARACTERS, AccessEvent, Detail
from qkdnode.errors import ApprovalError, PolicyError, QkdnodeError, VaultDamagedError
from qkdnode.lifecycle.policy.builtin import VERSION, Configured, default_document
from qkdnode.lifecycle.policy.check import check
from qkdnode.lifecycle.policy.decision import document_digest
from qkdnode.lifecycle.policy.document import Document, KeyClass, parse, render
from qkdnode.vault.records import AppliedPolicy, KnownAssociation, policy_subject
from qkdnode.vault.requests import ApplyPolicy, CurrentPolicy, InForce, PolicyVersion, ShowPolicy
from qkdnode.vault.store import Aftermath, Store

GUARDED = "policy"  # the kind of the guarded request
GENESIS = bytes(32)  # what the first version names as the digest of the one before
_SHOWN = 4  # findings that an error names
_approvals = msgspec.json.Decoder(tuple[Approved, ...])


def guarded_request(node: str, number: int, predecessor: bytes, document: bytes) -> GuardedRequest:
    """What people approve: this document as this version after that record, at this node."""
    particulars: dict[str, str | int] = {
        "number": number, "predecessor": predecessor.hex(), "document": document_digest(document).hex(),
    }  # fmt: skip
    return GuardedRequest(GUARDED, node, particulars, "number")


def in_force(store: Store) -> InForce:
    """The newest version, or what is built in if there is none. VaultDamagedError if the chain is not as applied."""
    known = store.policy
    if known.in_force is None:
        if known.damage:
            raise VaultDamagedError(known.damage)
        known.in_force = _newest(store)
    return known.in_force


def current_policy(store: Store, request: CurrentPolicy) -> InForce:
    """CurrentPolicy."""
    return in_force(store)


def show_policy(store: Store, request: ShowPolicy) -> PolicyVersion:
    """ShowPolicy. From the rows as they are now, whatever is kept of them."""
    store.policy.forget()
    newest = in_force(store)
    wanted = newest.number if request.number is None else request.number
    if not 0 <= wanted <= newest.number:
        raise PolicyError(f"there is no version {wanted} of the policy: the newest is {newest.number}")
    return _version(store, _sound_row(store, wanted) if wanted else None, newest)


def apply_policy(store: Store, request: ApplyPolicy) -> PolicyVersion:
    """ApplyPolicy. Why a change was refused is journalled with who asked."""
    rows = _verified_chain(store)
    number, previous = len(rows) + 1, _digest(rows[-1]) if rows else GENESIS
    document = request.document
    try:
        if request.repeats is not None:
            document = _repeated(rows, request.repeats)
        _demand_sound(store, document, request.algorithms)
        approvals = [decode_approval(data, f"approval {i}") for i, data in enumerate(request.approvals, 1)]
        wanted = guarded_request(store.node, number, previous, document)
        approved = check_approvals(wanted, approvals, request.people, store.now_ns, is_signed)
    except (PolicyError, ApprovalError) as error:
        raise Aftermath(error, _refusal(request, number, document, error)) from None
    row = AppliedPolicy(
        number=number, previous=previous, document=document, approvals=msgspec.json.encode(approved),
        repeats=request.repeats, applied_ns=store.now_ns, applied_by=request.by,
    )  # fmt: skip
    pseudonym = store.sealing.pseudonym
    details: dict[str, Detail] = {
        "number": number,
        "previous": previous.hex(),
        "document": document_digest(document).hex(),
        "by": pseudonym(request.by.encode()),
        "repeats": request.repeats,
    }
    for i, one in enumerate(approved, 1):
        details[f"approved_by_{i}"] = f"{pseudonym(one.approval.operator.encode())} as {one.role}"
    row = store.create(row, "policy.applied", **details)
    store.policy.forget()
    store.policy.head = None
    return _version(store, row, in_force(store))


def last_known(store: Store, key_class: str) -> KeyClass | None:
    """The terms of a class in the newest version that knew it, for one that the policy in force does not know."""
    former, number = store.policy.former, in_force(store).number
    if key_class not in former:
        found: KeyClass | None = None
        for version in range(number - 1, -1, -1):
            document = _in_force(store, _sound_row(store, version) if version else None).document
            found = document.key_class(key_class)
            if found is not None:
                break
        former[key_class] = found
    return former[key_class]


# --- the chain -------------------------------------------------------------------------------------------------------


def _newest(store: Store) -> InForce:
    """By a look at the newest record alone, once all were verified in this run."""
    head = store.policy.head
    if head is None:
        rows = _verified_chain(store)
        return _in_force(store, rows[-1] if rows else None)
    number, digest = head
    row = _sound_row(store, number) if number else None
    count = store.scalar("SELECT count(*) FROM policies")
    _demand(count == number and (_digest(row) if row else GENESIS) == digest, "a version is missing or was put back")
    _demand(store.journal.newest(policy_subject(number + 1)) is None, f"version {number + 1} was taken away")
    return _in_force(store, row)


def _verified_chain(store: Store) -> list[AppliedPolicy]:
    rows = _sound_rows(store)
    previous = GENESIS
    for number, row in enumerate(rows, 1):
        _demand(row.number == number, f"version {number} is missing")
        _demand(row.previous == previous, f"version {number} does not follow on the one before")
        _demand(_still_approved(store, row), f"the approvals of version {number} do not verify")
        previous = _digest(row)
    _demand(store.journal.newest(policy_subject(len(rows) + 1)) is None, f"version {len(rows) + 1} was taken away")
    store.policy.head = (len(rows), previous)
    return rows


def _sound_rows(store: Store) -> list[AppliedPolicy]:
    try:
        return store.find(AppliedPolicy, "true ORDER BY number")
    except Aftermath as damage:
        raise _damaged(str(damage.error)) from None


def _sound_row(store: Store, number: int) -> AppliedPolicy:
    try:
        row = store.get(AppliedPolicy, number)
    except Aftermath as damage:
        raise _damaged(str(damage.error)) from None
    if row is None:
        raise _damaged(f"version {number} is missing")
    return row


def _in_force(store: Store, row: AppliedPolicy | None) -> InForce:
    if row is not None:
        return InForce(row.number, _digest(row), _parsed(row.document), row.document)
    find = store.find if store.reading else store.find_sound  # who only reads sets no row aside
    known = find(KnownAssociation, "true ORDER BY number")
    document = default_document(
        Configured(its.local, its.remote, its.source, its.class_, its.purpose) for its in known
    )  # fmt: skip
    return InForce(VERSION, GENESIS, document, render(document))


def _version(store: Store, row: AppliedPolicy | None, newest: InForce) -> PolicyVersion:
    return PolicyVersion(
        node=store.node,
        policy=newest if row is not None and row.number == newest.number else _in_force(store, row),
        previous=row.previous if row else GENESIS,
        repeats=row.repeats if row else None,
        applied_ns=row.applied_ns if row else None,
        applied_by=row.applied_by if row else None,
        approvals=_approvals.decode(row.approvals) if row else (),
        newest=newest.number,
        newest_digest=newest.digest,
        withheld=dict(store.policy.withheld),
    )


def _digest(row: AppliedPolicy) -> bytes:
    """All of a record but where it is kept: every field with its length."""
    repeats = b"" if row.repeats is None else str(row.repeats).encode()
    fields = (
        b"qkdnode policy record/1", str(row.number).encode(), row.previous, row.document, row.approvals, repeats,
        str(row.applied_ns).encode(), row.applied_by.encode(),
    )  # fmt: skip
    return hashlib.sha256(b"".join(part for its in fields for part in (len(its).to_bytes(4, "big"), its))).digest()


def _still_approved(store: Store, row: AppliedPolicy) -> bool:
    """With the keys and roles of the time: who is an operator today does not matter."""
    try:
        approved = _approvals.decode(row.approvals)
        people = [Person(one.approval.operator, one.ed25519, (one.role,)) for one in approved]
        wanted = guarded_request(store.node, row.number, row.previous, row.document)
        check_approvals(wanted, [one.approval for one in approved], people, row.applied_ns, is_signed)
    except (msgspec.DecodeError, ApprovalError):
        return False
    return True


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise _damaged(what)


def _damaged(what: str) -> Aftermath:
    text = (
        f"the policy's chain in the vault is not what was applied: {what}; nothing is allocated or released; look for "
        "who wrote to the vault file, keep it for evidence, and start a new vault"
    )

    def journal(store: Store) -> None:
        if not store.policy.damage:
            store.policy.damage = text
            store.alarm("policy.damaged", "policies", "found", reason=what[:MAX_DETAIL_CHARACTERS])

    return Aftermath(VaultDamagedError(text), journal)


# --- a change --------------------------------------------------------------------------------------------------------


def _repeated(rows: list[AppliedPolicy], number: int) -> bytes:
    if not 1 <= number <= len(rows):
        raise PolicyError(f"there is no version {number} of the policy to go back to: the newest is {len(rows)}")
    if number == len(rows):
        raise PolicyError(f"version {number} of the policy is in force: there is nothing to go back from")
    return rows[number - 1].document


def _demand_sound(store: Store, data: bytes, algorithms: tuple[str, ...]) -> None:
    found = check(parse(data), frozenset(algorithms), store.disallowed, store.deprecated)
    errors = [str(finding) for finding in found if finding.error]
    if errors:
        more = f" and {len(errors) - _SHOWN} more" * (len(errors) > _SHOWN)
        raise PolicyError(f"the policy cannot be applied: {'; '.join(errors[:_SHOWN])}{more}")


def _refusal(request: ApplyPolicy, number: int, document: bytes, error: QkdnodeError) -> Callable[[Store], None]:
    def journal(store: Store) -> None:
        details: dict[str, Detail] = {
            "number": number,
            "document": document_digest(document).hex(),
            "by": store.sealing.pseudonym(request.by.encode()),
            "approvals": len(request.approvals),
            "code": error.refusal if isinstance(error, ApprovalError) else error.code,
        }
        store.journal.record(AccessEvent, "policy", "policy.refused", "policies", details, "refused")

    return journal


@lru_cache(maxsize=4)
def _parsed(data: bytes) -> Document:
    return parse(data)


def is_signed(key: str, signature: bytes, message: bytes) -> bool:
    """Whether a signature of an approval is that of a key, as in a NAME.public."""
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


HANDLERS: dict[Any, Any] = {CurrentPolicy: current_policy, ShowPolicy: show_policy, ApplyPolicy: apply_policy}
