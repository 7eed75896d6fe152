"""The agent of one node: everything is made here, runs here, and ends here in order."""

import asyncio
import base64
import contextlib
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from qkdnode import __version__
from qkdnode.access.allowlist import AllowList
from qkdnode.audit.events import AccessEvent, AlarmEvent, DeviceEvent, LinkEvent, NodeEvent
from qkdnode.channel.identity import OwnIdentity, load_identity, load_public_application, load_public_node
from qkdnode.channel.neighbour import Channel
from qkdnode.config import Config, LinkSection
from qkdnode.device.alarms import DeviceAlarm
from qkdnode.device.entropy import DEFAULT_CAPACITY_BYTES, EntropyPool
from qkdnode.device.module import ReceiverModule, TransmitterModule
from qkdnode.device.qrng import QrngModule
from qkdnode.device.windows import ReceiverWindow, TransmitterWindow
from qkdnode.distill.effects import ReceiverWindowReady, TransmitterWindowReady
from qkdnode.distill.settings import Settings
from qkdnode.errors import (
    AccessDeniedError,
    AuditError,
    ConfigError,
    EntropyShortError,
    LocalProtocolError,
    MemoryLockError,
    NoEntropyError,
    OutOfStockError,
    VaultError,
    VaultLockedError,
)
from qkdnode.ids import ALICE, Association
from qkdnode.link.agreement import LocalSubscription
from qkdnode.link.driver import Authentication, Link
from qkdnode.link.surroundings import Surroundings
from qkdnode.native.secret import locked_mode
from qkdnode.native.toeplitz import Toeplitz
from qkdnode.node.devices import module_backend, qrng_backend
from qkdnode.node.parameters import agreed_parameters, module_difference
from qkdnode.node.provision import load_pair
from qkdnode.secrecy.entropy import binary_entropy
from qkdnode.supply.server import SubscriptionState, SupplyServer
from qkdnode.supply.throttle import Throttle
from qkdnode.vault import requests as ask
from qkdnode.vault.root import CredentialFile, PassphraseFile, RootSource
from qkdnode.vault.service import Vault
from qkdnode.watch.alarms import ADVICE, Alarm, AlarmCode, Alarms
from qkdnode.workers.lanes import Lanes

ENTROPY_WAIT_S = 20.0
DRAW_WAIT_S = 0.25
# Errors that are no alarm of their own, under the alarm that an operator looks for.
UNDER_VAULT = (VaultLockedError, OutOfStockError, AccessDeniedError, LocalProtocolError, MemoryLockError)
ALARM_OF_ERROR = {
    error.code: AlarmCode.VAULT
    for error in (VaultLockedError, OutOfStockError, AccessDeniedError, LocalProtocolError, MemoryLockError)
} | {AuditError.code: AlarmCode.AUDIT_STOPPED, EntropyShortError.code: AlarmCode.NO_ENTROPY}
PURPOSE, KEY_CLASS = "session", "its"


class RunningLink(msgspec.Struct):
    """A link with what was made for it."""

    link: Link
    module: TransmitterModule | ReceiverModule
    channel: Channel
    lanes: Lanes
    task: asyncio.Task[None] | None = None


