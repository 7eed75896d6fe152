"""Both ends compare what they hold: what differs is found, kept from everybody, and brought to the same place."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from approving import policy
from comparing import DAY_S, HOUR_S, Side, World
from vaults import LINK, End, Pair, contents, waiting

from qkdnode.errors import VaultError
from qkdnode.ids import BatchId
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import requests as ask
from qkdnode.vault.doubts import Doubts, EndDoubts
from qkdnode.vault.records import pack_batch
from qkdnode.vault.revocations import RevokeKeys
from qkdnode.wire.messages import Delivered, KeysRevoked, Message, StretchHeld

SECOND = BatchId(1, 2)
pytestmark = pytest.mark.usefixtures("few_looks")


def test_ends_that_agree_ask_one_question_and_change_nothing(world: World) -> None:
    world.pair.ready(count=5)
    world.pair.ready(world.pair.bob, count=2)
    leaves = [end.call(ask.Status()).leaves for end in world.pair.ends]
    world.play(30)
    assert [end.call(ask.Status()).leaves for end in world.pair.ends] == leaves
    for side in world.sides:
        assert side.comparison.state.agrees
        assert side.comparison.state.here == side.comparison.state.there == side.root()
        assert [type(message).__name__ for message in side.sent].count("HoldingsAsked") == 1
        assert not side.alarms


def test_roots_differ_while_a_message_is_under_way_and_are_equal_once_it_has_come(world: World) -> None:
    assert world.agrees()
    ids = world.pair.allocate(world.pair.alice, 5)
    assert not world.agrees()
    world.exchange()
    assert world.agrees()
    world.deliver(world.alice, ids[:2])
    assert not world.agrees()
    world.exchange()
    assert world.agrees()
    world.pair.bob.call(RevokeKeys(key_ids=ids[3:], reason="superseded", by="olga"))
    assert not world.agrees()
    world.exchange()
    assert world.agrees()


def test_what_is_under_way_is_no_difference(world: World) -> None:
    pair = world.pair
    ids = pair.ready(count=8)
    world.deliver(world.alice, ids[:3])
    pair.bob.call(RevokeKeys(key_ids=ids[4:6], reason="superseded", by="olga"))
    pair.allocate(pair.bob, 4)
    world.play(HOUR_S)
    for side in world.sides:
        assert side.comparison.state.found == {}
        assert side.comparison.state.unsettled
        assert not side.alarms
        assert side.doubts() == ()
    world.exchange()
    assert world.agrees()


def test_what_changes_while_it_is_looked_at_is_left_for_the_next_time(world: World) -> None:
    """The neighbour's page is older than what has come from it meanwhile."""
    pair = world.pair
    pair.ready(count=2)
    pair.allocate(pair.bob, 1)  # so that the stretch is looked at
    ids: list[Any] = []

    def wire(side: Side, message: Message) -> Iterator[tuple[Message, float]]:
        if isinstance(message, StretchHeld) and side is world.bob and not ids:
            ids.extend(pair.allocate(pair.bob, 4))
            world.exchange()
        yield message, 0.0

    world.wire = wire
    world.play(1.0)
    assert ids
    assert world.alice.stages() == {"ready": 7}
    assert world.alice.comparison.state.found == {}
    assert world.alice.comparison.state.unsettled
    assert not world.alice.alarms


def test_the_wire_tells_no_id_of_a_key_and_no_bit(world: World) -> None:
    ids = world.pair.ready(count=5)
    secrets = [contents(world.pair.alice, key_id) for key_id in ids]
    world.deliver(world.alice, ids[:1])
    world.play(70)
    told = repr([message for side in world.sides for message in side.sent]).encode()
    assert any(isinstance(message, StretchHeld) for message in world.alice.sent + world.bob.sent)
    for hidden in [key_id.bytes for key_id in ids] + secrets:
        assert repr(hidden[:8])[2:-1].encode() not in told


@pytest.mark.parametrize("answered", [True, False])
def test_a_key_whose_request_was_lost_is_burnt_in_the_end_at_both(world: World, answered: bool) -> None:
    """The row of the outbox is gone: the neighbour has accepted already, or will never hear of it."""
    pair = world.pair
    ids = pair.allocate(pair.alice, 3)
    (allocate,) = waiting(pair.alice)
    if answered:
        assert pair.bob.call(ask.AcceptAllocation(link=LINK, allocate=allocate)) == "accepted"
    world.lose(world.alice, allocate.request)
    world.play(1.0)
    assert world.alice.comparison.state.found == (
        {"answered": 3} if answered else {"unanswered": 3, "stock there": 768}
    )
    assert world.alice.stages() == {"allocated": 3}
    world.play(1.5 * DAY_S)
    assert world.alice.stages() == ({"ready": 3} if answered else {"burnt": 3})
    assert world.agrees()
    assert [end.call(Doubts(link=LINK)).total for end in pair.ends] == [0, 0]
    if answered:
        assert world.alice.offered() == set(ids)
        assert contents(pair.alice, ids[0]) == contents(pair.bob, ids[0])
        assert world.alice.notified == {"payroll"}
    else:  # the bits that it was cut from are in nobody's stock any more
        assert pair.ready(count=20)


