"""Two nodes in one process and in virtual time: real links, real vaults on real files, and a wire that a plan plays.

A vault's answer is awaited in virtual time, but its thread is real: the loop stands still until it has answered. A
crash throws a node's link and vault away as they are; the restart finds the files as they were at that moment.
"""

import asyncio
import atexit
import contextlib
import contextvars
import functools
import hashlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import msgspec
import numpy as np
from approving import application_of, policy
from link_rules import Rules
from signing import PUBLIC, SIGNING
from virtual_time import VirtualTimeLoop

from qkdnode.distill import effects as fx
from qkdnode.distill.settings import Settings
from qkdnode.errors import ChannelError, DiskFullError, QkdnodeError, VaultError
from qkdnode.ids import ALICE, BOB, ROLES, Association, BatchId, other_role
from qkdnode.link.agreement import LocalSubscription
from qkdnode.link.driver import Authentication, Link, Surroundings
from qkdnode.native.secret import SecretBuffer, WorkingBuffer
from qkdnode.vault import requests as ask
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.service import Vault
from qkdnode.wire import codec
from qkdnode.wire.messages import Greeting, Hello, Parameters

LINK = "a-b"
NODES = {ALICE: "node-a", BOB: "node-b"}
APPLICATIONS = {ALICE: "payroll", BOB: "ledger"}
ASSOCIATIONS = {role: Association(APPLICATIONS[role], APPLICATIONS[other_role(role)], LINK) for role in ROLES}
KEY_BITS = 256
CREDIT = 6
START_NS = 1_700_000_000_000_000_000

# A strong, short link with a loose epsilon: the smallest Batch with key is four Windows, a few milliseconds of work.
PARAMETERS = Parameters(
    protocol=1,
    link=LINK,
    slot_rate_hz=2**18,
    window_slots=2**16,
    p_z=0.5,
    intensities=(0.3, 0.1),
    intensity_probabilities=(0.3, 0.7),
    method="rusca2018/1",
    booking="both",
    family="modified",
    eps_sec=1e-2,
    eps_cor=1e-6,
    qber_limit=0.08,
    batch_bits=8_000,
    batch_max_bits=40_000,
    dead_slots=0,
)
WINDOW_S = PARAMETERS.window_slots / PARAMETERS.slot_rate_hz
ETA, MISALIGNMENT = 0.9, 0.004
RECONNECT_S = 0.3
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # nothing here loses power: a sync to a disk only takes time
SETTLES_WITHIN_S = 120.0
FLOOD_S = 0.02


