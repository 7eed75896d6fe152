"""`qkdnode doctor`: what this machine or this node's configuration lacks, and the command that mends it."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import click
import msgspec

from qkdnode.cli.install import PIECES, text_of
from qkdnode.cli.machine import Account, FileState, Machine
from qkdnode.config import Config, load_config
from qkdnode.errors import ConfigError

PYTHON = (3, 11)
LIBZMQ = (4, 3, 5)
MIB = 1 << 20
LOCKED_BESIDE_POOL = 4 * MIB  # keys, pads, sessions
LITTLE_ROOM, NO_ROOM = 2048 * MIB, 256 * MIB
OLDEST_NOW_S = 1_767_225_600  # 2026: a clock before it was never set
CLOCK_SLACK_S = 5.0
MAX_SOCKET_PATH = 107  # unix(7)
NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "fuse.sshfs",
    "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "virtiofs", "vboxsf", "davfs",
}  # fmt: skip
FORGETFUL = {"tmpfs", "ramfs"}
UNITS = (Path("/etc/systemd/system"), Path("/usr/local/lib/systemd/system"), Path("/usr/lib/systemd/system"))
RULES = (Path("/etc/udev/rules.d"), Path("/usr/lib/udev/rules.d"), Path("/lib/udev/rules.d"))

Level = Literal["ok", "note", "mend"]


class Finding(msgspec.Struct, frozen=True):
    """What a check found. `mend` is a command, or what to do, unless all is well."""

    check: str
    level: Level
    found: str
    mend: str = ""


class Node(msgspec.Struct, frozen=True):
    """The node that is looked at: its file, what is in it or why nothing is, and the user of its agent."""

    file: Path | None = None
    config: Config | None = None
    fault: str = ""
    account: Account | None = None

    @property
    def base(self) -> Path:
        """Where relative paths begin."""
        return Path() if self.file is None else self.file.parent

    @property
    def vault(self) -> Path | None:
        """The vault's file."""
        return None if self.config is None else self.base / self.config.node.vault


Verdict = tuple[Level, str, str]
Check = Callable[[Machine, Node], Iterable[Verdict]]


def python(machine: Machine, node: Node) -> Iterator[Verdict]:
    """Linux, and a Python that is new enough."""
    system, version = machine.python()
    shown = ".".join(map(str, version))
    if system != "linux":
        yield "mend", f"the system is {system}", "run the agent on Linux"
    elif version < PYTHON:
        yield "mend", f"Python {shown}", "install Python 3.11 or newer, and the package in a venv of it"
    else:
        yield "ok", f"Python {shown} on Linux", ""


def core(machine: Machine, node: Node) -> Iterator[Verdict]:
    """The compiled core, and how fast it can be here."""
    kernels = machine.kernels()
    if isinstance(kernels, str):
        again = (
            "unset QKDNODE_KERNEL" if machine.environment("QKDNODE_KERNEL") else "pip install --force-reinstall qkdnode"
        )
        yield "mend", kernels, again
        return
    shown = "; ".join(f"{family}: {', '.join(names)}" for family, names in kernels.items())
    features = " ".join(sorted(machine.cpu_features())) or "none that kernels use"
    if all(names[0] == "portable" for names in kernels.values()):
        yield "note", f"only portable kernels run ({shown}); CPU: {features}", "choose a CPU with PCLMULQDQ and AVX2"
    else:
        yield "ok", f"{shown}; CPU: {features}", ""


