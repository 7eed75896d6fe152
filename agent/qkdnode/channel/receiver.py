"""The side that subscribes: a SUB behind CURVE; libzmq connects again and says again what is subscribed to."""

from collections.abc import Callable, Iterable

import zmq

from qkdnode.channel.curve import CurveKeys, secure_client
from qkdnode.channel.pump import Pump
from qkdnode.channel.socket import Context, Limits, end_context, open_socket
from qkdnode.errors import ChannelError


class Receiver:
    """Connects to a Publisher at `endpoint`, with the CURVE key `server`, and subscribes to prefixes of first frames.

    `received` is given first frame and body. What the high-water mark or a lost connection swallowed is not told: the
    messages must carry numbers.
    """

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
        self.endpoint = endpoint
        self._limits, self._received, self._malformed = limits, received, malformed
        self._context: Context = zmq.Context()
        socket = open_socket(self._context, zmq.SUB, limits)
        socket.setsockopt(zmq.SNDHWM, 0)  # only subscriptions go out, and libzmq drops those beyond the mark
        secure_client(socket, keys, server)
        for prefix in prefixes:
            socket.setsockopt(zmq.SUBSCRIBE, prefix)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            self._context.term()
            raise ChannelError(f"cannot connect to {endpoint}: {error}; give tcp://HOST:PORT or ipc://PATH") from None
        self._pump = Pump(socket, self._parse)

    @property
    def pump(self) -> Pump:
        """The socket: to pause and resume."""
        return self._pump

    async def close(self) -> None:
        """End."""
        self._pump.close(0)
        await end_context(self._context)

    def _parse(self, parts: list[zmq.Frame]) -> None:
        if len(parts) != 2 or len(parts[1]) > self._limits.max_message_bytes:
            self._malformed()
        else:
            self._received(parts[0].bytes, parts[1].bytes)
