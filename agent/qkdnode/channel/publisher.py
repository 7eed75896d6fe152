"""The side that publishes: an XPUB behind CURVE and a Gate; each subscription is decided on the subscriber's name.

libzmq keeps what a subscriber asks for before it tells us, without a bound: a connection that asks for too much is cut.
"""

import os
import socket as network
from collections.abc import Callable
from contextlib import suppress

import zmq

from qkdnode.channel.curve import CurveKeys, secure_server
from qkdnode.channel.gate import Gate
from qkdnode.channel.listener import FAILED_HANDSHAKES, address_of
from qkdnode.channel.pump import Monitor, Pump
from qkdnode.channel.socket import Context, Limits, end_context, open_socket
from qkdnode.errors import ChannelError

MAX_SUBSCRIPTIONS = 128  # of one connection
SUBSCRIBE, UNSUBSCRIBE = 1, 0


class Publisher:
    """Binds `endpoint` and sends messages of two frames to those whose subscription fits the first.

    `admit(curve key)` names the User-Id of a key or refuses by None; `wanted(user, prefix)` says whether that user may
    have all messages whose first frame begins so; `refused` is given the reason of every failed handshake; `cut`
    is told who was disconnected for subscriptions without end. A subscriber that reads too slowly loses messages at the
    high-water mark, and holds up nobody.
    """

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
        self._limits = limits
        self._admit, self._wanted, self._refused, self._cut = admit, wanted, refused, cut
        self.sources: dict[str, str] = {}  # where each user has asked from last
        self._asked: dict[int, set[bytes]] = {}  # by descriptor: what it asked for, granted or not
        self._context: Context = zmq.Context()
        self._gate = Gate(self._context, domain, self._decide)
        socket = open_socket(self._context, zmq.XPUB, limits)
        socket.setsockopt(zmq.XPUB_MANUAL, 1)
        # Only subscriptions come in; libzmq 4.3.5 hears nothing more of one who says more at once than the mark.
        socket.setsockopt(zmq.RCVHWM, 2 * MAX_SUBSCRIPTIONS)
        secure_server(socket, keys, domain)
        self._socket = socket
        self._monitor = Monitor(socket, self._note)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._monitor.close()
            self._gate.close()
            socket.close(0)
            self._context.term()
            raise ChannelError(f"cannot publish on {endpoint}: {error}; choose another endpoint or free it") from None
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._pump = Pump(socket, self._parse)

    @property
    def connections(self) -> int:
        """Connections that have subscribed to something."""
        return len(self._asked)

    def send(self, first: bytes, body: bytes) -> None:
        """Send to every subscriber whose queue has room."""
        if not self._pump.closed:
            self._pump.send([first, body])

    async def close(self) -> None:
        """Send what is queued, within the linger time, and end."""
        self._gate.close()
        self._monitor.close()
        self._pump.close(self._limits.linger_ms)
        self._asked.clear()
        await end_context(self._context)

    def _decide(self, curve: str) -> str | None:
        user = self._admit(curve)
        if user is None:
            self._refused(f"the CURVE key {curve} is not allowed")
        return user

    def _parse(self, parts: list[zmq.Frame]) -> None:
        # libzmq applies (UN)SUBSCRIBE to the connection that the last message came from.
        frame = parts[0]
        data = frame.bytes
        try:
            user, descriptor = str(frame.get("User-Id")), int(frame.get(zmq.SRCFD))
        except (zmq.ZMQError, TypeError, ValueError):
            return  # libzmq's own note that a connection has ended
        # A descriptor may be in use again: its former owner's end comes first.
        self._monitor.drain()
        held = self._asked.setdefault(descriptor, set())
        self.sources[user] = address_of(frame)
        code, prefix = (data[0], data[1:]) if data and len(parts) == 1 else (None, b"")
        if code == UNSUBSCRIBE:
            held.discard(prefix)
            self._socket.setsockopt(zmq.UNSUBSCRIBE, prefix)
            return
        held.add(data)
        if len(held) > MAX_SUBSCRIPTIONS:
            self._disconnect(frame, descriptor)
            self._cut(user)
        elif code == SUBSCRIBE:
            held.discard(data)
            held.add(prefix)
            if self._wanted(user, prefix):
                self._socket.setsockopt(zmq.SUBSCRIBE, prefix)

    def _disconnect(self, frame: zmq.Frame, descriptor: int) -> None:
        """End the connection under libzmq, which has no call for it; only if the descriptor is surely still its own."""
        with suppress(OSError, zmq.ZMQError), network.socket(fileno=os.dup(descriptor)) as connection:
            if connection.family == network.AF_UNIX:
                ours = self.endpoint == f"ipc://{connection.getsockname()}"
            else:
                ours = connection.getpeername()[0] == frame.get("Peer-Address")
                ours = ours and self.endpoint.endswith(f":{connection.getsockname()[1]}")
            if ours:
                connection.shutdown(network.SHUT_RDWR)

    def _note(self, event: zmq.Event, value: int) -> None:
        if event == zmq.Event.DISCONNECTED:
            self._asked.pop(value, None)
        elif event in FAILED_HANDSHAKES:
            self._refused(FAILED_HANDSHAKES[event])
