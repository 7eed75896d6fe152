"""Subscriptions for asyncio and for plain threads."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from qkdnode.channel.dialler import Dialler
from qkdnode.channel.identity import load_identity, load_public_node
from qkdnode.channel.socket import Limits
from qkdnode.client.subscriber import (
    GenerationChange,
    KeyArrived,
    KeyNotFetched,
    KeysOutOfUse,
    Outcome,
    Refusal,
    Subscriber,
    Transmit,
)
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


class KeyRefusedError(SupplyError):
    """The node has no key for this application under an id: there is none, not yet, no more, or it is not for it."""

    code = "KEY_REFUSED"


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

    def acknowledge_by(self, acknowledge: Callable[[KeyId], None]) -> None:
        """Have acknowledgements go another way."""
        self._acknowledge = acknowledge

    def __repr__(self) -> str:
        return f"<Key {self.id} of {self.size_bits} bits, {self.association}>"


class EndedKeys(msgspec.Struct, frozen=True):
    """Keys that this application has and is to use no more: what became of them at the node, and why."""

    association: Association
    key_ids: tuple[KeyId, ...]
    stage: str  # "compromised": hold what they protect as known; "deactivated", "destroyed": protect nothing new
    reason: str


class AsyncSubscription:
    """Keys as they come, in an event loop: `async with AsyncSubscription(...) as keys: async for key in keys: ...`.

    `timeout` seconds without a key is a NoKeyError; None waits for ever. AccessDeniedError if the node refuses;
    SupplyError if it does not prove to be the node of the .public file. Without `pushed` only keys come that are
    fetched by their ids. `on_ended` is called, in the loop, with keys that are out of use since they were given; once
    it returns the node tells them no more. Without it they stay to be told to whoever comes after.

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
        pushed: bool = True,
        on_ended: Callable[[EndedKeys], None] | None = None,
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
            self._identity, self._node, remote=remote, link=link, size_bits=size_bits, credit=credit, pushed=pushed
        )
        self._arrived: deque[Key] = deque()
        self._on_ended = on_ended
        self._fetching: dict[KeyId, asyncio.Future[Key | None]] = {}
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

    async def fetch(self, key_id: KeyId, timeout: float | None = None) -> Key:
        """The key of an id, which the far end has told; `timeout` as in `next`. It is acknowledged by its own method.

        KeyRefusedError if the node has none for this application, whatever the reason; NoKeyError after the timeout.
        """
        keys, _ = await self.fetch_some([key_id], timeout)
        if not keys:
            raise KeyRefusedError(
                f"node {self._node.name} has no key {key_id} for {self._identity.name}: there is none, not yet, or no "
                "more, or it is not for this application and size"
            )
        return keys[0]

    async def fetch_some(self, key_ids: Iterable[KeyId], timeout: float | None = None) -> tuple[list[Key], list[KeyId]]:
        """The keys of some ids, and the ids that the node refuses; `timeout` as in `next`."""
        self._raise_failure()
        wanted = list(dict.fromkeys(key_ids))
        found = {key.id: key for key in self._arrived if key.id in wanted}
        self._arrived = deque(key for key in self._arrived if key.id not in found)
        left = [key_id for key_id in wanted if key_id not in found]
        try:
            for key_id in left:
                if key_id in self._fetching or self._subscriber.holds(key_id):
                    raise SupplyError(f"key {key_id} is asked for already, or was given to this program")
            found |= await self._fetch(left, self._timeout if timeout is None else timeout)
        except BaseException:
            self._arrived.extend(found.values())
            raise
        self._keys += len(found)
        keys = [found[key_id] for key_id in wanted if key_id in found]
        return keys, [key_id for key_id in wanted if key_id not in found]

    async def _fetch(self, key_ids: list[KeyId], timeout: float | None) -> dict[KeyId, Key]:
        waiting = {key_id: asyncio.get_running_loop().create_future() for key_id in key_ids}
        self._fetching |= waiting
        self._flush()
        self._apply(self._subscriber.fetch(key_ids, time.monotonic()))
        try:
            async with asyncio.timeout(timeout):
                keys = await asyncio.gather(*waiting.values())
        except BaseException as error:
            for one in waiting.values():  # what has come all the same is given later
                if one.done() and not one.cancelled() and one.exception() is None and one.result() is not None:
                    self._arrived.append(one.result())
            if isinstance(error, TimeoutError):
                text = f"{len(key_ids)} keys asked for by id at {self._endpoint} are not answered within {timeout:g} s"
                raise NoKeyError(f"{text}: {self._state()}") from None
            raise
        finally:
            self._subscriber.give_up(key_ids)
            for key_id in key_ids:
                self._fetching.pop(key_id, None)
        return {key.id: key for key in keys if key is not None}

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
        self._end_fetches(SupplyError(f"the subscription at {self._endpoint} is closed"))
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
                    self._give(Key(outcome, self.acknowledge))
                case KeysOutOfUse():
                    self._end_keys(outcome)
                case KeyNotFetched(key_id):
                    if (asked := self._fetching.get(key_id)) is not None and not asked.done():
                        asked.set_result(None)
                case GenerationChange():
                    self._change(outcome)
                case Refusal(reason):
                    self._fail(AccessDeniedError(f"node {self._node.name} refuses {self._identity.name}: {reason}"))

    def _end_keys(self, ended: KeysOutOfUse) -> None:
        """Hand out none of these that waits here, and tell the program."""
        for key in [key for key in self._arrived if key.id in ended.key_ids]:
            self._arrived.remove(key)
            key.material.release()
        if self._on_ended is None:
            return
        try:
            self._on_ended(EndedKeys(ended.association, ended.key_ids, ended.stage, ended.reason))
        except Exception as error:
            failure = SupplyError(f"`on_ended` failed with {error!r}: the node tells of these keys again")
            failure.__cause__ = error
            self._fail(failure)
            return
        self._apply(self._subscriber.noted(ended.notice, time.monotonic()))

    def _give(self, key: Key) -> None:
        asked = self._fetching.get(key.id)
        if asked is not None and not asked.done():
            asked.set_result(key)
        else:
            self._arrived.append(key)
            self._wake()

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
        self._end_fetches(failure)
        self._wake()

    def _end_fetches(self, failure: QkdnodeError) -> None:
        for asked in self._fetching.values():
            if not asked.done():
                asked.set_exception(failure)

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

    def fetch(self, key_id: KeyId, timeout: float | None = None) -> Key:
        """The key of an id that the far end has told, as AsyncSubscription.fetch; acknowledge it by its own method."""
        if self._closed:
            raise SupplyError("the subscription is closed")
        for taken in self._taken:
            if taken.id == key_id:
                self._taken.remove(taken)
                return taken
        key = self._call(self._inner.fetch(key_id, timeout))
        key.acknowledge_by(self._acknowledge)
        return key

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
            key.acknowledge_by(self._acknowledge)
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
    pushed: bool = True,
    on_ended: Callable[[EndedKeys], None] | None = None,
    on_generation: Callable[[GenerationChange], None] = lambda change: None,
) -> Subscription:
    """Subscribe to keys shared with the application `remote` by way of `link`; see the package's example.

    At most `credit` keys are sent ahead of their acknowledgement. Without `pushed` only keys come that are fetched by
    their ids. `on_ended` is called, in a thread of the subscription, with keys that are out of use since they were
    given, `on_generation` there too. It and the errors are those of AsyncSubscription.
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
            pushed=pushed,
            on_ended=on_ended,
            on_generation=on_generation,
        )
    )
