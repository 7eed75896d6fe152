"""The agent of one node: everything is made here, runs here, and ends here in order."""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from qkdnode import __version__
from qkdnode.access.allowlist import AllowList
from qkdnode.access.identities import ApplicationIdentity
from qkdnode.channel.identity import OwnIdentity, load_identity
from qkdnode.config import Config
from qkdnode.errors import ConfigError, MemoryLockError, VaultError
from qkdnode.ids import Association
from qkdnode.link.agreement import LocalSubscription
from qkdnode.native.secret import locked_mode
from qkdnode.node.algorithms import AlgorithmWatch, day_of, demand_approved
from qkdnode.node.assets import Assets
from qkdnode.node.clock import ClockCare, NodeClock
from qkdnode.node.control import NodeControl
from qkdnode.node.events import start_events
from qkdnode.node.links import KEY_CLASS, NodeLink, in_loop, open_link
from qkdnode.node.policy import NodePolicy
from qkdnode.node.recorder import Recorder
from qkdnode.node.reload import load_applications
from qkdnode.node.rotations import RotationWatch
from qkdnode.node.service_manager import ServiceManager
from qkdnode.node.upkeep import Care, move_rows, retire
from qkdnode.node.vigil import Vigil
from qkdnode.node.watching import Parts, Watching
from qkdnode.node.world import NodeEntropy, NodeVault, World
from qkdnode.secrecy.entropy import binary_entropy
from qkdnode.supply.events import EventServer
from qkdnode.supply.server import SubscriptionState, SupplyServer
from qkdnode.supply.throttle import Throttle
from qkdnode.vault import requests as ask
from qkdnode.vault.pauses import Pauses
from qkdnode.vault.root import CredentialFile, PassphraseFile, RootSource
from qkdnode.watch.alarms import AlarmCode

DRAIN_LOOK_S = 0.05
GOODBYE_S = 0.1
READ_LOG_PAUSE_S = 0.05  # 512 entries take some 5 ms


