"""Who may connect: the answer to libzmq's question about each CURVE client (ZAP, RFC 27).

pyzmq's AsyncioAuthenticator ends with its task at the first unexpected message, admits the NULL mechanism unless told
otherwise, and turns a wildcard domain into refusal of everybody; this one has only the case that is needed.
"""

from collections.abc import Callable

import zmq
from zmq.utils import z85

from qkdnode.channel.pump import Pump
from qkdnode.channel.socket import Context

VERSION = b"1.0"
GRANTED, REFUSED, MALFORMED = b"200", b"400", b"500"
KEY_BYTES = 32


class Gate:
    """Answers for one domain of one context; everything but an allowed CURVE key is refused.

    `admit(key in Z85)` gives the User-Id that messages of the connection will carry, or None to refuse.
    """

    def __init__(self, context: Context, domain: str, admit: Callable[[str], str | None]) -> None:
        self._domain = domain.encode()
        self._admit = admit
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind("inproc://zeromq.zap.01")
        self._pump = Pump(socket, self._answer)

    def close(self) -> None:
        """Stop answering: connections that are up stay up, new ones are refused."""
        self._pump.close(0)

    def _answer(self, parts: list[zmq.Frame]) -> None:
        frames = [part.bytes for part in parts]
        delimiter = frames.index(b"") if b"" in frames else len(frames)
        envelope, request = frames[: delimiter + 1], frames[delimiter + 1 :]
        if len(request) < 2:
            return
        status, user = self._judge(request)
        text = {GRANTED: b"OK", REFUSED: b"not allowed", MALFORMED: b"malformed"}[status]
        self._pump.send([*envelope, VERSION, request[1], status, text, user, b""])

    def _judge(self, request: list[bytes]) -> tuple[bytes, bytes]:
        if len(request) != 7 or request[0] != VERSION or len(request[6]) != KEY_BYTES:
            return MALFORMED, b""
        _, _, domain, _, _, mechanism, key = request
        if domain != self._domain or mechanism != b"CURVE":
            return REFUSED, b""
        user = self._admit(z85.encode(key).decode())
        return (REFUSED, b"") if user is None else (GRANTED, user.encode())
