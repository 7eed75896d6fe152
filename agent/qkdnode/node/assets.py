"""What a node consists of: gathered, compared with what it was, shown with who answers for it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from qkdnode import __version__
from qkdnode.audit.events import MAX_DETAIL_CHARACTERS
from qkdnode.config import AssetSection, Config
from qkdnode.device.identity import DeviceInfo
from qkdnode.errors import VaultError
from qkdnode.node.links import NodeLink
from qkdnode.node.recorder import Recorder
from qkdnode.node.software import KINDS as SOFTWARE
from qkdnode.node.software import shown
from qkdnode.node.world import NodeEntropy, World
from qkdnode.vault.assets import (
    BACK,
    CHANGED,
    GONE,
    LOST,
    MAX_MARK_CHARACTERS,
    MAX_NAME_CHARACTERS,
    AssetChange,
    CompareAssets,
    NoteAssets,
    SeenAsset,
)
from qkdnode.watch.alarms import AlarmCode
from qkdnode.wire.control import Asset

LOOK_S = 10.0
MODULE, QRNG = "module", "qrng"
DEVICES = (MODULE, QRNG)
NAMED_IN_ALARM = 3
ANY = "*"


class Assets:
    """The assets of one node. `config` gives the configuration in force."""

    def __init__(
        self,
        config: Callable[[], Config],
        *,
        world: World,
        recorder: Recorder,
        ask: Callable[[Any], Awaitable[Any]],
        links: Mapping[str, NodeLink],
        entropy: NodeEntropy,
    ) -> None:
        self._config, self._world, self._recorder, self._ask = config, world, recorder, ask
        self._links, self._entropy = links, entropy
        self._software: tuple[Asset, ...] = ()
        self._gathered = asyncio.Event()
        self._noted: dict[tuple[str, str], dict[str, str]] = {}  # devices, as the vault knows them

    async def run(self) -> None:
        """Gather the software once, then look at the devices until cancelled: they come late, and come back changed."""
        self._software = await self._world.software()
        self._gathered.set()
        waits = True  # the software is not noted yet
        while True:
            if waits:
                waits = not await self._note(SOFTWARE, self._software, [(its.kind, its.name) for its in self._software])
            await self._look_at_devices()
            await asyncio.sleep(LOOK_S)

    async def all(self) -> tuple[Asset, ...]:
        """Every asset by kind and name, with owner and classification."""
        await self._gathered.wait()
        config = self._config()
        found = (*_configured(config), *self._devices(), *self._software)
        return tuple(sorted((_owned(asset, config.asset) for asset in found), key=lambda its: (its.kind, its.name)))

    def origins(self, serials: tuple[str, ...]) -> dict[str, str]:
        """Firmware of devices, and the digest of this software: what is known of them by now."""
        names = {shown(serial, MAX_NAME_CHARACTERS) for serial in serials}
        firmware = [f"{its.name} {its.version}" for its in self._devices() if its.name in names and its.version]
        digest = next((its.digest for its in self._software if its.name == "qkdnode" and its.digest), None)
        known = {"firmware": "; ".join(firmware)[:MAX_DETAIL_CHARACTERS], "software_digest": digest or ""}
        return {name: value for name, value in known.items() if value}

    def unused(self, assets: Iterable[Asset]) -> tuple[str, ...]:
        """Tables of the configuration that fit none of these."""
        known = tuple(assets)
        return tuple(
            f"{table.kind or ANY} {table.name}"
            for table in self._config().asset
            if not any(_fits(table, asset) for asset in known)
        )

    def _devices(self) -> list[Asset]:
        found = [
            _device(MODULE, link.section.module.serial, link.module.info, {"link": name, "role": link.section.role})
            for name, link in self._links.items()
        ]
        return found + [_device(QRNG, serial, info, {}) for serial, info in self._entropy.infos().items()]

    async def _look_at_devices(self) -> None:
        devices = self._devices()
        seen = [device for device in devices if device.version is not None]
        marks = {(device.kind, device.name): _marks(device) for device in seen}
        if marks.items() <= self._noted.items():
            return
        if await self._note(DEVICES, seen, [(device.kind, device.name) for device in devices]):
            self._noted |= marks

    async def _note(self, kinds: tuple[str, ...], seen: Iterable[Asset], expected: list[tuple[str, str]]) -> bool:
        """Alarm first, note then: a crash between the two alarms twice, and never not at all. Whether it was noted."""
        told = tuple(SeenAsset(asset.kind, asset.name, _marks(asset)) for asset in seen)
        try:
            changes = await self._ask(CompareAssets(kinds=kinds, seen=told, expected=tuple(expected)))
            if changes:
                self._alarm([change for change in changes if _is_alarming(change)])
                await self._recorder.store_alarms()
                await self._ask(NoteAssets(kinds=kinds, seen=told, expected=tuple(expected)))
        except VaultError as error:
            self._recorder.alarm(error.code, "vault", str(error))
            return False
        return True

    def _alarm(self, changes: list[AssetChange]) -> None:
        for change in changes:
            if change.kind in DEVICES:
                self._recorder.alarm(AlarmCode.ASSET_CHANGED, change.name, _told(change))
        software = [change for change in changes if change.kind not in DEVICES]
        if software:
            named = "; ".join(f"{change.name} {_told(change)}" for change in software[:NAMED_IN_ALARM])
            others = len(software) - NAMED_IN_ALARM
            detail = (
                f"{len(software)} changed: {named}" if others <= 0 else f"{len(software)} changed, the first: {named}"
            )
            self._recorder.alarm(AlarmCode.ASSET_CHANGED, "software", detail)


def _is_alarming(change: AssetChange) -> bool:
    """What came anew is journalled; software that came anew is an alarm too, unless the vault is new."""
    if change.happened in (CHANGED, LOST):
        return True
    if change.happened == BACK:
        return bool(change.marks)
    return change.happened != GONE and change.kind in SOFTWARE and not change.first


def _told(change: AssetChange) -> str:
    """One change for people: versions as they are, digests by their first digits."""
    if change.happened == LOST:
        return "is known to the log, and its record was lost"
    if not change.marks:
        return f"is {change.happened}"
    return ", ".join(
        f"{name} {before[:24] or 'none'} -> {after[:24] or 'none'}" for name, before, after in change.marks
    )


def _marks(asset: Asset) -> dict[str, str]:
    """What tells one state of an asset from another."""
    marks = {"version": asset.version or "", "digest": asset.digest or "", "model": asset.details.get("model", "")}
    return {name: value for name, value in marks.items() if value}


def _device(kind: str, serial: str, info: DeviceInfo | None, details: dict[str, str]) -> Asset:
    """What a device says of itself is not believed to be text: it is escaped and bounded."""
    if info is not None:
        details = {**details, "model": shown(info.model, MAX_MARK_CHARACTERS), "backend": _backend(info)}
    return Asset(
        kind=kind,
        name=shown(serial, MAX_NAME_CHARACTERS),
        version=None if info is None else shown(info.firmware, MAX_MARK_CHARACTERS),
        details={name: value for name, value in details.items() if value},
    )


def _backend(info: DeviceInfo) -> str:
    return "emulated" if info.emulated else "hardware"


def _configured(config: Config) -> list[Asset]:
    """What the configuration alone tells of."""
    found = [Asset(kind="node", name=config.node.name, version=__version__)]
    found += [
        Asset(kind="link", name=link.name, details={"peer": link.peer, "role": link.role}) for link in config.link
    ]
    found += [Asset(kind="application", name=application.name) for application in config.application]
    for operator in config.operator:
        found.append(Asset(kind="operator", name=operator.name, details={"roles": " ".join(operator.roles)}))
    return found


def _fits(table: AssetSection, asset: Asset) -> bool:
    return table.kind in (None, asset.kind) and table.name in (ANY, asset.name)


def _owned(asset: Asset, tables: tuple[AssetSection, ...]) -> Asset:
    """Owner and classification each by the first table that fits and names one."""
    fitting = [table for table in tables if _fits(table, asset)]
    owner = next((table.owner for table in fitting if table.owner), asset.owner)
    classification = next((table.classification for table in fitting if table.classification), asset.classification)
    return replace(asset, owner=owner, classification=classification)
