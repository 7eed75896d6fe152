"""Key material does not reach the log."""

import io
import json

import pytest

from qkdnode.native.secret import SecretBuffer, WorkingBuffer
from qkdnode.watch import log

MARKER = b"MARKERMARKERMARKERMARKERMARKER32"


@pytest.mark.parametrize(
    "value",
    [
        MARKER,
        bytearray(MARKER),
        memoryview(MARKER),
        SecretBuffer.copy_of(MARKER),
        WorkingBuffer.copy_of(MARKER),
        {"deep": [{"deeper": (MARKER,)}]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_buffers_are_refused_however_deep(value: object) -> None:
    stream = io.StringIO()
    log.configure(stream).info("event", field=value)
    assert "MARKER" not in stream.getvalue()
    assert log.REFUSED in stream.getvalue()


def test_plain_values_are_logged_as_json_lines() -> None:
    stream = io.StringIO()
    log.configure(stream).bind(node="a").warning("alarm", count=3, ratio=0.5, none=None, names=["x"])
    line = json.loads(stream.getvalue())
    assert (line["event"], line["node"], line["count"], line["ratio"], line["none"], line["names"]) == (
        "alarm", "a", 3, 0.5, None, ["x"],
    )  # fmt: skip
    assert line["level"] == "warning"


def test_objects_are_logged_as_bounded_text() -> None:
    stream = io.StringIO()
    log.configure(stream).info("event", value=ValueError("x" * 5000))
    assert len(json.loads(stream.getvalue())["value"]) == log.TEXT_MAX
