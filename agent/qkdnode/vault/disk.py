"""Where a vault's file lies: its directory, its lock, and the way a new file gets its name. Tests give another."""

import fcntl
import os
import stat
from pathlib import Path

import apsw

from qkdnode.errors import VaultError


def sqlite_version() -> str:
    """The version of the library that writes the vault's file."""
    return apsw.sqlite_lib_version()


class Disk:
    """The file system of this machine. `vfs` names SQLite's way to it, `pragmas` are executed first on each opening."""

    vfs: str | None = None
    pragmas: tuple[str, ...] = ()

    def demand_private_directory(self, directory: Path, create: bool) -> None:
        """VaultError unless only the owner may use the directory; made where `create` is true."""
        if create and not directory.exists():
            directory.mkdir(mode=0o700, parents=True)
        try:
            mode = directory.stat().st_mode
        except OSError as error:
            raise VaultError(f"cannot use directory {directory} of the vault: {error.strerror}") from None
        if mode & 0o077:
            raise VaultError(
                f"directory {directory} of the vault is open to others than its owner: chmod 700 {directory}"
            )

    def lock(self, path: Path) -> int:
        """Hold the vault alone, until `unlock` or the end of the process. VaultError if another process does."""
        held = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            raise VaultError(f"vault {path} is open in another agent: stop that one first") from None
        return held

    def unlock(self, held: int) -> None:
        """Let others open it."""
        os.close(held)

    def exists(self, path: Path) -> bool:
        """Whether there is a vault."""
        return path.exists()

    def demand_private_file(self, path: Path) -> None:
        """VaultError unless it is a file that only its owner may use."""
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise VaultError(f"vault {path} must be a file that only its owner may use: chmod 600 {path}")

    def make(self, path: Path) -> None:
        """A new empty file in place of what may be left of an earlier attempt."""
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))

    def rename(self, path: Path, to: Path) -> None:
        """Give a file its name, durably."""
        path.rename(to)
        directory = os.open(to.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def connect(self, path: Path) -> apsw.Connection:
        """Open SQLite on an existing file."""
        connection = apsw.Connection(
            os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=self.vfs, statementcachesize=256
        )
        for pragma in self.pragmas:
            connection.execute(pragma).fetchall()
        return connection


DISK = Disk()
