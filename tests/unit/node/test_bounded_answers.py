"""Whoever asks the vault is answered in bounded time, whatever its disk does, and what is refused changes nothing."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import apsw
import pytest
from signing import SIGNING
from virtual_disk import VirtualDisk

from qkdnode.audit.events import LinkEvent
from qkdnode.errors import DiskFullError, VaultUnansweredError
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.world import ThreadedVault
from qkdnode.vault.extract import LogHead
from qkdnode.vault.requests import Alive, OpenedKeys, OpenKeys, ProvisionLink, RecordEvent, Request, Status
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.service import Vault

PATIENCE_S = 0.05


def event(subject: str) -> RecordEvent:
    return RecordEvent(event=LinkEvent(time_ns=1, node="a", topic="link", kind="link.tried", subject=subject))


def draw_into(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = bytes(len(view))


class HangingDisk(VirtualDisk):
    """Once told to, it does not come back from a write or sync until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.waits = threading.Event()
        self.full = False
        self.on_operation = self._operate

    def _operate(self, kind: str, path: str) -> None:
        if self.full:
            raise apsw.FullError("full")
        if not self.goes_on.is_set():
            self.waits.set()
            self.goes_on.wait()


@pytest.fixture
def disk() -> Iterator[HangingDisk]:
    made = HangingDisk()
    yield made
    made.close()


@pytest.fixture
def vault(disk: HangingDisk, tmp_path: Path) -> Iterator[Vault]:
    (tmp_path / "credential").write_bytes(bytes(16))
    opened = Vault.open(
        "/virtual/vault",
        root=CredentialFile("credential", tmp_path),
        node="a",
        draw_into=draw_into,
        signer=SIGNING,
        clock_ns=time.time_ns,
        create=True,
        disk=disk,
    )
    yield opened
    disk.full = False
    disk.goes_on.set()
    opened.close()


def subjects(vault: Vault) -> list[str]:
    return [found.subject for _, found in vault.events_after(0) if found.kind == "link.tried"]


def test_a_disk_that_hangs_is_told_of_within_the_bound_and_what_waited_is_not_done(
    vault: Vault, disk: HangingDisk
) -> None:
    asking = ThreadedVault(vault, PATIENCE_S)

    async def ask() -> list[Any]:
        await asking.ask(event("before"))
        disk.goes_on.clear()
        first = asyncio.ensure_future(asking.ask(event("begun")))
        await asyncio.to_thread(disk.waits.wait)
        others = [asking.ask(request) for request in (event("not begun"), Status(), Alive(), LogHead())]
        return await asyncio.gather(first, *others, return_exceptions=True)

    begun, *waited = asyncio.run(ask())
    assert isinstance(begun, VaultUnansweredError)
    assert "whether it is done will show" in str(begun)
    for error in waited:
        assert isinstance(error, VaultUnansweredError)
        assert "so it is not done" in str(error)
    disk.goes_on.set()
    assert subjects(vault) == ["before", "begun"]
    assert vault.call(event("after")) > 0


def test_a_full_disk_is_told_of_at_once_and_nothing_is_changed(vault: Vault, disk: HangingDisk) -> None:
    asking = ThreadedVault(vault, PATIENCE_S)

    async def ask() -> list[Any]:
        disk.full = True
        requests = (asking.ask(event(str(number))) for number in range(20))
        refused = await asyncio.gather(*requests, return_exceptions=True)
        assert (await asking.ask(Status())).leaves == 1  # reading goes on
        disk.full = False
        await asking.ask(event("again"))
        return refused

    assert {type(error) for error in asyncio.run(ask())} == {DiskFullError}
    assert subjects(vault) == ["again"]


class SlowVault:
    """Has begun whatever it is asked, and answers when it is told to."""

    def __init__(self) -> None:
        self.answers: list[Future[Any]] = []

    def ask(self, request: Request) -> "Future[Any]":
        self.answers.append(Future())
        self.answers[-1].set_running_or_notify_cancel()
        return self.answers[-1]


def test_keys_that_are_handed_over_late_are_wiped() -> None:
    slow = SlowVault()
    asking = ThreadedVault(slow, PATIENCE_S)  # type: ignore[arg-type]
    late = SecretBuffer.copy_of(b"k" * 32)

    async def ask() -> None:
        with pytest.raises(VaultUnansweredError):
            await asking.ask(OpenKeys(key_ids=(), application="app-a"))
        slow.answers[0].set_result(OpenedKeys(key_ids=(), size_bits=256, material=late))

    asyncio.run(ask())
    with pytest.raises(ValueError, match="released"):
        memoryview(late)


def test_key_that_is_being_sealed_is_waited_for() -> None:
    """It is the vault's as long as it works on it: who asked must not wipe it meanwhile."""
    slow = SlowVault()
    asking = ThreadedVault(slow, PATIENCE_S)  # type: ignore[arg-type]

    async def ask() -> Any:
        with SecretBuffer(32) as key:
            request = ProvisionLink(link="metro", peer="b", role="alice", pair=b"pair", material=key)
        answer = asyncio.ensure_future(asking.ask(request))
        await asyncio.sleep(4 * PATIENCE_S)
        assert not answer.done()
        slow.answers[0].set_result("stored")
        return await answer

    assert asyncio.run(ask()) == "stored"
