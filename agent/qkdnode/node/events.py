"""The node as its subscribers see it: who may have which events, and how things stand beside the log."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from qkdnode.access.allowlist import AllowList
from qkdnode.access.identities import Identity
from qkdnode.access.topics import TopicRules
from qkdnode.channel.identity import OwnIdentity, load_public
from qkdnode.config import Config
from qkdnode.errors import ConfigError, VaultError
from qkdnode.node.links import NodeLink
from qkdnode.node.recorder import Recorder
from qkdnode.supply.events import EventServer
from qkdnode.supply.replay import NodeState, Retention
from qkdnode.wire.events import Row

FAULT_SUBJECT = "events"


def load_subscribers(config: Config, base: Path) -> AllowList[Identity]:
    """Who may have events. ConfigError if a file is of somebody else, or two share a name or key."""
    found = []
    for section in config.subscriber:
        identity = load_public(base / section.public)
        if identity.name != section.name:
            raise ConfigError(f"subscriber {section.name!r}: {section.public} is of {identity.name!r}")
        found.append(identity)
    return AllowList(found)


async def start_events(
    config: Config,
    base: Path,
    identity: OwnIdentity,
    *,
    ask: Callable[[Any], Awaitable[Any]],
    links: Mapping[str, NodeLink],
    recorder: Recorder,
    clock_ns: Callable[[], int],
) -> EventServer | None:
    """Publish what is journalled from now on, if the configuration says where. `ask` must not wake what it starts."""
    section = config.events
    if section is None:
        return None

    def failed(error: VaultError) -> None:
        recorder.alarm(error.code, FAULT_SUBJECT, f"events are not published now: {error}")

    server = EventServer(
        identity,
        load_subscribers(config, base),
        TopicRules({subscriber.name: subscriber.topics for subscriber in config.subscriber}),
        Retention(section.retention_events, section.retention_hours),
        ask=ask,
        state=lambda: node_state(links, recorder),
        record=recorder.record_access,
        failed=failed,
        clock_ns=clock_ns,
    )
    await server.start(section.publish, section.replay)
    return server


def node_state(links: Mapping[str, NodeLink], recorder: Recorder) -> NodeState:
    """Alarms, links and devices as rows of plain values."""
    alarms = [_plain(alarm) for alarm in recorder.alarms.all()]
    return NodeState(
        tuple(alarms),
        tuple(
            {"link": name, "peer": link.section.peer, **_plain(link.link.statistics)} for name, link in links.items()
        ),
        tuple({"link": name, **_plain(link.module.statistics())} for name, link in links.items()),
    )


def _plain(struct: Any) -> Row:
    """The fields that are text, numbers, truth values or nothing."""
    fields = msgspec.to_builtins(struct)
    return {name: value for name, value in fields.items() if value is None or isinstance(value, (str, int, float))}