def test_a_delivery_that_was_lost_is_heard_of(world: World) -> None:
    ids = world.pair.ready(count=3)
    world.deliver(world.bob, ids[:2])
    world.exchange(lost=Delivered)
    assert not world.agrees()
    world.play(200)
    assert world.agrees()
    assert world.alice.stages() == {"ready": 3}
    world.deliver(world.alice, ids)
    world.exchange()
    assert world.pair.alice.call(ask.Status()).keys_delivered_both == 2


def test_a_revocation_that_was_lost_is_followed_and_stops_the_supply_at_once(world: World) -> None:
    ids = world.pair.ready(count=3)
    world.pair.bob.call(RevokeKeys(key_ids=ids[:1], reason="superseded", by="olga"))
    world.pair.bob.call(RevokeKeys(key_ids=ids[1:2], reason="key-compromise", by="olga"))
    world.exchange(lost=KeysRevoked)
    assert world.alice.offered() == set(ids)
    world.play(2)
    assert world.alice.offered() == {ids[2]}
    assert [world.alice.stage(key_id) for key_id in ids] == ["quarantined", "quarantined", "ready"]
    world.play(200)
    assert [world.alice.stage(key_id) for key_id in ids] == ["destroyed", "compromised", "ready"]
    assert world.agrees()
    assert world.alice.alarms["INVENTORY"]
    assert world.alice.cleared


def test_a_bundle_that_is_damaged_at_one_end_is_an_orphan_at_the_other_and_ends_at_both(world: World) -> None:
    ids = world.pair.ready(count=3)
    with world.pair.bob.tampering() as connection:
        connection.execute("UPDATE bundles SET size_bits = 128")
    world.play(2)
    assert world.alice.stages() == {"quarantined": 3}
    assert world.alice.offered() == set()
    with pytest.raises(VaultError, match="quarantined"):
        contents(world.pair.alice, ids[0])
    world.play(23 * HOUR_S)
    assert world.alice.stages() == {"quarantined": 3}
    world.play(8 * HOUR_S)
    assert world.alice.stages() == {"destroyed": 3}
    world.exchange()
    assert world.agrees()


def test_a_key_set_aside_at_one_end_is_given_out_by_neither(world: World) -> None:
    ids = world.pair.ready(count=3)
    with world.pair.bob.tampering() as connection:
        connection.execute(
            "UPDATE keys SET sealed = zeroblob(length(sealed)) WHERE rowid IN (SELECT min(rowid) FROM keys)"
        )
    with pytest.raises(VaultError):
        contents(world.pair.bob, ids[0])
    assert world.bob.stages() == {"ready": 2}
    world.play(200)
    assert world.alice.stages() == {"compromised": 1, "ready": 2}
    assert world.agrees()


def test_stock_that_only_one_end_has_is_burnt_and_no_other(world: World) -> None:
    pair = world.pair
    pair.stock(SECOND, bits_out=200_000)
    with pair.bob.tampering() as connection:
        connection.execute(
            "UPDATE chunks SET bits = bits + 8 WHERE half = 'alice' AND number = 0 AND batch = ?", (pack_batch(SECOND),)
        )
        assert connection.changes() == 1
    before = pair.alice.call(ask.Status())
    world.play(200)
    after = pair.alice.call(ask.Status())
    assert before.stock_bits_own[LINK] - after.stock_bits_own[LINK] == 32_768
    assert before.stock_bits_peer == after.stock_bits_peer
    assert world.agrees()
    assert len(pair.ready(count=3)) == 3
    assert world.bob.stages() == {"ready": 3}


def test_no_key_that_both_have_is_harmed_by_differences_beside_it(world: World) -> None:
    pair = world.pair
    good = pair.ready(count=10)
    pair.stock(SECOND, bits_out=40_000)
    bad = pair.ready(pair.bob, count=4)
    with pair.bob.tampering() as connection:
        connection.execute("UPDATE bundles SET policy = 9 WHERE number = (SELECT max(number) FROM bundles)")
    world.play(1.5 * DAY_S)
    world.exchange()
    assert all(world.alice.stage(key_id) == world.bob.stage(key_id) == "ready" for key_id in good)
    assert all(world.alice.stage(key_id) == "destroyed" for key_id in bad)
    assert world.agrees()


# --- older copies --------------------------------------------------------------------------------------------------


def copied(end: End) -> Path:
    """The file of a vault as it is now."""
    end.vault.close()
    target = end.directory / "older"
    shutil.copy2(end.path, target)
    end.open()
    return target


def put_back(end: End, copy: Path) -> None:
    end.vault.close()
    for suffix in ("-wal", "-shm"):
        end.path.with_name(end.path.name + suffix).unlink(missing_ok=True)
    shutil.copy2(copy, end.path)
    end.open()


