"""The node as its operators see and drive it: what the control socket is given."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from qkdnode import __version__
from qkdnode.access.allowlist import AllowList
from qkdnode.access.identities import ApplicationIdentity
from qkdnode.config import Config, load_config
from qkdnode.control.conversation import Operators
from qkdnode.control.desk import Desk
from qkdnode.control.port import NodePort, Supplied
from qkdnode.control.server import ControlServer
from qkdnode.device.reader import ReaderState
from qkdnode.errors import ConfigError, ControlError, VaultError
from qkdnode.ids import ALICE, Association
from qkdnode.lifecycle.algorithms import Algorithm, Need, Status, status_of, uses_of
from qkdnode.link.driver import Link
from qkdnode.native.secret import locked_mode
from qkdnode.node.algorithms import AlgorithmWatch
from qkdnode.node.assets import Assets
from qkdnode.node.clock import ClockCare
from qkdnode.node.links import NodeLink, associate
from qkdnode.node.policy import NodePolicy, people_of
from qkdnode.node.rates import SAMPLE_NS, Rates
from qkdnode.node.recorder import Recorder
from qkdnode.node.reload import Reading, compare, load_operators
from qkdnode.node.world import NodeEntropy
from qkdnode.vault import pauses
from qkdnode.vault import requests as ask
from qkdnode.vault.doubts import DoubtList, Doubts, rule_of
from qkdnode.vault.requests import PolicyVersion
from qkdnode.watch.alarms import AlarmCode, AlarmState
from qkdnode.wire.control import (
    AlgorithmEntry,
    AlgorithmList,
    Asset,
    ComparisonEntry,
    DeviceStatus,
    DoubtEntry,
    LinkStatus,
    NodeStatus,
    PolicyApply,
    Reloaded,
)

ALARMS_SHOWN = 64  # in a status; `alarms` gives all
FAR_END = "the far end"


class ControlledNode(Protocol):
    """What an agent shows and lets be done with it."""

    @property
    def config(self) -> Config: ...
    @property
    def links(self) -> Mapping[str, NodeLink]: ...
    @property
    def entropy(self) -> NodeEntropy: ...
    @property
    def applications(self) -> AllowList[ApplicationIdentity]: ...
    @property
    def assets(self) -> Assets: ...
    @property
    def algorithms(self) -> AlgorithmWatch: ...
    @property
    def clock(self) -> ClockCare: ...
    @property
    def stopping(self) -> bool: ...
    def ask_to_stop(self) -> None: ...
    def reloading(self) -> AbstractContextManager[None]: ...
    def configure(self, config: Config, applications: AllowList[ApplicationIdentity]) -> None: ...
    @property
    def policy(self) -> NodePolicy: ...
    def policy_changed(self) -> None: ...


class NodeControl:
    """The control socket of one node with what it needs of it. `file` is where the configuration was read from."""

    def __init__(
        self,
        node: ControlledNode,
        *,
        base: Path,
        file: Path | None,
        ask_vault: Callable[[Any], Awaitable[Any]],
        recorder: Recorder,
        wall_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        log: Any,
    ) -> None:
        self._node, self._base, self._file = node, base, file
        self._ask, self._recorder = ask_vault, recorder
        self._wall_ns, self._monotonic_ns, self._log = wall_ns, monotonic_ns, log
        self._started_ns = wall_ns()
        self._rates = {name: Rates() for name in node.links}
        self._pauses: dict[str, pauses.Pause] = {}
        self._operators = Operators()
        self._server: ControlServer | None = None
        self._sampling: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()

    async def start(self) -> None:
        """Listen. ConfigError if the path is not safe, or an operator's file is not what it says."""
        section = self._node.config.control
        if section is None:
            return
        self._operators.replace(load_operators(self._node.config, self._base))
        self._pauses = {pause.link: pause for pause in await self._ask(pauses.Pauses())}
        desk = Desk(
            self.port(),
            ask=self._ask,
            record=lambda subject, outcome, details: self._recorder.demand_access("control", subject, outcome, details),
            clock_s=lambda: self._monotonic_ns() / 1e9,
            log=self._log,
        )
        self._server = ControlServer(
            self._base / section.socket,
            node=self._node.config.node.name,
            uids={os.geteuid(), *section.uids},
            operators=self._operators,
            desk=desk,
        )
        await self._server.start()
        self._sampling = asyncio.create_task(self._sample())
        self._log.info("control socket open", path=section.socket, operators=len(self._operators))

    async def close(self) -> None:
        """Stop listening; what was counted of requests is journalled."""
        if self._sampling is not None:
            self._sampling.cancel()
        if self._server is not None:
            await self._server.close()

    def port(self) -> NodePort:
        """The callables."""
        return NodePort(
            status=self.status,
            links=self.link_statuses,
            devices=self.device_statuses,
            alarms=self.alarms,
            decoy=lambda subject, detail: self._recorder.alarm(AlarmCode.DECOY, subject, detail),
            acknowledge=self.acknowledge,
            revoked=self.revoked,
            rotated=self.rotated,
            demand_cut=self.demand_cut,
            people=lambda: people_of(self._operators),
            supplied=self.supplied,
            pause=self.pause,
            resume=self.resume,
            shutdown=self.shutdown,
            reload=self.reload,
            apply_policy=self.apply_policy,
            assets=self.assets,
            algorithms=self.algorithms,
            compared=self.compared,
            compare=self.compare,
            clock=self._node.clock.status,
            confirm_clock=self._node.clock.confirm,
        )

    # --- what is shown ---------------------------------------------------------------------------------------------

    async def status(self) -> NodeStatus:
        """The node at a glance; without the vault's part while the vault does not answer."""
        vault = await self._vault_status()
        alarms = [alarm for alarm in await self.alarms() if is_open(alarm)]
        return NodeStatus(
            node=self._node.config.node.name,
            version=__version__,
            state="stopping" if self._node.stopping else "running",
            started_ns=self._started_ns,
            now_ns=self._wall_ns(),
            memory=locked_mode() or "none",
            entropy_healthy=self._node.entropy.healthy,
            links=self._links(vault),
            devices=await self.device_statuses(),
            alarms=tuple(alarms[-ALARMS_SHOWN:]),
            keys=None if vault is None else vault.keys,
            keys_delivered_both=None if vault is None else vault.keys_delivered_both,
            leaves=None if vault is None else vault.leaves,
        )

    async def link_statuses(self) -> tuple[LinkStatus, ...]:
        """Every link."""
        return self._links(await self._vault_status())

    async def device_statuses(self) -> tuple[DeviceStatus, ...]:
        """Every module and QRNG."""
        found = []
        for name, link in self._node.links.items():
            counts = link.module.statistics()
            found.append(
                DeviceStatus(
                    serial=link.module.serial,
                    kind="transmitter" if link.section.role == ALICE else "receiver",
                    link=name,
                    state=str(counts.state),
                    healthy=counts.state == ReaderState.STREAMING,
                    openings=counts.openings,
                    bytes_read=counts.bytes_read,
                    stalls=counts.stalls,
                    detail=_module_detail(counts),
                )
            )
        _, qrngs = self._node.entropy.statistics()
        for counts in qrngs:
            source = counts.source
            found.append(
                DeviceStatus(
                    serial=counts.serial,
                    kind="qrng",
                    state=str(counts.state),
                    healthy=counts.state == ReaderState.STREAMING and str(source.state) == "healthy",
                    openings=counts.openings,
                    bytes_read=counts.bytes_read,
                    stalls=counts.stalls,
                    detail=f"{source.state}{f': {source.reason}' if source.reason else ''}",
                )
            )
        return tuple(found)

    async def alarms(self, confidential: bool = False) -> tuple[dict[str, Any], ...]:
        """Every alarm as plain values, with its advice."""
        return tuple(msgspec.to_builtins(alarm) for alarm in self._recorder.alarms.all(confidential=confidential))

    async def assets(self) -> tuple[tuple[Asset, ...], tuple[str, ...]]:
        """Every asset, and the tables of the configuration that fit none."""
        found = await self._node.assets.all()
        return found, self._node.assets.unused(found)

    async def algorithms(self) -> AlgorithmList:
        """The registry in force, with the use that this node makes of it, and counts of keys."""
        watch, vault = self._node.algorithms, await self._vault_status()
        day, needs = watch.day, watch.needs
        return AlgorithmList(
            day=day,
            algorithms=tuple(
                algorithm_entry(row, status_of(row.id, day, watch.registry), needs) for row in watch.registry.values()
            ),
            key_classes=self._node.policy.classes,
            keys=None if vault is None else vault.keys,
        )

    async def compared(self, name: str | None) -> tuple[ComparisonEntry, ...]:
        """How what links hold compares with their far ends."""
        links = self._node.links.items() if name is None else ((name, self._link(name)),)
        now = self._monotonic_ns()
        return tuple(
            [comparison_entry(link.link, await self._ask(Doubts(link=name)), now) for name, link in list(links)]
        )

    def supplied(self, association: Association) -> Supplied:
        """How an association is supplied now."""
        known = self._node.links.get(association.source)
        if known is None:  # of a link that the configuration has no more
            return Supplied("not configured", False, None, None, None)
        link = known.link
        here, there = link.agreement.subscriptions(association)
        return Supplied(
            link_state=link.statistics.state,
            connected=link.is_open,
            size_bits=None if here is None else here.size_bits,
            credit_here=None if here is None else here.credit,
            credit_there=None if there is None else there.credit,
        )

    # --- what is done ----------------------------------------------------------------------------------------------

    async def compare(self, name: str | None) -> None:
        """Compare a link, or each, with its far end."""
        for link in self._node.links.values() if name is None else (self._link(name),):
            link.link.comparison.compare_now()

    async def acknowledge(self, code: str, subject: str, by: str) -> bool:
        """An operator has seen an alarm; a device that has latched it is tested and opened again."""
        try:
            changed = await self._recorder.acknowledge(code, subject, by)
        except KeyError:
            raise ControlError(f"there is no alarm {code} of {subject!r}: see `qkdnode alarms`") from None
        modules = [link.module for link in self._node.links.values() if link.module.serial == subject]
        if code == "DEVICE_UNHEALTHY":
            unlatched = [module.acknowledge() for module in modules] + [self._node.entropy.acknowledge(subject)]
            changed = any(unlatched) or changed
        return changed

    def revoked(self, compromised: tuple[str, ...]) -> None:
        """Keys were taken out of use: the neighbours hear of it before all else. Of some links all keys of a scope."""
        for name in compromised:
            self._recorder.alarm(
                AlarmCode.COMPROMISED, name, "an operator says that others may know keys of this link: none is released"
            )
        for link in self._node.links.values():
            link.link.agreement.revoked()

    def rotated(self) -> None:
        """Rotations were begun or given up: every link looks after its own."""
        for link in self._node.links.values():
            link.link.agreement.rotated()

    def demand_cut(self, name: str) -> None:
        """What couriers carry goes over the link while that is up."""
        if self._link(name).link.is_open:
            raise ControlError(
                f"link {name!r} is up: rotations go over it by themselves, and no file is written or imported; see "
                "`qkdnode rotate`"
            )

    async def pause(self, name: str, by: str) -> bool:
        """Distil no more on a link, durably."""
        link = self._link(name)
        changed: bool = await self._ask(pauses.PauseLink(link=name, by=by))
        self._pauses = {pause.link: pause for pause in await self._ask(pauses.Pauses())}
        link.link.pause()
        if changed:
            self._log.warning("link paused", link=name, by=by)
        return changed

    async def resume(self, name: str, by: str) -> bool:
        """Distil again on a link."""
        link = self._link(name)
        changed: bool = await self._ask(pauses.ResumeLink(link=name, by=by))
        self._pauses.pop(name, None)
        link.link.resume()
        if changed:
            self._log.info("link resumed", link=name, by=by)
        return changed

    async def shutdown(self, by: str) -> bool:
        """Stop the agent as SIGTERM does."""
        if self._node.stopping:
            return False
        self._log.info("asked to stop", by=by)
        self._node.ask_to_stop()
        return True

    async def reload(self, by: str) -> Reloaded:
        """Read the configuration anew. ConfigError or VaultError, and nothing is changed, if it cannot be used."""
        if self._file is None:
            raise ConfigError("this agent was not started from a file: there is nothing to read anew")
        async with self._reloading:
            with self._node.reloading():
                reading = await self._take_over(self._file)
        self._recorder.record(
            "node.reloaded",
            self._node.config.node.name,
            {"applied": len(reading.applied), "needs_restart": len(reading.needs_restart)},
        )
        self._log.info("configuration reloaded", by=by, applied=reading.applied, needs_restart=reading.needs_restart)
        return Reloaded(applied=reading.applied, needs_restart=reading.needs_restart)

    async def apply_policy(self, request: PolicyApply, by: str) -> PolicyVersion:
        """Make an approved document the policy in force, and let everybody be asked anew whom it concerns."""
        version = await self._node.policy.apply(request, self._operators, by)
        self._node.policy_changed()
        return version

    # --- parts -----------------------------------------------------------------------------------------------------

    async def _take_over(self, file: Path) -> Reading:
        reading = await asyncio.to_thread(lambda: self._read(load_config(file)))
        links = self._node.links
        for entry in reading.new_associations:
            await associate(entry, reading.config, links[entry.link].section, self._ask)
        self._operators.replace(reading.operators)
        if self._server is not None and reading.config.control is not None:
            self._server.uids = frozenset({os.geteuid(), *reading.config.control.uids})
        self._node.configure(reading.config, reading.applications)
        return reading

    def _read(self, config: Config) -> Reading:
        return compare(self._node.config, config, self._base, self._node.applications, self._operators)

    def _link(self, name: str) -> NodeLink:
        link = self._node.links.get(name)
        if link is None:
            raise ControlError(f"this node has no link {name!r}; it has {', '.join(self._node.links) or 'none'}")
        return link

    def _links(self, vault: ask.VaultStatus | None) -> tuple[LinkStatus, ...]:
        found = []
        for name, link in self._node.links.items():
            driver, counts, rates = link.link, link.link.statistics, self._rates[name]
            rates.take(self._monotonic_ns(), counts)
            here = self._pauses.get(name)
            found.append(
                LinkStatus(
                    name=name,
                    peer=link.section.peer,
                    role=link.section.role,
                    state=counts.state,
                    paused_by=here.by if here is not None else FAR_END if driver.peer_paused else None,
                    paused_ns=None if here is None else here.since_ns,
                    sessions=counts.sessions,
                    qber=rates.qber,
                    sifted_bps=rates.sifted_bps,
                    secret_bps=rates.secret_bps,
                    stock_bits=None if vault is None else vault.stock_bits_own.get(name, 0),
                    stock_bits_peer=None if vault is None else vault.stock_bits_peer.get(name, 0),
                    reserve_bits=driver.reserve_bits,
                    reserve_days=rates.days_left(driver.reserve_bits),
                    batches_ready=counts.batches_ready,
                    discards=dict(counts.discards),
                )
            )
        return tuple(found)

    async def _vault_status(self) -> ask.VaultStatus | None:
        try:
            status: ask.VaultStatus = await self._ask(ask.Status())
        except VaultError:
            return None
        return status

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_NS / 1e9)
            for name, link in self._node.links.items():
                self._rates[name].take(self._monotonic_ns(), link.link.statistics)


