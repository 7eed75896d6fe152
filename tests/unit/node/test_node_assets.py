"""A node and what it consists of: changes are journalled and alarmed, and nothing that a device says is believed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from signing import SIGNING
from virtual_time import VirtualTimeLoop

from qkdnode.config import decode_config
from qkdnode.device.identity import DeviceInfo
from qkdnode.errors import ConfigError, DiskFullError
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.assets import Assets
from qkdnode.node.recorder import Recorder
from qkdnode.vault import requests
from qkdnode.vault.assets import NoteAssets
from qkdnode.vault.core import VaultCore
from qkdnode.vault.root import CredentialFile
from qkdnode.wire.control import Asset

NOW_NS = 1_770_000_000_000_000_000
TEXT = """
[node]
name = "a"
identity = "a.identity"
vault = "a.vault"
root_key = { credential = "root" }
[supply]
listen = "tcp://127.0.0.1:1"
[control]
socket = "socket"
[[application]]
name = "app-a"
public = "app-a.public"
[[operator]]
name = "olga"
public = "olga.public"
roles = ["operator", "maintainer"]
[[qrng]]
serial = "QRNG-1"
backend = "libusb"
[[link]]
name = "line"
role = "alice"
peer = "b"
peer_public = "b.public"
pair_key = "line.a.pair"
listen = "tcp://127.0.0.1:2"
module = { serial = "TX-1", backend = "libusb" }
"""
INFO = DeviceInfo(
    personality=1, firmware="1.4.2", slot_rate_hz=20_000_000, sync_interval_slots=200_000, slot_units=12_800,
    intensities=2, emulated=False, fault_injection=False, session=1, serial="TX-1", model="TX-9",
)  # fmt: skip


def package(name: str = "numpy", digest: str = "aa" * 32) -> Asset:
    return Asset(kind="package", name=name, version="2.4.6", digest=digest)


class Log:
    """Nobody reads it."""

    def info(self, event: str, **fields: Any) -> None: ...

    warning = error = info


class Node:
    """The assets of a node over a real vault; its devices and software are what a test says."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o700)
        (directory / "root").write_bytes(b"0123456789abcdef")
        self.path, self.root = directory / "vault.db", CredentialFile("root", directory)
        self.loop = VirtualTimeLoop()
        self.info: DeviceInfo | None = INFO
        self.qrng: DeviceInfo | None = None
        self.packages = (package(), package("msgspec"))
        self.fails_at: type[Any] | None = None
        self.text = TEXT
        self.asked: list[type[Any]] = []
        self.task: asyncio.Task[None] | None = None
        self.start()

    def start(self) -> None:
        self.core = VaultCore.open(
            self.path, root=self.root, node="a", draw_into=draw_into, signer=SIGNING,
            clock_ns=lambda: NOW_NS, create=not self.path.exists(),
        )  # fmt: skip
        self.recorder = Recorder(
            "a", ask=self.ask, clock_ns=lambda: NOW_NS, monotonic_ns=lambda: round(self.loop.time() * 1e9), log=Log()
        )
        self.loop.run_until_complete(self.recorder.open())
        config = decode_config(self.text)
        (section,) = config.link
        module: Any = self
        link: Any = SimpleNamespace(section=section, module=module)
        world: Any = self
        self.assets = Assets(
            lambda: config, world=world, recorder=self.recorder, ask=self.ask, links={"line": link}, entropy=world
        )

    def infos(self) -> dict[str, DeviceInfo | None]:
        return {"QRNG-1": self.qrng}

    async def software(self) -> tuple[Asset, ...]:
        return self.packages

    async def ask(self, request: Any) -> Any:
        self.asked.append(type(request))
        if self.fails_at is not None and isinstance(request, self.fails_at):
            raise DiskFullError("full")
        (outcome,) = self.core.group([request])
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def run(self, seconds: float = 1.0) -> None:
        async def for_a_while() -> None:
            if self.task is None:
                self.task = asyncio.create_task(self.assets.run())
            await asyncio.sleep(seconds)

        self.loop.run_until_complete(for_a_while())

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.loop.run_until_complete(self.recorder.finish())
        self.task = None
        self.core.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def all(self) -> dict[tuple[str, str], Asset]:
        return {(its.kind, its.name): its for its in self.loop.run_until_complete(self.assets.all())}

    def alarms(self) -> dict[str, str]:
        found = self.recorder.alarms.all()
        return {alarm.subject: alarm.detail for alarm in found if alarm.code == "ASSET_CHANGED"}

    def leaves(self) -> list[tuple[str, str]]:
        (outcome,) = self.core.group([requests.EventsAfter(position=0, limit=4096)])
        return [(its.subject, its.kind) for _, its in outcome.value if its.kind.startswith("asset.")]


