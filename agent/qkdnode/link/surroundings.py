"""What the node gives a link, callables and no adapter's types; and what a link gives its parts."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from qkdnode.ids import Association
from qkdnode.native.secret import SecretBuffer
from qkdnode.wire.messages import Message


class Surroundings(msgspec.Struct, frozen=True):
    """The vault, randomness, alarms, the audit log, the supply, time and the log of a node."""

    ask: Callable[[Any], Awaitable[Any]]  # the vault
    draw: Callable[[int], SecretBuffer]  # the entropy pool
    alarm: Callable[[str, str, str], None]  # code, subject, detail
    clear: Callable[[str, str], None]  # code, subject: what the alarm was raised for is right again
    record: Callable[[str, str, dict[str, Any]], None]  # kind, subject, details: an audit leaf
    notify_supply: Callable[[str], None]  # an application's outbox may have grown
    monotonic_ns: Callable[[], int]
    log: Any
    # What is known of devices and of the software, for the records of Batches that they make.
    origins: Callable[[tuple[str, ...]], dict[str, str]] = lambda devices: {}
    notify_rotation: Callable[[Association], None] = lambda association: None  # it has gone on


class Link(Protocol):
    """What the parts of a link need of it."""

    @property
    def name(self) -> str: ...
    @property
    def peer(self) -> str: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def around(self) -> Surroundings: ...
    def send_soon(self, message: Message) -> None: ...
