"""Keys that sign logs in tests: the same ones each time."""

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey


class Signing:
    """A log's two keys, drawn from a seed."""

    def __init__(self, seed: bytes) -> None:
        self.ed25519 = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"ed25519" + seed).digest())
        self.mldsa44 = MLDSA44PrivateKey.from_seed_bytes(hashlib.sha256(b"mldsa44" + seed).digest())
        self.log_key = self.ed25519.public_key().public_bytes_raw() + self.mldsa44.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self.ed25519.sign(message)

    def sign_mldsa44(self, message: bytes) -> bytes:
        return self.mldsa44.sign(message)


SIGNING = Signing(b"a node")
OTHER = Signing(b"another node")
PUBLIC = SIGNING.log_key
