"""A network in virtual time: it takes the place of the ZeroMQ sockets under the channel, the supply and the client."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from qkdnode.channel.curve import CurveKeys
from qkdnode.channel.listener import Peer
from qkdnode.channel.socket import Limits
from qkdnode.errors import ChannelError
from simulation.life import Life, present

LATENCY_S = 0.0005
SILENCE_S = 8.0  # what heartbeats take to notice that the far end is gone without a word
SPACING_S = 1e-7  # frames of one direction keep their order


Frame = bytes | tuple[bytes, bytes]  # a published message has two


class Network:
    """Who listens where, who is connected, and what is done to frames on their way.

    `on_frame(sender, endpoint, frame)` answers what arrives in its place: frames, each with a delay in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.listeners: dict[str, Listener | Publisher] = {}
        self.connections: set[Connection] = set()
        self.blocked: set[str] = set()
        self.frames = 0
        self.on_frame: Callable[[Life, str, Any], list[tuple[Any, float]]] = lambda life, at, frame: [(frame, 0.0)]
        self.routes = itertools.count(1)

    def cut(self, endpoint: str, seconds: float) -> None:
        """Nothing passes for a while: what is sent waits, and for longer the connections are lost."""
        if seconds < SILENCE_S:
            for connection in self._at(endpoint):
                connection.stall(seconds)
            return
        self.blocked.add(endpoint)
        self.loop.call_later(seconds, self.blocked.discard, endpoint)
        for connection in self._at(endpoint):
            connection.end(SILENCE_S)

    def reset(self, endpoint: str) -> None:
        """Break the connections; they may come again at once."""
        for connection in self._at(endpoint):
            connection.end(LATENCY_S)

    def _at(self, endpoint: str) -> list["Connection"]:
        return sorted((c for c in self.connections if c.listener.endpoint == endpoint), key=lambda c: c.number)


