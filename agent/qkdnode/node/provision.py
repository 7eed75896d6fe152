"""Provisioning: identities of nodes and applications, and the first authentication key of a pair of nodes."""

import hashlib
import os
import re
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from qkdnode.access.identities import ApplicationIdentity, NodeIdentity, OperatorIdentity, encode_public
from qkdnode.channel.identity import make_identity, read_secret
from qkdnode.channel.operator import make_operator
from qkdnode.errors import ConfigError
from qkdnode.native.secret import SecretBuffer, equal, wipe

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,30}")

# magic | version | key bytes | link | alice | bob | pair id, then the key, then SHA-256 of all before; little-endian.
PAIR = struct.Struct("<8sII32s32s32s16s")
PAIR_MAGIC = b"QKDPAIR\0"
PAIR_VERSION = 1
DIGEST_BYTES = 32
MIN_KIB, MAX_KIB = 1, 16 * 1024

COURIER = (
    "Carry one of the two files to the other node by a courier you trust, never over a network. "
    "After a node has imported its file, shred every copy of it."
)


class PairHeader(msgspec.Struct, frozen=True):
    """What a pair file says about its key."""

    link: str
    alice: str
    bob: str
    pair_id: bytes
    key_bytes: int

    def file_name(self, node: str) -> str:
        """The name of the file for one of the two nodes."""
        return f"{self.link}.{node}.pair"


def provision_node(name: str, directory: Path | str) -> NodeIdentity:
    """Make NAME.identity (secret) and NAME.public in `directory`; ConfigError if either is there already."""
    public = _provision("node", name, Path(directory))
    assert isinstance(public, NodeIdentity)
    return public


def provision_application(name: str, directory: Path | str) -> ApplicationIdentity:
    """Make NAME.identity (secret) and NAME.public in `directory`; ConfigError if either is there already."""
    public = _provision("application", name, Path(directory))
    assert isinstance(public, ApplicationIdentity)
    return public


def provision_operator(name: str, directory: Path | str) -> OperatorIdentity:
    """Make NAME.operator (secret) and NAME.public in `directory`; ConfigError if either is there already."""
    _check_name("operator", name)
    directory = _private_directory(Path(directory))
    with make_operator(name) as operator:
        secret = operator.secret_file()
        try:
            _create_all(
                [
                    (directory / f"{name}.operator", 0o600, (secret,)),
                    (directory / f"{name}.public", 0o644, (encode_public(operator.public),)),
                ]
            )
        finally:
            wipe(secret)
        return operator.public


def provision_pair(link: str, alice: str, bob: str, directory: Path | str, kib: int = 64) -> tuple[Path, Path]:
    """Make the two identical pair files of a link, for Alice's node and for Bob's; COURIER says what to do with them.

    The key is random numbers of the operating system: before the first Batch there is no other source that both
    nodes could share.
    """
    for what, name in (("link", link), ("node", alice), ("node", bob)):
        _check_name(what, name)
    if alice == bob:
        raise ConfigError(f"both nodes of link {link} are called {alice}: give two nodes")
    if not MIN_KIB <= kib <= MAX_KIB:
        raise ConfigError(f"`kib` is {kib}: give {MIN_KIB} to {MAX_KIB}")
    directory = _private_directory(Path(directory))
    size = kib * 1024
    header = PairHeader(link, alice, bob, os.urandom(16), size)
    packed = PAIR.pack(PAIR_MAGIC, PAIR_VERSION, size, link.encode(), alice.encode(), bob.encode(), header.pair_id)
    paths = directory / header.file_name(alice), directory / header.file_name(bob)
    with SecretBuffer(size) as key, memoryview(key) as view:
        _draw(view)
        digest = hashlib.sha256(packed)
        digest.update(view)
        _create_all([(path, 0o600, (packed, view, digest.digest())) for path in paths])
    return paths


