"""Each accepted tag moves the durable mark of its own segment, else a segment is never seen to be used up."""

import asyncio

from link_end import LinkEnd
from session_pair import PADS, opened_pair, pair_material

from qkdnode.authentication.pool import Segment
from qkdnode.ids import PROVISIONED, BatchId, PadAddress
from qkdnode.wire.messages import Mark, SiftList


async def taken(end: LinkEnd, raw: bytes) -> None:
    end.open()
    await end.link._take(raw)
    while end.link._tasks:
        await asyncio.gather(*end.link._tasks)


def test_a_tag_of_an_older_segment_is_noted_though_a_newer_one_is_in_use() -> None:
    alice, bob = opened_pair()
    later = BatchId(1, 0)
    alice.pool.add(Segment(later, PADS, pair_material(), 0, 0))
    alice.pool.accept(PadAddress(later, 3))
    end = LinkEnd(alice)
    bob.say(SiftList(0, 1, 3, b"\x01\x02\x03", b"\x05", 0, 0, 0))
    asyncio.run(taken(end, bob.wire.pop()))
    assert end.seen == [Mark(PROVISIONED, bob.mark)]