def memory(machine: Machine, node: Node) -> Iterator[Verdict]:
    """Locked memory: without it the agent does not start."""
    mode, limit = machine.locked_memory()
    seeds = [] if node.config is None else [2 * (link.distill.batch_max_bits // 8) for link in node.config.link]
    qrngs = 1 if node.config is None else len(node.config.qrng)
    wanted = qrngs * max(2 * MIB, *seeds, 0) + LOCKED_BESIDE_POOL
    shown = "no limit" if limit is None else f"limit {limit / MIB:.0f} MiB"
    if mode is None:
        yield (
            "mend",
            f"key material cannot be locked ({shown})",
            "ulimit -l unlimited, or LimitMEMLOCK=512M in the unit",
        )
    elif limit is not None and limit < wanted:
        mend = f"ulimit -l {wanted // 1024}, or LimitMEMLOCK=512M in the unit"
        yield "mend", f"{mode}, {shown}; this node needs {wanted / MIB:.0f} MiB", mend
    elif mode != "memfd_secret":
        yield "note", f"{mode}, {shown}: root can read key material", "boot Linux 5.14 or newer with secretmem.enable=1"
    else:
        yield "ok", f"{mode}, {shown}", ""


def zmq(machine: Machine, node: Node) -> Iterator[Verdict]:
    """ZeroMQ with CURVE."""
    version, curve = machine.zmq()
    shown = ".".join(map(str, version))
    if version < LIBZMQ or not curve:
        what = f"libzmq {shown}{'' if curve else ' without CURVE'}"
        yield "mend", what, "pip install --force-reinstall --only-binary :all: 'pyzmq>=26'"
    else:
        yield "ok", f"libzmq {shown} with CURVE", ""


def configuration(machine: Machine, node: Node) -> Iterator[Verdict]:
    """The file decodes."""
    if node.file is None:
        yield "note", "no configuration was named: only the machine was looked at", "qkdnode doctor --config FILE"
    elif node.config is None:
        yield "mend", node.fault, f"correct {node.file}, then qkdnode config check {node.file}"
    else:
        config = node.config
        yield "ok", f"node {config.node.name}, {len(config.link)} links, {len(config.qrng)} QRNGs", ""


def account(machine: Machine, node: Node) -> Iterator[Verdict]:
    """The user that the agent runs as."""
    if node.account is None:
        yield "mend", "there is no such user", "qkdnode install && systemd-sysusers"
    elif node.account.uid == 0:
        yield "note", "the agent would run as root", "use the unit qkdnode@.service, or --user NAME"
    else:
        yield "ok", f"user {node.account.name}", ""


def secrets(machine: Machine, node: Node) -> Iterator[Verdict]:
    """Identity, pair keys and passphrase: there, private, the agent's own."""
    if node.config is None:
        return
    settings = node.config.node
    identity = node.base / settings.identity
    yield from _private(
        machine, node, settings.identity, f"qkdnode provision node {settings.name} --directory {identity.parent}"
    )
    if settings.root_key.passphrase_file is not None:
        path = node.base / settings.root_key.passphrase_file
        make = f"(umask 077; head -c 32 /dev/urandom | base64 > {path})"
        yield from _private(machine, node, settings.root_key.passphrase_file, make)
    vault = node.vault
    made = vault is not None and machine.file(vault) is not None
    for link in node.config.link:
        if not made or machine.file(node.base / link.pair_key) is not None:
            # Needed at the first start; one that is still there after it must be private too.
            ends = (settings.name, link.peer) if link.role == "alice" else (link.peer, settings.name)
            make = f"qkdnode provision pair {link.name} {' '.join(ends)}, at one of the two nodes; carry the file here"
            yield from _private(machine, node, link.pair_key, make)


def _private(machine: Machine, node: Node, name: str, make: str) -> Iterator[Verdict]:
    path = node.base / name
    state = machine.file(path)
    if state is None or not state.is_file:
        yield "mend", f"{path} is not there", make
    elif state.mode & 0o077:
        yield (
            "mend",
            f"{path} is open to others: consider it exposed",
            f"chmod 600 {path}, and {make.split(',')[0]} anew",
        )
    elif node.account is not None and node.account.uid not in (0, state.uid):
        yield "mend", f"{path} is not the agent's own", f"chown {node.account.name} {path}"
    else:
        yield "ok", f"{path} is private", ""


def credential(machine: Machine, node: Node) -> Iterator[Verdict]:
    """The root key as a credential of the service manager."""
    if node.config is None or node.file is None or (name := node.config.node.root_key.credential) is None:
        return
    given = machine.environment("CREDENTIALS_DIRECTORY")
    # The unit's LoadCredential= names the second; systemd reads it as root.
    path = Path(given) / name if given is not None else Path("/etc/qkdnode") / f"{node.file.stem}.root"
    state = machine.file(path)
    if state is None or not state.is_file:
        yield "mend", f"{path} is not there", f"(umask 077; head -c 32 /dev/urandom | base64 > {path})"
    elif state.mode & 0o077:
        yield (
            "mend",
            f"{path} is open to others: consider it exposed",
            f"chmod 600 {path}; make a new vault with a new key",
        )
    else:
        yield "ok", f"{path} is private", ""


def publics(machine: Machine, node: Node) -> Iterator[Verdict]:
    """Public files of neighbours, applications and operators."""
    if node.config is None:
        return
    named = {link.peer_public: link.peer for link in node.config.link}
    named |= {application.public: application.name for application in node.config.application}
    named |= {operator.public: operator.name for operator in node.config.operator}
    missing = {path: name for path, name in named.items() if machine.file(node.base / path) is None}
    for path, name in missing.items():
        yield "mend", f"{node.base / path} is not there", f"get {name}.public from who provisioned {name}"
    if named and not missing:
        yield "ok", f"{len(named)} public files of neighbours, applications and operators", ""


def vault(machine: Machine, node: Node) -> Iterator[Verdict]:
    """The vault's folder: private, on a local disk with room."""
    if node.vault is None:
        return
    folder = node.vault.parent
    state = machine.file(folder)
    if state is None or not state.is_folder:
        yield "mend", f"{folder} is not there", _make_folder(node, folder)
        return
    if state.mode & 0o077:
        yield "mend", f"{folder} is open to others", f"chmod 700 {folder}"
    elif node.account is not None and node.account.uid not in (0, state.uid):
        yield "mend", f"{folder} is not the agent's own", f"chown {node.account.name} {folder}"
    else:
        yield "ok", f"{folder} is private", ""
    yield from _room(machine, folder)


def _make_folder(node: Node, folder: Path) -> str:
    owner = "" if node.account is None or node.account.uid == 0 else f" -o {node.account.name}"
    return f"install -d -m 700{owner} {folder}"


def _room(machine: Machine, folder: Path) -> Iterator[Verdict]:
    volume = machine.volume(folder)
    if volume is None:
        yield "note", f"the file system of {folder} cannot be looked at", "run it as the agent's user, or as root"
        return
    shown = f"{volume.kind}, {volume.free_bytes / MIB:,.0f} MiB free"
    if volume.kind in NETWORK:
        yield "mend", f"{folder} is on {volume.kind}: its locks and syncs cannot be trusted", "move it to a local disk"
    elif volume.kind in FORGETFUL:
        yield "mend", f"{folder} is on {volume.kind}: a restart of the machine loses the vault", "move it to a disk"
    elif volume.free_bytes < NO_ROOM:
        yield "mend", f"{folder}: {shown}: soon nothing is released", "make room on that file system"
    elif volume.free_bytes < LITTLE_ROOM:
        yield "note", f"{folder}: {shown}; the audit log only grows", "make room on that file system"
    else:
        yield "ok", shown, ""


def clock(machine: Machine, node: Node) -> Iterator[Verdict]:
    """The wall clock: set, synchronised, and not behind what was written."""
    now = machine.now_s()
    written = None if node.vault is None else machine.file(node.vault)
    if now < OLDEST_NOW_S:
        yield "mend", "the clock was never set", "timedatectl set-ntp true"
    elif written is not None and written.changed_s > now + CLOCK_SLACK_S:
        behind = written.changed_s - now
        yield "mend", f"the clock is {behind:.0f} s behind the last change of the vault", "timedatectl set-ntp true"
    elif not machine.is_synchronised():
        yield "note", "the clock is not synchronised", "timedatectl set-ntp true"
    else:
        yield "ok", "the clock is synchronised", ""


def devices(machine: Machine, node: Node) -> Iterator[Verdict]:
    """Real devices: libusb, on the bus, with rights."""
    if node.config is None:
        return
    wanted = [one.serial for one in node.config.qrng if one.backend == "libusb"]
    wanted += [link.module.serial for link in node.config.link if link.module.backend == "libusb"]
    if not wanted:
        return
    if not machine.has_libusb():
        yield "mend", "libusb is not there", "apt-get install libusb-1.0-0"
    present = {one.serial: one for one in machine.usb_devices()}
    for serial in wanted:
        device = present.get(serial)
        if device is None:
            seen = ", ".join(sorted(present)) or "none"
            yield "mend", f"device {serial} is not on the bus; seen: {seen}", "plug it in, or correct its serial"
        elif device.state is None or not _may_use(device.state, node.account):
            mend = "qkdnode install && systemd-sysusers && udevadm control --reload && udevadm trigger"
            yield "mend", f"the agent's user may not open {device.node} of {serial}", mend
        else:
            yield "ok", f"device {serial} at {device.node}", ""
    yield from _installed(machine, RULES, "70-qkdnode.rules", "mend", "the udev rule")


def _may_use(state: FileState, account: Account | None) -> bool:
    if account is None:
        return False
    if account.uid in (0, state.uid):
        return account.uid == 0 or state.mode & 0o600 == 0o600
    if state.gid in account.groups:
        return state.mode & 0o060 == 0o060
    return state.mode & 0o006 == 0o006


def unit(machine: Machine, node: Node) -> Iterator[Verdict]:
    """The systemd unit."""
    yield from _installed(machine, UNITS, "qkdnode@.service", "note", "the unit")


def _installed(machine: Machine, places: tuple[Path, ...], name: str, level: Level, what: str) -> Iterator[Verdict]:
    piece = next(one for one in PIECES if one.source == name)
    found = next((place / name for place in places if machine.file(place / name) is not None), None)
    if found is None:
        yield level, f"{what} is not installed", "qkdnode install"
        return
    said = _effective(machine.text(found) or "")
    if said != _effective(text_of(piece, _program(said))):
        yield "note", f"{found} is not that of this version", "qkdnode install; put changes of your own into drop-ins"
    else:
        yield "ok", str(found), ""


def _effective(text: str) -> list[str]:
    """The lines that are no comments."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _program(lines: list[str]) -> str:
    """The program that an installed unit starts."""
    return next((line.removeprefix("ExecStart=").split()[0] for line in lines if line.startswith("ExecStart=/")), "")


def ports(machine: Machine, node: Node) -> Iterator[Verdict]:
    """Where the agent is to listen: free, or held by the agent that runs."""
    if node.config is None or _runs(machine, node):
        return
    config = node.config
    listened = [] if config.supply is None else [("supply.listen", config.supply.listen)]
    listened += [(f"link {link.name}: listen", link.listen) for link in config.link if link.listen is not None]
    if config.watch is not None:
        listened.append(("watch.listen", f"tcp://{config.watch.listen}"))
    for key, endpoint in listened:
        if not endpoint.startswith("tcp://"):
            continue
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        reason = machine.port("0.0.0.0" if host == "*" else host.strip("[]"), int(port))
        if reason is not None:
            yield "mend", f"`{key}` {endpoint}: {reason}", f"ss -ltnp 'sport = :{port}' names who has it; stop it"
        else:
            yield "ok", f"`{key}` {endpoint} is free", ""


def control(machine: Machine, node: Node) -> Iterator[Verdict]:
    """The operators' socket: answered by the agent that runs, or else a place for it."""
    if node.config is None or node.config.control is None:
        return
    path = node.base / node.config.control.socket
    if not _runs(machine, node):
        parent = machine.file(path.parent)
        if len(str(path).encode()) > MAX_SOCKET_PATH:
            yield "mend", f"`control.socket` {path} is too long", f"give a path of at most {MAX_SOCKET_PATH} bytes"
        elif parent is not None and parent.mode & 0o077:
            yield "mend", f"{path.parent} is open to others", f"chmod 700 {path.parent}"
        elif parent is None and not (machine.file(path.parent.parent) or str(path).startswith("/run/qkdnode/")):
            # The agent makes the last folder, the unit those below /run/qkdnode.
            yield "mend", f"{path.parent} is not there", _make_folder(node, path.parent)
        else:
            yield "ok", f"{path} can be made", ""
    elif (reason := machine.local_socket(path)) is not None:
        yield "mend", f"the agent does not answer at {path}: {reason}", "ask as its user (sudo -u), or see its log"
    else:
        yield "ok", f"the agent answers at {path}", ""


def agent(machine: Machine, node: Node) -> Iterator[Verdict]:
    """The running agent, if there is one."""
    if node.config is None or node.file is None:
        return
    if not _runs(machine, node):
        yield (
            "note",
            "no agent runs on this vault",
            f"qkdnode run --config {node.file}, or systemctl start qkdnode@NAME",
        )
    elif node.config.watch is None:
        yield "ok", "an agent runs on this vault", ""
    elif (reason := machine.health(*node.config.watch.address)) is not None:
        yield "mend", f"an agent runs on this vault and is not well: {reason}", "look at its log; systemctl restart it"
    else:
        yield "ok", "an agent runs on this vault and is well", ""


def _runs(machine: Machine, node: Node) -> bool:
    return node.vault is not None and machine.is_held(node.vault.with_name(f"{node.vault.name}.lock"))


CHECKS: tuple[Check, ...] = (
    python, core, memory, zmq, account, configuration, secrets, credential, publics, vault, clock, devices, unit, ports,
    control, agent,
)  # fmt: skip


def examine(machine: Machine, node: Node) -> list[Finding]:
    """Every finding, in the order of the checks."""
    return [Finding(check.__name__, *verdict) for check in CHECKS for verdict in check(machine, node)]


def node_of(machine: Machine, file: Path | None, user: str | None) -> Node:
    """What is to be looked at; a configuration that cannot be read is a finding, not an error."""
    account = machine.account(user)
    if file is None:
        return Node(account=account)
    try:
        return Node(file, load_config(file), account=account)
    except ConfigError as error:
        return Node(file, fault=str(error), account=account)


@click.command(name="doctor")
@click.option("--config", "file", default=None, type=click.Path(path_type=Path), help="The node's TOML file.")
@click.option("--user", default=None, help="The agent's user; qkdnode for root if there is one, else yourself.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(file: Path | None, user: str | None, as_json: bool) -> None:
    """Look for what this machine, or the node of a configuration, lacks, and say what mends it.

    Nothing is changed. Ends with 0 if nothing has to be mended, else with 1; notes do not count.
    """
    machine = Machine()
    findings = examine(machine, node_of(machine, file, user))
    to_mend = sum(finding.level == "mend" for finding in findings)
    if as_json:
        click.echo(json.dumps({"mend": to_mend, "findings": msgspec.to_builtins(findings)}))
    else:
        for finding in findings:
            click.echo(f"{finding.level:5} {finding.check:14} {finding.found}")
            if finding.mend:
                click.echo(f"{'':20} -> {finding.mend}")
        click.echo(f"{to_mend} to mend" if to_mend else "nothing to mend")
    sys.exit(1 if to_mend else 0)
