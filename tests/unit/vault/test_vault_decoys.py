"""Decoys: cut and kept as keys at both ends, given to nobody, out of every count, and known when they are asked for."""

import os
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from approving import policy
from vaults import LINK, Pair, waiting

from qkdnode.errors import AccessDeniedError, OutOfStockError, PolicyDeniedError, VaultError
from qkdnode.ids import KeyId
from qkdnode.lifecycle.states import Stage
from qkdnode.vault import core, marks
from qkdnode.vault.decoys import RENEWED_AFTER_S, DecoyCount, Decoys, EndDecoys, Suspects, WhichDecoys
from qkdnode.vault.fetches import FetchKeys
from qkdnode.vault.inventory import ListKeys, ShowKey
from qkdnode.vault.records import Bundle
from qkdnode.vault.rehearsal import LoadPage, ReadLoad, Shape, ShowShape
from qkdnode.vault.requests import (
    AcceptAllocation,
    ApplicationOutbox,
    Entitle,
    Entitlement,
    EventsAfter,
    KeepDecoys,
    KeysDelivered,
    NeighbourOutbox,
    OpenKey,
    OpenKeys,
    Outstanding,
    PeerDelivered,
    Status,
)
from qkdnode.vault.revocations import FollowRevoked, RevokeKeys
from qkdnode.vault.scopes import Compromise, MoveRows
from qkdnode.wire.messages import KeysRevoked

EIGHT = policy("decoys = 8")


@pytest.fixture
def decoyed(pair: Pair) -> Pair:
    """Both ends have a policy with eight decoys for each association, and stock."""
    pair.stock()
    for end in pair.ends:
        end.apply(EIGHT)
    return pair


def entitled(pair: Pair) -> Entitlement:
    its: Entitlement = pair.alice.call(Entitle(association=pair.alice.association, size_bits=256))
    return its


def keep(pair: Pair) -> tuple[KeyId, ...]:
    """What Alice's end does when it is told that decoys are due, and the exchange that follows."""
    its = entitled(pair)
    made: tuple[KeyId, ...] = pair.alice.call(
        KeepDecoys(
            association=pair.alice.association, count=its.decoys, size_bits=256, entropy=os.urandom(16 * its.decoys)
        )
    )
    pair.exchange()
    for entry in pair.alice.call(NeighbourOutbox(link=LINK)):
        if isinstance(entry.message, KeysRevoked):
            pair.bob.call(FollowRevoked(link=LINK, message=entry.message))
    return made


def of(pair: Pair, side: int, decoys: tuple[KeyId, ...]) -> list[str]:
    return [pair.ends[side].call(ShowKey(key_id=key_id)).state for key_id in decoys]


def suspects(end: Any, *key_ids: KeyId) -> int:
    found: Suspects = end.call(WhichDecoys(key_ids=key_ids))
    return len(found.names)


def test_as_many_as_the_policy_says_are_cut_at_both_ends_by_the_end_of_alice(decoyed: Pair) -> None:
    assert entitled(decoyed).decoys == 8
    assert decoyed.bob.call(Entitle(association=decoyed.bob.association, size_bits=256)).decoys == 0
    made = keep(decoyed)
    assert len(made) == 8
    assert of(decoyed, 0, made) == of(decoyed, 1, made) == ["ready"] * 8
    assert entitled(decoyed).decoys == 0
    for end in decoyed.ends:
        assert suspects(end, *made) == 8
        (count,) = end.call(Decoys())
        assert (count.association, count.key_class, count.size_bits, count.keys) == (end.association, "bulk", 256, 8)


def test_no_decoys_are_made_unless_the_policy_asks_for_them(pair: Pair) -> None:
    pair.stock()
    assert entitled(pair).decoys == 0
    with pytest.raises(PolicyDeniedError):
        pair.alice.call(KeepDecoys(association=pair.alice.association, count=1, size_bits=256, entropy=os.urandom(16)))


