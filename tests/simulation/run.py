"""One simulated run: two agents, two applications, and the faults that one integer has in store for them."""

import asyncio
import atexit
import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

import apsw
import msgspec
from approving import policy
from link_rules import Now, Rules, Terms
from virtual_disk import LOSSES, PowerLossError

import qkdnode.client.subscription
import qkdnode.supply.server
from qkdnode.client import AsyncSubscription, Events, Key, KeyRefusedError, NoKeyError
from qkdnode.config import Config, decode_config
from qkdnode.errors import QkdnodeError, VaultError
from qkdnode.ids import ALICE, BOB, ROLES, Association, BatchId, other_role
from qkdnode.lifecycle.policy import builtin
from qkdnode.lifecycle.policy.document import KeyClass
from qkdnode.lifecycle.rotation import GIVEN_UP_IN
from qkdnode.node.agent import Agent
from qkdnode.node.provision import provision_application, provision_node, provision_pair
from qkdnode.vault import requests as ask
from qkdnode.vault.endings import EndedNoted, HadBefore
from qkdnode.vault.retirement import FollowRetired, RetireKeys
from qkdnode.vault.revocations import FollowRevoked, RevokeKeys
from qkdnode.vault.rotations import BeginRotation, FollowRotation, GenerationAcknowledged, GiveUpRotation, ShowRotation
from qkdnode.vault.scopes import Compromise, FollowCompromise, MoveRows
from qkdnode.wire import codec
from simulation.life import Life, SimulationLoop
from simulation.network import Network, replaced
from simulation.node import AgentLife, SimulatedVault, SimulatedWorld, Site
from simulation.watcher import TOPICS, Watcher

LINK = "a-b"
NODES = {ALICE: "node-a", BOB: "node-b"}
APPLICATIONS = {ALICE: "payroll", BOB: "ledger"}
LINK_AT = "tcp://node-a:1"
SUPPLY_AT = {role: f"tcp://{NODES[role]}:2" for role in ROLES}
PUBLISH_AT = {role: f"tcp://{NODES[role]}:3" for role in ROLES}
REPLAY_AT = {role: f"tcp://{NODES[role]}:4" for role in ROLES}
WATCHER = "watcher"
WATCHERS = {f"{WATCHER} of {NODES[role]}": role for role in ROLES}
CREDENTIAL = "root"
KEY_BITS, CREDIT = 256, 16
DECOYS = 4
ALARMED_WITHIN_S = 15.0
TERMS = Terms(age=40.0, lifetime=300.0, grace=60.0)
SHORT_TERMS = policy(
    f"max_age_at_release_s = {TERMS.age:.0f}\nlifetime_s = {TERMS.lifetime:.0f}\nretain_key_s = 60\n"
    "retain_metadata_s = 200",
    name="short",
    purpose="session",
)
LIT_S = 40.0  # of each period there is light for so long
PERIOD_S = 600.0
SETTLES_WITHIN_S = 900.0
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Outcome(msgspec.Struct, frozen=True):
    """What a run came to."""

    seed: int
    breaches: tuple[str, ...]
    story: tuple[str, ...]
    faults: int
    keys: int
    told: int  # entries of both logs, to their subscribers
    simulated_s: float
    cpu_s: float
    frames: int
    timers: int
    disk_operations: int
    digest: str  # of the whole story: the same integer gives the same one

    @property
    def events(self) -> int:
        """Messages, timers and disk operations."""
        return self.frames + self.timers + self.disk_operations


@functools.cache
def provisioned() -> Path:
    """The identities and the pair key of both nodes, made once."""
    place = Path(tempfile.mkdtemp(prefix="qkdnode-site-", dir=MEMORY))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for role in ROLES:
        provision_node(NODES[role], place)
        provision_application(APPLICATIONS[role], place)
    provision_application(WATCHER, place)
    provision_pair(LINK, NODES[ALICE], NODES[BOB], place)
    (place / CREDENTIAL).write_bytes(b"the root of both vaults")
    return place


