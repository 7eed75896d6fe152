"""Sealing: ciphertext of secrets for the file, MACs of rows, pseudonyms for the audit log.

Each secret has its own data key, used once, so its AES-256-GCM nonce is all zeros. The data key is wrapped with a
random 96-bit nonce under the key-encryption key (KEK) of its link and epoch (a day): far fewer than 2**32 wraps each.
KEKs are wrapped under the root key. The same `bound` tuple is the associated data of both layers.

AEAD objects live for one request at most: a live one keeps copies of its key on the heap.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import apsw
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from typing_extensions import Buffer

from qkdnode.errors import VaultDamagedError, VaultLockedError
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.root import KEY_BYTES, NONCE_BYTES, TAG_BYTES, RootKey
from qkdnode.vault.rows import read_meta, read_rows

EPOCH_NS = 86_400 * 10**9
PSEUDONYM_BYTES = 16
PSEUDONYMS_KEPT = 8192
ZERO_NONCE = bytes(NONCE_BYTES)
ROW_MAC, PSEUDONYM = b"row MAC key", b"pseudonym salt"
_SHA256 = SHA256()
_canonical = msgspec.msgpack.Encoder().encode


class Sealed(msgspec.Struct, frozen=True):
    """A secret as stored: its ciphertext and its wrapped data key."""

    sealed: bytes
    wrapped: bytes


class Sealing:
    """The keys of one open vault and what is done with them. `draw_into` fills a buffer with fresh entropy."""

    def __init__(self, connection: apsw.Connection, root: RootKey, draw_into: Callable[[SecretBuffer], None]) -> None:
        self._connection = connection
        self._root = root
        self._draw_into = draw_into
        self._keks: dict[tuple[str, int], SecretBuffer] = {}
        self._mac_key = self._node_key(ROW_MAC)
        self._salt = self._node_key(PSEUDONYM)
        self._pseudonyms: dict[bytes, str] = {}

    def draw(self, size: int) -> SecretBuffer:
        """Fresh entropy; NoEntropyError if the node has none."""
        buffer = SecretBuffer(size)
        try:
            self._draw_into(buffer)
        except BaseException:
            buffer.discard()  # the error's own frames may still hold a view
            raise
        return buffer

    def mac(self, *parts: Any) -> bytes:
        """32 bytes over the canonical encoding of the parts."""
        return self._hmac(self._mac_key, _canonical(parts))

    def content_digest(self, secret: Buffer, *parts: bytes) -> bytes:
        """A keyed digest that tells whether a secret, with what goes with it, is the same as before."""
        digest = HMAC(memoryview(self._mac_key), _SHA256)
        digest.update(b"content\0" + _canonical(parts))
        digest.update(memoryview(secret))
        return digest.finalize()

    def pseudonym(self, name: bytes) -> str:
        """What stands for a key or an application in the audit log: 32 hexadecimal digits."""
        known = self._pseudonyms.get(name)
        if known is None:
            if len(self._pseudonyms) >= PSEUDONYMS_KEPT:
                self._pseudonyms.clear()
            known = self._pseudonyms[name] = self._hmac(self._salt, name)[:PSEUDONYM_BYTES].hex()
        return known

    def pseudonyms(self, names: Sequence[bytes]) -> tuple[str, ...]:
        """The pseudonyms of several names: one keyed hash serves all of them, and is dropped."""
        if not names:
            return ()
        if len(self._pseudonyms) + len(names) > PSEUDONYMS_KEPT:
            self._pseudonyms.clear()
        known, keyed = self._pseudonyms, None
        for name in names:
            if name not in known:
                keyed = keyed or HMAC(memoryview(self._salt), _SHA256)
                digest = keyed.copy()
                digest.update(name)
                known[name] = digest.finalize()[:PSEUDONYM_BYTES].hex()
        return tuple([known[name] for name in names])

    def seal(
        self, link: str, epoch: int, bounds: Sequence[tuple[Any, ...]], material: memoryview, size: int
    ) -> list[Sealed]:
        """Seal consecutive pieces of `size` bytes, the last may be shorter, each under a data key of its own.

        `bounds` says what each piece is bound to. The material stays the caller's.
        """
        kek = self._kek(link, epoch, create=True)
        nonces = os.urandom(NONCE_BYTES * len(bounds))
        sealed = []
        with self.draw(KEY_BYTES * len(bounds)) as drawn, memoryview(drawn) as keys:
            wrap = AESGCM(memoryview(kek)).encrypt
            for i, bound in enumerate(bounds):
                associated = _canonical(bound)
                nonce = nonces[i * NONCE_BYTES : (i + 1) * NONCE_BYTES]
                with keys[i * KEY_BYTES : (i + 1) * KEY_BYTES] as key, material[i * size : (i + 1) * size] as piece:
                    ciphertext = AESGCM(key).encrypt(ZERO_NONCE, piece, associated)
                    sealed.append(Sealed(ciphertext, nonce + wrap(nonce, key, associated)))
        return sealed

    def unseal(
        self, link: str, epoch: int, bound: tuple[Any, ...], sealed: bytes | None, wrapped: bytes | None
    ) -> SecretBuffer:
        """The secret, in a buffer of the caller's. InvalidTag if it was sealed otherwise."""
        if sealed is None or wrapped is None or len(sealed) <= TAG_BYTES:
            raise InvalidTag
        associated = _canonical(bound)
        secret = SecretBuffer(len(sealed) - TAG_BYTES)
        with SecretBuffer(KEY_BYTES) as key:
            try:
                kek = self._kek(link, epoch, create=False)
                AESGCM(memoryview(kek)).decrypt_into(
                    wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], associated, memoryview(key)
                )
                AESGCM(memoryview(key)).decrypt_into(ZERO_NONCE, sealed, associated, memoryview(secret))
            except BaseException:
                secret.release()
                raise
        return secret

    def unseal_into(
        self, link: str, epoch: int, sealed: Sequence[tuple[tuple[Any, ...], bytes, bytes]], size: int, into: memoryview
    ) -> list[int]:
        """Unseal pieces of `size` bytes, given as (bound, sealed, wrapped), side by side; which do not unseal."""
        try:
            kek = self._kek(link, epoch, create=False)
        except InvalidTag:
            return list(range(len(sealed)))
        failed = []
        with SecretBuffer(KEY_BYTES) as key:
            unwrap = AESGCM(memoryview(kek)).decrypt_into
            for i, (bound, ciphertext, wrapped) in enumerate(sealed):
                associated = _canonical(bound)
                with memoryview(key) as data_key, into[i * size : (i + 1) * size] as piece:
                    try:
                        unwrap(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], associated, data_key)
                        AESGCM(data_key).decrypt_into(ZERO_NONCE, ciphertext, associated, piece)
                    except (InvalidTag, ValueError, TypeError):  # a piece of another length or type is no better
                        failed.append(i)
        return failed

    def forget(self) -> None:
        """Drop the cached KEKs: after a rollback, those just made are no longer in the file."""
        for kek in self._keks.values():
            # Still leased by a traceback: it is wiped when that goes.
            with suppress(BufferError):
                kek.release()
        self._keks.clear()

    def destroy(self) -> None:
        """Wipe every key of this vault from memory."""
        self.forget()
        self._mac_key.release()
        self._salt.release()
        self._root.destroy()

    @staticmethod
    def _hmac(key: SecretBuffer, data: bytes) -> bytes:
        mac = HMAC(memoryview(key), _SHA256)
        mac.update(data)
        return mac.finalize()

    def _kek(self, link: str, epoch: int, *, create: bool) -> SecretBuffer:
        kek = self._keks.get((link, epoch))
        if kek is not None:
            return kek
        purpose = b"KEK " + _canonical((link, epoch))
        name = f"key-encryption key of link {link!r}, epoch {epoch}"
        statement = "SELECT wrapped FROM keks WHERE link = ? AND epoch = ?"
        rows = read_rows(self._connection, (bytes,), f"the {name} in the vault", statement, link, epoch)
        if rows:
            kek = self._unwrap(purpose, rows[0][0], name)
        elif create:
            kek = self.draw(KEY_BYTES)
            wrapped = self._root.wrap(purpose, kek)
            self._connection.execute("INSERT INTO keks VALUES (?, ?, ?)", (link, epoch, wrapped))
        else:
            raise InvalidTag
        self._keks[link, epoch] = kek
        return kek

    def _node_key(self, purpose: bytes) -> SecretBuffer:
        name = purpose.decode()
        wrapped = read_meta(self._connection, name).get(name)
        if wrapped is None:
            raise VaultDamagedError(f"the vault lacks its {name}: keep the file, start a new vault")
        return self._unwrap(purpose, wrapped, name)

    def _unwrap(self, purpose: bytes, wrapped: bytes, name: str) -> SecretBuffer:
        try:
            return self._root.unwrap(purpose, wrapped)
        except VaultLockedError:
            raise VaultDamagedError(f"the {name} in the vault is damaged: keep the file, start a new vault") from None


def new_node_keys(root: RootKey, draw_into: Callable[[SecretBuffer], None]) -> dict[str, bytes]:
    """The wrapped keys of a new vault, by the names they are stored under."""
    wrapped = {}
    for purpose in (ROW_MAC, PSEUDONYM):
        with SecretBuffer(KEY_BYTES) as key:
            draw_into(key)
            wrapped[purpose.decode()] = root.wrap(purpose, key)
    return wrapped
