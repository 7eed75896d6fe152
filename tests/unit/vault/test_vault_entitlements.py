"""The policy at work: what is cut, what goes out and what does not, in the vaults of both ends."""

import os
from typing import Any

import pytest
from approving import HOUR_NS, policy
from vaults import LINK, START_NS, End, Pair, contents, waiting

from qkdnode.errors import PolicyDeniedError, PolicyError, VaultError
from qkdnode.ids import Association
from qkdnode.vault.agility import NoteAlgorithms
from qkdnode.vault.records import Bundle
from qkdnode.vault.requests import (
    AcceptAllocation,
    AllocateKeys,
    AllocationAnswered,
    ApplicationOutbox,
    Associate,
    Entitle,
    Entitlement,
    EventsAfter,
    ExplainPolicy,
    OpenKeys,
    ShowPolicy,
    Status,
)

S = 10**9
NOWHERE = policy(rules='remotes = ["nobody"]')
OTHERS = policy(application='[[application]]\nname = "other"\nclearance = "open"\nreserve_bits = 30000\n', rules="")


def both(pair: Pair, document: bytes) -> None:
    for end in pair.ends:
        end.apply(document)


def entitled(end: End, size_bits: int = 256) -> Entitlement:
    its: Entitlement = end.call(Entitle(association=end.association, size_bits=size_bits))
    return its


def outbox(end: End) -> list[Any]:
    return [row.key_id for row in end.call(ApplicationOutbox(application=end.association.local))]


def leaves(end: End, kind: str) -> list[Any]:
    return [event for _, event in end.call(EventsAfter(position=0, limit=4096)) if event.kind == kind]


def opened(end: End, *keys: Any) -> tuple[Any, ...]:
    its = end.call(OpenKeys(key_ids=tuple(keys), application=end.association.local))
    its.material.release()
    ids: tuple[Any, ...] = its.key_ids
    return ids


def passes(pair: Pair, ns: int) -> None:
    for end in pair.ends:
        end.counter.ahead_ns += ns


def test_keys_carry_class_and_version_of_the_policy_and_open_under_any_later_one(pair: Pair) -> None:
    pair.stock()
    before = pair.ready(pair.alice)
    both(pair, policy())
    after = pair.ready(pair.alice)
    told = [(leaf.details["class"], leaf.details["policy"]) for leaf in leaves(pair.alice, "key.allocated")]
    assert told == [("qkd", 0), ("bulk", 1)]
    pair.alice.apply(policy("lifetime_s = 5"))
    for key in after:
        assert contents(pair.alice, key) == contents(pair.bob, key)
    with pytest.raises(PolicyDeniedError, match="unknown-class"):  # no document of these names the class
        contents(pair.alice, before[0])


def test_a_key_is_bound_to_class_and_version_by_its_ciphertext(pair: Pair) -> None:
    """A row whose MAC were forged would still not give the key as one of another class or version."""
    its: dict[str, Any] = dict.fromkeys(Bundle.__struct_fields__, 0)
    its |= {"states": b"r", "key_ids": bytes(16), "class_": "bulk", "policy": 1, "binding": bytes(32)}
    bound = Bundle(**its).bound(0)
    for changed in ({"class_": "session"}, {"policy": 2}, {"binding": bytes([1]) * 32}):
        assert Bundle(**{**its, **changed}).bound(0) != bound


