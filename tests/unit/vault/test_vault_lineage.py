"""One query tells where a key comes from and what became of it; another gives all keys of a service."""

from uuid import uuid4

import pytest
from vaults import FIRST, LINK, NODES, End, Pair

from qkdnode.errors import VaultError
from qkdnode.ids import ALICE, Association
from qkdnode.vault.inventory import ListKeys
from qkdnode.vault.lineage import Lineage, ShowLineage
from qkdnode.vault.requests import Associate, KeysDelivered
from qkdnode.vault.revocations import RevokeKeys
from qkdnode.vault.scopes import Compromise

SERVICES = (("payroll.example", "spiffe://north/payroll"), ("spiffe://south/ledger",))


def lineage(end: End, key_id: object) -> Lineage:
    shown: Lineage = end.call(ShowLineage(key_id=key_id))  # type: ignore[arg-type]
    return shown


def test_the_lineage_of_a_key_goes_from_its_devices_to_its_end_and_names_no_other_key(pair: Pair) -> None:
    pair.stock()
    ours, other = pair.ready(count=2)
    for key in (ours, other):
        details = {"session": 7}
        pair.alice.call(KeysDelivered(application="payroll", key_ids=(key,), details=details))
    pair.alice.call(RevokeKeys(key_ids=(ours,), reason="key-compromise", by="olga"))
    shown = lineage(pair.alice, ours)
    assert shown.key.key_id == ours
    assert shown.batch.batch == FIRST
    assert (shown.batch.devices, shown.batch.method, shown.batch.qber_z) == (("TX-1",), "rusca2018/1", 0.02)
    assert shown.batch_state == "ready"
    assert [step.happened for step in shown.steps] == [
        "batch.pending", "batch.ready", "batch.announced", "key.allocated", "key.ready", "key.delivered",
        "key.compromised",
    ]  # fmt: skip
    assert [step.position for step in shown.steps] == sorted(step.position for step in shown.steps)
    assert shown.steps[-1].details["reason"] == "key-compromise"
    assert [step.happened for step in lineage(pair.alice, other).steps][-1] == "key.delivered"
    assert shown.scope is None


def test_a_compromise_shows_in_the_lineage_before_the_row_has_moved(pair: Pair) -> None:
    pair.stock()
    (key,) = pair.ready(count=1)
    (scope,) = pair.alice.call(Compromise(kind="link", value=LINK, reason="key-compromise", by="olga"))
    shown = lineage(pair.alice, key)
    assert shown.scope == scope.number
    assert shown.key.state == "ready"


def test_an_unknown_key_has_no_lineage(pair: Pair) -> None:
    with pytest.raises(VaultError, match="holds no key"):
        lineage(pair.alice, uuid4())


def test_all_keys_of_a_service_are_found_at_both_ends(pair: Pair) -> None:
    served = Association("mail", "post", LINK)
    for end in pair.ends:
        mine, services = (served, SERVICES) if end.role == ALICE else (served.mirrored(), SERVICES[::-1])
        nodes = (NODES[end.role], NODES["bob" if end.role == ALICE else ALICE])
        end.call(
            Associate(association=mine, nodes=nodes, link=LINK, purpose="test", key_class="qkd", services=services)
        )
    pair.stock()
    without = pair.ready(count=2)
    pair.alice.association, pair.bob.association = served, served.mirrored()
    ids = pair.ready(count=3)
    for end in pair.ends:
        for service in (*SERVICES[0], *SERVICES[1]):
            found = end.call(ListKeys(service=service)).keys
            assert {key.key_id for key in found} == set(ids)
        assert end.call(ListKeys(service="spiffe://nowhere")).keys == ()
        assert not set(without) & {key.key_id for key in end.call(ListKeys(service=SERVICES[0][0])).keys}
    assert lineage(pair.alice, ids[0]).services == SERVICES
    assert lineage(pair.bob, ids[0]).services == SERVICES[::-1]
