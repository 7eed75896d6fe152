"""Events on the wire: what is published, what is asked for to mend a gap, and the names that PUB and SUB filter by.

Published messages have two frames. The first is `+TOPIC\\0` for a Page, so that the filter by prefix tells `alarm` from
`alarms` (`-TOPIC\\0` for the topic that no `*` covers), and `=NAME\\0` for the Head of one subscriber. Positions are
those of the audit log, from 0; a span is half open. Requests and answers have one frame. All bodies are MessagePack
arrays, the tag first, in their one spelling.
"""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from qkdnode.config import TopicPattern as Pattern
from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import CONFIDENTIAL
from qkdnode.wire.messages import U32, U64, Block16, Message

MAX_LEAF_BYTES, MAX_NOTE_CHARACTERS = 16 * 1024, 8 * 1024  # as in audit
CHECKPOINT = "checkpoint"  # the topic of signed notes; no leaf has it
MAX_PAGE_LEAVES = 256
MAX_PAGE_BYTES = 64 * 1024  # of leaves; a page holds at least one
MAX_TOPICS = 1024
MAX_PATTERNS = 64
MAX_PATTERN_CHARACTERS = 128
MAX_REPLAY = 1024  # entries of the log that one answer covers
MAX_REPLAY_BYTES = 512 * 1024  # of leaves in one answer
MAX_STATE_ROWS = 512
MAX_SUBSCRIPTION_BYTES = 4 * MAX_PATTERN_CHARACTERS + 2
MAX_REQUEST_BYTES = 2 * MAX_PATTERNS * MAX_PATTERN_CHARACTERS + 64
MAX_PUBLISHED_BYTES = 512 * 1024  # the longest: a Head with many topics
MAX_ANSWER_BYTES = 4 * 1024 * 1024  # the longest: a State with many rows

_OF_TOPIC, _OF_SUBSCRIBER, _END = b"+", b"=", b"\0"
_OF_CONFIDENTIAL = b"-"  # so that who subscribes to all topics by their prefix has it not

T = TypeVar("T")

TOPIC_PATTERN = r"^[a-z0-9][a-z0-9._/-]{0,127}\Z"
Topic = Annotated[str, Meta(pattern=TOPIC_PATTERN)]
Sequences = Annotated[tuple[tuple[Topic, U64], ...], Meta(max_length=MAX_TOPICS)]
Patterns = Annotated[tuple[Pattern, ...], Meta(min_length=1, max_length=MAX_PATTERNS)]
Text = Annotated[bytes, Meta(max_length=max(MAX_LEAF_BYTES, 4 * MAX_NOTE_CHARACTERS))]
Row = dict[str, str | int | float | bool | None]
Rows = Annotated[tuple[Row, ...], Meta(max_length=MAX_STATE_ROWS)]


class Page(Message, frozen=True, tag=1):
    """Entries of one topic, numbered from `first` without a gap, each with its position, as they stand in the log.

    Of the topic `checkpoint`: signed notes, the position of each its size.
    """

    stream: Block16
    topic: Topic
    first: U64
    positions: Annotated[tuple[U64, ...], Meta(min_length=1, max_length=MAX_PAGE_LEAVES)]
    leaves: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=MAX_PAGE_LEAVES)]

    def __post_init__(self) -> None:
        if len(self.positions) != len(self.leaves):
            raise ValueError("as many positions as leaves are expected")


class Head(Message, frozen=True, tag=2):
    """To one subscriber: what was published of positions start to end, by the newest number of each topic in it.

    Once a second one names every topic that the subscriber may have, so that a lost last message is noticed.
    """

    stream: Block16
    start: U64
    end: U64
    sequences: Sequences


class Snapshot(Message, frozen=True, tag=16):
    """Subscriber to node: how do things stand?"""

    request: U32


