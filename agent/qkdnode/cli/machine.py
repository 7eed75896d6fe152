"""The machine as `qkdnode doctor` looks at it: each method answers one question and changes nothing."""

import ctypes
import fcntl
import importlib
import os
import pwd
import resource
import socket
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import msgspec

from qkdnode.channel.socket import library
from qkdnode.device.transport import PRODUCT_ID, VENDOR_ID, has_libusb
from qkdnode.errors import KernelError

NATIVE = ("secret", "sifting", "cascade", "packets", "stub", "polyval", "toeplitz")
USB_DEVICES = Path("/sys/bus/usb/devices")
CAP_IPC_LOCK = 14  # whoever has it is under no limit
TIME_ERROR = 5  # of adjtimex(2): the clock is not synchronised


class Account(msgspec.Struct, frozen=True):
    """The user that an agent runs as."""

    name: str
    uid: int
    groups: tuple[int, ...]


class FileState(msgspec.Struct, frozen=True):
    """What stat(2) says of a file or folder."""

    is_file: bool
    is_folder: bool
    mode: int
    uid: int
    gid: int
    changed_s: float


class Volume(msgspec.Struct, frozen=True):
    """The file system of a place."""

    kind: str
    free_bytes: int


class UsbDevice(msgspec.Struct, frozen=True):
    """A QKD module or QRNG on the bus."""

    serial: str
    node: str
    state: FileState | None


class Machine:
    """This one. A test gives another."""

    def python(self) -> tuple[str, tuple[int, ...]]:
        """The system and Python's version."""
        return sys.platform, tuple(sys.version_info[:3])

    def kernels(self) -> Mapping[str, tuple[str, ...]] | str:
        """The kernels of each family that run here, fastest first; or what the compiled core lacks."""
        found = {}
        for name in NATIVE:
            try:
                module = importlib.import_module(f"qkdnode.native.{name}")
            except ImportError as error:
                return f"qkdnode.native.{name} cannot be loaded: {error}"
            except KernelError as error:
                return str(error)
            if kernels := getattr(module, "KERNELS", ()):
                found[name] = tuple(kernels)
        return found

    def cpu_features(self) -> frozenset[str]:
        """The flags of the CPU that kernels ask for."""
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
        except OSError:
            return frozenset()
        return frozenset(text.split()) & {"pclmulqdq", "avx2", "vpclmulqdq", "avx512f", "pmull", "asimd"}

    def locked_memory(self) -> tuple[str | None, int | None]:
        """How key material is locked, None if it cannot be; and the limit in bytes, None if there is none."""
        secret = importlib.import_module("qkdnode.native.secret")
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        is_free = limit == resource.RLIM_INFINITY or self._may_lock_all()
        return secret.locked_mode(), None if is_free else limit

    def _may_lock_all(self) -> bool:
        said = self.text(Path("/proc/self/status")) or ""
        held = next((line.split()[1] for line in said.splitlines() if line.startswith("CapEff:")), "0")
        return bool(int(held, 16) >> CAP_IPC_LOCK & 1)

    def zmq(self) -> tuple[tuple[int, ...], bool]:
        """The version of libzmq, and whether it can CURVE."""
        return library()

    def has_libusb(self) -> bool:
        """Whether libusb can be loaded."""
        return has_libusb()

    def usb_devices(self) -> list[UsbDevice]:
        """QKD modules and QRNGs on the bus, as far as the kernel lists them."""
        found = []
        for place in sorted(USB_DEVICES.glob("*")):
            try:
                said = {
                    name: (place / name).read_text(encoding="utf-8", errors="replace").strip()
                    for name in ("idVendor", "idProduct", "busnum", "devnum")
                }
                serial = (place / "serial").read_text(encoding="utf-8", errors="replace").strip()
            except OSError:  # an interface, a hub without a serial, or one that is being unplugged
                continue
            if (said["idVendor"], said["idProduct"]) == (f"{VENDOR_ID:04x}", f"{PRODUCT_ID:04x}"):
                node = f"/dev/bus/usb/{int(said['busnum']):03d}/{int(said['devnum']):03d}"
                found.append(UsbDevice(serial, node, self.file(Path(node))))
        return found

    def account(self, name: str | None) -> Account | None:
        """A user by name; by default qkdnode if root asks and there is one, else who asks."""
        try:
            if name is not None:
                entry = pwd.getpwnam(name)
            elif os.geteuid() == 0 and any(one.pw_name == "qkdnode" for one in pwd.getpwall()):
                entry = pwd.getpwnam("qkdnode")
            else:
                entry = pwd.getpwuid(os.geteuid())
        except KeyError:
            return None
        return Account(entry.pw_name, entry.pw_uid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))

    def file(self, path: Path) -> FileState | None:
        """A file or folder; None if there is none, or none that may be looked at."""
        try:
            found = path.stat()
        except OSError:
            return None
        return FileState(
            stat.S_ISREG(found.st_mode),
            stat.S_ISDIR(found.st_mode),
            stat.S_IMODE(found.st_mode),
            found.st_uid,
            found.st_gid,
            found.st_mtime,
        )

    def text(self, path: Path) -> str | None:
        """What a file says; None if it cannot be read."""
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def volume(self, folder: Path) -> Volume | None:
        """The file system that a folder is on."""
        try:
            free = os.statvfs(folder)
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            wanted = folder.resolve().stat().st_dev
        except OSError:
            return None
        kind = "unknown"
        for line in mounts:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == f"{os.major(wanted)}:{os.minor(wanted)}":
                kind = rest.split()[0]
        return Volume(kind, free.f_bavail * free.f_frsize)

    def port(self, host: str, port: int) -> str | None:
        """None if it is free, else why it cannot be listened on."""
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
                0
            ]
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
        except OSError as error:
            return error.strerror or str(error)
        return None

    def is_held(self, lock: Path) -> bool:
        """Whether a running agent holds this lock."""
        try:
            descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def health(self, host: str, port: int) -> str | None:
        """None if an agent's /healthz says that it is well, else what it says."""
        place = f"[{host}]" if ":" in host else host
        try:
            with urllib.request.urlopen(f"http://{place}:{port}/healthz", timeout=5):
                return None
        except urllib.error.HTTPError as error:
            with error:
                return error.read(1000).decode(errors="replace").strip()
        except OSError as error:
            return str(error)

    def local_socket(self, path: Path) -> str | None:
        """None if somebody listens at a local socket, else why it cannot be reached."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            trial.settimeout(5)
            try:
                trial.connect(str(path))
            except OSError as error:
                return error.strerror or str(error)
        return None

    def environment(self, name: str) -> str | None:
        """An environment variable."""
        return os.environ.get(name)

    def now_s(self) -> float:
        """The wall clock."""
        return time.time()

    def is_synchronised(self) -> bool:
        """Whether the kernel holds its clock for synchronised (adjtimex(2), which only reads here)."""
        nothing = ctypes.create_string_buffer(512)  # struct timex, modes 0
        return bool(ctypes.CDLL(None, use_errno=True).adjtimex(nothing) not in (-1, TIME_ERROR))
