"""The side that connects: a DEALER behind CURVE that keeps trying, with a fresh socket for every connection."""

import asyncio
from collections.abc import Callable

import zmq

from qkdnode.channel.curve import CurveKeys, secure_client
from qkdnode.channel.pump import Monitor, Pump
from qkdnode.channel.socket import Context, Limits, end_context, open_socket
from qkdnode.errors import ChannelError

STEADY_S = 5.0  # a connection that lasted so long resets the back-off

FAILED_HANDSHAKES = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: "refused",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "unproven",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "unproven",
}


class Dialler:
    """Connects to `endpoint`, whose CURVE key must be `server`, again and again until closed.

    `failed` is told `refused` when the far end does not know this key, `unproven` when no handshake came about.
    A lost connection's socket is closed, so that nothing of it mixes with the next; `linger` ends with it.
    """

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
        self.endpoint = endpoint
        self._keys, self._server, self._limits = keys, server, limits
        self._joined, self._left, self._received = joined, left, received
        self._failed, self._malformed = failed, malformed
        self._loop = asyncio.get_running_loop()
        self._context: Context = zmq.Context()
        self._connected_at: float | None = None
        self._delay_s = limits.reconnect_ms / 1000
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._open()
        except zmq.ZMQError as error:
            self._monitor.close()
            self._pump.close(0)
            self._context.term()
            raise ChannelError(f"cannot connect to {endpoint}: {error}; give tcp://HOST:PORT or ipc://PATH") from None

    @property
    def connected(self) -> bool:
        """Whether the handshake is done and the connection stands."""
        return self._connected_at is not None

    @property
    def pump(self) -> Pump:
        """The present socket: to pause, resume and wait for room."""
        return self._pump

    def send(self, data: bytes) -> bool:
        """Queue one frame; False if the queue is full. ChannelError if not connected."""
        if self._connected_at is None:
            raise ChannelError(f"not connected to {self.endpoint}")
        return self._pump.send([data])

    async def close(self) -> None:
        """Send what is queued, within the linger time, and end."""
        if self._timer is not None:
            self._timer.cancel()
        self._connected_at = None
        self._monitor.close()
        self._pump.close(self._limits.linger_ms)
        await end_context(self._context)

    def _open(self) -> None:
        self._timer = None
        socket = open_socket(self._context, zmq.DEALER, self._limits)
        socket.setsockopt(zmq.PROBE_ROUTER, 1)
        secure_client(socket, self._keys, self._server)
        self._monitor = Monitor(socket, self._note)
        self._pump = Pump(socket, self._parse)
        socket.connect(self.endpoint)

    def _parse(self, parts: list[zmq.Frame]) -> None:
        if len(parts) != 1 or len(parts[0]) > self._limits.max_message_bytes:
            self._malformed()
        else:
            self._received(parts[0].bytes)

    def _note(self, event: zmq.Event, value: int) -> None:
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._connected_at = self._loop.time()
            self._joined()
        elif event == zmq.Event.DISCONNECTED and self._connected_at is not None:
            self._lose(self._loop.time() - self._connected_at)
        elif event in FAILED_HANDSHAKES:
            self._failed(FAILED_HANDSHAKES[event])

    def _lose(self, lasted_s: float) -> None:
        self._pump.drain()  # what the far end said before it left
        self._connected_at = None
        self._monitor.close()
        self._pump.close(0)
        first, last = self._limits.reconnect_ms / 1000, self._limits.reconnect_max_ms / 1000
        self._delay_s = first if lasted_s >= STEADY_S else min(2 * self._delay_s, last)
        self._timer = self._loop.call_later(self._delay_s, self._open)
        self._left()
