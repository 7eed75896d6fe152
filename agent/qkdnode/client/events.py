"""A node's events for asyncio: `async with Events(...) as events: async for item in events: ...`."""

import asyncio
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import msgspec

from qkdnode.channel.dialler import Dialler
from qkdnode.channel.identity import load_identity, load_public_node
from qkdnode.channel.receiver import Receiver
from qkdnode.channel.socket import Limits
from qkdnode.client.order import EventOrder, Failure, Item, Outcome, Transmit
from qkdnode.config import TopicPattern
from qkdnode.errors import AccessDeniedError, ConfigError, QkdnodeError, SupplyError
from qkdnode.wire.events import (
    MAX_ANSWER_BYTES,
    MAX_PATTERNS,
    MAX_PUBLISHED_BYTES,
    State,
    head_frame,
    subscription,
)

PUBLISHED_LIMITS = Limits(max_message_bytes=MAX_PUBLISHED_BYTES, high_water=128)
ANSWER_LIMITS = Limits(max_message_bytes=MAX_ANSWER_BYTES, high_water=8)
TICK_S = 0.25
QUEUE_HIGH, QUEUE_LOW = 4096, 512  # items not taken: above, nothing more is released until below
UNPROVEN_LIMIT = 3  # handshakes in a row that the node did not finish


class EventsStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the start."""

    items: int  # handed over
    waiting: int
    repaired: int  # answers of the replay that were used
    repeated: int  # entries that came again, and were left out
    discarded: int  # frames that were not used
    connected: bool


class Events:
    """Events of a node in the order of its audit log, each once, as they happen; what the wire lost is fetched again.

    Items are `Occurrence`s, `SignedCheckpoint`s if `topics` cover `checkpoint`, and a `Missed` where the node's
    retention has passed. `after` is the position of the last event known, -1 for all that is kept, None to begin with
    what happens now. `topics` are names, families (`link.*`) or `*`. AccessDeniedError if the node does not know the
    identity or refuses a topic, with the name of its rule; SupplyError if it does not prove to be the node of the
    .public file, or its log is not the one that `after` is from; AuditError if its log is not what it claims.
    """

    def __init__(
        self,
        identity: Path | str,
        node: Path | str,
        *,
        publish: str,
        replay: str,
        topics: Iterable[str],
        after: int | None = None,
        published_limits: Limits = PUBLISHED_LIMITS,
    ) -> None:
        self._topics = tuple(dict.fromkeys(topics))
        if not 1 <= len(self._topics) <= MAX_PATTERNS:
            raise ConfigError(f"{len(self._topics)} topics are asked for: give 1 to {MAX_PATTERNS}")
        for topic in self._topics:
            try:
                msgspec.convert(topic, TopicPattern)
            except msgspec.ValidationError:
                raise ConfigError(f"{topic!r} is no topic: give a name, a family such as `link.*`, or `*`") from None
        if after is not None and not -1 <= after < 2**63 - 1:
            raise ConfigError(f"`after` is {after}: give the position of an event, -1, or None")
        self._publish, self._replay, self._published_limits = publish, replay, published_limits
        self._node = load_public_node(node)
        self._identity = load_identity(identity)
        self._order = EventOrder(self._node.name, self._node.log_key, self._topics, after)
        self._items: deque[Item] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._receiver: Receiver | None = None
        self._dialler: Dialler | None = None
        self._clock: asyncio.Task[None] | None = None
        self._failure: QkdnodeError | None = None
        self._taken = self._malformed = self._unproven = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        item = await self._next(known=False)
        if item is None:
            raise StopAsyncIteration
        return item

    async def next_known(self) -> Item | None:
        """The next item, or None once all that the node has published up to now is handed over."""
        return await self._next(known=True)

    async def _next(self, *, known: bool) -> Item | None:
        while not self._items:
            if self._failure is not None:
                raise self._failure
            if self._closed or (known and self._order.up_to_date):
                return None
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        item = self._items.popleft()
        self._taken += 1
        if self._order.congested and len(self._items) <= QUEUE_LOW:
            self._order.congested = False
            self._apply(self._order.tick(self._now()))
        return item

    @property
    def snapshot(self) -> State | None:
        """How things stood when `after` was None, or at the last Missed."""
        return self._order.snapshot

    def statistics(self) -> EventsStatistics:
        """The counts now."""
        return EventsStatistics(
            items=self._taken,
            waiting=len(self._items),
            repaired=self._order.repaired,
            repeated=self._order.repeated,
            discarded=self._order.discarded + self._malformed,
            connected=self._dialler is not None and self._dialler.connected,
        )

    def start(self) -> None:
        """Begin to connect; must run in the event loop."""
        if self._receiver is not None:
            return
        name, keys, server = self._identity.name, self._identity.curve, self._node.curve
        self._receiver = Receiver(
            self._publish,
            keys,
            server,
            self._published_limits,
            prefixes=[*map(subscription, self._topics), head_frame(name)],
            received=lambda first, body: self._apply(self._order.published(first, body, self._now())),
            malformed=self._count_malformed,
        )
        self._dialler = Dialler(
            self._replay,
            keys,
            server,
            ANSWER_LIMITS,
            joined=self._join,
            left=self._order.disconnect,
            received=lambda frame: self._apply(self._order.answered(frame, self._now())),
            failed=self._fail_handshake,
            malformed=self._count_malformed,
        )
        self._clock = asyncio.create_task(self._tick())

    async def close(self) -> None:
        """Leave. Items that were not taken are dropped: `after` brings them again."""
        if self._closed:
            return
        self._closed = True
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.gather(self._clock, return_exceptions=True)
        for socket in (self._receiver, self._dialler):
            if socket is not None:
                await socket.close()
        self._identity.release()
        self._items.clear()
        self._wake()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _join(self) -> None:
        self._unproven = 0
        self._apply(self._order.connect(self._now()))

    def _fail_handshake(self, how: str) -> None:
        node, name = self._node.name, self._identity.name
        if how == "refused":
            self._fail(
                AccessDeniedError(f"node {node} at {self._replay} lets {name} have no events: make it a `subscriber`")
            )
            return
        self._unproven += 1
        if self._unproven >= UNPROVEN_LIMIT:
            self._fail(
                SupplyError(
                    f"nobody at {self._replay} proves to be node {node}: check the endpoint, and that the .public file "
                    "is the one of that node's present identity"
                )
            )

    def _apply(self, outcomes: list[Outcome]) -> None:
        if self._closed or self._failure is not None:
            return
        for outcome in outcomes:
            match outcome:
                case Transmit(frame):
                    if self._dialler is not None and self._dialler.connected:
                        self._dialler.send(frame)  # what does not fit is asked for again
                case Failure(error):
                    self._fail(error)
                case _:
                    self._items.append(outcome)
        self._order.congested = self._order.congested or len(self._items) >= QUEUE_HIGH
        if self._items or self._order.up_to_date:
            self._wake()

    def _fail(self, failure: QkdnodeError) -> None:
        self._failure = failure
        self._wake()

    def _count_malformed(self) -> None:
        self._malformed += 1

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._apply(self._order.tick(self._now()))