def configuration(role: str) -> Config:
    """A strong, short link with a loose epsilon: a Batch is a few milliseconds of work."""
    other = other_role(role)
    side = f'listen = "{LINK_AT}"' if role == ALICE else f'connect = "{LINK_AT}"'
    return decode_config(f"""
[node]
name = "{NODES[role]}"
identity = "{NODES[role]}.identity"
vault = "{NODES[role]}.vault"
root_key = {{credential = "{CREDENTIAL}"}}
[supply]
listen = "{SUPPLY_AT[role]}"
[events]
publish = "{PUBLISH_AT[role]}"
replay = "{REPLAY_AT[role]}"
retention_hours = 876000
[[subscriber]]
name = "{WATCHER}"
public = "{WATCHER}.public"
topics = {json.dumps(TOPICS)}
[[application]]
name = "{APPLICATIONS[role]}"
public = "{APPLICATIONS[role]}.public"
[[qrng]]
serial = "QRNG"
backend = "emulated"
emulated = {{seed = 1, epoch_ns = 0}}
[[association]]
local = "{APPLICATIONS[role]}"
remote = "{APPLICATIONS[other]}"
link = "{LINK}"
[[link]]
name = "{LINK}"
role = "{role}"
peer = "{NODES[other]}"
peer_public = "{NODES[other]}.public"
pair_key = "{LINK}.{NODES[role]}.pair"
{side}
[link.module]
serial = "QKD"
backend = "emulated"
emulated = {{seed = 1, epoch_ns = 0}}
[link.distill]
slot_rate_hz = 262144
window_slots = 65536
p_z = 0.5
intensities = [0.3, 0.1]
intensity_probabilities = [0.3, 0.7]
eps_sec = 1e-2
eps_cor = 1e-6
batch_bits = 65536
batch_max_bits = 262144
batch_deadline_s = 30.0
dead_time_ns = 0
click_share_limit = 1.0
[link.authentication]
reserve_bits = 4096
target_bits = 40960
""")


class Log:
    """Keeps the last lines of an agent."""

    def __init__(self, tell: Callable[[str], None], bound: dict[str, Any] | None = None) -> None:
        self._tell, self._bound = tell, bound or {}

    def bind(self, **more: Any) -> "Log":
        return Log(self._tell, {**self._bound, **more})

    def info(self, event: str, **fields: Any) -> None:
        self._tell(f"{self._bound.get('node', '')} {event} {self._shown(fields)}")

    warning = error = info

    @staticmethod
    def _shown(fields: dict[str, Any]) -> str:
        return json.dumps({name: value for name, value in fields.items() if name != "links"}, default=str)[:200]


class NodeView:
    """A node as the rules look at it."""

    def __init__(self, simulation: "Simulation", role: str) -> None:
        self._simulation, self.role = simulation, role

    @property
    def vault(self) -> SimulatedVault:
        vault = self._simulation.sites[self.role].vault
        assert vault is not None
        return vault

    @property
    def link(self) -> Any:
        return self._simulation.agents[self.role]._links[LINK].link

    @property
    def association(self) -> Association:
        return Association(APPLICATIONS[self.role], APPLICATIONS[other_role(self.role)], LINK)

    def batches(self) -> dict[BatchId, tuple[str, int]]:
        rows = self.vault.core._connection.execute("SELECT batch, state, usable FROM batches").fetchall()
        return {BatchId(int.from_bytes(b[:8]), int.from_bytes(b[8:])): (state, usable) for b, state, usable in rows}


