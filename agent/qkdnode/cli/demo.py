"""`qkdnode demo`: two nodes and two applications, each a process of its own, on emulated hardware."""

import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from qkdnode.cli.audit import public_key, verify_export
from qkdnode.errors import ConfigError
from qkdnode.node.provision import provision_application, provision_node, provision_pair
from qkdnode.vault.export_reader import export_audit

NODES = {"alice": "app-a", "bob": "app-b"}
FAR = {"alice": "bob", "bob": "alice"}
LINK = "alice-bob"
ALARMS_FROM_S = 10.0
STOP_S = 25.0  # what draining and stopping may take
CONTRACT_ALARMS = (
    "QBER_HIGH",
    "NO_ENTROPY",
    "AUTH_STARVED",
    "AUTH_FAILED",
    "DEVICE_LOST",
    "DEVICE_GAP",
    "AUDIT_STOPPED",
    "DISK_FULL",
)
CONFIG = """\
[node]
name = "{node}"
identity = "{node}.identity"
vault = "{node}.vault"
root_key = {{ passphrase_file = "{node}.passphrase" }}

[supply]
listen = "ipc://{directory}/{node}.supply"

[[application]]
name = "{application}"
public = "{application}.public"

[[qrng]]
serial = "QRNG-{node}"
backend = "emulated"
[qrng.emulated]
seed = {qrng_seed}
epoch_ns = {epoch_ns}

[[link]]
name = "{link}"
role = "{node}"
peer = "{far}"
peer_public = "{far}.public"
pair_key = "{link}.{node}.pair"
{side} = "ipc://{directory}/channel"

[link.module]
serial = "QKD-{node}"
backend = "emulated"
[link.module.emulated]
seed = {seed}
epoch_ns = {epoch_ns}
clock_offset_ns = 123456789
eavesdrop = {eavesdrop}
{eavesdrop_p_z}

[[association]]
local = "{application}"
remote = "{remote}"
link = "{link}"
"""


def process_age_s() -> float:
    """Seconds since this process was started, by the kernel's account."""
    with open("/proc/self/stat", encoding="ascii") as stat, open("/proc/uptime", encoding="ascii") as uptime:
        started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - started