def test_a_decoy_is_in_no_outbox_and_opens_for_nobody(decoyed: Pair) -> None:
    made = keep(decoyed)
    keys = decoyed.ready(count=3)
    for end in decoyed.ends:
        assert [row.key_id for row in end.call(ApplicationOutbox(application=end.association.local))] == list(keys)
        opened = end.call(OpenKeys(key_ids=(*made, *keys), application=end.association.local))
        opened.material.release()
        assert set(opened.key_ids) == set(keys)
        with pytest.raises(VaultError):
            end.call(OpenKeys(key_ids=made, application=end.association.local))
        with pytest.raises(VaultError):
            end.call(OpenKey(key_id=made[0], application=end.association.local))
        with pytest.raises(VaultError):
            end.call(KeysDelivered(application=end.association.local, key_ids=made[:1], details={}))
        with pytest.raises(AccessDeniedError):
            end.call(OpenKeys(key_ids=made, application="stranger"))


def test_decoys_count_for_no_quota_and_wait_for_nobody(decoyed: Pair) -> None:
    before = entitled(decoyed)
    keep(decoyed)
    for end in decoyed.ends:
        assert end.call(Outstanding(association=end.association)) == 0
        assert end.call(Status()).application_outbox == 0
    assert entitled(decoyed).outstanding == before.outstanding == 0
    decoyed.ready(count=5)
    assert entitled(decoyed).outstanding == 5
    assert decoyed.alice.call(Outstanding(association=decoyed.alice.association)) == 5
    assert decoyed.bob.call(Status()).application_outbox == 5


def test_a_rehearsal_is_told_of_no_decoy(decoyed: Pair) -> None:
    keep(decoyed)
    decoyed.ready(decoyed.alice, 2)
    for end in decoyed.ends:
        shape: Shape = end.call(ShowShape(association=end.association))
        assert shape.waiting_here + shape.waiting_there == 2
        load: LoadPage = end.call(ReadLoad(since_ns=0))
        assert sum(its.keys for its in load.counts if its.kind.startswith("cut")) == 2


def test_decoys_leave_a_quota_as_it_was(pair: Pair) -> None:
    pair.stock()
    table = '[[application]]\nname = "payroll"\nclearance = "open"\noutstanding_keys = 4\n'
    for end in pair.ends:
        end.apply(policy("decoys = 8", application=table))
    keep(pair)
    assert entitled(pair).room == 4
    pair.ready(count=4)
    assert entitled(pair).room == 0


def test_the_counts_are_the_same_in_the_next_run(decoyed: Pair) -> None:
    made = keep(decoyed)
    decoyed.ready(count=2)
    for end in decoyed.ends:
        end.reopen()
        assert end.call(Status()).application_outbox == 2
        assert suspects(end, *made) == 8
    assert entitled(decoyed).outstanding == 2
    assert entitled(decoyed).decoys == 0


def test_a_request_that_is_undone_leaves_no_decoy_behind(decoyed: Pair) -> None:
    entitled(decoyed)
    with pytest.raises(OutOfStockError):
        decoyed.alice.call(
            KeepDecoys(association=decoyed.alice.association, count=8, size_bits=65536, entropy=os.urandom(128))
        )
    keys = decoyed.ready(count=3)
    assert suspects(decoyed.alice, *keys) == 0
    assert entitled(decoyed).outstanding == 3


ASKING = {
    "unknown": lambda pair, made: uuid4(),
    "a decoy": lambda pair, made: made[0],
    "a revoked key": lambda pair, made: revoked_key(pair),
}


def revoked_key(pair: Pair) -> KeyId:
    (key_id,) = pair.ready(count=1)
    pair.alice.call(RevokeKeys(key_ids=(key_id,), reason="superseded", by="olga"))
    return key_id


