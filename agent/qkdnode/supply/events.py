"""Events to subscribers over ZeroMQ: published as they are journalled, replayed from the log to those that missed some.

What a subscriber has not read is lost on the wire at the high-water mark, and mended by a replay from disk: a slow one
costs no memory beyond its queue, and loses nothing within the retention.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Self

import msgspec

from qkdnode.access.allowlist import AllowList
from qkdnode.access.identities import Identity, fingerprint
from qkdnode.access.topics import TopicRules
from qkdnode.channel.identity import OwnIdentity
from qkdnode.channel.listener import Listener, Peer
from qkdnode.channel.publisher import Publisher
from qkdnode.channel.socket import Limits
from qkdnode.errors import ChannelError, RemoteProtocolError, VaultError
from qkdnode.supply.feed import Feed
from qkdnode.supply.replay import NodeState, Replays, Retention
from qkdnode.supply.throttle import Throttle
from qkdnode.vault.requests import CheckpointsAfter, LeavesAfter, LogHead, LogState
from qkdnode.wire.events import (
    MAX_REQUEST_BYTES,
    MAX_SUBSCRIPTION_BYTES,
    Head,
    Refused,
    Request,
    decode_request,
    encode,
    head_frame,
    pattern_of,
    topic_frame,
)

PUBLISH_DOMAIN, REPLAY_DOMAIN = "qkdnode.events", "qkdnode.replay"
PUBLISH_LIMITS = Limits(max_message_bytes=MAX_SUBSCRIPTION_BYTES, high_water=128)
REPLAY_LIMITS = Limits(max_message_bytes=MAX_REQUEST_BYTES, high_water=8)
READ = 1024  # entries of the log at once
CONNECTIONS_PER_SUBSCRIBER = 16  # for replay
WAITING_REQUESTS = 4  # of one connection
REQUESTS_BURST, REQUESTS_PER_S = 64, 50.0  # of one subscriber
BARRED_S = 60.0  # who was cut off may not come back sooner
MALFORMED_LIMIT = 64  # requests of one connection that make no sense; then it is not heard any more

Ask = Callable[[Any], Awaitable[Any]]
Details = dict[str, str | int | float | bool | None]
Record = Callable[[str, str, str, Details], Awaitable[None]]  # kind, subject, outcome, details


class EventStatistics(msgspec.Struct, kw_only=True):
    """Counts since the start."""

    published: int = 0  # entries of the log
    pages: int = 0
    heads: int = 0
    granted: int = 0  # subscriptions
    refused: int = 0
    refused_connections: int = 0
    cut: int = 0  # connections that subscribed without end
    replays: int = 0
    refused_replays: int = 0
    malformed: int = 0
    failed_reads: int = 0


class Asker:
    """One connection for replay: its requests are answered one by one."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.waiting: asyncio.Queue[Request] = asyncio.Queue(WAITING_REQUESTS)
        self.malformed = 0
        self.task: asyncio.Task[None] | None = None


