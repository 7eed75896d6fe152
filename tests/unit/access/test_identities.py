"""Public identities and the allow-list of their keys."""

import json

import pytest

from qkdnode.access.allowlist import AllowList
from qkdnode.access.identities import ApplicationIdentity, NodeIdentity, decode_public, encode_public
from qkdnode.errors import ConfigError

CURVE = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
OTHER_CURVE = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
ED25519 = "A" * 43 + "="


def application(name: str, curve: str = CURVE) -> ApplicationIdentity:
    return ApplicationIdentity(name=name, curve=curve, ed25519=ED25519)


@pytest.mark.parametrize("kind", [NodeIdentity, ApplicationIdentity])
def test_a_public_file_reads_back_as_what_it_was(kind: type[NodeIdentity] | type[ApplicationIdentity]) -> None:
    more = {"mldsa44": "A" * 1750 + "=="} if kind is NodeIdentity else {}
    identity = kind(name="a-1", curve=CURVE, ed25519=ED25519, **more)
    assert decode_public(encode_public(identity), "a-1.public") == identity


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "king"),
        ("name", "UPPER"),
        ("name", "../x"),
        ("curve", CURVE[:-1]),
        ("curve", CURVE[:-1] + '"'),
        ("ed25519", "short="),
        ("secret", "x"),
    ],
)
def test_a_public_file_with_a_wrong_field_is_refused_by_name(field: str, value: str) -> None:
    fields = json.loads(encode_public(application("a-1")))
    with pytest.raises(ConfigError, match=r"a\.public is not a public identity"):
        decode_public(json.dumps({**fields, field: value}).encode(), "a.public")


def test_a_huge_public_file_is_not_even_parsed() -> None:
    with pytest.raises(ConfigError, match="bytes long"):
        decode_public(b"{" * 5000, "a.public")


def test_only_listed_keys_are_allowed_and_the_reason_is_told() -> None:
    allowed = AllowList([application("a-1")])
    assert allowed.decide(CURVE).allowed
    assert allowed.decide(CURVE).identity == application("a-1")
    refused = allowed.decide(OTHER_CURVE)
    assert not refused.allowed
    assert "not on the list of 1 allowed keys" in refused.reason
    assert OTHER_CURVE in refused.reason


def test_an_empty_list_allows_nobody() -> None:
    empty: AllowList[ApplicationIdentity] = AllowList()
    assert not empty.decide(CURVE).allowed
    assert empty.named("a-1") is None


def test_a_name_or_a_key_for_two_identities_is_refused() -> None:
    for second in (application("a-1", OTHER_CURVE), application("a-2")):
        with pytest.raises(ConfigError, match="share a name or a CURVE key"):
            AllowList([application("a-1"), second])
