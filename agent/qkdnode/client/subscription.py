"""Subscriptions for asyncio and for plain threads."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from qkdnode.channel.dialler import Dialler
from qkdnode.channel.identity import load_identity, load_public_node
from qkdnode.channel.socket import Limits
from qkdnode.client.subscriber import GenerationChange, KeyArrived, Outcome, Refusal, Subscriber, Transmit
from qkdnode.errors import AccessDeniedError, ConfigError, QkdnodeError, SupplyError
from qkdnode.ids import Association, KeyId
from qkdnode.native.secret import SecretBuffer
from qkdnode.wire.supply import MAX_CREDIT, MAX_KEY_BITS, MAX_SUPPLY_BYTES

LIMITS = Limits(max_message_bytes=MAX_SUPPLY_BYTES, high_water=2 * MAX_CREDIT)
TICK_S = 0.25
FLUSH_S = 0.02  # acknowledgements of keys that came singly wait so long for others
UNPROVEN_LIMIT = 3  # handshakes in a row that the node did not finish

Result = TypeVar("Result")


class NoKeyError(SupplyError, TimeoutError):
    """No key came within the timeout."""

    code = "NO_KEY"


class SubscriptionStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the subscription was made."""

    keys: int  # handed to the application
    repeated: int  # arrived again, and were kept back
    waiting: int  # arrived, not yet asked for
    connections: int
    sessions: int
    discarded: int  # frames that were not used
    connected: bool
    subscribed: bool


