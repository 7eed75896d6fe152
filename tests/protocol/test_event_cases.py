"""What a subscriber does about what a node says, case by case; the wire at its worst is in the property tests."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from event_log import START_NS, MemoryLog, finish
from signing import PUBLIC

from qkdnode.access.topics import TopicRules
from qkdnode.client import order as machine
from qkdnode.client.order import EventOrder, Failure, Missed, Occurrence, Outcome, SignedCheckpoint, Transmit
from qkdnode.errors import AccessDeniedError, AuditError, SupplyError
from qkdnode.supply.feed import Feed
from qkdnode.supply.replay import NodeState, Replays, Retention
from qkdnode.wire.events import (
    MAX_PAGE_BYTES,
    MAX_REPLAY,
    Page,
    Refused,
    Replay,
    Replayed,
    Snapshot,
    State,
    decode_request,
    encode,
    head_frame,
    topic_frame,
)

RULES = TopicRules({"app": ("*",)})
STREAM = bytes(range(16))
PLENTY = Retention(10**6, 10**5)


class Node:
    """A node whose answers and Pages are made one by one."""

    def __init__(self, retention: Retention = PLENTY) -> None:
        self.log = MemoryLog()
        self.feed = Feed(STREAM, self.log.state())
        self.now_ns = START_NS
        self.replays = Replays(
            RULES,
            retention,
            ask=self.log.ask,
            feed=lambda: self.feed,
            state=lambda: NodeState(alarms=({"code": "CLICKS"},)),
            clock_ns=lambda: self.now_ns,
        )

    def publish(self) -> list[tuple[bytes, bytes]]:
        """Frames of all that is new."""
        leaves = tuple(enumerate(self.log.leaves))[self.feed.end :]
        step = self.feed.advance(leaves, [note for note in self.log.notes if note[1] > self.feed.checkpoint_size])
        head = self.feed.head(step.start, step.sequences, lambda topic: True)
        return [*((topic_frame(page.topic), encode(page)) for page in step.pages), (head_frame("app"), encode(head))]

    def answer(self, frame: bytes) -> Any:
        return finish(self.replays.answer("app", decode_request(frame)))


def frames(outcomes: list[Outcome]) -> list[bytes]:
    return [outcome.frame for outcome in outcomes if isinstance(outcome, Transmit)]


def positions(outcomes: list[Outcome]) -> list[int]:
    return [outcome.position for outcome in outcomes if isinstance(outcome, Occurrence)]


def serve(node: Node, order: EventOrder, outcomes: list[Outcome], now_s: float = 0.0) -> list[Outcome]:
    """Answer every request; all outcomes."""
    found = list(outcomes)
    pending = frames(outcomes)
    while pending:
        more = order.answered(encode(node.answer(pending.pop(0))), now_s)
        found += more
        pending += frames(more)
    return found


def ready(node: Node, topics: tuple[str, ...] = ("*",), after: int | None = None) -> EventOrder:
    """A subscriber with its baseline."""
    order = EventOrder("a", PUBLIC, topics, after)
    serve(node, order, order.connect(0.0))
    for first, body in node.publish():
        serve(node, order, order.published(first, body, 0.0))
    assert order.up_to_date
    return order


def test_pages_wait_for_their_head() -> None:
    node = Node()
    order = ready(node)
    node.log.record("alarm", 2)
    node.log.record("link", 1)
    *pages, head = node.publish()
    for first, body in reversed(pages):
        assert order.published(first, body, 0.0) == []
    assert positions(order.published(*head, 0.0)) == [0, 1, 2]


def test_a_lost_page_is_asked_for_once_and_what_came_meanwhile_is_not_repeated() -> None:
    node = Node()
    order = ready(node)
    node.log.record("alarm", 2)
    *_, head = node.publish()
    asked = order.published(*head, 0.0)
    assert [decode_request(frame) for frame in frames(asked)] == [Replay(4, 0, 0, ("*",))]
    node.log.record("alarm", 2)
    meanwhile = [outcome for frame in node.publish() for outcome in order.published(*frame, 0.0)]
    assert meanwhile == []
    found = serve(node, order, asked)
    assert positions(found) == [0, 1, 2, 3]
    assert order.up_to_date


def test_an_answer_that_does_not_come_is_asked_for_again() -> None:
    order = EventOrder("a", PUBLIC, ("*",), 5)
    assert len(frames(order.connect(0.0))) == 1
    assert order.tick(machine.ANSWER_WAIT_S / 2) == []
    (again,) = frames(order.tick(machine.ANSWER_WAIT_S))
    assert decode_request(again) == Replay(2, 6, 5, ("*",))
    assert order.answered(encode(Replayed(1, 6, 6, (), True, ())), 6.0) == []  # the first, too late
    assert order.discarded == 1


def test_a_node_that_is_busy_is_asked_again_a_little_later() -> None:
    order = EventOrder("a", PUBLIC, ("*",), 5)
    order.connect(0.0)
    assert order.answered(encode(Refused(1, "busy", "too much")), 0.0) == []
    assert order.tick(machine.BUSY_WAIT_S / 2) == []
    assert len(frames(order.tick(machine.BUSY_WAIT_S))) == 1


def test_silence_makes_it_ask() -> None:
    node = Node()
    order = ready(node)
    node.log.record("alarm", 3)
    node.publish()  # nothing of it arrives, nor any Head after it
    assert order.tick(machine.SILENCE_S / 2) == []
    assert positions(serve(node, order, order.tick(machine.SILENCE_S))) == [0, 1, 2]


def test_what_is_not_taken_holds_up_the_release_and_nothing_is_lost() -> None:
    node = Node()
    order = ready(node)
    order.congested = True
    for _ in range(3):
        node.log.record("alarm", 2)
        for frame in node.publish():
            assert order.published(*frame, 0.0) == []
    order.congested = False
    assert positions(serve(node, order, order.tick(0.1))) == list(range(6))


def test_pages_without_a_head_are_held_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_HELD", 10)
    node = Node()
    order = ready(node)
    for _ in range(20):
        node.log.record("alarm", 3)
        for first, body in node.publish()[:-1]:
            order.published(first, body, 0.0)
        assert len(order._held) <= 10
    assert positions(serve(node, order, order.tick(machine.ANSWER_WAIT_S), 5.0)) == list(range(60))


def test_a_long_absence_is_mended_in_bounded_answers() -> None:
    node = Node()
    node.log.record("alarm", 2 * MAX_REPLAY + 100)
    node.feed = Feed(STREAM, node.log.state())
    order = EventOrder("a", PUBLIC, ("*",), -1)
    first = order.connect(0.0)
    answer = node.answer(frames(first)[0])
    assert sum(len(page.leaves) for page in answer.pages) == MAX_REPLAY
    assert all(sum(map(len, page.leaves)) <= MAX_PAGE_BYTES for page in answer.pages)
    assert not answer.complete
    assert positions(serve(node, order, first)) == list(range(2 * MAX_REPLAY + 100))


def test_a_topic_that_is_quiet_for_long_costs_answers_without_pages() -> None:
    node = Node()
    node.log.record("link")
    node.log.record("alarm", 3 * MAX_REPLAY)
    node.feed = Feed(STREAM, node.log.state())
    order = EventOrder("a", PUBLIC, ("link",), -1)
    assert positions(serve(node, order, order.connect(0.0))) == [0]
    assert order.next == 3 * MAX_REPLAY + 1


def test_many_checkpoints_come_in_their_order_among_the_events() -> None:
    node = Node()
    for _ in range(300):
        node.log.record("alarm")
        node.log.sign()
    node.feed = Feed(STREAM, node.log.state())
    order = EventOrder("a", PUBLIC, ("*",), -1)
    found = [item for item in serve(node, order, order.connect(0.0)) if not isinstance(item, Transmit)]
    assert [item.checkpoint.size for item in found if isinstance(item, SignedCheckpoint)] == list(range(1, 301))
    assert [item.position for item in found if isinstance(item, Occurrence)] == list(range(300))
    for before, item in pairwise(found):
        if isinstance(item, SignedCheckpoint):
            assert isinstance(before, Occurrence)
            assert before.position == item.checkpoint.size - 1


def test_a_checkpoint_of_another_key_is_not_taken() -> None:
    node = Node()
    order = EventOrder("a", bytes(32), ("*",), -1)
    node.log.record("alarm")
    node.log.sign()
    node.feed = Feed(STREAM, node.log.state())
    (*_, failure) = serve(node, order, order.connect(0.0))
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, AuditError)
    assert order.tick(100.0) == []  # it is over


def test_before_the_retention_the_snapshot_is_fetched_and_the_rest_follows() -> None:
    node = Node(Retention(10, 10**5))
    node.log.record("alarm", 50)
    node.feed = Feed(STREAM, node.log.state())
    order = EventOrder("a", PUBLIC, ("*",), 3)
    outcomes = order.connect(0.0)
    missed, *found = [item for item in serve(node, order, outcomes) if not isinstance(item, Transmit)]
    assert isinstance(missed, Missed)
    assert (missed.first, missed.oldest) == (4, 40)
    assert missed.snapshot.alarms == ({"code": "CLICKS"},)
    assert positions(list(found)) == list(range(40, 50))


def test_the_clock_decides_too_and_an_old_log_is_gone_to_its_end() -> None:
    node = Node(Retention(10**6, 1.0))
    node.log.record("alarm", 50)  # a second apart
    node.feed = Feed(STREAM, node.log.state())
    node.now_ns = START_NS + (3600 + 30) * 10**9
    (request,) = frames(EventOrder("a", PUBLIC, ("*",), 3).connect(0.0))
    refused = node.answer(request)
    assert (refused.code, refused.oldest, refused.oldest_time_ns) == ("before_retention", 30, START_NS + 30 * 10**9)
    node.now_ns += 3600 * 10**9
    refused = node.answer(request)
    assert (refused.code, refused.oldest) == ("before_retention", 50)
    order = EventOrder("a", PUBLIC, ("*",), 3)
    (missed,) = [item for item in serve(node, order, order.connect(0.0)) if not isinstance(item, Transmit)]
    assert isinstance(missed, Missed)
    assert order.up_to_date


@pytest.mark.parametrize(
    ("refused", "error", "words"),
    [
        (Refused(1, "denied", "subscriber app: nothing allows x"), AccessDeniedError, "node a: subscriber app"),
        (Refused(1, "ahead", "the log has 3 entries"), SupplyError, "node a: the log has 3 entries"),
        (Refused(0, "malformed", "no such tag"), SupplyError, "node a: no such tag"),
        (Refused(1, "before_retention", "not really", 2), SupplyError, "not really"),  # older than what we have
    ],
)
def test_refusals_that_cannot_be_mended_end_it(refused: Refused, error: type[Exception], words: str) -> None:
    order = EventOrder("a", PUBLIC, ("*",), 5)
    order.connect(0.0)
    failure = order.answered(encode(refused), 0.0)[0]
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, error)
    assert words in str(failure.error)


def test_a_replay_with_a_hole_in_a_topics_numbers_is_an_error() -> None:
    node = Node()
    node.log.record("alarm", 3)
    node.feed = Feed(STREAM, node.log.state())
    order = EventOrder("a", PUBLIC, ("*",), -1)
    answer = node.answer(frames(order.connect(0.0))[0])
    (page,) = answer.pages
    one, _, three = page.leaves
    pages = (Page(STREAM, "alarm", 1, (0,), (one,)), Page(STREAM, "alarm", 3, (2,), (three,)))
    (failure, *_) = order.answered(encode(msgspec.structs.replace(answer, pages=pages)), 0.0)
    assert isinstance(failure, Failure)
    assert "number 3 of topic alarm came after 1" in str(failure.error)


def test_a_replay_that_leaves_out_the_last_of_a_topic_is_an_error() -> None:
    node = Node()
    node.log.record("alarm", 3)
    node.feed = Feed(STREAM, node.log.state())
    order = EventOrder("a", PUBLIC, ("*",), -1)
    answer = node.answer(frames(order.connect(0.0))[0])
    (page,) = answer.pages
    short = msgspec.structs.replace(page, positions=page.positions[:2], leaves=page.leaves[:2])
    (failure, *_) = order.answered(encode(msgspec.structs.replace(answer, pages=(short,))), 0.0)
    assert isinstance(failure, Failure)
    assert "the newest number of topic alarm is 3, but 2 came" in str(failure.error)


def test_a_failing_vault_is_a_refusal_that_is_tried_again() -> None:
    node = Node()
    node.log.record("alarm")
    node.feed = Feed(STREAM, node.log.state())
    order = EventOrder("a", PUBLIC, ("*",), -1)
    asked = order.connect(0.0)
    node.log.failing = True
    assert serve(node, order, asked) == asked
    node.log.failing = False
    assert positions(serve(node, order, order.tick(machine.BUSY_WAIT_S))) == [0]


def test_nothing_is_asked_without_a_connection() -> None:
    order = EventOrder("a", PUBLIC, ("*",), None)
    assert order.tick(100.0) == []
    assert [type(decode_request(frame)) for frame in frames(order.connect(100.0))] == [Snapshot]
    order.disconnect()
    assert order.tick(200.0) == []


def test_a_snapshot_sets_the_baseline() -> None:
    node = Node()
    node.log.record("alarm", 7)
    node.log.sign()
    node.feed = Feed(STREAM, node.log.state())
    order = ready(node)
    assert isinstance(order.snapshot, State)
    assert order.snapshot.end == 7
    node.log.record("alarm")
    found = [outcome for frame in node.publish() for outcome in order.published(*frame, 0.0)]
    assert positions(found) == [7]