def replace(**changes: Any) -> DeviceInfo:
    return msgspec.structs.replace(INFO, **changes)


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = bytes(range(len(view)))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.stop()
    made.loop.close()


def test_a_new_vault_takes_down_what_is_there_without_an_alarm(node: Node) -> None:
    node.run()
    assert node.alarms() == {}
    assert node.leaves() == [
        ("asset/package/msgspec", "asset.added"), ("asset/package/numpy", "asset.added"),
        ("asset/module/TX-1", "asset.added"),
    ]  # fmt: skip
    node.restart()
    node.run()
    assert node.alarms() == {}
    assert len(node.leaves()) == 3


def test_firmware_and_software_that_changed_since_the_last_start_are_journalled_and_alarmed(node: Node) -> None:
    node.run()
    node.info = replace(firmware="1.4.3")
    node.packages = (package(digest="bb" * 32), package("msgspec"))
    node.restart()
    node.run()
    assert node.alarms() == {
        "TX-1": "version 1.4.2 -> 1.4.3",
        "software": f"1 changed: numpy digest {'a' * 24} -> {'b' * 24}",
    }
    assert node.leaves()[-2:] == [("asset/package/numpy", "asset.changed"), ("asset/module/TX-1", "asset.changed")]
    node.restart()
    node.run()
    assert len(node.leaves()) == 5


def test_a_device_that_comes_back_with_other_firmware_is_seen_while_the_node_runs(node: Node) -> None:
    node.info = None
    node.run(30)
    assert ("asset/module/TX-1", "asset.added") not in node.leaves()
    node.info = INFO
    node.run(30)
    node.info = replace(model="TX-10")
    node.run(30)
    assert node.alarms() == {"TX-1": "model TX-9 -> TX-10"}
    assert node.leaves()[-2:] == [("asset/module/TX-1", "asset.added"), ("asset/module/TX-1", "asset.changed")]


def test_software_that_came_anew_is_an_alarm_and_what_went_is_only_journalled(node: Node) -> None:
    node.run()
    node.packages = (package(), package("intruder"))
    node.restart()
    node.run()
    assert list(node.alarms().values()) == [
        "1 changed: intruder digest none -> " + "a" * 24 + ", version none -> 2.4.6"
    ]
    assert ("asset/package/msgspec", "asset.gone") in node.leaves()


def test_many_changes_are_one_alarm_that_says_how_many(node: Node) -> None:
    node.packages = tuple(package(f"p{i}") for i in range(9))
    node.run()
    node.packages = tuple(package(f"p{i}", "cc" * 32) for i in range(9))
    node.restart()
    node.run()
    (detail,) = node.alarms().values()
    assert detail.startswith("9 changed, the first: p0 digest")
    assert len([kind for _, kind in node.leaves() if kind == "asset.changed"]) == 9


def test_an_alarm_stands_in_the_vault_before_the_change_is_noted(node: Node) -> None:
    node.run()
    node.info = replace(firmware="1.4.3")
    node.restart()
    node.asked.clear()
    node.fails_at = NoteAssets
    node.run()
    assert node.asked.index(requests.RaiseAlarm) < node.asked.index(NoteAssets)
    stored = [alarm.about for alarm in node.core.group([requests.Alarms()])[0].value]
    assert "TX-1" in stored
    node.restart()  # as after a crash in between
    node.recorder.alarms.acknowledge("ASSET_CHANGED", "TX-1", "olga")
    node.fails_at = None
    node.run()
    assert node.alarms()["TX-1"] == "version 1.4.2 -> 1.4.3"
    assert node.leaves()[-1] == ("asset/module/TX-1", "asset.changed")


