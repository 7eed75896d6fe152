"""What an agent touches the world with: files, devices, sockets, threads, clocks. A simulation gives it others."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Buffer

from qkdnode.access.identities import NodeIdentity
from qkdnode.audit.checkpoint import Signer
from qkdnode.channel.identity import OwnIdentity
from qkdnode.channel.neighbour import Channel
from qkdnode.config import Config, LinkSection
from qkdnode.device.alarms import OnAlarm
from qkdnode.device.identity import DeviceConfig, DeviceInfo
from qkdnode.device.module import ReceiverModule, TransmitterModule
from qkdnode.device.sensors import SensorLimits
from qkdnode.errors import VaultUnansweredError
from qkdnode.ids import ALICE
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.devices import module_backend
from qkdnode.node.entropy import Entropy
from qkdnode.node.software import software
from qkdnode.vault.core import TrustedFrom
from qkdnode.vault.requests import Request
from qkdnode.vault.root import RootSource
from qkdnode.vault.service import Vault, secrets_in, takes_over
from qkdnode.wire.control import Asset
from qkdnode.workers.lanes import Lanes


class NodeVault(Protocol):
    """The vault as a node asks it."""

    def ask(self, request: Request) -> Awaitable[Any]: ...
    async def close(self) -> None: ...


class NodeEntropy(Protocol):
    """Random numbers as a node draws them."""

    @property
    def healthy(self) -> bool: ...
    async def start(self) -> None: ...
    def draw(self, size: int) -> SecretBuffer: ...
    def draw_into(self, buffer: Buffer) -> None: ...
    def statistics(self) -> Any: ...
    def infos(self) -> Mapping[str, DeviceInfo | None]: ...
    def acknowledge(self, serial: str) -> bool: ...
    async def stop(self) -> None: ...


class NodeModule(Protocol):
    """The QKD module at this end of a link."""

    serial: str
    info: DeviceInfo | None
    config: DeviceConfig | None

    def start(self, on_window: Callable[[Any], None], on_alarm: OnAlarm) -> None: ...
    def statistics(self) -> Any: ...
    def acknowledge(self) -> bool: ...
    def stop(self) -> None: ...


class NodeChannel(Protocol):
    """The classical channel to the neighbour of a link."""

    @property
    def connected(self) -> bool: ...
    async def send(self, frame: bytes) -> None: ...
    async def receive(self) -> bytes: ...
    def statistics(self) -> Any: ...
    async def close(self) -> None: ...


class NodeLanes(Protocol):
    """The workers of a link."""

    def submit(self, job: Any, long: bool, done: Callable[[Any, Any], None]) -> None: ...
    def close(self) -> None: ...


ANSWER_S = 30.0  # a disk that has not answered by then is taken to hang
_HANGS = "its disk hangs or is far too slow; look at the disk and the system log"


class ThreadedVault:
    """The vault in its own thread, awaited from the loop.

    Whoever asks is answered within `answer_s`, but for who has a Batch sealed: its key is the vault's meanwhile.
    """

    def __init__(self, vault: Vault, answer_s: float = ANSWER_S) -> None:
        self._vault, self._answer_s = vault, answer_s

    def ask(self, request: Request) -> Awaitable[Any]:
        """Queue a request; its answer comes once it is durable.

        VaultUnansweredError after the time: a request that the vault has not begun will not be executed. One that it is
        at is done whole or not at all, as after a crash; keys that it hands over late are wiped.
        """
        return self._answer(request, self._vault.ask(request))

    async def _answer(self, request: Request, asked: "Future[Any]") -> Any:
        try:
            async with asyncio.timeout(self._answer_s):
                return await asyncio.wrap_future(asked)
        except TimeoutError:
            name, waited = type(request).__name__, f"within {self._answer_s:g} s"
        if asked.cancel():
            raise VaultUnansweredError(f"the vault has not begun {name} {waited}, so it is not done: {_HANGS}")
        if takes_over(request):
            return await asyncio.wrap_future(asked)  # the key that it seals must not be taken from under its hands
        asked.add_done_callback(_wipe)
        raise VaultUnansweredError(
            f"the vault has not finished {name} {waited}; whether it is done will show when it goes on: {_HANGS}"
        )

    async def close(self) -> None:
        """Answer what was asked, then close."""
        await asyncio.to_thread(self._vault.close)


def _wipe(asked: "Future[Any]") -> None:
    """Key material in an answer that nobody waits for any more."""
    if asked.cancelled() or asked.exception() is not None:
        return
    for buffer in secrets_in(asked.result()):
        buffer.release()


class World:
    """The real one."""

    def wall_ns(self) -> int:
        """Wall clock."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """A clock that never steps; the loop's."""
        return round(asyncio.get_running_loop().time() * 1e9)

    def steady_ns(self) -> int:
        """The same, for any thread."""
        return time.monotonic_ns()

    async def free_bytes(self, directory: Path) -> int:
        """What this user may still write to the file system of a directory. OSError if that cannot be told."""
        found = await asyncio.to_thread(os.statvfs, directory)
        return found.f_bavail * found.f_frsize

    async def software(self) -> tuple[Asset, ...]:
        """What software this process is made of, with digests of its files."""
        return await asyncio.to_thread(software)

    async def open_vault(
        self,
        path: Path,
        *,
        root: RootSource,
        node: str,
        draw_into: Callable[[SecretBuffer], None],
        signer: Signer,
        trusted_from: TrustedFrom,
    ) -> NodeVault:
        """Open the node's vault, or make it at the first start."""
        vault = await asyncio.to_thread(
            Vault.open,
            path,
            root=root,
            node=node,
            draw_into=draw_into,
            signer=signer,
            clock_ns=self.wall_ns,
            create=not path.exists(),
            trusted_from=trusted_from,
        )
        return ThreadedVault(vault)

    def entropy(self, config: Config, *, on_change: Callable[[bool], None], on_alarm: OnAlarm) -> NodeEntropy:
        """The QRNGs and their pool."""
        return Entropy(config, on_change=on_change, on_alarm=on_alarm)

    def module(self, section: LinkSection) -> NodeModule:
        """The driver of a link's module."""
        make = TransmitterModule if section.role == ALICE else ReceiverModule
        return make(
            section.module.serial,
            module_backend(section),
            slots_per_window=section.distill.window_slots,
            limits=SensorLimits(
                photocurrent_na=section.limits.photocurrent_na,
                bias_voltage_mv=section.limits.bias_voltage_mv,
                temperature_mc=section.limits.temperature_mc,
            ),
        )

    async def channel(
        self,
        section: LinkSection,
        identity: OwnIdentity,
        peer: NodeIdentity,
        *,
        on_lost: Callable[[], None],
        on_refused: Callable[[str], None],
    ) -> NodeChannel:
        """This end of a link's classical channel."""
        make = Channel.listen if section.listen is not None else Channel.connect
        return await make(
            section.listen or section.connect or "",
            keys=identity.curve,
            peer=peer.name,
            peer_key=peer.curve,
            on_lost=on_lost,
            on_refused=on_refused,
        )

    def lanes(self, link: str) -> NodeLanes:
        """Threads for the heavy work of a link."""
        return Lanes(link, asyncio.get_running_loop())
