"""The root key: where it comes from, and the only thing done with it, wrapping other keys.

A vault stores how its root key is derived (RootParameters), never the key. Sources beside passphrase file and systemd
credential (TPM, PKCS#11) fit behind RootSource.
"""

import os
import stat
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from qkdnode.errors import VaultDamagedError, VaultError, VaultLockedError
from qkdnode.native.secret import SecretBuffer

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
SALT_BYTES = 16
MAX_SECRET_BYTES = 4096
MAX_ITERATIONS, MAX_LANES, MAX_MEMORY_KIB = 64, 64, 1 << 20

ARGON2ID, SCRYPT, CREDENTIAL = "argon2id", "scrypt", "credential-hkdf"


class RootParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a vault's root key is derived; stored in the clear, and so within bounds that no derivation goes beyond."""

    method: str
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    iterations: Annotated[int, msgspec.Meta(ge=0, le=MAX_ITERATIONS)] = 0
    lanes: Annotated[int, msgspec.Meta(ge=0, le=MAX_LANES)] = 0
    memory_kib: Annotated[int, msgspec.Meta(ge=0, le=MAX_MEMORY_KIB)] = 0


class RootKey:
    """A 256-bit key that wraps keys: AES-256-GCM, a random 96-bit nonce before each ciphertext."""

    def __init__(self, key: SecretBuffer) -> None:
        self._key = key

    def wrap(self, purpose: bytes, key: SecretBuffer) -> bytes:
        """The key as ciphertext bound to its purpose."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(memoryview(self._key)).encrypt(nonce, memoryview(key), purpose)

    def unwrap(self, purpose: bytes, wrapped: bytes) -> SecretBuffer:
        """The inverse of wrap; VaultLockedError if this is not the key, or not the purpose, that wrapped it."""
        size = len(wrapped) - NONCE_BYTES - TAG_BYTES
        if size < 1:
            raise VaultLockedError("a wrapped key of the vault is cut short: keep the file, start a new vault")
        key = SecretBuffer(size)
        try:
            # No local name for the AEAD object: a traceback that kept it would keep its key from being wiped.
            AESGCM(memoryview(self._key)).decrypt_into(
                wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], purpose, memoryview(key)
            )
        except InvalidTag:
            key.release()
            raise VaultLockedError("this root key does not open the vault") from None
        return key

    def destroy(self) -> None:
        """Wipe the key."""
        self._key.release()


class RootSource(Protocol):
    """Where the root key comes from."""

    def fresh(self) -> RootParameters:
        """Parameters for a new vault."""
        ...

    def unlock(self, parameters: RootParameters) -> RootKey:
        """The root key of an existing vault. VaultLockedError if its parameters are of another source."""
        ...


class PassphraseFile:
    """A passphrase in a file that only its owner may read: Argon2id, or scrypt where OpenSSL has no Argon2id.

    The first line counts, without its end.
    """

    def __init__(self, path: str | Path, *, memory_kib: int = 64 * 1024, iterations: int = 3, lanes: int = 4) -> None:
        self._path = Path(path)
        self._memory_kib = memory_kib
        self._iterations = iterations
        self._lanes = lanes

    def fresh(self) -> RootParameters:
        """Parameters with a new salt."""
        salt = os.urandom(SALT_BYTES)
        try:
            Argon2id(salt=salt, length=KEY_BYTES, iterations=1, lanes=1, memory_cost=8)
        except UnsupportedAlgorithm:
            return RootParameters(SCRYPT, salt, iterations=0, lanes=1, memory_kib=self._memory_kib)
        return RootParameters(ARGON2ID, salt, self._iterations, self._lanes, self._memory_kib)

    def unlock(self, parameters: RootParameters) -> RootKey:
        """Derive the root key; takes a second or so by design."""
        derive = _PASSPHRASE_METHODS.get(parameters.method)
        if derive is None:
            raise VaultLockedError(f"the vault is not opened by a passphrase but by {parameters.method}")
        with _read_secret(self._path, owner_only=True) as secret, memoryview(secret) as whole:
            size = _line_bytes(whole)
            if size == 0:
                raise VaultError(f"passphrase file {self._path} begins with an empty line: write the passphrase there")
            with whole[:size] as line:
                try:
                    return _derived(derive(parameters), line)
                except (ValueError, OverflowError) as error:
                    raise VaultDamagedError(
                        f"the vault's root key cannot be derived as the vault says: {error}; restore the file"
                    ) from None


class CredentialFile:
    """A systemd credential: at least 16 random bytes in CREDENTIALS_DIRECTORY, stretched by HKDF-SHA-256."""

    def __init__(self, name: str, directory: str | Path | None = None) -> None:
        if not name or "/" in name or name.startswith("."):
            raise VaultError(f"{name!r} is no name of a systemd credential")
        self._name = name
        self._directory = directory

    def fresh(self) -> RootParameters:
        """Parameters with a new salt."""
        return RootParameters(CREDENTIAL, os.urandom(SALT_BYTES))

    def unlock(self, parameters: RootParameters) -> RootKey:
        """Derive the root key."""
        if parameters.method != CREDENTIAL:
            raise VaultLockedError(f"the vault is not opened by a systemd credential but by {parameters.method}")
        directory = self._directory or os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise VaultError(
                f"no CREDENTIALS_DIRECTORY holds {self._name!r}: start the agent by a unit with LoadCredential= "
                "or LoadCredentialEncrypted="
            )
        path = Path(directory) / self._name
        with _read_secret(path, owner_only=False) as secret, memoryview(secret) as whole:
            if len(whole) < 16:
                raise VaultError(f"credential {path} has {len(whole)} bytes: at least 16 random bytes are needed")
            hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=parameters.salt, info=b"qkdnode vault root/1")
            return _derived(hkdf, whole)


def _argon2id(parameters: RootParameters) -> Any:
    try:
        return Argon2id(
            salt=parameters.salt,
            length=KEY_BYTES,
            iterations=parameters.iterations,
            lanes=parameters.lanes,
            memory_cost=parameters.memory_kib,
        )
    except UnsupportedAlgorithm:
        raise VaultLockedError("the vault needs Argon2id, which this machine's OpenSSL (below 3.2) lacks") from None


def _scrypt(parameters: RootParameters) -> Any:
    return Scrypt(salt=parameters.salt, length=KEY_BYTES, n=parameters.memory_kib, r=8, p=parameters.lanes)


_PASSPHRASE_METHODS = {ARGON2ID: _argon2id, SCRYPT: _scrypt}


def _derived(derivation: Any, secret: memoryview) -> RootKey:
    key = SecretBuffer(KEY_BYTES)
    derivation.derive_into(secret, key)
    return RootKey(key)


def _line_bytes(view: memoryview) -> int:
    for i, byte in enumerate(view):
        if byte in b"\r\n":
            return i
    return len(view)


def _read_secret(path: Path, *, owner_only: bool) -> SecretBuffer:
    """The whole of a small regular file, read straight into locked memory."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise VaultError(f"cannot read {path}: {error.strerror}") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise VaultError(f"{path} is not a regular file: name the file that holds the secret itself")
        if owner_only and status.st_mode & 0o077:
            raise VaultError(f"{path} can be read or written by others than its owner: chmod 600 {path}")
        if not 0 < status.st_size <= MAX_SECRET_BYTES:
            raise VaultError(f"{path} has {status.st_size} bytes: 1 to {MAX_SECRET_BYTES} are expected")
        secret = SecretBuffer(status.st_size)
        with memoryview(secret) as view:
            read = os.readv(handle, [view])
        if read != status.st_size:
            secret.release()
            raise VaultError(f"{path} changed while it was read: try again")
        return secret
    finally:
        os.close(handle)
