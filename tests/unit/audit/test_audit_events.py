"""Leaves: one event, one spelling, nothing but plain facts."""

import enum
import json
from typing import Any

import pytest

from qkdnode.audit.events import (
    MAX_LEAF_BYTES,
    AccessEvent,
    AlarmEvent,
    AnyEvent,
    DeviceEvent,
    KeyEvent,
    LinkEvent,
    NodeEvent,
    decode,
    encode,
    numbered,
)
from qkdnode.errors import AuditError

TYPES: list[type[AnyEvent]] = [KeyEvent, LinkEvent, DeviceEvent, AccessEvent, AlarmEvent, NodeEvent]


def event(of: type[AnyEvent] = KeyEvent, **fields: Any) -> AnyEvent:
    common: dict[str, Any] = {
        "time_ns": 1_700_000_000_000_000_000,
        "node": "a",
        "topic": "link/a-b",
        "kind": "key.allocated",
        "subject": "0000-01",
    }
    return of(**(common | fields))


def spelling(**changes: Any) -> bytes:
    """A leaf as another program would write it."""
    fields = json.loads(encode(event(details={"n": 1}))) | changes
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("of", TYPES)
def test_an_event_survives_its_leaf(of: type[AnyEvent]) -> None:
    details = {"bits": 256, "qber": 0.0213, "retried": False, "reason": None, "where": "Jyväskylä"}
    first = numbered(event(of, details=details, outcome="refused"), 7)
    again = decode(encode(first))
    assert type(again) is of
    assert again == first
    assert again.topic_sequence == 7


def test_the_leaf_is_sorted_json_without_spaces() -> None:
    leaf = encode(event(details={"z": 1, "a": "é"}))
    assert (
        leaf
        == (
            '{"details":{"a":"é","z":1},"kind":"key.allocated","node":"a","outcome":"done","subject":"0000-01",'
            '"time_ns":1700000000000000000,"topic":"link/a-b","topic_sequence":0,"type":"key","version":1}'
        ).encode()
    )
    assert leaf == spelling(details={"a": "é", "z": 1})


def test_a_leaf_names_keys_and_without_any_keeps_its_bytes() -> None:
    named = event(keys=("k1", "k2"))
    assert b'"keys":["k1","k2"],"kind"' in encode(named)
    assert decode(encode(named)) == named
    assert decode(encode(named)).keys == ("k1", "k2")
    assert b"keys" not in encode(event())
    assert not decode(encode(event())).keys


def test_a_leaf_has_room_for_the_keys_of_a_bundle_under_their_pseudonyms() -> None:
    keys = tuple(f"{number:032x}" for number in range(128))
    assert len(encode(event(keys=keys, details={"bits": 256}))) < MAX_LEAF_BYTES // 2
    with pytest.raises(AuditError, match="length <= 128"):
        encode(event(keys=(*keys, "one more")))


def test_the_order_of_details_does_not_matter() -> None:
    assert encode(event(details={"a": 1, "b": 2})) == encode(event(details={"b": 2, "a": 1}))


@pytest.mark.parametrize(
    "leaf",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        encode(event()) + b"\n",
        encode(event()).replace(b":", b": ", 1),
        encode(event()).replace(b'"a"', b'"\\u0061"'),
        encode(event())[:-1] + b',"version":1}',
        spelling(type="sermon"),
        spelling(version=2),
        spelling(time_ns=-1),
        spelling(time_ns="1"),
        spelling(kind="key"),
        spelling(keys=[]),
        spelling(keys=None),
        spelling(keys=[""]),
        spelling(keys=[1]),
        spelling(keys="k1"),
        spelling(kind="key.allocated\n"),
        spelling(outcome="done\n"),
        spelling(details={"n\n": 1}),
        spelling(extra=1),
        spelling(details={"n": [1]}),
        spelling(details={"n": {}}),
        spelling(details={"N": 1}),
        spelling(details={"n": "x" * 257}),
        spelling(details={f"n{i}": i for i in range(65)}),
        spelling(subject=""),
    ],
)
def test_any_other_bytes_are_refused(leaf: bytes) -> None:
    with pytest.raises(AuditError):
        decode(leaf)


def test_a_leaf_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(AuditError, match="over the limit"):
        decode(b" " * (MAX_LEAF_BYTES + 1))


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [b"key", bytearray(b"key"), memoryview(b"key"), [1], {"a": 1}, object(), float("nan"), float("inf"), Colour.RED,
     1 << 63, 1 << 200],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_only_plain_facts_become_details(value: Any) -> None:
    with pytest.raises(AuditError, match=r"key\.allocated"):
        encode(event(details={"value": value}))


def test_a_long_detail_is_refused_where_it_is_written() -> None:
    encode(event(details={"text": "x" * 256}))
    with pytest.raises(AuditError, match="longer than 256"):
        encode(event(details={"text": "x" * 257}))


def test_an_event_that_makes_too_large_a_leaf_is_refused() -> None:
    with pytest.raises(AuditError, match="over the limit"):
        encode(event(details={f"n{i}": "\x01" * 250 for i in range(20)}))


@pytest.mark.parametrize("fields", [{"kind": "Key"}, {"node": ""}, {"time_ns": -1}, {"outcome": "not so good"}])
def test_a_malformed_event_is_refused_where_it_is_written(fields: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match="cannot be a leaf"):
        encode(event(**fields))