def test_while_the_vault_takes_nothing_the_node_goes_on_and_notes_it_later(node: Node) -> None:
    node.fails_at = NoteAssets
    node.run()
    assert node.leaves() == []
    assert [alarm.code for alarm in node.recorder.alarms.all()] == ["DISK_FULL"]
    node.fails_at = None
    node.run(30)
    assert len(node.leaves()) == 3


def test_what_a_device_says_of_itself_is_escaped_and_bounded(node: Node) -> None:
    node.info = replace(firmware="\x1b[2J\x00\u202e" + "9" * 5000, model="TX\n9\\")
    node.run()
    device = node.all()["module", "TX-1"]
    assert device.version is not None
    assert device.version.startswith("\\x1b[2J\\x00\\u202e99")
    assert len(device.version) == 160
    assert device.version.isprintable()
    assert device.details["model"] == "TX\\n9\\\\"
    assert ("asset/module/TX-1", "asset.added") in node.leaves()
    node.info = replace(firmware="\x1b[2J\x00\u202e" + "9" * 4999 + "8", model="TX\n9\\")
    node.run(30)
    assert "TX-1" in node.alarms()  # what was cut off counts too


def test_everything_is_listed_and_what_nobody_answers_for_says_so(node: Node) -> None:
    node.qrng = replace(serial="QRNG-1", firmware="2.0.0")
    node.run()
    found = node.all()
    assert set(found) == {
        ("application", "app-a"), ("link", "line"), ("module", "TX-1"), ("node", "a"), ("operator", "olga"),
        ("package", "msgspec"), ("package", "numpy"), ("qrng", "QRNG-1"),
    }  # fmt: skip
    assert {(its.owner, its.classification) for its in found.values()} == {("unassigned", "unclassified")}
    assert found["module", "TX-1"].details == {"link": "line", "role": "alice", "model": "TX-9", "backend": "hardware"}
    assert found["operator", "olga"].details == {"roles": "operator maintainer"}
    assert found["qrng", "QRNG-1"].version == "2.0.0"


def test_owner_and_classification_are_those_of_the_first_table_that_fits(node: Node) -> None:
    node.text += """
    [[asset]]
    kind = "module"
    name = "TX-1"
    owner = "optics"
    [[asset]]
    kind = "package"
    owner = "builders"
    [[asset]]
    name = "line-9"
    owner = "nobody"
    [[asset]]
    owner = "operations"
    classification = "restricted"
    """
    node.restart()
    node.run()
    found = node.all()
    assert found["module", "TX-1"].owner == "optics"
    assert found["package", "numpy"].owner == "builders"
    assert found["node", "a"].owner == "operations"
    assert {its.classification for its in found.values()} == {"restricted"}
    assert node.assets.unused(found.values()) == ("* line-9",)


@pytest.mark.parametrize(
    "table",
    [
        'kind = "cat"\nowner = "x"',
        'name = "TX-1"',
        'owner = ""',
        'owner = "a\\u001bb"',
        'name = "a\\nb"\nowner = "x"',
        'owner = "x"\ncolour = "red"',
        f'owner = "{"x" * 65}"',
    ],
)
def test_a_table_that_is_wrong_is_refused(table: str) -> None:
    with pytest.raises(ConfigError, match="asset"):
        decode_config(f"{TEXT}\n[[asset]]\n{table}\n")


def test_a_list_that_is_asked_for_early_waits_until_all_is_gathered(node: Node) -> None:
    async def early() -> int:
        asking = asyncio.create_task(node.assets.all())
        await asyncio.sleep(5)
        assert not asking.done()
        running = asyncio.create_task(node.assets.run())
        found = await asking
        running.cancel()
        return len(found)

    assert node.loop.run_until_complete(early()) == 8


def test_records_of_batches_are_told_the_firmware_of_their_devices_and_the_digest_of_this_software(node: Node) -> None:
    assert node.assets.origins(("TX-1", "QRNG-1")) == {"firmware": "TX-1 1.4.2"}
    node.packages = (package(), package("qkdnode", "cd" * 32))
    node.run()
    node.qrng = replace(serial="QRNG-1", firmware="2.0.0")
    told = node.assets.origins(("TX-1", "QRNG-1"))
    assert told == {"firmware": "TX-1 1.4.2; QRNG-1 2.0.0", "software_digest": "cd" * 32}
    assert node.assets.origins(("RX-9",)) == {"software_digest": "cd" * 32}
