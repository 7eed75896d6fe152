"""The classical channel to the neighbour: opaque frames, in order, over one CURVE connection."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

import msgspec

from qkdnode.channel.curve import CurveKeys
from qkdnode.channel.dialler import Dialler
from qkdnode.channel.listener import Listener, Peer
from qkdnode.channel.socket import Limits
from qkdnode.errors import ChannelError
from qkdnode.wire.messages import MAX_MESSAGE_BYTES

DOMAIN = "qkdnode.neighbour"
UNREAD_FRAMES = 256  # then the socket is left to fill, and holds the peer back
ROOM_WAIT_S = 0.05  # how often a full queue is tried again if nothing signals room
# There is one neighbour, and no key is supplied until it is heard again: it is called twice a second.
LIMITS = Limits(max_message_bytes=MAX_MESSAGE_BYTES, reconnect_max_ms=500)


class ChannelStatistics(msgspec.Struct, kw_only=True):
    """Counts since the channel was made; bytes are those of frames."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    connections: int = 0  # the first included
    disconnections: int = 0
    refused: int = 0  # failed handshakes
    discarded: int = 0  # frames in several parts, of a former connection, or unread when a new one began


def nothing() -> None:
    """The default callback."""


def silent(reason: str) -> None:
    """The default callback for reasons."""


