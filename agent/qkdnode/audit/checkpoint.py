"""Checkpoints: what the node signs about its log, as text (C2SP tlog-checkpoint in a C2SP signed-note, Ed25519).

    origin                         the name of the log, and of its key
    size                           leaves, decimal
    base64(root)
    time_ns 1700000000000000000    optional: wall clock at signing
                                   an empty line
    — origin base64(key id 4 | signature 64)

The signature covers everything up to the empty line, exclusive. Lines of other signers may follow; they are kept
apart and prove nothing here.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from qkdnode.audit.merkle import HASH_BYTES, MAX_LEAVES
from qkdnode.errors import AuditError

MAX_NOTE_CHARACTERS = 8 * 1024
KEY_ID_BYTES = 4
_ED25519 = b"\x01"
_ORIGIN = re.compile(r"[^\s+\x00-\x1f\x7f]{1,128}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_TIME = re.compile(r"time_ns (0|[1-9][0-9]{0,18})")
_SIGNATURE = re.compile(r"\u2014 ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


class Checkpoint(msgspec.Struct, frozen=True):
    """A log at one size."""

    origin: str
    size: int
    root: bytes
    time_ns: int | None = None


class Signature(msgspec.Struct, frozen=True):
    """One signature line of a note, not yet verified."""

    name: str
    key_id: bytes
    signature: bytes


class Note(msgspec.Struct, frozen=True):
    """A checkpoint as parsed: nothing in it is verified."""

    checkpoint: Checkpoint
    body: str
    signatures: tuple[Signature, ...]


def checkpoint_body(origin: str, size: int, root: bytes, time_ns: int | None = None) -> str:
    """The text that is signed. ValueError if a part cannot stand in it."""
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"a log cannot be called {origin!r}: no spaces, plus signs or control characters")
    if not 0 <= size <= MAX_LEAVES or len(root) != HASH_BYTES:
        raise ValueError(f"a checkpoint needs a size and a root of {HASH_BYTES} bytes, not {size} and {len(root)}")
    if time_ns is not None and not 0 <= time_ns <= MAX_LEAVES:
        raise ValueError(f"a checkpoint cannot be of time {time_ns}")
    lines = [origin, str(size), base64.b64encode(root).decode()]
    if time_ns is not None:
        lines.append(f"time_ns {time_ns}")
    return "\n".join(lines) + "\n"


def key_id(name: str, public_key: bytes) -> bytes:
    """4 bytes that tell keys of one name apart."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:KEY_ID_BYTES]


def sign_checkpoint(checkpoint: Checkpoint, public_key: bytes, sign: Callable[[bytes], bytes]) -> str:
    """The note of a checkpoint; `sign` makes the Ed25519 signature that `public_key` verifies."""
    body = checkpoint_body(checkpoint.origin, checkpoint.size, checkpoint.root, checkpoint.time_ns)
    signature = key_id(checkpoint.origin, public_key) + sign(body.encode())
    return f"{body}\n\u2014 {checkpoint.origin} {base64.b64encode(signature).decode()}\n"


def parse(note: str) -> Note:
    """Take a note apart, strictly. AuditError says what is wrong."""
    if len(note) > MAX_NOTE_CHARACTERS:
        raise AuditError(f"a checkpoint of {len(note)} characters is over the limit of {MAX_NOTE_CHARACTERS}")
    body, gap, tail = note.partition("\n\n")
    lines = body.split("\n")
    if not gap or len(lines) not in (3, 4) or not tail.endswith("\n"):
        raise AuditError("not a checkpoint: origin, size, root and a signature are expected, each on its line")
    origin, size, root = lines[:3]
    if not _ORIGIN.fullmatch(origin):
        raise AuditError(f"the checkpoint's origin {origin!r} is no name of a log")
    if not _NUMBER.fullmatch(size) or int(size) > MAX_LEAVES:
        raise AuditError(f"the checkpoint's size {size!r} is no number of leaves")
    time = _TIME.fullmatch(lines[3]) if len(lines) == 4 else None
    if len(lines) == 4 and (time is None or int(time[1]) > MAX_LEAVES):
        raise AuditError(f"the checkpoint's line {lines[3]!r} is unknown")
    checkpoint = Checkpoint(origin, int(size), _base64(root, HASH_BYTES, "root"), int(time[1]) if time else None)
    return Note(checkpoint, body + "\n", tuple(_signature(line) for line in tail[:-1].split("\n")))


def verify(note: str, public_key: bytes) -> Checkpoint:
    """The checkpoint of a note that this key signed under the log's own name; AuditError otherwise."""
    parsed = parse(note)
    origin = parsed.checkpoint.origin
    wanted = key_id(origin, public_key)
    signatures = [line for line in parsed.signatures if (line.name, line.key_id) == (origin, wanted)]
    if len(signatures) != 1:
        raise AuditError(f"the checkpoint of {origin!r} carries {len(signatures)} signatures of the given key, not one")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signatures[0].signature, parsed.body.encode())
    except InvalidSignature:
        raise AuditError(f"the signature of the checkpoint of {origin!r} does not verify") from None
    return parsed.checkpoint


def _signature(line: str) -> Signature:
    match = _SIGNATURE.fullmatch(line)
    if match is None:
        raise AuditError(f"not a signature line: {line[:80]!r}")
    blob = _base64(match[2], None, "signature")
    if len(blob) <= KEY_ID_BYTES:
        raise AuditError("a signature in the checkpoint is cut short")
    return Signature(match[1], blob[:KEY_ID_BYTES], blob[KEY_ID_BYTES:])


def _base64(text: str, size: int | None, what: str) -> bytes:
    """Decode the one canonical spelling: unused bits of the last character are zero."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if base64.b64encode(data).decode() != text or (size is not None and len(data) != size):
        raise AuditError(f"the checkpoint's {what} is not proper base64")
    return data
