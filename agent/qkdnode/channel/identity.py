"""Identities on disk: NAME.identity the secrets of a node or application, NAME.public what others know of it."""

import base64
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from qkdnode.access.identities import (
    ApplicationIdentity,
    CurveText,
    Ed25519Text,
    Identity,
    NodeIdentity,
    decode_public,
)
from qkdnode.channel.curve import CurveKeys, curve_keypair, curve_public
from qkdnode.config import Name
from qkdnode.errors import ConfigError
from qkdnode.native.secret import SecretBuffer, wipe

MAX_FILE_BYTES = 4096
SEED_BYTES = 32


class SecretFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The contents of NAME.identity."""

    kind: Literal["node", "application"]
    name: Name
    curve_secret: CurveText
    ed25519_secret: Ed25519Text
    mldsa44_secret: Ed25519Text | None = None  # a seed of 32 bytes as well; nodes have one

    def __post_init__(self) -> None:
        if (self.kind == "node") is not (self.mldsa44_secret is not None):
            raise ValueError("a node, and nobody else, has a secret of ML-DSA-44")


class OwnIdentity:
    """A node's or an application's own name and keys; the secret halves are in locked memory until `release`."""

    def __init__(
        self,
        public: Identity,
        curve_secret: SecretBuffer,
        signing_seed: SecretBuffer,
        mldsa44_seed: SecretBuffer | None = None,
    ) -> None:
        self.public = public
        self._curve_secret = curve_secret
        self._signing_seed = signing_seed
        self._mldsa44_seed = mldsa44_seed

    @property
    def name(self) -> str:
        """The name that the keys prove."""
        return self.public.name

    @property
    def curve(self) -> CurveKeys:
        """The CURVE pair; its secret half stays owned here."""
        return CurveKeys(self.public.curve, self._curve_secret)

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature; the library's copy of the key lives for this call."""
        return Ed25519PrivateKey.from_private_bytes(memoryview(self._signing_seed)).sign(message)

    @property
    def log_key(self) -> bytes:
        """What verifies the log that this node signs."""
        assert isinstance(self.public, NodeIdentity)
        return self.public.log_key

    def sign_mldsa44(self, message: bytes) -> bytes:
        """A node's signature by ML-DSA-44; the library leaves copies of its seed on the heap (docs/security.md)."""
        assert self._mldsa44_seed is not None
        return MLDSA44PrivateKey.from_seed_bytes(memoryview(self._mldsa44_seed)).sign(message)

    def secret_file(self) -> bytearray:
        """The contents of NAME.identity, which the caller wipes."""
        with memoryview(self._curve_secret) as curve, memoryview(self._signing_seed) as seed:
            fields = SecretFile(
                kind="node" if isinstance(self.public, NodeIdentity) else "application",
                name=self.name,
                curve_secret=str(curve, "ascii"),
                ed25519_secret=base64.b64encode(seed).decode(),
                mldsa44_secret=None if self._mldsa44_seed is None else _text_of(self._mldsa44_seed),
            )
        text = bytearray()
        msgspec.json.Encoder().encode_into(fields, text)
        return text

    def release(self) -> None:
        """Wipe the secret halves."""
        self._curve_secret.release()
        self._signing_seed.release()
        if self._mldsa44_seed is not None:
            self._mldsa44_seed.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def make_identity(kind: Literal["node", "application"], name: str) -> OwnIdentity:
    """New keys for a name, from the operating system's random numbers."""
    curve = curve_keypair()
    return _assemble(kind, name, curve.secret, _new_seed(), _new_seed() if kind == "node" else None)