@pytest.mark.parametrize("what", list(ASKING))
def test_who_fetches_a_decoy_is_answered_as_for_any_other_and_the_node_knows(decoyed: Pair, what: str) -> None:
    make: Callable[[Pair, Any], KeyId] = ASKING[what]
    made = keep(decoyed)
    decoyed.ready(count=2)
    key_id = make(decoyed, made)
    request = FetchKeys(key_ids=(key_id,), association=decoyed.alice.association, size_bits=256)
    decoyed.alice.call(FetchKeys(key_ids=(uuid4(), key_id), association=decoyed.alice.association, size_bits=256))
    asked: list[str] = []
    connection = decoyed.alice.vault._core._connection

    def trace(cursor: Any, statement: str, bindings: Any) -> bool:
        asked.append(statement)
        return True

    connection.exec_trace = trace
    try:
        decoyed.alice.call(FetchKeys(key_ids=(uuid4(),), association=decoyed.alice.association, size_bits=256))
        of_an_unknown, asked[:] = list(asked), []
        answer = decoyed.alice.call(request)
    finally:
        connection.exec_trace = None
    assert (answer.opened, answer.deliveries, answer.refused) == (None, (), (key_id,))
    assert asked == of_an_unknown
    assert len(answer.decoys) == (what == "a decoy")


def test_nothing_in_the_row_or_in_the_log_but_the_mark_tells_a_decoy_from_a_key(decoyed: Pair) -> None:
    made = keep(decoyed)
    keys = decoyed.ready(count=8)
    for end in decoyed.ends:
        store = end.vault._core._store
        rows = {bundle.key_id(0): bundle for bundle in store.find(Bundle, "true")}
        decoy, key = (rows[ids[0].bytes] for ids in (made, keys))
        same = [name for name in Bundle.__struct_fields__ if getattr(decoy, name) == getattr(key, name)]
        its_own = {
            "number", "key_ids", "offset_bits", "allocated_ns", "ready_ns", "delivery", "waits_ns", "leaf", "mark",
        }  # fmt: skip
        assert set(Bundle.__struct_fields__) - set(same) <= its_own
        assert len(decoy.mark) == len(key.mark) == marks.MARK_BYTES
        told = {}
        for _, event in end.call(EventsAfter(position=0, limit=4096)):
            for bundle in (decoy, key):
                if event.subject == bundle.subject(store.sealing.pseudonym):
                    details = {name: value for name, value in event.details.items() if name != "offset"}
                    told.setdefault(bundle.number, []).append((event.kind, event.topic, event.outcome, details))
        assert told[decoy.number] == told[key.number]


def test_no_two_bundles_have_the_same_mark(decoyed: Pair) -> None:
    keep(decoyed)
    for _ in range(5):
        decoyed.ready(count=1)
    decoyed.alice.call(EndDecoys(by="sven"))
    keep(decoyed)
    rows = decoyed.alice.vault._core._store.find(Bundle, "true")
    assert len({bundle.mark for bundle in rows}) == len(rows) == 7


def test_on_the_way_only_the_bits_tell(decoyed: Pair) -> None:
    its = entitled(decoyed)
    decoyed.alice.call(
        KeepDecoys(association=decoyed.alice.association, count=8, size_bits=256, entropy=os.urandom(16 * its.decoys))
    )
    decoyed.allocate(decoyed.alice, 8)
    decoy, key = waiting(decoyed.alice)
    assert decoy.mark != key.mark
    assert len({type(decoy).__struct_fields__, type(key).__struct_fields__}) == 1
    # The mark of a decoy on other bits, or of a key, makes keys.
    swapped = [
        type(decoy)(*(getattr(one, name) for name in one.__struct_fields__[:-1]), other.mark)
        for one, other in ((decoy, key), (key, decoy))
    ]
    for message in swapped:
        decoyed.bob.call(AcceptAllocation(link=LINK, allocate=message))
    assert decoyed.bob.call(Decoys()) == ()


