"""A disk in memory for the real vault: SQLite writes to it through a VFS, and it loses power, fills up and fails.

It keeps apart what a running system sees and what is certain to be there after a power loss. Until a file is synced,
each of its writes may or may not reach the platter, whole or in part, in any order; a new or deleted name is certain
after the sync that follows it (as SQLite's own VFS syncs the directory then).
"""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec

from qkdnode.vault.disk import Disk

SECTOR_BYTES = 512
_names = itertools.count()


class PowerLossError(Exception):
    """The node stopped in the middle of this operation."""


class Write(msgspec.Struct, frozen=True):
    """Bytes written but not synced."""

    offset: int
    data: bytes


class Truncate(msgspec.Struct, frozen=True):
    """A length set but not synced."""

    size: int


class VirtualFile:
    """One file: what is seen, what is certain, and the changes between."""

    def __init__(self, durable: bytes | None = None) -> None:
        self.exists_durably = durable is not None
        self.durable = bytearray(durable or b"")
        self.seen = bytearray(self.durable)
        self.unsynced: list[Write | Truncate] = []

    def write(self, offset: int, data: bytes) -> None:
        _apply(self.seen, Write(offset, data))
        self.unsynced.append(Write(offset, data))

    def truncate(self, size: int) -> None:
        _apply(self.seen, Truncate(size))
        self.unsynced.append(Truncate(size))

    def sync(self) -> None:
        for change in self.unsynced:
            _apply(self.durable, change)
        self.unsynced.clear()
        self.exists_durably = True


