"""What changes between two documents: found by comparing every case, and told in full."""

import itertools

import msgspec
import pytest
from policies import GOOD, good
from test_policy_decision import some_document

from qkdnode.lifecycle.policy.decision import Case, standing
from qkdnode.lifecycle.policy.difference import Kind, difference
from qkdnode.lifecycle.policy.document import Document, parse


def told(before: str, after: str) -> list[tuple[Kind, str, str, str]]:
    changed = parse(GOOD.replace(before, after, 1).encode())
    assert changed != good()
    return [(its.kind, its.about, its.before, its.after) for its in difference(good(), changed)]


def test_a_document_does_not_differ_from_itself() -> None:
    assert difference(good(), good()) == ()


def test_what_becomes_denied_and_allowed_is_told_with_the_rules_that_decide() -> None:
    assert told('links = ["old"]', 'links = ["new"]') == [
        (
            Kind.ALLOWED,
            "class bulk of 256, 512 bits for payroll with any other over old",
            "denied by not-over-the-old-line",
            "allowed by payroll-has-all",
        ),
        (
            Kind.DENIED,
            "class bulk of 256, 512 bits for payroll with any other over new",
            "allowed by payroll-has-all",
            "denied by not-over-the-old-line",
        ),
    ]


@pytest.mark.parametrize(
    ("before", "after", "kind", "about"),
    [
        ("lifetime_s = 86400", "lifetime_s = 3600", Kind.SHORTER, "class bulk: lifetime_s"),
        ("lifetime_s = 86400\n", "", Kind.LONGER, "class bulk: lifetime_s"),
        ("max_age_at_release_s = 3600", "max_age_at_release_s = 7200", Kind.LONGER, "class bulk: max_age_at_release_s"),
        (
            "not_before = 2026-01-01T00:00:00Z",
            "not_before = 2026-06-01T00:00:00Z",
            Kind.SHORTER,
            "class bulk: not_before",
        ),
        ("not_before = 2026-01-01T00:00:00Z\n", "", Kind.LONGER, "class bulk: not_before"),
        ("2027-01-01T01:00:00+01:00", "2027-06-01T00:00:00Z", Kind.LONGER, "class bulk: not_after"),
        ("retain_key_s = 60", "retain_key_s = 61", Kind.LONGER, "class bulk: retain_key_s"),
        ("use_limit = 1\n", "", Kind.LONGER, "class bulk: use_limit"),
        ('label = "secret:red"', 'label = "secret"', Kind.CHANGED, "class bulk: label"),
        ('"AES-256-GCM", ', "", Kind.CHANGED, "class bulk: algorithms"),
        ("release_when_peer_unreachable = true", "", Kind.CHANGED, "class session: release_when_peer_unreachable"),
        ('operational = "maintainer"', 'destroyed = "maintainer"', Kind.CHANGED, "class bulk: custodian"),
        ("outstanding_keys = 64", "outstanding_keys = 65", Kind.LONGER, "application payroll: outstanding_keys"),
        ("reserve_bits = 4096", "reserve_bits = 8", Kind.SHORTER, "application payroll: reserve_bits"),
    ],
)
def test_a_changed_term_is_told_as_shorter_longer_or_changed(before: str, after: str, kind: Kind, about: str) -> None:
    assert [(its[0], its[1]) for its in told(before, after)] == [(kind, about)]


def test_every_field_of_a_class_and_an_application_is_compared() -> None:
    """A field that is added to the document and forgotten in the difference would be changed unseen."""
    from qkdnode.lifecycle.policy import difference as module
    from qkdnode.lifecycle.policy.document import Application, KeyClass

    compared = {*module._CLASS_LIMITS, *module._CLASS_TERMS, "not_before", "retain_key_s"}
    assert {*KeyClass.__struct_fields__} - {"name", "sizes_bits"} == compared  # sizes are cases
    assert {*Application.__struct_fields__} - {"name", "clearance", "reserve_bits"} == {*module._APPLICATION_LIMITS}


def allowed(document: Document) -> set[tuple[str, str, str, str, int]]:
    cases = itertools.product("abz", "rsz", "lmz", ("one", "two"), (8, 128, 256, 512, 65536))
    return {case for case in cases if standing(document, Case(*case)).allowed}


def test_the_difference_is_empty_of_cases_exactly_if_no_case_changes() -> None:
    seen = set()
    for seed in range(60):
        before, after = some_document(seed), some_document(seed + 1)
        kinds = {its.kind for its in difference(before, after)}
        assert (Kind.ALLOWED in kinds) >= bool(allowed(after) - allowed(before))
        assert (Kind.DENIED in kinds) >= bool(allowed(before) - allowed(after))
        same = msgspec.structs.replace(
            after, rules=before.rules, classes=before.classes, applications=before.applications
        )
        assert {Kind.ALLOWED, Kind.DENIED}.isdisjoint(its.kind for its in difference(before, same))
        seen |= kinds
    assert {Kind.ALLOWED, Kind.DENIED} <= seen
