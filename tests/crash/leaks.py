"""The leak scan: a node and an application with keys that the harness knows, searched after each scenario.

Searched are the writable memory of both processes but the locked part of it, the vault's files, the logs, what was on
the wire between the two, and a core dump where gdb's gcore is there.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from crash.controls import CONTROLS, LEAK_SCAN, Control
from crash.keeper import HERE, KEY_BITS, LINK, MAX_COMMAND, NODE, REFILL_BITS
from crash.scan import Hit, Scanner
from crash.sweep import Found
from crash.trial import MEMORY
from qkdnode.node.provision import provision_application, provision_node

PATIENCE_S = 30.0
BATCH_BYTES, PAIR_BYTES = 2048, 32 * 64
SALT = bytes(16)


class Wire:
    """A proxy between application and node that keeps all that passes."""

    def __init__(self, target: str) -> None:
        self._target = "127.0.0.1", int(target.rsplit(":", 1)[1])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed = bytearray()
        self._gate = threading.Lock()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut it."""
        self._listener.close()
        for end in self._open:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                with self._gate:
                    self.passed += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


class Scene:
    """A node, an application and the wire between them, in a directory that is gone afterwards."""

    def __init__(self, *, control: str = "", dump: bool = False) -> None:
        self._control, self._dump = control, dump
        self.directory = Path(tempfile.mkdtemp(prefix="qkdnode-leaks-", dir=MEMORY))
        provision_node(NODE, self.directory)
        provision_application(HERE.local, self.directory)
        (self.directory / "credential").write_bytes(os.urandom(32))
        self.keys: dict[str, bytes] = {}
        self.scanner = Scanner({})
        self.hits: list[Hit] = []
        self.scans = self.read = self.locked = 0
        self._keeper: subprocess.Popen[bytes] | None = None
        self._application: subprocess.Popen[str] | None = None
        self._wire: Wire | None = None
        self._passed: list[bytearray] = []
        self._commands: socket.socket | None = None
        self._logs: list[IO[bytes]] = []
        self.supplied = 0
        self.waiting: list[bytes] = []  # keys that nobody has fetched

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for log in self._logs:
            log.close()
        if kind is not None:
            for path in self._log_files():
                print(path.read_text(errors="replace")[-2000:], file=sys.stderr)
        shutil.rmtree(self.directory)

    # --- the node ---

    def start(self) -> None:
        """Start the node."""
        self._commands, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._commands.settimeout(PATIENCE_S)
        reading, self._pipe = os.pipe()
        arguments = [str(self.directory), self._control, str(theirs.fileno()), str(reading)]
        log = (self.directory / f"keeper-{len(self._logs)}.log").open("wb")
        self._logs.append(log)
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "crash.keeper", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno(), reading],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        os.close(reading)
        if msgspec.msgpack.decode(self._commands.recv(MAX_COMMAND)) is None:
            raise RuntimeError("there is no locked memory here: nothing can be scanned")

    def ask(self, name: str, *arguments: Any, key: str | None = None, size: int = 0) -> Any:
        """One command to the node, with a new known key through the pipe if one is named."""
        assert self._commands is not None
        self._commands.send(msgspec.msgpack.encode((name, *arguments)))
        if key is not None:
            self.send_key(key, size)
        return msgspec.msgpack.decode(self._commands.recv(MAX_COMMAND))

    def send_key(self, name: str, size: int) -> None:
        """Put a new known key into the pipe."""
        material = self.keys[name] = os.urandom(size)
        self.scanner = Scanner(self.keys)
        os.write(self._pipe, material)

    def kill(self) -> None:
        """End all at once."""
        self.leave()
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.wait()
            os.close(self._pipe)
            assert self._commands is not None
            self._commands.close()
        self._keeper = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def serve(self) -> None:
        """Let the node supply, through a wire that is read."""
        self._wire = Wire(self.ask("serve", "tcp://127.0.0.1:*"))
        self._passed.append(self._wire.passed)

    def subscribe(self) -> None:
        """Let the application come."""
        assert self._wire is not None
        arguments = ["subscribe", "--endpoint", self._wire.endpoint, "--node", str(self.directory / f"{NODE}.public")]
        arguments += ["--identity", str(self.directory / f"{HERE.local}.identity"), "--remote", HERE.remote]
        arguments += ["--link", LINK, "--salt", SALT.hex()]
        self._application = subprocess.Popen(
            [sys.executable, "-m", "qkdnode", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )

    def receive(self, count: int) -> None:
        """Wait until the application has so many more keys and the node has journalled that."""
        assert self._application is not None
        assert self._application.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, self._application.kill)
        watchdog.start()
        half = self.keys["Batch 1"][REFILL_BITS // 8 :]
        known = {
            hashlib.sha256(SALT + half[at : at + KEY_BITS // 8]).hexdigest()[:32]
            for at in range(0, len(half), KEY_BITS // 8)
        }
        with (self.directory / "application.log").open("a") as log:
            for _ in range(count):
                line = self._application.stdout.readline()
                log.write(line)
                if json.loads(line)["digest"] not in known:
                    raise RuntimeError("the application was given a key that the harness does not know")
                self.supplied += 1
        while self.ask("waiting"):
            pass
        watchdog.cancel()

    def leave(self) -> None:
        """Let the application go."""
        if self._application is not None:
            for _ in range(int(PATIENCE_S)):
                # Again: right after a stop the kernel may give the signal to a thread that Python does not wake for it.
                self._application.terminate()
                try:
                    self._application.communicate(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    continue
            else:
                raise RuntimeError("the application does not end")
            self._application = None

    # --- the scan ---

    def scan(self) -> None:
        """Search everything there is now."""
        self.scans += 1
        for name, process in (("node", self._keeper), ("application", self._application)):
            if process is not None:
                self._scan_process(name, process.pid)
        self.hits += self.scanner.search_files("file", [p for p in (self.directory / "vault").iterdir() if p.is_file()])
        self.hits += self.scanner.search_files("log", self._log_files())
        for passed in self._passed:
            self.hits += self.scanner.search("wire", bytes(passed))

    def _scan_process(self, name: str, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            hits, read, locked = self.scanner.search_process(name, pid)
        finally:
            os.kill(pid, signal.SIGCONT)
        self.hits += hits
        self.read += read
        self.locked += locked
        if self._dump and shutil.which("gcore"):
            core = self.directory / "core"
            subprocess.run(["gcore", "-o", str(core), str(pid)], check=True, capture_output=True, timeout=60)
            dumped = core.with_name(f"core.{pid}")
            self.hits += self.scanner.search(f"core dump of {name}", dumped.read_bytes())
            dumped.unlink()

    def _log_files(self) -> list[Path]:
        return sorted(self.directory.glob("*.log"))


def _normal(scene: Scene) -> None:
    scene.start()
    scene.ask("pair", PAIR_BYTES, key="the pair's key", size=PAIR_BYTES)
    scene.ask("stock", 1, BATCH_BYTES, key="Batch 1", size=BATCH_BYTES)
    scene.ask("allocate", 6, "accepted")
    scene.serve()
    scene.subscribe()
    scene.receive(6)


def _waiting(scene: Scene) -> None:
    scene.leave()
    scene.waiting = scene.ask("allocate", 4, "accepted")
    scene.ask("hold", scene.waiting[0])


def _refused(scene: Scene) -> None:
    scene.ask("allocate", 2, "refused")
    if not scene.ask("refuse", scene.waiting[1]):
        raise RuntimeError("a key was opened for another application")


def _failed(scene: Scene) -> None:
    scene.send_key("a Batch that came too late", BATCH_BYTES)
    scene.send_key("a Batch of the wrong length", BATCH_BYTES)
    if not scene.ask("fail", BATCH_BYTES):
        raise RuntimeError("a Batch with other content was taken")


def _killed(scene: Scene) -> None:
    scene.kill()


def _again(scene: Scene) -> None:
    scene.start()
    scene.serve()
    scene.subscribe()
    scene.receive(4)


def _stopped(scene: Scene) -> None:
    scene.leave()
    scene.ask("stop")
    scene.kill()


SCENARIOS: dict[str, Callable[[Scene], None]] = {
    "delivered": _normal,
    "waiting and open": _waiting,
    "refused": _refused,
    "failed": _failed,
    "killed": _killed,
    "started again": _again,
    "stopped": _stopped,
}


def scan(*, control: str = "", dump: bool = False, wanted: str | None = None) -> tuple[Found, str]:
    """All scenarios, or up to a wanted hit, each with a search of everything; and a line on what was searched."""
    violations = []
    with Scene(control=control, dump=dump) as scene:
        for name, play in SCENARIOS.items():
            play(scene)
            scene.hits.clear()
            scene.scan()
            violations += [f"leak: after {name!r}: {hit}" for hit in scene.hits]
            if wanted and any(str(hit).startswith(wanted) for hit in scene.hits):
                return Found(scene.scans, tuple(violations)), ""
        how = "core dumps too" if dump and shutil.which("gcore") else "no core dumps"
        done = f"{scene.scans} scans of {scene.read >> 20} MiB, {scene.locked >> 10} KiB locked left out, {how}"
        if not scene.supplied or not scene.locked:
            violations.append("leak: no key was supplied from locked memory: the scan proves nothing")
    return Found(scene.scans, tuple(violations)), done


def uncaught(control: Control) -> Found:
    """Look for a planted leak; it is a violation of the harness if it is not found."""
    try:
        found, done = scan(control=control.name, wanted=control.found_as)
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        return Found(0, (f"control not caught, the node did not live with it: {control.name}: {error}",))
    if not done:
        return Found(found.points)
    return Found(found.points, (f"control not caught: {control.name}: {found.violations[:3]}",))


def controls() -> tuple[Control, ...]:
    """The leaks that this part must find."""
    return tuple(control for control in CONTROLS if control.part == LEAK_SCAN)