def test_old_ones_are_ended_at_both_ends_and_new_ones_take_their_place(decoyed: Pair) -> None:
    made = keep(decoyed)
    for end in decoyed.ends:
        end.counter.ahead_ns += (RENEWED_AFTER_S + 1) * 10**9
    its = entitled(decoyed)
    assert (its.decoys, its.old_decoys) == (8, True)
    fresh = keep(decoyed)
    assert of(decoyed, 0, made) == of(decoyed, 1, made) == ["destroyed"] * 8
    assert of(decoyed, 0, fresh) == of(decoyed, 1, fresh) == ["ready"] * 8
    assert (entitled(decoyed).decoys, entitled(decoyed).old_decoys) == (0, False)
    assert suspects(decoyed.alice, *made, *fresh) == 16  # who asks for one that is gone has stolen its id too


def test_a_policy_without_decoys_ends_them(decoyed: Pair) -> None:
    made = keep(decoyed)
    for end in decoyed.ends:
        end.apply(policy())
    its = entitled(decoyed)
    assert (its.decoys, its.old_decoys) == (0, True)
    assert keep(decoyed) == ()
    assert of(decoyed, 0, made) == of(decoyed, 1, made) == ["destroyed"] * 8
    assert entitled(decoyed).old_decoys is False


def test_who_answers_for_the_keys_renews_them(decoyed: Pair) -> None:
    made = keep(decoyed)
    assert decoyed.alice.call(EndDecoys(by="sven")) == 8
    assert decoyed.alice.call(Decoys()) == ()
    assert entitled(decoyed).decoys == 8
    fresh = keep(decoyed)
    counts: tuple[DecoyCount, ...] = decoyed.bob.call(Decoys())
    assert [count.keys for count in counts] == [8]
    assert of(decoyed, 1, made) == ["destroyed"] * 8
    assert of(decoyed, 1, fresh) == ["ready"] * 8


def test_decoys_are_listed_revoked_and_compromised_as_keys(decoyed: Pair) -> None:
    made = keep(decoyed)
    listed = {key.key_id for key in decoyed.alice.call(ListKeys()).keys}
    assert listed == set(made)
    done = decoyed.alice.call(RevokeKeys(key_ids=made[:1], reason="superseded", by="olga"))
    assert done.revoked == made[:1]
    decoyed.alice.call(Compromise(kind="link", value=LINK, reason="key-compromise", by="olga"))
    while decoyed.alice.call(MoveRows()):
        pass
    assert of(decoyed, 0, made) == [Stage.DESTROYED_COMPROMISED, *[Stage.COMPROMISED] * 7]
    assert decoyed.alice.call(Decoys()) == ()


def test_a_neighbour_whose_application_has_a_decoy_is_not_believed_and_told_of_in_confidence(decoyed: Pair) -> None:
    made = keep(decoyed)
    asked = PeerDelivered(link=LINK, application=decoyed.alice.association.remote, key_ids=made[:1])
    assert decoyed.alice.call(asked) == 0
    (event,) = [
        event for _, event in decoyed.alice.call(EventsAfter(position=0, limit=4096)) if event.kind == "decoy.delivered"
    ]
    assert (event.topic, event.outcome, len(event.keys)) == ("decoys", "ignored", 1)
    assert of(decoyed, 0, made[:1]) == ["ready"]


def test_every_request_that_gives_bits_away_asks_for_the_mark(decoyed: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: without the mark each of the ways to a key would give a decoy."""
    made = keep(decoyed)
    monkeypatch.setattr(marks, "marks_decoy", lambda store, number, mark: False)
    end = decoyed.alice
    assert len(end.call(ApplicationOutbox(application="payroll"))) == 8
    fetched = end.call(FetchKeys(key_ids=made, association=end.association, size_bits=256))
    fetched.opened.material.release()
    assert fetched.refused == ()
    assert FetchKeys in core.HANDLERS