class Channel:
    """One end: made by `listen` or `connect`, used from one event loop.

    The peer may vanish and come back at any time: `on_lost`, then `on_connected`. A frame sent before a loss may or may
    not have arrived; frames of a former connection are dropped when a new one begins. At most one connection counts:
    the newest by the holder of the peer's key. Closing wakes a waiting `receive` with ChannelError.
    """

    def __init__(
        self,
        peer: str,
        *,
        on_connected: Callable[[], None],
        on_lost: Callable[[], None],
        on_refused: Callable[[str], None],
        send_timeout_s: float,
    ) -> None:
        self._peer = peer
        self._on_connected, self._on_lost, self._on_refused = on_connected, on_lost, on_refused
        self._send_timeout_s = send_timeout_s
        self._loop = asyncio.get_running_loop()
        self._unread: deque[bytes] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._statistics = ChannelStatistics()
        self._closed = False
        self._route: Peer | None = None
        self._listener: Listener | None = None
        self._dialler: Dialler | None = None
        self.endpoint = ""

    @classmethod
    async def listen(
        cls,
        endpoint: str,
        *,
        keys: CurveKeys,
        peer: str,
        peer_key: str,
        on_connected: Callable[[], None] = nothing,
        on_lost: Callable[[], None] = nothing,
        on_refused: Callable[[str], None] = silent,
        send_timeout_s: float = 10.0,
        limits: Limits = LIMITS,
    ) -> Self:
        """Bind, and wait for the one holder of `peer_key`. `endpoint` of the result has the port in place of `*`."""
        channel = cls(
            peer, on_connected=on_connected, on_lost=on_lost, on_refused=on_refused, send_timeout_s=send_timeout_s
        )
        channel._listener = Listener(
            endpoint,
            keys,
            limits,
            domain=DOMAIN,
            admit=lambda curve: peer if curve == peer_key else None,
            joined=channel._accept,
            left=channel._leave,
            received=channel._take_from,
            refused=channel._refuse,
            malformed=channel._discard,
        )
        channel.endpoint = channel._listener.endpoint
        return channel

    @classmethod
    async def connect(
        cls,
        endpoint: str,
        *,
        keys: CurveKeys,
        peer: str,
        peer_key: str,
        on_connected: Callable[[], None] = nothing,
        on_lost: Callable[[], None] = nothing,
        on_refused: Callable[[str], None] = silent,
        send_timeout_s: float = 10.0,
        limits: Limits = LIMITS,
    ) -> Self:
        """Connect to the holder of `peer_key`, and keep trying until closed. Returns at once."""
        channel = cls(
            peer, on_connected=on_connected, on_lost=on_lost, on_refused=on_refused, send_timeout_s=send_timeout_s
        )
        channel._dialler = Dialler(
            endpoint,
            keys,
            peer_key,
            limits,
            joined=channel._begin,
            left=channel._end,
            received=channel._take,
            failed=lambda how: channel._refuse(f"the handshake with {peer} at {endpoint} was {how}"),
            malformed=channel._discard,
        )
        channel.endpoint = endpoint
        return channel

    @property
    def connected(self) -> bool:
        """Whether the peer is there as far as this end knows."""
        if self._dialler is not None:
            return self._dialler.connected
        return self._route is not None

    def statistics(self) -> ChannelStatistics:
        """A copy of the counts."""
        return msgspec.structs.replace(self._statistics)

    async def send(self, frame: bytes) -> None:
        """Queue one frame for the peer. ChannelError if it is not connected, goes, or takes nothing for too long."""
        if not frame or len(frame) > MAX_MESSAGE_BYTES:
            raise ChannelError(f"a frame of {len(frame)} bytes to {self._peer}: 1 to {MAX_MESSAGE_BYTES} are carried")
        if not self._try_send(frame):
            await self._send_when_there_is_room(frame)
        self._statistics.messages_out += 1
        self._statistics.bytes_out += len(frame)

    async def receive(self) -> bytes:
        """The next frame from the peer. One reader at a time."""
        while not self._unread:
            if self._closed:
                raise ChannelError(f"the channel to {self._peer} is closed")
            if self._waiting is not None:
                raise ChannelError(f"the channel to {self._peer} has a reader already")
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        frame = self._unread.popleft()
        if len(self._unread) == UNREAD_FRAMES // 2:
            self._end_point().pump.resume()
        return frame

    async def close(self) -> None:
        """Send what is queued, within the linger time, and end. Unread frames are lost."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        self._route = None
        await self._end_point().close()

    def _end_point(self) -> Listener | Dialler:
        end_point = self._listener or self._dialler
        assert end_point is not None
        return end_point

    def _try_send(self, frame: bytes) -> bool:
        if self._closed:
            raise ChannelError(f"the channel to {self._peer} is closed")
        if self._dialler is not None:
            return self._dialler.send(frame)
        if self._listener is None or self._route is None:
            raise ChannelError(f"{self._peer} is not connected to {self.endpoint}")
        return self._listener.send(self._route, frame)

    async def _send_when_there_is_room(self, frame: bytes) -> None:
        deadline = self._loop.time() + self._send_timeout_s
        connection = self._statistics.connections
        while self._loop.time() < deadline:
            await self._end_point().pump.wait_writable(ROOM_WAIT_S)
            if connection != self._statistics.connections:
                raise ChannelError(f"the connection to {self._peer} was lost while a frame waited")
            if self._try_send(frame):
                return
        raise ChannelError(f"{self._peer} has taken nothing for {self._send_timeout_s:g} s: it is overloaded or hangs")

    def _accept(self, peer: Peer) -> None:
        if self._route is not None:
            self._route = None
            self._statistics.disconnections += 1
            self._on_lost()
        self._route = peer
        self._begin()

    def _leave(self, peer: Peer) -> None:
        if peer == self._route:
            self._route = None
            self._end()

    def _begin(self) -> None:
        self._statistics.connections += 1
        self._statistics.discarded += len(self._unread)
        self._unread.clear()
        self._end_point().pump.resume()
        self._on_connected()

    def _end(self) -> None:
        if not self._closed:
            self._statistics.disconnections += 1
            self._on_lost()

    def _take_from(self, peer: Peer, frame: bytes) -> None:
        if peer == self._route:
            self._take(frame)
        else:
            self._discard()

    def _take(self, frame: bytes) -> None:
        self._statistics.messages_in += 1
        self._statistics.bytes_in += len(frame)
        self._unread.append(frame)
        if len(self._unread) >= UNREAD_FRAMES:
            self._end_point().pump.pause()
        self._wake()

    def _refuse(self, reason: str) -> None:
        self._statistics.refused += 1
        self._on_refused(reason)

    def _discard(self) -> None:
        self._statistics.discarded += 1

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
