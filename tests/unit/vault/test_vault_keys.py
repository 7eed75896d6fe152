"""Keys: allocated by one end, accepted by the other, opened and delivered by both."""

import os
from typing import Any
from uuid import UUID

import msgspec
import pytest
from signing import PUBLIC
from vaults import FIRST, HERE, LINK, End, Pair, contents, material_of, waiting

from qkdnode.audit.events import KeyEvent
from qkdnode.audit.verifier import verify
from qkdnode.errors import AccessDeniedError, LocalProtocolError, OutOfStockError, VaultError
from qkdnode.ids import Association, BatchId, KeyId
from qkdnode.vault.export_reader import export_audit
from qkdnode.vault.requests import (
    AcceptAllocation,
    AllocateKeys,
    AllocationAnswered,
    ApplicationOutbox,
    Associate,
    Checkpoint,
    Delivery,
    KeysDelivered,
    NeighbourOutbox,
    OpenKey,
    OpenKeys,
    OutboxCleared,
    Outstanding,
    PeerDelivered,
    Status,
)
from qkdnode.wire.messages import ACCEPTED, NOT_SETTLED, REFUSED, Allocate, Delivered


def delivered(end: End, ids: tuple[KeyId, ...]) -> int:
    count: int = end.call(KeysDelivered(application=end.association.local, key_ids=ids, details={"session": 7}))
    return count


def stock_of(end: End) -> tuple[int, int]:
    status = end.call(Status())
    return status.stock_bits_own[LINK], status.stock_bits_peer[LINK]


def accept(end: End, allocate: Allocate) -> str:
    outcome: str = end.call(AcceptAllocation(link=LINK, allocate=allocate))
    return outcome