def test_services_and_purpose_are_in_the_binding_and_equal_at_both_ends_or_not_at_all(pair: Pair) -> None:
    assert entitled(pair.alice).binding == entitled(pair.bob).binding
    services = (("spiffe://a/payroll", "DNS:payroll.a"), ("spiffe://b/ledger",))
    for end, its in ((pair.alice, services), (pair.bob, services[::-1])):
        nodes = ("a", "b") if end is pair.alice else ("b", "a")
        asked: dict[str, Any] = {"association": end.association, "nodes": nodes, "link": LINK, "purpose": "test"}
        before = entitled(end).binding
        end.call(Associate(**asked, key_class="qkd", services=its))
        assert entitled(end).binding != before
        end.call(Associate(**asked, key_class="qkd", services=its))  # idempotent
        assert len(leaves(end, "association.services_changed")) == 1
        end.reopen()
    assert entitled(pair.alice).binding == entitled(pair.bob).binding
    both(pair, policy())
    bulk = entitled(pair.alice)
    both(pair, policy(purpose="session"))
    assert entitled(pair.alice).binding != bulk.binding
    assert entitled(pair.alice).terms != bulk.terms


def test_different_terms_are_refused_with_their_reason_and_burn_nothing_more_than_was_cut(pair: Pair) -> None:
    pair.stock()
    pair.alice.apply(policy("lifetime_s = 5"))
    pair.bob.apply(policy("lifetime_s = 6"))
    assert entitled(pair.alice).terms != entitled(pair.bob).terms
    pair.allocate(pair.alice)
    (allocate,) = waiting(pair.alice)
    outcome = pair.bob.call(AcceptAllocation(link=LINK, allocate=allocate))
    assert outcome == "denied"
    assert pair.bob.call(AcceptAllocation(link=LINK, allocate=allocate)) == "denied"  # as before
    (leaf,) = leaves(pair.bob, "allocation.refused")
    assert "terms of class 'bulk'" in str(leaf.details["reason"])
    assert leaf.details["burnt_bits"] == 3 * 256
    assert pair.alice.call(AllocationAnswered(link=LINK, request=allocate.request, outcome=outcome)) == ()
    alice, bob = pair.alice.call(Status()), pair.bob.call(Status())
    assert alice.stock_bits_own == bob.stock_bits_peer
    assert alice.keys == {"burnt": 3}
    both(pair, policy("lifetime_s = 6"))
    assert len(pair.ready(pair.alice)) == 3


def test_an_end_that_forbids_denies_what_the_other_cuts(pair: Pair) -> None:
    pair.stock()
    pair.alice.apply(policy())
    pair.bob.apply(policy(rules='[[rule]]\nname = "not-now"\neffect = "forbid"\nlinks = ["metro"]'))
    pair.allocate(pair.alice)
    (allocate,) = waiting(pair.alice)
    assert pair.bob.call(AcceptAllocation(link=LINK, allocate=allocate)) == "denied"
    (leaf,) = leaves(pair.bob, "allocation.refused")
    assert "rule not-now" in str(leaf.details["reason"])


def test_a_switch_counts_from_the_next_request_on(pair: Pair) -> None:
    pair.stock()
    both(pair, policy())
    keys = pair.ready(pair.alice)
    pair.alice.apply(NOWHERE)
    assert not entitled(pair.alice).allowed
    with pytest.raises(PolicyDeniedError, match="default-deny"):
        pair.allocate(pair.alice)
    with pytest.raises(PolicyDeniedError, match="default-deny"):
        opened(pair.alice, *keys)
    assert outbox(pair.alice) == []
    pair.alice.apply(policy())
    assert opened(pair.alice, *keys) == keys
    assert outbox(pair.alice) == list(keys)


