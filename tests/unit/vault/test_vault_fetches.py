"""Keys asked for by id: what is for the application is opened, all else is answered alike, for the same work."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from vaults import HERE, Pair

from qkdnode.ids import Association, KeyId
from qkdnode.vault.fetches import FetchedKeys, FetchKeys
from qkdnode.vault.requests import KeysDelivered, OpenKey
from qkdnode.vault.revocations import RevokeKeys
from qkdnode.vault.scopes import Compromise

OTHER = Association("payroll", "archive", HERE.source)


def fetch(pair: Pair, *key_ids: KeyId, **changes: Any) -> FetchedKeys:
    request = {"key_ids": key_ids, "association": HERE, "size_bits": 256, **changes}
    fetched: FetchedKeys = pair.alice.call(FetchKeys(**request))
    return fetched


def bits(fetched: FetchedKeys) -> bytes:
    assert fetched.opened is not None
    with fetched.opened.material as material, memoryview(material) as view:
        return view.tobytes()


def test_keys_that_are_ready_come_side_by_side_in_the_order_of_their_deliveries(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready(count=3)
    fetched = fetch(pair, ids[2], ids[0])
    assert [delivery.key_id for delivery in fetched.deliveries] == [ids[2], ids[0]]
    assert fetched.refused == fetched.names == ()
    each = []
    for key_id in (ids[2], ids[0]):
        with pair.alice.call(OpenKey(key_id=key_id, application="payroll")) as key, memoryview(key) as view:
            each.append(view.tobytes())
    assert bits(fetched) == b"".join(each)


def unknown(pair: Pair) -> KeyId:
    return uuid4()


def not_at_the_far_end_yet(pair: Pair) -> KeyId:
    return pair.allocate(pair.alice, 1)[0]


def of_another_association(pair: Pair) -> KeyId:
    for end, association in zip(pair.ends, (OTHER, OTHER.mirrored()), strict=True):
        end.associate(association)
    kept, pair.alice.association = pair.alice.association, OTHER
    ids = pair.ready(count=1)
    pair.alice.association = kept
    return ids[0]


def of_another_size(pair: Pair) -> KeyId:
    return pair.ready(count=1, size_bits=128)[0]


def delivered(pair: Pair) -> KeyId:
    (key_id,) = pair.ready(count=1)
    pair.alice.call(KeysDelivered(application="payroll", key_ids=(key_id,), details={}))
    return key_id


def revoked(pair: Pair) -> KeyId:
    (key_id,) = pair.ready(count=1)
    pair.alice.call(RevokeKeys(key_ids=(key_id,), reason="superseded", by="olga"))
    return key_id


def compromised(pair: Pair) -> KeyId:
    (key_id,) = pair.ready(count=1)
    pair.alice.call(Compromise(kind="link", value=HERE.source, reason="key-compromise", by="olga"))
    return key_id


REFUSED = (unknown, not_at_the_far_end_yet, of_another_association, of_another_size, delivered, revoked, compromised)


@pytest.mark.parametrize("case", REFUSED)
def test_whatever_is_not_for_the_application_is_refused_in_one_way(pair: Pair, case: Callable[[Pair], KeyId]) -> None:
    pair.stock()
    pair.ready(count=2)
    key_id = case(pair)
    leaves = pair.alice.call(FetchKeys(key_ids=(key_id,), association=HERE, size_bits=256))
    assert (leaves.opened, leaves.deliveries, leaves.refused) == (None, (), (key_id,))
    assert [len(name) for name in leaves.names] == [32]


@pytest.mark.parametrize("case", REFUSED)
def test_every_refusal_asks_the_file_the_same_questions(pair: Pair, case: Callable[[Pair], KeyId]) -> None:
    pair.stock()
    pair.ready(count=2)
    key_id = case(pair)
    fetch(pair, uuid4(), key_id)  # what is read once in a run is read
    asked: list[str] = []
    connection = pair.alice.vault._core._connection

    def trace(cursor: Any, statement: str, bindings: Any) -> bool:
        asked.append(statement)
        return True

    connection.exec_trace = trace
    try:
        fetch(pair, uuid4())
        of_an_unknown, asked[:] = list(asked), []
        fetch(pair, key_id)
    finally:
        connection.exec_trace = None
    assert asked == of_an_unknown
    assert len(asked) > 3


def test_nothing_is_journalled_by_a_refusal(pair: Pair) -> None:
    pair.stock()
    key_id = delivered(pair)
    before = pair.alice.vault._core._store.journal.size
    fetch(pair, key_id, uuid4())
    assert pair.alice.vault._core._store.journal.size == before


def test_a_link_that_may_not_release_refuses_what_is_ready(pair: Pair) -> None:
    pair.stock()
    (key_id,) = pair.ready(count=1)
    assert fetch(pair, key_id, release=False).refused == (key_id,)
    assert fetch(pair, key_id, peer_reachable=False).refused == (key_id,)
    bits(fetch(pair, key_id))


def test_one_request_gives_what_is_there_and_refuses_the_rest(pair: Pair) -> None:
    pair.stock()
    there, other = pair.ready(count=2)
    gone = uuid4()
    fetched = fetch(pair, gone, other, there)
    assert [delivery.key_id for delivery in fetched.deliveries] == [other, there]
    assert fetched.refused == (gone,)
    bits(fetched)


def test_an_empty_vault_refuses_too(pair: Pair) -> None:
    key_id = uuid4()
    assert fetch(pair, key_id).refused == (key_id,)