def test_both_ends_open_the_same_keys_and_no_two_are_equal(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready(pair.alice, 20) + pair.ready(pair.bob, 20)
    at_alice, at_bob = ([contents(end, i) for i in ids] for end in pair.ends)
    assert at_alice == at_bob
    assert len(set(at_alice)) == 40
    assert {i.version for i in ids} == {4}


@pytest.mark.parametrize("size_bits", [8, 256, 24_000, 65_536])
def test_a_key_may_span_chunks_and_is_the_stock_in_order(pair: Pair, size_bits: int) -> None:
    pair.stock(bits_out=300_000)
    ids = pair.ready(pair.alice, 2, size_bits)
    material = b"".join(contents(pair.bob, i) for i in ids)
    assert material == material_of(FIRST, 300_000)[512 : 512 + size_bits // 4]


def test_keys_are_cut_across_batches_with_one_allocate_each(pair: Pair) -> None:
    pair.stock(FIRST, bits_out=4096 + 2 * 1000)
    pair.stock(BatchId(1, 2), bits_out=4096 + 2 * 2000)
    pair.allocate(pair.alice, 3, 504)
    assert [(a.batch.number, a.offset_bits, len(a.key_ids) // 16) for a in waiting(pair.alice)] == [
        (1, 0, 1),
        (2, 0, 2),
    ]
    pair.exchange()
    assert waiting(pair.alice) == []


def test_a_key_waits_for_the_peers_answer_before_it_is_supplied(pair: Pair) -> None:
    pair.stock()
    ids = pair.allocate(pair.alice)
    outbox = ApplicationOutbox(application="payroll")
    assert pair.alice.call(outbox) == ()
    with pytest.raises(VaultError, match="allocated"):
        contents(pair.alice, ids[0])
    (allocate,) = waiting(pair.alice)
    answer = AllocationAnswered(link=LINK, request=allocate.request, outcome=NOT_SETTLED)
    assert pair.alice.call(answer) == ()
    assert waiting(pair.alice) == [allocate]
    answer = AllocationAnswered(link=LINK, request=allocate.request, outcome=ACCEPTED)
    assert pair.alice.call(answer) == ids
    assert pair.alice.call(answer) == ()
    rows = pair.alice.call(outbox)
    assert tuple(row.key_id for row in rows) == ids
    assert rows[0].association == HERE
    assert rows[0].size_bits == 256
    assert pair.alice.call(ApplicationOutbox(application="payroll", after=rows[1].number)) == rows[2:]
    assert pair.alice.call(ApplicationOutbox(application="ledger")) == ()


def test_a_refused_key_is_burnt_at_both_ends(pair: Pair) -> None:
    pair.stock()
    with pair.bob.tampering() as file:  # Bob's association is lost with a reinstalled application
        file.execute("DELETE FROM associations")
    ids = pair.allocate(pair.alice)
    before = stock_of(pair.bob)
    pair.exchange()
    assert stock_of(pair.bob) == (before[0], before[1] - 3 * 256)
    assert stock_of(pair.alice) == stock_of(pair.bob)[::-1]
    assert pair.alice.call(Status()).keys == {"burnt": 3}
    with pytest.raises(VaultError, match="burnt"):
        contents(pair.alice, ids[0])
    assert pair.alice.call(Outstanding(association=HERE)) == 0


def test_a_repeated_request_is_answered_alike_and_cuts_once(pair: Pair) -> None:
    pair.stock()
    pair.allocate(pair.alice)
    (allocate,) = waiting(pair.alice)
    assert [accept(pair.bob, allocate) for _ in range(3)] == [ACCEPTED] * 3
    assert pair.bob.call(Status()).keys == {"ready": 3}
    assert stock_of(pair.bob) == stock_of(pair.alice)[::-1]


def test_a_request_number_with_other_content_is_refused_and_alarmed(pair: Pair) -> None:
    pair.stock()
    pair.allocate(pair.alice)
    (allocate,) = waiting(pair.alice)
    accept(pair.bob, allocate)
    other = msgspec.structs.replace(allocate, offset_bits=4096, key_ids=os.urandom(16))
    assert accept(pair.bob, other) == REFUSED
    assert pair.bob.vault.events_after(0, 1000)[-1][1].kind == "allocation.conflict"
    assert pair.bob.call(Status()).keys == {"ready": 3}


@pytest.mark.parametrize(
    "change",
    [
        {"batch": BatchId(9, 9)},
        {"offset_bits": 33_000},
        {"offset_bits": 4},
        {"size_bits": 12},
        {"size_bits": 65_544},
        {"local": "nobody"},
        {"remote": "nobody"},
        {"key_ids": b"x" * 32},
        {"key_ids": b"x" * 17},
        {"key_ids": b"".join(bytes([i]) * 16 for i in range(129)), "size_bits": 8},
    ],
    ids=str,
)
def test_an_impossible_allocation_is_refused_and_journalled(pair: Pair, change: dict[str, object]) -> None:
    pair.stock()
    pair.allocate(pair.alice, 1)
    (allocate,) = waiting(pair.alice)
    assert accept(pair.bob, msgspec.structs.replace(allocate, **change)) == REFUSED
    event = pair.bob.vault.events_after(0, 1000)[-1][1]
    assert (event.kind, event.outcome) == ("allocation.refused", "refused")
    assert pair.bob.call(Status()).keys == {}


def test_bits_once_cut_are_refused_and_the_rest_of_the_request_is_burnt(pair: Pair) -> None:
    pair.stock()
    pair.allocate(pair.alice, 2)
    (allocate,) = waiting(pair.alice)
    accept(pair.bob, allocate)
    overlapping = msgspec.structs.replace(allocate, request=10**6, offset_bits=256, key_ids=os.urandom(32))
    before = stock_of(pair.bob)[1]
    assert accept(pair.bob, overlapping) == REFUSED
    assert stock_of(pair.bob)[1] == before - 256


def test_requests_out_of_order_are_both_accepted(pair: Pair) -> None:
    pair.stock()
    ids = pair.allocate(pair.alice) + pair.allocate(pair.alice)
    for allocate in waiting(pair.alice)[::-1]:
        assert accept(pair.bob, allocate) == ACCEPTED
    pair.exchange()
    assert [contents(pair.alice, i) for i in ids] == [contents(pair.bob, i) for i in ids]


def test_a_taken_key_id_is_refused_by_either_end(pair: Pair) -> None:
    pair.stock()
    entropy = bytes(range(16))
    request = AllocateKeys(association=HERE, count=1, size_bits=256, entropy=entropy)
    pair.alice.call(request)
    with pytest.raises(LocalProtocolError, match="taken"):
        pair.alice.call(request)
    (allocate,) = waiting(pair.alice)
    accept(pair.bob, allocate)
    again = msgspec.structs.replace(allocate, request=10**6, offset_bits=256)
    assert accept(pair.bob, again) == REFUSED


def test_more_than_the_stock_is_not_allocated_and_nothing_changes(pair: Pair) -> None:
    pair.stock()
    before = stock_of(pair.alice)
    with pytest.raises(OutOfStockError, match="metro"):
        pair.allocate(pair.alice, before[0] // 256 + 1)
    assert stock_of(pair.alice) == before
    pair.allocate(pair.alice, before[0] // 256)
    with pytest.raises(OutOfStockError):
        pair.allocate(pair.alice, 1)


@pytest.mark.parametrize(
    ("count", "size", "entropy"), [(0, 256, 0), (1, 7, 16), (1, 0, 16), (1, 65_544, 16), (2, 256, 16)]
)
def test_nonsense_is_not_allocated(pair: Pair, count: int, size: int, entropy: int) -> None:
    pair.stock()
    with pytest.raises(LocalProtocolError):
        pair.alice.call(AllocateKeys(association=HERE, count=count, size_bits=size, entropy=bytes(entropy)))


def test_an_unknown_association_gets_no_keys(pair: Pair) -> None:
    pair.stock()
    with pytest.raises(VaultError, match="unknown"):
        pair.alice.call(
            AllocateKeys(association=Association("x", "y", LINK), count=1, size_bits=256, entropy=bytes(16))
        )


def test_an_association_is_made_once_and_never_changed(pair: Pair) -> None:
    pair.alice.associate()
    with pytest.raises(LocalProtocolError, match="other nodes"):
        pair.alice.call(Associate(association=HERE, nodes=("a", "c"), link=LINK, purpose="test", key_class="qkd"))
    with pytest.raises(LocalProtocolError, match="1 to 31"):
        pair.alice.associate(Association("x" * 32, "y", LINK))


def test_a_key_is_opened_for_its_application_only_and_a_denial_is_journalled(pair: Pair) -> None:
    pair.stock()
    pair.alice.associate(Association("mail", "mail", LINK))
    (key,) = pair.ready(count=1)
    with pytest.raises(AccessDeniedError, match="mail"):
        contents(pair.alice, key, "mail")
    with pytest.raises(AccessDeniedError):
        pair.alice.call(KeysDelivered(application="mail", key_ids=(key,), details={}))
    denials = [e for _, e in pair.alice.vault.events_after(0, 1000) if e.kind == "key.denied"]
    assert [e.outcome for e in denials] == ["refused"] * 2
    assert contents(pair.alice, key)


def test_a_delivered_key_is_gone_and_stays_in_the_books(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    assert delivered(pair.alice, ids[:2]) == 2
    assert delivered(pair.alice, ids) == 1
    with pytest.raises(VaultError, match="delivered"):
        contents(pair.alice, ids[0])
    with pair.alice.tampering() as file:
        assert file.execute("SELECT * FROM keys").fetchall() == []
    assert pair.alice.call(ApplicationOutbox(application="payroll")) == ()
    assert pair.alice.call(Status()).keys == {"delivered": 3}


def leaves_of(end: End, kind: str) -> list[KeyEvent]:
    return [e for _, e in end.vault.events_after(0, 4000) if e.kind == kind and isinstance(e, KeyEvent)]


def test_keys_of_one_request_take_one_leaf_for_each_step_and_the_leaf_names_them(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready(count=128)
    for end in pair.ends:
        delivered(end, ids)
    (allocated,), (ready,), (gone,) = (
        leaves_of(pair.alice, f"key.{step}") for step in ("allocated", "ready", "delivered")
    )
    assert allocated.keys == ready.keys == gone.keys
    assert len(set(allocated.keys or ())) == 128
    assert {allocated.subject, ready.subject, gone.subject} == {f"bundle/{LINK}/{waiting_number(allocated, pair)}"}
    told = {"by": "application", "reason": "acknowledged", "session": 7, "method": "crypto-erase"}
    assert gone.details == told
    pair.alice.call(Checkpoint())
    lines: list[str] = []
    export_audit(pair.alice.path, lines.append)
    assert verify(lines, PUBLIC).valid


def waiting_number(allocated: KeyEvent, pair: Pair) -> int:
    return next(at for at, event in pair.alice.vault.events_after(0, 4000) if event == allocated)


def test_the_keys_of_a_bundle_go_each_their_own_way(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready(count=10)
    assert delivered(pair.alice, (ids[7], ids[2], ids[7], ids[3])) == 3
    assert [event.keys and len(event.keys) for event in leaves_of(pair.alice, "key.delivered")] == [3]
    left = [row.key_id for row in pair.alice.call(ApplicationOutbox(application="payroll"))]
    assert left == [key for i, key in enumerate(ids) if i not in (2, 3, 7)]
    for key in left:
        assert contents(pair.alice, key) == contents(pair.bob, key)
    with pytest.raises(VaultError, match="delivered"):
        contents(pair.alice, ids[3])
    told = PeerDelivered(link=LINK, application="ledger", key_ids=(ids[2], ids[4]))
    assert pair.alice.call(told) == 2
    assert pair.alice.call(Outstanding(association=HERE)) == 9
    assert delivered(pair.alice, ids) == 7
    assert pair.alice.call(Outstanding(association=HERE)) == 8
    assert pair.alice.call(Status()).keys_delivered_both == 2
    assert pair.alice.call(ApplicationOutbox(application="payroll")) == ()


def test_the_outbox_is_read_by_association_and_size_in_pages(pair: Pair) -> None:
    pair.stock(bits_out=300_000)
    other = Association("payroll", "mail", LINK)
    for end, association in zip(pair.ends, (other, other.mirrored()), strict=True):
        end.associate(association)
    small = pair.ready(count=130, size_bits=128)
    pair.alice.call(AllocateKeys(association=other, count=2, size_bits=128, entropy=os.urandom(32)))
    pair.exchange()
    large = pair.ready(count=3)
    delivered(pair.alice, small[1:127])

    def read(limit: int, **which: Any) -> list[KeyId]:
        found: list[Delivery] = []
        after = 0
        while rows := pair.alice.call(ApplicationOutbox(application="payroll", after=after, limit=limit, **which)):
            found += rows
            after = rows[-1].number
        return [row.key_id for row in found]

    kept = [small[0], *small[127:]]
    for limit in (1, 2, 256):
        assert read(limit, association=HERE, size_bits=128) == kept
        assert read(limit, association=HERE, size_bits=256) == list(large)
        assert len(read(limit, association=other, size_bits=128)) == 2
        assert len(read(limit)) == 9
    assert read(5, association=HERE.mirrored()) == []


def test_many_keys_are_opened_at_once_side_by_side(pair: Pair) -> None:
    pair.stock()
    first, second = pair.ready(count=3), pair.ready(count=4)
    wanted = (first[2], second[0], first[0])
    for end in pair.ends:
        opened = end.call(OpenKeys(key_ids=wanted, application=end.association.local))
        assert set(opened.key_ids) == set(wanted)
        assert opened.size_bits == 256
        with opened.material, memoryview(opened.material) as view:
            pieces = [view[i : i + 32].tobytes() for i in range(0, 96, 32)]
        assert pieces == [contents(end, key) for key in opened.key_ids]
    delivered(pair.alice, first)
    opened = pair.alice.call(OpenKeys(key_ids=(*first, second[1], UUID(int=9)), application="payroll"))
    opened.material.release()
    assert opened.key_ids == (second[1],)


def test_what_cannot_be_opened_at_once_is_refused_with_its_reason(pair: Pair) -> None:
    pair.stock()
    pair.alice.associate(Association("mail", "mail", LINK))
    ids, large = pair.ready(), pair.ready(count=1, size_bits=512)

    def opened(*key_ids: KeyId, application: str = "payroll") -> None:
        pair.alice.call(OpenKeys(key_ids=key_ids, application=application))

    with pytest.raises(LocalProtocolError, match="different sizes"):
        opened(*ids, *large)
    for count in (0, 129):
        with pytest.raises(LocalProtocolError, match="1 to 128"):
            opened(*[UUID(int=i) for i in range(count)])
    with pytest.raises(VaultError, match="none is ready"):
        opened(UUID(int=1))
    before = len(pair.alice.vault.events_after(0, 4000))
    with pytest.raises(AccessDeniedError, match="mail"):
        opened(*ids, application="mail")
    (denial,) = [event for _, event in pair.alice.vault.events_after(before, 1000)]
    assert (denial.kind, denial.outcome) == ("key.denied", "refused")


def test_only_a_ready_key_is_delivered(pair: Pair) -> None:
    pair.stock()
    ids = pair.allocate(pair.alice)
    with pytest.raises(LocalProtocolError, match="allocated"):
        delivered(pair.alice, ids)
    unknown = UUID(int=5, version=4)
    for request in (
        OpenKey(key_id=unknown, application="payroll"),
        KeysDelivered(application="payroll", key_ids=(unknown,), details={}),
    ):
        with pytest.raises(VaultError, match="no usable key"):
            pair.alice.call(request)


def test_keys_are_outstanding_until_both_applications_have_them(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    outstanding = Outstanding(association=HERE)
    assert pair.alice.call(outstanding) == 3
    assert pair.bob.call(Outstanding(association=HERE.mirrored())) == 0
    delivered(pair.alice, ids)
    assert pair.alice.call(outstanding) == 3
    delivered(pair.bob, ids)
    (entry,) = pair.bob.call(NeighbourOutbox(link=LINK))
    assert isinstance(entry.message, Delivered)
    assert entry.number == entry.message.notice
    told = tuple(UUID(bytes=entry.message.key_ids[i : i + 16]) for i in range(0, 48, 16))
    assert told == ids
    notice = PeerDelivered(link=LINK, application=entry.message.application, key_ids=(*told, UUID(int=1)))
    assert pair.alice.call(notice) == 3
    assert pair.alice.call(notice) == 0
    assert pair.alice.call(outstanding) == 0
    assert pair.alice.call(Status()).keys_delivered_both == 3
    assert pair.bob.call(Status()).keys_delivered_both == 0
    pair.bob.call(OutboxCleared(link=LINK, numbers=(entry.number,)))
    assert pair.bob.call(NeighbourOutbox(link=LINK)) == ()


def test_a_notice_of_the_wrong_application_is_ignored_and_alarmed(pair: Pair) -> None:
    pair.stock()
    ids = pair.ready()
    assert pair.alice.call(PeerDelivered(link=LINK, application="mail", key_ids=ids)) == 0
    assert pair.alice.vault.events_after(0, 1000)[-1][1].kind == "delivery.misdirected"


def test_a_receipt_does_not_clear_a_request_to_allocate(pair: Pair) -> None:
    pair.stock()
    pair.allocate(pair.alice)
    (allocate,) = waiting(pair.alice)
    pair.alice.call(OutboxCleared(link=LINK, numbers=(allocate.request,)))
    assert waiting(pair.alice) == [allocate]


def test_more_keys_than_one_message_carries_go_in_several(pair: Pair) -> None:
    pair.stock(bits_out=8192 * 3 + 4096)
    ids = pair.ready(pair.alice, 1100, 8)
    assert delivered(pair.bob, ids) == 1100
    assert pair.bob.call(Status()).keys == {"delivered": 1100}
    numbers = [entry.number for entry in pair.bob.call(NeighbourOutbox(link=LINK))]
    assert len(set(numbers)) == 2
    assert sorted(numbers) == numbers


def test_an_unknown_answer_is_refused(pair: Pair) -> None:
    with pytest.raises(LocalProtocolError, match="maybe"):
        pair.alice.call(AllocationAnswered(link=LINK, request=1, outcome="maybe"))