class Process:
    """A child whose output lines, JSON objects, go into one queue with the time of their arrival."""

    def __init__(self, name: str, arguments: list[str], stream: str, lines: "queue.Queue[tuple[float, str, Any]]"):
        self.name = name
        self.errors: list[str] = []
        self._lines = lines
        self.child = subprocess.Popen(
            [sys.executable, "-m", "qkdnode", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if stream == "stderr" else None,
            text=True,
        )
        pipe = self.child.stderr if stream == "stderr" else self.child.stdout
        assert pipe is not None
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            try:
                message = json.loads(line)
            except ValueError:
                self.errors.append(line.rstrip())
                continue
            if isinstance(message, dict):
                self._lines.put((time.monotonic(), self.name, message))

    def end(self, number: signal.Signals, timeout_s: float) -> bool:
        """Send the signal and wait; kill after the time. False if it had to be killed."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; kill after the time."""
        try:
            self.child.wait(timeout_s)
            ended = True
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            ended = False
        self._reader.join(2)
        for pipe in (self.child.stdout, self.child.stderr):
            if pipe is not None:
                pipe.close()
        return ended


class Observed:
    """What the demonstration has seen of its four processes."""

    def __init__(self, started: float) -> None:
        self.started = started  # monotonic time of this process's start
        self.samples: dict[str, list[tuple[float, dict[str, Any]]]] = {node: [] for node in NODES}
        self.ready: dict[str, float] = {}
        self.alarms: list[tuple[float, str, str]] = []
        self.digests: dict[str, dict[str, str]] = {application: {} for application in NODES.values()}
        self.first_key: float | None = None
        self.final: dict[str, dict[str, Any]] = {}
        self.rss: dict[str, float] = {}
        self.ended: float | None = None

    def take(self, at: float, name: str, message: dict[str, Any]) -> None:
        """One line of one process."""
        if name in self.digests:
            self._take_key(at, name, message)
            return
        event = message.get("event")
        if event == "statistics":
            self.samples[name].append((at, message))
        elif event == "batch ready":
            self.ready.setdefault(name, at)
        elif event == "alarm":
            self.alarms.append((at, name, str(message.get("code"))))
        elif event == "stopped":
            self.final[name] = message
            self.rss[name] = message["rss_mib"]

    def _take_key(self, at: float, name: str, message: dict[str, Any]) -> None:
        if "rss_mib" in message:
            self.rss[name] = message["rss_mib"]
            return
        digests = self.digests[name]
        key, digest = message["key"], message["digest"]
        if key in digests and digests[key] != digest:
            digest = "differs from an earlier delivery"
        digests[key] = digest
        if self.first_key is None and all(key in known for known in self.digests.values()):
            self.first_key = at

    def latest(self, node: str) -> dict[str, Any]:
        """The newest statistics of a node's only link, or nothing yet."""
        samples = self.samples[node]
        return samples[-1][1]["links"].get(LINK, {}) if samples else {}

    def matched(self) -> tuple[int, int, int]:
        """Keys that both applications have, and of them equal and different ones."""
        mine, theirs = self.digests.values()
        both = mine.keys() & theirs.keys()
        equal = sum(mine[key] == theirs[key] for key in both)
        return len(both), equal, len(both) - equal

    def sifted_at(self, when: float) -> float:
        """Sifted bits at a time, between the two samples around it."""
        before = (self.started, 0.0)
        for at, message in self.samples["bob"]:
            bits = float(message["links"].get(LINK, {}).get("sifted_bits", 0))
            if at >= when:
                share = (when - before[0]) / (at - before[0]) if at > before[0] else 1.0
                return before[1] + share * (bits - before[1])
            before = (at, bits)
        return before[1]


def write_node(directory: Path, node: str, worlds: dict[str, Any]) -> Path:
    """The configuration of one node of the demonstration."""
    passphrase = directory / f"{node}.passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text(secrets.token_urlsafe(32))
    eve = worlds["eavesdrop_p_z"]
    text = CONFIG.format(
        node=node,
        far=FAR[node],
        application=NODES[node],
        remote=NODES[FAR[node]],
        link=LINK,
        directory=directory,
        side="listen" if node == "alice" else "connect",
        **{**worlds, "qrng_seed": secrets.randbits(62), "eavesdrop_p_z": f"eavesdrop_p_z = {eve}" if eve else ""},
    )
    path = directory / f"{node}.toml"
    path.write_text(text)
    return path


def provision(directory: Path, worlds: dict[str, Any]) -> dict[str, Path]:
    """Identities, the pair's first key and both configurations."""
    for node, application in NODES.items():
        provision_node(node, directory)
        provision_application(application, directory)
    provision_pair(LINK, "alice", "bob", directory)
    return {node: write_node(directory, node, worlds) for node in NODES}


@contextmanager
def running(
    directory: Path, configs: dict[str, Path], lines: "queue.Queue[tuple[float, str, Any]]", salt: str
) -> Iterator[dict[str, Process]]:
    """Four processes: two agents and two applications. None is left behind."""
    processes: dict[str, Process] = {}
    try:
        for node, config in configs.items():
            arguments = ["run", "--config", str(config), "--statistics", "0.25", "--drain", "12"]
            processes[node] = Process(node, arguments, "stderr", lines)
        for node, application in NODES.items():
            arguments = ["subscribe", "--endpoint", f"ipc://{directory}/{node}.supply"]
            arguments += ["--identity", str(directory / f"{application}.identity")]
            arguments += ["--node", str(directory / f"{node}.public"), "--remote", NODES[FAR[node]]]
            arguments += ["--link", LINK, "--credit", "256", "--salt", salt]
            processes[application] = Process(application, arguments, "stdout", lines)
        yield processes
    finally:
        for process in processes.values():
            if process.child.poll() is None:
                process.child.kill()
                process.wait(5)


def watch(
    observed: Observed,
    lines: "queue.Queue[tuple[float, str, Any]]",
    processes: dict[str, Process],
    until: float,
    display: "Display",
) -> None:
    """Take lines until the time, or until an agent has ended by itself."""
    while time.monotonic() < until and all(processes[node].child.poll() is None for node in NODES):
        try:
            observed.take(*lines.get(timeout=0.1))
            while True:
                observed.take(*lines.get_nowait())
        except queue.Empty:
            display.show(observed)


def drain(observed: Observed, lines: "queue.Queue[tuple[float, str, Any]]") -> None:
    """Take what is left."""
    while not lines.empty():
        observed.take(*lines.get_nowait())


class Display:
    """A live table on a terminal, a plain line a second elsewhere, nothing with --json."""

    def __init__(self, quiet: bool) -> None:
        self._console = Console()
        self._quiet = quiet
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._next = 0.0

    def __enter__(self) -> "Display":
        if self._live is not None and not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None and not self._quiet:
            self._live.stop()

    def show(self, observed: Observed) -> None:
        """Once a second at most without a terminal."""
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + (0.25 if self._live is not None else 1.0)
        if self._live is not None:
            self._live.update(self._table(observed))
        else:
            click.echo(self._line(observed))

    def _table(self, observed: Observed) -> Table:
        table = Table(title=f"two trusted nodes, {time.monotonic() - observed.started:.0f} s")
        for heading in ("node", "link", "sifted Mbit", "QBER", "batches", "secret kbit", "keys here", "alarms"):
            table.add_column(heading, justify="right")
        for node, application in NODES.items():
            link = observed.latest(node)
            errors, bits = link.get("errors", 0), link.get("verified_bits", 0)
            table.add_row(
                node,
                str(link.get("state", "starting")),
                f"{link.get('sifted_bits', 0) / 1e6:.2f}",
                f"{errors / bits:.2%}" if bits else "-",
                str(link.get("batches_ready", 0)),
                f"{link.get('secret_bits', 0) / 1e3:.0f}",
                str(len(observed.digests[application])),
                " ".join(sorted({code for _, name, code in observed.alarms if name == node})) or "-",
            )
        return table

    def _line(self, observed: Observed) -> str:
        link = observed.latest("bob")
        _, equal, different = observed.matched()
        return (
            f"{time.monotonic() - observed.started:5.1f} s  link {link.get('state', 'starting'):9} "
            f"sifted {link.get('sifted_bits', 0) / 1e6:6.2f} Mbit  batches {link.get('batches_ready', 0):3}  "
            f"secret {link.get('secret_bits', 0) / 1e3:6.0f} kbit  keys equal {equal}, different {different}"
        )


def verified(directory: Path, configs: dict[str, Path]) -> bool | None:
    """Whether both nodes' exported logs verify against their public keys; None if one has no vault."""
    verdicts = []
    for node in configs:
        vault = directory / f"{node}.vault"
        if not vault.exists():
            return None
        export = directory / f"{node}.audit"
        with export.open("w", encoding="utf-8") as out:
            export_audit(vault, out.write)
        verdicts.append(verify_export(export, public_key(str(directory / f"{node}.public"))).valid)
    return all(verdicts)


KEPT = {"alice.audit": "audit.log", "alice.public": "audit.pub", "bob.public": "witness.pub"}


def make_directory(keep: Path) -> None:
    """The place for what is kept. ConfigError if it cannot be had."""
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {keep}: {error.strerror}") from None


def keep_log(directory: Path, keep: Path) -> None:
    """What a stranger verifies: no secret is in it. What there is none of, as no vault was made, is not left there."""
    for name, kept in KEPT.items():
        (keep / kept).unlink(missing_ok=True)
        if (directory / name).exists():
            shutil.copyfile(directory / name, keep / kept)


def rounded(value: float | None, digits: int) -> float | None:
    """For people and scripts alike; nothing stays nothing."""
    return None if value is None else round(value, digits)


def summary(observed: Observed, stopped: float, audit: bool | None) -> dict[str, Any]:
    """The one JSON object of the demonstration."""
    final = {node: observed.final.get(node, {}) for node in NODES}
    links = {node: final[node].get("links", {}).get(LINK, {}) for node in NODES}
    bob = links["bob"]
    sifted = bob.get("sifted_bits")
    mbps = None
    if observed.first_key is not None and stopped > observed.first_key:
        start = observed.sifted_at(observed.first_key)
        mbps = (observed.sifted_at(stopped) - start) / (stopped - observed.first_key) / 1e6
    _, equal, different = observed.matched()
    delivered: list[Any] = [final[node].get("keys_delivered") for node in NODES]
    ready = max(observed.ready.values()) if len(observed.ready) == len(NODES) else None
    from_when = min(ready, observed.started + ALARMS_FROM_S) if ready else observed.started + ALARMS_FROM_S
    raised = {code for at, _, code in observed.alarms if from_when <= at <= stopped}
    spent = [link.get("auth_spent_bits") for link in links.values()]
    qber = bob["errors"] / bob["verified_bits"] if bob.get("verified_bits") else None
    return {
        "seconds": round(stopped - observed.started, 3),
        "first_key_seconds": rounded(None if observed.first_key is None else observed.first_key - observed.started, 3),
        "sifted_bits": sifted,
        "sifted_mbps": rounded(mbps, 4),
        "secret_bits": bob.get("secret_bits"),
        "keys_alice": final["alice"].get("keys_present"),
        "keys_bob": final["bob"].get("keys_present"),
        "keys_delivered": None if None in delivered else min(delivered),
        "keys_matched": equal,
        "keys_mismatched": different,
        "qber": rounded(qber, 6),
        "efficiency": rounded(bob.get("efficiency"), 4),
        "auth_spent_bits": None if None in spent else sum(spent),
        "auth_refilled_bits": bob.get("auth_refilled_bits"),
        "alarms": [code for code in CONTRACT_ALARMS if code in raised],
        "audit_verified": audit,
        "rss_mib": observed.rss,
    }


def last_words(result: dict[str, Any], eavesdrop: float) -> str:
    """What was seen, and where to look next."""
    if result["keys_matched"]:
        seen = (
            f"{result['keys_matched']} keys reached both applications equal, {result['keys_mismatched']} did not; "
            f"first key after {result['first_key_seconds']} s, {result['sifted_mbps']} Mbit/s sifted, "
            f"QBER {result['qber']}; the audit logs {'verify' if result['audit_verified'] else 'DO NOT verify'}."
        )
    elif eavesdrop:
        seen = f"With an eavesdropper on {eavesdrop:.0%} of the slots no key was made; alarms: {result['alarms']}."
    else:
        seen = f"No key was made; alarms: {result['alarms']}."
    return (
        f"\n{seen}\nNext: `qkdnode demo --eavesdrop 1.0` shows what an eavesdropper changes; README.md says how to run "
        "a node for real, docs/architecture.md how it is built, docs/protocol.md what the nodes say to each other."
    )


@click.command(name="demo")
@click.option(
    "--seconds", default=30.0, show_default=True, type=click.FloatRange(1, 86_400), help="How long keys are made."
)
@click.option("--eavesdrop", default=0.0, type=click.FloatRange(0, 1), help="Share of slots that Eve intercepts.")
@click.option("--eavesdrop-p-z", default=None, type=click.FloatRange(0, 1), help="Eve's probability of the key basis.")
@click.option("--seed", default=None, type=click.IntRange(0, 2**62), help="Seed of the emulated channel.")
@click.option("--json", "as_json", is_flag=True, help="Print only one JSON object at the end.")
@click.option(
    "--keep",
    default=None,
    type=click.Path(path_type=Path),
    help="Leave alice's audit log there as audit.log, with audit.pub and witness.pub to verify it.",
)
def command(
    seconds: float,
    eavesdrop: float,
    eavesdrop_p_z: float | None,
    seed: int | None,
    as_json: bool,
    keep: Path | None,
) -> None:
    """Two nodes on emulated modules make keys and hand them to two applications."""
    if keep is not None:
        make_directory(keep)  # now rather than after all is done
    observed = Observed(time.monotonic() - process_age_s())
    lines: queue.Queue[tuple[float, str, Any]] = queue.Queue()
    worlds = {
        "seed": secrets.randbits(62) if seed is None else seed,
        "epoch_ns": time.time_ns(),
        "eavesdrop": eavesdrop,
        "eavesdrop_p_z": eavesdrop_p_z,
    }
    with tempfile.TemporaryDirectory(prefix="qkdnode-demo-") as name:
        directory = Path(name)
        configs = provision(directory, worlds)
        with running(directory, configs, lines, secrets.token_hex(16)) as processes, Display(as_json) as display:
            watch(observed, lines, processes, observed.started + seconds, display)
            stopped = time.monotonic()
            early = [node for node in NODES if processes[node].child.poll() is not None]
            for node in NODES:
                if processes[node].child.poll() is None:
                    processes[node].child.send_signal(signal.SIGTERM)
            ended = [processes[node].wait(STOP_S) for node in NODES]
            for application in NODES.values():
                processes[application].end(signal.SIGTERM, 5)
            errors = [line for process in processes.values() for line in process.errors]
        drain(observed, lines)
        result = summary(observed, stopped, verified(directory, configs))
        if keep is not None:
            keep_log(directory, keep)
    for line in errors:
        click.echo(line, err=True)
    if not as_json:
        click.echo(last_words(result, eavesdrop))
    click.echo(json.dumps(result))
    if early or not all(ended) or (not eavesdrop and not result["keys_matched"]) or result["keys_mismatched"]:
        sys.exit(1)