class Pump:
    """What a receiver takes in, and when."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._waiting: deque[Callable[[], None]] = deque()
        self._paused = self.closed = False

    def take(self, deliver: Callable[[], None]) -> None:
        if not self._life.alive or self.closed:
            return
        if self._paused:
            self._waiting.append(deliver)
        else:
            self._life.context.run(deliver)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._life.loop.call_soon(self._again)

    async def wait_writable(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)

    def _again(self) -> None:
        while self._waiting and not self._paused:
            self.take(self._waiting.popleft())


class Connection:
    """Two ordered directions between a Dialler and a Listener, or a Receiver and a Publisher."""

    def __init__(
        self, network: Network, dialler: "Dialler | Receiver", listener: "Listener | Publisher", user: str
    ) -> None:
        self.number = next(network.routes)
        self.network, self.dialler, self.listener = network, dialler, listener
        self.peer = Peer(self.number.to_bytes(5, "big"), self.number, user)
        self.stands = True
        self._free_s = {True: 0.0, False: 0.0}
        network.connections.add(self)

    def carry(self, to_dialler: bool, frame: Frame) -> None:
        """Put one frame on the way."""
        network, sender = self.network, self.listener if to_dialler else self.dialler
        if not self.stands or not sender.life.alive:
            return
        for altered, delay_s in network.on_frame(sender.life, self.listener.endpoint, frame):
            when = max(network.loop.time() + LATENCY_S + delay_s, self._free_s[to_dialler] + SPACING_S)
            self._free_s[to_dialler] = when
            network.loop.call_at(when, self._arrive, to_dialler, altered)

    def stall(self, seconds: float) -> None:
        """What is sent from now on waits."""
        for direction in self._free_s:
            self._free_s[direction] = max(self._free_s[direction], self.network.loop.time() + seconds)

    def end(self, noticed_s: float) -> None:
        """Lose the connection; each end notices later."""
        if self.stands:
            self.stands = False
            self.network.connections.discard(self)
            self.network.loop.call_later(noticed_s, self._notice)

    def _arrive(self, to_dialler: bool, frame: Any) -> None:
        if not self.stands:
            return
        self.network.frames += 1
        if to_dialler:
            self.dialler.pump.take(lambda: self.dialler.received(frame))
        else:
            self.listener.pump.take(lambda: self.listener.received(self.peer, frame))

    def _notice(self) -> None:
        for end in (self.dialler, self.listener):
            if end.life.alive:
                end.life.context.run(end.lost, self)


class Listener:
    """In place of channel.listener.Listener."""

    def __init__(
        self,
        endpoint: str,
        keys: CurveKeys,
        limits: Limits,
        *,
        domain: str,
        admit: Callable[[str], str | None],
        joined: Callable[[Peer], None],
        left: Callable[[Peer], None],
        received: Callable[[Peer, bytes], None],
        refused: Callable[[str], None],
        malformed: Callable[[], None],
    ) -> None:
        self.life = present()
        self.endpoint, self.public, self._limits = endpoint, keys.public, limits
        self.admit, self.joined, self.left, self.received, self.refused = admit, joined, left, received, refused
        self.malformed = malformed
        self.pump = Pump(self.life)
        self._network: Network = self.life.network  # type: ignore[attr-defined]
        self._connections: dict[bytes, Connection] = {}
        if endpoint in self._network.listeners:
            raise ChannelError(f"cannot listen on {endpoint}: it is in use")
        self._network.listeners[endpoint] = self
        self.life.at_end.append(self._vanish)

    def send(self, peer: Peer, data: bytes) -> bool:
        if self.pump.closed:
            raise ChannelError(f"the listener on {self.endpoint} is closed")
        connection = self._connections.get(peer.route)
        if connection is None:
            raise ChannelError(f"{peer.user} is no longer connected to {self.endpoint}")
        connection.carry(True, data)
        return True

    def accept(self, connection: Connection) -> None:
        self._connections[connection.peer.route] = connection
        self.joined(connection.peer)

    def lost(self, connection: Connection) -> None:
        if self._connections.pop(connection.peer.route, None) is not None:
            self.left(connection.peer)

    async def close(self) -> None:
        await asyncio.sleep(0.01)  # what lingers leaves
        self.pump.closed = True
        self._vanish()

    def _vanish(self) -> None:
        self._network.listeners.pop(self.endpoint, None)
        for connection in list(self._connections.values()):
            connection.end(LATENCY_S)


class Publisher:
    """In place of channel.publisher.Publisher: who is slow or away misses messages, and nobody tells them."""

    def __init__(
        self,
        endpoint: str,
        keys: CurveKeys,
        limits: Limits,
        *,
        domain: str,
        admit: Callable[[str], str | None],
        wanted: Callable[[str, bytes], bool],
        refused: Callable[[str], None],
        cut: Callable[[str], None],
    ) -> None:
        self.life = present()
        self.endpoint, self.public = endpoint, keys.public
        self.admit, self.refused, self._wanted = admit, refused, wanted
        self.sources: dict[str, str] = {}
        self.pump = Pump(self.life)
        self._network: Network = self.life.network  # type: ignore[attr-defined]
        self._granted: dict[Connection, tuple[bytes, ...]] = {}
        if endpoint in self._network.listeners:
            raise ChannelError(f"cannot publish on {endpoint}: it is in use")
        self._network.listeners[endpoint] = self
        self.life.at_end.append(self._vanish)

    @property
    def connections(self) -> int:
        return len(self._granted)

    def send(self, first: bytes, body: bytes) -> None:
        for connection, granted in self._granted.items():
            if first.startswith(granted):
                connection.carry(True, (first, body))

    def accept(self, connection: Connection) -> None:
        assert isinstance(connection.dialler, Receiver)
        user = connection.peer.user
        self._granted[connection] = tuple(p for p in connection.dialler.prefixes if self._wanted(user, p))

    def received(self, peer: Peer, frame: bytes) -> None:
        raise AssertionError("nothing is said to a publisher")

    def lost(self, connection: Connection) -> None:
        self._granted.pop(connection, None)

    async def close(self) -> None:
        await asyncio.sleep(0.01)  # what lingers leaves
        self._vanish()

    def _vanish(self) -> None:
        self._network.listeners.pop(self.endpoint, None)
        for connection in list(self._granted):
            connection.end(LATENCY_S)


class Dialler:
    """In place of channel.dialler.Dialler."""

    def __init__(
        self,
        endpoint: str,
        keys: CurveKeys,
        server: str,
        limits: Limits,
        *,
        joined: Callable[[], None],
        left: Callable[[], None],
        received: Callable[[bytes], None],
        failed: Callable[[str], None],
        malformed: Callable[[], None],
    ) -> None:
        self.life = present()
        self.endpoint, self._public, self._server = endpoint, keys.public, server
        self._joined, self._left, self.received, self._failed = joined, left, received, failed
        self._first_s, self._last_s = limits.reconnect_ms / 1000, limits.reconnect_max_ms / 1000
        self._delay_s = self._first_s
        self.pump = Pump(self.life)
        self._network: Network = self.life.network  # type: ignore[attr-defined]
        self._connection: Connection | None = None
        self.life.at_end.append(self._vanish)
        self.life.loop.call_later(LATENCY_S, self._try, context=self.life.context)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def send(self, data: bytes) -> bool:
        if self._connection is None:
            raise ChannelError(f"not connected to {self.endpoint}")
        self._connection.carry(False, data)
        return True

    def lost(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._again()
            self._left()

    async def close(self) -> None:
        await asyncio.sleep(0.01)
        self.pump.closed = True
        self._vanish()

    def _try(self) -> None:
        if not self.life.alive or self.pump.closed:
            return
        listener = self._network.listeners.get(self.endpoint)
        if listener is None or self.endpoint in self._network.blocked:
            self._again()
            return
        if listener.public != self._server:
            self._failed("unproven")
            self._again()
            return
        user = listener.life.context.run(listener.admit, self._public)
        if user is None:
            listener.life.context.run(listener.refused, "an unknown key")
            self._failed("refused")
            self._again()
            return
        self._delay_s = self._first_s
        self._connection = Connection(self._network, self, listener, user)
        listener.life.context.run(listener.accept, self._connection)
        self._joined()

    def _again(self) -> None:
        self._delay_s = min(2 * self._delay_s, self._last_s)
        self.life.loop.call_later(self._delay_s, self._try, context=self.life.context)

    def _vanish(self) -> None:
        if self._connection is not None:
            self._connection.end(LATENCY_S)


class Receiver(Dialler):
    """In place of channel.receiver.Receiver."""

    def __init__(
        self,
        endpoint: str,
        keys: CurveKeys,
        server: str,
        limits: Limits,
        *,
        prefixes: Iterable[bytes],
        received: Callable[[bytes, bytes], None],
        malformed: Callable[[], None],
    ) -> None:
        self.prefixes = tuple(prefixes)
        self._take = received
        super().__init__(
            endpoint,
            keys,
            server,
            limits,
            joined=lambda: None,
            left=lambda: None,
            received=self._unpack,
            failed=lambda how: None,
            malformed=malformed,
        )

    def _unpack(self, frame: Any) -> None:
        self._take(*frame)


def replaced(modules: dict[str, Any]) -> list[tuple[Any, str, Any]]:
    """What to patch: every place that makes sockets."""
    return [
        (modules["qkdnode.channel.neighbour"], "Listener", Listener),
        (modules["qkdnode.channel.neighbour"], "Dialler", Dialler),
        (modules["qkdnode.supply.server"], "Listener", Listener),
        (modules["qkdnode.supply.events"], "Listener", Listener),
        (modules["qkdnode.supply.events"], "Publisher", Publisher),
        (modules["qkdnode.client.subscription"], "Dialler", Dialler),
        (modules["qkdnode.client.events"], "Dialler", Dialler),
        (modules["qkdnode.client.events"], "Receiver", Receiver),
    ]
