"""Operators who approve policies of the test vaults, and documents for them."""

import base64
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from vaults import NODES, START_NS, End

from qkdnode.access.approvals import Person, approve, encode_approval
from qkdnode.access.rules import Role
from qkdnode.vault.policies import guarded_request
from qkdnode.vault.requests import ApplyPolicy, CurrentPolicy, PolicyVersion

KEYS = {name: Ed25519PrivateKey.from_private_bytes(bytes([65 + i]) * 32) for i, name in enumerate(("olga", "sven"))}
ROLES = {"olga": Role.OPERATOR, "sven": Role.SECURITY_OFFICER}
PEOPLE = tuple(
    Person(name, base64.b64encode(key.public_key().public_bytes_raw()).decode(), (ROLES[name],))
    for name, key in KEYS.items()
)
ALGORITHMS = ("AES-256-GCM", "OTP")
HOUR_NS = 3600 * 10**9


def policy(
    terms: str = "", *, rules: str = "", application: str = "", name: str = "bulk", purpose: str = "bulk-encryption"
) -> bytes:
    """A document that permits one class to everybody, with more terms, rules and an application's table."""
    return f"""\
format = "qkdnode-policy/1"
levels = ["open", "secret"]
[[class]]
name = "{name}"
label = "open"
purpose = "{purpose}"
{terms}
{application}
[[rule]]
name = "everybody"
effect = "permit"
{rules}
""".encode()


def approvals(
    end: End,
    document: bytes,
    *,
    number: int | None = None,
    predecessor: bytes | None = None,
    by: Sequence[str] = tuple(KEYS),
) -> tuple[bytes, ...]:
    """What people sign for the next version, or for another."""
    now = end.call(CurrentPolicy())
    request = guarded_request(
        NODES[end.role],
        now.number + 1 if number is None else number,
        now.digest if predecessor is None else predecessor,
        document,
    )
    expires_ns = START_NS + end.counter.ahead_ns + HOUR_NS
    return tuple(encode_approval(approve(request, name, expires_ns, KEYS[name].sign)) for name in by)


def apply(end: End, approved: bytes, /, **changes: Any) -> PolicyVersion:
    """Have a document applied, approved by both; or something else asked under these approvals."""
    asked: dict[str, Any] = {
        "document": approved, "approvals": approvals(end, approved), "people": PEOPLE, "algorithms": ALGORITHMS,
        "by": "olga",
    }  # fmt: skip
    version: PolicyVersion = end.call(ApplyPolicy(**{**asked, **changes}))
    return version