def provision_anew(pair: Pair) -> None:
    for end in pair.ends:
        material = SecretBuffer.copy_of(bytes(i % 241 for i in range(32 * 300)))
        peer = "b" if end is pair.alice else "a"
        end.call(ask.ProvisionLink(link=LINK, role=end.role, peer=peer, pair=b"another", material=material))
        end.open_link()


@pytest.mark.parametrize("told", [True, False])
def test_an_older_copy_gives_out_no_key_again(world: World, told: bool) -> None:
    """All that it supplied since the copy was taken, and all that it may have, is out of its supply for good."""
    pair = world.pair
    given = pair.ready(count=6)
    kept = pair.ready(count=2)
    copy = copied(pair.bob)
    world.deliver(world.bob, given)
    later = pair.ready(count=3)
    world.deliver(world.bob, later)
    if told:
        world.exchange()
    put_back(pair.bob, copy)
    assert set(given) <= world.bob.offered()
    state = pair.bob.open_link()
    said = pair.alice.call(ask.StateLink(link=LINK))
    if told:
        greeting = _greeting(pair, said, heard=7)
        assert pair.bob.call(ask.AdmitPeer(link=LINK, greeting=greeting)).refused
    assert state is not None
    provision_anew(pair)
    assert world.bob.offered() == world.alice.offered() == set()
    world.play(300)
    # It is known to be a copy, by its sessions or by what it knows nothing of: it keeps to itself even what the
    # neighbour has as ready.
    assert world.bob.offered() == set()
    assert world.alice.offered() >= set(kept)
    world.play(1.5 * DAY_S)
    world.exchange()
    world.play(300)
    assert world.agrees()
    for key_id in given:
        assert world.bob.stage(key_id) in ("delivered", "destroyed")
    for key_id in later:
        assert world.bob.stage(key_id) == "unknown"
        assert world.alice.stage(key_id) == "destroyed"
    assert all(world.bob.stage(key_id) == world.alice.stage(key_id) == "destroyed" for key_id in kept)


def _greeting(pair: Pair, said: Any, heard: int) -> Any:
    from msgspec.structs import replace

    from qkdnode.wire.messages import Greeting

    stated = replace(said, heard=heard, heard_start=b"another!")
    return Greeting("a", LINK, b"pair", b"a start!", 9, bytes(8), 1, False, "", stated, 0, ())


def test_a_hold_on_one_class_does_not_keep_what_an_older_copy_has_of_another(world: World) -> None:
    pair = world.pair
    held, free = policy("legal_hold = true", name="held"), policy(name="free")
    first, rule = (held.index(part) for part in (b"[[class]]", b"[[rule]]"))
    both_classes = free.replace(b"[[rule]]", held[first:rule] + b"[[rule]]") + b'classes = ["free"]\n'
    for end in pair.ends:
        end.apply(held)
    kept = pair.ready(count=2)
    for end in pair.ends:
        end.apply(both_classes)
    ended = pair.ready(count=2)
    copy = copied(pair.bob)
    put_back(pair.bob, copy)
    pair.bob.open_link()
    greeting = _greeting(pair, pair.alice.call(ask.StateLink(link=LINK)), heard=7)
    assert pair.bob.call(ask.AdmitPeer(link=LINK, greeting=greeting)).refused
    assert {world.bob.stage(key_id) for key_id in (*kept, *ended)} == {"quarantined"}
    destroyed = 0
    for _ in range(8):
        pair.bob.counter.ahead_ns += 4 * 3600 * 10**9
        while keys := pair.bob.call(EndDoubts(link=LINK)):
            destroyed += keys
    assert destroyed == len(ended)
    assert {world.bob.stage(key_id) for key_id in kept} == {"quarantined"}
    assert {world.bob.stage(key_id) for key_id in ended} == {"destroyed"}


def test_ends_that_are_provisioned_anew_keep_what_both_have(world: World) -> None:
    pair = world.pair
    ids = pair.ready(count=6)
    world.deliver(world.alice, ids[:2])
    world.exchange()
    provision_anew(pair)
    assert world.alice.offered() == world.bob.offered() == set()
    world.play(100)
    assert world.alice.offered() == set(ids[2:])
    assert world.bob.offered() == set(ids)
    assert world.agrees()
    assert contents(pair.alice, ids[3]) == contents(pair.bob, ids[3])


def test_a_request_that_waited_when_the_pair_was_provisioned_anew_gives_no_key(world: World) -> None:
    pair = world.pair
    ids = pair.allocate(pair.alice, 3)
    (allocate,) = waiting(pair.alice)
    pair.bob.call(ask.AcceptAllocation(link=LINK, allocate=allocate))
    provision_anew(pair)
    world.play(5)
    world.exchange()
    world.play(200)
    assert {world.alice.stage(key_id) for key_id in ids} == {world.bob.stage(key_id) for key_id in ids} == {"destroyed"}
    assert world.agrees()
