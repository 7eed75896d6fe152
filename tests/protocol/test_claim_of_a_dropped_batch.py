"""A claim that waits for its pad while its Batch is given up is not sent, and the link goes on."""

import asyncio

from link_end import LinkEnd
from session_pair import exchange, opened_pair

from qkdnode.authentication.session import BatchClaim
from qkdnode.ids import BatchId
from qkdnode.wire import codec
from qkdnode.wire.messages import Disclosure, Goodbye, SiftList


async def sent_after(end: LinkEnd) -> None:
    end.open()
    number = end.link.session.session
    nothing = Disclosure(0, 0, 0, 0, 0)
    end.link.send_soon(BatchClaim(BatchId(number, 0), 512, 0, (2, 0), (0, 0), (1, 0), (0, 0), nothing))
    end.link.session.forget_batch(0)
    end.link.send_soon(Goodbye(True))
    loop = asyncio.create_task(end.link._send_loop())
    while not end.sent and not loop.done():
        await asyncio.sleep(0)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


def test_a_claim_whose_batch_is_gone_does_not_end_the_send_loop() -> None:
    alice, bob = opened_pair()
    bob.say(SiftList(0, 1, 3, b"\x01\x02\x03", b"\x05", 0, 0, 0))
    exchange(alice, bob)
    end = LinkEnd(bob)
    asyncio.run(sent_after(end))
    assert [codec.decode(raw).message for raw in end.sent] == [Goodbye(True)]
