"""What shows that one end's vault is an older copy: each sign alone is enough, and an ordinary restart shows none."""

from typing import Any

import pytest
from msgspec.structs import replace
from vaults import FIRST, LINK, NODES, End, Pair

from qkdnode.ids import PROVISIONED, BatchId
from qkdnode.vault.requests import (
    Admission,
    AdmitPeer,
    GrantPads,
    NextSession,
    NoteSeen,
    ReservePads,
    StateLink,
    Status,
)
from qkdnode.wire.messages import Greeting, Mark, PadSpan, Statement

OURS, THEIRS = "this vault is an older copy", "the peer's vault is an older copy"


def greeting(end: End, counter: int | None = None, wanted: int = 4) -> Greeting:
    """What an end says with its next session counter."""
    start = end.open_link().start
    counter = end.call(NextSession(link=LINK)) if counter is None else counter
    stated = end.call(StateLink(link=LINK))
    node = NODES[end.role]
    return Greeting(node, LINK, b"pair", start, counter, bytes(8), 1, False, "", stated, wanted, ())


def admit(end: End, said: Greeting) -> Admission:
    answer: Admission = end.call(AdmitPeer(link=LINK, greeting=said))
    return answer


def stating(said: Greeting, **changes: Any) -> Greeting:
    return replace(said, statement=replace(said.statement, **changes))


def session(pair: Pair) -> None:
    """Both ends admit each other and take the pads of a Hello."""
    said = [greeting(end) for end in pair.ends]
    for end, theirs in zip(pair.ends, reversed(said), strict=True):
        admission = admit(end, theirs)
        assert admission.refused == ""
        other = pair.bob if end is pair.alice else pair.alice
        assert len(other.call(ReservePads(link=LINK, count=4, within=admission.granted, contiguous=True))) == 4
        end.call(NoteSeen(link=LINK, marks=(Mark(PROVISIONED, admission.granted[0].end),)))


def test_sessions_of_ordinary_ends_show_no_sign_over_batches_and_restarts(pair: Pair) -> None:
    session(pair)
    pair.stock()
    session(pair)
    pair.alice.reopen()
    session(pair)
    for end in pair.ends:
        end.reopen()
    session(pair)


def test_each_admission_grants_what_was_granted_to_nobody(pair: Pair) -> None:
    spans = [admit(pair.alice, greeting(pair.bob)).granted for _ in range(3)]
    assert spans == [(PadSpan(PROVISIONED, first, first + 4),) for first in (0, 4, 8)]
    assert admit(pair.alice, greeting(pair.bob, wanted=0)).granted == ()


SIGNS = {
    "a session that this end has not begun": (OURS, {"heard": 7}),
    "this session of another run": (OURS, {"heard": 1, "heard_start": b"another!"}),
    "a Batch that is unknown here": (OURS, {"newest": BatchId(5 << 32 | 5, 1)}),
    "a pad seen that was not reserved": (OURS, {"seen": (Mark(PROVISIONED, 5),)}),
    "a pad reserved that was not granted": (OURS, {"sending": (Mark(PROVISIONED, 6),)}),
    "a segment seen that is not held": (OURS, {"seen": (Mark(BatchId(9, 9), 1),)}),
    "a segment used that is not held": (OURS, {"sending": (Mark(BatchId(9, 9), 1),)}),
    "fewer pads reserved than were seen": (THEIRS, {"sending": (Mark(PROVISIONED, 2),)}),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_a_sign_is_refused_journalled_and_grants_nothing(pair: Pair, sign: str) -> None:
    whose, stated = SIGNS[sign]
    session(pair)
    said = stating(greeting(pair.bob), **stated)
    leaves = pair.alice.call(Status()).leaves
    before = pair.alice.call(GrantPads(link=LINK, count=1, sending=(Mark(PROVISIONED, 0),)))[0].end
    answer = admit(pair.alice, said)
    assert answer.refused.startswith(whose)
    assert answer.granted == ()
    assert pair.alice.vault.events_after(leaves)[-1][1].kind == "link.refused"
    assert pair.alice.call(GrantPads(link=LINK, count=1, sending=(Mark(PROVISIONED, 0),)))[0].first == before


@pytest.mark.parametrize("same_run", [False, True])
def test_a_peer_that_begins_a_session_again_holds_an_older_copy(pair: Pair, same_run: bool) -> None:
    session(pair)
    session(pair)
    again = greeting(pair.bob, counter=1 if same_run else 2)
    assert admit(pair.alice, again if same_run else replace(again, start=b"another!")).refused.startswith(THEIRS)


def test_a_segment_of_an_unsettled_batch_and_one_that_is_used_up_are_no_sign(pair: Pair) -> None:
    pair.stock()
    for end, other in ((pair.alice, pair.bob), (pair.bob, pair.alice)):
        sending = end.call(StateLink(link=LINK)).sending
        spans = other.call(GrantPads(link=LINK, count=64, sending=sending))
        while spans:
            pads = end.call(ReservePads(link=LINK, count=1, within=spans))
            if not pads:
                sending = end.call(StateLink(link=LINK)).sending
                spans = other.call(GrantPads(link=LINK, count=64, sending=sending))
            else:
                other.call(NoteSeen(link=LINK, marks=(Mark(pads[0].segment, pads[0].index + 1),)))
            if pads and pads[0].segment == FIRST:
                break
    for end, other in ((pair.alice, pair.bob), (pair.bob, pair.alice)):
        assert admit(end, greeting(other)).refused == ""
    stated: Statement = pair.alice.call(StateLink(link=LINK))
    assert {mark.segment for mark in stated.sending} == {PROVISIONED, FIRST}


def test_provisioning_anew_forgets_every_sign(pair: Pair) -> None:
    pair.stock()
    session(pair)
    for end in pair.ends:
        end.provision(64)
    said = greeting(pair.bob)
    assert said.statement == Statement(b"", 0, BatchId(0, 0), (Mark(PROVISIONED, 0),), ())
    assert admit(pair.alice, said).refused == ""