def load_pair(path: Path | str) -> tuple[PairHeader, SecretBuffer]:
    """The header and key of a pair file, the key now the caller's; ConfigError says what is wrong with the file."""
    path = Path(path)
    data = read_secret(path, PAIR.size + MAX_KIB * 1024 + DIGEST_BYTES)
    try:
        if len(data) < PAIR.size or data[:8] != PAIR_MAGIC:
            raise ConfigError(f"{path} is not a pair file: give the LINK.NODE.pair file that `provision` wrote")
        _, version, size, *names, pair_id = PAIR.unpack_from(data)
        if version != PAIR_VERSION:
            raise ConfigError(f"{path} has version {version}; this program reads {PAIR_VERSION}")
        if len(data) != PAIR.size + size + DIGEST_BYTES:
            raise ConfigError(
                f"{path} is {len(data)} bytes long, not {PAIR.size + size + DIGEST_BYTES}: cut off; carry it anew"
            )
        with memoryview(data) as view:
            if not equal(hashlib.sha256(view[: PAIR.size + size]).digest(), view[PAIR.size + size :]):
                raise ConfigError(f"{path} is damaged: its digest does not match; carry it anew")
            link, alice, bob = (_unpad(name, path) for name in names)
            if alice == bob or size % 1024 or not MIN_KIB <= size // 1024 <= MAX_KIB:
                raise ConfigError(f"{path} is none that `provision` writes: {size} bytes of key for {alice} and {bob}")
            header = PairHeader(link, alice, bob, pair_id, size)
            if path.name not in (header.file_name(alice), header.file_name(bob)):
                raise ConfigError(
                    f"{path} holds the key of link {link} between {alice} and {bob}, which its name does not say: "
                    "give the right file, or its name back"
                )
            return header, SecretBuffer.copy_of(view[PAIR.size : PAIR.size + size])
    finally:
        wipe(data)


def _provision(kind: Literal["node", "application"], name: str, directory: Path) -> NodeIdentity | ApplicationIdentity:
    _check_name(kind, name)
    directory = _private_directory(directory)
    with make_identity(kind, name) as identity:
        secret = identity.secret_file()
        try:
            _create_all(
                [
                    (directory / f"{name}.identity", 0o600, (secret,)),
                    (directory / f"{name}.public", 0o644, (encode_public(identity.public),)),
                ]
            )
        finally:
            wipe(secret)
        return identity.public


def _check_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a {what}: use 1 to 31 of a-z, 0-9, '-' and '.', a letter or digit first"
        )


def _private_directory(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(directory.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"cannot make the directory {directory}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(
            f"{directory} is open to others than its owner: chmod 700 {directory}, or give a new directory"
        )
    return directory


def _draw(view: memoryview) -> None:
    with open("/dev/urandom", "rb", buffering=0) as source:
        done = 0
        while done < len(view):
            done += source.readinto(view[done:]) or 0


def _create_all(files: list[tuple[Path, int, tuple[bytes | bytearray | memoryview, ...]]]) -> None:
    """Write new files, all or none of them, each synced with its directory."""
    undo: list[Callable[[], None]] = []
    try:
        for path, mode, parts in files:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            undo.append(path.unlink)
            with open(descriptor, "wb", buffering=0) as file:
                for part in parts:
                    _write(file.fileno(), part)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
        directory = os.open(files[0][0].parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        for remove in undo:
            with suppress(OSError):
                remove()
        if isinstance(error, FileExistsError):
            raise ConfigError(f"{error.filename} is there already: it is not overwritten; move it away first") from None
        raise ConfigError(f"cannot write {error.filename or files[0][0].parent}: {error.strerror}") from None


def _write(descriptor: int, part: bytes | bytearray | memoryview) -> None:
    with memoryview(part) as view:
        done = 0
        while done < len(view):
            done += os.write(descriptor, view[done:])


def _unpad(name: bytes, path: Path) -> str:
    text = name.rstrip(b"\0").decode("ascii", "replace")
    if not NAME.fullmatch(text):
        raise ConfigError(f"{path} names a link or node that is no name: it is damaged")
    return text
