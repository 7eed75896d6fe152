"""Rotations of an association at two real vaults: no key of the old generation where the new one is all there is."""

import os
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from rotating import accept, begin, end_rows, look, offered, opens, prepare, state_of
from vaults import HERE, LINK, SECOND_NS, End, Pair, contents, waiting

from qkdnode.errors import LocalProtocolError, VaultDamagedError, VaultError
from qkdnode.lifecycle.rotation import EXPIRES_NS, GRACE_NS, LINGER_NS, PATIENCE_NS, RETRY_NS, Phase
from qkdnode.node.shadow import carry, hear, outbox
from qkdnode.vault import generations
from qkdnode.vault.inventory import ShowKey
from qkdnode.vault.records import Bundle
from qkdnode.vault.requests import AcceptAllocation, AllocateKeys, KeysDelivered, OpenKeys
from qkdnode.vault.revocations import RevokeKeys
from qkdnode.vault.rotations import BeginRotation, FollowRotation, GiveUpRotation, RotateDue, Rotations
from qkdnode.wire.messages import (
    NOT_SETTLED,
    REFUSED,
    RotationGivenUp,
    RotationProposed,
    RotationStands,
    RotationWanted,
)

ENDS = ("alice", "bob")


def carried(pair: Pair) -> None:
    carry(LINK, pair.alice.call, pair.bob.call)


def cut(end: End, generation: int | None = None, count: int = 2) -> tuple[UUID, ...]:
    request = AllocateKeys(
        association=end.association, count=count, size_bits=256, entropy=os.urandom(16 * count), generation=generation
    )
    ids: tuple[UUID, ...] = end.call(request)
    return ids


def prepared(pair: Pair, number: int = 2, keys: int = 2) -> list[UUID]:
    """Both ends have agreed and cut the first keys of a generation; these."""
    ids = []
    for end in pair.ends:
        ids += cut(end, number, keys)
    carried(pair)
    for end in pair.ends:
        assert prepare(end, keys).prepared == keys
    carried(pair)
    assert {state_of(end).phase for end in pair.ends} == {Phase.OFFERED}
    return ids


def cut_over(pair: Pair, number: int = 2) -> None:
    for end in pair.ends:
        accept(end, number)
    carried(pair)
    assert {state_of(end).phase for end in pair.ends} == {Phase.CUT}


def wait(pair: Pair, ns: int) -> None:
    for end in pair.ends:
        end.counter.ahead_ns += ns
        look(end, LINK)


def closed(pair: Pair) -> None:
    wait(pair, LINGER_NS)
    carried(pair)
    assert {state_of(end).phase for end in pair.ends} == {Phase.STEADY}


def rotate(pair: Pair, starter: End | None = None, number: int = 2) -> list[UUID]:
    begin(starter or pair.alice)
    carried(pair)
    ids = prepared(pair, number)
    cut_over(pair, number)
    closed(pair)
    for end in pair.ends:
        end_rows(end)
    carried(pair)
    return ids


def deliver(end: End, *ids: UUID) -> None:
    end.call(KeysDelivered(application=end.association.local, key_ids=ids, details={}))


def stages(pair: Pair, key_id: UUID) -> tuple[str, str]:
    first, second = (end.call(ShowKey(key_id=key_id)).state for end in pair.ends)
    return first, second


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("starter", ENDS)
def test_a_rotation_takes_both_ends_from_one_generation_to_the_next(pair: Pair, starter: str) -> None:
    pair.stock()
    old = pair.ready(count=3)
    both, alone = old[0], old[1]
    for end in pair.ends:
        deliver(end, both)
    carried(pair)
    begin(getattr(pair, starter))
    carried(pair)
    assert [(s.phase, s.number, s.current) for s in map(state_of, pair.ends)] == [(Phase.AGREED, 2, 1)] * 2
    new = prepared(pair)
    for end in pair.ends:
        assert set(offered(end)) == {alone, old[2]}, "keys of the next generation are held, not offered"
        assert not any(opens(end, key) for key in new)
        assert opens(end, alone)
    cut_over(pair)
    for end in pair.ends:
        assert set(offered(end)) == set(new)
        assert not opens(end, alone)
    assert [contents(pair.alice, key) for key in new] == [contents(pair.bob, key) for key in new]
    closed(pair)
    for end in pair.ends:
        assert (state_of(end).current, state_of(end).result) == (2, "done")
        assert set(offered(end)) == set(new)
        end_rows(end)
    carried(pair)
    assert stages(pair, both) == ("deactivated", "deactivated")
    for key in (alone, old[2]):
        assert stages(pair, key) == ("destroyed", "destroyed")
    for end in pair.ends:
        with end.tampering() as file:
            assert file.execute("SELECT count(*) FROM keys").fetchall() == [(len(new),)]


