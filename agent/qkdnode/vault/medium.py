"""The vault's files as they stand, byte by byte: what SQLite would not show any more.

They are read through SQLite's own way to them: a file of ours that is closed would take SQLite's locks with it.
"""

import os
from contextlib import suppress
from pathlib import Path

import apsw

MAIN, LOG = "", "-wal"
NAMES = (MAIN, LOG)
_FLAGS = {MAIN: apsw.SQLITE_OPEN_MAIN_DB, LOG: apsw.SQLITE_OPEN_WAL}


class Medium:
    """The main file of a vault and its write-ahead log, for reading."""

    def __init__(self, path: Path, vfs: str | None) -> None:
        self._path, self._vfs = path, vfs
        self._open: dict[str, apsw.VFSFile] = {}

    def size(self, name: str) -> int:
        """Bytes of a file now."""
        return self._file(name).xFileSize()

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes that are all in the file."""
        return self._file(name).xRead(size, offset)

    def close(self) -> None:
        """Let go; the connection is closed already."""
        for file in self._open.values():
            with suppress(apsw.Error):
                file.xClose()
        self._open.clear()

    def _file(self, name: str) -> apsw.VFSFile:
        file = self._open.get(name)
        if file is None:
            path = os.fspath(self._path) + name
            file = self._open[name] = apsw.VFSFile(self._vfs or "", path, [apsw.SQLITE_OPEN_READONLY | _FLAGS[name], 0])
        return file
