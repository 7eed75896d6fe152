"""The chain of policies in the vault: what is applied stays, in its order, and nothing else passes for it."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from approving import PEOPLE, policy
from vaults import End, Pair

from qkdnode.access.approvals import Refusal
from qkdnode.errors import ApprovalError, PolicyError, VaultDamagedError
from qkdnode.ids import KeyId
from qkdnode.vault.requests import (
    AllocateKeys,
    ApplyPolicy,
    CurrentPolicy,
    Entitle,
    EventsAfter,
    OpenKey,
    PolicyVersion,
    ShowPolicy,
    Status,
)

ONE, TWO, THREE = policy("lifetime_s = 1"), policy("lifetime_s = 2"), policy("lifetime_s = 3")


def leaves(end: End, kind: str) -> list[Any]:
    return [event for _, event in end.call(EventsAfter(position=0, limit=4096)) if event.kind == kind]


def test_without_a_policy_the_configured_associations_have_what_they_had(pair: Pair) -> None:
    shown: PolicyVersion = pair.alice.call(ShowPolicy())
    assert (shown.policy.number, shown.newest, shown.policy.digest) == (0, 0, bytes(32))
    (rule,) = shown.policy.document.rules
    assert (rule.applications, rule.remotes, rule.links, rule.classes) == (
        ("payroll",),
        ("ledger",),
        ("metro",),
        ("qkd",),
    )


def test_versions_follow_one_another_and_each_names_the_one_before(pair: Pair) -> None:
    first, second = pair.alice.apply(ONE), pair.alice.apply(TWO)
    assert (first.policy.number, first.previous, first.policy.text) == (1, bytes(32), ONE)
    assert (second.policy.number, second.previous) == (2, first.policy.digest)
    assert pair.alice.call(CurrentPolicy()) == second.policy
    assert pair.alice.call(ShowPolicy(number=1)).policy.text == ONE
    assert [(a.approval.operator, a.role) for a in second.approvals] == [
        ("olga", "operator"),
        ("sven", "security-officer"),
    ]
    pair.alice.reopen()
    assert pair.alice.call(CurrentPolicy()) == second.policy


def test_a_change_leaves_one_leaf_that_names_document_and_approvers_by_pseudonym(pair: Pair) -> None:
    before = pair.alice.call(Status()).leaves
    version = pair.alice.apply(ONE)
    assert pair.alice.call(Status()).leaves == before + 1
    (leaf,) = leaves(pair.alice, "policy.applied")
    assert leaf.subject == "policy/1"
    assert leaf.details["previous"] == version.previous.hex()
    assert "olga" not in str(leaf)
    assert str(leaf.details["approved_by_2"]).endswith(" as security-officer")


def test_a_rollback_is_a_new_version_that_repeats_an_older_document(pair: Pair) -> None:
    pair.alice.apply(ONE)
    pair.alice.apply(TWO)
    back = pair.alice.apply(ONE, document=b"", repeats=1)
    assert (back.policy.number, back.repeats, back.policy.text) == (3, 1, ONE)
    for number, said in ((0, "no version 0"), (4, "no version 4"), (3, "is in force")):
        with pytest.raises(PolicyError, match=said):
            pair.alice.apply(ONE, document=b"", repeats=number)


REFUSED: dict[str, tuple[Callable[[End], dict[str, Any]], str]] = {
    "unsigned": (lambda end: {"approvals": ()}, Refusal.UNSIGNED),
    "signed once": (lambda end: {"approvals": end.approvals(TWO, by=("olga",))}, Refusal.TOO_FEW),
    "signed twice by one": (lambda end: {"approvals": end.approvals(TWO, by=("olga", "olga"))}, Refusal.SAME_PERSON),
    "for the number in force": (lambda end: {"approvals": end.approvals(TWO, number=1)}, Refusal.REPLAYED),
    "for a number to come": (lambda end: {"approvals": end.approvals(TWO, number=3)}, Refusal.OTHER_REQUEST),
    "for a wrong predecessor": (
        lambda end: {"approvals": end.approvals(TWO, predecessor=bytes(32))},
        Refusal.OTHER_REQUEST,
    ),
    "for another document": (lambda end: {"approvals": end.approvals(THREE)}, Refusal.OTHER_REQUEST),
    "by people nobody knows": (lambda end: {"people": ()}, Refusal.UNKNOWN_PERSON),
    "by one role": (
        lambda end: {"people": tuple(p.__class__(p.name, p.ed25519, ("operator",)) for p in PEOPLE)},
        Refusal.SAME_ROLE,
    ),
    "not an approval": (lambda end: {"approvals": (b"{}", b"{}")}, Refusal.MALFORMED),
}


def test_what_is_not_approved_for_this_very_version_is_refused_journalled_and_changes_nothing(pair: Pair) -> None:
    first = pair.alice.apply(ONE)
    for made, name in REFUSED.values():
        with pytest.raises(ApprovalError) as refused:
            pair.alice.apply(TWO, **made(pair.alice))
        assert refused.value.refusal == name
    assert pair.alice.call(CurrentPolicy()) == first.policy
    told = [(its.outcome, its.details["code"], its.details["number"]) for its in leaves(pair.alice, "policy.refused")]
    assert told == [("refused", name, 2) for _, name in REFUSED.values()]


def test_approvals_count_once(pair: Pair) -> None:
    signed = pair.alice.approvals(ONE)
    pair.alice.apply(ONE, approvals=signed)
    with pytest.raises(ApprovalError) as refused:
        pair.alice.apply(ONE, approvals=signed)
    assert refused.value.refusal == Refusal.REPLAYED


def test_approvals_expire(pair: Pair) -> None:
    signed = pair.alice.approvals(ONE)
    pair.alice.counter.ahead_ns += 3600 * 10**9
    with pytest.raises(ApprovalError) as refused:
        pair.alice.apply(ONE, approvals=signed)
    assert refused.value.refusal == Refusal.EXPIRED


def test_a_document_with_faults_is_not_applied_however_many_approve_it(pair: Pair) -> None:
    faulty = [b"", b"\xff", policy("use_limit = 0"), policy('algorithms = ["ROT-13"]')]
    for document in faulty:
        with pytest.raises(PolicyError):
            pair.alice.apply(document)
    assert pair.alice.call(CurrentPolicy()).number == 0
    assert len(leaves(pair.alice, "policy.refused")) == len(faulty)


TAMPERED: dict[str, str] = {
    "a document edited": f"UPDATE policies SET document = X'{THREE.hex()}' WHERE number = 2",
    "an older document edited": f"UPDATE policies SET document = X'{THREE.hex()}' WHERE number = 1",
    "approvals edited": "UPDATE policies SET approvals = X'5b5d' WHERE number = 2",
    "the newest taken away": "DELETE FROM policies WHERE number = 2",
    "all taken away": "DELETE FROM policies",
    "the first taken away": "DELETE FROM policies WHERE number = 1",
    "renumbered": "UPDATE policies SET number = 3 WHERE number = 2",
    "swapped": "UPDATE policies SET number = 3 - number + 10; UPDATE policies SET number = number - 10",
    "a row put back": (
        "UPDATE policies SET (previous, document, approvals, repeats, applied_ns, applied_by, generation, leaf, mac) = "
        "(SELECT previous, document, approvals, repeats, applied_ns, applied_by, generation, leaf, mac FROM policies "
        "WHERE number = 1) WHERE number = 2"
    ),
}


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, KeyId]:
    """A pair, closed, of which Alice has two versions of a policy and a key."""
    pair = Pair(tmp_path_factory.mktemp("chain"))
    pair.stock()
    (key, *_) = pair.ready(pair.alice)
    pair.alice.apply(ONE)
    pair.alice.apply(TWO)
    pair.close()
    return pair, key


@pytest.mark.parametrize("what", TAMPERED)
def test_a_chain_that_is_not_what_was_applied_stops_everything_that_needs_it(
    two_versions: tuple[Pair, KeyId], tmp_path: Path, what: str
) -> None:
    (pair, key), is_running = two_versions, what in ("a document edited", "the newest taken away")
    end = copy.copy(pair.alice)
    end.directory, end.path = tmp_path, tmp_path / "vault.db"
    shutil.copytree(pair.alice.directory, tmp_path, dirs_exist_ok=True)
    tmp_path.chmod(0o700)
    if is_running:
        end.open()
    with end.tampering() as connection:
        connection.execute(TAMPERED[what])
    if not is_running:
        end.open()
    for refused in (
        ShowPolicy(),
        ShowPolicy(number=1),
        CurrentPolicy(),
        Entitle(association=end.association, size_bits=256),
        AllocateKeys(association=end.association, count=1, size_bits=256, entropy=bytes(16)),
        OpenKey(key_id=key, application="payroll"),
    ):
        with pytest.raises(VaultDamagedError, match="not what was applied"):
            end.call(refused)
    with pytest.raises(VaultDamagedError, match="not what was applied"):
        end.call(ApplyPolicy(document=THREE, approvals=(), people=PEOPLE, algorithms=(), by="olga"))
    assert len(leaves(end, "policy.damaged")) == 1  # told once, not at each request
    end.vault.close()


def test_a_failed_request_does_not_bring_back_the_policy_before(pair: Pair) -> None:
    pair.alice.apply(ONE)
    pair.alice.apply(TWO)
    with pytest.raises(ApprovalError):
        pair.alice.apply(THREE, approvals=())
    assert pair.alice.call(CurrentPolicy()).number == 2


def test_every_stage_of_the_chain_verifies_after_many_versions(pair: Pair) -> None:
    documents = [policy(f"lifetime_s = {i}") for i in range(1, 21)]
    for document in documents:
        pair.alice.apply(document)
    pair.alice.reopen()
    assert pair.alice.call(ShowPolicy()).newest == 20
    assert [pair.alice.call(ShowPolicy(number=i)).policy.text for i in range(1, 21)] == documents