def test_nothing_of_the_way_is_lost_by_a_restart_at_any_point(pair: Pair) -> None:
    pair.stock()
    (old,) = pair.ready(count=1)
    begin(pair.bob)

    def again() -> None:
        before = [state_of(end) for end in pair.ends]
        for end in pair.ends:
            end.reopen()
        after = [state_of(end) for end in pair.ends]
        assert [(s.phase, s.peer, s.number, s.current) for s in before] == [
            (s.phase, s.peer, s.number, s.current) for s in after
        ]

    again()
    carried(pair)
    again()
    new = prepared(pair)
    again()
    cut_over(pair)
    again()
    closed(pair)
    again()
    for end in pair.ends:
        end_rows(end)
        assert set(offered(end)) == set(new)
    assert stages(pair, old) == ("destroyed", "destroyed")


def test_both_ends_may_ask_at_once_and_it_is_one_rotation(pair: Pair) -> None:
    pair.stock()
    for end in pair.ends:
        begin(end)
        begin(end)
    carried(pair)
    assert [(s.phase, s.number, s.newest) for s in map(state_of, pair.ends)] == [(Phase.AGREED, 2, 2)] * 2
    prepared(pair)
    cut_over(pair)
    closed(pair)
    assert [state_of(end).current for end in pair.ends] == [2, 2]


def test_a_late_copy_of_what_bob_wanted_begins_nothing_new(pair: Pair) -> None:
    pair.stock()
    begin(pair.bob)
    (wanted,) = outbox(LINK, pair.bob.call)
    rotate(pair, pair.bob)
    assert isinstance(wanted, RotationWanted)
    assert pair.alice.call(FollowRotation(link=LINK, message=wanted))
    assert state_of(pair.alice).phase is Phase.STEADY
    assert state_of(pair.alice).newest == 2


def test_each_message_may_come_again_and_late(pair: Pair) -> None:
    pair.stock()
    said: list[tuple[End, Any]] = []
    begin(pair.alice)
    for step in (lambda: None, lambda: prepared(pair), lambda: cut_over(pair), lambda: closed(pair)):
        for end, other in (pair.ends, pair.ends[::-1]):
            said += [(other, one) for one in outbox(LINK, end.call) if hasattr(one, "number")]
        carried(pair)
        step()
    assert said
    begin(pair.alice)
    carried(pair)
    before = [state_of(end) for end in pair.ends]
    for receiver, message in said:
        assert receiver.call(FollowRotation(link=LINK, message=message))
    after = [state_of(end) for end in pair.ends]
    assert [(s.phase, s.peer, s.number) for s in before] == [(s.phase, s.peer, s.number) for s in after]


# --- the order of the cut --------------------------------------------------------------------------------------------


def test_no_old_key_is_released_at_one_end_once_the_other_application_is_told_that_they_are_over(pair: Pair) -> None:
    pair.stock()
    (old,) = pair.ready(count=1)
    begin(pair.alice)
    carried(pair)
    prepared(pair)
    for end in pair.ends:
        accept(end, 2)
    while any(state_of(end).current == 1 for end in pair.ends):
        for end, other in (pair.ends, pair.ends[::-1]):
            for message in outbox(LINK, end.call):
                hear(LINK, end.call, other.call, message)
                told = [its for its in pair.ends if state_of(its).current == 2]
                assert not told or not any(opens(its, old) for its in pair.ends)
            wait(pair, LINGER_NS)


