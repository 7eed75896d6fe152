"""Agents and applications as real processes on emulated devices, to be started, killed and questioned."""

import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qkdnode.cli.audit import public_key, verify_export
from qkdnode.node.provision import provision_application, provision_node, provision_operator, provision_pair
from qkdnode.vault.export_reader import export_audit

Line = dict[str, Any]
Config = dict[str, Any]

PATIENCE_S = 80.0  # what nothing takes that works, on a machine that is busy with other things

# A bright, clean channel, so that Batches with key are small and soon full.
OPTICS: Config = {"slot_rate_hz": 10_000_000, "loss_db": 2.0, "misalignment": 0.005, "clock_offset_ns": 123_456_789}
DISTILL: Config = {"window_slots": 2**20, "batch_bits": 1_000_000, "batch_deadline_s": 30.0}


def toml(value: Any) -> str:
    """A value in TOML, tables in line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


class Process:
    """`qkdnode ARGUMENTS`, whose JSON lines on `stream` are kept in order; other lines are its last words."""

    def __init__(self, name: str, arguments: list[str], stream: str) -> None:
        self.name = name
        self.lines: list[Line] = []
        self.words: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.child = subprocess.Popen(
            [sys.executable, "-m", "qkdnode", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stream == "stdout" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if stream == "stderr" else subprocess.STDOUT,
            text=True,
        )
        self._pipe: Any = getattr(self.child, stream)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for text in self._pipe:
            with self._changed:
                if text.startswith("{") and text.endswith("\n"):  # or a kill has cut it off
                    self.lines.append(json.loads(text))
                else:
                    self.words.append(text.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, what: str, wanted: Callable[[Line], Any], *, after: int = 0) -> Line:
        """The first line from position `after` on that is `wanted`; says what did not come."""
        until = time.monotonic() + PATIENCE_S
        with self._changed:
            while True:
                while after < len(self.lines):
                    if wanted(self.lines[after]):
                        return self.lines[after]
                    after += 1
                left = until - time.monotonic()
                assert not self._ended, f"{self.name} ended before {what}: {self.shown()}"
                assert left > 0, f"{self.name}: no {what} within {PATIENCE_S:.0f} s: {self.shown()}"
                self._changed.wait(left)

    def wait_for_event(self, event: str, *, after: int = 0, **fields: Any) -> Line:
        """The first log line of `event` that has all `fields`."""
        what = " ".join([event, *map(str, fields.values())])
        return self.wait_for(
            what,
            lambda line: line.get("event") == event and all(line.get(name) == fields[name] for name in fields),
            after=after,
        )

    def events(self, event: str) -> list[Line]:
        """All log lines of `event` so far."""
        return [line for line in list(self.lines) if line.get("event") == event]

    def alarms(self) -> set[str]:
        """The codes of the alarms so far."""
        return {line["code"] for line in self.events("alarm")}

    def shown(self) -> str:
        """What helps to understand it, without the statistics."""
        told = [line for line in self.lines if line.get("event") != "statistics" and "key" not in line]
        return "\n".join([*map(json.dumps, told[-20:]), *self.words[-30:]])

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self.child.kill()
        self.wait()

    def stop(self) -> int:
        """Ask it to end in order; its exit status."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Its exit status once it has ended."""
        try:
            status = self.child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"{self.name} did not end within {PATIENCE_S:.0f} s: {self.shown()}") from None
        finally:
            self._reader.join(PATIENCE_S)
            assert not self._reader.is_alive(), f"{self.name} has ended, and somebody still holds its output"
            self._pipe.close()
        return status


