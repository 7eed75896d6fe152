"""What the node gives to its control socket: callables, no adapter's types."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from qkdnode.access.approvals import Person
from qkdnode.ids import Association
from qkdnode.vault.requests import PolicyVersion
from qkdnode.wire.control import (
    AlgorithmList,
    Asset,
    ClockStatus,
    ComparisonEntry,
    DeviceStatus,
    LinkStatus,
    NodeStatus,
    PolicyApply,
    Reloaded,
)


class Supplied(msgspec.Struct, frozen=True):
    """How an association is supplied now. None: the application is not connected."""

    link_state: str
    connected: bool  # to the neighbour
    size_bits: int | None
    credit_here: int | None
    credit_there: int | None


class NodePort(msgspec.Struct, frozen=True):
    """The node's own part of every answer. `by` is the operator who asks. Each raises a QkdnodeError that says why not.

    Those that change something tell whether they did: to pause a paused link is no error.
    """

    status: Callable[[], Awaitable[NodeStatus]]
    links: Callable[[], Awaitable[tuple[LinkStatus, ...]]]
    devices: Callable[[], Awaitable[tuple[DeviceStatus, ...]]]
    alarms: Callable[
        [bool], Awaitable[tuple[dict[str, Any], ...]]
    ]  # oldest first; confidential ones too?; plain values
    decoy: Callable[[str, str], None]  # who has asked for one, and how
    acknowledge: Callable[[str, str, str], Awaitable[bool]]  # code, subject, by
    revoked: Callable[[tuple[str, ...]], None]  # keys were; on these links all of a scope: neighbours are told at once
    rotated: Callable[[], None]  # rotations were begun or given up: neighbours are told
    demand_cut: Callable[[str], None]  # ControlError if this link is up, or there is none of the name
    people: Callable[[], tuple[Person, ...]]  # who may approve
    supplied: Callable[[Association], Supplied]
    pause: Callable[[str, str], Awaitable[bool]]  # link, by
    resume: Callable[[str, str], Awaitable[bool]]  # link, by
    shutdown: Callable[[str], Awaitable[bool]]  # by; the stop begins after this returns
    reload: Callable[[str], Awaitable[Reloaded]]  # by
    apply_policy: Callable[[PolicyApply, str], Awaitable[PolicyVersion]]  # by
    assets: Callable[[], Awaitable[tuple[tuple[Asset, ...], tuple[str, ...]]]]  # and tables that fit none of them
    algorithms: Callable[[], Awaitable[AlgorithmList]]
    compared: Callable[[str | None], Awaitable[tuple[ComparisonEntry, ...]]]  # of one link, or of each
    compare: Callable[[str | None], Awaitable[None]]  # begin to
    clock: Callable[[], ClockStatus]
    confirm_clock: Callable[[int], ClockStatus]  # up to this time
