"""Keys that end by the terms of their class: at both ends, in pages, by trusted time, and over restarts."""

from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from approving import policy
from vaults import LINK, START_NS, End, Pair, contents

from qkdnode.errors import LocalProtocolError, PolicyDeniedError, VaultError
from qkdnode.lifecycle.retirement import COLUMNS, GRACE_NS, LOST_NS
from qkdnode.vault.inventory import ListKeys, ShowKey
from qkdnode.vault.lineage import ShowLineage
from qkdnode.vault.requests import (
    ApplicationOutbox,
    Entitle,
    EventsAfter,
    KeysDelivered,
    NeighbourOutbox,
    OpenKeys,
    OutboxCleared,
    PeerDelivered,
    Status,
)
from qkdnode.vault.retirement import DueTimers, FollowRetired, Retired, RetireKeys, ShowDue, _of
from qkdnode.vault.scrub import Scrub
from qkdnode.wire.messages import Delivered, KeysRetired

S = 10**9
GRACE_S = GRACE_NS // S
OTHER = policy(name="other")


def both(pair: Pair, document: bytes) -> None:
    for end in pair.ends:
        end.apply(document)


def passes(pair: Pair, seconds: float) -> None:
    for end in pair.ends:
        end.counter.ahead_ns += round(seconds * S)


def retire(end: End, pages: int = 1000, bundles: int = 16) -> int:
    """Pages until nothing is due; how many keys took a step."""
    keys = 0
    for _ in range(pages):
        done: Retired = end.call(RetireKeys(bundles=bundles))
        keys += done.keys
        if not done.more:
            break
    return keys


def carry(pair: Pair) -> int:
    """Carry what waits for the neighbours over, and confirm it; how many messages."""
    carried = 0
    for end, other in (pair.ends, pair.ends[::-1]):
        for entry in end.call(NeighbourOutbox(link=LINK, limit=1000)):
            match entry.message:
                case KeysRetired() as message:
                    other.call(FollowRetired(link=LINK, message=message))
                case Delivered(application=application, key_ids=raw):
                    ids = tuple(_ids(raw))
                    other.call(PeerDelivered(link=LINK, application=application, key_ids=ids))
                case _:
                    continue
            end.call(OutboxCleared(link=LINK, numbers=(entry.number,)))
            carried += 1
    return carried


def _ids(raw: bytes) -> list[Any]:
    return [UUID(bytes=raw[at : at + 16]) for at in range(0, len(raw), 16)]


def delivered(pair: Pair, keys: tuple[Any, ...], ends: tuple[End, ...] | None = None) -> None:
    for end in pair.ends if ends is None else ends:
        end.call(KeysDelivered(application=end.association.local, key_ids=keys, details={}))
    carry(pair)


def stages(end: End) -> dict[str, int]:
    found: dict[str, int] = end.call(Status()).keys
    return found


def leaves(end: End, kind: str) -> list[Any]:
    return [event for _, event in end.call(EventsAfter(position=0, limit=4096)) if event.kind == kind]


def sealed(end: End) -> int:
    with end.tampering() as connection:
        return int(connection.execute("SELECT count(*) FROM keys").fetchall()[0][0])


