"""Files that a person puts in place: configuration, identities, pair files, and the list of allowed keys."""

import base64
import hashlib
import math
import os
import re
import tempfile
from collections.abc import Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from zmq.utils import z85

from fuzz.engine import Violation
from fuzz.mutation import as_bytes
from qkdnode.access.allowlist import AllowList
from qkdnode.access.identities import NodeIdentity, decode_public, encode_public
from qkdnode.audit.checkpoint import LOG_KEY_BYTES
from qkdnode.channel.identity import OwnIdentity, _assemble, load_identity, signature_is_valid
from qkdnode.cli.audit import public_key
from qkdnode.config import load_config
from qkdnode.errors import ConfigError
from qkdnode.ids import PROVISIONED, PadAddress
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.parameters import agreed_parameters
from qkdnode.node.provision import DIGEST_BYTES, PAIR, PAIR_MAGIC, PAIR_VERSION, load_pair
from qkdnode.wire import codec
from qkdnode.wire.messages import Hello

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # one file per input is written
README = Path(__file__).resolve().parents[2] / "README.md"


@cache
def _folder() -> Path:
    """A private directory that goes with this process."""
    folder = tempfile.TemporaryDirectory(prefix="qkdnode-fuzz-", dir=IN_MEMORY)
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _written(name: str, data: bytes) -> Path:
    path = _folder() / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
    return path


# --- configuration  ---


def config_seeds() -> list[bytes]:
    """The README's configuration, which shows every key, and a node with nothing."""
    example = README.read_text().split("```toml\n")[1].split("```")[0]
    small = '[node]\nname = "a"\nidentity = "a.identity"\nvault = "v/vault.db"\nroot_key = {credential = "root"}\n'
    return [example.encode(), small.encode()]


def take_config(data: bytes) -> Iterable[Hashable]:
    """A configuration that loads holds finite numbers, and what its links agree on survives the wire."""
    config = load_config(_written("node.toml", data))
    for value in _numbers(config):
        if not math.isfinite(value) or abs(value) > 2**63:
            raise Violation("the configuration holds a number that is not finite, or is beyond 64 bits")
    for link in config.link:
        hello = Hello(agreed_parameters(link), PadAddress(PROVISIONED, 0), (), "fuzz")
        if msgspec.msgpack.decode(codec.encode_body(hello), type=Hello) != hello:
            raise Violation("what the link must agree on does not survive the wire")
    return (len(config.link), len(config.qrng), len(config.application), len(config.association))


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (int, float)):
        return [value]
    if isinstance(value, tuple):
        return [found for part in value for found in _numbers(part)]
    if isinstance(value, msgspec.Struct):
        return [found for name in value.__struct_fields__ for found in _numbers(getattr(value, name))]
    return []


# --- identities  ---


_SECRETS = re.compile(rb'(?<=_secret":")[^"]{36,}')


def identity_of(kind: Any, name: str) -> OwnIdentity:
    """The same keys at every run."""
    secret = z85.encode(hashlib.sha256(name.encode()).digest())
    mldsa44 = SecretBuffer.copy_of(bytes(range(1, 33))) if kind == "node" else None
    return _assemble(kind, name, SecretBuffer.copy_of(secret), SecretBuffer.copy_of(bytes(range(32))), mldsa44)


@cache
def _identity_files() -> tuple[bytes, ...]:
    files = []
    for kind in ("node", "application"):
        with identity_of(kind, f"{kind}-a") as identity:
            files.append(bytes(identity.secret_file()))
    return tuple(files)


def identity_seeds() -> list[bytes]:
    return list(_identity_files())


def take_identity(data: bytes) -> Iterable[Hashable]:
    """An identity that loads can sign, and saves as it was but for spelling."""
    if not data:
        raise ConfigError("empty")
    try:
        identity = load_identity(_written("x.identity", data))
    except ConfigError as error:
        text = str(error).encode()
        if any(found[i : i + 12] in text for found in _SECRETS.findall(data) for i in (0, 12, 24)):
            raise Violation("the refusal quotes the secret file") from None
        raise
    with identity:
        if not signature_is_valid(identity.public, identity.sign(b"text"), b"text"):
            raise Violation("an identity does not verify what it signs")
        if msgspec.json.decode(bytes(identity.secret_file())) != msgspec.json.decode(data):
            raise Violation("an identity saves as another than it was loaded")
        return (type(identity.public),)


