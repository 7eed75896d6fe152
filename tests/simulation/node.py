"""What an agent touches the world with, in virtual time: its vault's disk, random numbers, module and workers."""

import asyncio
import functools
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from approving import application_of
from virtual_disk import VirtualDisk

from qkdnode.config import Config, LinkSection
from qkdnode.device.identity import DeviceConfig, DeviceInfo
from qkdnode.device.windows import ReceiverWindow, TransmitterWindow
from qkdnode.errors import NoEntropyError, QkdnodeError, VaultError
from qkdnode.ids import ALICE
from qkdnode.native.secret import SecretBuffer, WorkingBuffer
from qkdnode.node.world import World
from qkdnode.vault.core import Outcome, VaultCore
from qkdnode.vault.requests import CurrentPolicy, ProvisionLink, Request, StorePending, StoreReady
from qkdnode.wire.control import Asset
from simulation.life import Life
from simulation.network import Network

START_NS = 1_700_000_000_000_000_000
GROUP_REQUESTS = 128
SYNC_S = 0.004  # a commit on a usual disk
ETA, MISALIGNMENT = 0.9, 0.004
DISTINCT_WINDOWS = 24
_MATERIAL: dict[type[Request], str] = {ProvisionLink: "material", StorePending: "key", StoreReady: "key"}


class AgentLife(Life):
    """One run of an agent, or of an application: what it has of the simulated world."""

    network: Network


class SimulatedVault:
    """The real vault's core, whose groups take the time that a disk takes."""

    def __init__(self, core: VaultCore, site: "Site", life: AgentLife) -> None:
        self.core, self._site, self._life = core, site, life
        self._waiting: deque[tuple[Request, asyncio.Future[Any]]] = deque()
        self._busy = self._closed = False

    async def ask(self, request: Request) -> Any:
        if self._closed:
            raise VaultError("the vault is closed")
        answer: asyncio.Future[Any] = self._life.loop.create_future()
        self._waiting.append((request, answer))
        self._begin()
        result = await answer
        await self._life.while_alive()
        return result

    def call(self, request: Request) -> Any:
        """For the rules, outside of every process: now, and without its own time."""
        (outcome,) = self.core.group([request])
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    async def close(self) -> None:
        while self._busy or self._waiting:
            await asyncio.sleep(SYNC_S)
        if not self._closed:
            self._closed = True
            self.core.finish()
            self.release()

    def release(self) -> None:
        """Close the file without a word, as the end of a process does."""
        if not self._site.released(self.core):
            self.core.close()

    def _begin(self) -> None:
        if not self._busy and self._waiting:
            self._busy = True
            self._life.loop.call_soon(self._group)

    def _group(self) -> None:
        if not self._life.alive:
            return
        taken: list[tuple[Request, asyncio.Future[Any]]] = []

        def requests() -> Iterator[Request]:
            while self._waiting and len(taken) < GROUP_REQUESTS:
                taken.append(self._waiting.popleft())
                yield taken[-1][0]

        outcomes = self.core.group(requests())
        size = self.core._store.journal.size
        if self._site.disk.lost_power:
            done = [(asked[0], its.value) for asked, its in zip(taken, outcomes, strict=True) if its.error is None]
            self._site.perhaps = (size, done)
            self._site.ended_by_disk()
            return
        self._site.leaves = size
        for (request, _), outcome in zip(taken, outcomes, strict=True):
            if outcome.error is None:
                self._site.journalled(request, outcome.value)
        self._life.loop.call_later(SYNC_S, self._answer, taken, outcomes)

    def _answer(self, taken: list[tuple[Request, asyncio.Future[Any]]], outcomes: list[Outcome]) -> None:
        if not self._life.alive:
            return
        self._busy = False
        for (request, answer), outcome in zip(taken, outcomes, strict=True):
            if answer.done():
                continue
            if outcome.error is not None:
                answer.set_exception(outcome.error)
            else:
                if type(request) in _MATERIAL:
                    getattr(request, _MATERIAL[type(request)]).release()
                answer.set_result(outcome.value)
        self._begin()


