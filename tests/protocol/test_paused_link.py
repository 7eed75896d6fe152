"""A link that an operator pauses, at either end: Bob lists nothing, the session stays, and it goes on when resumed."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from link_end import LinkEnd
from session_pair import opened_pair

from qkdnode.distill.bob import Bob
from qkdnode.distill.effects import ReceiverWindowReady
from qkdnode.wire.messages import BatchAbandoned, Message, Paused


class Idle:
    """Workers that take work and never finish it."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def submit(self, job: Any, long: bool, done: Callable[[Any, Any], None]) -> None:
        self.jobs.append(job)


class Pair:
    """Both ends of a link with an open session; what one queues is carried to the other by `carry`."""

    def __init__(self) -> None:
        alice, bob = opened_pair()
        self.alice, self.bob, self.work = LinkEnd(alice), LinkEnd(bob), Idle()
        self.bob.link._lanes = self.work
        for end in (self.alice, self.bob):
            end.open()
        self.windows = 0

    async def carry(self) -> list[Message]:
        """Deliver what both ends have queued; the messages."""
        said = []
        for sender, receiver in ((self.alice, self.bob), (self.bob, self.alice)):
            queue = sender.link._outgoing
            while not queue.empty():
                message = queue.get_nowait()
                said.append(message)
                await receiver.link._take(sender.link.session.seal(message))
        return said

    def window(self) -> bool:
        """A Window of Bob's module; whether it comes to his machine, which may list it."""
        self.windows += 1
        slots = np.arange(0, 6000, 10, dtype=np.uint32)
        counts = self.bob.link.statistics.discards
        before = counts.get("paused", 0), counts.get("stopping", 0), counts.get("no-session", 0)
        self.bob.link.window(ReceiverWindowReady(self.windows, slots, np.ones(600, dtype=np.uint8)))
        return before == (counts.get("paused", 0), counts.get("stopping", 0), counts.get("no-session", 0))

    def states(self) -> tuple[str, str]:
        return self.alice.link.statistics.state, self.bob.link.statistics.state


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_a_pause_at_either_end_stops_the_listing_and_its_end_lets_it_go_on(who: str) -> None:
    async def scenario() -> None:
        pair = Pair()
        end: LinkEnd = getattr(pair, who)
        assert pair.window()
        assert len(pair.work.jobs) == 1  # a list is made
        end.link.pause()
        said = await pair.carry()
        assert Paused(True) in said
        assert [message.reason for message in said if isinstance(message, BatchAbandoned)] == ["PAUSED"]
        assert pair.states() == ("PAUSED", "PAUSED")
        assert pair.alice.link.is_open
        assert pair.bob.link.is_open
        assert not pair.window()
        assert pair.bob.link.statistics.discards["paused"] == 1
        end.link.resume()
        assert await pair.carry() == [Paused(False)]
        assert pair.states() == ("OPEN", "OPEN")
        assert pair.window()
        assert len(pair.work.jobs) == 2  # at once: a pause is no failure to back off from

    asyncio.run(scenario())


def test_both_ends_have_to_be_resumed() -> None:
    async def scenario() -> None:
        pair = Pair()
        pair.alice.link.pause()
        pair.bob.link.pause()
        await pair.carry()
        pair.bob.link.resume()
        await pair.carry()
        assert pair.states() == ("PAUSED", "PAUSED")
        assert not pair.window()
        pair.alice.link.resume()
        await pair.carry()
        assert pair.window()

    asyncio.run(scenario())


def test_pausing_twice_says_nothing_twice_and_a_stop_is_not_undone_by_a_resume() -> None:
    async def scenario() -> None:
        pair = Pair()
        for _ in range(2):
            pair.bob.link.pause()
        assert await pair.carry() == [Paused(True)]
        pair.bob.link.stop_distilling()
        pair.bob.link.resume()
        await pair.carry()
        assert not pair.window()
        assert isinstance(pair.bob.link.machine, Bob)
        assert not pair.bob.link.machine.listening

    asyncio.run(scenario())


def test_a_paused_end_says_so_in_every_new_session_and_an_end_of_the_session_forgets_the_peer_s_word() -> None:
    async def scenario() -> None:
        alice, bob = opened_pair()
        at_alice, at_bob = LinkEnd(alice), LinkEnd(bob)
        at_alice.link.pause()  # before there is a session, as after a restart
        at_alice.open()
        at_bob.open()
        queued = at_alice.link._outgoing
        said = [queued.get_nowait() for _ in range(queued.qsize())]
        assert Paused(True) in said
        await at_bob.link._take(at_alice.link.session.seal(Paused(True)))
        assert at_bob.link.peer_paused
        at_bob.link.lost("cut")
        assert not at_bob.link.peer_paused
        assert at_bob.link.statistics.state == "DOWN"
        assert at_alice.link.paused

    asyncio.run(scenario())
