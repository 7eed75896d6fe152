"""Whether the algorithms of a node are approved: at its start, and every day while it runs."""

import asyncio
import contextlib
import datetime
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from qkdnode.config import AlgorithmSection, Config
from qkdnode.errors import AlgorithmDisallowedError, VaultError
from qkdnode.lifecycle.algorithms import Algorithm, Finding, Need, Status, Tightening, findings, status_of, tightened
from qkdnode.node.recorder import Recorder
from qkdnode.node.world import World
from qkdnode.vault.agility import LatestDay, NoteAlgorithms, RootMethod, SeeDay, WrapAlgorithms
from qkdnode.vault.root import ARGON2ID, CREDENTIAL, SCRYPT
from qkdnode.vault.sealing import CHACHA20_POLY1305
from qkdnode.watch.alarms import AlarmCode

LOOK_S = 60.0
STEADY_NS = 3600 * 10**9  # so long the wall clock must have run evenly before its day is noted for good
UNEVEN_NS = 60 * 10**9
NEED_OF_ROOT = {ARGON2ID: Need.ARGON2ID, SCRYPT: Need.SCRYPT, CREDENTIAL: Need.CREDENTIAL}


def registry_of(config: Config) -> Mapping[str, Algorithm]:
    """The registry as a node's configuration tightens it. ConfigError if it is looser, or names what there is not."""
    return tightened({id_: _tightening(section) for id_, section in config.algorithms.items()})


def needs_of(config: Config, root_method: str | None = None, wraps: Collection[str] = ()) -> frozenset[Need]:
    """What a node needs algorithms for; what the vault's own keys rest on only once that is known."""
    needs = {
        Need.LINK: bool(config.link),
        Need.SUPPLY: config.supply is not None,
        Need.EVENTS: config.events is not None,
        Need.CONTROL: config.control is not None,
        Need.REWRAPPED: CHACHA20_POLY1305 in wraps,
    }
    root = NEED_OF_ROOT.get(root_method or "")
    return frozenset(need for need, is_there in needs.items() if is_there) | ({root} if root else set())


def day_of(wall_ns: int) -> str:
    """The day of a wall clock, UTC."""
    return datetime.datetime.fromtimestamp(wall_ns // 10**9, datetime.UTC).date().isoformat()


def demand_approved(
    config: Config, day: str, root_method: str | None = None, wraps: Collection[str] = ()
) -> tuple[Finding, ...]:
    """What a node needs and is deprecated on a day. AlgorithmDisallowedError names all that is disallowed."""
    disallowed, deprecated = findings(needs_of(config, root_method, wraps), day, registry_of(config))
    if disallowed:
        raise AlgorithmDisallowedError(
            f"node {config.node.name} does not start on {day}: {'. '.join(map(str, disallowed))}. "
            "Install software that does without it, or see docs/inventory.md if this is not the day"
        )
    return deprecated


class AlgorithmWatch:
    """Checks one node. The day that counts is the latest that it has seen, whatever its clock says later."""

    def __init__(
        self, config: Config, *, world: World, recorder: Recorder, ask: Callable[[Any], Awaitable[Any]]
    ) -> None:
        self._config, self._world, self._recorder, self._ask = config, world, recorder, ask
        self.registry = registry_of(config)
        self._root_method: str | None = None
        self._wraps: tuple[str, ...] = ()
        self._checked = ""  # the day of the last check
        self._told: NoteAlgorithms | None = None  # to the vault
        self._noted = ""  # the latest day in the log
        self._steady_since: tuple[int, int] | None = None  # monotonic, wall

    @property
    def day(self) -> str:
        """The day that counts."""
        return max(self._checked, self._noted, day_of(self._world.wall_ns()))

    @property
    def needs(self) -> frozenset[Need]:
        """What the node needs algorithms for."""
        return needs_of(self._config, self._root_method, self._wraps)

    async def start(self) -> None:
        """Once the vault is open. AlgorithmDisallowedError, with an alarm, if the node must not run."""
        self._root_method = await self._ask(RootMethod())
        self._wraps = await self._ask(WrapAlgorithms())
        self._noted = await self._ask(LatestDay()) or ""
        await self._take_back()
        self._check()
        await self._tell()
        demand_approved(self._config, self.day, self._root_method, self._wraps)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if await self._is_rewrapped() or self.day > self._checked:
                self._check()
            if self._told != self._standing():
                with contextlib.suppress(VaultError):  # as above; it is told at the next look
                    await self._tell()
            await self._note()

    def _check(self) -> None:
        """Alarms for what is approved no more. A node that runs goes on: no clock can stop it."""
        self._checked = self.day
        disallowed, deprecated = findings(self.needs, self._checked, self.registry)
        for finding in (*disallowed, *deprecated):
            is_over = finding.status is Status.DISALLOWED
            code = AlarmCode.ALGORITHM_DISALLOWED if is_over else AlarmCode.ALGORITHM_DEPRECATED
            self._recorder.alarm(code, finding.id, str(finding))
            if is_over:
                self._recorder.clear(AlarmCode.ALGORITHM_DEPRECATED, finding.id)

    def _standing(self) -> NoteAlgorithms:
        """What the registry disallows, and deprecates, on the day that counts."""
        by_status: dict[Status, list[str]] = {status: [] for status in Status}
        for id_ in self.registry:
            by_status[status_of(id_, self.day, self.registry)].append(id_)
        return NoteAlgorithms(
            disallowed=tuple(by_status[Status.DISALLOWED]), deprecated=tuple(by_status[Status.DEPRECATED])
        )

    async def _tell(self) -> None:
        """The vault cuts and wraps by it."""
        standing = self._standing()
        await self._ask(standing)
        self._told = standing

    async def _is_rewrapped(self) -> bool:
        """Whether the vault's data keys are wrapped otherwise than at the last look, by an operator's order."""
        before = self._wraps
        with contextlib.suppress(VaultError):  # told by who needs the vault for more; the next look is in a minute
            self._wraps = await self._ask(WrapAlgorithms())
        return self._wraps != before

    async def _take_back(self) -> None:
        """A person says that the clock was wrong: days after it count no more, which is journalled."""
        last = self._config.node.clock_was_wrong_after
        today = day_of(self._world.wall_ns())
        if last is not None and self._noted > max(last.isoformat(), today):
            self._noted = await self._ask(SeeDay(day=max(last.isoformat(), today), taking_back=True))

    async def _note(self) -> None:
        """Note the day durably once the clock has been even for an hour: one that is wrong for a while is not noted."""
        now_ns, wall_ns = self._world.monotonic_ns(), self._world.wall_ns()
        since = self._steady_since
        if since is None or abs((wall_ns - since[1]) - (now_ns - since[0])) > UNEVEN_NS:
            since = self._steady_since = now_ns, wall_ns
        today = day_of(wall_ns)
        if now_ns - since[0] >= STEADY_NS and today > self._noted:
            try:
                self._noted = await self._ask(SeeDay(day=today))
            except VaultError as error:
                self._recorder.alarm(error.code, "vault", str(error))


def _tightening(section: AlgorithmSection) -> Tightening:
    return Tightening(
        status=None if section.status is None else Status(section.status),
        deprecated_from=_text(section.deprecated_from),
        disallowed_from=_text(section.disallowed_from),
        replacement=section.replacement,
    )


def _text(day: datetime.date | None) -> str | None:
    return None if day is None else day.isoformat()
