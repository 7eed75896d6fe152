"""Approvals of a guarded request: what two people of different roles sign, and the check that they did.

A guarded request has a kind (`policy`), a node, and particulars that say exactly what is to be done. An approval
repeats them, so that one for something else is refused by name, and is signed over their canonical bytes with the
operator's name and an expiry. Two different people, with two different keys, must hold two different roles; auditors
change nothing, and so approve nothing. A request that could be made twice has a particular in it that rises
(`counter`), or one that was drawn for it: the signature alone does not say how often.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import permutations
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from qkdnode.access.identities import Ed25519Text
from qkdnode.access.rules import Role
from qkdnode.config import Name
from qkdnode.errors import ApprovalError

APPROVERS = 2
MOST_APPROVALS = 8
APPROVING = frozenset({Role.SECURITY_OFFICER, Role.OPERATOR, Role.MAINTAINER})
MAX_APPROVAL_BYTES = 4096
MAX_VALID_NS = 7 * 86_400 * 10**9
SIGNATURE_BYTES = 64

SignatureText = Annotated[str, Meta(pattern=r"^[0-9a-zA-Z+/]{85}[AQgw]==\Z")]
Particular = Annotated[str, Meta(max_length=256)] | Annotated[int, Meta(ge=0, le=2**63 - 1)]
Verify = Callable[[str, bytes, bytes], bool]  # key as in a NAME.public, signature, message


class Refusal(StrEnum):
    """Why approvals do not count."""

    UNSIGNED = "unsigned"  # there is none
    TOO_FEW = "too-few"
    TOO_MANY = "too-many"
    MALFORMED = "malformed"
    OTHER_KIND = "other-kind"
    OTHER_NODE = "other-node"
    REPLAYED = "replayed"  # for an earlier request of this kind
    OTHER_REQUEST = "other-request"
    EXPIRED = "expired"
    EXPIRES_TOO_LATE = "expires-too-late"
    UNKNOWN_PERSON = "unknown-person"
    AUDITOR = "auditor"
    NO_ROLE = "no-role"
    SIGNATURE = "signature"
    SAME_PERSON = "same-person"
    SAME_KEY = "same-key"
    SAME_ROLE = "same-role"


class GuardedRequest(msgspec.Struct, frozen=True):
    """What is to be done, exactly. `counter` names the particular that rises from each such request to the next."""

    kind: Name
    node: Name
    particulars: dict[str, Particular]
    counter: str | None = None


class Approval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of an approval file: what somebody lets be done, until when, and their signature."""

    approval: Literal[1]
    kind: Name
    node: Name
    particulars: Annotated[dict[Annotated[str, Meta(min_length=1, max_length=32)], Particular], Meta(max_length=16)]
    operator: Name
    expires_ns: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    signature: SignatureText


class Person(msgspec.Struct, frozen=True):
    """Somebody who may approve, as the node knows them."""

    name: Name
    ed25519: Ed25519Text
    roles: tuple[Role, ...]


class Approved(msgspec.Struct, frozen=True):
    """An approval that counts, and the role that it counts in."""

    approval: Approval
    ed25519: Ed25519Text
    role: Role


