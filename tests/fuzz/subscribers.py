"""Between a node and its subscribers: what is published, asked and answered, and what a SUB socket subscribes to."""

from collections.abc import Hashable, Iterable
from typing import Any, get_args

from fuzz.engine import Violation
from fuzz.examples import example, integers
from fuzz.mutation import Mutator, as_bytes, as_msgpack
from qkdnode.access.topics import covers
from qkdnode.client.order import EventOrder, Failure, Occurrence, SignedCheckpoint
from qkdnode.wire import events

TOPICS = ("alarm", "alarms", "link", "link.a", "link.a-b", "keys.metro", "checkpoint")
STREAM = bytes(16)

as_bodies: tuple[Mutator, ...] = (as_msgpack, as_msgpack, as_bytes)


def bodies_of(union: Any) -> list[bytes]:
    """Each message of a union at its least and ample, as far as its own rules let it be."""
    return [events.encode(example(kind, ample=ample)) for kind in get_args(union) for ample in (False, True)]


def published_seeds() -> list[bytes]:
    pages = (events.Page(STREAM, "alarm", 1, (0,), (b"{}",)), events.Page(STREAM, "alarm", 7, (3, 9), (b"{}", b"[]")))
    return [*map(events.encode, pages), *bodies_of(events.Head | events.Head)]


def request_seeds() -> list[bytes]:
    return bodies_of(events.Request)


def answer_seeds() -> list[bytes]:
    page = events.Page(STREAM, "alarm", 1, (0, 1), (b"{}", b"{}"))
    replayed = events.Replayed(1, 0, 2, (page,), True, (("alarm", 2),))
    return [events.encode(replayed), *bodies_of(events.State | events.Refused)]


def pattern_seeds() -> list[bytes]:
    return [events.subscription(pattern) for pattern in (*TOPICS, "*", "link.*")] + [events.head_frame("app")]


def _canonical(message: Any, data: bytes) -> Iterable[Hashable]:
    if events.encode(message) != data:
        raise Violation(f"{type(message).__name__} decodes and encodes to other bytes")
    if any(not 0 <= value < 2**63 for value in integers(message)):
        raise Violation(f"{type(message).__name__} holds an integer beyond 63 bits")
    return (type(message), len(data).bit_length())


def take_published(data: bytes) -> Iterable[Hashable]:
    """What is no entry of the log releases nothing and ends nothing."""
    order = EventOrder("a", bytes(32), ("*",), None)
    found = order.published(events.topic_frame("alarm"), data, 0.0)
    if any(isinstance(item, (Occurrence, SignedCheckpoint, Failure)) for item in found):
        raise Violation(f"a subscriber without a baseline gave {found}")
    return _canonical(events.decode_published(data), data)


def take_request(data: bytes) -> Iterable[Hashable]:
    return _canonical(events.decode_request(data), data)


def take_answer(data: bytes) -> Iterable[Hashable]:
    order = EventOrder("a", bytes(32), ("*",), 0)
    order.connect(0.0)
    if any(isinstance(item, (Occurrence, SignedCheckpoint)) for item in order.answered(data, 0.0)):
        raise Violation("what is no entry of a log was given as one")
    message = events.decode_answer(data)
    if isinstance(message, events.State):  # rows may hold negative and other numbers
        return (type(message), len(data).bit_length())
    return _canonical(message, data)


def take_pattern(data: bytes) -> Iterable[Hashable]:
    """What a subscription stands for gives no topic beyond it, and nobody's Head."""
    pattern = events.pattern_of(data)
    if pattern is None:
        return (None,)
    if events.subscription(pattern) != data or events.head_frame("app").startswith(data):
        raise Violation(f"{data!r} was read as {pattern!r}")
    for topic in TOPICS:
        if events.topic_frame(topic).startswith(data) != covers(pattern, topic):
            raise Violation(f"{data!r} as {pattern!r} gives {topic!r} by the filter or by the rules, not by both")
    return (pattern[:1], pattern.endswith("*"))