class Site:
    """A directory with nodes, links and applications, and the processes that run there. None outlives the `with`."""

    def __init__(self) -> None:
        # Short, as the path of a local socket must be.
        self.directory = Path(tempfile.mkdtemp(prefix="qkd-"))
        self.configs: dict[str, Config] = {}
        self.processes: list[Process] = []
        self._salt = secrets.token_hex(16)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            if process.child.poll() is None:
                process.kill()
            process.wait()
            if kind is not None:
                print(f"--- {process.name}\n{process.shown()}")
        shutil.rmtree(self.directory)

    def node(self, name: str, **entropy: Any) -> Config:
        """Provision a node with a QRNG; its configuration, to be changed before it starts."""
        provision_node(name, self.directory)
        self.passphrase(name).touch(mode=0o600)
        self.passphrase(name).write_text(secrets.token_urlsafe(24))
        emulated = {"seed": len(self.configs), "epoch_ns": time.time_ns(), **entropy}
        self.configs[name] = {
            "node": {
                "name": name,
                "identity": f"{name}.identity",
                "vault": f"{name}.vault",
                "root_key": {"passphrase_file": self.passphrase(name).name},
            },
            "supply": {"listen": self.supply(name)},
            "qrng": [{"serial": f"QRNG-{name}", "backend": "emulated", "emulated": emulated}],
            "application": [],
            "link": [],
            "association": [],
        }
        return self.configs[name]

    def link(self, name: str, alice: str, bob: str, **optics: Any) -> None:
        """Provision a link between two nodes."""
        provision_pair(name, alice, bob, self.directory)
        emulated = {**OPTICS, "seed": len(name), "epoch_ns": time.time_ns(), **optics}
        for role, node, far, side in (("alice", alice, bob, "listen"), ("bob", bob, alice, "connect")):
            self.configs[node]["link"].append(
                {
                    "name": name,
                    "role": role,
                    "peer": far,
                    "peer_public": f"{far}.public",
                    "pair_key": f"{name}.{node}.pair",
                    side: f"ipc://{self.directory}/{name}",
                    "module": {"serial": f"{role}-{name}", "backend": "emulated", "emulated": dict(emulated)},
                    "distill": {**DISTILL, "slot_rate_hz": emulated["slot_rate_hz"]},
                }
            )

    def pair_of_applications(self, link: str, ends: dict[str, str]) -> None:
        """Provision an application at each of two nodes, for keys of a link: node -> application."""
        for application in ends.values():
            provision_application(application, self.directory)
        for (node, local), remote in zip(ends.items(), reversed(ends.values()), strict=True):
            config = self.configs[node]
            config["application"].append({"name": local, "public": f"{local}.public"})
            config["association"].append({"local": local, "remote": remote, "link": link})

    def operator(self, name: str, node: str, *roles: str) -> Path:
        """Provision an operator of a node, which then has a control socket; their identity file."""
        config = self.configs[node]
        config.setdefault("control", {"socket": f"{node}.control/socket"})
        provision_operator(name, self.directory)
        config.setdefault("operator", []).append({"name": name, "public": f"{name}.public", "roles": list(roles)})
        return self.directory / f"{name}.operator"

    def passphrase(self, node: str) -> Path:
        """Where the passphrase of a node's vault is."""
        return self.directory / f"{node}.passphrase"

    def vault(self, node: str) -> Path:
        """Where a node's vault is."""
        return self.directory / f"{node}.vault"

    def supply(self, node: str) -> str:
        """Where a node supplies keys."""
        return f"ipc://{self.directory}/{node}.supply"

    def write(self, node: str) -> Path:
        """Write the configuration of a node as it is now."""
        path = self.directory / f"{node}.toml"
        path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in self.configs[node].items()))
        return path

    def agent(self, node: str) -> Process:
        """Start a node's agent."""
        arguments = ["run", "--config", str(self.write(node)), "--statistics", "0.5", "--drain", "20"]
        return self._start(Process(node, arguments, "stderr"))

    def application(self, node: str, local: str, remote: str, link: str, *, credit: int = 64) -> Process:
        """Start an application that prints its keys' ids and salted digests."""
        arguments = ["subscribe", "--endpoint", self.supply(node), "--node", str(self.directory / f"{node}.public")]
        arguments += ["--identity", str(self.directory / f"{local}.identity"), "--remote", remote, "--link", link]
        arguments += ["--credit", str(credit), "--salt", self._salt]
        return self._start(Process(local, arguments, "stdout"))

    def rows(self, node: str, query: str) -> list[Any]:
        """What a query finds in a node's vault, while its agent runs or not; one column without its tuple."""
        connection = sqlite3.connect(f"file:{self.vault(node)}?mode=ro", uri=True, isolation_level=None)
        try:
            return [row[0] if len(row) == 1 else row for row in connection.execute(query)]
        finally:
            connection.close()

    def wait_for_row(self, node: str, what: str, query: str) -> None:
        """Look into a node's vault until a query finds something."""
        until = time.monotonic() + PATIENCE_S
        while not self.rows(node, query):
            assert time.monotonic() < until, f"the vault of {node}: no {what} within {PATIENCE_S:.0f} s"
            time.sleep(0.001)

    def audit_is_valid(self, node: str) -> bool:
        """Whether the audit log of a node verifies."""
        export = self.directory / f"{node}.audit"
        with export.open("w", encoding="utf-8") as out:
            export_audit(self.vault(node), out.write)
        report = verify_export(export, public_key(str(self.directory / f"{node}.public")))
        return report.valid and report.leaves > 0

    def _start(self, process: Process) -> Process:
        self.processes.append(process)
        return process


