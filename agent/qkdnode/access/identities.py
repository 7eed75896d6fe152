"""Public identities of nodes and applications: what one side must know of the other before it listens to it."""

import base64
import hashlib
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from qkdnode.config import Name
from qkdnode.errors import ConfigError

Decoded = TypeVar("Decoded")

# 40 characters of Z85 (ZeroMQ RFC 32) are 32 bytes; 44 of base64 likewise, the last of them without unused bits set: a
# key has one spelling, for its text is signed and compared.
CurveText = Annotated[str, Meta(pattern=r"^[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}\Z")]
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
Ed25519Text = Annotated[str, Meta(pattern=r"^[0-9a-zA-Z+/]{42}[AEIMQUYcgkosw048]=\Z")]
Mldsa44Text = Annotated[str, Meta(pattern=r"^[0-9a-zA-Z+/]{1749}[AQgw]==\Z")]  # 1312 bytes


class PublicIdentity(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """A name and the two public keys that prove it: CURVE on the connection, Ed25519 in the session's handshake."""

    name: Name
    curve: CurveText
    ed25519: Ed25519Text

    def __post_init__(self) -> None:
        for i in range(0, len(self.curve), 5):
            if sum(_Z85.index(c) * 85**place for place, c in enumerate(reversed(self.curve[i : i + 5]))) >= 2**32:
                raise ValueError("`curve` is not 32 bytes in Z85")


class NodeIdentity(PublicIdentity, frozen=True, kw_only=True, tag="node"):
    """A trusted node. With its Ed25519 key the one of ML-DSA-44 signs its audit log, and that of its neighbours."""

    mldsa44: Mldsa44Text

    @property
    def log_key(self) -> bytes:
        """What verifies its checkpoints: the Ed25519 key, then the one of ML-DSA-44."""
        return base64.b64decode(self.ed25519) + base64.b64decode(self.mldsa44)


class ApplicationIdentity(PublicIdentity, frozen=True, kw_only=True, tag="application"):
    """A peer that is supplied with keys."""


class OperatorIdentity(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="operator", forbid_unknown_fields=True
):
    """A person at the control socket: a name and the Ed25519 key that signs their requests."""

    name: Name
    ed25519: Ed25519Text


Identity = NodeIdentity | ApplicationIdentity
_decoder: msgspec.json.Decoder[Identity] = msgspec.json.Decoder(Identity)
_operator_decoder: msgspec.json.Decoder[Identity | OperatorIdentity] = msgspec.json.Decoder(Identity | OperatorIdentity)
MAX_PUBLIC_BYTES = 4096


def fingerprint(identity: Identity | OperatorIdentity) -> str:
    """What names a key in the audit log: SHA-256 of the Ed25519 key, in hexadecimal."""
    return hashlib.sha256(base64.b64decode(identity.ed25519)).hexdigest()


def encode_public(identity: Identity | OperatorIdentity) -> bytes:
    """The contents of a NAME.public file."""
    return msgspec.json.format(msgspec.json.encode(identity), indent=2) + b"\n"


def decode_public(data: bytes, source: str) -> Identity:
    """The node or application in a NAME.public file; ConfigError names `source` and the field at fault."""
    return _decode(_decoder, data, source)


def decode_public_operator(data: bytes, source: str) -> OperatorIdentity:
    """The operator in a NAME.public file; ConfigError names `source` and the field at fault."""
    identity = _decode(_operator_decoder, data, source)
    if not isinstance(identity, OperatorIdentity):
        kind = "node" if isinstance(identity, NodeIdentity) else "application"
        raise ConfigError(f"{source} is the identity of {kind} {identity.name}; an operator's is needed here")
    return identity


def _decode(decoder: msgspec.json.Decoder[Decoded], data: bytes, source: str) -> Decoded:
    if len(data) > MAX_PUBLIC_BYTES:
        raise ConfigError(f"{source} is {len(data)} bytes long and no public identity: give the file NAME.public")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{source} is not a public identity ({error}): give the file NAME.public") from None
