"""Structured logs: one JSON object per line, from which key material is kept out."""

import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from qkdnode.native.secret import LockedBuffer

KEY_LIKE = (bytes, bytearray, memoryview, LockedBuffer)
REFUSED = "<refused: key material is not logged>"
TEXT_MAX = 1_000


def _cleaned(value: Any) -> Any:
    if isinstance(value, KEY_LIKE):
        return REFUSED
    if isinstance(value, Mapping):
        return {str(key): _cleaned(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_cleaned(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)[:TEXT_MAX]


def refuse_key_material(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace every value that could hold key bytes, however deep, by a note that it was refused."""
    return {key: _cleaned(value) for key, value in event.items()}


def configure(stream: TextIO | None = None) -> Any:
    """A logger that writes JSON lines to `stream` (standard error by default)."""
    structlog.configure(
        processors=[
            refuse_key_material,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger()
