"""Checkpoints: the texts that are signed, and everything that is not one."""

import base64
import hashlib
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from signing import OTHER, PUBLIC, SIGNING, Signing

from qkdnode.audit.checkpoint import (
    Checkpoint,
    checkpoint_body,
    cosign,
    key_id,
    parse,
    sign_checkpoint,
    verify,
    verify_cosignature,
)
from qkdnode.errors import AuditError

CHECKPOINT = Checkpoint("node-a.audit", 180, hashlib.sha256(b"root").digest(), 1_700_000_000_000_000_000)
NOTE = sign_checkpoint(CHECKPOINT, SIGNING)
BODY = checkpoint_body(CHECKPOINT.origin, CHECKPOINT.size, CHECKPOINT.root, CHECKPOINT.time_ns)
TIME_S = 1_700_000_000


def ed25519_line(body: str, name: str = "node-a.audit", key: Signing = SIGNING) -> str:
    """Any text, properly signed."""
    signed = key_id(name, key.log_key[:32]) + key.sign(body.encode())
    return f"— {name} {base64.b64encode(signed).decode()}\n"


def mldsa44_line(
    checkpoint: Checkpoint = CHECKPOINT, name: str = "node-a.audit", time_s: int = TIME_S, key: Signing = SIGNING
) -> str:
    """What tlog-cosignature writes, put together here once more."""
    signer, origin = name.encode(), checkpoint.origin.encode()
    message = b"subtree/v1\n\0" + bytes([len(signer)]) + signer + struct.pack(">Q", time_s)
    message += bytes([len(origin)]) + origin + struct.pack(">QQ", 0, checkpoint.size) + checkpoint.root
    blob = hashlib.sha256(signer + b"\n\x06" + key.log_key[32:]).digest()[:4] + struct.pack(">Q", time_s)
    return f"— {name} {base64.b64encode(blob + key.sign_mldsa44(message)).decode()}\n"


def note_over(body: str) -> str:
    return f"{body}\n{ed25519_line(body)}{mldsa44_line()}"


def test_the_note_is_the_text_of_the_format() -> None:
    root = base64.b64encode(CHECKPOINT.root).decode()
    assert f"node-a.audit\n180\n{root}\ntime_ns 1700000000000000000\n" == BODY
    body, lines = NOTE.split("\n\n")
    assert (body + "\n", lines.splitlines(keepends=True)[0]) == (BODY, ed25519_line(BODY))
    assert [len(line.signature) for line in parse(NOTE).signatures] == [64, 8 + 2420]
    assert [line.key_id for line in parse(NOTE).signatures] == [
        hashlib.sha256(b"node-a.audit\n\x01" + PUBLIC[:32]).digest()[:4],
        hashlib.sha256(b"node-a.audit\n\x06" + PUBLIC[32:]).digest()[:4],
    ]
    assert verify(note_over(BODY), PUBLIC) == CHECKPOINT


