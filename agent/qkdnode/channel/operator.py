"""Operators on disk: NAME.operator signs requests at a control socket, NAME.public is what a node knows of them."""

import base64
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from qkdnode.access.identities import Ed25519Text, OperatorIdentity, decode_public_operator
from qkdnode.channel.identity import MAX_FILE_BYTES, read_secret
from qkdnode.config import Name
from qkdnode.errors import ConfigError
from qkdnode.native.secret import SecretBuffer, wipe

SEED_BYTES = 32


class OperatorFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of NAME.operator."""

    kind: Literal["operator"]
    name: Name
    ed25519_secret: Ed25519Text


class OwnOperator:
    """An operator's own name and key; the secret half is in locked memory until `release`."""

    def __init__(self, public: OperatorIdentity, seed: SecretBuffer) -> None:
        self.public = public
        self._seed = seed

    @property
    def name(self) -> str:
        """The name that the key proves."""
        return self.public.name

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature; the library's copy of the key lives for this call."""
        return Ed25519PrivateKey.from_private_bytes(memoryview(self._seed)).sign(message)

    def secret_file(self) -> bytearray:
        """The contents of NAME.operator, which the caller wipes."""
        with memoryview(self._seed) as seed:
            fields = OperatorFile(kind="operator", name=self.name, ed25519_secret=base64.b64encode(seed).decode())
        text = bytearray()
        msgspec.json.Encoder().encode_into(fields, text)
        return text

    def release(self) -> None:
        """Wipe the secret half."""
        self._seed.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def make_operator(name: str) -> OwnOperator:
    """A new key for a name, from the operating system's random numbers."""
    seed = SecretBuffer(SEED_BYTES)
    with memoryview(seed) as view, open("/dev/urandom", "rb", buffering=0) as source:
        if source.readinto(view) != len(view):
            raise ConfigError("the operating system gave no random numbers")
    return _assemble(name, seed)


def load_operator(path: Path | str) -> OwnOperator:
    """The operator in a NAME.operator file; ConfigError if others may read it or it is not one."""
    path = Path(path)
    data = read_secret(path, MAX_FILE_BYTES)
    try:
        fields = msgspec.json.decode(data, type=OperatorFile)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # The decoder's message may quote the secret.
        raise ConfigError(f"{path} is no operator: give the NAME.operator file that `provision` wrote") from None
    finally:
        wipe(data)
    try:
        seed = bytearray(base64.b64decode(fields.ed25519_secret, validate=True))
    except ValueError:
        raise ConfigError(f"{path} is damaged: provision the operator anew") from None
    try:
        return _assemble(fields.name, SecretBuffer.copy_of(seed))
    finally:
        wipe(seed)


def load_public_operator(path: Path | str) -> OperatorIdentity:
    """The operator in a NAME.public file."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return decode_public_operator(data, str(path))


def operator_signed(operator: OperatorIdentity, signature: bytes, message: bytes) -> bool:
    """Whether an operator signed a message."""
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(operator.ed25519)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _assemble(name: str, seed: SecretBuffer) -> OwnOperator:
    signing = Ed25519PrivateKey.from_private_bytes(memoryview(seed)).public_key().public_bytes_raw()
    return OwnOperator(OperatorIdentity(name=name, ed25519=base64.b64encode(signing).decode()), seed)
