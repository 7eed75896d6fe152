"""Keys revoked one by one, and compromises of all that a range of Batches gives: out of use at both ends, for good."""

import itertools
from typing import Any
from uuid import UUID, uuid4

import pytest
from vaults import FIRST, HERE, LINK, NODES, End, Pair, contents, waiting

from qkdnode.errors import LocalProtocolError, OutOfStockError, VaultDamagedError, VaultError
from qkdnode.ids import ALICE, BOB, Association, BatchId, KeyId
from qkdnode.lifecycle.reasons import COMPROMISES, Reason
from qkdnode.lifecycle.states import LETTERS, Stage
from qkdnode.vault.inventory import ShowKey
from qkdnode.vault.requests import (
    AcceptAllocation,
    AllocationAnswered,
    ApplicationOutbox,
    KeysDelivered,
    NeighbourOutbox,
    OpenKeys,
    OutboxCleared,
    Outstanding,
    PeerDelivered,
    PeerReady,
    SettlePending,
    Status,
)
from qkdnode.vault.revocations import FollowRevoked, RevocationsUnconfirmed, Revoked, RevokeKeys
from qkdnode.vault.scopes import Compromise, FollowCompromise, MoveRows, Scopes, ScopeState
from qkdnode.wire.messages import ACCEPTED, REFUSED, Compromised, Delivered, KeysRevoked

SECOND = BatchId(1, 2)
COMPROMISE, SUPERSEDED = Reason.KEY_COMPROMISE.value, Reason.SUPERSEDED.value


def revoke(end: End, *ids: KeyId, reason: str = COMPROMISE) -> Revoked:
    answer: Revoked = end.call(RevokeKeys(key_ids=ids, reason=reason, by="olga"))
    return answer


def compromise(end: End, kind: str = "link", value: str = LINK, **more: Any) -> tuple[ScopeState, ...]:
    made: tuple[ScopeState, ...] = end.call(Compromise(kind=kind, value=value, reason=COMPROMISE, by="olga", **more))
    return made


def settle(end: End) -> None:
    while end.call(MoveRows()):
        pass


def told(end: End) -> list[Any]:
    return [entry.message for entry in end.call(RevocationsUnconfirmed(link=LINK))]


def follow(end: End, message: KeysRevoked | Compromised) -> None:
    request = FollowRevoked if isinstance(message, KeysRevoked) else FollowCompromise
    end.call(request(link=LINK, message=message))  # type: ignore[arg-type]


def stage(end: End, key_id: KeyId) -> str:
    found: str = end.call(ShowKey(key_id=key_id)).state
    return found


def stages(pair: Pair, key_id: KeyId) -> tuple[str, str]:
    return stage(pair.alice, key_id), stage(pair.bob, key_id)


def deliver(end: End, *ids: KeyId) -> None:
    end.call(KeysDelivered(application=end.association.local, key_ids=ids, details={}))


def carry_deliveries(pair: Pair) -> None:
    for end, other in (pair.ends, pair.ends[::-1]):
        for entry in end.call(NeighbourOutbox(link=LINK, limit=1000)):
            if isinstance(entry.message, Delivered):
                packed = entry.message.key_ids
                ids = tuple(UUID(bytes=packed[i : i + 16]) for i in range(0, len(packed), 16))
                other.call(PeerDelivered(link=LINK, application=entry.message.application, key_ids=ids))


def sealed_rows(end: End) -> int:
    with end.tampering() as file:
        return int(file.execute("SELECT count(*) FROM keys").fetchall()[0][0])


# --- single keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [COMPROMISE, SUPERSEDED])
def test_a_revoked_key_is_opened_by_neither_end_and_its_bits_are_gone(pair: Pair, reason: str) -> None:
    pair.stock()
    revoked, kept, _ = pair.ready(count=3)
    answer = revoke(pair.alice, revoked, reason=reason)
    assert (answer.revoked, answer.already, answer.unknown) == ((revoked,), (), ())
    (message,) = told(pair.alice)
    follow(pair.bob, message)
    end = "compromised" if reason in COMPROMISES else "destroyed"
    assert stages(pair, revoked) == (end, end)
    assert contents(pair.alice, kept) == contents(pair.bob, kept)
    for one in pair.ends:
        assert sealed_rows(one) == 2
        with pytest.raises(VaultError, match=end):
            contents(one, revoked)
        rows = one.call(ApplicationOutbox(application=one.association.local))
        assert revoked not in {row.key_id for row in rows}
        assert one.call(Status()).keys == {"ready": 2, end: 1}


