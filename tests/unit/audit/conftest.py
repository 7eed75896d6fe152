"""A log to export: 187 entries in three topics, a checkpoint each 60, so that the last seven are unsigned."""

import base64
from collections.abc import Callable
from functools import cache

import msgspec
import pytest
from signing import PUBLIC, SIGNING

from qkdnode.audit.checkpoint import Checkpoint, cosign, key_id, parse, sign_checkpoint
from qkdnode.audit.events import KeyEvent, encode
from qkdnode.audit.export import write_export
from qkdnode.audit.merkle import Frontier, leaf_hash

ORIGIN = "node-a.audit"
TOPICS = ("link/a-b", "keys", "node")


def leaf_of(position: int, subject: str = "") -> bytes:
    return encode(
        KeyEvent(
            time_ns=1_700_000_000_000_000_000 + position,
            node="a",
            topic=TOPICS[position % 3],
            topic_sequence=position // 3 + 1,
            kind="key.allocated",
            subject=subject or f"key-{position}",
            details={"bits": 256, "where": 'Zürich "north"', "again": False},
        )
    )


@cache  # signatures of ML-DSA-44 are different each time
def signed(size: int, root: bytes) -> str:
    return sign_checkpoint(Checkpoint(ORIGIN, size, root, 1_700_000_000_000_000_000 + size), SIGNING)


class Log:
    """Writes exports of any leaves, honestly or not."""

    origin = ORIGIN
    public_key = PUBLIC

    def __init__(self) -> None:
        self.leaves = [leaf_of(position) for position in range(187)]

    def note(self, size: int, leaves: list[bytes] | None = None) -> str:
        return signed(size, Frontier(leaf_hash(leaf) for leaf in (leaves or self.leaves)[:size]).root())

    def foreign_note(self, size: int) -> str:
        """The text of another log's checkpoint, signed under this log's name."""
        body = self.note(size).partition("\n\n")[0].replace("node-a", "node-b") + "\n"
        checkpoint = parse(self.note(size)).checkpoint
        signature = base64.b64encode(key_id(ORIGIN, PUBLIC[:32]) + SIGNING.sign(body.encode())).decode()
        foreign = msgspec.structs.replace(checkpoint, origin="node-b.audit")
        line = cosign(ORIGIN, (checkpoint.time_ns or 0) // 10**9, foreign, SIGNING)
        return f"{body}\n— {ORIGIN} {signature}\n{line}"

    def lines(self, sizes: tuple[int, ...] = (60, 120, 180)) -> list[str]:
        """Line 0 is the header, 1-60 entries, 61 checkpoint 1, 62-121 entries, 122 checkpoint 2, ..."""
        return list(write_export(ORIGIN, PUBLIC, self.leaves, ((size, self.note(size)) for size in sizes)))

    def line_of(self, leaf: bytes) -> str:
        """A leaf as an entry with its true hash."""
        return list(write_export(ORIGIN, PUBLIC, [leaf], []))[1]

    leaf_of: Callable[..., bytes] = staticmethod(leaf_of)


@pytest.fixture(scope="session")
def log() -> Log:
    return Log()