@functools.cache
def emitted(index: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """One Window: packed choices, and the detections that they cause. The same at every call."""
    slots, generator = PARAMETERS.window_slots, np.random.default_rng((11, index))
    basis = (generator.random(slots) >= PARAMETERS.p_z).astype(np.uint8)
    bit = generator.integers(0, 2, slots, np.uint8)
    decoy = (generator.random(slots) >= PARAMETERS.intensity_probabilities[0]).astype(np.uint8)
    mu = np.where(decoy, PARAMETERS.intensities[1], PARAMETERS.intensities[0])
    clicks = np.flatnonzero(generator.random(slots) < 1 - np.exp(-ETA * mu))
    measured = (generator.random(clicks.size) >= PARAMETERS.p_z).astype(np.uint8)
    wrong = (generator.random(clicks.size) < MISALIGNMENT).astype(np.uint8)
    other = generator.integers(0, 2, clicks.size, np.uint8)
    seen = np.where(measured == basis[clicks], bit[clicks] ^ wrong, other)
    nibbles = basis | (bit << 1) | (decoy << 2)
    choices = (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()
    return choices, clicks.astype(np.uint32), (1 << (seen + 2 * measured)).astype(np.uint8)


def open_vault(directory: Path, role: str, draws: random.Random, *, create: bool = False) -> Vault:
    """The vault in a directory of its own."""
    credential = directory / "credential"
    if create:
        directory.mkdir(mode=0o700)
        credential.write_bytes(b"a root secret of " + role.encode())

    def draw_into(buffer: SecretBuffer) -> None:
        with memoryview(buffer) as view:
            view[:] = draws.randbytes(len(view))

    return Vault.open(
        directory / "vault.db",
        root=CredentialFile("credential", directory),
        node=NODES[role],
        draw_into=draw_into,
        signer=SIGNING,
        clock_ns=lambda: START_NS,
        create=create,
    )


@functools.cache
def provisioned(pads: int) -> Path:
    """Both vaults with the pair's first key and the association, to be copied."""
    place = Path(tempfile.mkdtemp(prefix="qkdnode-pair-", dir=MEMORY))
    atexit.register(shutil.rmtree, place)
    material = hashlib.shake_256(b"the pair").digest(32 * pads)
    for role in ROLES:
        with open_vault(place / role, role, random.Random(role), create=True) as vault:
            peer = NODES[other_role(role)]
            vault.call(
                ask.ProvisionLink(
                    link=LINK, role=role, peer=peer, pair=b"pair", material=SecretBuffer.copy_of(material)
                )
            )
            vault.call(
                ask.Associate(
                    association=ASSOCIATIONS[role],
                    nodes=(NODES[role], peer),
                    link=LINK,
                    purpose="test",
                    key_class="qkd",
                )
            )
    return place


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong at the nth time that an end sends a message, or asks its vault something, of this name."""

    role: str
    name: str
    nth: int
    act: str
    size: float = 0.0  # seconds, or for `corrupt` where in the frame


class Pace(msgspec.Struct, frozen=True):
    """Seconds that things take at one end."""

    vault: float = 0.0
    wire: float = 0.001
    work: float = 0.0
    application: float = 0.01


class Plan(msgspec.Struct, frozen=True):
    """Everything that a run depends on."""

    faults: tuple[Fault, ...] = ()
    paces: tuple[Pace, Pace] = (Pace(), Pace())
    windows: int = 24
    pads: int = 700  # of each direction
    target_pads: int = 200
    switches: str | None = None  # whose policy gets other terms just as the peer's first keys come in
    restored: str | None = None  # whose vault is put back to an older copy
    copied_s: float = 0.0
    restored_s: float | None = 0.0  # after the copy was taken; None: when a fault says so
    gone: tuple[tuple[str, float, float], ...] = ()  # who loses power, when, and for how many seconds
    wait_s: float = 0.0  # between the last Window and the calm
    windows_after: int = 0  # Windows after that wait
    flood: str | None = None  # to whom the wire repeats every Greeting and Hello that it has heard, all the time


class Log:
    """Keeps nothing."""

    def bind(self, **_: Any) -> "Log":
        return self

    def info(self, *_: Any, **__: Any) -> None: ...

    warning = error = info


LIFE: contextvars.ContextVar["Life | None"] = contextvars.ContextVar("LIFE", default=None)


class Life:
    """One run of one node, from its start to its crash. To its link it is the channel, the workers and the node."""

    def __init__(self, world: "World", role: str, directory: Path) -> None:
        self.world, self.role, self.directory = world, role, directory
        self.alive = True
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.Context()
        self.context.run(LIFE.set, self)
        self.alarms: Counter[str] = Counter()
        self.vault = open_vault(directory, role, world.draws)
        self._pace = world.plan.paces[ROLES.index(role)]
        self._answered_s = self._worked_s = 0.0
        self._unread: asyncio.Queue[bytes] = asyncio.Queue()
        self._for_application = asyncio.Event()
        self.link = Link(
            name=LINK,
            node=NODES[role],
            peer=NODES[other_role(role)],
            role=role,
            settings=Settings(agreed=PARAMETERS),
            authentication=Authentication(reserve_bits=0, target_bits=128 * world.plan.target_pads),
            devices=("module", "qrng"),
            channel=self,
            lanes=self,
            around=Surroundings(
                ask=self.ask,
                draw=lambda size: SecretBuffer.copy_of(world.draws.randbytes(size)),
                alarm=self._alarm,
                clear=lambda code, subject: None,
                record=lambda kind, subject, details: None,
                notify_supply=lambda application: self._for_application.set(),
                monotonic_ns=lambda: round(world.loop.time() * 1e9),
                log=Log(),
            ),
            software="test",
            peer_log_key=PUBLIC,
        )

    @property
    def association(self) -> Association:
        """The pair of applications, as this node sees it."""
        return ASSOCIATIONS[self.role]

    def batches(self) -> dict[BatchId, tuple[str, int]]:
        """State and usability of every Batch in the vault."""
        with closing(apsw.Connection(str(self.directory / "vault.db"), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            rows = connection.execute("SELECT batch, state, usable FROM batches").fetchall()
        return {BatchId(int.from_bytes(b[:8]), int.from_bytes(b[8:])): (state, usable) for b, state, usable in rows}

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that ends with this life."""
        self.world.loop.create_task(work, context=self.context)

    async def run(self) -> None:
        await self.link.open()
        self.world.connect_soon()
        subscription = LocalSubscription(ASSOCIATIONS[self.role], True, KEY_BITS, CREDIT)
        self.link.agreement.subscribed(subscription)
        if self.world.calm:
            self.stop()
        self.spawn(self._supply())
        await self.link.run()

    def stop(self) -> None:
        """Make nothing new; what there is comes to its end."""
        self.link.stop_distilling()
        self.link.agreement.stop_allocating()

    def crash(self) -> None:
        """End between two steps; nothing that this life holds does anything any more."""
        self.alive = False
        for task in self.tasks:
            task.cancel()

    async def bury(self) -> None:
        """Give back the memory that the end of a process would."""
        while waiting := [task for task in self.tasks if not task.done()]:
            # Again and again: before Python 3.12 wait_for loses a cancellation that comes with what it waits for.
            for task in waiting:
                task.cancel()
            await asyncio.sleep(0)
        if hasattr(self.link, "session"):
            await self.link.close()
        self.vault.close()

    # --- the channel ---

    @property
    def connected(self) -> bool:
        return self.alive and self.world.connected

    async def send(self, frame: bytes) -> None:
        await asyncio.sleep(0)
        if not self.connected:
            self.world.rules.sealed(self.role, codec.decode(frame))
            raise ChannelError("not connected")
        self.world.carry(self.role, frame)
        await self._while_alive()

    async def receive(self) -> bytes:
        return await self._unread.get()

    def lost(self, reason: str) -> None:
        if self.alive:
            self.link.lost(reason)

    def arrive(self, frame: bytes) -> None:
        self._unread.put_nowait(frame)

    def joined(self) -> None:
        while not self._unread.empty():
            self._unread.get_nowait()

    # --- the workers ---

    def submit(self, job: Any, long: bool, done: Any) -> None:
        try:
            result: Any = job.run()
        except (QkdnodeError, ValueError) as error:
            result = error
        self._worked_s = max(self._worked_s + 1e-7, self.world.loop.time() + self._pace.work)
        self.world.loop.call_at(self._worked_s, lambda: done(job, result) if self.alive else None)

    # --- the vault ---

    def switch_policy(self) -> None:
        """The class of before with other terms, once."""
        if self.vault.call(ask.CurrentPolicy()).number == 0:
            document = policy("lifetime_s = 60", name="qkd", purpose="session")
            self.vault.call(application_of(self.vault.call, NODES[self.role], START_NS, document))

    async def ask(self, request: Any) -> Any:
        if isinstance(request, ask.AcceptAllocation) and self.world.plan.switches == self.role:
            self.switch_policy()
        fault = self.world.fault_of(self.role, type(request).__name__)
        if fault is not None and fault.act == "refuse":
            raise DiskFullError("the disk is full")
        if fault is not None and fault.act == "crash before":
            self.world.crash(self.role, fault.size)
        await self._while_alive()
        try:
            answer = self.vault.call(request)
        except QkdnodeError:
            await self._answered()
            raise
        self.world.rules.journalled(self.role, request, answer)
        if fault is not None and fault.act == "crash after":
            self.world.crash(self.role, fault.size)
        await self._answered()
        return answer

    async def _answered(self) -> None:
        """Answers take their time and come in the order of the questions."""
        self._answered_s = max(self._answered_s + 1e-7, self.world.loop.time() + self._pace.vault)
        answered = self.world.loop.create_future()
        self.world.loop.call_at(self._answered_s, lambda: None if answered.done() else answered.set_result(None))
        await answered
        await self._while_alive()

    async def _while_alive(self) -> None:
        if not self.alive:
            await asyncio.get_running_loop().create_future()

    # --- the application ---

    async def _supply(self) -> None:
        """Hand keys to the application until it has acknowledged them, as the supply server does."""
        application = APPLICATIONS[self.role]
        while True:
            self._for_application.clear()
            try:
                waiting = await self.ask(ask.ApplicationOutbox(application=application))
                for delivery in waiting:
                    with await self.ask(ask.OpenKey(key_id=delivery.key_id, application=application)) as key:
                        digest = hashlib.sha256(key).digest()
                    self.world.rules.supplied(self.role, delivery.key_id, digest)
                if waiting:
                    await asyncio.sleep(self._pace.application)
                    ids = tuple(delivery.key_id for delivery in waiting)
                    await self.ask(ask.KeysDelivered(application=application, key_ids=ids, details={}))
                    self.link.agreement.wake()
            except VaultError:
                await asyncio.sleep(1)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._for_application.wait(), 2)

    def _alarm(self, code: str, subject: str, detail: str) -> None:
        self.alarms[code] += 1
        if self.world.plan.restored is None:
            self.world.rules.compared(self.role, code, detail)
        if self.alarms[code] < 4:
            self.world.tell(f"{self.role} alarm {code}: {detail}")


class World:
    """Both nodes, the wire between them, and the plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = VirtualTimeLoop()
        self.loop.set_task_factory(_owned)
        self.loop.set_exception_handler(
            lambda loop, context: self._fail(context.get("exception") or context["message"])
        )
        self.draws = random.Random(5)
        self.rules = Rules()
        self.lives: dict[str, Life] = {}
        self.connected = self.calm = False
        self.story: list[str] = []
        self.fired: list[Fault] = []
        self._faults = {(fault.role, fault.name, fault.nth): fault for fault in plan.faults}
        self._times: Counter[tuple[str, str]] = Counter()
        self._connection = 0
        self._free_s = dict.fromkeys(ROLES, 0.0)
        self._openings: dict[str, list[bytes]] = {role: [] for role in ROLES}
        self._burials: list[asyncio.Task[None]] = []
        self._place = tempfile.TemporaryDirectory(prefix="qkdnode-world-", dir=MEMORY)
        self._directories = 0
        self._older = Path()
        self._window = 0

    def play(self) -> "World":
        """Run the plan, then let everything settle."""
        try:
            self.loop.run_until_complete(self._play())
        finally:
            try:
                self.loop.run_until_complete(self._end())
            finally:
                self.loop.close()
                self._place.cleanup()
        return self

    async def _play(self) -> None:
        template = provisioned(self.plan.pads)
        for role in ROLES:
            self.start(role, self._copy(template / role))
        if self.plan.restored is not None:
            self.loop.create_task(self._restore(self.plan.restored)).add_done_callback(self.watch)
        for role, when_s, down_s in self.plan.gone:
            self.loop.call_later(when_s, self.crash, role, down_s)
        if self.plan.flood is not None:
            self.loop.create_task(self._flood(self.plan.flood)).add_done_callback(self.watch)
        for _ in range(self.plan.windows):
            await asyncio.sleep(WINDOW_S)
            self._shine()
        await asyncio.sleep(self.plan.wait_s)
        for _ in range(self.plan.windows_after):
            await asyncio.sleep(WINDOW_S)
            self._shine()
        await self._settle()

    async def _settle(self) -> None:
        self.calm = True
        self._faults.clear()
        for life in self.lives.values():
            if life.alive:
                life.context.run(life.stop)
        until = self.loop.time() + (SETTLES_WITHIN_S if self.plan.restored is None else 30.0)
        while self.loop.time() < until and not self.rules.breaches:
            await asyncio.sleep(5.0)
            if self.failed or (all(life.alive for life in self.lives.values()) and self.rules.settled(self.lives)):
                break
        if self.plan.restored is None and not self.failed:
            self.rules.check(self.lives)

    async def _restore(self, role: str) -> None:
        await asyncio.sleep(self.plan.copied_s)
        self._older = self._copy(self.lives[role].directory)
        if self.plan.restored_s is not None:
            await asyncio.sleep(self.plan.restored_s)
            self.crash(role, 1.0, self._older)

    async def _flood(self, victim: str) -> None:
        """Whatever opens a session, from every session that there was, again and again."""
        while not self.calm:
            await asyncio.sleep(FLOOD_S)
            for raw in self._openings[other_role(victim)]:
                if self.connected and self.lives[victim].alive:
                    self.lives[victim].arrive(raw)
                    if isinstance(codec.decode(raw).message, Greeting):
                        self.lives[victim].arrive(raw[:-1] + bytes([raw[-1] ^ 1]))

    async def _end(self) -> None:
        for life in self.lives.values():
            if life.alive:
                life.crash()
                await life.bury()
        await asyncio.gather(*self._burials)
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.sleep(0)

    def _shine(self) -> None:
        choices, slots, patterns = emitted(self._window % 16)
        for life in self.lives.values():
            if life.alive and hasattr(life.link, "session"):
                sent = fx.TransmitterWindowReady(self._window, WorkingBuffer.copy_of(choices))
                received = fx.ReceiverWindowReady(self._window, slots.copy(), patterns.copy())
                life.context.run(life.link.window, sent if life.role == ALICE else received)
        self._window += 1

    # --- nodes ---

    @property
    def failed(self) -> set[str]:
        """The ends that have stopped for an operator to act."""
        return {role for role, life in self.lives.items() if life.link.statistics.state == "FAILED"}

    def start(self, role: str, directory: Path) -> None:
        life = self.lives[role] = Life(self, role, directory)
        life.spawn(life.run())

    def crash(self, role: str, down_s: float, directory: Path | None = None) -> None:
        """Throw a node away as it is and start it again later from its files, or from others."""
        life = self.lives[role]
        if not life.alive:
            return
        self.tell(f"{role} crashes")
        life.crash()
        self.lose("the peer went")
        restored = directory or self._copy(life.directory)
        self._burials.append(self.loop.create_task(life.bury(), context=contextvars.Context()))
        self.loop.call_later(down_s, lambda: self.start(role, restored))

    def _copy(self, source: Path) -> Path:
        """The files of a vault as they are now, open or not."""
        self._directories += 1
        target = Path(self._place.name) / str(self._directories)
        target.mkdir(mode=0o700)
        for file in ("vault.db", "vault.db-wal", "credential"):
            if (source / file).exists():
                shutil.copy2(source / file, target / file)
        return target

    def watch(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._fail(task.exception())

    def _fail(self, what: Any) -> None:
        self.rules.breaches.append(f"unexpected: {what!r}")

    def tell(self, what: str) -> None:
        self.story.append(f"{self.loop.time():9.3f} {what}")

    # --- the wire ---

    def fault_of(self, role: str, name: str) -> Fault | None:
        """What the plan has for this moment."""
        nth = self._times[role, name]
        self._times[role, name] += 1
        fault = None if self.calm else self._faults.pop((role, name, nth), None)
        if fault is not None:
            self.fired.append(fault)
            self.tell(f"{role} {name} #{nth}: {fault.act} {fault.size:g}")
        return fault

    def carry(self, role: str, raw: bytes) -> None:
        frame = codec.decode(raw)
        self.rules.sent(role, frame)
        if isinstance(frame.message, Greeting | Hello):
            self._openings[role].append(raw)
        fault = self.fault_of(role, type(frame.message).__name__)
        if fault is None:
            self._forward(role, raw)
        else:
            ACTS[fault.act](self, role, raw, fault.size)

    def _forward(self, role: str, raw: bytes, after_s: float = 0.0, *, in_turn: bool = True, to: str = "") -> None:
        when = self.loop.time() + self.plan.paces[ROLES.index(role)].wire + after_s
        if in_turn:
            when = self._free_s[role] = max(when, self._free_s[role] + 1e-7)
        connection, to = self._connection, to or other_role(role)

        def arrive() -> None:
            if self.connected and connection == self._connection and self.lives[to].alive:
                self.lives[to].arrive(raw)

        self.loop.call_at(when, arrive)

    def _later(self, role: str, raw: bytes, after_s: float) -> None:
        """Into whatever connection there is then."""
        self.loop.call_later(after_s, lambda: self._forward(role, raw) if self.connected else None)

    def lose(self, reason: str) -> None:
        """Both ends lose the connection, and what was on it is gone."""
        self._connection += 1
        if self.connected:
            self.connected = False
            for life in self.lives.values():
                self.loop.call_soon(
                    lambda life=life: life.link.lost(reason) if life.alive else None, context=life.context
                )
            self.connect_soon()

    def connect_soon(self) -> None:
        self.loop.call_later(RECONNECT_S, self._connect)

    def _connect(self) -> None:
        ready = len(self.lives) == 2 and all(hasattr(life.link, "session") for life in self.lives.values())
        if not self.connected and ready and all(life.alive for life in self.lives.values()):
            self.connected = True
            self._connection += 1
            for life in self.lives.values():
                life.joined()

    # --- what a plan can do to a frame ---

    def _drop(self, role: str, raw: bytes, size: float) -> None:
        self.rules.altered(codec.decode(raw))

    def _lose(self, role: str, raw: bytes, size: float) -> None:
        self.rules.altered(codec.decode(raw))
        self.lose("the connection broke")

    def _repeat(self, role: str, raw: bytes, size: float) -> None:
        self._forward(role, raw)
        self._later(role, raw, size)

    def _overtake(self, role: str, raw: bytes, size: float) -> None:
        self._forward(role, raw, 0.01 + size, in_turn=False)

    def _stall(self, role: str, raw: bytes, size: float) -> None:
        self._forward(role, raw, size)

    def _reflect(self, role: str, raw: bytes, size: float) -> None:
        self._forward(role, raw)
        self._forward(role, raw, in_turn=False, to=role)

    def _corrupt(self, role: str, raw: bytes, size: float) -> None:
        self.rules.altered(codec.decode(raw))
        damaged, bit = bytearray(raw), int(size * 8 * len(raw)) % (8 * len(raw))
        damaged[bit // 8] ^= 1 << bit % 8
        self._forward(role, bytes(damaged))

    def _restore_sender(self, role: str, raw: bytes, size: float) -> None:
        """What is sent is lost, and the sender comes back with the older copy of its vault."""
        self.rules.altered(codec.decode(raw))
        self.crash(role, size, self._older)

    def _deny(self, role: str, raw: bytes, size: float) -> None:
        """A Greeting arrives as one of an end that has seen nothing."""
        frame = codec.decode(raw)
        denied = codec.encode_body(msgspec.structs.replace(frame.message, seen=()))
        trailer = raw[codec.HEADER.size + len(frame.body) :]
        self._forward(role, frame.header.pack() + denied + trailer)

    def _contradict(self, role: str, raw: bytes, size: float) -> None:
        frame = codec.decode(raw)
        answer = msgspec.structs.replace(frame.message, ready=not frame.message.ready)  # type: ignore[attr-defined]
        self._forward(role, codec.join(frame.header.pack(), codec.encode_body(answer), frame.trailer))

    def _crash_sender(self, role: str, raw: bytes, size: float) -> None:
        self._forward(role, raw)
        self.crash(role, size)

    def _crash_receiver(self, role: str, raw: bytes, size: float) -> None:
        self.crash(other_role(role), size)

    def _crash_both(self, role: str, raw: bytes, size: float) -> None:
        self.crash(role, size)
        self.crash(other_role(role), 1.0)


ACTS = {
    "drop": World._drop,
    "lose": World._lose,
    "repeat": World._repeat,
    "overtake": World._overtake,
    "stall": World._stall,
    "reflect": World._reflect,
    "corrupt": World._corrupt,
    "contradict": World._contradict,
    "deny": World._deny,
    "restore sender": World._restore_sender,
    "crash sender": World._crash_sender,
    "crash receiver": World._crash_receiver,
    "crash both": World._crash_both,
}


def _owned(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    """Every task that a node starts, however deep, ends with its life."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    life = options["context"].get(LIFE) if "context" in options else LIFE.get()
    if life is not None:
        life.tasks.append(task)
        task.add_done_callback(life.world.watch)
        if not life.alive:
            task.cancel()
    return task
