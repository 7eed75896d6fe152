"""Policies that two operators approve for the vaults of tests, and documents for them."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qkdnode.access.approvals import Person, approve, encode_approval
from qkdnode.access.rules import Role
from qkdnode.vault.policies import guarded_request
from qkdnode.vault.requests import ApplyPolicy, CurrentPolicy, Request

KEYS = {name: Ed25519PrivateKey.from_private_bytes(bytes([65 + i]) * 32) for i, name in enumerate(("olga", "sven"))}
ROLES = {"olga": Role.OPERATOR, "sven": Role.SECURITY_OFFICER}
PEOPLE = tuple(
    Person(name, base64.b64encode(key.public_key().public_bytes_raw()).decode(), (ROLES[name],))
    for name, key in KEYS.items()
)
ALGORITHMS = ("AES-256-GCM", "OTP")
HOUR_NS = 3600 * 10**9
Call = Callable[[Request], Any]  # of a vault


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
    call: Call,
    node: str,
    now_ns: int,
    document: bytes,
    *,
    number: int | None = None,
    predecessor: bytes | None = None,
    by: Sequence[str] = tuple(KEYS),
) -> tuple[bytes, ...]:
    """What people sign for the next version, or for another."""
    current = call(CurrentPolicy())
    request = guarded_request(
        node,
        current.number + 1 if number is None else number,
        current.digest if predecessor is None else predecessor,
        document,
    )
    return tuple(encode_approval(approve(request, name, now_ns + HOUR_NS, KEYS[name].sign)) for name in by)


def application_of(call: Call, node: str, now_ns: int, approved: bytes, /, **changes: Any) -> ApplyPolicy:
    """The request to apply a document that both have approved; or another one under these approvals."""
    asked: dict[str, Any] = {
        "document": approved, "people": PEOPLE, "algorithms": ALGORITHMS, "by": "olga",
    }  # fmt: skip
    if "approvals" not in changes:
        asked["approvals"] = approvals(call, node, now_ns, approved)
    return ApplyPolicy(**{**asked, **changes})
