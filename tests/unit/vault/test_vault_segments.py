"""Authentication key: marks that never move back, pads that are never reserved twice."""

import pytest
from vaults import EVERYWHERE, FIRST, LINK, Pair, material_of

from qkdnode.errors import LocalProtocolError, PoolExhaustedError, VaultError
from qkdnode.ids import ALICE, PROVISIONED, BatchId, PadAddress
from qkdnode.native.secret import SecretBuffer, equal
from qkdnode.vault.requests import (
    DestroySpent,
    GrantPads,
    NextSession,
    NoteSeen,
    OpenLink,
    PadsLeft,
    ProvisionLink,
    ReservePads,
    SettlePending,
    Status,
)
from qkdnode.wire.messages import Mark, PadSpan

REFILL = BatchId(1, 1)


def reserve(pair: Pair, count: int, **options: bool) -> tuple[PadAddress, ...]:
    taken: tuple[PadAddress, ...] = pair.alice.call(ReservePads(link=LINK, within=EVERYWHERE, count=count, **options))  # type: ignore[arg-type]
    return taken


def seen(pair: Pair, segment: BatchId, index: int) -> None:
    pair.alice.call(NoteSeen(link=LINK, marks=(Mark(segment, index),)))


def marks(pair: Pair) -> dict[BatchId, tuple[int, int]]:
    return {state.segment: (state.sending, state.seen) for state in pair.alice.open_link().segments}


def test_pads_ascend_through_segments_and_none_is_reserved_twice(pair: Pair) -> None:
    pair.stock()
    taken = [pad for count in (1, 254, 3, 14) for pad in reserve(pair, count)]
    assert taken == [*(PadAddress(PROVISIONED, i) for i in range(256)), *(PadAddress(REFILL, i) for i in range(16))]
    with pytest.raises(PoolExhaustedError, match="0 pads left"):
        reserve(pair, 1)
    assert pair.alice.call(PadsLeft(link=LINK)) == 0


def test_contiguous_pads_lie_in_one_segment(pair: Pair) -> None:
    pair.stock()
    reserve(pair, 255)
    assert reserve(pair, 2, contiguous=True) == (PadAddress(REFILL, 0), PadAddress(REFILL, 1))
    assert reserve(pair, 2) == (PadAddress(PROVISIONED, 255), PadAddress(REFILL, 2))
    with pytest.raises(PoolExhaustedError):
        reserve(pair, 14, contiguous=True)


def test_only_granted_pads_are_reserved_and_those_before_them_are_given_up(pair: Pair) -> None:
    spans = (PadSpan(PROVISIONED, 9, 12), PadSpan(PROVISIONED, 40, 42))
    assert pair.alice.call(ReservePads(link=LINK, count=4, within=spans, contiguous=True)) == ()
    taken = pair.alice.call(ReservePads(link=LINK, count=4, within=spans))
    assert [pad.index for pad in taken] == [9, 10, 11, 40]
    taken = pair.alice.call(ReservePads(link=LINK, count=4, within=spans))
    assert [pad.index for pad in taken] == [41]
    assert pair.alice.call(ReservePads(link=LINK, count=4, within=())) == ()
    assert pair.alice.call(PadsLeft(link=LINK)) == 256 - 42


def test_no_pad_is_granted_twice_whatever_the_peer_says_it_has_used(pair: Pair) -> None:
    pair.stock()
    asked = (Mark(PROVISIONED, 0), Mark(REFILL, 0), Mark(BatchId(9, 9), 0))
    granted = []
    for _ in range(9):
        spans = pair.alice.call(GrantPads(link=LINK, count=40, sending=asked))
        granted += [PadAddress(span.segment, i) for span in spans for i in range(span.first, span.end)]
        pair.alice.reopen()
    assert granted == [*(PadAddress(PROVISIONED, i) for i in range(256)), *(PadAddress(REFILL, i) for i in range(16))]
    with pytest.raises(LocalProtocolError):
        pair.alice.call(GrantPads(link=LINK, count=0, sending=asked))


@pytest.mark.parametrize("count", [0, -1])
def test_no_pads_are_not_reserved(pair: Pair, count: int) -> None:
    with pytest.raises(LocalProtocolError):
        reserve(pair, count)


def test_a_refill_serves_only_once_the_peer_is_known_to_have_it(pair: Pair) -> None:
    pair.journal()
    assert pair.alice.call(PadsLeft(link=LINK)) == 256
    assert [(s.segment, s.usable) for s in pair.bob.open_link().segments] == [(PROVISIONED, True), (REFILL, False)]
    pair.settle()
    assert pair.alice.call(PadsLeft(link=LINK)) == pair.bob.call(PadsLeft(link=LINK)) == 256 + 16
    state = pair.bob.open_link().segments[1]
    assert equal(state.material, material_of(FIRST, 70_000)[:512])


