"""Messages about events: what they refuse, and that first frames keep topics apart."""

import msgspec
import pytest

from qkdnode.access.topics import covers
from qkdnode.audit.checkpoint import MAX_OWN_CHARACTERS
from qkdnode.audit.events import MAX_LEAF_BYTES
from qkdnode.errors import RemoteProtocolError
from qkdnode.wire import events as wire
from qkdnode.wire.events import (
    Page,
    Replay,
    Snapshot,
    decode_answer,
    decode_published,
    decode_request,
    encode,
    head_frame,
    pattern_of,
    subscription,
    topic_frame,
)

TOPICS = ("alarm", "alarms", "link", "link.a", "link.a-b", "link.a.b", "links")
PATTERNS = (*TOPICS, "*", "link.*", "link.a.*", "l.*")


def test_the_limits_are_those_of_the_log() -> None:
    assert (wire.MAX_LEAF_BYTES, wire.MAX_NOTE_CHARACTERS) == (MAX_LEAF_BYTES, MAX_OWN_CHARACTERS)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_filter_by_prefix_gives_what_the_rules_give(pattern: str) -> None:
    for topic in TOPICS:
        assert topic_frame(topic).startswith(subscription(pattern)) is covers(pattern, topic)
    assert not head_frame("app").startswith(subscription(pattern))
    assert pattern_of(subscription(pattern)) == pattern


@pytest.mark.parametrize(
    "prefix",
    [
        b"",
        b"=",
        b"=app\0",
        b"+al",
        b"+alarm",
        b"+\0",
        b"+Alarm\0",
        b"+al\0rm\0",
        b"+alarm\0\0",
        b"+\xff.",
        b"+.",
        b"-a\0",
    ],
)
def test_a_prefix_that_is_no_pattern_has_none(prefix: bytes) -> None:
    assert pattern_of(prefix) is None


def test_messages_come_back_as_they_were() -> None:
    page = Page(bytes(16), "alarm", 3, (5, 9), (b"{}", b"[]"))
    assert decode_published(encode(page)) == page
    for request in (Snapshot(1), Replay(2, 3, 4, ("alarm", "link.*"))):
        assert decode_request(encode(request)) == request


@pytest.mark.parametrize(
    "body",
    [
        [1, bytes(16), "alarm", 1, [1, 2], [b"{}"]],  # fewer leaves than positions
        [1, bytes(15), "alarm", 1, [1], [b"{}"]],
        [1, bytes(16), "alarm", 1, [], []],
        [1, bytes(16), "alarm", 1, list(range(257)), [b""] * 257],
        [1, bytes(16), "alarm\0", 1, [1], [b"{}"]],
        [1, bytes(16), "alarm", 1, [1], [bytes(40_000)]],
        [2, bytes(16), 0, 1],
        [2, bytes(16), 0, -1, []],
        [17, 1, 0, 0, ["alarm"]],  # a request is not published
        {"type": 1},
        7,
    ],
)
def test_what_is_not_as_described_is_an_error_that_says_so(body: object) -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode_published(msgspec.msgpack.encode(body))


def test_another_spelling_and_too_much_are_refused() -> None:
    good = encode(Snapshot(1))
    with pytest.raises(RemoteProtocolError, match="canonical"):
        decode_request(bytes([0xDC, 0, 2]) + good[1:])
    with pytest.raises(RemoteProtocolError, match="oversized"):
        decode_request(bytes(wire.MAX_REQUEST_BYTES + 1))
    with pytest.raises(RemoteProtocolError, match="oversized"):
        decode_answer(bytes(wire.MAX_ANSWER_BYTES + 1))


def test_every_request_that_the_limits_allow_fits() -> None:
    longest = Replay(2**32 - 1, 2**63 - 1, 2**63 - 1, tuple(f"{i:0124d}.*" for i in range(wire.MAX_PATTERNS)))
    assert len(encode(longest)) <= wire.MAX_REQUEST_BYTES
    assert decode_request(encode(longest)) == longest
    assert max(map(len, map(subscription, longest.topics))) <= wire.MAX_SUBSCRIPTION_BYTES