class Simulation:
    """Plays one integer."""

    def __init__(
        self,
        seed: int,
        *,
        hours: float,
        faults_per_hour: float,
        faults: "dict[str, Callable[[Simulation], None]] | None" = None,
        lit_s: float = LIT_S,
        timed: bool = False,
    ) -> None:
        """`timed`: keys end by the terms of a policy, soon."""
        self.timed = timed
        self.runs: Counter[str] = Counter()
        self.seed, self._hours, self._faults_per_hour = seed, hours, faults_per_hour
        self._kinds, self._lit_s = FAULTS if faults is None else faults, lit_s
        self.loop = SimulationLoop()
        self.loop.set_exception_handler(lambda _, context: self._fault(str(context.get("exception") or context)))
        self.draws = random.Random(seed)
        self.choices = random.Random(f"{seed} applications")  # of their own, so that faults come as they would without
        self.rules = Rules(self._now, TERMS, notices=True) if timed else Rules(notices=True)
        self.suspects: dict[str, tuple[AgentLife, float]] = {}  # who was refused a decoy last, by which agent, when
        self.network = Network(self.loop)
        self.network.on_frame = self._on_frame
        self.story: list[str] = []
        self.calm = False
        self.faults = 0
        self._next_frame: Callable[[bytes], list[tuple[bytes, float]]] | None = None
        self._last_request: type[ask.Request] | None = None
        self.sites = {
            role: Site(
                role,
                draws=random.Random(f"{seed} {role}"),
                journalled=self._journalled,
                breach=self.rules.breaches.append,
                light=self._light,
                ended_by_disk=self._ended_by_disk,
                document=SHORT_TERMS if timed else None,
            )
            for role in ROLES
        }
        self.lives: dict[str, AgentLife] = {}
        self.agents: dict[str, Agent] = {}
        self._how_disk_ends: dict[str, str] = {}
        self.watchers = {name: Watcher(name, self.rules.breaches.append) for name in WATCHERS}
        self.deaf: set[str] = set()  # endpoints whose published messages are lost

    def play(self) -> Outcome:
        """Run, let it settle, and check."""
        began = time.process_time()
        clock = types.SimpleNamespace(monotonic=self.loop.time)
        with contextlib.ExitStack() as stack:
            for module, name, its in replaced(sys.modules):
                stack.enter_context(mock.patch.object(module, name, its))
            for module in (qkdnode.supply.server, qkdnode.client.subscription):
                stack.enter_context(mock.patch.object(module, "time", clock, create=True))
            stack.enter_context(mock.patch.object(builtin, "KeyClass", functools.partial(KeyClass, decoys=DECOYS)))
            stack.enter_context(mock.patch.dict(os.environ, {"CREDENTIALS_DIRECTORY": str(provisioned())}))
            try:
                self.loop.run_until_complete(self._play())
            finally:
                self.loop.run_until_complete(self._end())
                self.loop.close()
        digest = hashlib.sha256("\n".join(self.story).encode()).hexdigest()[:16]
        return Outcome(
            seed=self.seed,
            breaches=tuple(self.rules.breaches),
            story=tuple(self.story),
            faults=self.faults,
            keys=len(self.rules.supplied_to[ALICE]),
            told=sum(len(watcher.leaves) for watcher in self.watchers.values()),
            simulated_s=self.loop.time(),
            cpu_s=time.process_time() - began,
            frames=self.network.frames,
            timers=self.loop.timers,
            disk_operations=sum(site.disk.operations for site in self.sites.values()),
            digest=digest,
        )

    async def _play(self) -> None:
        for role in ROLES:
            self._start_agent(role)
            self._start_application(role)
        for name in WATCHERS:
            self._start_watcher(name)
        until = self._hours * 3600
        while not self.rules.breaches:
            pause = self.draws.expovariate(self._faults_per_hour / 3600)
            if self.loop.time() + pause > until:
                break
            await asyncio.sleep(pause)
            name = self.draws.choice(sorted(self._kinds))
            self.faults += 1
            self.tell(f"fault: {name}")
            self._kinds[name](self)
        if not self.rules.breaches:
            await self._settle(max(0.0, until - self.loop.time()))

    async def _settle(self, rest_s: float) -> None:
        await asyncio.sleep(rest_s)
        self.calm = True
        self._next_frame = self._last_request = None
        for site in self.sites.values():
            site.has_entropy, site.disk.on_operation = True, None
        self.network.blocked.clear()
        self.deaf.clear()
        until = self.loop.time() + SETTLES_WITHIN_S
        views = {role: NodeView(self, role) for role in ROLES}
        while self.loop.time() < until and not self.rules.breaches:
            await asyncio.sleep(5.0)
            if not all(self._is_up(role) for role in ROLES):
                continue
            for role in ROLES:
                self.lives[role].context.run(self._stop_making, role)
            self._end_rotation(views[ALICE])
            if self.rules.settled(views) and all(self._is_told(name) for name in WATCHERS):
                break
        down = [role for role in ROLES if not self._is_up(role)]
        if down:
            self.rules.breaches.append(f"{down} did not come up again within {SETTLES_WITHIN_S:g} s")
        else:
            for name, role in WATCHERS.items():
                self.watchers[name].compare(self._log_size(role), functools.partial(self._leaves_after, role))
            self.rules.check(views)
            self._check_alarms()

    def _is_told(self, name: str) -> bool:
        return len(self.watchers[name].leaves) == self._log_size(WATCHERS[name])

    def _log_size(self, role: str) -> int:
        return self._vault(role).core._store.journal.size

    def _leaves_after(self, role: str, position: int, limit: int) -> Any:
        return self._vault(role).call(ask.LeavesAfter(position=position, limit=limit))

    def _vault(self, role: str) -> SimulatedVault:
        vault = self.sites[role].vault
        assert vault is not None
        return vault

    def _stop_making(self, role: str) -> None:
        link = self.agents[role]._links[LINK].link
        link.stop_distilling()
        link.agreement.stop_allocating()

    def _end_rotation(self, view: NodeView) -> None:
        """No key is cut any more, so a rotation that waits for its first ones would wait for ever."""
        state = view.vault.call(ShowRotation(association=view.association))
        if state.phase in GIVEN_UP_IN:
            view.vault.call(GiveUpRotation(association=view.association, reason="settling"))
            self.lives[ALICE].context.run(view.link.agreement.rotated)

    def _is_up(self, role: str) -> bool:
        return self.lives[role].alive and self.sites[role].vault is not None and LINK in self.agents[role]._links

    async def _end(self) -> None:
        for life in self.lives.values():
            life.end()
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        for site in self.sites.values():
            site.replace_disk({})
            site.disk.close()

    # --- processes ---

    def _start_agent(self, role: str) -> None:
        life = self._born(role, NODES[role])
        self.runs[role] += 1
        config = configuration(role)
        self.agents[role] = agent = Agent(
            config,
            provisioned(),
            Log(self.tell),
            statistics_s=1e9,
            drain_s=10.0,
            world=SimulatedWorld(self.sites[role], life),
        )
        life.spawn(self._run_agent(role, life, agent))

    async def _run_agent(self, role: str, life: AgentLife, agent: Agent) -> None:
        """As systemd does: an agent that cannot go on is started again."""
        try:
            await agent.start()
            await agent.until(asyncio.Event())
        except QkdnodeError as error:
            self.tell(f"{role} ends: {error}")
            self._kill(role, 2.0, None)
        except Exception as error:
            self._fault(f"{role}: {error!r}")

    def _start_application(self, role: str) -> None:
        name = APPLICATIONS[role]
        life = self._born(name, name)
        life.spawn(self._consume(role))

    async def _consume(self, role: str) -> None:
        """One run of an application: it takes what comes or, at Bob's end now and then, asks for keys by their ids."""
        place = provisioned()
        by_id = role == BOB and self.choices.random() < 0.4
        async with AsyncSubscription(
            SUPPLY_AT[role],
            node=place / f"{NODES[role]}.public",
            identity=place / f"{APPLICATIONS[role]}.identity",
            remote=APPLICATIONS[other_role(role)],
            link=LINK,
            size_bits=KEY_BITS,
            credit=CREDIT,
            pushed=not by_id,
            on_ended=lambda ended: self.rules.told_of_the_end(role, ended.key_ids),
        ) as subscription:
            self.lives[APPLICATIONS[role]].spawn(self._pry(role, subscription))
            if by_id:
                await self._fetch(role, subscription)
            async for key in subscription:
                self._took(role, key)
                await asyncio.sleep(0.002)

    def _took(self, role: str, key: Key) -> None:
        self.rules.supplied(role, key.id, hashlib.sha256(key.material).digest())
        key.material.release()

    async def _fetch(self, role: str, subscription: AsyncSubscription) -> None:
        """Ask for the keys that the far application has, and for no others."""
        mine: set[UUID] = set()
        while True:
            wanted = [
                key_id
                for key_id in sorted(self.rules.supplied_to[other_role(role)].keys() - mine)
                if key_id not in self.rules.acknowledged[role] and not self.rules.is_out_of_use(role, key_id)
            ]
            with contextlib.suppress(NoKeyError):
                keys, _ = await subscription.fetch_some(wanted[:8], timeout=30.0) if wanted else ([], [])
                for key in keys:
                    self._took(role, key)
                    mine.add(key.id)
                    key.acknowledge()
            await asyncio.sleep(0.5)

    async def _pry(self, role: str, subscription: AsyncSubscription) -> None:
        """Ask for what is nobody's business: ids that are no key's, and decoys."""
        while True:
            await asyncio.sleep(self.choices.uniform(2.0, 40.0))
            decoys = sorted(self.rules.decoys)
            is_decoy = bool(decoys) and self.choices.random() < 0.7
            key_id = self.choices.choice(decoys) if is_decoy else UUID(int=self.choices.getrandbits(128))
            try:
                await subscription.fetch(key_id, timeout=30.0)
            except KeyRefusedError:
                if is_decoy:
                    self.suspects[role] = (self.lives[role], self.loop.time())
            except NoKeyError:
                continue
            else:
                self.rules.breaches.append(f"{role} is given {key_id}, which is no key of anybody's")

    def _check_alarms(self) -> None:
        """Who was refused a decoy has made an alarm, unless the node ended right after."""
        for role, (life, at_s) in self.suspects.items():
            if life is not self.lives[role] or self.loop.time() - at_s < ALARMED_WITHIN_S:
                continue
            about = f"application/{APPLICATIONS[role]}"
            alarms = {(alarm.code, alarm.about) for alarm in self._vault(role).call(ask.Alarms())}
            if ("DECOY", about) not in alarms:
                self.rules.breaches.append(f"{role}: {about} asked for a decoy, and there is no alarm of it")

    def _start_watcher(self, name: str) -> None:
        """A subscriber that knows what it was told, however often it is away."""
        role, watcher, place = WATCHERS[name], self.watchers[name], provisioned()
        life = self._born(name, name)
        life.spawn(
            watcher.follow(
                Events(
                    place / f"{WATCHER}.identity",
                    place / f"{NODES[role]}.public",
                    publish=PUBLISH_AT[role],
                    replay=REPLAY_AT[role],
                    topics=TOPICS,
                    after=watcher.position,
                )
            )
        )

    def _born(self, name: str, title: str) -> AgentLife:
        life = AgentLife(title, self.loop, self._fault)
        life.network = self.network
        self.lives[name] = life
        return life

    def _kill(self, name: str, down_s: float, files: Callable[[Site], dict[str, bytes]] | None) -> None:
        """End a process; start it again later, an agent from what its disk has then."""
        life = self.lives[name]
        if not life.alive:
            return
        life.end()
        if name in ROLES:
            site = self.sites[name]
            site.replace_disk(site.disk.after_kill() if files is None else files(site))
            self.loop.call_later(down_s, self._start_agent, name)
        elif name in WATCHERS:
            self.loop.call_later(down_s, self._start_watcher, name)
        else:
            role = next(role for role in ROLES if APPLICATIONS[role] == name)
            self.loop.call_later(down_s, self._start_application, role)

    def _ended_by_disk(self, role: str) -> None:
        """The process was to end at an operation of its disk, and has now got there."""
        how = self._how_disk_ends.pop(role, "kill")
        self.tell(f"{role} ends in the middle of a disk operation: {how}")
        self._kill(role, self._down_s(), lambda site: self._files_after(site, how))

    def _files_after(self, site: Site, how: str) -> dict[str, bytes]:
        return site.disk.after_kill() if how == "kill" else site.disk.after_power_loss(how, self.draws)

    def _down_s(self) -> float:
        return self.draws.choice([0.5, 3.0, 20.0, 120.0])

    def _now(self, role: str) -> Now | None:
        """The moment at a node whose vault is open."""
        vault = self.sites[role].vault
        if vault is None or not self.lives[role].alive:
            return None
        return Now(self.runs[role], self.loop.time(), vault.core._store.trusted_ns / 1e9)

    def _journalled(self, role: str, request: Any, answer: Any) -> None:
        self.rules.journalled(role, request, answer)
        if type(request) is self._last_request:
            self._last_request = None
            self.tell(f"{role} ends when {type(request).__name__} is journalled")
            self._kill(role, self._down_s(), None)

    # --- the wire ---

    def _on_frame(self, life: Life, endpoint: str, frame: Any) -> list[tuple[Any, float]]:
        if endpoint != LINK_AT:
            return [] if endpoint in self.deaf else [(frame, 0.0)]
        role = ALICE if life.name == NODES[ALICE] else BOB
        if frame:
            self.rules.sent(role, codec.decode(frame))
        if self._next_frame is None:
            return [(frame, 0.0)]
        act, self._next_frame = self._next_frame, None
        return act(frame)

    def _light(self, now_s: float) -> bool:
        return not self.calm and now_s % PERIOD_S < self._lit_s

    # --- what goes wrong ---

    def _fault(self, what: str) -> None:
        self.rules.breaches.append(f"unexpected: {what}")

    def tell(self, what: str) -> None:
        self.story.append(f"{self.loop.time():10.3f} {what}")

    def _some_role(self) -> str:
        return self.draws.choice(list(ROLES))


