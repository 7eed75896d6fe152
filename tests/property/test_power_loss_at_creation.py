"""A power loss at any moment of a vault's making or first steps: afterwards there is no vault, or one that opens."""

import random
from pathlib import Path

import pytest
from signing import SIGNING
from virtual_disk import LOSSES, PowerLossError, VirtualDisk

from qkdnode.audit.events import NodeEvent
from qkdnode.errors import VaultError
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import schema
from qkdnode.vault.core import VaultCore
from qkdnode.vault.requests import RecordEvents, Status
from qkdnode.vault.root import CredentialFile

PATH = Path("virtual/vault.db")
STEPS, EVENTS = 5, 20


class PowerCut:
    """Cuts the power at the nth operation."""

    def __init__(self, nth: int) -> None:
        self._left = nth

    def __call__(self, kind: str, path: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise PowerLossError


def fill(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = bytes(len(view))


def opened(disk: VirtualDisk, credential: Path, *, create: bool) -> VaultCore:
    return VaultCore.open(
        PATH,
        root=CredentialFile(credential.name, credential.parent),
        node="a",
        draw_into=fill,
        signer=SIGNING,
        clock_ns=lambda: 1,
        create=create,
        disk=disk,
    )


def events(number: int) -> RecordEvents:
    """Enough to make the file grow."""
    event = NodeEvent(time_ns=number, node="a", topic="node", kind="node.tried", subject=f"try {number}")
    return RecordEvents(events=(event,) * EVENTS)


def live(disk: VirtualDisk, credential: Path) -> int:
    """Make a vault and journal a few events, one by one, until the power goes; how many were answered."""
    answered = 0
    try:
        core = opened(disk, credential, create=True)
    except (VaultError, OSError):
        return answered
    for number in range(STEPS):
        (outcome,) = core.group([events(number)])
        if outcome.error is not None or disk.lost_power:
            break
        answered += EVENTS
    core.close()
    return answered


def violations(credential: Path) -> tuple[int, int]:
    """States rebuilt, and how many of them have lost what was answered or do not open."""
    states = wrong = nth = 0
    lost_power = True
    while lost_power:
        disk = VirtualDisk()
        disk.on_operation = PowerCut(nth)
        answered = live(disk, credential)
        lost_power = disk.lost_power
        disk.close()
        for kind in LOSSES:
            states += 1
            again = VirtualDisk(disk.after_power_loss(kind, random.Random(nth)))
            try:
                core = opened(again, credential, create=not answered)
                (outcome,) = core.group([Status()])
                wrong += outcome.value.leaves <= answered + bool(answered)  # each opening is a leaf
                core.close()
            except VaultError:
                wrong += 1
            again.close()
        nth += 1
    return states, wrong


EARLY = "PRAGMA wal_autocheckpoint = 3"  # so that a power loss meets the write-ahead log on its way into the file


@pytest.fixture
def credential(tmp_path: Path) -> Path:
    file = tmp_path / "credential"
    file.write_bytes(b"0123456789abcdef")
    return file


@pytest.mark.parametrize("more", [(), (EARLY,)], ids=["checkpoint later", "checkpoint early"])
def test_what_was_answered_is_there_after_any_power_loss(
    credential: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(schema, "PRAGMAS", (*schema.PRAGMAS, *more))
    states, wrong = violations(credential)
    assert states > 400
    assert wrong == 0


@pytest.mark.parametrize("level", ["NORMAL", "OFF"])
def test_less_synchronous_loses_it(credential: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """Negative control."""
    pragmas = tuple(pragma.replace("= FULL", f"= {level}") for pragma in schema.PRAGMAS)
    assert pragmas != schema.PRAGMAS
    monkeypatch.setattr(schema, "PRAGMAS", pragmas)
    assert violations(credential)[1] > 0


def test_without_directory_syncs_the_switch_to_wal_may_be_undone(
    credential: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: why the vault is opened with synchronous = EXTRA at first."""
    pragmas = tuple(pragma for pragma in schema.PRAGMAS if "EXTRA" not in pragma)
    assert pragmas != schema.PRAGMAS
    monkeypatch.setattr(schema, "PRAGMAS", (*pragmas, EARLY))
    assert violations(credential)[1] > 0
