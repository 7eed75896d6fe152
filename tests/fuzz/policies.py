"""Policies and approvals: what people write and sign, and what must hold of all that is taken."""

import base64
import hashlib
import json
import re
from collections.abc import Hashable, Iterable
from itertools import islice
from pathlib import Path

from approving import ALGORITHMS, KEYS
from approving import PEOPLE as OF_ONE_ROLE
from cryptography.exceptions import InvalidSignature
from policy_reference import reference

from fuzz.engine import Violation
from qkdnode.access.approvals import (
    GuardedRequest,
    Person,
    approve,
    check_approvals,
    decode_approval,
    encode_approval,
    signing_input,
)
from qkdnode.access.rules import Role
from qkdnode.errors import PolicyError
from qkdnode.lifecycle.policy.check import check
from qkdnode.lifecycle.policy.decision import Facts, choose, decide
from qkdnode.lifecycle.policy.difference import difference
from qkdnode.lifecycle.policy.document import parse, render
from qkdnode.lifecycle.policy.space import Space

PAGE = Path(__file__).resolve().parents[2] / "docs/policy.md"
NOW = 1_780_000_000 * 10**9
CASES = 24
REQUEST = GuardedRequest("policy", "alice", {"number": 3, "predecessor": "ab" * 32, "document": "cd" * 32}, "number")
OLD = GuardedRequest("policy", "alice", {**REQUEST.particulars, "number": 2}, "number")
# Of two roles each, so that roles alone do not tell one person from two.
PEOPLE = [Person(its.name, its.ed25519, (Role.OPERATOR, Role.MAINTAINER)) for its in OF_ONE_ROLE]
KNOWN = {person.ed25519: KEYS[person.name] for person in PEOPLE}


def policy_seeds() -> list[bytes]:
    """The documents of docs/policy.md, and one in which a rule that forbids meets one that permits."""
    documents: list[str] = re.findall(r"```toml\n(format.*?)```", PAGE.read_text(), re.DOTALL)
    both = documents[1] + '[[rule]]\nname = "no"\neffect = "forbid"\nlinks = ["old"]\n'
    return [text.encode() for text in (*documents, both)]


def take_policy(data: bytes) -> Iterable[Hashable]:
    """A document that is read is written back as it was, can be examined, and decides as the reference does."""
    document = parse(data)
    written = render(document)
    if parse(written) != document:
        raise Violation("a policy is not what it was once it is written")
    findings = check(document, ALGORITHMS)
    if difference(document, document):
        raise Violation("a policy differs from itself")
    try:
        cases = list(islice(Space([document]), CASES))
    except PolicyError:
        cases = []
    told: list[Hashable] = sorted({(finding.kind, finding.error) for finding in findings})
    for application, remote, link, sizes in cases:
        for age_ns in (None, 0, 10**18):
            facts = Facts(
                application=application.first, remote=remote.first, link=link.first, key_class=sizes.key_class,
                size_bits=sizes.low, now_ns=NOW, age_ns=age_ns,
            )  # fmt: skip
            decision = decide(document, facts)
            if (decision.allowed, decision.rule) != reference(document, facts):
                raise Violation("a policy decides otherwise than it reads")
            told.append(decision.rule if decision.rule in ("default-deny", "age-at-release") else decision.allowed)
        chosen = choose(
            document, application=application.first, remote=remote.first, link=link.first, size_bits=sizes.low,
            now_ns=NOW,
        )  # fmt: skip
        if chosen.allowed and chosen.terms not in document.classes:
            raise Violation("a class is chosen that the policy has not got")
    return told


def approval_seeds() -> list[bytes]:
    """Lists of approval files: good ones, the same twice, and of the version before."""
    made = {
        name: [json.loads(encode_approval(approve(its, name, NOW + 10**12, key.sign))) for its in (REQUEST, OLD)]
        for name, key in KEYS.items()
    }
    (olga, olga_old), (sven, sven_old) = made.values()
    lists = ([olga, sven], [sven, olga], [olga], [], [olga, olga], [olga_old, sven_old], [olga, sven_old])
    return [json.dumps(its).encode() for its in lists]


def take_approvals(data: bytes) -> Iterable[Hashable]:
    """Approvals that count are of two people with two keys and roles, each over this very request."""
    try:
        listed = json.loads(data)
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        return (decode_approval(data, "fuzz").operator,)
    approvals = [decode_approval(json.dumps(its).encode(), "fuzz") for its in listed]
    for approval in approvals:
        if decode_approval(encode_approval(approval), "fuzz") != approval:
            raise Violation("an approval is not what it was once it is written")
    approved = check_approvals(REQUEST, approvals, PEOPLE, NOW, signed)
    for names in ([one.approval.operator for one in approved], [one.ed25519 for one in approved]):
        if len(set(names)) < max(2, len(names)):
            raise Violation("one person counts twice")
    for one in approved:
        its = one.approval
        if its.particulars != REQUEST.particulars or not its.expires_ns > NOW:
            raise Violation("an approval counts for another request, or for ever")
        signed_for = signing_input(REQUEST, its.operator, its.expires_ns)
        if not signed(one.ed25519, signature_of(its.signature), signed_for):
            raise Violation("an approval counts that nobody signed")
    return (len(approved), hashlib.sha256(data).digest()[0] & 1)


def signature_of(text: str) -> bytes:
    """The bytes of a signature."""
    return base64.b64decode(text)


def signed(key: str, signature: bytes, message: bytes) -> bool:
    """As the vault checks it."""
    try:
        KNOWN[key].public_key().verify(signature, message)
    except InvalidSignature:
        return False
    return True