def _apply(data: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        del data[change.size :]
        data.extend(bytes(change.size - len(data)))
    else:
        if len(data) < change.offset:
            data.extend(bytes(change.offset - len(data)))
        data[change.offset : change.offset + len(change.data)] = change.data


# What a power loss leaves of the unsynced changes, by name: a change, or nothing, for each.
def _none(change: Write | Truncate, draws: random.Random) -> list[Write | Truncate]:
    return []


def _all(change: Write | Truncate, draws: random.Random) -> list[Write | Truncate]:
    return [change]


def _random(change: Write | Truncate, draws: random.Random) -> list[Write | Truncate]:
    return [change] if draws.random() < 0.5 else []


def _torn(change: Write | Truncate, draws: random.Random) -> list[Write | Truncate]:
    """Each sector of a write reaches the platter or not."""
    if isinstance(change, Truncate):
        return _random(change, draws)
    sectors = range(0, len(change.data), SECTOR_BYTES)
    return [Write(change.offset + at, change.data[at : at + SECTOR_BYTES]) for at in sectors if draws.random() < 0.5]


LOSSES: dict[str, Callable[[Write | Truncate, random.Random], list[Write | Truncate]]] = {
    "none": _none,
    "all": _all,
    "random": _random,
    "torn": _torn,
}


class VirtualDisk(Disk):
    """One disk. `on_operation(kind, path)` is called before each write, sync, truncate, delete and rename: what it
    raises (apsw.FullError, apsw.IOError, PowerLossError) is what becomes of the operation."""

    pragmas = ("PRAGMA locking_mode = EXCLUSIVE",)  # without shared memory there is one opener, as the vault is anyway

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {path: VirtualFile(data) for path, data in (files or {}).items()}
        self.deleted: dict[str, VirtualFile] = {}  # gone, but not certain to be gone
        self.operations = 0
        self.on_operation: Callable[[str, str], None] | None = None
        self.lost_power = False
        self.vfs = f"virtual-{next(_names)}"
        self._vfs = _Vfs(self)

    def close(self) -> None:
        """Take the disk away from SQLite; nothing on it may be open."""
        self._vfs.unregister()

    def operation(self, kind: str, path: str) -> bool:
        """One step that changes the disk, or fails; False if it happens no more, since the power is gone.

        What the process goes on doing after that is the doing of one that is no longer there: look at `lost_power`
        before believing any answer.
        """
        if self.lost_power:
            return False
        self.operations += 1
        if self.on_operation is not None:
            try:
                self.on_operation(kind, path)
            except PowerLossError:
                self.lost_power = True
                return False
        return True

    def after_kill(self) -> dict[str, bytes]:
        """The files when the process ends and the system runs on."""
        return {path: bytes(file.seen) for path, file in self.files.items()}

    def after_power_loss(self, kind: str, draws: random.Random) -> dict[str, bytes]:
        """The files when the power comes back: `kind` names one of LOSSES."""
        keep = LOSSES[kind]
        files: dict[str, bytes] = {}
        for path, file in self.deleted.items():
            if kind == "none" or (kind != "all" and draws.random() < 0.5):
                files[path] = bytes(file.durable)
        for path, file in self.files.items():
            if not file.exists_durably and (kind == "none" or (kind != "all" and draws.random() < 0.5)):
                continue
            data = bytearray(file.durable)
            for change in file.unsynced:
                for kept in keep(change, draws):
                    _apply(data, kept)
            files[path] = bytes(data)
        return files

    # --- Disk ---

    def demand_private_directory(self, directory: Path, create: bool) -> None: ...

    def lock(self, path: Path) -> int:
        return 0

    def unlock(self, held: int) -> None: ...

    def exists(self, path: Path) -> bool:
        return str(path) in self.files

    def demand_private_file(self, path: Path) -> None: ...

    def make(self, path: Path) -> None:
        self._certainly("create", path)
        self.files[str(path)] = VirtualFile()

    def rename(self, path: Path, to: Path) -> None:
        self._certainly("rename", path)
        file = self.files.pop(str(path))
        file.sync()
        self.files[str(to)] = file

    def _certainly(self, kind: str, path: Path) -> None:
        if not self.operation(kind, str(path)):
            raise OSError("the power was lost")

    # --- what the VFS does ---

    def delete(self, path: str, durably: bool) -> None:
        if not self.operation("delete", path):
            return
        file = self.files.pop(path, None)
        if file is not None and file.exists_durably and not durably:
            self.deleted[path] = file


class _Vfs(apsw.VFS):
    def __init__(self, disk: VirtualDisk) -> None:
        self._disk = disk
        super().__init__(disk.vfs, base="")

    def xOpen(self, name: Any, flags: list[int]) -> "_File":
        path = None if name is None else (name if isinstance(name, str) else name.filename())
        flags[1] = flags[0]
        if path is None:
            return _File(self._disk, None, VirtualFile())
        if path not in self._disk.files:
            if not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError(f"no file {path} on the virtual disk")
            self._disk.operation("create", path)
            self._disk.files[path] = VirtualFile()
        return _File(self._disk, path, self._disk.files[path])

    def xAccess(self, path: str, flags: int) -> bool:
        return path in self._disk.files

    def xDelete(self, path: str, sync_directory: bool) -> None:
        self._disk.delete(path, sync_directory)

    def xFullPathname(self, name: str) -> str:
        return name

    def xRandomness(self, count: int) -> bytes:
        return bytes(count)

    def xSleep(self, microseconds: int) -> int:
        return microseconds

    def xCurrentTime(self) -> float:
        return 2460000.5

    def xGetLastError(self) -> tuple[int, str]:
        return (0, "")


class _File:
    """One open file. A temporary one has no path and never fails."""

    def __init__(self, disk: VirtualDisk, path: str | None, file: VirtualFile) -> None:
        self._disk, self._path, self._file = disk, path, file

    def _operation(self, kind: str) -> bool:
        return self._path is None or self._disk.operation(kind, self._path)

    def xRead(self, amount: int, offset: int) -> bytes:
        return bytes(self._file.seen[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._operation("write"):
            self._file.write(offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        if self._operation("truncate"):
            self._file.truncate(size)

    def xSync(self, flags: int) -> None:
        if self._operation("sync"):
            self._file.sync()
            if self._path is not None:
                self._disk.deleted.pop(self._path, None)

    def xFileSize(self) -> int:
        return len(self._file.seen)

    def xLock(self, level: int) -> None: ...

    def xUnlock(self, level: int) -> None: ...

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, operation: int, pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:
        return 0

    def xClose(self) -> None: ...