def test_the_key_id_is_that_of_the_signed_note_format() -> None:
    """The example keys in the documentation of golang.org/x/mod/sumdb/note and of C2SP signed-note."""
    material = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert material[0] == 1
    assert key_id("PeterNeumann", material[1:]).hex() == "c74f20a3"
    material = base64.b64decode("AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
    assert key_id("example.com/foo", material[1:]).hex() == "530d903a"
    signed = base64.b64decode(
        "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
    )
    assert signed[:4].hex() == "530d903a"
    Ed25519PublicKey.from_public_bytes(material[1:]).verify(signed[4:], b"This is an example message.\n")


@pytest.mark.parametrize("time_ns", [None, 0, 1_700_000_000_000_000_000, 1_700_000_000_999_999_999])
def test_a_signed_checkpoint_verifies(time_ns: int | None) -> None:
    checkpoint = Checkpoint("a", 0, bytes(32), time_ns)
    assert verify(sign_checkpoint(checkpoint, SIGNING), PUBLIC) == checkpoint


def test_no_changed_character_verifies() -> None:
    places = [*range(NOTE.index("a.audit", 150) + 200), *range(len(NOTE) - 400, len(NOTE)), *range(400, len(NOTE), 97)]
    for i in places:
        character = NOTE[i]
        for changed in {chr(ord(character) ^ 1), chr(ord(character) ^ 32), "A", ""} - {character}:
            with pytest.raises(AuditError):
                verify(NOTE[:i] + changed + NOTE[i + 1 :], PUBLIC)


def test_another_key_or_name_does_not_verify() -> None:
    ed25519, mldsa44 = ed25519_line(BODY), mldsa44_line()
    for lines in (
        ed25519_line(BODY, key=OTHER) + mldsa44,
        ed25519 + mldsa44_line(key=OTHER),
        ed25519_line(BODY, "node-b.audit") + mldsa44,
        ed25519 + mldsa44_line(name="node-b.audit"),
    ):
        with pytest.raises(AuditError, match="does not carry one"):
            verify(f"{BODY}\n{lines}", PUBLIC)
    with pytest.raises(AuditError, match="does not carry one"):
        verify(NOTE, OTHER.log_key)
    with pytest.raises(AuditError, match="1344 bytes"):
        verify(NOTE, PUBLIC[:32])


def cut(line: str) -> str:
    *before, blob = line.split(" ")
    return " ".join([*before, base64.b64encode(base64.b64decode(blob)[:-3]).decode()]) + "\n"


LINES = {
    "the Ed25519 line is stripped": mldsa44_line(),
    "the ML-DSA-44 line is stripped": ed25519_line(BODY),
    "the lines are swapped": mldsa44_line() + ed25519_line(BODY),
    "the ML-DSA-44 signature is of another size": ed25519_line(BODY)
    + mldsa44_line(Checkpoint("node-a.audit", 181, CHECKPOINT.root)),
    "the ML-DSA-44 signature is of another root": ed25519_line(BODY)
    + mldsa44_line(Checkpoint("node-a.audit", 180, bytes(32))),
    "the ML-DSA-44 signature is of another log": ed25519_line(BODY)
    + mldsa44_line(Checkpoint("node-b.audit", 180, CHECKPOINT.root)),
    "the ML-DSA-44 signature is of another time": ed25519_line(BODY) + mldsa44_line(time_s=TIME_S + 1),
    "the Ed25519 signature is of another text": ed25519_line(BODY.replace("180", "181")) + mldsa44_line(),
    "the ML-DSA-44 signature is cut short": ed25519_line(BODY) + cut(mldsa44_line()),
    "the Ed25519 signature is cut short": cut(ed25519_line(BODY)) + mldsa44_line(),
    "the Ed25519 line stands twice": ed25519_line(BODY) + ed25519_line(BODY) + mldsa44_line(),
    "the ML-DSA-44 line stands twice": ed25519_line(BODY) + 2 * mldsa44_line(),
    "another line comes first": ed25519_line(BODY, "node-b.audit") + ed25519_line(BODY) + mldsa44_line(),
}


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES)
def test_a_checkpoint_needs_both_signatures(lines: str) -> None:
    with pytest.raises(AuditError):
        verify(f"{BODY}\n{lines}", PUBLIC)


def test_lines_of_witnesses_are_kept_apart() -> None:
    witnessed = NOTE + cosign("node-b.witness", TIME_S + 9, CHECKPOINT, OTHER)
    assert verify(witnessed, PUBLIC) == CHECKPOINT
    assert [line.name for line in parse(witnessed).signatures] == ["node-a.audit", "node-a.audit", "node-b.witness"]


def test_a_cosignature_is_of_one_witness_for_one_checkpoint() -> None:
    line = cosign("node-b.witness", TIME_S + 9, CHECKPOINT, OTHER)
    assert verify_cosignature(line, CHECKPOINT, "node-b.witness", OTHER.log_key) == TIME_S + 9
    another = Checkpoint("node-a.audit", 180, bytes(32))
    for checkpoint, name, key in (
        (another, "node-b.witness", OTHER.log_key),
        (CHECKPOINT, "node-c.witness", OTHER.log_key),
        (CHECKPOINT, "node-b.witness", PUBLIC),
    ):
        with pytest.raises(AuditError):
            verify_cosignature(line, checkpoint, name, key)
    for changed in (line[:-6] + "\n", line.replace("node-b", "node-c"), line + line, "", line[2:]):
        with pytest.raises(AuditError):
            verify_cosignature(changed, CHECKPOINT, "node-b.witness", OTHER.log_key)


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