def test_a_key_too_old_is_released_no_more_and_a_grace_later_destroyed_at_both_ends(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10"))
    keys = pair.ready(pair.alice)
    passes(pair, 9)
    assert retire(pair.alice) == retire(pair.bob) == 0
    assert contents(pair.alice, keys[0])
    passes(pair, 2)
    with pytest.raises(PolicyDeniedError, match="age-at-release"):
        contents(pair.alice, keys[0])
    assert retire(pair.alice) == retire(pair.bob) == 0, "what is on its way may still be acknowledged"
    passes(pair, GRACE_S)
    assert retire(pair.bob) == 0, "who has not allocated them waits to be told"
    assert retire(pair.alice) == 3
    assert stages(pair.alice) == {"destroyed": 3}
    assert sealed(pair.alice) == 0
    assert carry(pair) == 1
    assert stages(pair.bob) == {"destroyed": 3}
    assert sealed(pair.bob) == 0
    assert retire(pair.alice) == retire(pair.bob) == 0
    for end, by in ((pair.alice, "policy/1"), (pair.bob, "neighbour")):
        (leaf,) = leaves(end, "key.destroyed")
        assert leaf.details == {"by": by, "reason": "age-at-release", "method": "crypto-erase"}
        assert len(leaf.keys) == 3


def test_each_end_comes_to_it_by_itself_while_the_link_is_cut(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10"))
    pair.ready(pair.alice)
    passes(pair, 11 + 2 * GRACE_S)
    assert (retire(pair.alice), retire(pair.bob)) == (3, 3)
    assert stages(pair.alice) == stages(pair.bob) == {"destroyed": 3}
    assert carry(pair) == 2
    assert stages(pair.alice) == stages(pair.bob) == {"destroyed": 3}
    assert [len(leaves(end, "key.destroyed")) for end in pair.ends] == [1, 1], "nothing is told of twice"


def test_a_key_past_the_window_of_its_class_goes_whatever_its_age(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("not_after = 2023-11-14T22:14:20Z"))  # 60 s after the start
    pair.ready(pair.alice)
    passes(pair, 59 + GRACE_S)
    assert retire(pair.alice) == 0
    passes(pair, 2)
    assert retire(pair.alice) == 3
    assert {leaf.details["reason"] for leaf in leaves(pair.alice, "key.destroyed")} == {"validity-window"}


def test_keys_of_a_class_that_the_policy_has_lost_end_after_an_hour_in_which_it_can_be_mended(pair: Pair) -> None:
    pair.stock()
    both(pair, policy())
    active = pair.ready(pair.alice)
    delivered(pair, active)
    waiting = pair.ready(pair.alice)
    both(pair, OTHER)
    for _ in range(2):
        assert pair.alice.call(RetireKeys()).lost == ("bulk",)
    assert len(leaves(pair.alice, "class.lost")) == 1
    passes(pair, LOST_NS / S - 1)
    pair.alice.reopen()
    assert retire(pair.alice) == 0
    both(pair, policy())  # mended
    passes(pair, LOST_NS / S)
    assert retire(pair.alice) == 0
    assert len(leaves(pair.alice, "class.known_again")) == 1
    both(pair, OTHER)
    retire(pair.alice)
    passes(pair, LOST_NS / S + GRACE_S + 1)
    retire(pair.alice)
    carry(pair)
    retire(pair.bob)
    for end in pair.ends:
        assert {end.call(ShowKey(key_id=key)).state for key in waiting} == {"destroyed"}
        assert {end.call(ShowKey(key_id=key)).state for key in active} == {"destroyed"}  # deactivated, kept for 0 s
        assert end.call(RetireKeys()).lost == ()
    assert {leaf.details["reason"] for leaf in leaves(pair.alice, "key.deactivated")} == {"unknown-class"}


def test_an_active_key_is_deactivated_after_its_lifetime_kept_for_a_time_and_destroyed(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("lifetime_s = 100\nretain_key_s = 1000"))
    keys = pair.ready(pair.alice)
    delivered(pair, keys)
    passes(pair, 99 + GRACE_S)
    assert retire(pair.alice) == 0
    passes(pair, 2)
    assert retire(pair.alice) == 3
    carry(pair)
    assert stages(pair.alice) == stages(pair.bob) == {"deactivated": 3}
    passes(pair, 990)
    assert retire(pair.alice) == retire(pair.bob) == 0
    passes(pair, 11)
    assert retire(pair.alice) == 3
    carry(pair)
    assert stages(pair.alice) == stages(pair.bob) == {"destroyed": 3}
    assert [leaf.details["reason"] for leaf in leaves(pair.alice, "key.destroyed")] == ["retain-key"]


def test_a_key_that_only_one_application_took_within_its_lifetime_is_destroyed_at_both_ends(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("lifetime_s = 100"))
    keys = pair.ready(pair.alice)
    delivered(pair, keys, (pair.alice,))
    passes(pair, 101 + GRACE_S)
    assert retire(pair.alice) == 3
    assert retire(pair.bob) == 0
    carry(pair)
    assert stages(pair.alice) == stages(pair.bob) == {"destroyed": 3}
    with pytest.raises(VaultError):
        contents(pair.bob, keys[0])


def test_an_acknowledgement_that_was_on_its_way_at_the_end_counts(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10"))
    keys = pair.ready(pair.alice)
    passes(pair, 9)
    for end in pair.ends:
        contents(end, keys[0])
    passes(pair, 30)
    delivered(pair, keys)
    passes(pair, 1000)
    assert retire(pair.alice) == retire(pair.bob) == 0
    assert pair.alice.call(Status()).keys_delivered_both == 3


def test_timers_end_the_keys_of_a_bundle_that_they_are_about_and_no_other(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10\nlifetime_s = 500"))
    keys = pair.ready(pair.alice, count=4)
    delivered(pair, keys[:1])
    delivered(pair, keys[1:2], (pair.alice,))
    passes(pair, 11 + GRACE_S)
    assert retire(pair.alice) == 2
    carry(pair)
    assert [pair.alice.call(ShowKey(key_id=key)).state for key in keys] == ["delivered"] * 2 + ["destroyed"] * 2
    assert sealed(pair.bob) == 1
    passes(pair, GRACE_S)
    assert retire(pair.bob) == 1, "whose application never took it"
    carry(pair)
    for end in pair.ends:
        assert [end.call(ShowKey(key_id=key)).state for key in keys] == ["delivered"] + ["destroyed"] * 3


def test_records_go_after_the_metadata_s_time_and_the_log_stays(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10\nretain_metadata_s = 1000"))
    keys = pair.ready(pair.alice)
    passes(pair, 11 + GRACE_S)
    retire(pair.alice)
    carry(pair)
    passes(pair, 999)
    retire(pair.alice)
    assert pair.alice.call(ShowKey(key_id=keys[0])).state == "destroyed"
    passes(pair, 2)
    for end in pair.ends:
        size = len(leaves(end, "key.destroyed"))
        assert retire(end) == 0
        assert end.call(ListKeys()).keys == ()
        with pytest.raises(VaultError):
            end.call(ShowLineage(key_id=keys[0]))
        assert stages(end) == {}
        (leaf,) = leaves(end, "key.forgotten")
        assert leaf.details == {"keys": 3}
        assert len(leaves(end, "key.destroyed")) == size
        with end.tampering() as connection:
            assert connection.execute("SELECT count(*) FROM key_heads").fetchall() == [(0,)]
        end.reopen()
        state = end.call(Scrub(now=True))
        while state.running:
            state = end.call(Scrub())
        assert state.damaged == 0, "a row that was deleted by its time is not missed"
    assert len(pair.ready(pair.alice)) == 3


def test_without_a_time_for_metadata_records_stay(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10"))
    keys = pair.ready(pair.alice)
    passes(pair, 10**9)
    retire(pair.alice)
    passes(pair, 10**9)
    retire(pair.alice)
    assert pair.alice.call(ShowKey(key_id=keys[0])).state == "destroyed"


HOLD = "max_age_at_release_s = 10\nlifetime_s = 100\nretain_metadata_s = 1000\nlegal_hold = "


def test_a_legal_hold_keeps_everything_out_of_the_outbox_and_its_release_ends_it_at_once(pair: Pair) -> None:
    pair.stock()
    both(pair, policy(HOLD + "true"))
    active = pair.ready(pair.alice)
    delivered(pair, active)
    half = pair.ready(pair.alice, count=1)
    delivered(pair, half, (pair.alice,))
    waiting = pair.ready(pair.alice)
    passes(pair, 10**6)
    for end in pair.ends:
        retire(end)
    carry(pair)
    for end in pair.ends:
        retire(end)
        assert end.call(RetireKeys()) == Retired(0, 0, (), False)
        assert {end.call(ShowKey(key_id=key)).state for key in waiting} == {"quarantined"}
        assert {end.call(ShowKey(key_id=key)).state for key in active} == {"deactivated"}
        assert end.call(ApplicationOutbox(application=end.association.local)) == ()
        assert not leaves(end, "key.destroyed")
        shown: DueTimers = end.call(ShowDue())
        assert {timer.timer for timer in shown.timers if timer.held} >= {"held", "deactivated"}
        assert all(timer.rule == "legal-hold" for timer in shown.timers if timer.timer == "held")
        end.reopen()
    assert sealed(pair.alice) == 3
    assert sealed(pair.bob) == 4
    assert pair.alice.call(Entitle(association=pair.alice.association, size_bits=256)).outstanding <= 1
    both(pair, policy(HOLD + "false"))
    passes(pair, 3 * GRACE_S)
    for _ in range(2):
        for end in pair.ends:
            retire(end)
        carry(pair)
    passes(pair, 100 + 3 * GRACE_S)  # of the one that only one application has
    for end in pair.ends:
        retire(end)
    carry(pair)
    for end in pair.ends:
        assert stages(end) == {"destroyed": 7}
        assert sealed(end) == 0


def test_a_hold_at_one_end_keeps_what_the_other_end_destroys(pair: Pair) -> None:
    pair.stock()
    pair.alice.apply(policy(HOLD + "false"))
    pair.bob.apply(policy(HOLD + "false"))
    keys = pair.ready(pair.alice)
    pair.bob.apply(policy(HOLD + "true"))
    passes(pair, 11 + GRACE_S)
    retire(pair.alice)
    carry(pair)
    assert stages(pair.bob) == {"quarantined": 3}
    assert sealed(pair.bob) == 3
    with pytest.raises(VaultError):
        contents(pair.bob, keys[0])
    pair.bob.apply(policy(HOLD + "false"))
    retire(pair.bob)
    carry(pair)
    assert stages(pair.bob) == stages(pair.alice) == {"destroyed": 3}


def test_a_class_that_is_lost_while_on_hold_stays_on_hold(pair: Pair) -> None:
    pair.stock()
    both(pair, policy(HOLD + "true"))
    pair.ready(pair.alice)
    delivered(pair, pair.ready(pair.alice, count=1), (pair.alice,))
    both(pair, OTHER)
    retire(pair.alice)
    passes(pair, 10**6)
    assert retire(pair.alice, pages=20) == 0
    assert pair.alice.call(RetireKeys()) == Retired(0, 0, (), False), "nothing is looked at again and again"
    assert stages(pair.alice) == {"quarantined": 3, "delivered": 1}
    assert not leaves(pair.alice, "key.destroyed")


def test_shorter_and_longer_terms_count_from_the_next_look_on(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10"))
    pair.ready(pair.alice)
    both(pair, policy("max_age_at_release_s = 1000"))
    passes(pair, 500)
    assert retire(pair.alice) == 0
    (timer,) = pair.alice.call(ShowDue()).timers
    assert (timer.timer, timer.rule, timer.bundles) == ("pre-active", "age-at-release", 0)
    assert timer.due_ns - START_NS == pytest.approx((1000 + GRACE_S) * S, abs=S)
    both(pair, policy("max_age_at_release_s = 100"))
    assert pair.alice.call(ShowDue()).timers[0].bundles == 1
    assert retire(pair.alice) == 3


def test_what_is_due_after_a_long_stop_goes_oldest_first_in_pages_and_none_of_it_is_released(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10\nretain_metadata_s = 5"))
    made = []
    for _ in range(7):
        made.append(pair.ready(pair.alice, count=2))
        passes(pair, 1)
    passes(pair, 10**6)
    pair.alice.reopen()
    everything = tuple(key for keys in made for key in keys)
    gone: list[Any] = []
    for page in range(4):
        with pytest.raises((PolicyDeniedError, VaultError)):
            pair.alice.call(OpenKeys(key_ids=everything, application="payroll"))
        assert pair.alice.call(ApplicationOutbox(application="payroll")) == ()
        done = pair.alice.call(RetireKeys(bundles=2))
        assert done.keys == (4 if page < 3 else 2)
        pair.alice.reopen()  # as after a crash between two pages
        gone = [key for key in everything if pair.alice.call(ShowKey(key_id=key)).state == "destroyed"]
        assert gone == list(everything[: len(gone)])
    assert len(gone) == 14


def test_a_wall_clock_that_was_set_back_keeps_no_key_alive(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10"))
    keys = pair.ready(pair.alice)
    passes(pair, 11)
    with pytest.raises(PolicyDeniedError):
        contents(pair.alice, keys[0])
    pair.alice.call(RetireKeys())
    passes(pair, -3600)
    for _ in range(2):
        with pytest.raises(PolicyDeniedError):
            contents(pair.alice, keys[0])
        pair.alice.reopen()  # what the vault knew of time is not forgotten


def test_each_timer_looks_by_an_index(pair: Pair) -> None:
    with pair.alice.tampering() as connection:
        for column in COLUMNS.values():
            for statement, values in (
                (f"SELECT {column} FROM bundles WHERE {_of(column)} ORDER BY {column} LIMIT 1", ("x", 1)),
                (
                    f"SELECT number FROM bundles WHERE {_of(column)} AND {column} <= ? ORDER BY {column} LIMIT 9",
                    ("x", 1, 5),
                ),
                (
                    f"SELECT class FROM bundles WHERE {column} IS NOT NULL AND state = 'held' AND class > ? "
                    "AND typeof(class) = 'text' ORDER BY class LIMIT 1",
                    ("x",),
                ),
            ):
                (plan,) = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
                assert "SEARCH bundles USING" in plan[3], plan
                assert "TEMP B-TREE" not in plan[3]


@pytest.mark.parametrize("ids", [bytes(15), bytes(32)])
def test_a_message_whose_ids_and_stages_do_not_go_together_changes_nothing(pair: Pair, ids: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        pair.bob.call(FollowRetired(link=LINK, message=KeysRetired(1, "lifetime", ids, b"z")))
    with pytest.raises(LocalProtocolError):
        pair.bob.call(FollowRetired(link=LINK, message=KeysRetired(1, "lifetime", bytes(16), b"r")))
    assert stages(pair.bob) == {}


@pytest.mark.parametrize("value", [1, "x", b"\xff", 0.5, None, 2**62])
def test_a_time_that_somebody_wrote_there_ends_no_key_and_keeps_no_other_from_its_end(pair: Pair, value: Any) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10"))
    pair.ready(pair.alice)
    passes(pair, 1)
    young = pair.ready(pair.alice)
    with pair.alice.tampering() as connection:
        connection.execute("UPDATE bundles SET waits_ns = ? WHERE number = (SELECT min(number) FROM bundles)", (value,))
    assert retire(pair.alice) == 0
    passes(pair, 11 + GRACE_S)
    assert retire(pair.alice) == 3
    assert {pair.alice.call(ShowKey(key_id=key)).state for key in young} == {"destroyed"}
    assert len(leaves(pair.alice, "record.damaged")) == (0 if value is None else 1)
    assert sealed(pair.alice) == 3, "what is damaged is kept for whoever examines it"


def test_the_counts_of_keys_are_right_after_everything(pair: Pair) -> None:
    pair.stock()
    both(pair, policy("max_age_at_release_s = 10\nlifetime_s = 50\nretain_metadata_s = 100"))
    delivered(pair, pair.ready(pair.alice))
    pair.ready(pair.bob, count=5)
    for _ in range(8):
        passes(pair, 40)
        for end in pair.ends:
            retire(end)
            with end.tampering() as connection:
                states = connection.execute("SELECT states FROM bundles").fetchall()
            counted = Counter(letter for (row,) in states for letter in row)
            assert sum(counted.values()) == sum(stages(end).values())
        carry(pair)
    assert stages(pair.alice) == stages(pair.bob) == {}