def load_identity(path: Path | str) -> OwnIdentity:
    """The identity in a NAME.identity file; ConfigError if others may read it or it is not one."""
    path = Path(path)
    data = read_secret(path, MAX_FILE_BYTES)
    try:
        fields = msgspec.json.decode(data, type=SecretFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The decoder's message may quote the secret.
        raise ConfigError(f"{path} is not an identity: give the NAME.identity file that `provision` wrote") from None
    finally:
        wipe(data)
    curve_secret = SecretBuffer.copy_of(fields.curve_secret.encode())
    signing_seed = _seed_of(fields.ed25519_secret)
    mldsa44_seed = None if fields.mldsa44_secret is None else _seed_of(fields.mldsa44_secret)
    try:
        return _assemble(fields.kind, fields.name, curve_secret, signing_seed, mldsa44_seed)
    except ValueError as error:
        for buffer in (curve_secret, signing_seed, mldsa44_seed):
            if buffer is not None:
                buffer.release()
        raise ConfigError(f"{path} is damaged ({error}): put its backup back, or provision the name anew") from None


def load_public(path: Path | str) -> Identity:
    """The identity in a NAME.public file."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return decode_public(data, str(path))


def load_public_node(path: Path | str) -> NodeIdentity:
    """The node in a NAME.public file."""
    identity = load_public(path)
    if not isinstance(identity, NodeIdentity):
        raise ConfigError(f"{path} is the identity of application {identity.name}; a node's is needed here")
    return identity


def load_public_application(path: Path | str) -> ApplicationIdentity:
    """The application in a NAME.public file."""
    identity = load_public(path)
    if not isinstance(identity, ApplicationIdentity):
        raise ConfigError(f"{path} is the identity of node {identity.name}; an application's is needed here")
    return identity


def signature_is_valid(identity: Identity, signature: bytes, message: bytes) -> bool:
    """Whether `identity` signed `message`."""
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(identity.ed25519))
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def read_secret(path: Path, max_bytes: int) -> bytearray:
    """A secret file that only its owner may read, as bytes that the caller wipes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    with open(descriptor, "rb", buffering=0) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise ConfigError(f"{path} is not a file")
        if stat.S_IMODE(state.st_mode) & 0o077:
            raise ConfigError(f"{path} can be read by others than its owner: chmod 600 {path}, and consider it exposed")
        if not 0 < state.st_size <= max_bytes:
            raise ConfigError(f"{path} is {state.st_size} bytes long, which no such file is: it is damaged")
        data = bytearray(state.st_size)
        with memoryview(data) as view:
            done = 0
            while done < len(view) and (count := file.readinto(view[done:])):
                done += count
        if done < len(data):
            wipe(data)
            raise ConfigError(f"{path} ended after {done} of {len(data)} bytes: read it again when nobody writes it")
    return data


def _assemble(
    kind: Literal["node", "application"],
    name: str,
    curve_secret: SecretBuffer,
    seed: SecretBuffer,
    mldsa44_seed: SecretBuffer | None,
) -> OwnIdentity:
    signing = Ed25519PrivateKey.from_private_bytes(memoryview(seed)).public_key().public_bytes_raw()
    curve, ed25519 = curve_public(curve_secret), base64.b64encode(signing).decode()
    if mldsa44_seed is None:
        return OwnIdentity(ApplicationIdentity(name=name, curve=curve, ed25519=ed25519), curve_secret, seed)
    signing = MLDSA44PrivateKey.from_seed_bytes(memoryview(mldsa44_seed)).public_key().public_bytes_raw()
    mldsa44 = base64.b64encode(signing).decode()
    public = NodeIdentity(name=name, curve=curve, ed25519=ed25519, mldsa44=mldsa44)
    return OwnIdentity(public, curve_secret, seed, mldsa44_seed)


def _new_seed() -> SecretBuffer:
    seed = SecretBuffer(SEED_BYTES)
    with memoryview(seed) as view, open("/dev/urandom", "rb", buffering=0) as source:
        if source.readinto(view) != len(view):
            raise ConfigError("the operating system gave no random numbers")
    return seed


def _seed_of(text: str) -> SecretBuffer:
    seed = bytearray(base64.b64decode(text))
    try:
        return SecretBuffer.copy_of(seed)
    finally:
        wipe(seed)


def _text_of(seed: SecretBuffer) -> str:
    with memoryview(seed) as view:
        return base64.b64encode(view).decode()