def test_what_both_applications_have_is_deactivated_or_compromised(pair: Pair) -> None:
    pair.stock()
    first, second = pair.ready(count=2)
    for end in pair.ends:
        deliver(end, first, second)
    carry_deliveries(pair)
    assert revoke(pair.alice, first, reason=SUPERSEDED).revoked == (first,)
    assert revoke(pair.alice, second).revoked == (second,)
    for message in told(pair.alice):
        follow(pair.bob, message)
    assert stages(pair, first) == ("deactivated", "deactivated")
    assert stages(pair, second) == ("compromised", "compromised")
    assert revoke(pair.alice, first, reason=SUPERSEDED).already == (first,)
    assert revoke(pair.alice, first).revoked == (first,), "a compromise reaches a key at the end of its use"


def test_the_other_end_follows_though_it_has_not_heard_of_a_delivery(pair: Pair) -> None:
    """Active here, as both applications have it; the neighbour's notice of ours is still under way."""
    pair.stock()
    (key,) = pair.ready(count=1)
    for end in pair.ends:
        deliver(end, key)
    pair.alice.call(PeerDelivered(link=LINK, application="ledger", key_ids=(key,)))
    revoke(pair.alice, key, reason=SUPERSEDED)
    follow(pair.bob, told(pair.alice)[0])
    assert stages(pair, key) == ("deactivated", "deactivated")


@pytest.mark.parametrize("reasons", list(itertools.product((COMPROMISE, SUPERSEDED), repeat=2)))
@pytest.mark.parametrize("delivered", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("heard", [False, True])
def test_ends_that_revoke_at_once_come_to_the_same(
    pair: Pair, reasons: tuple[str, str], delivered: tuple[bool, bool], heard: bool
) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    for end, has in zip(pair.ends, delivered, strict=True):
        if has:
            deliver(end, key)
    if heard:
        carry_deliveries(pair)
    for end, reason in zip(pair.ends, reasons, strict=True):
        revoke(end, key, reason=reason)
    for end, other in (pair.ends, pair.ends[::-1]):
        for message in told(end):
            follow(other, message)
            follow(other, message)
    carry_deliveries(pair)
    here, there = stages(pair, key)
    assert here == there
    assert here in ("compromised", "destroyed-compromised", "deactivated", "destroyed")
    assert (here in ("compromised", "destroyed-compromised")) == (COMPROMISE in reasons)
    assert sealed_rows(pair.alice) == sealed_rows(pair.bob) == 0


def test_a_late_acknowledgement_is_taken_and_changes_nothing(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    revoke(pair.alice, key)
    deliver(pair.alice, key)
    assert stage(pair.alice, key) == "compromised"
    assert [
        m for m in (e.message for e in pair.alice.call(NeighbourOutbox(link=LINK))) if isinstance(m, Delivered)
    ] == []


def test_a_key_revoked_before_the_neighbour_heard_of_it_becomes_none_there(pair: Pair) -> None:
    pair.stock()
    ids = pair.allocate(pair.alice, 2)
    (allocate,) = waiting(pair.alice)
    revoke(pair.alice, ids[0])
    follow(pair.bob, told(pair.alice)[0])
    follow(pair.bob, told(pair.alice)[0])
    outcome = pair.bob.call(AcceptAllocation(link=LINK, allocate=allocate))
    assert outcome == REFUSED
    pair.alice.call(AllocationAnswered(link=LINK, request=allocate.request, outcome=outcome))
    assert stage(pair.alice, ids[0]) == "compromised"
    assert stage(pair.alice, ids[1]) == "burnt"
    with pytest.raises(VaultError, match="holds no key"):
        stage(pair.bob, ids[0])


def test_revocations_are_told_until_they_are_journalled_there_and_over_restarts(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    revoke(pair.alice, key)
    pair.alice.reopen()
    (message,) = told(pair.alice)
    assert message.reason == COMPROMISE
    assert message.stages == bytes([LETTERS[Stage.COMPROMISED]])
    pair.alice.call(OutboxCleared(link=LINK, numbers=(message.notice,)))
    assert told(pair.alice) == []


def test_the_log_tells_who_revoked_what_and_why_and_names_no_operator(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    revoke(pair.alice, key)
    (leaf,) = [event for _, event in pair.alice.vault.events_after(0, 4000) if event.kind == "key.compromised"]
    assert leaf.details["reason"] == COMPROMISE
    assert str(leaf.details["by"]).startswith("operator/")
    assert "olga" not in str(leaf)
    assert len(leaf.keys or ()) == 1


def test_unknown_keys_reasons_and_malformed_messages_are_refused(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    unknown = uuid4()
    assert revoke(pair.alice, unknown).unknown == (unknown,)
    assert told(pair.alice) == []
    with pytest.raises(LocalProtocolError, match="no reason to revoke"):
        revoke(pair.alice, key, reason="because")
    with pytest.raises(LocalProtocolError, match="revoked at once"):
        revoke(pair.alice)
    for ids, letters in ((key.bytes, b"cc"), (key.bytes, b"r"), (key.bytes + b"x", b"c")):
        with pytest.raises(LocalProtocolError, match="nothing follows"):
            follow(pair.bob, KeysRevoked(1, COMPROMISE, ids, letters))  # type: ignore[arg-type]
    assert stages(pair, key) == ("ready", "ready")


# --- scopes ----------------------------------------------------------------------------------------------------------


def test_a_compromised_link_releases_nothing_before_a_single_row_has_moved(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready(count=3) + pair.ready(pair.bob, count=2)
    (scope,) = compromise(pair.alice)
    assert scope.moving
    follow(pair.bob, told(pair.alice)[0])
    for end in pair.ends:
        assert end.call(Status()).keys == {"ready": 5}
        assert end.call(ApplicationOutbox(application=end.association.local)) == ()
        with pytest.raises(VaultError, match="none is ready"):
            end.call(OpenKeys(key_ids=ids, application=end.association.local))
        for key in ids:
            with pytest.raises(VaultError, match="compromised"):
                contents(end, key)
        with pytest.raises(OutOfStockError):
            pair.allocate(end, 1)


def test_the_rows_follow_with_stock_and_bits_at_both_ends(pair: Pair) -> None:
    pair.stock()
    pair.ready(count=40)
    delivered, _ = pair.ready(count=2)
    for end in pair.ends:
        deliver(end, delivered)
    carry_deliveries(pair)
    compromise(pair.alice)
    follow(pair.bob, told(pair.alice)[0])
    for end in pair.ends:
        settle(end)
        status = end.call(Status())
        assert status.keys == {"compromised": 42}
        assert status.stock_bits_own == status.stock_bits_peer == {LINK: 0}
        assert status.batches == {"compromised": 1}
        assert sealed_rows(end) == 0
        (scope,) = end.call(Scopes())
        assert (scope.keys, scope.moving) == (42, False)
        assert end.call(Outstanding(association=end.association)) == 0
        end.reopen()
        assert end.call(MoveRows()) is False


def test_moving_goes_on_where_a_restart_left_it(pair: Pair) -> None:
    pair.stock(bits_out=300_000)
    for _ in range(6):
        pair.ready(count=2)
    compromise(pair.alice)
    assert pair.alice.call(MoveRows(bundles=2))
    pair.alice.reopen()
    assert pair.alice.call(Status()).keys == {"compromised": 4, "ready": 8}
    steps = 0
    while pair.alice.call(MoveRows(bundles=2)):
        steps += 1
    assert steps >= 2
    assert pair.alice.call(Status()).keys == {"compromised": 12}


def test_what_is_made_after_the_present_session_is_not_reached(pair: Pair) -> None:
    pair.stock()
    pair.ready(count=1)
    compromise(pair.alice)
    follow(pair.bob, told(pair.alice)[0])
    for end in pair.ends:
        settle(end)
    later = BatchId(2 << 32 | 2, 1)
    pair.stock(later)
    (key,) = pair.ready(count=1)
    assert contents(pair.alice, key) == contents(pair.bob, key)


def test_a_batch_that_settles_after_its_compromise_gives_no_stock(pair: Pair) -> None:
    pair.journal()
    compromise(pair.alice)
    follow(pair.bob, told(pair.alice)[0])
    for end in pair.ends:
        settle(end)
    assert pair.alice.call(Status()).batches == {"pending": 1}
    pair.alice.call(SettlePending(link=LINK, batch=FIRST, ready=True))
    pair.bob.call(PeerReady(link=LINK, batches=(FIRST,)))
    for end in pair.ends:
        status = end.call(Status())
        assert status.batches == {"compromised": 1}
        assert status.stock_bits_own == {LINK: 0}


def test_an_allocation_under_way_is_refused_by_the_end_that_has_heard(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.allocate(pair.bob, 1)
    (allocate,) = waiting(pair.bob)
    compromise(pair.alice)
    assert pair.alice.call(AcceptAllocation(link=LINK, allocate=allocate)) == REFUSED
    follow(pair.bob, told(pair.alice)[0])
    pair.bob.call(AllocationAnswered(link=LINK, request=allocate.request, outcome=REFUSED))
    settle(pair.bob)
    assert stage(pair.bob, key) == "burnt"


def test_an_accepted_allocation_is_not_released_if_its_answer_comes_late(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.allocate(pair.bob, 1)
    (allocate,) = waiting(pair.bob)
    assert pair.alice.call(AcceptAllocation(link=LINK, allocate=allocate)) == ACCEPTED
    compromise(pair.alice)
    follow(pair.bob, told(pair.alice)[0])
    settle(pair.bob)
    assert pair.bob.call(AllocationAnswered(link=LINK, request=allocate.request, outcome=ACCEPTED)) == ()
    settle(pair.alice)
    assert stages(pair, key) == ("compromised", "compromised")


def test_one_application_is_reached_alone(pair: Pair) -> None:
    other = Association("mail", "post", LINK)
    pair.alice.associate(other)
    pair.bob.associate(other.mirrored())
    pair.stock(bits_out=300_000)
    (ours,) = pair.ready(count=1)
    compromise(pair.alice, "application", "ledger")
    follow(pair.bob, told(pair.alice)[0])
    for end in pair.ends:
        settle(end)
    assert stages(pair, ours) == ("compromised", "compromised")
    with pytest.raises(OutOfStockError):
        pair.allocate(pair.alice, 1)
    pair.alice.association, pair.bob.association = other, other.mirrored()
    (theirs,) = pair.ready(count=1)
    assert contents(pair.alice, theirs) == contents(pair.bob, theirs)


def test_a_device_reaches_the_batches_that_it_served_on(pair: Pair) -> None:
    pair.stock()
    pair.stock(SECOND)
    (scope,) = compromise(pair.bob, "device", "TX-1")
    assert scope.first == FIRST
    with pytest.raises(VaultError, match="reaches no key"):
        compromise(pair.bob, "device", "TX-2")


def test_a_time_window_reaches_its_batches_and_the_one_after(pair: Pair) -> None:
    third, fourth = BatchId(1, 3), BatchId(1, 4)
    for batch in (FIRST, SECOND, third, fourth):
        pair.stock(batch)
    with pair.alice.tampering() as file:
        made = [ns for (ns,) in file.execute("SELECT made_ns FROM batches ORDER BY batch")]
    (scope,) = compromise(pair.alice, "time-window", LINK, from_ns=made[1], until_ns=made[1])
    assert (scope.first, scope.last) == (SECOND, third)
    (scope,) = compromise(pair.alice, "time-window", "", from_ns=made[3] + 1)
    assert scope.first <= fourth < scope.last
    with pytest.raises(LocalProtocolError, match="ends before it begins"):
        compromise(pair.alice, "time-window", "", from_ns=2, until_ns=1)


def test_the_peer_and_unknown_names(pair: Pair) -> None:
    pair.stock()
    (scope,) = compromise(pair.alice, "peer", NODES[BOB])
    assert scope.link == LINK
    assert compromise(pair.alice, "peer", NODES[BOB])[0].number == scope.number, "asked for again"
    assert len(told(pair.alice)) == 1
    for kind, value in (("peer", "nobody"), ("link", "nowhere"), ("application", "none")):
        with pytest.raises(VaultError, match="reaches no key"):
            compromise(pair.alice, kind, value)
    with pytest.raises(LocalProtocolError, match="no scope"):
        compromise(pair.alice, "galaxy", "M31")
    with pytest.raises(LocalProtocolError, match="no reason of a compromise"):
        pair.alice.call(Compromise(kind="link", value=LINK, reason=SUPERSEDED, by="olga"))


@pytest.mark.parametrize(
    "harm",
    ["DELETE FROM scopes", "UPDATE scopes SET last = first", "UPDATE scopes SET link = 'other'"],
)
def test_a_scope_that_was_tampered_with_stops_every_release(pair: Pair, harm: str) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    compromise(pair.alice)
    pair.alice.vault.close()
    with pair.alice.tampering() as file:
        file.execute(harm)
    pair.alice.open()
    with pytest.raises(VaultDamagedError):
        contents(pair.alice, key)
    with pytest.raises(VaultDamagedError):
        pair.alice.call(ApplicationOutbox(application=HERE.local))
    with pytest.raises(VaultDamagedError):
        pair.allocate(pair.alice, 1)


def test_roles_do_not_matter_for_who_compromises(pair: Pair) -> None:
    assert {pair.alice.role, pair.bob.role} == {ALICE, BOB}
    pair.stock()
    (key,) = pair.ready(pair.alice, count=1)
    compromise(pair.bob)
    follow(pair.alice, told(pair.bob)[0])
    for end in pair.ends:
        settle(end)
    assert stages(pair, key) == ("compromised", "compromised")


def test_rows_follow_an_application_s_compromise_though_its_association_is_lost(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    compromise(pair.alice, "application", "payroll")
    pair.alice.vault.close()
    with pair.alice.tampering() as file:
        file.execute("DELETE FROM associations")
    pair.alice.open()
    settle(pair.alice)
    assert pair.alice.call(Status()).keys == {"compromised": 1}
    assert sealed_rows(pair.alice) == 0
    with pytest.raises(VaultError):
        contents(pair.alice, key)
