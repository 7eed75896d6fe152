"""Applications are told of keys that they have and that are out of use, until they have noted it; others never."""

from typing import Any

import pytest
from vaults import HERE, LINK, End, Pair

from qkdnode.ids import KeyId
from qkdnode.lifecycle.states import Stage, Step, after
from qkdnode.vault.bundles import Chosen, Why, move
from qkdnode.vault.endings import OUT_OF_USE, TOLD, Ended, EndedKeys, EndedNoted, HadBefore
from qkdnode.vault.records import Bundle
from qkdnode.vault.requests import EventsAfter, KeysDelivered, NeighbourOutbox, OpenKeys, PeerDelivered, Request
from qkdnode.vault.revocations import FollowRevoked, RevokeKeys
from qkdnode.vault.scopes import Compromise, MoveRows
from qkdnode.vault.store import Store
from qkdnode.wire.messages import Delivered, KeysRevoked


def told(end: End) -> list[tuple[set[bytes], str, str]]:
    rows: tuple[Ended, ...] = end.call(EndedKeys(association=end.association))
    return [(set(row.key_ids), row.stage, row.reason) for row in rows]


def deliver(end: End, *key_ids: KeyId) -> None:
    end.call(KeysDelivered(application=end.association.local, key_ids=key_ids, details={}))


def carry(pair: Pair) -> None:
    """What waits for the neighbour of deliveries and revocations reaches it."""
    for end, other in (pair.ends, pair.ends[::-1]):
        for entry in end.call(NeighbourOutbox(link=LINK)):
            match entry.message:
                case Delivered(application=application, key_ids=packed):
                    ids = tuple(KeyId(bytes=packed[i : i + 16]) for i in range(0, len(packed), 16))
                    other.call(PeerDelivered(link=LINK, application=application, key_ids=ids))
                case KeysRevoked():
                    other.call(FollowRevoked(link=LINK, message=entry.message))


def raw(*key_ids: KeyId) -> set[bytes]:
    return {key_id.bytes for key_id in key_ids}


def revoke(end: End, reason: str, *key_ids: KeyId) -> None:
    end.call(RevokeKeys(key_ids=key_ids, reason=reason, by="olga"))


def test_each_end_tells_its_own_application_of_the_keys_that_it_has(pair: Pair) -> None:
    pair.stock()
    both, here, nobody = pair.ready(count=3)
    deliver(pair.alice, both, here)
    deliver(pair.bob, both)
    carry(pair)
    revoke(pair.alice, "key-compromise", both, here, nobody)
    carry(pair)
    assert told(pair.alice) == [(raw(both, here), "compromised", "key-compromise")]
    assert told(pair.bob) == [(raw(both), "compromised", "key-compromise")]


@pytest.mark.parametrize(("far", "stage"), [(True, "deactivated"), (False, "destroyed")])
def test_the_notice_says_what_became_of_the_key(pair: Pair, far: bool, stage: str) -> None:
    pair.stock()
    (key_id,) = pair.ready(count=1)
    deliver(pair.alice, key_id)
    if far:
        deliver(pair.bob, key_id)
        carry(pair)
    revoke(pair.alice, "superseded", key_id)
    assert told(pair.alice) == [(raw(key_id), stage, "superseded")]


