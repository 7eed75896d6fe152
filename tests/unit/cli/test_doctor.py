"""`qkdnode doctor`: each check on a machine that is well, and on one that lacks just that."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qkdnode.cli import doctor
from qkdnode.cli.doctor import CHECKS, MIB, OLDEST_NOW_S, Finding, Node, examine, node_of
from qkdnode.cli.install import PIECES, text_of
from qkdnode.cli.machine import Account, FileState, Machine, UsbDevice, Volume
from qkdnode.config import Config, decode_config

NOW = OLDEST_NOW_S + 1e6
SITE = Path("/etc/qkdnode")
SAMPLE = text_of(next(piece for piece in PIECES if piece.source == "sample.toml"), "")
AGENT = Account("qkdnode", 990, (990,))
VAULT = Path("/var/lib/qkdnode/alice/vault")
LOCK = Path("/var/lib/qkdnode/alice/vault.lock")
UNIT, RULE = Path("/etc/systemd/system/qkdnode@.service"), Path("/etc/udev/rules.d/70-qkdnode.rules")


def installed(source: str) -> str:
    return text_of(next(piece for piece in PIECES if piece.source == source), "/opt/qkdnode/bin/qkdnode")


def file(mode: int, uid: int = 990, changed_s: float = NOW - 60) -> FileState:
    return FileState(True, False, mode, uid, uid, changed_s)


def folder(mode: int, uid: int = 990) -> FileState:
    return FileState(False, True, mode, uid, uid, NOW - 60)


class Well(Machine):
    """A machine on which the sample configuration would run; a test spoils one thing of it."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "python": ("linux", (3, 12, 1)),
            "kernels": {"toeplitz": ("vpclmul", "portable"), "cascade": ("portable",)},
            "cpu_features": frozenset({"avx2"}),
            "locked_memory": ("memfd_secret", 512 * MIB),
            "zmq": ((4, 3, 5), True),
            "has_libusb": True,
            "usb_devices": [
                UsbDevice("QKD-A", "/dev/bus/usb/001/004", FileState(False, False, 0o660, 0, 990, NOW)),
                UsbDevice("QRNG-A", "/dev/bus/usb/001/005", FileState(False, False, 0o660, 0, 990, NOW)),
            ],
            "volume": Volume("ext4", 100_000 * MIB),
            "now_s": NOW,
            "is_synchronised": True,
        }
        self.files: dict[Path, FileState] = {
            SITE / "alice.d/alice.identity": file(0o600),
            SITE / "alice.d/alice-bob.alice.pair": file(0o600),
            SITE / "alice.d/bob.public": file(0o644),
            SITE / "alice.d/app-a.public": file(0o644),
            SITE / "alice.d/ann.public": file(0o644),
            SITE / "alice.root": file(0o400, uid=0),
            VAULT.parent: folder(0o700),
            UNIT: file(0o644, uid=0),
            RULE: file(0o644, uid=0),
        }
        self.texts = {UNIT: installed("qkdnode@.service"), RULE: installed("70-qkdnode.rules")}
        self.taken: dict[int, str] = {}
        self.held: set[Path] = set()
        self.variables: dict[str, str] = {}
        self.illness: str | None = None
        self.deaf: str | None = None

    def __getattribute__(self, name: str) -> Any:
        answers = object.__getattribute__(self, "__dict__").get("answers", {})
        return (lambda *_: answers[name]) if name in answers else object.__getattribute__(self, name)

    def file(self, path: Path) -> FileState | None:
        return self.files.get(path)

    def text(self, path: Path) -> str | None:
        return self.texts.get(path)

    def port(self, host: str, port: int) -> str | None:
        return self.taken.get(port)

    def is_held(self, lock: Path) -> bool:
        return lock in self.held

    def health(self, host: str, port: int) -> str | None:
        return self.illness

    def local_socket(self, path: Path) -> str | None:
        return self.deaf

    def environment(self, name: str) -> str | None:
        return self.variables.get(name)


