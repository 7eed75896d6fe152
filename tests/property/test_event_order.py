"""Whatever the wire drops, repeats, mixes up or damages, and whoever starts anew: events come in order, each once.

QKDNODE_EXAMPLES multiplies the number of runs; 1 is the default suite.
"""

import os
import random
from contextlib import suppress
from typing import Any

import msgspec
from event_log import START_NS, MemoryLog, finish
from hypothesis import given, settings
from hypothesis import strategies as st
from signing import PUBLIC

from qkdnode.access.topics import TopicRules, any_covers
from qkdnode.client.order import EventOrder, Failure, Item, Occurrence, Outcome, SignedCheckpoint, Transmit
from qkdnode.errors import RemoteProtocolError
from qkdnode.supply.feed import Feed
from qkdnode.supply.replay import NodeState, Replays, Retention
from qkdnode.wire.events import Head, Page, decode_published, decode_request, encode, head_frame, topic_frame

TIMES = int(os.environ.get("QKDNODE_EXAMPLES", "1"))
TOPICS = ("alarm", "alarms", "keys.a-b", "keys.a-c", "link")
WANTED = ("alarm", "keys.*", "checkpoint")
RULES = TopicRules({"app": ("alarm", "keys.*", "checkpoint", "link")})
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.sampled_from(TOPICS), st.integers(1, 40)),
        st.tuples(st.sampled_from(["sign", "publish", "beat", "restart", "hang up", "tick", "answer", "lose answer"])),
        st.tuples(st.sampled_from(["deliver", "drop", "repeat", "mix", "damage"]), st.integers(0, 2**16)),
    ),
    max_size=80,
)