@cache
def _public_files() -> tuple[bytes, ...]:
    files = []
    for kind in ("node", "application"):
        with identity_of(kind, f"{kind}-a") as identity:
            files.append(encode_public(identity.public))
    return tuple(files)


def public_seeds() -> list[bytes]:
    return list(_public_files())


def take_public(data: bytes) -> Iterable[Hashable]:
    """A public identity has one spelling of each key, and the allow-list never lets one key stand for two."""
    identity = decode_public(data, "x.public")
    if z85.encode(z85.decode(identity.curve)).decode() != identity.curve:
        raise Violation("a CURVE key in another than its one spelling")
    if base64.b64encode(base64.b64decode(identity.ed25519)).decode() != identity.ed25519:
        raise Violation("an Ed25519 key in another than its one spelling")
    if isinstance(identity, NodeIdentity) and base64.b64encode(identity.log_key[32:]).decode() != identity.mldsa44:
        raise Violation("an ML-DSA-44 key in another than its one spelling")
    if decode_public(encode_public(identity), "x.public") != identity:
        raise Violation("a public identity is not what it encodes to")
    signature_is_valid(identity, bytes(64), b"text")
    allowed = AllowList([identity])
    if allowed.decide(identity.curve).identity != identity or allowed.decide(identity.curve[::-1] + "x").allowed:
        raise Violation("the allow-list does not know whom it allows")
    twin = msgspec.structs.replace(identity, name=identity.name[:30] + "2")
    try:
        AllowList([identity, twin])
    except ConfigError:
        return (type(identity),)
    raise Violation("one CURVE key stands for two identities")


def key_seeds() -> list[bytes]:
    return [base64.b64encode(bytes(range(256)) * 5 + bytes(64)), b"@" + _public_files()[0]]


def take_key_argument(data: bytes) -> Iterable[Hashable]:
    """The --key of `audit verify`: base64, or (behind an @) a file."""
    if data[:1] == b"@":
        text = str(_written("x.public", data[1:]))
    else:
        text = data.decode("utf-8", "replace").replace("\0", "")
    if len(public_key(text)) != LOG_KEY_BYTES:
        raise Violation("a key of another length")
    return (data[:1] == b"@",)


# --- pair files  ---


@cache
def _pair() -> bytes:
    """As `provision_pair` writes it, with a key that is the same at every run."""
    key = bytes(i * 7 & 255 for i in range(1024))
    whole = PAIR.pack(PAIR_MAGIC, PAIR_VERSION, len(key), b"metro", b"a", b"b", bytes(range(16))) + key
    return whole + hashlib.sha256(whole).digest()


def pair_seeds() -> list[bytes]:
    return [b"\0" + _pair(), b"\1" + _pair()]


def as_pair(rng: Any, data: bytes) -> bytes:
    """A field of the header, or the size of the key, with the digest put right where the first byte asks for it."""
    how, body = data[:1] or b"\0", data[1:]
    header, rest = body[: PAIR.size], body[PAIR.size : -DIGEST_BYTES or None]
    choice = rng.random()
    if choice < 0.4:
        header = as_bytes(rng, header)[: PAIR.size].ljust(PAIR.size, b"\0")
    elif choice < 0.7:
        rest = rest[: rng.choice((0, 1, 15, 16, 512, 1000, 1023, len(rest)))]
        header = header[:12] + len(rest).to_bytes(4, "little") + header[16:]
    else:
        return how + as_bytes(rng, body)
    whole = header + rest
    return how + whole + (hashlib.sha256(whole).digest() if how[0] & 1 else body[-DIGEST_BYTES:])


def take_pair(data: bytes) -> Iterable[Hashable]:
    """A pair file that loads is whole, under its digest, and named as its contents say."""
    header, key = load_pair(_written("metro.a.pair", data[1:]))
    with key:
        if hashlib.sha256(data[1:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
            raise Violation("a damaged pair file was loaded")
        with memoryview(key) as view:
            if bytes(view) != data[1 + PAIR.size : -DIGEST_BYTES] or len(view) != header.key_bytes:
                raise Violation("the key is not what the file holds")
        if (header.link, "a" in (header.alice, header.bob)) != ("metro", True):
            raise Violation("the file's name says otherwise")
        if header.alice == header.bob:
            raise Violation("a pair of one node with itself")
        if header.key_bytes % 1024 or not header.key_bytes >= 1024:
            raise Violation(f"a pair file of {header.key_bytes} bytes, which `provision` never writes")
    assert isinstance(key, SecretBuffer)
    return (header.key_bytes,)
