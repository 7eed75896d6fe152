"""The interposing library: built from the tree, told what to do, and its trace read back."""

import ctypes
import functools
import hashlib
import os
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

SOURCE = Path(__file__).with_name("interpose.c")

WRITE, SYNC, TRUNCATE, UNLINK, RENAME, SEND = CALLS = range(6)
CALL_NAMES = ("write", "sync", "truncate", "unlink", "rename", "send")
NOTHING, KILL_BEFORE, KILL_AFTER, ENOSPC, EIO, SHORT, FULL = ACTS = range(7)
ACT_NAMES = ("nothing", "kill before", "kill after", "ENOSPC", "EIO", "short", "disk full")
# What can befall a call. A send that fails is a connection that broke.
ACTS_OF = {
    WRITE: (KILL_BEFORE, KILL_AFTER, ENOSPC, EIO, SHORT, FULL),
    SYNC: (KILL_BEFORE, KILL_AFTER, ENOSPC, EIO),
    TRUNCATE: (KILL_BEFORE, KILL_AFTER, EIO),
    UNLINK: (KILL_BEFORE, KILL_AFTER, EIO),
    RENAME: (KILL_BEFORE, KILL_AFTER, EIO),
    SEND: (KILL_BEFORE, KILL_AFTER, ENOSPC, EIO),
}
CREATED, WRITTEN, TRUNCATED, SYNCED, DIRECTORY_SYNCED, RENAMED, UNLINKED, NOTED = range(1, 9)
RECORD = struct.Struct("=IIQQQ")  # struct record of interpose.c


class Fault(msgspec.Struct, frozen=True):
    """What befalls the nth call of a kind, from 1 on, in the process of one end."""

    role: str
    call: int
    nth: int
    act: int

    def __str__(self) -> str:
        return f"{self.role}:{CALL_NAMES[self.call]}:{self.nth}:{ACT_NAMES[self.act].replace(' ', '-')}"

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """The inverse of str()."""
        role, call, nth, act = text.split(":")
        return cls(role, CALL_NAMES.index(call), int(nth), ACT_NAMES.index(act.replace("-", " ")))


class Operation(msgspec.Struct, frozen=True):
    """One change of a file or of the directory, one sync, or a note of the process, in their order."""

    op: int
    name: str
    inode: int
    value: int  # offset, size, or the note
    data: bytes


@functools.cache
def library() -> Path:
    """The library, built once for each state of its source."""
    compiler = os.environ.get("CC") or (sysconfig.get_config_var("CC") or "cc").split()[0]
    digest = hashlib.sha256(SOURCE.read_bytes() + compiler.encode()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"qkdnode-interpose-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.stat().st_uid != os.getuid() or place.stat().st_mode & 0o077:
        raise PermissionError(f"{place} is open to others: remove it")
    built = place / f"interpose-{digest}.so"
    if not built.exists():
        fresh = place / f"{os.getpid()}.so"
        command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-O1", "-shared", "-fPIC", "-o", str(fresh), str(SOURCE)]
        subprocess.run(command, check=True)
        fresh.rename(built)
    return built


class Interposer:
    """The library as it is loaded into this process."""

    def __init__(self) -> None:
        if str(library()) not in os.environ.get("LD_PRELOAD", ""):
            raise RuntimeError("the interposing library is not loaded into this process")
        self._library = ctypes.CDLL(str(library()))
        self._library.qkn_count.restype = ctypes.c_ulonglong

    def arm(self, fault: Fault) -> None:
        """Count from now on, and let the fault happen."""
        self._library.qkn_arm(fault.call, ctypes.c_ulonglong(fault.nth), fault.act)

    def scope(self, directory: Path) -> None:
        """Files below this directory count."""
        self._library.qkn_scope(os.fsencode(directory))

    def trace(self, fd: int) -> None:
        """Write what happens to files into this descriptor."""
        self._library.qkn_trace(fd)

    def note(self, value: int) -> None:
        """Put a number into the trace."""
        self._library.qkn_note(ctypes.c_ulonglong(value))

    @property
    def fired(self) -> bool:
        """Whether the fault has happened."""
        return bool(self._library.qkn_fired())


def ordered(scope: Path, fault: Fault, fired: Path) -> dict[str, str]:
    """The environment for a process that is started under the library; `fired` is made non-empty as it happens."""
    return {
        "LD_PRELOAD": str(library()),
        "INTERPOSE_SCOPE": str(scope),
        "INTERPOSE_ARM": f"{fault.call}:{fault.nth}:{fault.act}",
        "INTERPOSE_FIRED": str(fired),
    }


def operations(trace: bytes) -> Iterator[Operation]:
    """A trace, read back."""
    at = 0
    while at < len(trace):
        op, name_bytes, inode, value, data_bytes = RECORD.unpack_from(trace, at)
        at += RECORD.size
        name = os.fsdecode(trace[at : at + name_bytes])
        at += name_bytes
        yield Operation(op, Path(name).name, inode, value, trace[at : at + data_bytes])
        at += data_bytes
