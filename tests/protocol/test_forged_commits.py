"""A commit that Alice did not send decides nothing: it neither settles a Batch, nor blocks it, nor costs a pad."""

import asyncio

import msgspec
from link_end import LinkEnd
from session_pair import SessionEnd, exchange, opened_pair

from qkdnode.distill.batch import Batch, Phase
from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import BatchId
from qkdnode.native.secret import SecretBuffer
from qkdnode.wire import codec
from qkdnode.wire.messages import BatchAnswer, BatchCommit, SiftList

EARLIER = BatchId(1, 0)


def committed() -> tuple[SessionEnd, SessionEnd, bytes]:
    """Both ends in a session in which Alice has committed Batch 0; her frame."""
    alice, bob = opened_pair()
    bob.say(SiftList(0, 1, 3, b"\x01\x02\x03", b"\x05", 0, 0, 0))
    exchange(alice, bob)
    alice.say(BatchCommit(BatchId(alice.session.session, 0), bytes(16), 512, 0))
    return alice, bob, alice.wire.pop()


def spoilt(raw: bytes) -> bytes:
    return raw[:-1] + bytes((raw[-1] ^ 1,))


def renamed(raw: bytes, batch: BatchId) -> bytes:
    frame = codec.decode(raw)
    body = codec.encode_body(BatchCommit(batch, bytes(16), 512, 0))
    header = msgspec.structs.replace(frame.header, counter=batch.number)
    return codec.join(header.pack(), body, frame.trailer)


async def taken(end: LinkEnd, *frames: bytes) -> None:
    end.open()
    if end.link.role == "bob":
        machine = end.link.machine
        assert machine is not None
        batch = machine.batches[0] = Batch(0, 2, 0)
        machine.gone = 1
        batch.phase, batch.bits_out, batch.key = Phase.CLAIMED, 512, SecretBuffer(64)
        batch.ledger.close()
        machine.claim_sent(0, bytes(16))
    for raw in frames:
        try:
            await end.link._take(raw)
        except RemoteProtocolError:
            continue
    while end.link._tasks:
        await asyncio.gather(*end.link._tasks)


def test_a_spoilt_commit_before_the_genuine_one_does_not_keep_the_batch_from_being_ready() -> None:
    alice, bob, commit = committed()
    end = LinkEnd(bob)
    asyncio.run(taken(end, spoilt(commit), commit))
    (answer,) = (codec.decode(raw) for raw in end.sent)
    assert answer.message == BatchAnswer(BatchId(bob.session.session, 0), True)
    assert alice.session.verifies(answer)
    assert end.alarms == ["AUTH_FAILED"]


def test_commits_of_batches_that_never_were_cost_no_pad() -> None:
    _, bob, commit = committed()
    end = LinkEnd(bob)
    granted = bob.pool.granted
    never = [BatchId(bob.session.session, 7), EARLIER, BatchId(2**40, 3)]
    asyncio.run(taken(end, *(renamed(commit, batch) for batch in never)))
    assert bob.pool.granted == granted
    assert not end.sent
    assert not end.answers


def test_alice_believes_that_a_batch_is_abandoned_whoever_asked_for_the_answer() -> None:
    alice, bob, commit = committed()
    end = LinkEnd(bob, peer_pending=(EARLIER,))
    asyncio.run(taken(end, renamed(commit, EARLIER)))
    (answer,) = end.sent
    at_alice = LinkEnd(alice)
    at_alice.link.settlement.unsettled[EARLIER] = b"the commit of the earlier session, which the attacker has not got"
    asyncio.run(taken(at_alice, answer))
    assert not at_alice.alarms
    assert not at_alice.link.settlement.unsettled
