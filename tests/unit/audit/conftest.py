"""A log to export: 187 entries in three topics, a checkpoint each 60, so that the last seven are unsigned."""

import base64
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qkdnode.audit.checkpoint import Checkpoint, key_id, sign_checkpoint
from qkdnode.audit.events import KeyEvent, encode
from qkdnode.audit.export import write_export
from qkdnode.audit.merkle import Frontier, leaf_hash

ORIGIN = "node-a.audit"
TOPICS = ("link/a-b", "keys", "node")
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key().public_bytes_raw()


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


class Log:
    """Writes exports of any leaves, honestly or not."""

    origin = ORIGIN
    public_key = PUBLIC

    def __init__(self) -> None:
        self.leaves = [leaf_of(position) for position in range(187)]

    def note(self, size: int, leaves: list[bytes] | None = None) -> str:
        root = Frontier(leaf_hash(leaf) for leaf in (leaves or self.leaves)[:size]).root()
        return sign_checkpoint(Checkpoint(ORIGIN, size, root, 1_700_000_000_000_000_000 + size), PUBLIC, PRIVATE.sign)

    def foreign_note(self, size: int) -> str:
        """The text of another log's checkpoint, signed under this log's name."""
        body = self.note(size).partition("\n\n")[0].replace("node-a", "node-b") + "\n"
        signature = base64.b64encode(key_id(ORIGIN, PUBLIC) + PRIVATE.sign(body.encode())).decode()
        return f"{body}\n— {ORIGIN} {signature}\n"

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