class Key:
    """A key that the remote application holds too, under the same `id`.

    `material` is the application's: `release` it, or use the key as a context manager, which wipes it at the end.
    """

    def __init__(self, arrived: KeyArrived, acknowledge: Callable[[KeyId], None]) -> None:
        self.id = arrived.key_id
        self.association: Association = arrived.association
        self.size_bits = arrived.size_bits
        self.key_class = arrived.key_class
        self.generation = arrived.generation
        self.material: SecretBuffer = arrived.material
        self._acknowledge = acknowledge
        self._acknowledged = False

    def acknowledge(self) -> None:
        """Tell the node that the key arrived and need not be sent again. Harmless when repeated."""
        if not self._acknowledged:
            self._acknowledged = True
            self._acknowledge(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.material.release()

    def __repr__(self) -> str:
        return f"<Key {self.id} of {self.size_bits} bits, {self.association}>"


class AsyncSubscription:
    """Keys as they come, in an event loop: `async with AsyncSubscription(...) as keys: async for key in keys: ...`.

    `timeout` seconds without a key is a NoKeyError; None waits for ever. AccessDeniedError if the node refuses;
    SupplyError if it does not prove to be the node of the .public file.

    `on_generation` is called in the event loop with what becomes of generations of keys. An offer is accepted when it
    returns; if it raises, the node offers it again.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        identity: Path | str,
        node: Path | str,
        remote: str,
        link: str,
        size_bits: int = 256,
        credit: int = 64,
        timeout: float | None = None,
        limits: Limits = LIMITS,
        on_generation: Callable[[GenerationChange], None] = lambda change: None,
    ) -> None:
        if not 8 <= size_bits <= MAX_KEY_BITS or size_bits % 8:
            raise ConfigError(f"`size_bits` is {size_bits}: give a multiple of 8 from 8 to {MAX_KEY_BITS}")
        if not 1 <= credit <= MAX_CREDIT:
            raise ConfigError(f"`credit` is {credit}: give 1 to {MAX_CREDIT}")
        self._endpoint, self._timeout, self._credit, self._limits = endpoint, timeout, credit, limits
        self._on_generation = on_generation
        self._node = load_public_node(node)
        self._identity = load_identity(identity)
        self._subscriber = Subscriber(
            self._identity, self._node, remote=remote, link=link, size_bits=size_bits, credit=credit
        )
        self._arrived: deque[Key] = deque()
        self._last: Key | None = None
        self._unsaid: deque[KeyId] = deque()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._dialler: Dialler | None = None
        self._clock: asyncio.Task[None] | None = None
        self._failure: QkdnodeError | None = None
        self._trouble = "the connection is not made yet"
        self._unproven = self._keys = self._connections = self._malformed = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Key:
        if self._closed:
            raise StopAsyncIteration
        return await self.next()

    def start(self) -> None:
        """Begin to connect; must run in the event loop."""
        if self._dialler is None:
            self._dialler = Dialler(
                self._endpoint,
                self._identity.curve,
                self._node.curve,
                self._limits,
                joined=self._join,
                left=self._leave,
                received=lambda frame: self._apply(self._subscriber.receive(frame, time.monotonic())),
                failed=self._fail_handshake,
                malformed=self._count_malformed,
            )
            self._clock = asyncio.create_task(self._tick())

    async def next(self, timeout: float | None = None) -> Key:
        """Acknowledge the last key and wait for the next; `timeout` in seconds replaces the subscription's."""
        if self._last is not None:
            self._last.acknowledge()
            self._last = None
        await self.wait(timeout)
        self._last = self._arrived.popleft()
        self._keys += 1
        return self._last

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until a key is there."""
        if self._arrived:
            return
        self._flush()
        timeout = self._timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(timeout):
                while not self._arrived:
                    self._raise_failure()
                    self._waiting = asyncio.get_running_loop().create_future()
                    await self._waiting
        except TimeoutError:
            raise NoKeyError(f"no key from {self._endpoint} within {timeout:g} s: {self._state()}") from None

    def take(self) -> list[Key]:
        """All keys that are there; each is to be acknowledged by its own method."""
        keys = list(self._arrived)
        self._arrived.clear()
        self._keys += len(keys)
        return keys

    def statistics(self) -> SubscriptionStatistics:
        """The counts now."""
        machine = self._subscriber
        return SubscriptionStatistics(
            keys=self._keys,
            repeated=machine.repeated,
            waiting=len(self._arrived),
            connections=self._connections,
            sessions=machine.sessions,
            discarded=machine.discarded + self._malformed,
            connected=self._dialler is not None and self._dialler.connected,
            subscribed=machine.subscribed,
        )

    async def close(self) -> None:
        """Send the acknowledgements made so far, leave, and wipe keys that were not asked for."""
        if self._closed:
            return
        self._closed = True
        self._flush()
        self._apply(self._subscriber.unsubscribe(time.monotonic()))
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.gather(self._clock, return_exceptions=True)
        if self._dialler is not None:
            await self._dialler.close()
        self._subscriber.disconnect()
        self._identity.release()
        for key in self._arrived:
            key.material.release()
        self._arrived.clear()
        self._wake()

    def acknowledge(self, key_id: KeyId) -> None:
        """Acknowledge a key by its id; must run in the event loop."""
        self._unsaid.append(key_id)
        if len(self._unsaid) * 4 >= self._credit:
            self._flush()
        elif self._flush_timer is None and not self._closed:
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._unsaid:
            said = list(self._unsaid)
            self._unsaid.clear()
            self._apply(self._subscriber.acknowledge(said, time.monotonic()))

    def _join(self) -> None:
        self._connections += 1
        self._unproven = 0
        self._apply(self._subscriber.connect(time.monotonic()))

    def _leave(self) -> None:
        self._trouble = "the connection was lost and is not back yet"
        self._subscriber.disconnect()

    def _count_malformed(self) -> None:
        self._malformed += 1

    def _fail_handshake(self, how: str) -> None:
        node, name = self._node.name, self._identity.name
        if how == "refused":
            self._fail(
                AccessDeniedError(f"node {node} at {self._endpoint} does not know {name}: give it {name}.public")
            )
            return
        self._unproven += 1
        self._trouble = f"nobody at {self._endpoint} proves to be node {node}"
        if self._unproven >= UNPROVEN_LIMIT:
            self._fail(
                SupplyError(
                    f"nobody at {self._endpoint} proves to be node {node}: check the endpoint, and that the .public "
                    "file is the one of that node's present identity"
                )
            )

    def _apply(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Transmit(frame):
                    self._send(frame)
                case KeyArrived():
                    self._arrived.append(Key(outcome, self.acknowledge))
                    self._wake()
                case GenerationChange():
                    self._change(outcome)
                case Refusal(reason):
                    self._fail(AccessDeniedError(f"node {self._node.name} refuses {self._identity.name}: {reason}"))

    def _change(self, change: GenerationChange) -> None:
        try:
            self._on_generation(change)
        except Exception as error:
            self._subscriber.hesitate()
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "on_generation failed", "exception": error})
            return
        if change.what == "offered":
            self._apply(self._subscriber.accept(change.number, time.monotonic()))

    def _send(self, frame: bytes) -> None:
        if self._dialler is not None and self._dialler.connected:
            # What does not fit is said again when the node repeats itself.
            self._dialler.send(frame)

    def _fail(self, failure: QkdnodeError) -> None:
        self._failure = failure
        self._wake()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise SupplyError(f"the subscription at {self._endpoint} is closed")
        if self._dialler is None:
            raise SupplyError("the subscription is not started: use it in a `with` statement")

    def _state(self) -> str:
        if self._dialler is None or not self._dialler.connected:
            return self._trouble
        if not self._subscriber.subscribed:
            return self._subscriber.failure or "connected, but the node has not granted the subscription yet"
        return "subscribed, but the node has none to send"

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._apply(self._subscriber.tick(time.monotonic()))


class Subscription:
    """Keys as they come, for code without an event loop; one runs in a thread of its own. Use from one thread.

    `for key in subscription` ends only by an error or after `close`.
    """

    def __init__(self, subscription: AsyncSubscription) -> None:
        self._inner = subscription
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qkdnode subscription", daemon=True)
        self._taken: deque[Key] = deque()
        self._done: deque[KeyId] = deque()
        self._last: Key | None = None
        self._closed = False
        self._thread.start()
        try:
            self._call(self._start())
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Key:
        if self._closed:
            raise StopIteration
        return self.next()

    def next(self, timeout: float | None = None) -> Key:
        """Acknowledge the last key and wait for the next; `timeout` in seconds replaces the subscription's."""
        if self._closed:
            raise SupplyError("the subscription is closed")
        if self._last is not None:
            self._last.acknowledge()
            self._last = None
        if not self._taken:
            self._call(self._fetch(timeout))
        self._last = self._taken.popleft()
        return self._last

    def statistics(self) -> SubscriptionStatistics:
        """The counts now."""
        return self._inner.statistics()

    def close(self) -> None:
        """Send the acknowledgements made so far, leave, and wipe keys that were not asked for."""
        if self._closed:
            return
        self._closed = True
        for key in self._taken:
            key.material.release()
        self._taken.clear()
        try:
            self._call(self._inner.close())
        finally:
            self._stop()

    async def _start(self) -> None:
        self._inner.start()

    async def _fetch(self, timeout: float | None) -> None:
        await self._inner.wait(timeout)
        keys = self._inner.take()
        for key in keys:
            key._acknowledge = self._acknowledge
        self._taken.extend(keys)

    def _acknowledge(self, key_id: KeyId) -> None:
        # Called in the user's thread; one wake-up of the loop serves all that gather before it runs.
        self._done.append(key_id)
        if len(self._done) == 1 and not self._closed:
            self._loop.call_soon_threadsafe(self._say_done)

    def _say_done(self) -> None:
        while self._done:
            self._inner.acknowledge(self._done.popleft())

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        # Not by a future between threads: what a signal handler raises here, such as KeyboardInterrupt, can leave its
        # lock held for ever, and with it the loop. A SimpleQueue is one call into C.
        begun: list[asyncio.Task[Result]] = []
        ended: SimpleQueue[asyncio.Task[Result]] = SimpleQueue()

        def begin() -> None:
            begun.append(self._loop.create_task(work))
            begun[0].add_done_callback(ended.put)

        self._loop.call_soon_threadsafe(begin)
        try:
            task = ended.get()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: begun[0].cancel())
            raise
        return task.result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def subscribe(
    endpoint: str,
    *,
    identity: Path | str,
    node: Path | str,
    remote: str,
    link: str,
    size_bits: int = 256,
    credit: int = 64,
    timeout: float | None = None,
    on_generation: Callable[[GenerationChange], None] = lambda change: None,
) -> Subscription:
    """Subscribe to keys shared with the application `remote` by way of `link`; see the package's example.

    At most `credit` keys are sent ahead of their acknowledgement. `on_generation` and the errors are those of
    AsyncSubscription; it is called in the thread of the subscription.
    """
    return Subscription(
        AsyncSubscription(
            endpoint,
            identity=identity,
            node=node,
            remote=remote,
            link=link,
            size_bits=size_bits,
            credit=credit,
            timeout=timeout,
            on_generation=on_generation,
        )
    )
