"""Batches: journalled before they are claimed, settled once."""

import msgspec
import pytest
from vaults import FIRST, LINK, Pair, material_of, record_of

from qkdnode.errors import LocalProtocolError, OutOfStockError
from qkdnode.ids import BatchId
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.requests import (
    AcceptAllocation,
    FindAnswer,
    PeerReady,
    ReadyAnnounced,
    SettlePending,
    Status,
    StoreAbandoned,
    StorePending,
    StoreReady,
    UnannouncedReady,
)
from qkdnode.wire.messages import NOT_SETTLED, Allocate

BITS = 70_000


def pending(batch: BatchId = FIRST, commit: bytes = b"commit 1", **changes: object) -> StorePending:
    key = SecretBuffer.copy_of(material_of(batch, BITS))
    record = msgspec.structs.replace(record_of(batch, BITS, 4096), **changes)
    return StorePending(link=LINK, record=record, key=key, commit=commit)


def test_a_batch_is_stored_once_and_its_buffer_is_released(pair: Pair) -> None:
    for _ in range(2):
        request = pending()
        pair.alice.call(request)
        assert request.key.released
    assert pair.alice.call(Status()).batches == {"pending": 1}


def test_other_content_under_the_same_batch_is_refused(pair: Pair) -> None:
    pair.alice.call(pending())
    for request in (pending(commit=b"other"), pending(bits_in=5)):
        with pytest.raises(LocalProtocolError, match="other content"):
            pair.alice.call(request)
        assert not request.key.released
    other = SecretBuffer.copy_of(bytes(BITS // 8))
    with pytest.raises(LocalProtocolError, match="other content"):
        pair.alice.call(msgspec.structs.replace(pending(), key=other))


@pytest.mark.parametrize(
    "changes", [{"bits_out": BITS + 8}, {"bits_out": 0}, {"refill_bits": 128}, {"refill_bits": 10**6}]
)
def test_lengths_that_do_not_fit_are_refused(pair: Pair, changes: dict[str, int]) -> None:
    with pytest.raises(LocalProtocolError):
        pair.alice.call(pending(**changes))
    assert pair.alice.call(Status()).batches == {}


def test_each_role_journals_its_own(pair: Pair) -> None:
    with pytest.raises(LocalProtocolError, match="only alice"):
        pair.bob.call(pending())
    record, key = record_of(FIRST, BITS, 4096), SecretBuffer.copy_of(material_of(FIRST, BITS))
    for request in (
        StoreReady(link=LINK, record=record, key=key, answer=b""),
        StoreAbandoned(link=LINK, batch=FIRST, reason="x", answer=b""),
        FindAnswer(link=LINK, batch=FIRST),
    ):
        with pytest.raises(LocalProtocolError, match="only bob"):
            pair.alice.call(request)
    with pytest.raises(LocalProtocolError, match="only alice"):
        pair.bob.call(SettlePending(link=LINK, batch=FIRST, ready=True))


def test_the_exact_bytes_survive_a_restart(pair: Pair) -> None:
    pair.journal()
    for end in pair.ends:
        end.reopen()
    (unsettled,) = pair.alice.open_link().unsettled
    assert (unsettled.batch, unsettled.commit) == (FIRST, b"commit 1")
    assert pair.bob.call(FindAnswer(link=LINK, batch=FIRST)) == b"answer 1"
    assert pair.bob.call(FindAnswer(link=LINK, batch=BatchId(5, 5))) is None


def test_stock_is_used_only_by_an_end_that_knows_the_other_has_it(pair: Pair) -> None:
    pair.journal()
    for end in pair.ends:
        with pytest.raises(OutOfStockError):
            pair.allocate(end)
    pair.alice.call(SettlePending(link=LINK, batch=FIRST, ready=True))
    assert pair.allocate(pair.alice)
    with pytest.raises(OutOfStockError):
        pair.allocate(pair.bob)
    (segment,) = pair.bob.call(PeerReady(link=LINK, batches=(FIRST, BatchId(9, 9))))
    assert segment.usable
    assert pair.bob.call(PeerReady(link=LINK, batches=(FIRST,))) == ()
    assert pair.allocate(pair.bob)


def test_settling_is_idempotent_and_final(pair: Pair) -> None:
    pair.journal()
    settle = SettlePending(link=LINK, batch=FIRST, ready=True)
    for _ in range(2):
        settled = pair.alice.call(settle)
        assert settled.segment.segment == FIRST
        assert settled.segment.usable
    with pytest.raises(LocalProtocolError, match="is ready"):
        pair.alice.call(SettlePending(link=LINK, batch=FIRST, ready=False))
    with pytest.raises(LocalProtocolError, match="unknown"):
        pair.alice.call(SettlePending(link=LINK, batch=BatchId(4, 4), ready=True))


def test_an_abandoned_batch_leaves_no_key_behind(pair: Pair) -> None:
    pair.alice.call(pending())
    abandon = StoreAbandoned(link=LINK, batch=FIRST, reason="lost", answer=b"no")
    for _ in range(2):
        pair.bob.call(abandon)
        assert pair.alice.call(SettlePending(link=LINK, batch=FIRST, ready=False)).segment is None
    assert pair.bob.call(FindAnswer(link=LINK, batch=FIRST)) == b"no"
    with pair.alice.tampering() as file:
        assert file.execute("SELECT count(*) FROM chunks").fetchone() == (0,)
        assert file.execute("SELECT sealed FROM segments WHERE state = 'spent'").fetchall() == [(None,)]
    with pytest.raises(LocalProtocolError, match="abandoned"):
        pair.bob.call(StoreAbandoned(link=LINK, batch=FIRST, reason="lost", answer=b"other"))
    key = SecretBuffer.copy_of(material_of(FIRST, BITS))
    with pytest.raises(LocalProtocolError, match="abandoned"):
        pair.bob.call(StoreReady(link=LINK, record=record_of(FIRST, BITS, 4096), key=key, answer=b"yes"))


def test_a_peer_that_calls_an_abandoned_batch_ready_raises_an_alarm(pair: Pair) -> None:
    pair.bob.call(StoreAbandoned(link=LINK, batch=FIRST, reason="lost", answer=b"no"))
    assert pair.bob.call(PeerReady(link=LINK, batches=(FIRST,))) == ()
    assert pair.bob.vault.events_after(0, 1000)[-1][1].kind == "batch.disagreed"


def test_the_peer_is_told_of_a_ready_batch_until_it_knows(pair: Pair) -> None:
    pair.journal()
    ask = UnannouncedReady(link=LINK)
    assert pair.alice.call(ask) == ()
    pair.alice.call(SettlePending(link=LINK, batch=FIRST, ready=True))
    assert pair.alice.call(ask) == (FIRST,)
    for _ in range(2):
        pair.alice.call(ReadyAnnounced(link=LINK, batches=(FIRST,)))
        assert pair.alice.call(ask) == ()


def test_an_allocation_from_a_batch_pending_here_is_not_settled(pair: Pair) -> None:
    pair.alice.call(pending())
    allocate = Allocate(1, "ledger", "payroll", FIRST, 0, 256, bytes(range(16)), "qkd", pair.alice.agreed())
    leaves = pair.alice.call(Status()).leaves
    assert pair.alice.call(AcceptAllocation(link=LINK, allocate=allocate)) == NOT_SETTLED
    assert pair.alice.call(Status()).leaves == leaves
    pair.alice.call(SettlePending(link=LINK, batch=FIRST, ready=True))
    assert pair.alice.call(AcceptAllocation(link=LINK, allocate=allocate)) == "accepted"


def test_a_batch_without_a_refill_has_no_segment(pair: Pair) -> None:
    pair.journal(refill_bits=0)
    assert pair.settle().segment is None
    assert pair.ready()


def test_a_batch_that_is_all_refill_has_no_stock(pair: Pair) -> None:
    pair.journal(bits_out=4096, refill_bits=4096)
    assert pair.settle().segment is not None
    with pytest.raises(OutOfStockError):
        pair.allocate(pair.alice, 1, 8)
