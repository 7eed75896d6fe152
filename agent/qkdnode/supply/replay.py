"""Answers to subscribers that missed events: from the vault's log, within the retention, each as far as it may know."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from qkdnode.access.topics import TopicRules, any_covers
from qkdnode.errors import VaultError
from qkdnode.supply.feed import Feed, label_of, pages_of
from qkdnode.vault.requests import CheckpointsAfter, LeavesAfter
from qkdnode.wire.events import (
    CHECKPOINT,
    MAX_REPLAY,
    MAX_REPLAY_BYTES,
    MAX_STATE_ROWS,
    MAX_TOPICS,
    Answer,
    Refused,
    Replay,
    Replayed,
    Request,
    Row,
    Snapshot,
    State,
)

NOTES = 256
READERS = 2  # answers made at the same time: each holds up to MAX_REPLAY entries


class NodeState(msgspec.Struct, frozen=True):
    """What a snapshot says beside the log. Rows of links have a `link`, so that each is shown to those who may know."""

    alarms: tuple[Row, ...] = ()
    links: tuple[Row, ...] = ()
    devices: tuple[Row, ...] = ()


class Retention(msgspec.Struct, frozen=True):
    """How much of the log is replayed: the newest `events` entries, of the last `hours`."""

    events: int
    hours: float


class Replays:
    """Answers requests of subscribers whose names are proven."""

    def __init__(
        self,
        rules: TopicRules,
        retention: Retention,
        *,
        ask: Callable[[Any], Awaitable[Any]],
        feed: Callable[[], Feed],
        state: Callable[[], NodeState],
        clock_ns: Callable[[], int],
    ) -> None:
        self._rules, self._retention = rules, retention
        self._ask, self._feed, self._state, self._clock_ns = ask, feed, state, clock_ns
        self._readers = asyncio.Semaphore(READERS)

    async def answer(self, name: str, request: Request) -> Answer:
        """The answer; a refusal says why, and names the rule."""
        if isinstance(request, Snapshot):
            return self._snapshot(name, request)
        for pattern in request.topics:
            decision = self._rules.decide(name, pattern)
            if not decision.allowed:
                return Refused(request.request, "denied", decision.rule)
        try:
            async with self._readers:
                return await self._replay(request)
        except VaultError:
            return Refused(request.request, "failed", "the vault cannot be read now: ask again later")

    def _snapshot(self, name: str, request: Snapshot) -> State:
        feed, state, may = self._feed(), self._state(), self._rules.may_have
        visible = tuple((topic, newest) for topic, newest in feed.sequences.items() if may(name, topic))
        return State(
            request.request,
            feed.stream,
            self._clock_ns(),
            feed.end,
            visible[-MAX_TOPICS:],
            feed.note if may(name, CHECKPOINT) else "",
            state.alarms[-MAX_STATE_ROWS:] if may(name, "alarm") else (),
            tuple(row for row in state.links if may(name, f"link.{row['link']}"))[-MAX_STATE_ROWS:],
            state.devices[-MAX_STATE_ROWS:] if may(name, "device") else (),
        )

    async def _replay(self, request: Replay) -> Answer:
        feed = self._feed()
        stream, head, sequences, newest = feed.stream, feed.end, dict(feed.sequences), feed.checkpoint_size
        if request.start > head:
            return Refused(
                request.request,
                "ahead",
                f"the log has {head} entries, but {request.start} were received before: the vault is another or older",
            )
        floor = max(0, head - self._retention.events)
        leaves = await self._read(request.start, head)
        if leaves and (request.start < floor or self._is_old(leaves[0][1])):
            return await self._refuse_old(request, max(request.start, floor), head)
        end = request.start + len(leaves)
        notes: tuple[tuple[int, int, str], ...] = ()
        more = False
        if any_covers(request.topics, CHECKPOINT):
            notes = await self._ask(CheckpointsAfter(size=request.checkpoint, limit=NOTES))
            more = len(notes) == NOTES
            if more:  # there may be more of them before the end: as far as these go
                end = max(request.start, min(end, notes[-1][1]))
            notes = tuple(note for note in notes if note[1] <= min(end, newest))
        chosen = [(leaf, label_of(leaf[1])) for leaf in leaves if leaf[0] < end]
        chosen = [(leaf, label) for leaf, label in chosen if any_covers(request.topics, label.topic)]
        pages = pages_of(stream, [leaf for leaf, _ in chosen], [label for _, label in chosen], notes)
        complete = end == head and not more
        wanted = [item for item in sequences.items() if complete and any_covers(request.topics, item[0])]
        return Replayed(request.request, request.start, end, tuple(pages), complete, tuple(wanted[-MAX_TOPICS:]))

    async def _read(self, start: int, head: int) -> list[tuple[int, str]]:
        """Entries from `start` on that are published, as many as an answer may hold."""
        leaves: list[tuple[int, str]] = []
        size = 0
        for position, leaf in await self._ask(LeavesAfter(position=start, limit=min(MAX_REPLAY, head - start))):
            size += len(leaf)
            if leaves and size > MAX_REPLAY_BYTES:
                break
            leaves.append((position, leaf))
        return leaves

    def _is_old(self, leaf: str) -> bool:
        return label_of(leaf).time_ns < self._clock_ns() - round(self._retention.hours * 3600e9)

    async def _refuse_old(self, request: Replay, low: int, head: int) -> Refused:
        """Find the oldest entry that is kept; the clock of entries is taken to rise."""
        high = head
        while low < high:
            middle = (low + high) // 2
            ((_, leaf),) = await self._ask(LeavesAfter(position=middle, limit=1))
            if self._is_old(leaf):
                low = middle + 1
            else:
                high = middle
        found = await self._ask(LeavesAfter(position=low, limit=1))
        time_ns = label_of(found[0][1]).time_ns if found else self._clock_ns()
        return Refused(
            request.request,
            "before_retention",
            f"position {request.start} is no longer replayed: the oldest kept is position {low}; take the snapshot",
            low,
            time_ns,
        )
