"""Checkpoints: the text that is signed, and everything that is not it."""

import base64
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qkdnode.audit.checkpoint import Checkpoint, checkpoint_body, key_id, parse, sign_checkpoint, verify
from qkdnode.errors import AuditError

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
CHECKPOINT = Checkpoint("node-a.audit", 180, hashlib.sha256(b"root").digest(), 1_700_000_000_000_000_000)
NOTE = sign_checkpoint(CHECKPOINT, PUBLIC, PRIVATE.sign)
BODY = checkpoint_body(CHECKPOINT.origin, CHECKPOINT.size, CHECKPOINT.root, CHECKPOINT.time_ns)


def note_over(body: str, name: str = "node-a.audit", key: Ed25519PrivateKey = PRIVATE) -> str:
    """Any text, properly signed."""
    signed = key_id(name, key.public_key().public_bytes_raw()) + key.sign(body.encode())
    return f"{body}\n— {name} {base64.b64encode(signed).decode()}\n"


def test_the_note_is_the_text_of_the_format() -> None:
    root = base64.b64encode(CHECKPOINT.root).decode()
    assert f"node-a.audit\n180\n{root}\ntime_ns 1700000000000000000\n" == BODY
    assert note_over(BODY) == NOTE
    assert parse(NOTE).body == BODY


def test_the_key_id_is_that_of_the_signed_note_format() -> None:
    """The example key in the documentation of golang.org/x/mod/sumdb/note."""
    material = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert material[0] == 1
    assert key_id("PeterNeumann", material[1:]).hex() == "c74f20a3"


@pytest.mark.parametrize("time_ns", [None, 0, 1_700_000_000_000_000_000])
def test_a_signed_checkpoint_verifies(time_ns: int | None) -> None:
    checkpoint = Checkpoint("a", 0, bytes(32), time_ns)
    assert verify(sign_checkpoint(checkpoint, PUBLIC, PRIVATE.sign), PUBLIC) == checkpoint


def test_no_changed_character_verifies() -> None:
    for i, character in enumerate(NOTE):
        for changed in {chr(ord(character) ^ 1), chr(ord(character) ^ 32), "A", ""} - {character}:
            with pytest.raises(AuditError):
                verify(NOTE[:i] + changed + NOTE[i + 1 :], PUBLIC)


def test_another_key_or_name_does_not_verify() -> None:
    with pytest.raises(AuditError, match="0 signatures"):
        verify(NOTE, OTHER.public_key().public_bytes_raw())
    with pytest.raises(AuditError, match="0 signatures"):
        verify(note_over(BODY, "node-b.audit"), PUBLIC)
    with pytest.raises(AuditError, match="0 signatures"):
        verify(note_over(BODY, key=OTHER), PUBLIC)


def test_lines_of_witnesses_are_kept_apart() -> None:
    witnessed = NOTE + note_over(BODY, "node-b.witness", OTHER).partition("\n\n")[2]
    assert verify(witnessed, PUBLIC) == CHECKPOINT
    assert [line.name for line in parse(witnessed).signatures] == ["node-a.audit", "node-b.witness"]
    with pytest.raises(AuditError, match="2 signatures"):
        verify(NOTE + NOTE.partition("\n\n")[2], PUBLIC)


ROOT = base64.b64encode(CHECKPOINT.root).decode()


@pytest.mark.parametrize(
    "body",
    [
        f"node a\n180\n{ROOT}\n",
        f"\n180\n{ROOT}\n",
        f"node-a.audit\n0180\n{ROOT}\n",
        f"node-a.audit\n+180\n{ROOT}\n",
        f"node-a.audit\n-1\n{ROOT}\n",
        f"node-a.audit\n9223372036854775808\n{ROOT}\n",
        f"node-a.audit\n١\n{ROOT}\n",
        f"node-a.audit\n180\n{ROOT[:-4]}\n",
        f"node-a.audit\n180\n{ROOT[:-2]}b=\n",
        f"node-a.audit\n180\n{ROOT}\nweather fine\n",
        f"node-a.audit\n180\n{ROOT}\ntime_ns 9223372036854775808\n",
        f"node-a.audit\n180\n{ROOT}\ntime_ns 1\ntime_ns 2\n",
        "node-a.audit\n180\n",
        "",
        f"node-a.audit\n180\n{ROOT}\n" + "x" * 9000,
    ],
)
def test_a_signature_does_not_make_another_text_a_checkpoint(body: str) -> None:
    with pytest.raises(AuditError):
        verify(note_over(body), PUBLIC)


@pytest.mark.parametrize(
    "note", ["", "\n", "\n\n", BODY, BODY + "\n", BODY + "\n— a AAAA\n", BODY + "\n- a AAAAAAAA\n"]
)
def test_an_unsigned_text_is_no_checkpoint(note: str) -> None:
    with pytest.raises(AuditError):
        parse(note)


@pytest.mark.parametrize(
    "parts",
    [("a b", 1, bytes(32)), ("a\n", 1, bytes(32)), ("a", -1, bytes(32)), ("a", 1, bytes(31)), ("a", 1, bytes(32), -1)],
)
def test_what_the_text_cannot_say_is_not_signed(parts: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"checkpoint|called"):
        checkpoint_body(*parts)
