"""Tags: polynomial hashing over GF(2^128) under a recycled key, masked by a pad used once; and the vault's HMAC.

The hash runs over the header (two blocks that bind sender, receiver, direction, session and counter), whatever the
kind of tag covers, the body, the two addresses, and a length block (Wegman and Carter 1981; the recycled key:
arXiv:1202.1229). A forger succeeds with probability at most d/2^128 for d blocks.
"""

import hashlib
import struct

from qkdnode.authentication.transcript import Transcript
from qkdnode.native.polyval import Polyval
from qkdnode.native.secret import SecretBuffer

LENGTHS = struct.Struct("<QQ")
SHA256_BLOCK = 64


def tag_message(
    hash_key: memoryview,
    pad: memoryview,
    *,
    header: bytes,
    body: bytes,
    addresses: bytes,
    transcript: Transcript | None = None,
    tagger: str = "",
    covered: bytes = b"",
) -> bytes:
    """16 bytes. `transcript` is hashed for a claim or a commit, `covered` (the commit's frame) for a READY answer."""
    running = Polyval(hash_key)
    try:
        running.update(header)
        if transcript is not None:
            transcript.absorb_into(running, tagger)
        running.update(covered)
        running.update(body)
        running.update(addresses)
        running.update(LENGTHS.pack(len(body), len(covered)))
        return running.masked(pad)
    finally:
        running.close()


class VaultMac:
    """HMAC-SHA-256 (RFC 2104) for vault messages of one direction and session.

    Computational, under 256 bits of the pool: it protects agreement between vaults, never the distillation of key.
    The two padded keys stay in locked memory; the standard library's hmac would keep a bytes copy of the key.
    """

    def __init__(self, key: memoryview) -> None:
        self._inner, self._outer = SecretBuffer(SHA256_BLOCK), SecretBuffer(SHA256_BLOCK)
        for buffer, mask in ((self._inner, 0x36), (self._outer, 0x5C)):
            with memoryview(buffer) as view:
                for i in range(SHA256_BLOCK):
                    view[i] = (key[i] if i < len(key) else 0) ^ mask

    def digest(self, header: bytes, body: bytes) -> bytes:
        """32 bytes over the header and the body."""
        inner = hashlib.sha256(self._inner)
        inner.update(header)
        inner.update(body)
        outer = hashlib.sha256(self._outer)
        outer.update(inner.digest())
        return outer.digest()

    def close(self) -> None:
        """Wipe the keys."""
        self._inner.release()
        self._outer.release()