class Agent:
    """One node, from its configuration."""

    def __init__(
        self,
        config: Config,
        base: Path,
        log: Any,
        *,
        statistics_s: float,
        drain_s: float,
        clock_ns: Callable[[], int],
    ) -> None:
        self._config, self._base, self._log = config, base, log.bind(node=config.node.name)
        self._statistics_s, self._drain_s, self._clock_ns = statistics_s, drain_s, clock_ns
        self._alarms = Alarms(self._report, clock_ns)
        self._links: dict[str, RunningLink] = {}
        self._qrngs: list[QrngModule] = []
        self._entropy: EntropyPool
        self._vault: Vault | None = None
        self._supply: SupplyServer | None = None
        self._loop: asyncio.AbstractEventLoop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._refusals = Throttle(burst=10, per_s=0.1)

    # --- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start, run until SIGTERM or SIGINT or until a part fails, stop in order."""
        self._loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        mode = locked_mode()
        if mode is None:
            raise MemoryLockError("key material cannot be locked here: allow memfd_secret, or raise LimitMEMLOCK")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._log.info("starting", version=__version__, memory=mode)
        try:
            await self._start()
            await self._until(stop)
        finally:
            await self._stop()

    async def _start(self) -> None:
        await self._start_entropy()
        identity = load_identity(self._base / self._config.node.identity)
        if identity.name != self._config.node.name:
            raise ConfigError(f"{self._config.node.identity} is the identity of {identity.name!r}, not of this node")
        await self._open_vault(identity)
        for section in self._config.link:
            await self._start_link(section, identity)
        await self._start_supply(identity)
        self._record("node.started", self._config.node.name, {"version": __version__, "memory": locked_mode() or ""})
        self._log.info("started")

    async def _until(self, stop: asyncio.Event) -> None:
        waiter = asyncio.create_task(stop.wait())
        statistics = asyncio.create_task(self._report_statistics())
        watched = [running.task for running in self._links.values() if running.task is not None]
        done, _ = await asyncio.wait([waiter, statistics, *watched], return_when=asyncio.FIRST_COMPLETED)
        statistics.cancel()
        waiter.cancel()
        for task in done:
            fault = None if task in (waiter, statistics) or task.cancelled() else task.exception()
            if fault is not None:
                self._log.error("link failed", task=task.get_name(), reason=repr(fault))
                raise fault

    async def _stop(self) -> None:
        """New key first, then deliveries, then settlements, then the parts from the outside in."""
        self._stopping = True
        self._log.info("stopping")
        for running in self._links.values():
            running.link.stop_distilling()
            running.link.agreement.stop_allocating()
        with contextlib.suppress(VaultError):
            await self._drain()
        final = await self._final_counts()
        if self._supply is not None:
            await self._supply.close()
        for running in self._links.values():
            await asyncio.to_thread(running.module.stop)
            if running.task is not None:
                running.task.cancel()
                await asyncio.gather(running.task, return_exceptions=True)
            await running.channel.close()
            await asyncio.to_thread(running.lanes.close)
            await running.link.close()
        for qrng in self._qrngs:
            await asyncio.to_thread(qrng.stop)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._vault is not None:
            # A disk that is full must not hide why the node stops, nor keep the keys from being wiped.
            leaf = NodeEvent(**self._leaf("node.stopped", self._config.node.name))
            for last in (lambda vault: vault.call(ask.RecordEvent(event=leaf)), Vault.close):
                try:
                    await asyncio.to_thread(last, self._vault)
                except VaultError as error:
                    self._log.error("the vault did not take the stop", reason=str(error))
        self._log.info("stopped", **final)

    async def _drain(self) -> None:
        """Wait until what is allocated is delivered at both ends and what is claimed is settled."""
        deadline = time.monotonic() + self._drain_s
        for running in self._links.values():
            running.link.agreement.wake()
        while time.monotonic() < deadline:
            if await self._drained():
                for running in self._links.values():
                    running.link.agreement.say_goodbye()
                if all(
                    running.link.agreement.peer_drained or not running.link.is_open for running in self._links.values()
                ):
                    await asyncio.sleep(0.1)  # our own goodbye leaves
                    return
            await asyncio.sleep(0.05)
        self._log.warning("not everything was delivered before the stop; it is kept and delivered after the next start")

    async def _drained(self) -> bool:
        if self._vault is None:
            return True
        if any(not running.link.idle for running in self._links.values() if running.link.is_open):
            return False
        if self._supply is not None and await self._supply.anything_waits():
            return False
        status = await self.ask(ask.Status())
        return not status.neighbour_outbox and not status.keys.get("allocated", 0)

    # --- parts -----------------------------------------------------------------------------------------------------

    async def _start_entropy(self) -> None:
        seeds = [link.distill.batch_max_bits // 8 for link in self._config.link]
        self._entropy = EntropyPool(
            capacity_bytes=max(DEFAULT_CAPACITY_BYTES, 2 * max(seeds, default=0)),
            extractor=lambda n, m: Toeplitz(bits_in=n, bits_out=m, family="modified", uses=None),
            on_change=lambda healthy: self._in_loop(self._entropy_changed, healthy),
        )
        for section in self._config.qrng:
            source = self._entropy.attach(section.serial, entropy_bits=section.min_entropy_per_byte)
            qrng = QrngModule(section.serial, qrng_backend(section), source)
            qrng.start(self._on_device_alarm)
            self._qrngs.append(qrng)
        deadline = time.monotonic() + ENTROPY_WAIT_S
        while not self._entropy.healthy or self._entropy.available_bytes < 4096:
            if time.monotonic() > deadline:
                raise NoEntropyError(
                    f"no QRNG delivered healthy random numbers within {ENTROPY_WAIT_S:.0f} s: check the devices "
                    + ", ".join(section.serial for section in self._config.qrng)
                )
            await asyncio.sleep(0.02)

    async def _open_vault(self, identity: OwnIdentity) -> None:
        path = self._base / self._config.node.vault
        self._vault = await asyncio.to_thread(
            Vault.open,
            path,
            root=self._root_source(),
            node=self._config.node.name,
            draw_into=lambda buffer: self._entropy.draw_into(buffer, wait_s=DRAW_WAIT_S),
            sign=identity.sign,
            public_key=base64.b64decode(identity.public.ed25519),
            clock_ns=self._clock_ns,
            create=not path.exists(),
        )

    def _root_source(self) -> RootSource:
        source = self._config.node.root_key
        if source.passphrase_file is not None:
            return PassphraseFile(self._base / source.passphrase_file)
        assert source.credential is not None
        return CredentialFile(source.credential)

    async def _start_link(self, section: LinkSection, identity: OwnIdentity) -> None:

        await self._import_pair(section)
        settings = Settings(
            agreed=agreed_parameters(section),
            profile=section.distill.profile,
            batch_deadline_s=section.distill.batch_deadline_s,
            click_share_limit=section.distill.click_share_limit,
        )
        peer = load_public_node(self._base / section.peer_public)
        if peer.name != section.peer:
            raise ConfigError(f"link {section.name!r}: {section.peer_public} is of node {peer.name!r}")
        make = Channel.listen if section.listen is not None else Channel.connect
        holder: list[Link] = []
        channel = await make(
            section.listen or section.connect or "",
            keys=identity.curve,
            peer=peer.name,
            peer_key=peer.curve,
            on_lost=lambda: holder[0].lost("the channel was lost") if holder else None,
            on_refused=lambda reason: self._refused(section.name, reason),
        )
        lanes = Lanes(section.name, self._loop)
        link = Link(
            name=section.name,
            node=self._config.node.name,
            peer=section.peer,
            role=section.role,
            settings=settings,
            authentication=Authentication(section.authentication.reserve_bits, section.authentication.target_bits),
            devices=(section.module.serial, *(qrng.serial for qrng in self._config.qrng)),
            channel=channel,
            lanes=lanes,
            around=Surroundings(
                ask=self.ask,
                draw=self._entropy.draw,
                alarm=self._alarm,
                record=self._record,
                notify_supply=lambda application: self._supply.notify(application) if self._supply else None,
                monotonic_ns=time.monotonic_ns,
                log=self._log,
            ),
            software=__version__,
        )
        await link.open()
        holder.append(link)
        for association in self._config.association:
            if association.link == section.name:
                await self.ask(
                    ask.Associate(
                        association=Association(association.local, association.remote, section.name),
                        nodes=(self._config.node.name, section.peer),
                        link=section.name,
                        purpose=PURPOSE,
                        key_class=KEY_CLASS,
                    )
                )
        make_module = TransmitterModule if section.role == ALICE else ReceiverModule
        module = make_module(
            section.module.serial, module_backend(section), slots_per_window=section.distill.window_slots
        )
        running = RunningLink(link, module, channel, lanes)
        running.task = asyncio.create_task(link.run(), name=f"link {section.name}")
        self._links[section.name] = running
        module.start(lambda window: self._in_loop(self._take_window, section, running, window), self._on_device_alarm)

    def _take_window(
        self, section: LinkSection, running: RunningLink, window: TransmitterWindow | ReceiverWindow
    ) -> None:
        """Hand a Window to its link if the module works as the link says: the secret length rests on it."""
        difference = module_difference(section, running.module.info, running.module.config)
        if difference is None:
            running.link.window(_as_event(window))
            return
        window.release()
        self._alarms.raise_(AlarmCode.CONFIG, section.module.serial, difference)

    async def _import_pair(self, section: LinkSection) -> None:
        """Read a pair file once: one that is left behind is known by its id, a new one provisions the pair anew."""
        state = await self.ask(ask.OpenLink(link=section.name, role=section.role, peer=section.peer))
        for segment in state.segments:
            segment.material.release()
        path = self._base / section.pair_key
        if state.pair and not path.exists():
            return
        header, material = load_pair(path)
        if header.pair_id == state.pair:
            material.release()
            return
        names = {ALICE: header.alice, "bob": header.bob}
        if header.link != section.name or names[section.role] != self._config.node.name:
            material.release()
            raise ConfigError(
                f"{section.pair_key} is for link {header.link!r} between {header.alice!r} and {header.bob!r}"
            )
        await self.ask(
            ask.ProvisionLink(
                link=section.name, peer=section.peer, role=section.role, pair=header.pair_id, material=material
            )
        )
        self._log.info("pair key imported: destroy the file", file=section.pair_key)

    async def _start_supply(self, identity: OwnIdentity) -> None:
        if self._config.supply is None:
            return
        applications = AllowList(
            [load_public_application(self._base / section.public) for section in self._config.application]
        )
        self._supply = SupplyServer(
            identity,
            applications,
            ask=self.ask,
            draw_into=lambda buffer: self._entropy.draw_into(buffer, wait_s=DRAW_WAIT_S),
            decide=self._decide,
            on_subscription=self._on_subscription,
            record=self._record_access,
            key_class=KEY_CLASS,
        )
        await self._supply.start(self._config.supply.listen)

    def _decide(self, association: Association, size_bits: int) -> str | None:
        """Why an application may not have keys for an association; None if it may."""
        known = {(entry.local, entry.remote, entry.link) for entry in self._config.association}
        if (association.local, association.remote, association.source) not in known:
            return "no association between these applications is configured"
        return None

    def _on_subscription(self, state: SubscriptionState) -> None:
        running = self._links.get(state.association.source)
        if running is not None:
            running.link.agreement.subscribed(
                LocalSubscription(state.association, state.connected, state.size_bits, state.credit)
            )

    # --- what parts call -------------------------------------------------------------------------------------------

    async def ask(self, request: Any) -> Any:
        """Ask the vault."""
        if self._vault is None:
            raise VaultError("the vault is not open")
        return await asyncio.wrap_future(self._vault.ask(request))

    def _alarm(self, code: str, subject: str, detail: str) -> None:
        self._alarms.raise_(ALARM_OF_ERROR.get(code, code), subject, detail)

    def _in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has the node
            self._loop.call_soon_threadsafe(function, *arguments)

    def _refused(self, link: str, reason: str) -> None:
        """Any stranger can knock: log a few, count the others."""
        left_out = self._refusals.take(link, time.monotonic())
        if left_out is not None:
            self._log.warning("handshake refused", link=link, reason=reason, left_out_before=left_out)

    def _on_device_alarm(self, alarm: DeviceAlarm) -> None:
        self._in_loop(self._take_device_alarm, alarm)

    def _take_device_alarm(self, alarm: DeviceAlarm) -> None:
        self._record_event(DeviceEvent, f"device.{alarm.code.lower()}", alarm.serial, {"detail": alarm.detail[:200]})
        if alarm.code in AlarmCode.__members__:
            self._alarms.raise_(alarm.code, alarm.serial, alarm.detail)
        else:
            self._log.warning("device", code=alarm.code, serial=alarm.serial, detail=alarm.detail)

    def _entropy_changed(self, healthy: bool) -> None:
        if healthy:
            self._log.info("entropy pool healthy")
        elif not self._stopping:
            self._alarms.raise_(AlarmCode.NO_ENTROPY, "entropy pool", "no QRNG is healthy: random numbers are refused")

    def _report(self, alarm: Alarm) -> None:
        self._log.warning(
            "alarm",
            code=alarm.code,
            subject=alarm.subject,
            detail=alarm.detail,
            count=alarm.count,
            advice=ADVICE[alarm.code],
        )
        self._record_event(
            AlarmEvent,
            f"alarm.{alarm.code.lower()}",
            alarm.subject,
            {"detail": alarm.detail[:200], "count": alarm.count},
        )

    def _leaf(
        self, kind: str, subject: str, details: dict[str, Any] | None = None, outcome: str = "done"
    ) -> dict[str, Any]:
        return {
            "time_ns": self._clock_ns(),
            "node": self._config.node.name,
            "topic": kind.partition(".")[0],
            "kind": kind,
            "subject": subject,
            "outcome": outcome,
            "details": details or {},
        }

    def _record(self, kind: str, subject: str, details: dict[str, Any]) -> None:
        self._record_event(NodeEvent if kind.startswith("node.") else LinkEvent, kind, subject, details)

    def _record_event(self, event: Any, kind: str, subject: str, details: dict[str, Any]) -> None:
        if self._vault is None:
            return
        task = asyncio.ensure_future(self._journal(event(**self._leaf(kind, subject, details))))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _record_access(self, kind: str, subject: str, outcome: str, details: dict[str, Any]) -> None:
        await self._journal(AccessEvent(**self._leaf(f"access.{kind}", subject, details, outcome)))

    async def _journal(self, event: Any) -> None:
        try:
            await self.ask(ask.RecordEvent(event=event))
        except (VaultError, AuditError) as error:
            # An alarm about the log must not ask the log again.
            self._log.error("audit leaf not written", kind=event.kind, reason=str(error))
            if not isinstance(event, AlarmEvent):
                self._alarms.raise_(AlarmCode.AUDIT_STOPPED, self._config.node.name, str(error))

    # --- statistics ------------------------------------------------------------------------------------------------

    async def _report_statistics(self) -> None:
        while True:
            await asyncio.sleep(self._statistics_s)
            self._log.info("statistics", links=self._link_counts())

    def _link_counts(self) -> dict[str, Any]:
        counts = {}
        for name, running in self._links.items():
            statistics = running.link.statistics
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
            "alarms": sorted({alarm.code for alarm in self._alarms.all()}),
            "rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


def _as_event(window: TransmitterWindow | ReceiverWindow) -> TransmitterWindowReady | ReceiverWindowReady:
    if isinstance(window, TransmitterWindow):
        return TransmitterWindowReady(window.index, window.choices)
    return ReceiverWindowReady(window.index, window.slots, window.patterns)