def test_a_key_that_one_application_has_goes_to_the_other_after_the_cut(pair: Pair) -> None:
    pair.stock()
    (half, none) = pair.ready(count=2)
    begin(pair.alice)
    carried(pair)
    prepared(pair)
    deliver(pair.alice, half)
    carried(pair)
    cut_over(pair)
    wait(pair, LINGER_NS)
    carried(pair)
    assert {state_of(end).phase for end in pair.ends} == {Phase.CUT}, "a pair is yet to be made whole"
    assert opens(pair.bob, half)
    assert not opens(pair.bob, none)
    deliver(pair.bob, half)
    carried(pair)
    wait(pair, 1)
    carried(pair)
    assert {state_of(end).phase for end in pair.ends} == {Phase.STEADY}
    for end in pair.ends:
        end_rows(end)
    assert stages(pair, half) == ("deactivated", "deactivated")
    assert stages(pair, none) == ("destroyed", "destroyed")


@pytest.mark.parametrize("heard", [False, True])
def test_a_key_that_stays_with_one_application_ends_at_both_ends_the_same(pair: Pair, heard: bool) -> None:
    """Also if the far end has not heard of the delivery, or takes the key for active."""
    pair.stock()
    (half,) = pair.ready(count=1)
    begin(pair.alice)
    carried(pair)
    prepared(pair)
    cut_over(pair)
    deliver(pair.alice, half)
    if heard:
        carried(pair)
    wait(pair, GRACE_NS)
    carried(pair)
    assert {state_of(end).phase for end in pair.ends} == {Phase.STEADY}
    assert not opens(pair.bob, half)
    if not heard:
        deliver(pair.bob, half)  # its acknowledgement came as late
    for end in pair.ends:
        end_rows(end)
    carried(pair)
    here, there = stages(pair, half)
    assert here == there
    assert here in ("destroyed", "deactivated")


# --- keys and numbers ------------------------------------------------------------------------------------------------