class Operator:
    """`qkdnode COMMAND --config NODE.toml` as one operator."""

    def __init__(self, site: Site, node: str, file: Path) -> None:
        self._options = ["--config", str(site.directory / f"{node}.toml")]
        self._environment = {**os.environ, "QKDNODE_OPERATOR": str(file)}

    def run(self, *arguments: str | Path, status: int = 0) -> str:
        """What a command says, which ends with this exit status."""
        done = subprocess.run(
            [sys.executable, "-m", "qkdnode", *map(str, arguments), *self._options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self._environment,
        )
        assert done.returncode == status, f"{arguments}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout if status == 0 else done.stderr

    def answer(self, *arguments: str) -> Any:
        """The one JSON object of a command."""
        return json.loads(self.run(*arguments, "--json"))

    def until(self, wanted: Callable[[Any], Any], *arguments: str) -> Any:
        """Ask until the answer is as wanted."""
        deadline = time.monotonic() + PATIENCE_S
        while not wanted(answer := self.answer(*arguments)):
            assert time.monotonic() < deadline, answer
            time.sleep(0.1)
        return answer


# The keys in all Bundles of a vault, one by one.
KEYS = """(
    WITH RECURSIVE places (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM places WHERE i < 127)
    SELECT
        hex(substr(key_ids, 16 * i + 1, 16)) AS id,
        CASE substr(states, i + 1, 1)
            WHEN x'61' THEN 'allocated' WHEN x'72' THEN 'ready' WHEN x'64' THEN 'delivered'
            WHEN x'62' THEN 'burnt' WHEN x'78' THEN 'damaged' WHEN x'63' THEN 'compromised' WHEN x'7A' THEN 'destroyed'
            WHEN x'65' THEN 'deactivated'
        END AS state,
        application, delivery, hex(batch) AS batch, number * 128 + i AS place
    FROM bundles JOIN places ON i < length(states)
)"""


def two_nodes(site: Site, **optics: Any) -> None:
    """Alice and Bob, a link, and an application at each end."""
    site.node("alice")
    site.node("bob")
    site.link("line", "alice", "bob", **optics)
    site.pair_of_applications("line", {"alice": "app-a", "bob": "app-b"})


def both_applications(site: Site, **options: Any) -> tuple[Process, Process]:
    """The applications of `two_nodes`, started."""
    return (
        site.application("alice", "app-a", "app-b", "line", **options),
        site.application("bob", "app-b", "app-a", "line", **options),
    )


def keys(application: Process) -> dict[str, str]:
    """Ids and digests of the keys that an application was given; none twice."""
    given = [line for line in list(application.lines) if "key" in line]
    found = {line["key"]: line["digest"] for line in given}
    assert len(found) == len(given), f"{application.name} was given {len(given) - len(found)} keys twice"
    return found


def wait_for_keys(application: Process, count: int) -> None:
    """Wait until an application has so many more keys than now."""
    already = len(application.lines)
    seen = 0

    def enough(line: Line) -> bool:
        nonlocal seen
        seen += "key" in line
        return seen >= count

    application.wait_for(f"{count} more keys", enough, after=already)
