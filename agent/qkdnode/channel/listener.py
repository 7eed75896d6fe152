"""The side that binds: a ROUTER behind CURVE and a Gate, which knows who is connected."""

import errno
from collections.abc import Callable

import msgspec
import zmq

from qkdnode.channel.curve import CurveKeys, secure_server
from qkdnode.channel.gate import Gate
from qkdnode.channel.pump import Monitor, Pump
from qkdnode.channel.socket import Context, Limits, end_context, open_socket
from qkdnode.errors import ChannelError

# ZAP refusals are counted at the Gate.
FAILED_HANDSHAKES = {
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "a client without CURVE or with a wrong key of this node",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "a client that broke off its handshake",
}


class Peer(msgspec.Struct, frozen=True):
    """One connection: ZeroMQ's routing id for it, its file descriptor, and the User-Id that the Gate gave it."""

    route: bytes
    descriptor: int
    user: str
    address: str = "unknown"  # as ZeroMQ tells it; it tells none of local connections


def address_of(frame: zmq.Frame) -> str:
    """Where a frame came from."""
    try:
        return str(frame.get("Peer-Address")) or "unknown"
    except zmq.ZMQError:
        return "unknown"


class Listener:
    """Binds `endpoint` and reports what happens there.

    `admit(curve key)` names the User-Id of a key or refuses by None; `joined`, `left` and `received` speak of Peers;
    `refused` is given the reason of every failed handshake; `malformed` counts what is not one frame.
    A connection is known from its probe (ZMQ_PROBE_ROUTER), so before its first message.
    """

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
        self._limits = limits
        self._admit = admit
        self._joined, self._left, self._received = joined, left, received
        self._refused, self._malformed = refused, malformed
        self._peers: dict[bytes, Peer] = {}
        self._context: Context = zmq.Context()
        self._gate = Gate(self._context, domain, self._decide)
        socket = open_socket(self._context, zmq.ROUTER, limits)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        secure_server(socket, keys, domain)
        self._monitor = Monitor(socket, self._note)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._monitor.close()
            self._gate.close()
            socket.close(0)
            self._context.term()
            raise ChannelError(f"cannot listen on {endpoint}: {error}; choose another endpoint or free it") from None
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._pump = Pump(socket, self._parse)

    @property
    def pump(self) -> Pump:
        """The socket: to pause, resume and wait for room."""
        return self._pump

    def send(self, peer: Peer, data: bytes) -> bool:
        """Queue one frame; False if the peer's queue is full. ChannelError if it is gone, whoever has its id now."""
        if self._pump.closed:
            raise ChannelError(f"the listener on {self.endpoint} is closed")
        # A routing id that is free again may be taken by anybody: libzmq tells of an end before it gives the id away.
        self._pump.look()
        self._monitor.drain()
        if self._peers.get(peer.route) is not peer:
            raise ChannelError(f"{peer.user} is no longer connected to {self.endpoint}")
        try:
            return self._pump.send([peer.route, data])
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise ChannelError(f"cannot send to {peer.user}: {error}") from None
        # It is not forgotten yet: what it said before it left may still wait here, and is read before its end is noted.
        raise ChannelError(f"{peer.user} is no longer connected to {self.endpoint}")

    async def close(self) -> None:
        """Send what is queued, within the linger time, and end."""
        self._gate.close()
        self._monitor.close()
        self._pump.close(self._limits.linger_ms)
        self._peers.clear()
        await end_context(self._context)

    def _decide(self, curve: str) -> str | None:
        user = self._admit(curve)
        if user is None:
            self._refused(f"the CURVE key {curve} is not allowed")
        return user

    def _parse(self, parts: list[zmq.Frame]) -> None:
        route, frame = parts[0].bytes, parts[-1]
        if len(parts) == 2 and not len(frame):
            # A descriptor may be in use again: its former owner's end comes first.
            self._monitor.drain()
            if route not in self._peers:
                peer = Peer(route, int(frame.get(zmq.SRCFD)), str(frame.get("User-Id")), address_of(frame))
                self._peers[route] = peer
                self._joined(peer)
            return
        known = self._peers.get(route)
        if len(parts) != 2 or known is None or len(frame) > self._limits.max_message_bytes:
            self._malformed()
        else:
            self._received(known, frame.bytes)

    def _note(self, event: zmq.Event, value: int) -> None:
        if event == zmq.Event.DISCONNECTED:
            gone = [peer for peer in self._peers.values() if peer.descriptor == value]
            if gone:
                self._pump.drain()  # what it said before it left
            for peer in gone:
                self._forget(peer)
        elif event in FAILED_HANDSHAKES:
            self._refused(FAILED_HANDSHAKES[event])

    def _forget(self, peer: Peer) -> None:
        if self._peers.pop(peer.route, None) is not None:
            self._left(peer)