def test_a_key_is_bound_to_its_generation(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    its: dict[str, Any] = dict(zip(Bundle.__struct_fields__, range(40), strict=False))
    its |= {"key_ids": key.bytes, "key_generation": 1}
    assert Bundle(**its).bound(0) != Bundle(**(its | {"key_generation": 2})).bound(0)


def test_keys_of_an_ended_generation_are_not_cut_and_not_agreed_to(pair: Pair) -> None:
    pair.stock()
    cut(pair.bob, 1)
    (late,) = waiting(pair.bob)
    begin(pair.alice)
    for _ in range(3):
        for end, other in (pair.ends, pair.ends[::-1]):
            for message in outbox(LINK, end.call):
                if message != late:
                    hear(LINK, end.call, other.call, message)
    for end, other in (pair.ends, pair.ends[::-1]):
        cut(end, 2)
        for message in outbox(LINK, end.call):
            if message != late:
                hear(LINK, end.call, other.call, message)
        prepare(end, 2)
    for _ in range(8):
        for end, other in (pair.ends, pair.ends[::-1]):
            if state_of(end).phase is Phase.OFFERED:
                accept(end, 2)
            for message in outbox(LINK, end.call):
                if message != late:
                    hear(LINK, end.call, other.call, message)
        wait(pair, LINGER_NS)
    assert [state_of(end).current for end in pair.ends] == [2, 2]
    assert pair.alice.call(AcceptAllocation(link=LINK, allocate=late)) == REFUSED
    with pytest.raises(LocalProtocolError, match="no keys of generation 1"):
        cut(pair.alice, 1)
    assert pair.alice.call(AcceptAllocation(link=LINK, allocate=late)) == REFUSED


def test_keys_of_a_generation_whose_proposal_is_on_the_way_wait_for_it(pair: Pair) -> None:
    pair.stock()
    begin(pair.alice)
    (proposed,) = outbox(LINK, pair.alice.call)
    hear(LINK, pair.alice.call, pair.bob.call, proposed)
    cut(pair.bob, 2, 1)
    (allocate,) = waiting(pair.bob)
    assert pair.alice.call(AcceptAllocation(link=LINK, allocate=allocate)) == NOT_SETTLED
    carried(pair)
    assert len(offered(pair.alice)) == 0
    assert state_of(pair.bob).prepared == 1


def test_an_end_is_not_prepared_before_as_many_keys_are_at_both_ends(pair: Pair) -> None:
    pair.stock()
    begin(pair.alice)
    carried(pair)
    assert prepare(pair.alice, 0).phase is Phase.AGREED
    cut(pair.alice, 2)
    assert prepare(pair.alice, 2).phase is Phase.AGREED, "the far end has not got them yet"
    carried(pair)
    assert prepare(pair.alice, 3).phase is Phase.AGREED
    assert prepare(pair.alice, 2).phase is Phase.PREPARED


def test_an_application_cannot_accept_what_it_was_not_offered(pair: Pair) -> None:
    pair.stock()
    begin(pair.alice)
    carried(pair)
    assert accept(pair.alice, 2).phase is Phase.AGREED
    prepared(pair)
    assert accept(pair.alice, 3).phase is Phase.OFFERED
    assert accept(pair.alice, 2).phase is Phase.ACKNOWLEDGED
    assert accept(pair.alice, 2).phase is Phase.ACKNOWLEDGED


def test_generations_of_keys_are_not_opened_in_one_request(pair: Pair) -> None:
    pair.stock()
    (half,) = pair.ready(count=1)
    begin(pair.alice)
    carried(pair)
    new = prepared(pair)
    deliver(pair.alice, half)
    carried(pair)
    cut_over(pair)
    with pytest.raises(LocalProtocolError, match="generations"):
        pair.bob.call(OpenKeys(key_ids=(half, new[0]), application="ledger"))
    opened = pair.bob.call(OpenKeys(key_ids=tuple(new), application="ledger"))
    opened.material.release()
    assert opened.generation == 2


# --- given up --------------------------------------------------------------------------------------------------------


def give_up(end: End, reason: str = "operator") -> Any:
    return end.call(GiveUpRotation(association=end.association, reason=reason))


@pytest.mark.parametrize("giver", ENDS)
@pytest.mark.parametrize("when", ["proposed", "agreed", "prepared", "acknowledged"])
def test_a_rotation_that_is_given_up_leaves_the_old_generation_and_its_number_is_never_used_again(
    pair: Pair, giver: str, when: str
) -> None:
    pair.stock()
    old = pair.ready(count=2)
    begin(pair.alice)
    new: list[UUID] = []
    if when != "proposed":
        carried(pair)
    if when in ("prepared", "acknowledged"):
        new = prepared(pair)
    if when == "acknowledged":
        accept(pair.bob, 2)
        carried(pair)
    if (giver, when) == ("bob", "proposed"):
        with pytest.raises(VaultError, match="no rotation is on the way"):
            give_up(pair.bob)
        return
    give_up(getattr(pair, giver))
    carried(pair)
    assert [(s.phase, s.current, s.newest, s.result) for s in map(state_of, pair.ends)] == [
        (Phase.STEADY, 1, 2, "operator")
    ] * 2
    for end in pair.ends:
        end_rows(end)
        assert set(offered(end)) == set(old)
        assert not any(opens(end, key) for key in new)
    for key in new:
        assert stages(pair, key) == ("destroyed", "destroyed")
    rotate(pair, pair.bob, number=3)
    assert [state_of(end).current for end in pair.ends] == [3, 3]


def test_once_an_end_has_cut_there_is_no_way_back(pair: Pair) -> None:
    pair.stock()
    begin(pair.alice)
    carried(pair)
    prepared(pair)
    give_up(pair.bob)  # the wish is on its way when
    wish = next(one for one in outbox(LINK, pair.bob.call) if isinstance(one, RotationGivenUp))
    for end in pair.ends:
        accept(end, 2)
    stands = [one for one in outbox(LINK, pair.bob.call) if isinstance(one, RotationStands)]
    hear(LINK, pair.bob.call, pair.alice.call, stands[-1])
    assert state_of(pair.alice).phase is Phase.CUT
    hear(LINK, pair.bob.call, pair.alice.call, wish)
    assert state_of(pair.alice).phase is Phase.CUT
    carried(pair)
    assert state_of(pair.bob).phase is Phase.CUT
    with pytest.raises(VaultError, match="supplied already"):
        give_up(pair.alice)
    with pytest.raises(LocalProtocolError, match="cut over"):
        pair.bob.call(FollowRotation(link=LINK, message=RotationGivenUp(1, "payroll", "ledger", 2, "x")))
    closed(pair)


def test_a_proposal_that_was_given_up_before_it_was_heard_is_not_taken_up(pair: Pair) -> None:
    pair.stock()
    begin(pair.alice)
    (proposed,) = outbox(LINK, pair.alice.call)
    give_up(pair.alice)
    for message in reversed(outbox(LINK, pair.alice.call)):
        hear(LINK, pair.alice.call, pair.bob.call, message)
    assert isinstance(proposed, RotationProposed)
    assert [(s.phase, s.newest) for s in map(state_of, pair.ends)] == [(Phase.STEADY, 2)] * 2


def test_a_rotation_that_nobody_finishes_is_given_up_after_a_day_by_alice(pair: Pair) -> None:
    pair.stock()
    begin(pair.alice)
    carried(pair)
    wait(pair, EXPIRES_NS - 1000 * SECOND_NS)
    assert {state_of(end).phase for end in pair.ends} == {Phase.AGREED}
    wait(pair, 1000 * SECOND_NS)
    assert [state_of(end).phase for end in pair.ends] == [Phase.STEADY, Phase.AGREED]
    carried(pair)
    assert [state_of(end).result for end in pair.ends] == ["expired", "expired"]


@pytest.mark.parametrize("goes_without", [False, True])
def test_an_application_that_does_not_answer_is_waited_for_unless_the_policy_says_otherwise(
    pair: Pair, goes_without: bool
) -> None:
    document = (
        b'format = "qkdnode-policy/1"\nlevels = ["open"]\n'
        + b'[[class]]\nname = "qkd"\nlabel = "open"\npurpose = "session"\n'
        + b"rotate_without_acknowledgement = %s\n" % str(goes_without).lower().encode()
        + b'[[rule]]\nname = "all"\neffect = "permit"\n'
    )
    pair.stock()
    for end in pair.ends:
        end.apply(document)
    pair.ready(count=1)
    begin(pair.alice)
    carried(pair)
    prepared(pair)
    accept(pair.alice, 2)
    carried(pair)
    wait(pair, PATIENCE_NS - SECOND_NS)
    assert state_of(pair.bob).phase is Phase.OFFERED
    wait(pair, SECOND_NS)
    carried(pair)
    assert [state_of(end).phase for end in pair.ends] == (
        [Phase.CUT] * 2 if goes_without else [Phase.ACKNOWLEDGED, Phase.OFFERED]
    )


# --- what is not believed --------------------------------------------------------------------------------------------


def test_what_the_peer_cannot_have_come_to_is_refused_and_changes_nothing(pair: Pair) -> None:
    pair.stock()
    begin(pair.alice)
    carried(pair)
    for end, names in ((pair.alice, ("ledger", "payroll")), (pair.bob, ("payroll", "ledger"))):
        for phase in ("cut", "closed"):
            message = RotationStands(9, *names, 2, phase)  # type: ignore[arg-type]
            with pytest.raises(LocalProtocolError, match="which is agreed here"):
                end.call(FollowRotation(link=LINK, message=message))
        assert state_of(end).phase is Phase.AGREED
        assert not end.call(FollowRotation(link=LINK, message=RotationStands(9, *names, 3, "prepared")))


def test_a_rotation_of_an_association_that_only_alice_knows_comes_to_nothing(pair: Pair) -> None:
    other = type(HERE)("payroll", "archive", LINK)
    pair.alice.associate(other)
    pair.alice.call(BeginRotation(association=other, reason="operator", by="olga"))
    carried(pair)
    states = {state.association: state for state in pair.alice.call(Rotations())}
    assert (states[other].phase, states[other].result) == (Phase.STEADY, "unknown association")


def test_a_row_that_is_missing_or_put_back_stops_every_release(pair: Pair) -> None:
    pair.stock()
    rotate(pair)
    (key, *_) = offered(pair.alice)
    with pair.alice.tampering() as file:
        rows = file.execute("SELECT * FROM generations").fetchall()
        file.execute("UPDATE generations SET current = 1")
    pair.alice.reopen()
    assert not opens(pair.alice, key)
    with pytest.raises(VaultDamagedError):
        offered(pair.alice)
    with pair.alice.tampering() as file:
        file.execute("DELETE FROM generations")
    pair.alice.reopen()
    with pytest.raises(VaultDamagedError, match="lacks 1 of its generations"):
        offered(pair.alice)
    with pair.alice.tampering() as file:
        file.execute(f"INSERT INTO generations VALUES ({', '.join('?' * len(rows[0]))})", rows[0])
    pair.alice.reopen()
    assert opens(pair.alice, key)


def test_revoked_keys_of_the_next_generation_are_not_released_after_the_cut(pair: Pair) -> None:
    pair.stock()
    begin(pair.alice)
    carried(pair)
    new = prepared(pair)
    pair.alice.call(RevokeKeys(key_ids=(new[0],), reason="key-compromise", by="olga"))
    cut_over(pair)
    for end in pair.ends:
        assert set(offered(end)) == set(new[1:])


def test_many_generations_follow_one_another_and_all_but_the_last_are_over(pair: Pair) -> None:
    pair.stock(bits_out=140_000)
    made: dict[int, list[UUID]] = {}
    for number in range(2, 6):
        made[number] = rotate(pair, pair.ends[number % 2], number)
    for number, ids in made.items():
        wanted = "ready" if number == 5 else "destroyed"
        assert {stages(pair, key) for key in ids} == {(wanted, wanted)}
    for end in pair.ends:
        assert set(offered(end)) == set(made[5])
        assert state_of(end).ending == 0


# --- by the terms of a class -----------------------------------------------------------------------------------------


def policy(rotation: str) -> bytes:
    lines = (
        'format = "qkdnode-policy/1"', 'levels = ["open"]', "[[class]]", 'name = "qkd"', 'label = "open"',
        'purpose = "session"', 'algorithms = ["AES-256-GCM", "OTP"]', f"rotation = {{ {rotation} }}",
        "[[rule]]", 'name = "all"', 'effect = "permit"',
    )  # fmt: skip
    return "\n".join(lines).encode()


def begun(end: End, **facts: dict[str, int]) -> Any:
    found = end.call(RotateDue(**{"deprecated": {}, "degraded": {}, **facts}))
    return state_of(end).reason if found else None


def test_the_terms_of_a_class_begin_a_rotation_by_count_and_by_time(pair: Pair) -> None:
    pair.stock()
    for end in pair.ends:
        end.apply(policy("keys = 3, every_s = 1000"))
    assert begun(pair.alice) is None, "there is no key yet"
    pair.ready(count=2)
    assert begun(pair.alice) is None
    pair.ready(pair.bob, count=1)
    assert [begun(end) for end in pair.ends] == ["keys", "keys"]
    assert begun(pair.alice) is None, "it is on the way"
    carried(pair)
    assert [state_of(end).by for end in pair.ends] == ["policy", "policy"]
    prepared(pair, keys=1)
    cut_over(pair)
    closed(pair)
    assert begun(pair.alice) is None, "counts begin anew with each generation"
    wait(pair, 1000 * SECOND_NS)
    assert begun(pair.alice) == "time"
    give_up(pair.alice)
    assert begun(pair.alice) is None, "not at once after it was given up"
    wait(pair, RETRY_NS)
    assert begun(pair.alice) == "time"


def test_deprecation_and_degradation_begin_a_rotation_where_they_concern_the_keys(pair: Pair) -> None:
    pair.stock()
    for end in pair.ends:
        end.apply(policy("on_deprecated = true, on_degraded = true"))
    pair.ready(count=1)
    wait(pair, 100 * SECOND_NS)
    soon = pair.alice.now_ns - SECOND_NS
    assert begun(pair.alice, deprecated={"AES-128-GCM": soon}, degraded={"other": soon}) is None
    assert begun(pair.alice, deprecated={"OTP": soon}) == "deprecated", "the class allows it"
    assert begun(pair.bob, degraded={LINK: soon}) == "degraded"


def test_a_wall_clock_that_is_not_believed_hides_no_degradation(pair: Pair) -> None:
    pair.stock()
    pair.alice.apply(policy("on_degraded = true"))
    pair.ready(count=1)
    wait(pair, 7200 * SECOND_NS)
    assert begun(pair.alice) is None
    pair.alice.counter.ahead_ns -= 7200 * SECOND_NS  # set back: trusted time stays where it was
    assert begun(pair.alice, degraded={LINK: pair.alice.now_ns - 5 * SECOND_NS}) == "degraded"


def test_a_node_without_terms_rotates_nothing(pair: Pair) -> None:
    pair.stock()
    pair.ready(count=3)
    wait(pair, EXPIRES_NS)
    now = pair.alice.now_ns
    assert begun(pair.alice, deprecated={"AES-256-GCM": now - 1}, degraded={LINK: now - 1}) is None


def test_what_bob_wants_and_alice_does_not_answer_is_over_after_a_day(pair: Pair) -> None:
    begin(pair.bob)
    wait(pair, EXPIRES_NS - SECOND_NS)
    assert state_of(pair.bob).phase is Phase.WANTED
    wait(pair, SECOND_NS)
    assert (state_of(pair.bob).phase, state_of(pair.bob).result) == (Phase.STEADY, "expired")


def test_on_legal_hold_nothing_of_the_old_generation_is_destroyed_and_nothing_of_it_is_given(pair: Pair) -> None:
    document = policy("keys = 1000").replace(b"rotation =", b"legal_hold = true\nrotation =")
    pair.stock()
    for end in pair.ends:
        end.apply(document)
    half, none = pair.ready(count=2)
    begin(pair.alice)
    carried(pair)
    new = prepared(pair)
    cut_over(pair)
    deliver(pair.alice, half)
    wait(pair, GRACE_NS)
    carried(pair)
    for end in pair.ends:
        end_rows(end)
        assert set(offered(end)) == set(new)
        assert not opens(end, none)
    carried(pair)
    assert stages(pair, none) == ("quarantined", "quarantined")
    assert "destroyed" not in stages(pair, half)


@pytest.mark.parametrize(
    ("phase", "number", "ending", "moving"),
    [
        (Phase.STEADY, 0, 0, set()),
        (Phase.STEADY, 0, 1, {1, 3}),
        (Phase.AGREED, 3, 0, {3}),
        (Phase.ACKNOWLEDGED, 3, 0, {3}),
        (Phase.CUT, 3, 0, {1, 2, 3}),
        (Phase.CLOSED, 3, 0, {1, 2, 3}),
    ],
)
def test_what_a_rotation_moves_is_no_difference_between_the_ends_until_it_has_moved(
    phase: Phase, number: int, ending: int, moving: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = SimpleNamespace(phase=phase.value, current=2, number=number, ending=ending)
    monkeypatch.setattr(generations, "of", lambda store, association: row)
    keys = [SimpleNamespace(association=1, key_generation=its) for its in (1, 2, 3)]
    assert {one.key_generation for one in keys if generations.is_moving(None, one)} == moving  # type: ignore[arg-type]