class Wire:
    """A node and one subscriber, with both wires between them in the hands of the test."""

    def __init__(self, *, after: int | None, before: int = 0) -> None:
        self.log = MemoryLog()
        self.log.record("alarm", before)
        self.now_s = 0.0
        self.order = EventOrder("a", PUBLIC, WANTED, after)
        self.published: list[tuple[bytes, bytes]] = []
        self.naive: list[int] = []  # positions, in the order of arrival, for a subscriber that only listens
        self.requests: list[bytes] = []
        self.items: list[Item] = []
        self.start()

    def start(self) -> None:
        """The node starts: another stream over the same log."""
        self.feed = Feed(random.Random(len(self.log.leaves)).randbytes(16), self.log.state())
        self.replays = Replays(
            RULES,
            Retention(10**6, 10**5),
            ask=self.log.ask,
            feed=lambda: self.feed,
            state=NodeState,
            clock_ns=lambda: START_NS,
        )

    def apply(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Transmit(frame):
                    self.requests.append(frame)
                case Failure(error):
                    raise error
                case _:
                    self.items.append(outcome)

    def publish(self) -> None:
        leaves = tuple(enumerate(self.log.leaves))[self.feed.end :]
        step = self.feed.advance(leaves, [note for note in self.log.notes if note[1] > self.feed.checkpoint_size])
        for page in step.pages:
            if any_covers(WANTED, page.topic):
                self.published.append((topic_frame(page.topic), encode(page)))
        if step.pages:
            self.publish_head(self.feed.head(step.start, step.sequences, self.may))

    def beat(self) -> None:
        self.publish_head(self.feed.head(self.feed.end, self.feed.sequences, self.may))

    def publish_head(self, head: Head) -> None:
        self.published.append((head_frame("app"), encode(head)))

    def may(self, topic: str) -> bool:
        return RULES.may_have("app", topic)

    def deliver(self, at: int = 0) -> None:
        if self.published:
            first, body = self.published.pop(at % len(self.published))
            with suppress(RemoteProtocolError):
                message = decode_published(body)
                if isinstance(message, Page) and message.topic != "checkpoint":
                    self.naive += message.positions
            self.apply(self.order.published(first, body, self.now_s))

    def answer(self) -> None:
        if self.requests:
            answer = finish(self.replays.answer("app", decode_request(self.requests.pop(0))))
            self.apply(self.order.answered(encode(answer), self.now_s))

    def step(self, what: str, *arguments: Any) -> None:
        match what, arguments:
            case "record", (topic, count):
                self.log.record(topic, count)
            case "sign", ():
                self.log.sign()
            case "publish", ():
                self.publish()
            case "beat", ():
                self.beat()
            case "restart", ():
                self.log.record("node")
                self.start()
            case "hang up", ():
                self.order.disconnect()
                self.requests.clear()
                self.apply(self.order.connect(self.now_s))
            case "tick", ():
                self.now_s += 1.5
                self.apply(self.order.tick(self.now_s))
            case "answer", ():
                self.answer()
            case "lose answer", ():
                del self.requests[:1]
            case "deliver", (_,):
                self.deliver()
            case "mix", (at,):
                self.deliver(at)
            case "repeat", (at,) if self.published:
                self.published.append(self.published[at % len(self.published)])
            case "drop", (at,) if self.published:
                del self.published[at % len(self.published)]
            case "damage", (at,) if self.published:
                index = at % len(self.published)
                first, body = self.published[index]
                spoilt = bytearray(body)
                spoilt[at % len(body)] ^= 1 + at % 255
                # CURVE would not let it pass: what is not noticed here would be another valid message.
                if self._is_noticed(first, bytes(spoilt)):
                    self.published[index] = (first, bytes(spoilt))

    def _is_noticed(self, first: bytes, body: bytes) -> bool:
        trial = EventOrder("a", PUBLIC, WANTED, 0)
        trial.published(first, body, 0.0)
        return trial.discarded == 1

    def heal(self) -> None:
        """From here on the wire works."""
        for _ in range(6):
            self.publish()
            self.beat()
            while self.published:
                self.deliver()
            while self.requests:
                self.answer()
            self.now_s += 5.0
            self.apply(self.order.tick(self.now_s))
            while self.requests:
                self.answer()

    def positions(self) -> list[int]:
        return [item.position for item in self.items if isinstance(item, Occurrence)]

    def wanted_positions(self, start: int) -> list[int]:
        topics = [msgspec.json.decode(leaf)["topic"] for leaf in self.log.leaves]
        return [i for i, topic in enumerate(topics) if i >= start and any_covers(WANTED, topic)]


@settings(max_examples=150 * TIMES)
@given(STEPS, st.integers(0, 30), st.booleans())
def test_every_event_comes_once_in_the_order_of_the_log(steps: list[Any], before: int, from_now: bool) -> None:
    wire = Wire(after=None if from_now else before - 1, before=before)
    wire.apply(wire.order.connect(0.0))
    wire.answer()
    for step in steps:
        wire.step(*step)
    wire.heal()
    assert wire.positions() == wire.wanted_positions(before)
    notes = [item.checkpoint.size for item in wire.items if isinstance(item, SignedCheckpoint)]
    assert notes == [size for _, size, _ in wire.log.notes]


def test_a_subscriber_that_only_listens_would_have_lost_them() -> None:
    """Negative control: the faults above do take events away."""
    wire = Wire(after=None)
    wire.apply(wire.order.connect(0.0))
    wire.answer()
    for round_ in range(10):
        wire.step("record", "alarm", 3)
        wire.step("publish")
        if round_ % 3 == 1:
            wire.published.clear()
        wire.step("deliver", 0)
        wire.step("deliver", 0)
    wire.heal()
    assert len(wire.naive) == 21
    assert wire.positions() == list(range(30))


def test_pages_of_a_stream_before_the_restart_do_no_harm() -> None:
    wire = Wire(after=None)
    wire.apply(wire.order.connect(0.0))
    wire.answer()
    wire.answer()
    wire.log.record("alarm", 5)
    wire.publish()
    old = list(wire.published)
    wire.step("restart")
    wire.log.record("alarm", 2)
    wire.publish()
    wire.published = [*wire.published, *old]
    wire.heal()
    assert wire.positions() == wire.wanted_positions(0)
    assert all(isinstance(item, Occurrence) for item in wire.items)


def test_a_page_under_another_topics_name_is_not_used() -> None:
    wire = Wire(after=None)
    page = Page(bytes(16), "alarm", 1, (0,), (b"{}",))
    assert wire.order.published(topic_frame("link"), encode(page), 0.0) == []
    assert wire.order.discarded == 1