class SimulatedEntropy:
    """Random numbers from the run's own seed."""

    def __init__(self, site: "Site") -> None:
        self._site = site

    @property
    def healthy(self) -> bool:
        return self._site.has_entropy

    async def start(self) -> None:
        await asyncio.sleep(0.2)
        if not self._site.has_entropy:
            raise NoEntropyError("no QRNG delivered healthy random numbers")

    def draw(self, size: int) -> SecretBuffer:
        buffer = SecretBuffer(size)
        try:
            self.draw_into(buffer)
        except BaseException:
            buffer.release()
            raise
        return buffer

    def draw_into(self, buffer: Any) -> None:
        if not self._site.has_entropy:
            raise NoEntropyError("no healthy QRNG")
        with memoryview(buffer) as view:
            view[:] = self._site.draws.randbytes(len(view))

    def statistics(self) -> Any:
        return None

    def infos(self) -> dict[str, DeviceInfo | None]:
        return {}

    def acknowledge(self, serial: str) -> bool:
        return False

    async def stop(self) -> None: ...


@functools.cache
def emitted(index: int, slots: int, p_z: float, intensities: tuple[float, ...], share: float) -> tuple[Any, ...]:
    """One Window: packed choices, and the detections that they cause. The same at every call."""
    generator = np.random.default_rng((11, index))
    basis = (generator.random(slots) >= p_z).astype(np.uint8)
    bit = generator.integers(0, 2, slots, np.uint8)
    decoy = (generator.random(slots) >= share).astype(np.uint8)
    mu = np.where(decoy, intensities[1], intensities[0])
    clicks = np.flatnonzero(generator.random(slots) < 1 - np.exp(-ETA * mu))
    measured = (generator.random(clicks.size) >= p_z).astype(np.uint8)
    wrong = (generator.random(clicks.size) < MISALIGNMENT).astype(np.uint8)
    other = generator.integers(0, 2, clicks.size, np.uint8)
    seen = np.where(measured == basis[clicks], bit[clicks] ^ wrong, other)
    nibbles = basis | (bit << 1) | (decoy << 2)
    choices = (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()
    return choices, clicks.astype(np.uint32), (1 << (seen + 2 * measured)).astype(np.uint8)


class SimulatedModule:
    """Windows in virtual time while the site's light is on; both ends see the same."""

    def __init__(self, section: LinkSection, site: "Site", life: AgentLife) -> None:
        distill = section.distill
        self.serial, self._section, self._site, self._life = section.module.serial, section, site, life
        self.info: DeviceInfo | None = DeviceInfo(
            personality=0, firmware="simulated", slot_rate_hz=distill.slot_rate_hz, sync_interval_slots=0,
            slot_units=0, intensities=len(distill.intensities), emulated=True, fault_injection=False, session=1,
            serial=self.serial, model="simulated",
        )  # fmt: skip
        self.config: DeviceConfig | None = DeviceConfig(
            p_z=distill.p_z,
            intensities=distill.intensities,
            intensity_probabilities=distill.intensity_probabilities,
            dead_time_ns=distill.dead_time_ns,
        )
        self._window_s = distill.window_slots / distill.slot_rate_hz
        self._stopped = False

    def start(self, on_window: Callable[[Any], None], on_alarm: Any) -> None:
        self._on_window = on_window
        self._next()

    def stop(self) -> None:
        self._stopped = True

    def statistics(self) -> Any:
        return None

    def acknowledge(self) -> bool:
        return False

    def _next(self) -> None:
        now = self._life.loop.time()
        index = int(now / self._window_s + 1e-6) + 1
        self._life.loop.call_at(index * self._window_s, self._emit, index, context=self._life.context)

    def _emit(self, index: int) -> None:
        if self._stopped or not self._life.alive:
            return
        self._next()
        if not self._site.light(self._life.loop.time()):
            return
        distill = self._section.distill
        choices, slots, patterns = emitted(
            index % DISTINCT_WINDOWS, distill.window_slots, distill.p_z, distill.intensities,
            distill.intensity_probabilities[0],
        )  # fmt: skip
        if self._section.role == ALICE:
            self._on_window(TransmitterWindow(index, WorkingBuffer.copy_of(choices)))
        else:
            self._on_window(ReceiverWindow(index, slots.copy(), patterns.copy()))


class SimulatedLanes:
    """Work done at once, whose result comes a little later."""

    def __init__(self, life: AgentLife) -> None:
        self._life = life

    def submit(self, job: Any, long: bool, done: Callable[[Any, Any], None]) -> None:
        try:
            result: Any = job.run()
        except (QkdnodeError, ValueError) as error:
            result = error
        self._life.loop.call_later(0.005 if long else 0.001, self._done, job, result, done)

    def _done(self, job: Any, result: Any, done: Callable[[Any, Any], None]) -> None:
        if self._life.alive:
            done(job, result)

    def close(self) -> None: ...


class SimulatedWorld(World):
    """The world of one run of one agent."""

    def __init__(self, site: "Site", life: AgentLife) -> None:
        self._site, self._life = site, life

    def wall_ns(self) -> int:
        return START_NS + round((self._life.loop.time() + self._site.clock_error_s) * 1e9)

    def steady_ns(self) -> int:
        return round(self._life.loop.time() * 1e9)

    async def open_vault(self, path: Path, **options: Any) -> Any:
        disk = self._site.disk
        await asyncio.sleep(0.01)
        core = VaultCore.open(
            path, **options, clock_ns=self.wall_ns, create=not disk.exists(path), disk=disk
        )  # fmt: skip
        self._site.apply_policy(core, options["node"], self.wall_ns())
        vault = self._site.opened(core, SimulatedVault(core, self._site, self._life))
        await self._life.while_alive()
        return vault

    async def free_bytes(self, directory: Path) -> int:
        return 1 << 40

    async def software(self) -> tuple[Asset, ...]:
        return (Asset(kind="package", name="qkdnode", version="simulated"),)

    def entropy(self, config: Config, *, on_change: Any, on_alarm: Any) -> Any:
        return SimulatedEntropy(self._site)

    def module(self, section: LinkSection) -> Any:
        return SimulatedModule(section, self._site, self._life)

    def lanes(self, link: str) -> Any:
        return SimulatedLanes(self._life)


class Site:
    """One node's place: what outlives its process."""

    def __init__(
        self,
        role: str,
        *,
        draws: random.Random,
        journalled: Callable[[str, Any, Any], None],
        breach: Callable[[str], None],
        light: Callable[[float], bool],
        ended_by_disk: Callable[[str], None],
        document: bytes | None = None,
    ) -> None:
        self.role, self.draws, self.light = role, draws, light
        self._document = document
        self.disk = VirtualDisk()
        self.has_entropy = True
        self.clock_error_s = 0.0
        self.leaves = 0  # what was answered stands in the log
        self.perhaps: tuple[int, list[tuple[Any, Any]]] = (0, [])  # a group that the power loss met, and its log's size
        self.vault: SimulatedVault | None = None
        self._journalled, self._breach, self._ended_by_disk = journalled, breach, ended_by_disk
        self._released: set[int] = set()

    def journalled(self, request: Any, answer: Any) -> None:
        self._journalled(self.role, request, answer)

    def ended_by_disk(self) -> None:
        self._ended_by_disk(self.role)

    def apply_policy(self, core: VaultCore, node: str, now_ns: int) -> None:
        """The policy of the run, in a vault that has none yet."""

        def call(request: Request) -> Any:
            (outcome,) = core.group([request])
            if outcome.error is not None:
                raise outcome.error
            return outcome.value

        if self._document is not None and not call(CurrentPolicy()).number:
            call(application_of(call, node, now_ns, self._document))

    def opened(self, core: VaultCore, vault: SimulatedVault) -> SimulatedVault:
        """A process has opened the vault: nothing that was answered before may be missing."""
        size = core._store.journal.size
        if size <= self.leaves:
            self._breach(f"{self.role}: the log has {size} entries, {self.leaves} were answered")
        reached, requests = self.perhaps
        if size > reached:  # nobody was answered, but it reached the disk all the same
            for request, answer in requests:
                self.journalled(request, answer)
        self.perhaps = (0, [])
        self.vault = vault
        return vault

    def released(self, core: VaultCore) -> bool:
        """Whether a core was closed already; from now on it is."""
        known = id(core) in self._released
        self._released.add(id(core))
        return known

    def replace_disk(self, files: dict[str, bytes]) -> None:
        """The disk as the next process finds it."""
        vault, old, self.vault = self.vault, self.disk, None
        old.lost_power = True  # whoever still writes has lost it
        if vault is not None:
            vault.release()
        old.close()
        self.disk = VirtualDisk(files)
        self.disk.operations = old.operations
