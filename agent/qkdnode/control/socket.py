"""The control socket in the file system: made only where nobody else can reach, and who is at its other end."""

import os
import socket
import stat
import struct
from pathlib import Path

import msgspec

from qkdnode.errors import ConfigError, ControlError

MAX_PATH_BYTES = 107  # of sun_path, without its end
BACKLOG = 16
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
OTHERS = 0o077


class Credentials(msgspec.Struct, frozen=True):
    """Who connected, as the kernel noted it at that moment."""

    pid: int
    uid: int
    gid: int


class BoundSocket(msgspec.Struct, frozen=True):
    """A listening socket and which file it is, so that no other is removed in its place."""

    listening: socket.socket
    path: Path
    device: int
    inode: int


def peer_credentials(connected: socket.socket) -> Credentials:
    """SO_PEERCRED of a connection."""
    pid, uid, gid = CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return Credentials(pid, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF)


def bind_private(path: Path) -> BoundSocket:
    """Listen at `path` with mode 0600. ConfigError if others could get at it or put something in its place.

    A directory that is not there is made with mode 0700. A socket that a former agent left behind is removed; one that
    somebody listens at is not.
    """
    path = Path(os.path.abspath(path))
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(
            f"`control.socket` {path} has {len(os.fsencode(path))} bytes, {MAX_PATH_BYTES} are possible: shorten it"
        )
    demand_private_directory(path.parent)
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setblocking(False)
        listening.bind(os.fspath(path))
        os.chmod(path, 0o600)  # before it listens, so before anybody can connect
        listening.listen(BACKLOG)
        state = os.lstat(path)
    except OSError as error:
        listening.close()
        raise ConfigError(f"cannot listen at `control.socket` {path}: {error.strerror}") from None
    return BoundSocket(listening, path, state.st_dev, state.st_ino)


def remove(bound: BoundSocket) -> None:
    """Close the socket and remove its file, if the file is still that socket."""
    bound.listening.close()
    try:
        state = os.lstat(bound.path)
        if (state.st_dev, state.st_ino) == (bound.device, bound.inode):
            bound.path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ControlError(f"cannot remove {bound.path}: {error.strerror}") from None


def demand_private_directory(directory: Path) -> None:
    """Make it, or see that it is ours alone and that nobody else can exchange it or what leads to it."""
    try:
        if not os.path.lexists(directory):
            directory.mkdir(mode=0o700)
        state = os.lstat(directory)
    except OSError as error:
        raise ConfigError(f"cannot use the directory {directory} of `control.socket`: {error.strerror}") from None
    if not stat.S_ISDIR(state.st_mode):
        raise ConfigError(f"{directory}, where `control.socket` is to be, is no directory (or a link to one)")
    if state.st_uid != os.geteuid():
        raise ConfigError(f"the directory {directory} of `control.socket` belongs to user {state.st_uid}, not to us")
    if state.st_mode & OTHERS:
        raise ConfigError(f"the directory {directory} of `control.socket` is open to others: chmod 700 {directory}")
    for above in directory.resolve().parents:
        state = os.stat(above)
        if state.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"`control.socket` is below {above}, which belongs to user {state.st_uid}: move it")
        if state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX:
            raise ConfigError(f"`control.socket` is below {above}, where others may rename what is in it: move it")


def _remove_stale(path: Path) -> None:
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(state.st_mode):
        raise ConfigError(f"{path}, where `control.socket` is to be, is no socket: it is not overwritten; move it away")
    if state.st_uid != os.geteuid():
        raise ConfigError(f"the socket {path} belongs to user {state.st_uid}: it is not removed; find out who made it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError:
            pass  # somebody listens, and is busy
    raise ConfigError(f"another agent listens at `control.socket` {path}: stop it first, or give another path")
