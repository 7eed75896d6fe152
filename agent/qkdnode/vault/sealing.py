"""Sealing: ciphertext of secrets for the file, MACs of rows, pseudonyms for the audit log.

Each secret has its own data key, used once, so its AES-256-GCM nonce is all zeros. The data key is wrapped with a
random 96-bit nonce under a key-encryption key (KEK) of its link, epoch (a day) and algorithm: far fewer than 2**32
wraps each. KEKs are numbered, and wrapped under the root key, bound to what they are for. The same `bound` tuple is the
associated data of ciphertext and data key; the KEK is not in it, so that a data key can be wrapped anew.

AEAD objects live for one request at most: a live one keeps copies of its key on the heap.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import apsw
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from typing_extensions import Buffer

from qkdnode.audit.receipt import pseudonym_of
from qkdnode.errors import LocalProtocolError, VaultDamagedError, VaultLockedError
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.root import KEY_BYTES, NONCE_BYTES, TAG_BYTES, RootKey
from qkdnode.vault.rows import read_meta, read_rows

EPOCH_NS = 86_400 * 10**9
PSEUDONYMS_KEPT = 8192
ZERO_NONCE = bytes(NONCE_BYTES)
AES_256_GCM, CHACHA20_POLY1305 = "AES-256-GCM", "ChaCha20-Poly1305"
# By what a key-encryption key wraps data keys: 256-bit keys, 96-bit nonces, 128-bit tags, each.
WRAPS: dict[str, type[AESGCM] | type[ChaCha20Poly1305]] = {AES_256_GCM: AESGCM, CHACHA20_POLY1305: ChaCha20Poly1305}
_NEXT_KEK = """
SELECT 1 + max(coalesce((SELECT max(number) FROM keks), 0), coalesce((SELECT max(number) FROM ended_keks), 0))
"""
ROW_MAC, PSEUDONYM = b"row MAC key", b"pseudonym salt"
_SHA256 = SHA256()
_canonical = msgspec.msgpack.Encoder().encode


class Sealed(msgspec.Struct, frozen=True):
    """A secret as stored: its ciphertext and its wrapped data key."""

    sealed: bytes
    wrapped: bytes


class Kek(msgspec.Struct, frozen=True):
    """A key-encryption key as it is named."""

    number: int
    link: str
    epoch: int
    algorithm: str


class Unwrapped(msgspec.Struct, frozen=True):
    """A key-encryption key in memory."""

    algorithm: str
    key: SecretBuffer


class Sealing:
    """The keys of one open vault and what is done with them. `draw_into` fills a buffer with fresh entropy."""

    def __init__(self, connection: apsw.Connection, root: RootKey, draw_into: Callable[[SecretBuffer], None]) -> None:
        self._connection = connection
        self._root = root
        self._draw_into = draw_into
        self._keks: dict[int, Unwrapped] = {}
        self._numbers: dict[tuple[str, int, str], int] = {}
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
        return self.pseudonyms((name,))[0]

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
                known[name] = pseudonym_of(name, digest.finalize())
        return tuple([known[name] for name in names])

    def opening(self, name: bytes) -> bytes:
        """What lets a stranger see that a pseudonym is this name's, and tells nothing of others."""
        return self._hmac(self._salt, name)

    def kek_for(self, link: str, epoch: int, algorithm: str) -> int:
        """The number of the key-encryption key of a link, epoch and algorithm; made if there is none."""
        number = self._numbers.get((link, epoch, algorithm))
        if number is None:
            found: list[Any] = self._connection.execute(
                "SELECT number FROM keks WHERE link = ? AND epoch = ? AND algorithm = ?", (link, epoch, algorithm)
            ).fetchall()
            number = found[0][0] if found else self._new_kek(link, epoch, algorithm)
            self._numbers[link, epoch, algorithm] = number
        return number

    def seal(self, kek: int, bounds: Sequence[tuple[Any, ...]], material: memoryview, size: int) -> list[Sealed]:
        """Seal consecutive pieces of `size` bytes, the last may be shorter, each under a data key of its own.

        `bounds` says what each piece is bound to. The material stays the caller's.
        """
        under = self._demand(kek)
        nonces = os.urandom(NONCE_BYTES * len(bounds))
        sealed = []
        with self.draw(KEY_BYTES * len(bounds)) as drawn, memoryview(drawn) as keys:
            wrap = WRAPS[under.algorithm](memoryview(under.key)).encrypt
            for i, bound in enumerate(bounds):
                associated = _canonical(bound)
                nonce = nonces[i * NONCE_BYTES : (i + 1) * NONCE_BYTES]
                with keys[i * KEY_BYTES : (i + 1) * KEY_BYTES] as key, material[i * size : (i + 1) * size] as piece:
                    ciphertext = AESGCM(key).encrypt(ZERO_NONCE, piece, associated)
                    sealed.append(Sealed(ciphertext, nonce + wrap(nonce, key, associated)))
        return sealed

    def unseal(
        self, kek: int | None, bound: tuple[Any, ...], sealed: bytes | None, wrapped: bytes | None
    ) -> SecretBuffer:
        """The secret, in a buffer of the caller's. InvalidTag if it was sealed otherwise."""
        if kek is None or sealed is None or wrapped is None or len(sealed) <= TAG_BYTES:
            raise InvalidTag
        secret = SecretBuffer(len(sealed) - TAG_BYTES)
        try:
            with memoryview(secret) as into:
                if self.unseal_into(kek, [(bound, sealed, wrapped)], len(into), into):
                    raise InvalidTag
        except BaseException:
            secret.release()
            raise
        return secret

    def unseal_into(
        self, kek: int | None, sealed: Sequence[tuple[tuple[Any, ...], bytes, bytes]], size: int, into: memoryview
    ) -> list[int]:
        """Unseal pieces of `size` bytes, given as (bound, sealed, wrapped), side by side; which do not unseal."""
        under = None if kek is None else self._find(kek)
        if under is None:
            return list(range(len(sealed)))
        failed = []
        with SecretBuffer(KEY_BYTES) as key:
            unwrap = WRAPS[under.algorithm](memoryview(under.key)).decrypt_into
            for i, (bound, ciphertext, wrapped) in enumerate(sealed):
                associated = _canonical(bound)
                with memoryview(key) as data_key, into[i * size : (i + 1) * size] as piece:
                    try:
                        unwrap(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], associated, data_key)
                        AESGCM(data_key).decrypt_into(ZERO_NONCE, ciphertext, associated, piece)
                    except (InvalidTag, ValueError, TypeError):  # a piece of another length or type is no better
                        failed.append(i)
        return failed

    def try_unseal(self, kek: int | None, sealed: Sequence[tuple[tuple[Any, ...], bytes, bytes]]) -> list[int]:
        """Which of some pieces do not unseal. Each is unsealed into the same locked memory, which is wiped."""
        sizes = [len(piece) - TAG_BYTES if isinstance(piece, bytes) else 0 for _, piece, _ in sealed]
        failed = []
        with SecretBuffer(max(1, *sizes)) as scratch, memoryview(scratch) as view:
            under = None if kek is None else self._find(kek)
            if under is None:
                return list(range(len(sealed)))
            with SecretBuffer(KEY_BYTES) as key, memoryview(key) as data_key:
                unwrap = WRAPS[under.algorithm](memoryview(under.key)).decrypt_into
                for i, (bound, ciphertext, wrapped) in enumerate(sealed):
                    associated = _canonical(bound)
                    with view[: sizes[i]] as piece:
                        try:
                            unwrap(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], associated, data_key)
                            AESGCM(data_key).decrypt_into(ZERO_NONCE, ciphertext, associated, piece)
                        except (InvalidTag, ValueError, TypeError):
                            failed.append(i)
        return failed

    def rewrap(self, old: int, new: int, wrapped: Sequence[tuple[tuple[Any, ...], bytes]]) -> list[bytes | None]:
        """Data keys, given as (bound, wrapped), under another key-encryption key; None for one that does not unwrap.

        What they seal stays sealed.
        """
        before, then = self._find(old), self._demand(new)
        if before is None:
            return [None] * len(wrapped)
        anew: list[bytes | None] = []
        nonces = os.urandom(NONCE_BYTES * len(wrapped))
        with SecretBuffer(KEY_BYTES) as key, memoryview(key) as data_key:
            unwrap = WRAPS[before.algorithm](memoryview(before.key)).decrypt_into
            wrap = WRAPS[then.algorithm](memoryview(then.key)).encrypt
            for i, (bound, blob) in enumerate(wrapped):
                associated, nonce = _canonical(bound), nonces[i * NONCE_BYTES : (i + 1) * NONCE_BYTES]
                try:
                    unwrap(blob[:NONCE_BYTES], blob[NONCE_BYTES:], associated, data_key)
                except (InvalidTag, ValueError, TypeError):
                    anew.append(None)
                else:
                    anew.append(nonce + wrap(nonce, data_key, associated))
        return anew

    def keks(self) -> list[Kek]:
        """The key-encryption keys that there are, the oldest first."""
        statement = "SELECT number, link, epoch, algorithm FROM keks ORDER BY number"
        rows = read_rows(self._connection, (int, str, int, str), "a key-encryption key in the vault", statement)
        return [Kek(*row) for row in rows]

    def has(self, number: int) -> bool:
        """Whether there is a key-encryption key of a number. VaultDamagedError if it was altered."""
        return self._find(number) is not None

    def unwraps(self, number: int) -> bool:
        """Whether a key-encryption key in the file unwraps; read anew, whatever is in memory."""
        self._drop(number)
        try:
            return self._find(number) is not None
        except VaultDamagedError:
            return False

    def delete_kek(self, number: int) -> tuple[bytes, bytes]:
        """Delete a key-encryption key from file and memory; how it stood in the file, and a key wrapped under it."""
        under = self._demand(number)
        with self.draw(KEY_BYTES) as key:
            nonce = os.urandom(NONCE_BYTES)
            witness = nonce + WRAPS[under.algorithm](memoryview(under.key)).encrypt(nonce, memoryview(key), b"witness")
        del under
        deleted: list[Any] = self._connection.execute(
            "DELETE FROM keks WHERE number = ? RETURNING CAST(wrapped AS BLOB)", (number,)
        ).fetchall()
        self._numbers = {named: its for named, its in self._numbers.items() if its != number}
        self._drop(number)
        return deleted[0][0], witness

    def opens_witness(self, witness: bytes) -> bool:
        """Whether anything that is left unwraps a key that a deleted one has wrapped."""
        for kek in self.keks():
            try:
                under = self._find(kek.number)
            except VaultDamagedError:
                continue
            if under is not None and _opens(under, witness):
                return True
        return any(_opens(under, witness) for under in self._keks.values())

    def forget(self) -> None:
        """Drop the cached KEKs: after a rollback, those just made are no longer in the file."""
        for number in list(self._keks):
            self._drop(number)
        self._numbers.clear()

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

    def _drop(self, number: int) -> None:
        under = self._keks.pop(number, None)
        if under is not None:
            # Still leased by a traceback: it is wiped when that goes.
            with suppress(BufferError):
                under.key.release()

    def _demand(self, number: int) -> Unwrapped:
        under = self._find(number)
        if under is None:
            raise VaultDamagedError(
                f"the vault lacks key-encryption key {number}: look for who wrote to the vault file, and restore it"
            )
        return under

    def _find(self, number: int) -> Unwrapped | None:
        """A key-encryption key, unwrapped once; None if there is none of the number. VaultDamagedError if altered."""
        known = self._keks.get(number)
        if known is None:
            statement = "SELECT link, epoch, algorithm, wrapped FROM keks WHERE number = ?"
            kinds = (str, int, str, bytes)
            rows = read_rows(self._connection, kinds, f"key-encryption key {number} in the vault", statement, number)
            if not rows:
                return None
            link, epoch, algorithm, wrapped = rows[0]
            name = f"key-encryption key of link {link!r}, epoch {epoch}"
            key = self._unwrap(_purpose(number, link, epoch, algorithm), wrapped, name)
            known = self._keks[number] = Unwrapped(algorithm, key)
        return known

    def _new_kek(self, link: str, epoch: int, algorithm: str) -> int:
        if algorithm not in WRAPS:
            raise LocalProtocolError(f"{algorithm!r} is no algorithm to wrap keys with: one of {', '.join(WRAPS)}")
        next_: list[Any] = self._connection.execute(_NEXT_KEK).fetchall()
        number: int = next_[0][0]
        key = self.draw(KEY_BYTES)
        wrapped = self._root.wrap(_purpose(number, link, epoch, algorithm), key)
        self._connection.execute("INSERT INTO keks VALUES (?, ?, ?, ?, ?)", (number, link, epoch, algorithm, wrapped))
        self._keks[number] = Unwrapped(algorithm, key)
        return number

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


def _purpose(number: int, link: str, epoch: int, algorithm: str) -> bytes:
    return b"KEK " + _canonical((number, link, epoch, algorithm))


def _opens(under: Unwrapped, witness: bytes) -> bool:
    with SecretBuffer(KEY_BYTES) as key, memoryview(key) as view:
        try:
            WRAPS[under.algorithm](memoryview(under.key)).decrypt_into(
                witness[:NONCE_BYTES], witness[NONCE_BYTES:], b"witness", view
            )
        except (InvalidTag, ValueError):
            return False
    return True


def new_node_keys(root: RootKey, draw_into: Callable[[SecretBuffer], None]) -> dict[str, bytes]:
    """The wrapped keys of a new vault, by the names they are stored under."""
    wrapped = {}
    for purpose in (ROW_MAC, PSEUDONYM):
        with SecretBuffer(KEY_BYTES) as key:
            draw_into(key)
            wrapped[purpose.decode()] = root.wrap(purpose, key)
    return wrapped