def test_seen_marks_rise_only(pair: Pair) -> None:
    seen(pair, PROVISIONED, 9)
    seen(pair, PROVISIONED, 4)
    assert marks(pair) == {PROVISIONED: (0, 9)}
    for segment, index in ((PROVISIONED, 257), (BatchId(8, 8), 1)):
        with pytest.raises(LocalProtocolError, match="has no pad"):
            seen(pair, segment, index)


def test_a_restart_moves_no_mark(pair: Pair) -> None:
    pair.stock()
    reserve(pair, 3)
    pair.alice.reopen()
    assert marks(pair) == {PROVISIONED: (3, 0), REFILL: (0, 0)}


def test_the_key_of_the_greetings_is_the_same_at_both_ends_and_none_of_the_pads(pair: Pair) -> None:
    state = [end.call(OpenLink(link=LINK, role=end.role, peer=peer)) for end, peer in zip(pair.ends, "ba", strict=True)]
    half = 16 * 258
    material = bytes(i % 251 for i in range(2 * half))
    for one in state:
        (segment,) = one.segments
        assert equal(one.greeting_key, material[half - 32 : half] + material[-32:])
        assert equal(segment.material, material[: half - 32] + material[half:-32])


def test_a_segment_used_up_in_both_directions_is_destroyed(pair: Pair) -> None:
    pair.stock()
    reserve(pair, 256)
    pair.alice.call(NextSession(link=LINK))
    assert PROVISIONED in marks(pair)
    seen(pair, PROVISIONED, 256)
    assert pair.alice.call(DestroySpent(link=LINK, keep=(PROVISIONED,))) == 0
    assert pair.alice.call(DestroySpent(link=LINK)) == 1
    assert PROVISIONED not in marks(pair)
    with pair.alice.tampering() as file:
        assert (None, None) in file.execute("SELECT sealed, wrapped FROM segments").fetchall()
    seen(pair, PROVISIONED, 256)


def test_nothing_is_destroyed_while_a_batch_is_unsettled(pair: Pair) -> None:
    pair.journal()
    reserve(pair, 256)
    seen(pair, PROVISIONED, 256)
    pair.alice.call(NextSession(link=LINK))
    assert PROVISIONED in marks(pair)
    pair.settle()
    pair.alice.call(NextSession(link=LINK))
    assert PROVISIONED not in marks(pair)


def test_sessions_rise_over_restarts(pair: Pair) -> None:
    assert [pair.alice.call(NextSession(link=LINK)) for _ in range(2)] == [1, 2]
    pair.alice.reopen()
    assert pair.alice.open_link().session_counter == 2
    assert pair.alice.call(NextSession(link=LINK)) == 3


def test_provisioning_anew_quarantines_what_is_unsettled_and_replaces_all_pads(pair: Pair) -> None:
    pair.stock(BatchId(1, 1))
    pair.journal(BatchId(1, 2))
    reserve(pair, 5)
    for end in pair.ends:
        end.provision(64)
        assert end.call(PadsLeft(link=LINK)) == 64
        assert end.call(Status()).batches == {"ready": 1, "quarantined": 1}
    assert pair.alice.open_link().unsettled == ()
    with pytest.raises(LocalProtocolError, match="quarantined"):
        pair.alice.call(SettlePending(link=LINK, batch=BatchId(1, 2), ready=True))
    pair.alice.reopen()
    assert marks(pair) == {PROVISIONED: (0, 0)}
    assert pair.ready()  # settled stock is still good


@pytest.mark.parametrize("size", [40, 104, 64])
def test_half_a_pad_or_too_few_are_not_provisioned_and_the_buffer_stays_the_askers(pair: Pair, size: int) -> None:
    material = SecretBuffer(size)
    with pytest.raises(LocalProtocolError, match="whole pads"):
        pair.alice.call(ProvisionLink(link=LINK, role=ALICE, peer="b", pair=b"pair", material=material))
    assert not material.released


def test_a_link_keeps_its_role_and_peer(pair: Pair) -> None:
    with pytest.raises(VaultError, match="alice to 'b'"):
        pair.alice.call(OpenLink(link=LINK, role=ALICE, peer="c"))
    with pytest.raises(LocalProtocolError, match="no role"):
        pair.alice.call(OpenLink(link=LINK, role="eve", peer="b"))
    with pytest.raises(VaultError, match="no link"):
        pair.alice.call(NextSession(link="other"))


def test_a_new_link_has_no_segments_until_it_is_provisioned(pair: Pair) -> None:
    state = pair.alice.call(OpenLink(link="ring", role=ALICE, peer="c"))
    assert (state.session_counter, state.greeting_key, state.segments, state.unsettled) == (0, None, (), ())
    with pytest.raises(PoolExhaustedError):
        pair.alice.call(ReservePads(link="ring", count=1, within=EVERYWHERE))