def is_open(alarm: Mapping[str, Any]) -> bool:
    """Whether somebody has yet to look at an alarm."""
    return bool(alarm["state"] == AlarmState.RAISED)


def algorithm_entry(row: Algorithm, status: Status, needs: Collection[Need]) -> AlgorithmEntry:
    """A row of the registry as it is shown."""
    return AlgorithmEntry(
        id=row.id,
        primitive=row.primitive.value,
        parameters=row.parameters,
        provider=row.provider.value,
        functions=row.functions,
        status=status.value,
        deprecated_from=row.deprecated_from,
        disallowed_from=row.disallowed_from,
        replacement=row.replacement,
        uses=uses_of(row, needs),
        for_keys=row.for_keys,
        key_bits=row.key_bits,
        classical_bits=row.classical_bits,
        quantum_level=row.quantum_level,
        oid=row.oid,
    )


def comparison_entry(link: Link, doubts: DoubtList, now_ns: int) -> ComparisonEntry:
    """The last comparison of a link as it is shown."""
    state = link.comparison.state
    return ComparisonEntry(
        link=link.name,
        peer=link.peer,
        connected=link.is_open,
        looks=state.looks,
        running=state.running,
        ended_s=(now_ns - state.ended_ns) / 1e9 if state.ended_ns and not state.running else None,
        root_here=state.here.hex(),
        root_there=state.there.hex(),
        agrees=state.agrees and not doubts.total,
        failed=state.failed,
        questions=state.questions,
        stretches=state.stretches,
        unsettled=state.unsettled,
        found=state.found,
        rules={verdict: rule_of(verdict) for verdict in state.found},
        repaired=state.repaired,
        quarantined=doubts.quarantined,
        doubts=tuple(
            DoubtEntry(
                batch=str(doubt.stretch.batch),
                half=doubt.stretch.half,
                offset_bits=doubt.offset_bits,
                verdict=doubt.verdict,
                rule=rule_of(doubt.verdict),
                since_ns=doubt.since_ns,
                looks=doubt.looks,
                count=doubt.keys,
            )
            for doubt in doubts.doubts
        ),
        doubts_in_all=doubts.total,
    )


def _module_detail(counts: Any) -> str:
    lost = sum(counts.discarded.values())
    return f"{counts.windows} Windows, {lost} lost" + (
        ""
        if counts.clock_rate_ppm is None
        else f", clock {counts.clock_rate_ppm:+.2f} ppm{'' if counts.clock_locked else ' unlocked'}"
    )