def sample(**changes: Any) -> Config:
    return msgspec.structs.replace(decode_config(SAMPLE), **changes)


def look(machine: Machine, config: Config | None = None, account: Account | None = AGENT) -> list[Finding]:
    return examine(machine, Node(SITE / "alice.toml", config or sample(), account=account))


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_a_machine_that_is_well_has_nothing_to_mend() -> None:
    findings = look(Well())
    assert [finding for finding in findings if finding.level == "mend"] == []
    assert {finding.check for finding in findings if finding.level == "ok"} == {
        check.__name__ for check in CHECKS if check is not doctor.agent
    }
    assert not [finding for finding in findings if finding.level == "ok" and finding.mend]


def test_a_running_agent_that_is_well_is_said() -> None:
    machine = Well()
    machine.held.add(LOCK)
    machine.taken = {5601: "Address already in use", 5600: "Address already in use", 9464: "Address already in use"}
    findings = look(machine)
    assert of(findings, "ports") == []  # it is the agent that has them
    assert of(findings, "agent") == [Finding("agent", "ok", "an agent runs on this vault and is well")]


NO_FILE: Mapping[str, Any] = {}
SPOILT: list[tuple[str, dict[str, Any], str, str, str, str]] = [
    # id, what is spoilt, check, level, in what was found, in what mends it
    ("windows", {"python": ("win32", (3, 12, 0))}, "python", "mend", "win32", "Linux"),
    ("old python", {"python": ("linux", (3, 10, 9))}, "python", "mend", "3.10.9", "3.11"),
    ("no core", {"kernels": "qkdnode.native.secret cannot be loaded: x"}, "core", "mend", "native.secret", "pip"),
    ("slow", {"kernels": {"toeplitz": ("portable",)}}, "core", "note", "only portable", "PCLMULQDQ"),
    ("no lock", {"locked_memory": (None, 0)}, "memory", "mend", "cannot be locked", "LimitMEMLOCK"),
    ("little", {"locked_memory": ("memfd_secret", 6 * MIB)}, "memory", "mend", "needs 8 MiB", "ulimit -l 8"),
    ("mlock", {"locked_memory": ("mlock", None)}, "memory", "note", "root can read", "secretmem"),
    ("old zmq", {"zmq": ((4, 3, 4), True)}, "zmq", "mend", "4.3.4", "pyzmq"),
    ("no curve", {"zmq": ((4, 3, 5), False)}, "zmq", "mend", "without CURVE", "pyzmq"),
    ("no libusb", {"has_libusb": False}, "devices", "mend", "libusb", "apt-get install libusb-1.0-0"),
    ("unplugged", {"usb_devices": []}, "devices", "mend", "QKD-A is not on the bus; seen: none", "plug it in"),
    ("nfs", {"volume": Volume("nfs4", 10**12)}, "vault", "mend", "nfs4", "local disk"),
    ("tmpfs", {"volume": Volume("tmpfs", 10**12)}, "vault", "mend", "tmpfs", "move it to a disk"),
    ("full", {"volume": Volume("ext4", 100 * MIB)}, "vault", "mend", "100 MiB free", "make room"),
    ("filling", {"volume": Volume("ext4", 1000 * MIB)}, "vault", "note", "1,000 MiB free", "make room"),
    ("hidden", {"volume": None}, "vault", "note", "cannot be looked at", "as root"),
    ("1970", {"now_s": 1e6}, "clock", "mend", "never set", "timedatectl"),
    ("adrift", {"is_synchronised": False}, "clock", "note", "not synchronised", "timedatectl"),
]


@pytest.mark.parametrize(
    ("answers", "check", "level", "found", "mend"), [row[1:] for row in SPOILT], ids=[row[0] for row in SPOILT]
)
def test_what_the_machine_lacks_is_named_with_what_mends_it(
    answers: dict[str, Any], check: str, level: str, found: str, mend: str
) -> None:
    machine = Well()
    machine.answers |= answers
    worst = [one for one in of(look(machine), check) if one.level == level and found in one.found]
    assert worst, of(look(machine), check)
    assert mend in worst[0].mend
    assert [one for one in look(machine) if one.level == "mend" and one.check != check] == []