DENIED: dict[str, tuple[bytes, int, bytes | None, str]] = {
    "too old": (policy("max_age_at_release_s = 5"), 6 * S, None, "age-at-release"),
    "after its window": (policy("not_after = 2023-11-14T23:13:20Z"), HOUR_NS, None, "validity-window"),  # START + 1 h
    "forbidden by a later policy": (policy(), 0, NOWHERE, "default-deny"),
    "above the clearance of a later policy": (
        policy(), 0, policy().replace(b'label = "open"', b'label = "secret"').replace(
            b"[[rule]]", b'[[application]]\nname = "vip"\nclearance = "secret"\n[[rule]]'
        ), "label-dominance",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DENIED)
def test_a_key_that_may_not_go_out_is_left_out_counted_and_journalled_and_stays(pair: Pair, what: str) -> None:
    document, later_ns, later, rule = DENIED[what]
    pair.stock()
    both(pair, document)
    keys = pair.ready(pair.alice)
    passes(pair, later_ns)
    if later is not None:
        both(pair, later)
    before = pair.alice.call(Status()).keys
    for _ in range(2):
        with pytest.raises(PolicyDeniedError) as refused:
            opened(pair.alice, *keys)
        assert refused.value.rule == rule
        with pytest.raises(VaultError):
            contents(pair.alice, keys[0])
        assert outbox(pair.alice) == []
    (leaf,) = leaves(pair.alice, "key.withheld")
    assert (leaf.outcome, leaf.details["rule"], leaf.details["keys"], len(leaf.keys)) == ("refused", rule, 3, 3)
    assert pair.alice.call(ShowPolicy()).withheld == {rule: 2 * (3 + 1 + 3)}
    assert pair.alice.call(Status()).keys == before == {"ready": 3}


def test_keys_that_may_go_out_are_not_held_up_by_those_that_may_not(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 5"))
    old = pair.ready(pair.alice)
    passes(pair, 6 * S)
    young = pair.ready(pair.alice)
    assert outbox(pair.alice) == list(young)
    assert opened(pair.alice, *old, *young) == young
    assert len(leaves(pair.alice, "key.withheld")) == 1
    assert entitled(pair.alice).outstanding == 3  # the old ones are not waited for


def test_without_the_neighbour_only_keys_of_classes_that_do_not_wait_for_it_go_out(pair: Pair) -> None:
    pair.stock()
    for terms, waits in (("", True), ("release_when_peer_unreachable = true", False)):
        both(pair, policy(terms))
        keys = pair.ready(pair.alice)
        request = OpenKeys(key_ids=keys, application="payroll", peer_reachable=False)
        if waits:
            with pytest.raises(PolicyDeniedError, match="peer-unreachable"):
                pair.alice.call(request)
            assert opened(pair.alice, *keys) == keys
        else:
            pair.alice.call(request).material.release()
        assert outbox(pair.alice)[-3:] == list(keys)


def test_a_clock_that_goes_back_makes_no_key_older(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 5"))
    keys = pair.ready(pair.alice)
    passes(pair, -HOUR_NS)
    assert opened(pair.alice, *keys) == keys


@pytest.mark.parametrize(
    ("document", "room", "rule"),
    [
        (
            policy(application='[[application]]\nname = "payroll"\nclearance = "open"\noutstanding_keys = 5\n'),
            5,
            "quota-outstanding",
        ),
        (
            policy(application='[[application]]\nname = "payroll"\nclearance = "open"\nstock_share = 0.1\n'),
            12,
            "quota-stock-share",
        ),
        (
            policy(application='[[application]]\nname = "other"\nclearance = "open"\nreserve_bits = 30000\n'),
            11,
            "reserve-of-others",
        ),
    ],
)
def test_quotas_and_reserves_leave_just_so_much_room(pair: Pair, document: bytes, room: int, rule: str) -> None:
    pair.stock()
    other = Association("other", "ledger", LINK)
    pair.alice.associate(other)
    pair.bob.associate(other.mirrored())
    both(pair, document)
    assert sum(pair.alice.call(Status()).stock_bits_own.values()) == 32952
    its = entitled(pair.alice)
    assert (its.room, its.room_rule) == (room, rule)
    with pytest.raises(PolicyDeniedError) as refused:
        pair.allocate(pair.alice, count=room + 1)
    assert refused.value.rule == rule
    assert len(pair.allocate(pair.alice, count=room)) == room
    assert entitled(pair.alice).room == 0
    if rule == "reserve-of-others":  # who has the reserve may take it
        reserved = AllocateKeys(association=other, count=100, size_bits=256, entropy=os.urandom(1600))
        assert len(pair.alice.call(reserved)) == 100


def test_a_rate_starts_empty_fills_to_its_burst_and_is_spent(pair: Pair) -> None:
    pair.stock()
    both(
        pair,
        policy(
            application='[[application]]\nname = "payroll"\nclearance = "open"\nbits_per_s = 512\nburst_bits = 1024\n'
        ),
    )
    assert (entitled(pair.alice).room, entitled(pair.alice).room_rule) == (0, "quota-rate")
    passes(pair, 1 * S)
    assert entitled(pair.alice).room == 2
    assert len(pair.allocate(pair.alice, count=2)) == 2
    with pytest.raises(PolicyDeniedError, match="quota-rate"):
        pair.allocate(pair.alice, count=1)
    passes(pair, 60 * S)
    assert entitled(pair.alice).room == 4
    assert entitled(pair.bob).room > 1000  # each end counts what it allocates


def test_the_first_class_that_is_allowed_is_taken_and_the_next_when_its_time_is_over(pair: Pair) -> None:
    two = policy("not_after = 2023-11-14T22:13:25Z", name="first").replace(
        b"[[rule]]", b'[[class]]\nname = "second"\nlabel = "open"\npurpose = "session"\n[[rule]]', 1
    )
    both(pair, two)
    assert entitled(pair.alice).key_class == "first"
    passes(pair, 6 * S)
    assert START_NS + 6 * S > 1_700_000_005 * S
    assert entitled(pair.alice).key_class == "second"


def test_no_key_is_cut_for_algorithms_that_are_all_disallowed_until_they_are_not(pair: Pair) -> None:
    pair.stock()
    both(pair, policy('algorithms = ["AES-256-GCM", "OTP"]'))
    pair.alice.call(NoteAlgorithms(disallowed=("OTP",), deprecated=()))
    assert len(pair.ready(pair.alice)) == 3
    gone = NoteAlgorithms(disallowed=("OTP", "AES-256-GCM"), deprecated=())
    pair.alice.call(gone)
    assert entitled(pair.alice).rule == "algorithms-disallowed"
    with pytest.raises(PolicyDeniedError, match="algorithms-disallowed"):
        pair.allocate(pair.alice)
    asked = ExplainPolicy(association=pair.alice.association, size_bits=256)
    assert pair.alice.call(asked).decision.rule == "algorithms-disallowed"
    with pytest.raises(PolicyError, match="all disallowed today"):
        pair.alice.apply(policy('algorithms = ["OTP"]'))
    pair.alice.call(NoteAlgorithms(disallowed=(), deprecated=()))
    pair.allocate(pair.alice)
    pair.bob.call(gone)
    (allocate,) = waiting(pair.alice)
    assert pair.bob.call(AcceptAllocation(link=LINK, allocate=allocate)) == "denied"


def test_no_key_is_cut_that_is_longer_than_what_its_class_lets_it_protect(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("byte_limit = 32"))
    assert entitled(pair.alice, 256).allowed
    assert entitled(pair.alice, 264).rule == "byte-limit"
    with pytest.raises(PolicyDeniedError, match="byte-limit"):
        pair.allocate(pair.alice, size_bits=264)


def test_an_explanation_is_the_decision_that_is_acted_on(pair: Pair) -> None:
    both(pair, policy("lifetime_s = 9"))
    explained = pair.alice.call(ExplainPolicy(association=pair.alice.association, size_bits=256))
    its = entitled(pair.alice)
    assert (explained.decision.allowed, explained.decision.rule) == (its.allowed, its.rule) == (True, "everybody")
    assert explained.decision.terms.lifetime_s == 9
    assert explained.configured
    elsewhere = Association("payroll", "stranger", LINK)
    explained = pair.alice.call(ExplainPolicy(association=elsewhere, size_bits=256, key_class="bulk"))
    assert explained.decision.allowed
    assert not explained.configured
    assert not pair.alice.call(Entitle(association=elsewhere, size_bits=256)).allowed