def played(seed: int, hours: float, faults_per_hour: float) -> Outcome:
    """One run, in a process of its own; whoever wants its story plays it again."""
    outcome = Simulation(seed, hours=hours, faults_per_hour=faults_per_hour, timed=is_timed(seed)).play()
    return msgspec.structs.replace(outcome, story=())


def is_timed(seed: int) -> bool:
    """Whether keys end soon in the run of a seed."""
    return seed % 2 == 1


def _at_disk_operation(simulation: Simulation, how: str) -> None:
    role, left = simulation._some_role(), simulation.draws.randrange(60)
    site = simulation.sites[role]

    def count(kind: str, path: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            site.disk.on_operation = None
            raise PowerLossError

    simulation._how_disk_ends[role] = how
    site.disk.on_operation = count


DECISIVE = (
    ask.StorePending, ask.StoreReady, ask.SettlePending, ask.PeerReady, ask.AllocateKeys, ask.AcceptAllocation,
    ask.AllocationAnswered, ask.KeysDelivered, ask.PeerDelivered, ask.NextSession, ask.AdmitPeer, ask.GrantPads,
    ask.ReservePads, ask.KeepDecoys, EndedNoted, HadBefore, RevokeKeys, FollowRevoked, Compromise, FollowCompromise,
    MoveRows, FollowRotation, GenerationAcknowledged, RetireKeys, FollowRetired,
)  # fmt: skip


def _at_request(simulation: Simulation, settling: bool = False) -> None:
    """The next request of some kind is journalled, but nobody hears the answer."""
    kind = simulation.draws.choice(DECISIVE[:4] if settling else DECISIVE)
    simulation._last_request = kind


def _disk_fails(simulation: Simulation, error: type[Exception]) -> None:
    site = simulation.sites[simulation._some_role()]
    disk = site.disk

    def fail(kind: str, path: str) -> None:
        if kind in ("write", "sync", "truncate"):
            raise error("simulated")

    disk.on_operation = fail
    simulation.loop.call_later(simulation.draws.uniform(0.5, 60.0), lambda: setattr(disk, "on_operation", None))


def _kill_both(simulation: Simulation) -> None:
    for role in ROLES:
        simulation._kill(role, 1.0, None)


def _power_both(simulation: Simulation) -> None:
    how = simulation.draws.choice(sorted(LOSSES))
    for role in ROLES:
        simulation._kill(role, 1.0, lambda site: simulation._files_after(site, how))


def _on_next_frame(simulation: Simulation, act: str) -> None:
    draws = simulation.draws

    def apply(frame: bytes) -> list[tuple[bytes, float]]:
        if act == "drop":
            simulation.rules.altered(codec.decode(frame))
            return []
        if act == "repeat":
            return [(frame, 0.0), (frame, draws.uniform(0.0, 3.0))]
        if act == "stall":
            return [(frame, draws.uniform(0.0, 6.0))]
        simulation.rules.altered(codec.decode(frame))
        damaged, bit = bytearray(frame), draws.randrange(8 * len(frame))
        damaged[bit // 8] ^= 1 << bit % 8
        return [(bytes(damaged), 0.0)]

    simulation._next_frame = apply


def _away(simulation: Simulation) -> None:
    name = simulation.draws.choice(sorted(WATCHERS))
    simulation._kill(name, simulation.draws.choice([0.5, 20.0, 300.0]), None)


def _deaf(simulation: Simulation) -> None:
    endpoint = PUBLISH_AT[simulation._some_role()]
    simulation.deaf.add(endpoint)
    simulation.loop.call_later(simulation.draws.choice([0.05, 2.0, 60.0]), simulation.deaf.discard, endpoint)


def _events_break(simulation: Simulation) -> None:
    place = simulation.draws.choice((PUBLISH_AT, REPLAY_AT))
    simulation.network.reset(place[simulation._some_role()])


def _no_entropy(simulation: Simulation) -> None:
    site = simulation.sites[simulation._some_role()]
    site.has_entropy = False
    simulation.loop.call_later(simulation.draws.uniform(1.0, 90.0), lambda: setattr(site, "has_entropy", True))


def _clock_jump(simulation: Simulation) -> None:
    simulation.sites[simulation._some_role()].clock_error_s += simulation.draws.choice([-86400.0, -5.0, 5.0, 86400.0])


def _operator_acts(simulation: Simulation, act: Callable[[Simulation, str], ask.Request | None]) -> None:
    """An operator takes keys out of use at one end, as the control socket has it done."""
    role = simulation._some_role()
    life, agent = simulation.lives[role], simulation.agents[role]
    request = act(simulation, role)
    if request is None or not life.alive or LINK not in agent._links:
        return

    async def revoke() -> None:
        with contextlib.suppress(VaultError):  # the disk may be full, or the scope reach nothing yet
            await agent.ask(request)
            agreement = agent._links[LINK].link.agreement
            agreement.rotated() if isinstance(request, BeginRotation | GiveUpRotation) else agreement.revoked()

    life.spawn(revoke())


def _revoke(simulation: Simulation, role: str) -> ask.Request | None:
    known = sorted(simulation.rules.cut[role])
    if not known:
        return None
    reason = simulation.draws.choice(["superseded", "key-compromise"])
    return RevokeKeys(key_ids=tuple(simulation.draws.sample(known[-40:], min(3, len(known)))), reason=reason, by="olga")


def _compromise(simulation: Simulation, role: str) -> ask.Request:
    return Compromise(kind="link", value=LINK, reason="key-compromise", by="olga")


def _rotate(simulation: Simulation, role: str) -> ask.Request:
    association = Association(APPLICATIONS[role], APPLICATIONS[other_role(role)], LINK)
    if simulation.draws.random() < 0.05:
        return GiveUpRotation(association=association, reason="operator")
    return BeginRotation(association=association, reason="operator", by="olga")


OF_OPERATORS: dict[str, Callable[[Simulation], None]] = {
    "keys are revoked": lambda s: _operator_acts(s, _revoke),
    "the link is compromised": lambda s: _operator_acts(s, _compromise),
    "keys are rotated": lambda s: _operator_acts(s, _rotate),
}
OF_EVENTS: dict[str, Callable[[Simulation], None]] = {
    "a subscriber is away": _away,
    "published events are lost": _deaf,
    "a connection of events breaks": _events_break,
}
FAULTS: dict[str, Callable[[Simulation], None]] = {
    "an agent is killed": lambda s: s._kill(s._some_role(), s._down_s(), None),
    "both agents are killed": _kill_both,
    "power loss at both": _power_both,
    "kill at a disk operation": lambda s: _at_disk_operation(s, "kill"),
    **{f"power loss at a disk operation, {how}": functools.partial(_at_disk_operation, how=how) for how in LOSSES},
    "kill at a request": _at_request,
    "kill while a Batch settles": functools.partial(_at_request, settling=True),
    "an application is killed": lambda s: s._kill(APPLICATIONS[s._some_role()], s._down_s(), None),
    "the link is cut": lambda s: s.network.cut(LINK_AT, s.draws.choice([2.0, 15.0, 400.0])),
    "the link's connection breaks": lambda s: s.network.reset(LINK_AT),
    "the supply's connection breaks": lambda s: s.network.reset(SUPPLY_AT[s._some_role()]),
    **OF_EVENTS,
    "the disk is full": lambda s: _disk_fails(s, apsw.FullError),
    "the disk fails": lambda s: _disk_fails(s, apsw.IOError),
    "a frame is dropped": lambda s: _on_next_frame(s, "drop"),
    "a frame is repeated": lambda s: _on_next_frame(s, "repeat"),
    "a frame stalls": lambda s: _on_next_frame(s, "stall"),
    "a frame is altered": lambda s: _on_next_frame(s, "alter"),
    **OF_OPERATORS,
    "no entropy": _no_entropy,
    "the clock jumps": _clock_jump,
}