class Replay(Message, frozen=True, tag=17):
    """Subscriber to node: these topics of the log from `start` on, with checkpoints larger than `checkpoint`."""

    request: U32
    start: U64
    checkpoint: U64
    topics: Patterns


class State(Message, frozen=True, tag=32):
    """Node to subscriber: how things stand, as far as it may know: before position `end`."""

    request: U32
    stream: Block16
    time_ns: U64
    end: U64
    sequences: Sequences
    checkpoint: Annotated[str, Meta(max_length=MAX_NOTE_CHARACTERS)]  # the newest note, or nothing
    alarms: Rows
    links: Rows
    devices: Rows


class Replayed(Message, frozen=True, tag=33):
    """Node to subscriber: all that is asked for from `start` to `end`. `complete`: no more is published yet."""

    request: U32
    start: U64
    end: U64
    pages: Annotated[tuple[Page, ...], Meta(max_length=2 * MAX_REPLAY)]
    complete: bool
    sequences: Sequences  # the newest number of each topic asked for, if complete


class Refused(Message, frozen=True, tag=34):
    """Node to subscriber: no, and why. `oldest` is the oldest position kept and its time, with `before_retention`."""

    request: U32
    code: Literal["denied", "before_retention", "ahead", "busy", "malformed", "failed"]
    reason: Annotated[str, Meta(max_length=512)]
    oldest: U64 = 0
    oldest_time_ns: U64 = 0


Published = Page | Head
Request = Snapshot | Replay
Answer = State | Replayed | Refused

_encoder = msgspec.msgpack.Encoder()
_published: msgspec.msgpack.Decoder[Published] = msgspec.msgpack.Decoder(Published)
_request: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Published | Request | Answer) -> bytes:
    """The canonical bytes of a message."""
    return _encoder.encode(message)


def decode_published(data: bytes) -> Published:
    """Decode the second frame of what was published; RemoteProtocolError says what is wrong with it."""
    return _decode(_published, data, MAX_PUBLISHED_BYTES)


def decode_request(data: bytes) -> Request:
    """Decode what a subscriber asks; RemoteProtocolError says what is wrong with it."""
    return _decode(_request, data, MAX_REQUEST_BYTES)


def decode_answer(data: bytes) -> Answer:
    """Decode what a node answers; RemoteProtocolError says what is wrong with it."""
    return _decode(_answer, data, MAX_ANSWER_BYTES)


def topic_frame(topic: str) -> bytes:
    """The first frame of a Page."""
    return (_OF_CONFIDENTIAL if topic == CONFIDENTIAL else _OF_TOPIC) + topic.encode() + _END


def head_frame(subscriber: str) -> bytes:
    """The first frame of a Head, which only that subscriber may have."""
    return _OF_SUBSCRIBER + subscriber.encode() + _END


def subscription(pattern: str) -> bytes:
    """What a SUB socket subscribes to for a pattern: a prefix of the first frames of its Pages."""
    if pattern == "*":
        return _OF_TOPIC
    if pattern.endswith(".*"):
        return _OF_TOPIC + pattern[:-1].encode()
    return topic_frame(pattern)


def pattern_of(wanted: bytes) -> str | None:
    """The pattern of a subscription; None if it is not one, such as a prefix that ends within a word."""
    try:
        text = wanted[1:].decode("ascii")
    except UnicodeDecodeError:
        return None
    pattern = text[:-1] if text.endswith("\0") else text + "*"
    try:
        msgspec.convert(pattern, Pattern)
    except msgspec.ValidationError:
        return None
    return pattern if subscription(pattern) == wanted else None


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes, limit: int) -> T:
    if len(data) > limit:
        raise RemoteProtocolError(f"oversized message about events, of {len(data)} bytes")
    try:
        message = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a ValidationError is a DecodeError
        raise RemoteProtocolError(f"malformed message about events: {error}") from None
    if _encoder.encode(message) != data:
        raise RemoteProtocolError("message about events not in its canonical encoding")
    return message