def signing_input(request: GuardedRequest, operator: str, expires_ns: int) -> bytes:
    """What is signed: every field with its length, so that no two lists of fields give the same bytes."""
    particulars = json.dumps(request.particulars, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    fields = (
        b"qkdnode approval/1",
        request.kind.encode(),
        request.node.encode(),
        particulars.encode(),
        operator.encode(),
        expires_ns.to_bytes(8, "big"),
    )
    return b"".join(part for field in fields for part in (len(field).to_bytes(4, "big"), field))


def approve(request: GuardedRequest, operator: str, expires_ns: int, sign: Callable[[bytes], bytes]) -> Approval:
    """One person's approval."""
    signature = sign(signing_input(request, operator, expires_ns))
    return Approval(
        approval=1, kind=request.kind, node=request.node, particulars=request.particulars, operator=operator,
        expires_ns=expires_ns, signature=base64.b64encode(signature).decode(),
    )  # fmt: skip


def encode_approval(approval: Approval) -> bytes:
    """The contents of an approval file."""
    return msgspec.json.format(msgspec.json.encode(approval), indent=2) + b"\n"


def decode_approval(data: bytes, where: str) -> Approval:
    """The approval in a file; ApprovalError names `where` and the field at fault."""
    if len(data) > MAX_APPROVAL_BYTES:
        raise ApprovalError(Refusal.MALFORMED, f"{where} is {len(data)} bytes long and no approval")
    try:
        return msgspec.json.decode(data, type=Approval)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApprovalError(Refusal.MALFORMED, f"{where} is no approval: {error}") from None


def check_approvals(
    request: GuardedRequest,
    approvals: Sequence[Approval],
    people: Iterable[Person],
    now_ns: int,
    verify: Verify,
) -> tuple[Approved, ...]:
    """The approvals with the roles that they count in. ApprovalError, with its Refusal, if not all of them count or
    they are not those of two people of different roles."""
    if not approvals:
        raise ApprovalError(Refusal.UNSIGNED, f"nobody approved it: {APPROVERS} people of different roles must")
    if len(approvals) > MOST_APPROVALS:
        raise ApprovalError(Refusal.TOO_MANY, f"{len(approvals)} approvals; {MOST_APPROVALS} are looked at")
    known = {person.name: person for person in people}
    signers = [_signer(request, approval, known, now_ns, verify) for approval in approvals]
    _demand_different(signers)
    if len(signers) < APPROVERS:
        raise ApprovalError(
            Refusal.TOO_FEW, f"only {signers[0].name} approved it: {APPROVERS} people of different roles must"
        )
    roles = _roles(signers)
    return tuple(
        Approved(approval, person.ed25519, role)
        for approval, person, role in zip(approvals, signers, roles, strict=True)
    )


def _signer(
    request: GuardedRequest, approval: Approval, known: Mapping[str, Person], now_ns: int, verify: Verify
) -> Person:
    """Who gave a single approval, if it counts by itself."""
    who = f"the approval of {approval.operator}"
    if approval.kind != request.kind:
        raise ApprovalError(Refusal.OTHER_KIND, f"{who} is for a request of kind {approval.kind!r}")
    if approval.node != request.node:
        raise ApprovalError(Refusal.OTHER_NODE, f"{who} is for node {approval.node!r}, this is {request.node!r}")
    _demand_same(request, approval, who)
    if approval.expires_ns <= now_ns:
        raise ApprovalError(Refusal.EXPIRED, f"{who} has expired: have it given again")
    if approval.expires_ns - now_ns > MAX_VALID_NS:
        raise ApprovalError(
            Refusal.EXPIRES_TOO_LATE, f"{who} is valid for more than {MAX_VALID_NS // 86_400 // 10**9} days"
        )
    person = known.get(approval.operator)
    if person is None:
        raise ApprovalError(Refusal.UNKNOWN_PERSON, f"this node knows no operator {approval.operator!r}")
    if Role.AUDITOR in person.roles:
        raise ApprovalError(Refusal.AUDITOR, f"{person.name} is an auditor: auditors approve nothing")
    if not APPROVING & set(person.roles):
        raise ApprovalError(Refusal.NO_ROLE, f"{person.name} holds no role that approves")
    message = signing_input(request, approval.operator, approval.expires_ns)
    try:
        signature = base64.b64decode(approval.signature, validate=True)
    except binascii.Error:
        signature = b""
    if not verify(person.ed25519, signature, message):
        raise ApprovalError(Refusal.SIGNATURE, f"{who} is not signed with their key: it was changed, or is not theirs")
    return person


def _demand_same(request: GuardedRequest, approval: Approval, who: str) -> None:
    wanted, given = request.particulars, approval.particulars
    counter = request.counter
    if counter is not None and wanted.get(counter) != given.get(counter):
        have, want = given.get(counter), wanted[counter]
        if isinstance(have, int) and isinstance(want, int) and have < want:
            raise ApprovalError(Refusal.REPLAYED, f"{who} is for {counter} {have}, which is over; it is {want} now")
    for name in sorted({*wanted, *given}):
        if wanted.get(name) != given.get(name) or type(wanted.get(name)) is not type(given.get(name)):
            raise ApprovalError(
                Refusal.OTHER_REQUEST,
                f"{who} is for another request: its {name} is {given.get(name)}, not {wanted.get(name)}",
            )


def _demand_different(signers: Sequence[Person]) -> None:
    for i, one in enumerate(signers):
        for other in signers[:i]:
            if one.name == other.name:
                raise ApprovalError(Refusal.SAME_PERSON, f"{one.name} approved it twice: another person must too")
            if one.ed25519 == other.ed25519:
                raise ApprovalError(Refusal.SAME_KEY, f"{one.name} and {other.name} are one key: that is one person")


def _roles(signers: Sequence[Person]) -> tuple[Role, ...]:
    """A role for each, so that two of them are different. ApprovalError if there are none."""
    held = [sorted(APPROVING & set(person.roles)) for person in signers]
    for one, other in permutations(range(len(signers)), 2):
        for role in held[one]:
            others = [its for its in held[other] if its != role]
            if others:
                chosen = {one: role, other: others[0]}
                return tuple(chosen.get(i, held[i][0]) for i in range(len(signers)))
    names = " and ".join(person.name for person in signers)
    raise ApprovalError(Refusal.SAME_ROLE, f"{names} hold the same role {held[0][0]!r} alone: two roles must agree")