def test_a_notice_waits_over_restarts_until_its_application_has_noted_it(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready(count=2)
    deliver(pair.alice, *ids)
    revoke(pair.alice, "key-compromise", *ids)
    pair.alice.reopen()
    (row,) = pair.alice.call(EndedKeys(association=HERE))
    assert pair.alice.call(EndedNoted(application="ledger", numbers=(row.number,))) == 0
    assert len(told(pair.alice)) == 1
    assert pair.alice.call(EndedNoted(application="payroll", numbers=(row.number, row.number + 1))) == 1
    assert told(pair.alice) == []
    assert pair.alice.call(EndedNoted(application="payroll", numbers=(row.number,))) == 0
    (event,) = [
        event for _, event in pair.alice.call(EventsAfter(position=0, limit=4096)) if event.kind == "key.end_noted"
    ]
    assert len(event.keys) == 2


def test_a_key_that_is_compromised_after_its_end_is_told_of_again_but_only_if_it_was_had(pair: Pair) -> None:
    pair.stock()
    had, never = pair.ready(count=2)
    deliver(pair.alice, had)
    revoke(pair.alice, "superseded", had, never)
    assert told(pair.alice) == [(raw(had), "destroyed", "superseded")]
    revoke(pair.alice, "key-compromise", had, never)
    assert told(pair.alice)[1:] == [(raw(had), "destroyed-compromised", "key-compromise")]


def test_a_compromise_of_a_whole_link_is_told_of_in_pages_and_once(pair: Pair) -> None:
    pair.stock(bits_out=400_000)
    ids: list[KeyId] = []
    for _ in range(3):
        ids += pair.ready(count=100)
    waiting = pair.ready(count=20)
    deliver(pair.alice, *ids)
    pair.alice.call(Compromise(kind="link", value=LINK, reason="key-compromise", by="olga"))
    while pair.alice.call(MoveRows()):
        pass
    pages = told(pair.alice)
    assert [len(page) for page, _, _ in pages] == [100, 100, 100]
    assert set.union(*(page for page, _, _ in pages)) == raw(*ids)
    assert not raw(*waiting) & set.union(*(page for page, _, _ in pages))


def test_a_key_that_was_sent_and_revoked_before_its_acknowledgement_is_told_of_once(pair: Pair) -> None:
    pair.stock()
    sent, never = pair.ready(count=2)
    pair.alice.call(OpenKeys(key_ids=(sent,), application="payroll")).material.release()
    revoke(pair.alice, "key-compromise", sent, never)
    assert told(pair.alice) == []
    assert pair.alice.call(HadBefore(application="ledger", key_ids=(sent,))) == 0
    assert pair.alice.call(HadBefore(application="payroll", key_ids=(sent,))) == 1
    assert pair.alice.call(HadBefore(application="payroll", key_ids=(sent,))) == 0
    deliver(pair.alice, sent)
    assert told(pair.alice) == [(raw(sent), "compromised", "key-compromise")]


def test_a_late_acknowledgement_is_enough(pair: Pair) -> None:
    pair.stock()
    (sent,) = pair.ready(count=1)
    revoke(pair.alice, "superseded", sent)
    deliver(pair.alice, sent)
    assert told(pair.alice) == [(raw(sent), "destroyed", "superseded")]


def test_who_acknowledges_again_what_was_delivered_and_ended_is_not_told_again(pair: Pair) -> None:
    pair.stock()
    (key_id,) = pair.ready(count=1)
    deliver(pair.alice, key_id)
    revoke(pair.alice, "key-compromise", key_id)
    (row,) = pair.alice.call(EndedKeys(association=HERE))
    pair.alice.call(EndedNoted(application="payroll", numbers=(row.number,)))
    deliver(pair.alice, key_id)
    assert told(pair.alice) == []


class TakeStep(Request, frozen=True):
    """A step that no request of the vault takes yet, with every key of a Bundle."""

    step: Step


def take_step(store: Store, request: TakeStep) -> None:
    (bundle,) = store.find(Bundle, "true")
    places = list(range(bundle.count))
    move(store, Chosen(bundle, places), request.step, Why("policy", "lifetime"))


def test_any_step_that_ends_a_key_is_told_of_whoever_takes_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from qkdnode.vault import core

    monkeypatch.setitem(core.HANDLERS, TakeStep, take_step)
    pair.stock()
    ids = pair.ready(count=2)
    deliver(pair.alice, *ids)
    deliver(pair.bob, *ids)
    carry(pair)
    pair.alice.call(TakeStep(step=Step.DEACTIVATE))
    pair.alice.call(TakeStep(step=Step.DESTROY))
    assert told(pair.alice) == [(raw(*ids), "deactivated", "lifetime")]


def test_the_table_of_what_is_told_is_of_steps_that_can_be_taken() -> None:
    for step, stages in TOLD.items():
        for stage in stages:
            end: Any = after(stage, True, step)
            assert end in {*OUT_OF_USE, Stage.DEACTIVATED}
