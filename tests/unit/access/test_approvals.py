"""Approvals: what two people of different roles sign counts, and every misuse of it is refused by name."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from qkdnode.access.approvals import (
    APPROVING,
    MAX_APPROVAL_BYTES,
    MAX_VALID_NS,
    Approval,
    GuardedRequest,
    Person,
    Refusal,
    approve,
    check_approvals,
    decode_approval,
    encode_approval,
    signing_input,
)
from qkdnode.access.rules import Role
from qkdnode.errors import ApprovalError

OP, SO, AU, MA = Role.OPERATOR, Role.SECURITY_OFFICER, Role.AUDITOR, Role.MAINTAINER
NOW = 1_780_000_000 * 10**9
HOUR = 3600 * 10**9
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32)
    for i, name in enumerate(("olga", "sven", "max", "anna"))
}
REQUEST = GuardedRequest("policy", "alice", {"number": 3, "predecessor": "ab" * 32, "document": "cd" * 32}, "number")


def text(key: Ed25519PrivateKey) -> str:
    import base64

    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def verify(key: str, signature: bytes, message: bytes) -> bool:
    import base64

    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def people(**roles: Sequence[Role]) -> list[Person]:
    return [Person(name, text(KEYS[name]), tuple(its)) for name, its in roles.items()]


PEOPLE = people(olga=[OP], sven=[SO], max=[MA], anna=[AU])


def given(name: str, request: GuardedRequest = REQUEST, *, by: str | None = None, until: int = NOW + HOUR) -> Approval:
    return approve(request, name, until, KEYS[by or name].sign)


def other(**particulars: Any) -> GuardedRequest:
    return msgspec.structs.replace(REQUEST, particulars={**REQUEST.particulars, **particulars})


def refusal(approvals: Sequence[Approval], known: Sequence[Person] = PEOPLE, now: int = NOW) -> str:
    with pytest.raises(ApprovalError) as refused:
        check_approvals(REQUEST, approvals, known, now, verify)
    assert refused.value.refusal in str(refused.value)
    return refused.value.refusal


def test_two_people_of_two_roles_approve() -> None:
    approved = check_approvals(REQUEST, [given("olga"), given("sven")], PEOPLE, NOW, verify)
    assert [(one.approval.operator, one.role) for one in approved] == [("olga", OP), ("sven", SO)]


def test_an_approval_survives_its_file() -> None:
    approval = given("olga")
    assert decode_approval(encode_approval(approval), "olga.approval") == approval


MISUSE: dict[str, tuple[Callable[[], list[Approval]], Refusal]] = {
    "none": (list, Refusal.UNSIGNED),
    "one": (lambda: [given("olga")], Refusal.TOO_FEW),
    "the same file twice": (lambda: [given("olga")] * 2, Refusal.SAME_PERSON),
    "the same person on another day": (
        lambda: [given("olga"), given("olga", until=NOW + 2 * HOUR)],
        Refusal.SAME_PERSON,
    ),
    "a third that repeats the first": (lambda: [given("olga"), given("sven"), given("olga")], Refusal.SAME_PERSON),
    "one for the version before": (lambda: [given("olga"), given("sven", other(number=2))], Refusal.REPLAYED),
    "one for the version after": (lambda: [given("olga"), given("sven", other(number=4))], Refusal.OTHER_REQUEST),
    "one for another document": (
        lambda: [given("olga", other(document="ce" * 32)), given("sven")],
        Refusal.OTHER_REQUEST,
    ),
    "one for another predecessor": (
        lambda: [given("olga"), given("sven", other(predecessor="00" * 32))],
        Refusal.OTHER_REQUEST,
    ),
    "one with more in it": (lambda: [given("olga"), given("sven", other(also="this"))], Refusal.OTHER_REQUEST),
    "a number as text": (lambda: [given("olga"), given("sven", other(number="3"))], Refusal.OTHER_REQUEST),
    "one for another node": (
        lambda: [given("olga"), given("sven", msgspec.structs.replace(REQUEST, node="bob"))],
        Refusal.OTHER_NODE,
    ),
    "one for another kind of request": (
        lambda: [given("olga"), given("sven", msgspec.structs.replace(REQUEST, kind="destroy"))],
        Refusal.OTHER_KIND,
    ),
    "an expired one": (lambda: [given("olga"), given("sven", until=NOW)], Refusal.EXPIRED),
    "one that never expires": (
        lambda: [given("olga"), given("sven", until=NOW + MAX_VALID_NS + 1)],
        Refusal.EXPIRES_TOO_LATE,
    ),
    "one by a stranger": (lambda: [given("olga"), given("eve", by="max")], Refusal.UNKNOWN_PERSON),
    "one by an auditor": (lambda: [given("olga"), given("anna")], Refusal.AUDITOR),
    "one that somebody else signed": (lambda: [given("olga"), given("sven", by="olga")], Refusal.SIGNATURE),
    "one whose number was changed": (
        lambda: [
            given("olga"),
            msgspec.structs.replace(given("sven", other(number=2)), particulars=REQUEST.particulars),
        ],
        Refusal.SIGNATURE,
    ),
    "one whose node was changed": (
        lambda: [
            given("olga"),
            msgspec.structs.replace(given("sven", msgspec.structs.replace(REQUEST, node="bob")), node="alice"),
        ],
        Refusal.SIGNATURE,
    ),
    "one whose expiry was moved": (
        lambda: [given("olga"), msgspec.structs.replace(given("sven", until=NOW), expires_ns=NOW + HOUR)],
        Refusal.SIGNATURE,
    ),
    "one with another's name on it": (
        lambda: [given("olga"), msgspec.structs.replace(given("olga"), operator="sven")],
        Refusal.SIGNATURE,
    ),
    "nine": (lambda: [given("olga")] * 9, Refusal.TOO_MANY),
}


@pytest.mark.parametrize("what", MISUSE)
def test_misuse_is_refused_by_name(what: str) -> None:
    made, name = MISUSE[what]
    assert refusal(made()) == name


def test_one_key_under_two_names_is_one_person() -> None:
    known = [*people(olga=[OP]), Person("sven", text(KEYS["olga"]), (SO,))]
    assert refusal([given("olga"), given("sven", by="olga")], known) == Refusal.SAME_KEY


def test_every_pair_of_roles_counts_as_it_should() -> None:
    """Two people count if a role can be given to each so that they differ; who audits never counts."""
    subsets = [set(held) for n in range(len(Role) + 1) for held in itertools.combinations(Role, n)]
    for one, two in itertools.product(subsets, repeat=2):
        known = people(olga=sorted(one), sven=sorted(two))
        approvals = [given("olga"), given("sven")]
        counts = AU not in one and AU not in two and any(a != b for a in one & APPROVING for b in two & APPROVING)
        if counts:
            first, second = check_approvals(REQUEST, approvals, known, NOW, verify)
            assert first.role in one
            assert second.role in two
            assert first.role != second.role
        else:
            assert refusal(approvals, known) in {Refusal.AUDITOR, Refusal.NO_ROLE, Refusal.SAME_ROLE}


def test_every_field_of_a_request_is_signed_and_no_two_requests_give_the_same_bytes() -> None:
    requests = [
        REQUEST,
        msgspec.structs.replace(REQUEST, kind="policya", node="lice"),
        msgspec.structs.replace(REQUEST, node="bob"),
        *(other(**{name: 9}) for name in REQUEST.particulars),
        other(number="3"),
    ]
    inputs = {signing_input(its, who, until) for its in requests for who in ("olga", "sven") for until in (1, 2)}
    assert len(inputs) == 4 * len(requests)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 5000,
        b"x" * (MAX_APPROVAL_BYTES + 1),
        encode_approval(given("olga")).replace(b'"approval": 1', b'"approval": 2'),
        encode_approval(given("olga")).replace(b'"number": 3', b'"number": -3'),
        encode_approval(given("olga")).replace(b'"number": 3', b'"number": 3.5'),
        encode_approval(given("olga")).replace(b'"number": 3', b'"number": true'),
        encode_approval(given("olga")).replace(b'"operator"', b'"extra": 1, "operator"'),
        encode_approval(given("olga")).replace(b'=="', b'="'),
    ],
)
def test_what_is_no_approval_is_named(data: bytes) -> None:
    with pytest.raises(ApprovalError, match=r"x\.approval") as refused:
        decode_approval(data, "x.approval")
    assert refused.value.refusal == Refusal.MALFORMED