class EventServer:
    """Publishes what the log gains from the start on, and replays what it holds, to each subscriber its topics.

    `ask` is the vault; `state` gives what a snapshot says beside the log; `record` journals access events; `failed` is
    told when the log cannot be read; `grew` is to be called when it may have grown. Entries gather for `pace_s`.
    """

    def __init__(
        self,
        node: OwnIdentity,
        subscribers: AllowList[Identity],
        rules: TopicRules,
        retention: Retention,
        *,
        ask: Ask,
        state: Callable[[], NodeState],
        record: Record,
        failed: Callable[[VaultError], None],
        clock_ns: Callable[[], int],
        heartbeat_s: float = 1.0,
        pace_s: float = 0.02,
        publish_limits: Limits = PUBLISH_LIMITS,
        replay_limits: Limits = REPLAY_LIMITS,
    ) -> None:
        self._node, self._subscribers, self._rules = node, subscribers, rules
        self._ask, self._record, self._failed = ask, record, failed
        self._heartbeat_s, self._pace_s = heartbeat_s, pace_s
        self._publish_limits, self._replay_limits = publish_limits, replay_limits
        self._replays = Replays(rules, retention, ask=ask, feed=self._published, state=state, clock_ns=clock_ns)
        self._feed: Feed | None = None
        self._publisher: Publisher | None = None
        self._listener: Listener | None = None
        self._askers: dict[bytes, Asker] = {}
        self._heard: set[str] = set()  # subscribers that have asked for their Heads
        self._barred: dict[str, float] = {}
        self._rates = Throttle(burst=REQUESTS_BURST, per_s=REQUESTS_PER_S)
        self._throttle = Throttle(burst=10, per_s=0.1)
        self._statistics = EventStatistics()
        self._grew = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def endpoints(self) -> tuple[str, str]:
        """Where it publishes and where it replays, the ports in place of `*`."""
        if self._publisher is None or self._listener is None:
            raise ChannelError("the publishing of events is not started")
        return self._publisher.endpoint, self._listener.endpoint

    @property
    def grew(self) -> Callable[[], None]:
        """To be called in the loop when the log may have grown."""
        return self._grew.set

    def statistics(self) -> EventStatistics:
        """A copy of the counts."""
        return msgspec.structs.replace(self._statistics)

    async def start(self, publish: str, replay: str) -> None:
        """Listen on both endpoints and follow the log from its present end. ChannelError if one cannot be had."""
        state: LogState = await self._ask(LogHead())
        self._feed = Feed(os.urandom(16), state)
        self._publisher = Publisher(
            publish,
            self._node.curve,
            self._publish_limits,
            domain=PUBLISH_DOMAIN,
            admit=self._admit,
            wanted=self._wanted,
            refused=self._refuse_connection,
            cut=self._cut,
        )
        try:
            self._listener = Listener(
                replay,
                self._node.curve,
                self._replay_limits,
                domain=REPLAY_DOMAIN,
                admit=self._admit,
                joined=self._join,
                left=self._leave,
                received=self._receive,
                refused=self._refuse_connection,
                malformed=self._count_malformed,
            )
        except ChannelError:
            await self._publisher.close()
            self._publisher = None
            raise
        self._follower = asyncio.create_task(self._follow(), name="events")

    async def close(self) -> None:
        """Publish what the log holds by now, and stop."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
            self._follower = None
            with suppress(VaultError):
                await self._advance()
        for asker in list(self._askers.values()):
            self._leave(asker.peer)
        while self._errands:
            await asyncio.gather(*self._errands, return_exceptions=True)
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        if self._publisher is not None:
            await self._publisher.close()
            self._publisher = None

    # Publishing

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            self._grew.clear()
            try:
                while await self._advance():
                    pass
            except VaultError as error:
                self._statistics.failed_reads += 1
                self._failed(error)
                await asyncio.sleep(self._heartbeat_s)
            if clock() >= due:
                self._beat()
                due = clock() + self._heartbeat_s
            await asyncio.sleep(self._pace_s)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._grew.wait()

    async def _advance(self) -> bool:
        """Publish the next entries of the log; whether there may be more."""
        feed, publisher = self._published(), self._publisher
        assert publisher is not None
        leaves, notes = await asyncio.gather(
            self._ask(LeavesAfter(position=feed.end, limit=READ)),
            self._ask(CheckpointsAfter(size=feed.checkpoint_size)),
        )
        step = feed.advance(leaves, notes)
        for page in step.pages:
            publisher.send(topic_frame(page.topic), encode(page))
        self._statistics.pages += len(step.pages)
        self._statistics.published += step.end - step.start
        if step.pages:
            for name in self._heard:
                self._send_head(name, feed.head(step.start, step.sequences, partial(self._rules.may_have, name)))
        return len(leaves) == READ

    def _beat(self) -> None:
        feed = self._published()
        for name in self._heard:
            self._send_head(name, feed.head(feed.end, feed.sequences, partial(self._rules.may_have, name)))

    def _send_head(self, name: str, head: Head) -> None:
        assert self._publisher is not None
        self._publisher.send(head_frame(name), encode(head))
        self._statistics.heads += 1

    def _published(self) -> Feed:
        assert self._feed is not None
        return self._feed

    # Subscriptions

    def _admit(self, curve: str) -> str | None:
        identity = self._subscribers.decide(curve).identity
        if identity is None or self._barred.get(identity.name, 0.0) > asyncio.get_running_loop().time():
            return None
        return identity.name

    def _wanted(self, name: str, prefix: bytes) -> bool:
        if prefix == head_frame(name):
            self._heard.add(name)
            return True
        pattern = pattern_of(prefix)
        if pattern is None:
            self._statistics.refused += 1
            self._note("subscribe", name, "refused", {"rule": f"subscriber {name}: no pattern of topics"})
            return False
        decision = self._rules.decide(name, pattern)
        outcome = "granted" if decision.allowed else "refused"
        self._statistics.granted += decision.allowed
        self._statistics.refused += not decision.allowed
        self._note("subscribe", name, outcome, {"topics": pattern, "rule": decision.rule})
        return decision.allowed

    def _cut(self, name: str) -> None:
        self._statistics.cut += 1
        self._barred[name] = asyncio.get_running_loop().time() + BARRED_S
        self._note("subscribe", name, "cut_off", {"reason": "subscriptions without end", "barred_s": BARRED_S})

    def _refuse_connection(self, reason: str) -> None:
        self._statistics.refused_connections += 1
        self._note("connect", "unknown", "refused", {"reason": reason, "to": "events"})

    # Replay

    def _join(self, peer: Peer) -> None:
        present = sum(asker.peer.user == peer.user for asker in self._askers.values())
        if present >= CONNECTIONS_PER_SUBSCRIBER:
            self._note("connect", peer.user, "refused", {"reason": f"{present} connections are up already"})
            return
        asker = self._askers[peer.route] = Asker(peer)
        asker.task = self._run(self._serve(asker))

    def _leave(self, peer: Peer) -> None:
        asker = self._askers.pop(peer.route, None)
        if asker is not None and asker.task is not None:
            asker.task.cancel()

    def _receive(self, peer: Peer, frame: bytes) -> None:
        asker = self._askers.get(peer.route)
        if asker is None or asker.malformed >= MALFORMED_LIMIT:
            self._count_malformed()
            return
        try:
            request = decode_request(frame)
        except RemoteProtocolError as error:
            self._count_malformed()
            asker.malformed += 1
            self._note("replay", peer.user, "malformed", {"reason": str(error)[:200]})
            self._send(asker, Refused(0, "malformed", str(error)[:512]))
            return
        try:
            asker.waiting.put_nowait(request)
        except asyncio.QueueFull:
            self._statistics.refused_replays += 1
            self._send(asker, Refused(request.request, "busy", f"{WAITING_REQUESTS} requests wait already"))

    async def _serve(self, asker: Asker) -> None:
        name, clock = asker.peer.user, asyncio.get_running_loop().time
        while True:
            request = await asker.waiting.get()
            while self._rates.take(name, clock()) is None:
                await asyncio.sleep(1 / REQUESTS_PER_S)
            answer = await self._replays.answer(name, request)
            self._statistics.replays += 1
            if isinstance(answer, Refused):
                self._statistics.refused_replays += 1
                self._note("replay", name, answer.code, {"reason": answer.reason[:200]})
            while not self._send(asker, answer):
                await asyncio.sleep(1 / REQUESTS_PER_S)

    def _send(self, asker: Asker, answer: Any) -> bool:
        """Whether it is on its way, or nobody is there any more."""
        if self._listener is None or self._askers.get(asker.peer.route) is not asker:
            return True
        try:
            return self._listener.send(asker.peer, encode(answer))
        except ChannelError:
            return True

    def _count_malformed(self) -> None:
        self._statistics.malformed += 1

    # Journal

    def _note(self, kind: str, subject: str, outcome: str, details: Details) -> None:
        """Journal an access event; a subscriber can cause them at will, so they are limited and the rest counted."""
        left_out = self._throttle.take(f"{kind} {subject} {outcome}", asyncio.get_running_loop().time())
        if left_out is not None:
            known = self._subscribers.named(subject)
            who: Details = {
                "fingerprint": fingerprint(known) if known else "unknown",
                "source": self._source_of(subject),
            }
            self._run(self._journal(kind, subject, outcome, {**details, **who, "left_out_before": left_out}))

    def _source_of(self, name: str) -> str:
        """Where a subscriber asks from."""
        asking = (asker.peer.address for asker in self._askers.values() if asker.peer.user == name)
        subscribed = "unknown" if self._publisher is None else self._publisher.sources.get(name, "unknown")
        return next(asking, subscribed)

    async def _journal(self, kind: str, subject: str, outcome: str, details: Details) -> None:
        with suppress(VaultError):
            await self._record(kind, subject, outcome, details)

    def _run(self, errand: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
        return task