FILES: list[tuple[str, dict[Path, FileState | None], str, str, str]] = [
    ("no identity", {SITE / "alice.d/alice.identity": None}, "secrets", "is not there",
     "qkdnode provision node alice --directory /etc/qkdnode/alice.d"),
    ("open identity", {SITE / "alice.d/alice.identity": file(0o644)}, "secrets", "open to others", "chmod 600"),
    ("another's identity", {SITE / "alice.d/alice.identity": file(0o600, uid=1000)}, "secrets", "not the agent's own",
     "chown qkdnode"),
    ("no pair", {SITE / "alice.d/alice-bob.alice.pair": None}, "secrets", "is not there",
     "qkdnode provision pair alice-bob alice bob"),
    ("no neighbour", {SITE / "alice.d/bob.public": None}, "publics", "bob.public is not there", "provisioned bob"),
    ("no application", {SITE / "alice.d/app-a.public": None}, "publics", "app-a.public", "provisioned app-a"),
    ("no root key", {SITE / "alice.root": None}, "credential", "alice.root is not there", "/dev/urandom"),
    ("open root key", {SITE / "alice.root": file(0o444)}, "credential", "open to others", "chmod 600"),
    ("no folder", {VAULT.parent: None}, "vault", "is not there", "install -d -m 700 -o qkdnode /var/lib/qkdnode/alice"),
    ("open folder", {VAULT.parent: folder(0o755)}, "vault", "open to others", "chmod 700 /var/lib/qkdnode/alice"),
    ("another's folder", {VAULT.parent: folder(0o700, uid=0)}, "vault", "not the agent's own", "chown qkdnode"),
    ("a vault of tomorrow", {VAULT: file(0o600, changed_s=NOW + 86_400)}, "clock", "86400 s behind", "timedatectl"),
    ("no rule", {RULE: None}, "devices", "the udev rule is not installed", "qkdnode install"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "check", "found", "mend"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_what_a_node_lacks_is_named_with_what_mends_it(
    files: dict[Path, FileState | None], check: str, found: str, mend: str
) -> None:
    machine = Well()
    for path, state in files.items():
        if state is None:
            del machine.files[path]
        else:
            machine.files[path] = state
    (finding,) = [one for one in look(machine) if one.level == "mend"]
    assert finding.check == check
    assert found in finding.found
    assert mend in finding.mend


def test_a_pair_file_that_was_imported_need_not_be_there_but_must_be_private_if_it_is() -> None:
    machine = Well()
    machine.files[VAULT] = file(0o600)
    del machine.files[SITE / "alice.d/alice-bob.alice.pair"]
    assert not [one for one in look(machine) if one.level == "mend"]
    machine.files[SITE / "alice.d/alice-bob.alice.pair"] = file(0o640)
    assert [one.check for one in look(machine) if one.level == "mend"] == ["secrets"]


def test_a_passphrase_file_is_demanded_in_place_of_a_credential() -> None:
    text = SAMPLE.replace('{ credential = "root" }', '{ passphrase_file = "alice.passphrase" }')
    machine = Well()
    (finding,) = [one for one in look(machine, decode_config(text)) if one.level == "mend"]
    assert "alice.passphrase is not there" in finding.found
    machine.files[SITE / "alice.passphrase"] = file(0o600)
    assert not [one for one in look(machine, decode_config(text)) if one.level == "mend"]


def test_a_credential_is_looked_for_where_the_service_manager_says() -> None:
    machine = Well()
    machine.variables["CREDENTIALS_DIRECTORY"] = "/run/credentials/x"
    (finding,) = [one for one in look(machine) if one.level == "mend"]
    assert "/run/credentials/x/root is not there" in finding.found


@pytest.mark.parametrize(
    ("state", "account", "usable"),
    [
        (FileState(False, False, 0o660, 0, 990, 0), AGENT, True),
        (FileState(False, False, 0o664, 0, 0, 0), AGENT, False),
        (FileState(False, False, 0o640, 0, 990, 0), AGENT, False),
        (FileState(False, False, 0o600, 990, 0, 0), AGENT, True),
        (FileState(False, False, 0o666, 0, 0, 0), AGENT, True),
        (FileState(False, False, 0o600, 5, 5, 0), Account("root", 0, (0,)), True),
        (None, AGENT, False),
    ],
)
def test_rights_on_a_device_are_those_of_the_agents_user(
    state: FileState | None, account: Account, usable: bool
) -> None:
    machine = Well()
    machine.answers["usb_devices"] = [UsbDevice(serial, "/dev/x", state) for serial in ("QKD-A", "QRNG-A")]
    found = [one for one in of(look(machine, account=account), "devices") if "may not open" in one.found]
    assert bool(found) != usable
    if found:
        assert "qkdnode install && systemd-sysusers && udevadm" in found[0].mend


def test_a_port_that_another_has_is_named() -> None:
    machine = Well()
    machine.taken[9464] = "Address already in use"
    (finding,) = [one for one in look(machine) if one.level == "mend"]
    assert (finding.check, finding.found) == ("ports", "`watch.listen` tcp://127.0.0.1:9464: Address already in use")
    assert "ss -ltnp" in finding.mend


def test_an_agent_that_is_not_well_is_named() -> None:
    machine = Well()
    machine.held.add(LOCK)
    machine.illness = "the vault has not answered for 2 s"
    (finding,) = [one for one in look(machine) if one.level == "mend"]
    assert (finding.check, machine.illness in finding.found) == ("agent", True)


def test_a_control_socket_is_reached_or_can_be_made() -> None:
    machine = Well()
    assert [one.found for one in of(look(machine), "control")] == ["/run/qkdnode/alice/control can be made"]
    machine.files[Path("/run/qkdnode/alice")] = folder(0o755)
    assert [one.mend for one in of(look(machine), "control")] == ["chmod 700 /run/qkdnode/alice"]
    machine.held.add(LOCK)
    assert [one.found for one in of(look(machine), "control")] == ["the agent answers at /run/qkdnode/alice/control"]
    machine.deaf = "Permission denied"
    (finding,) = [one for one in look(machine) if one.level == "mend"]
    assert (finding.check, "does not answer" in finding.found) == ("control", True)


@pytest.mark.parametrize(
    ("path", "found"), [("/srv/qkd/control", "/srv/qkd is not there"), ("/run/qkdnode/" + "x" * 100, "is too long")]
)
def test_a_control_socket_that_cannot_be_made_is_named(path: str, found: str) -> None:
    config = decode_config(SAMPLE.replace("/run/qkdnode/alice/control", path))
    (finding,) = of(look(Well(), config), "control")
    assert (finding.level, found in finding.found) == ("mend", True)


def test_a_unit_of_another_version_is_noted_and_comments_do_not_count() -> None:
    machine = Well()
    machine.texts[UNIT] = "# changed\n" + machine.texts[UNIT]
    assert [one.level for one in of(look(machine), "unit")] == ["ok"]
    machine.texts[UNIT] = machine.texts[UNIT].replace("WatchdogSec=30s", "WatchdogSec=3s")
    (finding,) = of(look(machine), "unit")
    assert (finding.level, "not that of this version" in finding.found) == ("note", True)


def test_a_demanded_kernel_that_cannot_run_is_undemanded() -> None:
    machine = Well()
    machine.answers["kernels"] = "QKDNODE_KERNEL=x names no kernel"
    machine.variables["QKDNODE_KERNEL"] = "x"
    (finding,) = [one for one in look(machine) if one.level == "mend"]
    assert finding.mend == "unset QKDNODE_KERNEL"


def test_without_a_configuration_only_the_machine_is_looked_at() -> None:
    findings = examine(Well(), Node(account=AGENT))
    assert not [one for one in findings if one.level == "mend"]
    assert {one.check for one in findings} == {
        "python", "core", "memory", "zmq", "account", "configuration", "clock", "unit"
    }  # fmt: skip


def test_a_configuration_with_an_error_and_an_unknown_user_are_findings(tmp_path: Path) -> None:
    broken = tmp_path / "node.toml"
    broken.write_text("[node]\nname = 5\n")
    node = node_of(Machine(), broken, "no-such-user-here")
    found = {one.check: one for one in examine(Well(), node) if one.level == "mend"}
    assert set(found) == {"configuration", "account"}
    assert "node.name" in found["configuration"].found
    assert f"qkdnode config check {broken}" in found["configuration"].mend
    assert "systemd-sysusers" in found["account"].mend


# The machine itself: each probe against something that is made for it.


def test_probes_of_files_volumes_and_locks(tmp_path: Path) -> None:
    machine = Machine()
    place = tmp_path / "x.lock"
    assert machine.file(place) is None
    assert not machine.is_held(place)
    place.touch(mode=0o640)
    state = machine.file(place)
    assert state is not None
    assert (state.is_file, state.mode & 0o777, state.uid) == (True, place.stat().st_mode & 0o777, os.getuid())
    hold = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert machine.is_held(place)
        assert holder.stdin is not None
        holder.stdin.close()
    assert not machine.is_held(place)
    volume = machine.volume(tmp_path)
    assert volume is not None
    assert volume.kind != "unknown"
    assert volume.free_bytes > 0
    shared = machine.volume(Path("/dev/shm"))
    assert shared is None or shared.kind == "tmpfs"


def test_probes_of_ports() -> None:
    machine = Machine()
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        assert machine.port("127.0.0.1", port) == "Address already in use"
        held.close()
        assert machine.port("127.0.0.1", port) is None
        assert machine.health("127.0.0.1", port) is not None
    assert machine.port("no.such.host.invalid", 1) is not None


def test_probes_of_local_sockets(tmp_path: Path) -> None:
    place = tmp_path / "s"
    assert Machine().local_socket(place) == "No such file or directory"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(place))
        assert Machine().local_socket(place) == "Connection refused"
        held.listen()
        assert Machine().local_socket(place) is None


def test_probes_of_the_machine_answer() -> None:
    machine = Machine()
    kernels = machine.kernels()
    assert not isinstance(kernels, str)
    assert {"toeplitz", "polyval", "cascade"} <= set(kernels)
    assert machine.zmq()[0] >= (4, 3)
    assert isinstance(machine.is_synchronised(), bool)
    account = machine.account(None)
    assert account is not None
    assert machine.account("root") == Account("root", 0, tuple(os.getgrouplist("root", 0)))
    assert machine.now_s() > OLDEST_NOW_S


def test_devices_on_the_bus_are_read_from_the_kernels_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkdnode.cli.machine.USB_DEVICES", tmp_path)
    for name, said in {
        "1-1": {"idVendor": "1209", "idProduct": "0001", "busnum": "1", "devnum": "7", "serial": "QKD-A"},
        "1-2": {"idVendor": "1d6b", "idProduct": "0002", "busnum": "1", "devnum": "1", "serial": "hub"},
        "1-1:1.0": {"bInterfaceNumber": "00"},
    }.items():
        (tmp_path / name).mkdir()
        for key, value in said.items():
            (tmp_path / name / key).write_text(value + "\n")
    (found,) = Machine().usb_devices()
    assert (found.serial, found.node) == ("QKD-A", "/dev/bus/usb/001/007")


def test_the_command_exits_by_what_is_to_be_mended(tmp_path: Path) -> None:
    broken = tmp_path / "node.toml"
    broken.write_text("nonsense")
    asked = [sys.executable, "-m", "qkdnode", "doctor", "--json", "--config", str(broken)]
    ran = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(ran.stdout)
    assert ran.returncode == 1
    assert report["mend"] == sum(finding["level"] == "mend" for finding in report["findings"]) > 0
    assert "not TOML" in next(one["found"] for one in report["findings"] if one["check"] == "configuration")
