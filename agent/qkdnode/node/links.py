"""A running QKD link: its driver with the module, the channel and the workers that were made for it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from qkdnode import __version__
from qkdnode.channel.identity import OwnIdentity, load_public_node
from qkdnode.config import AssociationSection, Config, LinkSection
from qkdnode.device.windows import ReceiverWindow, TransmitterWindow
from qkdnode.distill.effects import ReceiverWindowReady, TransmitterWindowReady
from qkdnode.distill.quality.link import Limits
from qkdnode.distill.settings import Settings
from qkdnode.errors import ConfigError
from qkdnode.ids import ALICE, BOB, Association
from qkdnode.link.driver import Authentication, Link
from qkdnode.link.surroundings import Surroundings
from qkdnode.node.parameters import agreed_parameters, module_difference
from qkdnode.node.provision import load_pair
from qkdnode.node.recorder import Recorder
from qkdnode.node.world import NodeChannel, NodeLanes, NodeModule, World
from qkdnode.vault import requests as ask
from qkdnode.watch.alarms import AlarmCode

PURPOSE, KEY_CLASS = "session", "its"


class NodeLink:
    """One link of a node, made by `open_link`, running after `start`."""

    def __init__(
        self,
        section: LinkSection,
        link: Link,
        module: NodeModule,
        channel: NodeChannel,
        lanes: NodeLanes,
        recorder: Recorder,
    ) -> None:
        self.section, self.link, self.module, self.channel, self.lanes = section, link, module, channel, lanes
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the driver and take Windows from the module."""
        self.task = asyncio.create_task(self.link.run(), name=f"link {self.section.name}")
        self.module.start(
            lambda window: in_loop(self._loop, self._take_window, window),
            lambda alarm: in_loop(self._loop, self._recorder.device_alarm, alarm),
        )

    async def close(self) -> None:
        """The device first, then the driver, the channel, the workers; the link's keys are wiped."""
        await asyncio.to_thread(self.module.stop)
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.channel.close()
        await asyncio.to_thread(self.lanes.close)
        await self.link.close()

    def _take_window(self, window: TransmitterWindow | ReceiverWindow) -> None:
        """Hand a Window to the link if the module works as the link says: the secret length rests on it."""
        difference = module_difference(self.section, self.module.info, self.module.config)
        if difference is None:
            self.link.window(_as_event(window))
            return
        window.release()
        self._recorder.alarm(AlarmCode.CONFIG, self.section.module.serial, difference)


async def open_link(
    section: LinkSection,
    config: Config,
    base: Path,
    identity: OwnIdentity,
    *,
    world: World,
    ask_vault: Callable[[Any], Awaitable[Any]],
    draw: Callable[[int], Any],
    notify_supply: Callable[[str], None],
    notify_rotation: Callable[[Association], None],
    on_refused: Callable[[str], None],
    recorder: Recorder,
    log: Any,
    origins: Callable[[tuple[str, ...]], dict[str, str]],
) -> NodeLink:
    """Make a link from its section: import its pair key, connect, read its durable state, name its associations."""
    await _import_pair(section, config.node.name, base, ask_vault, log)
    peer = load_public_node(base / section.peer_public)
    if peer.name != section.peer:
        raise ConfigError(f"link {section.name!r}: {section.peer_public} is of node {peer.name!r}")
    holder: list[Link] = []
    channel = await world.channel(
        section,
        identity,
        peer,
        on_lost=lambda: holder[0].lost("the channel was lost") if holder else None,
        on_refused=on_refused,
    )
    lanes = world.lanes(section.name)
    link = Link(
        name=section.name,
        node=config.node.name,
        peer=section.peer,
        role=section.role,
        settings=Settings(
            agreed=agreed_parameters(section),
            profile=section.distill.profile,
            batch_deadline_s=section.distill.batch_deadline_s,
            click_share_limit=section.distill.click_share_limit,
            limits=Limits(
                expected_qber=section.limits.expected_qber,
                bit_bias=section.limits.bit_bias,
                basis_bias=section.limits.basis_bias,
                double_clicks=section.limits.double_click_share,
            ),
        ),
        authentication=Authentication(section.authentication.reserve_bits, section.authentication.target_bits),
        devices=(section.module.serial, *(qrng.serial for qrng in config.qrng)),
        channel=channel,
        lanes=lanes,
        around=Surroundings(
            ask=ask_vault,
            draw=draw,
            alarm=recorder.alarm,
            clear=recorder.clear,
            record=recorder.record,
            notify_supply=notify_supply,
            monotonic_ns=world.monotonic_ns,
            log=log,
            origins=origins,
            notify_rotation=notify_rotation,
        ),
        software=__version__,
        peer_log_key=peer.log_key,
        compare_s=3600 * section.compare_hours,
    )
    await link.open()
    holder.append(link)
    for association in config.association:
        if association.link == section.name:
            await associate(association, config, section, ask_vault)
    return NodeLink(section, link, world.module(section), channel, lanes, recorder)


async def associate(
    entry: AssociationSection, config: Config, section: LinkSection, ask_vault: Callable[[Any], Awaitable[Any]]
) -> None:
    """Make a configured association known to the vault, with the services that its keys are bound to."""
    services = next((its.services for its in config.application if its.name == entry.local), ())
    await ask_vault(
        ask.Associate(
            association=Association(entry.local, entry.remote, section.name),
            nodes=(config.node.name, section.peer),
            link=section.name,
            purpose=PURPOSE,
            key_class=KEY_CLASS,
            services=(services, entry.remote_services),
        )
    )


def in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in the loop, from any thread; nothing happens once the loop has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *arguments)


async def _import_pair(
    section: LinkSection, node: str, base: Path, ask_vault: Callable[[Any], Awaitable[Any]], log: Any
) -> None:
    """Read a pair file once: one that is left behind is known by its id, a new one provisions the pair anew."""
    state = await ask_vault(ask.OpenLink(link=section.name, role=section.role, peer=section.peer))
    for segment in state.segments:
        segment.material.release()
    if state.greeting_key is not None:
        state.greeting_key.release()
    path = base / section.pair_key
    if state.pair and not path.exists():
        return
    header, material = load_pair(path)
    if header.pair_id == state.pair:
        material.release()
        return
    names = {ALICE: header.alice, BOB: header.bob}
    if header.link != section.name or names[section.role] != node:
        material.release()
        raise ConfigError(f"{section.pair_key} is for link {header.link!r} between {header.alice!r} and {header.bob!r}")
    await ask_vault(
        ask.ProvisionLink(
            link=section.name, peer=section.peer, role=section.role, pair=header.pair_id, material=material
        )
    )
    log.info("pair key imported: destroy the file", file=section.pair_key)


def _as_event(window: TransmitterWindow | ReceiverWindow) -> TransmitterWindowReady | ReceiverWindowReady:
    if isinstance(window, TransmitterWindow):
        return TransmitterWindowReady(window.index, window.choices)
    return ReceiverWindowReady(window.index, window.slots, window.patterns)