class Agent:
    """One node, from its configuration, in a world."""

    def __init__(
        self,
        config: Config,
        base: Path,
        log: Any,
        *,
        statistics_s: float,
        drain_s: float,
        world: World,
        file: Path | None = None,
    ) -> None:
        self._config, self._base, self._log = config, base, log.bind(node=config.node.name)
        self._statistics_s, self._drain_s, self._world = statistics_s, drain_s, world
        self._recorder = Recorder(
            config.node.name, ask=self.ask, clock_ns=world.wall_ns, monotonic_ns=world.monotonic_ns, log=self._log
        )
        self._time = NodeClock(world.wall_ns, world.steady_ns)
        self._clock = ClockCare(config.node.name, self._time, wall_ns=world.wall_ns, recorder=self._recorder)
        self._links: dict[str, NodeLink] = {}
        self._entropy: NodeEntropy | None = None
        self._vault: NodeVault | None = None
        self._supply: SupplyServer | None = None
        self._events: EventServer | None = None
        self._file = file  # that the configuration was read from, to be read again
        self._applications: AllowList[ApplicationIdentity] = AllowList()
        self._control: NodeControl | None = None
        self._stop_asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._reading: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._caring: asyncio.Task[None] | None = None
        self._rotating: asyncio.Task[None] | None = None
        self._timing: asyncio.Task[None] | None = None
        self._retiring: asyncio.Task[None] | None = None
        self._vigilant: asyncio.Task[None] | None = None
        self._algorithms: AlgorithmWatch
        self._assets: Assets | None = None
        self._rechecking: asyncio.Task[None] | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._started = self._stopping = False
        self._manager = ServiceManager(None, None)  # only a process of its own has one
        self._watching = Watching(parts=self._parts, alarms=self._recorder.alarms.all, ask_vault=self.ask)
        self._refusals = Throttle(burst=10, per_s=0.1)
        self._policy = NodePolicy(ask=self.ask, alarm=self._recorder.alarm, now_ns=self._time.now_ns, log=self._log)

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, run until SIGTERM or SIGINT or until a part fails, stop in order."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        mode = locked_mode()
        if mode is None:
            raise MemoryLockError("key material cannot be locked here: allow memfd_secret, or raise LimitMEMLOCK")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._log.info("starting", version=__version__, memory=mode)
        manager = self._manager = ServiceManager.from_environment(os.environ)
        signs: asyncio.Task[None] | None = None
        try:
            await self.start()
            manager.ready(self._watching.status())
            signs = asyncio.create_task(manager.keep_alive(self._watching.why_not_alive, self._watching.status))
            await self.until(stop)
        finally:
            manager.stopping()
            await self.stop()
            if signs is not None:
                signs.cancel()
            manager.close()

    async def start(self) -> None:
        """Make every part: random numbers and the vault, the supply, the links."""
        self._loop = asyncio.get_running_loop()
        demand_approved(self._config, day_of(self._world.wall_ns()))  # before anything is made with them
        if self._config.watch is not None:
            host, port = await self._watching.serve(self._config.watch)
            self._log.info("metrics and health are shown", host=host, port=port)
        identity = load_identity(self._base / self._config.node.identity)
        if identity.name != self._config.node.name:
            raise ConfigError(f"{self._config.node.identity} is the identity of {identity.name!r}, not of this node")
        self._entropy = self._world.entropy(
            self._config,
            on_change=lambda healthy: in_loop(self._loop, self._entropy_changed, healthy),
            on_alarm=lambda alarm: in_loop(self._loop, self._recorder.device_alarm, alarm),
        )
        await self._start_entropy_and_vault(identity, self._entropy)
        self._algorithms = AlgorithmWatch(self._config, world=self._world, recorder=self._recorder, ask=self._ask_vault)
        await self._algorithms.start()
        self._events = await start_events(
            self._config,
            self._base,
            identity,
            ask=self._ask_vault,
            links=self._links,
            recorder=self._recorder,
            clock_ns=self._world.wall_ns,
        )
        await self._start_supply(identity, self._entropy)
        paused = {pause.link for pause in await self.ask(Pauses())}
        for section in self._config.link:
            link = await open_link(
                section,
                self._config,
                self._base,
                identity,
                world=self._world,
                ask_vault=self.ask,
                draw=self._entropy.draw,
                notify_supply=self._notify_supply,
                notify_rotation=self._notify_rotation,
                on_refused=partial(self._refused, section.name),
                recorder=self._recorder,
                log=self._log,
                origins=lambda devices: {} if self._assets is None else self._assets.origins(devices),
            )
            self._links[section.name] = link
            if section.name in paused:
                link.link.pause()
            link.start()
        if self._supply is not None:
            for state in self._supply.subscriptions():  # those that came before the links
                self._on_subscription(state)
        self._assets = Assets(
            lambda: self._config,
            world=self._world,
            recorder=self._recorder,
            ask=self.ask,
            links=self._links,
            entropy=self._entropy,
        )
        self._comparing = asyncio.create_task(self._assets.run(), name="assets")
        await self._start_control()
        self._vigilant = asyncio.create_task(self._vigil().run(), name="vigil")
        self._rechecking = asyncio.create_task(self._algorithms.run(), name="algorithms")
        self._reading = asyncio.create_task(self._read_log())
        self._timing = asyncio.create_task(self._clock.run(), name="clock")
        self._retiring = asyncio.create_task(
            retire(self.ask, self._recorder.alarm, self._retired, lambda: self._world.monotonic_ns() / 1e9),
            name="retirement",
        )
        self._moving = asyncio.create_task(move_rows(self.ask, self._recorder.alarm), name="rows")
        care = Care(self.ask, self._recorder.alarm, lambda: self._world.monotonic_ns() / 1e9)
        self._caring = asyncio.create_task(care.run(), name="care")
        rotations = RotationWatch(
            world=self._world,
            recorder=self._recorder,
            links=self._links,
            algorithms=self._algorithms,
            qrngs=lambda: tuple(qrng.serial for qrng in self._config.qrng),
            ask=self.ask,
        )
        self._rotating = asyncio.create_task(rotations.run(), name="rotations")
        details = {"version": __version__, "memory": locked_mode() or ""}
        self._recorder.record("node.started", self._config.node.name, details)
        self._started = True
        self._log.info("started")

    async def until(self, stop: asyncio.Event) -> None:
        """Run until told to stop; what a part failed with is raised."""
        waiter, asked = asyncio.create_task(stop.wait()), asyncio.create_task(self._stop_asked.wait())
        statistics = asyncio.create_task(self._report_statistics())
        watched = [link.task for link in self._links.values() if link.task is not None]
        beside = (*self._helpers, self._recorder.keeper)
        watched += [task for task in beside if task is not None]
        done, _ = await asyncio.wait([waiter, asked, statistics, *watched], return_when=asyncio.FIRST_COMPLETED)
        statistics.cancel()
        waiter.cancel()
        asked.cancel()
        for task in done:
            fault = None if task in (waiter, asked, statistics) or task.cancelled() else task.exception()
            if fault is not None:
                self._log.error("link failed", task=task.get_name(), reason=repr(fault))
                raise fault

    async def stop(self) -> None:
        """New key first, then deliveries, then settlements, then the parts from the outside in."""
        self._stopping = True
        self._log.info("stopping")
        for beside in (self._reading, *self._helpers):
            if beside is not None:
                beside.cancel()
        for link in self._links.values():
            link.link.stop_distilling()
            link.link.agreement.stop_allocating()
        with contextlib.suppress(VaultError):
            await self._drain()
        final = await self._final_counts()
        if self._supply is not None:
            await self._supply.close()
        for link in self._links.values():
            await link.close()
        if self._entropy is not None:
            await self._entropy.stop()
        if self._control is not None:
            await self._control.close()
        await self._recorder.finish()
        if self._vault is not None:
            # A disk that is full must not hide why the node stops, nor keep the keys from being wiped.
            for last in (self._recorder.record_stop, self._stop_events, self._vault.close):
                try:
                    await last()
                except VaultError as error:
                    self._log.error("the vault did not take the stop", reason=str(error))
        await self._watching.close()
        self._log.info("stopped", **final)

    @property
    def _helpers(self) -> tuple[asyncio.Task[None] | None, ...]:
        """What runs beside the links for as long as the node runs."""
        return (
            self._vigilant, self._rechecking, self._comparing, self._moving, self._caring, self._timing, self._retiring,
            self._rotating,
        )  # fmt: skip

    async def _drain(self) -> None:
        """Wait until what is allocated is delivered at both ends and what is claimed is settled."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._drain_s
        links = [link.link for link in self._links.values()]
        for link in links:
            link.agreement.wake()
        while clock() < deadline:
            if await self._drained():
                for link in links:
                    link.agreement.say_goodbye()
                if all(link.agreement.peer_drained or not link.is_open for link in links):
                    await asyncio.sleep(GOODBYE_S)  # our own goodbye leaves
                    return
            await asyncio.sleep(DRAIN_LOOK_S)
        self._log.warning("not everything was delivered before the stop; it is kept and delivered after the next start")

    async def _drained(self) -> bool:
        if self._vault is None:
            return True
        if any(not link.link.idle for link in self._links.values() if link.link.is_open):
            return False
        if self._supply is not None and await self._supply.anything_waits():
            return False
        status = await self.ask(ask.Status())
        return not status.neighbour_outbox and not status.keys.get("allocated", 0)

    # --- parts -----------------------------------------------------------------------------------------------------

    async def _start_entropy_and_vault(self, identity: OwnIdentity, entropy: NodeEntropy) -> None:
        """At the same time, to be back soon after a crash; but a new vault needs random numbers from the start."""
        if not (self._base / self._config.node.vault).exists():
            await entropy.start()
            await self._open_vault(identity, entropy)
            return
        opening = asyncio.create_task(self._open_vault(identity, entropy))
        try:
            await entropy.start()
        finally:
            await opening

    async def _open_vault(self, identity: OwnIdentity, entropy: NodeEntropy) -> None:
        self._vault = await self._world.open_vault(
            self._base / self._config.node.vault,
            root=self._root_source(),
            node=self._config.node.name,
            draw_into=entropy.draw_into,
            signer=identity,
            trusted_from=self._time.begin,
        )
        await self._recorder.open()
        self._clock.look()
        await self._policy.read()

    def _root_source(self) -> RootSource:
        source = self._config.node.root_key
        if source.passphrase_file is not None:
            return PassphraseFile(self._base / source.passphrase_file)
        assert source.credential is not None
        return CredentialFile(source.credential)

    async def _start_supply(self, identity: OwnIdentity, entropy: NodeEntropy) -> None:
        if self._config.supply is None:
            return
        self._applications = load_applications(self._config, self._base)
        self._supply = SupplyServer(
            identity,
            self._applications,
            ask=self.ask,
            draw_into=entropy.draw_into,
            decide=self._decide,
            on_subscription=self._on_subscription,
            record=self._recorder.record_access,
            key_class=KEY_CLASS,
            on_delivered=self._delivered,
            on_acknowledged=self._acknowledged,
            may_release=self._may_release,
            peer_reachable=self._is_current,
            on_decoy=partial(self._recorder.alarm, AlarmCode.DECOY),
        )
        await self._supply.start(self._config.supply.listen)

    def _vigil(self) -> Vigil:
        return Vigil(
            self._config.node.name,
            self._config.alarms,
            (self._base / self._config.node.vault).parent,
            world=self._world,
            recorder=self._recorder,
            links=self._links,
            has_entropy=lambda: self.entropy.healthy,
        )

    async def _stop_events(self) -> None:
        """Once the last leaf but the vault's own is journalled, so that it is published too."""
        if self._events is not None:
            await self._events.close()

    def _parts(self) -> Parts:
        return Parts(
            entropy=self._entropy,
            links=self._links,
            supply=self._supply,
            vault_open=self._vault is not None,
            started=self._started,
            stopping=self._stopping,
        )

    async def _start_control(self) -> None:
        if self._config.control is None:
            return
        self._control = NodeControl(
            self,
            base=self._base,
            file=self._file,
            ask_vault=self.ask,
            recorder=self._recorder,
            wall_ns=self._world.wall_ns,
            monotonic_ns=self._world.monotonic_ns,
            log=self._log,
        )
        await self._control.start()

    # --- what the control socket shows and does --------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config

    @property
    def links(self) -> Mapping[str, NodeLink]:
        """The links by name."""
        return self._links

    @property
    def entropy(self) -> NodeEntropy:
        """The random numbers."""
        assert self._entropy is not None
        return self._entropy

    @property
    def assets(self) -> Assets:
        """What the node consists of."""
        assert self._assets is not None
        return self._assets

    @property
    def algorithms(self) -> AlgorithmWatch:
        """The algorithm registry in force."""
        return self._algorithms

    @property
    def clock(self) -> ClockCare:
        """The wall clock and trusted time."""
        return self._clock

    @property
    def applications(self) -> AllowList[ApplicationIdentity]:
        """The applications that are known."""
        return self._applications

    @property
    def stopping(self) -> bool:
        """Whether the stop has begun or is asked for."""
        return self._stopping or self._stop_asked.is_set()

    def ask_to_stop(self) -> None:
        """Have `until` return, as a signal does."""
        self._stop_asked.set()

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """The service manager is told that the configuration is read anew, and when that is over."""
        self._manager.reloading()
        try:
            yield
        finally:
            self._manager.ready(self._watching.status())

    @property
    def policy(self) -> NodePolicy:
        """The policy in force."""
        return self._policy

    def policy_changed(self) -> None:
        """A new one is in force: subscriptions that it does not let be end, and keys that it lets go are sent."""
        if self._supply is not None:
            self._supply.review()
        for link in self._links.values():
            link.link.agreement.wake()

    def configure(self, config: Config, applications: AllowList[ApplicationIdentity]) -> None:
        """Take over what of a configuration takes effect at once: applications and their associations."""
        self._config, self._applications = config, applications
        if self._supply is not None:
            self._supply.allow(applications)

    # --- what parts call -------------------------------------------------------------------------------------------

    async def ask(self, request: Any) -> Any:
        """Ask the vault; what it journals for that is published soon."""
        answer = await self._ask_vault(request)
        if self._events is not None:
            self._events.grew()
        return answer

    async def _ask_vault(self, request: Any) -> Any:
        if self._vault is None:
            raise VaultError("the vault is not open")
        return await self._vault.ask(request)

    def _decide(self, association: Association, size_bits: int) -> str | None:
        """Why an application may not have keys for an association; None if it may."""
        known = {(entry.local, entry.remote, entry.link) for entry in self._config.association}
        if (association.local, association.remote, association.source) not in known:
            return "no association between these applications is configured"
        return self._policy.refusal(association, size_bits)

    def _on_subscription(self, state: SubscriptionState) -> None:
        link = self._links.get(state.association.source)
        if link is not None:
            link.link.agreement.subscribed(
                LocalSubscription(state.association, state.connected, state.size_bits, state.credit)
            )

    def _may_release(self, association: Association) -> bool:
        """While the neighbour cannot be heard it may have revoked what waits here: some classes do not wait for that.

        What it has begun to tell is always awaited.
        """
        link = self._links.get(association.source)
        if link is None or link.link.is_open:
            return self._is_current(association)
        return self._policy.has_classes_that_do_not_wait

    def _is_current(self, association: Association) -> bool:
        link = self._links.get(association.source)
        return link is not None and link.link.agreement.is_current

    def _delivered(self, association: Association) -> None:
        """The neighbour is told at once: its next keys wait for that."""
        link = self._links.get(association.source)
        if link is not None:
            link.link.agreement.wake()

    def _acknowledged(self, association: Association) -> None:
        """An application is ready for a generation: the neighbour is told."""
        link = self._links.get(association.source)
        if link is not None:
            link.link.agreement.rotated()

    def _notify_rotation(self, association: Association) -> None:
        if self._supply is not None:
            self._supply.rotated(association)

    def _retired(self, links: tuple[str, ...]) -> None:
        """Timers have ended keys of these links: the neighbours are told."""
        for name in links:
            if name in self._links:
                self._links[name].link.agreement.wake()

    def _notify_supply(self, application: str) -> None:
        if self._supply is not None:
            self._supply.notify(application)

    def _refused(self, link: str, reason: str) -> None:
        """Any stranger can knock: log a few, count the others."""
        left_out = self._refusals.take(link, self._world.monotonic_ns() / 1e9)
        if left_out is not None:
            self._log.warning("handshake refused", link=link, reason=reason, left_out_before=left_out)

    def _entropy_changed(self, healthy: bool) -> None:
        if healthy:
            self._recorder.clear(AlarmCode.NO_ENTROPY)
            self._log.info("entropy pool healthy")
        elif not self._stopping:
            self._recorder.alarm(AlarmCode.NO_ENTROPY, "entropy pool", "no QRNG is healthy: random numbers are refused")

    async def _read_log(self) -> None:
        """Read a long audit log again, slowly, beside the work: opening the vault did not wait for that."""
        try:
            read, size = await self.ask(ask.VerifyLog())
            while read < size:
                await asyncio.sleep(READ_LOG_PAUSE_S)
                read, size = await self.ask(ask.VerifyLog())
            self._log.info("audit log read", entries=size)
        except VaultError as error:
            self._recorder.alarm(error.code, "audit log", str(error))

    # --- statistics ------------------------------------------------------------------------------------------------

    async def _report_statistics(self) -> None:
        while True:
            await asyncio.sleep(self._statistics_s)
            self._log.info("statistics", links=self._link_counts())

    def _link_counts(self) -> dict[str, Any]:
        counts = {}
        for name, link in self._links.items():
            statistics = link.link.statistics
            counts[name] = msgspec.to_builtins(statistics)
            if statistics.verified_bits and statistics.errors:
                share = binary_entropy(statistics.errors / statistics.verified_bits)
                counts[name]["efficiency"] = statistics.alice_bits / (statistics.verified_bits * share)
        return counts

    async def _final_counts(self) -> dict[str, Any]:
        present = delivered = None
        with contextlib.suppress(VaultError):
            status = await self.ask(ask.Status())
            delivered = status.keys_delivered_both
            present = sum(count for state, count in status.keys.items() if state in ("ready", "delivered"))
        return {
            "links": self._link_counts(),
            "keys_present": present,
            "keys_delivered": delivered,
            "alarms": sorted({alarm.code for alarm in self._recorder.alarms.of_this_run()}),
            "rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }
