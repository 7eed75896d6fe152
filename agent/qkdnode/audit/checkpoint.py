"""Checkpoints: what the node signs about its log, as text (C2SP tlog-checkpoint in a C2SP signed-note).

    origin                         the name of the log, and of its key
    size                           leaves, decimal
    base64(root)
    time_ns 1700000000000000000    optional: wall clock at signing
                                   an empty line
    — origin base64(key id 4 | Ed25519 signature 64)
    — origin base64(key id 4 | time 8 | ML-DSA-44 signature 2420)

The Ed25519 signature (type 0x01 of signed-note) covers everything up to the empty line, exclusive. The one of ML-DSA-44
(type 0x06, tlog-cosignature) covers the signer's name, the time in seconds, the origin, the size and the root; its time
is that of the third line, rounded down, or 0 without one. Both must verify. Lines of others may follow: a witness signs
the same as the ML-DSA-44 line does, under its own name, and everything else is passed over.

A log's key is 32 bytes of Ed25519 and then 1312 of ML-DSA-44.
"""

import base64
import binascii
import hashlib
import re
import struct
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from qkdnode.audit.merkle import HASH_BYTES, MAX_LEAVES
from qkdnode.errors import AuditError

MAX_NOTE_CHARACTERS = 64 * 1024  # 16 signatures of ML-DSA-44 and more
MAX_OWN_CHARACTERS = 8 * 1024  # of a note that nobody has cosigned
KEY_ID_BYTES = 4
ED25519_BYTES, MLDSA44_BYTES = 32, 1312
LOG_KEY_BYTES = ED25519_BYTES + MLDSA44_BYTES
COSIGNATURE_BYTES = 8 + 2420
_ED25519, _MLDSA44 = b"\x01", b"\x06"  # signature types of signed-note
_SUBTREE = b"subtree/v1\n\0"
_SECOND_NS = 10**9
_TIMESTAMP = struct.Struct(">Q")
_ORIGIN = re.compile(r"[!-*,-~]{1,128}")  # printable ASCII, no plus
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_TIME = re.compile(r"time_ns (0|[1-9][0-9]{0,18})")
_SIGNATURE = re.compile(r"\u2014 ([!-*,-~]{1,128}) ([A-Za-z0-9+/]+={0,2})")


class Signer(Protocol):
    """Who signs a log: a node's identity."""

    @property
    def log_key(self) -> bytes: ...  # that verifies both
    def sign(self, message: bytes) -> bytes: ...  # Ed25519
    def sign_mldsa44(self, message: bytes) -> bytes: ...


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
    """The text that Ed25519 signs. ValueError if a part cannot stand in it."""
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"a log cannot be called {origin!r}: printable ASCII, no spaces or plus signs")
    if not 0 <= size <= MAX_LEAVES or len(root) != HASH_BYTES:
        raise ValueError(f"a checkpoint needs a size and a root of {HASH_BYTES} bytes, not {size} and {len(root)}")
    if time_ns is not None and not 0 <= time_ns <= MAX_LEAVES:
        raise ValueError(f"a checkpoint cannot be of time {time_ns}")
    lines = [origin, str(size), base64.b64encode(root).decode()]
    if time_ns is not None:
        lines.append(f"time_ns {time_ns}")
    return "\n".join(lines) + "\n"


def cosigned_message(name: str, time_s: int, checkpoint: Checkpoint) -> bytes:
    """What ML-DSA-44 signs under a signer's name: tlog-cosignature, the whole tree."""
    signer, origin = name.encode(), checkpoint.origin.encode()
    return b"".join(
        (
            _SUBTREE,
            bytes((len(signer),)) + signer,
            _TIMESTAMP.pack(time_s),
            bytes((len(origin),)) + origin,
            _TIMESTAMP.pack(0),
            _TIMESTAMP.pack(checkpoint.size),
            checkpoint.root,
        )
    )


def key_id(name: str, public_key: bytes) -> bytes:
    """4 bytes that tell keys of one name apart; the key's length tells its type."""
    kind = _ED25519 if len(public_key) == ED25519_BYTES else _MLDSA44
    return hashlib.sha256(name.encode() + b"\n" + kind + public_key).digest()[:KEY_ID_BYTES]


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> str:
    """The note of a checkpoint of the signer's own log."""
    body = checkpoint_body(checkpoint.origin, checkpoint.size, checkpoint.root, checkpoint.time_ns)
    ed25519 = key_id(checkpoint.origin, signer.log_key[:ED25519_BYTES]) + signer.sign(body.encode())
    mldsa44 = cosign(checkpoint.origin, (checkpoint.time_ns or 0) // _SECOND_NS, checkpoint, signer)
    return f"{body}\n{_line(checkpoint.origin, ed25519)}{mldsa44}"


def cosign(name: str, time_s: int, checkpoint: Checkpoint, signer: Signer) -> str:
    """The line under a note that says that the signer has seen the log grow to this checkpoint."""
    signature = signer.sign_mldsa44(cosigned_message(name, time_s, checkpoint))
    return _line(name, key_id(name, signer.log_key[ED25519_BYTES:]) + _TIMESTAMP.pack(time_s) + signature)


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


def verify(note: str, log_key: bytes) -> Checkpoint:
    """The checkpoint of a note that begins with both signatures of this key under the log's name; AuditError if not."""
    parsed = parse(note)
    checkpoint, origin = parsed.checkpoint, parsed.checkpoint.origin
    ed25519, mldsa44 = _split(log_key)
    wanted = [(origin, key_id(origin, ed25519)), (origin, key_id(origin, mldsa44))]
    if [(line.name, line.key_id) for line in parsed.signatures if (line.name, line.key_id) in wanted] != wanted:
        raise AuditError(
            f"the checkpoint of {origin!r} does not carry one Ed25519 and one ML-DSA-44 signature of the given key"
        )
    if [(line.name, line.key_id) for line in parsed.signatures[:2]] != wanted:
        raise AuditError(f"the checkpoint of {origin!r} does not begin with the signatures of the given key")
    try:
        Ed25519PublicKey.from_public_bytes(ed25519).verify(parsed.signatures[0].signature, parsed.body.encode())
    except InvalidSignature:
        raise AuditError(f"the Ed25519 signature of the checkpoint of {origin!r} does not verify") from None
    time_s = _verify_cosignature(parsed.signatures[1], checkpoint, mldsa44)
    if time_s != (checkpoint.time_ns or 0) // _SECOND_NS:
        raise AuditError(f"the two signatures of the checkpoint of {origin!r} are of different times")
    return checkpoint


def verify_cosignature(line: str, checkpoint: Checkpoint, name: str, log_key: bytes) -> int:
    """When the witness of this name and key signed the checkpoint, in seconds; AuditError if its line does not say."""
    signature = _signature(line.removesuffix("\n"))
    _, mldsa44 = _split(log_key)
    if (signature.name, signature.key_id) != (name, key_id(name, mldsa44)):
        raise AuditError(f"a cosignature of {signature.name!r} where {name!r} is expected")
    return _verify_cosignature(signature, checkpoint, mldsa44)


def _verify_cosignature(line: Signature, checkpoint: Checkpoint, public_key: bytes) -> int:
    if len(line.signature) != COSIGNATURE_BYTES:
        raise AuditError(f"the ML-DSA-44 signature of {line.name!r} has {len(line.signature)} bytes")
    (time_s,) = _TIMESTAMP.unpack_from(line.signature)
    message = cosigned_message(line.name, time_s, checkpoint)
    try:
        MLDSA44PublicKey.from_public_bytes(public_key).verify(line.signature[_TIMESTAMP.size :], message)
    except InvalidSignature:
        raise AuditError(
            f"the ML-DSA-44 signature of {line.name!r} on the checkpoint of {checkpoint.origin!r} does not verify"
        ) from None
    return int(time_s)


def _split(log_key: bytes) -> tuple[bytes, bytes]:
    if len(log_key) != LOG_KEY_BYTES:
        raise AuditError(f"the key of a log has {LOG_KEY_BYTES} bytes, not {len(log_key)}")
    return log_key[:ED25519_BYTES], log_key[ED25519_BYTES:]


def _line(name: str, blob: bytes) -> str:
    return f"\u2014 {name} {base64.b64encode(blob).decode()}\n"


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
