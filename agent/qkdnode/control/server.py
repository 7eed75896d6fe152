"""The control socket: connections, their limits, and frames; what they say is the Conversation's and the Desk's."""

import asyncio
import os
import socket
from asyncio import StreamReader, StreamWriter
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import msgspec

from qkdnode.access.pace import Pace
from qkdnode.control.conversation import Conversation, Operators, Unknown
from qkdnode.control.desk import Desk
from qkdnode.control.socket import BoundSocket, Credentials, bind_private, peer_credentials, remove
from qkdnode.errors import AccessDeniedError, ControlError, LocalProtocolError, QkdnodeError, RemoteProtocolError
from qkdnode.wire.control import (
    LENGTH,
    MAX_ASKED_BYTES,
    VERSION,
    Challenge,
    Closed,
    Done,
    FromAgent,
    Refused,
    frame,
    length_of,
)

NONCE_BYTES = 32
TELL_EVERY_S = 5.0
MAX_REASON = 1000


class Limits(msgspec.Struct, frozen=True):
    """What a caller can have of the agent."""

    connections: int = 16
    connections_per_user: int = 12
    idle_s: float = 60.0  # without a request
    frame_s: float = 10.0  # from the first byte of a frame to its last
    write_s: float = 10.0  # until an answer is taken
    requests_per_s: float = 50.0  # of one connection; who goes faster waits
    burst: int = 100


class ControlServer:
    """Serves operators at one path. `uids` are let in; all others are told why not, and journalled."""

    def __init__(
        self,
        path: Path,
        *,
        node: str,
        uids: Collection[int],
        operators: Operators,
        desk: Desk,
        credentials: Callable[[socket.socket], Credentials] = peer_credentials,
        nonce: Callable[[], bytes] = lambda: os.urandom(NONCE_BYTES),
        limits: Limits | None = None,
    ) -> None:
        self._path, self._node, self.uids = path, node, frozenset(uids)
        self._operators, self._desk = operators, desk
        self._credentials, self._nonce, self._limits = credentials, nonce, limits or Limits()
        self._users: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._bound: BoundSocket | None = None
        self._server: asyncio.Server | None = None
        self._telling: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """Connections that are served now."""
        return self._users.total()

    async def start(self) -> None:
        """Listen. ConfigError if the path is not safe."""
        self._bound = bind_private(self._path)
        self._server = await asyncio.start_unix_server(
            self._accepted, sock=self._bound.listening, limit=MAX_ASKED_BYTES + LENGTH.size
        )
        self._telling = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Listen no more, end every connection, journal what was counted, remove the socket. Idempotent."""
        bound, self._bound = self._bound, None
        if bound is None or self._server is None or self._telling is None:
            return
        self._server.close()
        self._telling.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._telling, *self._tasks, return_exceptions=True)
        await self._desk.tell_due(everything=True)
        remove(bound)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            await self._desk.tell_due()

    def _accepted(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, from its caller's credentials to its end."""
        writer.transport.set_write_buffer_limits(high=0)  # an answer is written when it is taken
        try:
            who = self._credentials(writer.get_extra_info("socket"))
        except OSError:
            writer.transport.abort()
            return
        self._users[who.uid] += 1
        try:
            await self._talk(reader, writer, who)
        except QkdnodeError as error:
            await self._desk.turned_away(who.uid, error.code, str(error))
            with suppress(OSError, TimeoutError):
                await self._write(writer, Closed(error.code, str(error)[:MAX_REASON]))
        except (OSError, TimeoutError):
            pass  # the caller is gone, silent, or reads nothing
        finally:
            self._users[who.uid] -= 1
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._limits.write_s):
                    writer.close()
                    await writer.wait_closed()
            writer.transport.abort()

    async def _talk(self, reader: StreamReader, writer: StreamWriter, who: Credentials) -> None:
        self._admit(who)
        conversation = Conversation(Challenge(VERSION, self._node, self._nonce()), who.uid, self._operators)
        await self._write(writer, conversation.challenge)
        clock = asyncio.get_running_loop().time
        pace = Pace(burst=self._limits.burst, per_s=self._limits.requests_per_s)
        while (body := await self._read(reader)) is not None:
            await asyncio.sleep(pace.step(clock()))
            self._demand_listed(who)  # the list may have changed since
            asked = conversation.receive(body)
            if isinstance(asked, Unknown):
                answer: Done | Refused = await self._desk.unknown(asked, who.uid)
            else:
                answer = await self._desk.serve(asked, who.uid)
            try:
                await self._write(writer, answer)
            except LocalProtocolError as error:
                await self._write(writer, Refused(asked.counter, error.code, "", f"{error}: ask for less at once"))

    def _demand_listed(self, who: Credentials) -> None:
        if who.uid not in self.uids:
            raise AccessDeniedError(
                f"user {who.uid} may not use this agent's control socket: ask as the agent's user, or have the uid "
                "added to `control.uids`"
            )

    def _admit(self, who: Credentials) -> None:
        self._demand_listed(who)
        if self.connections > self._limits.connections or self._users[who.uid] > self._limits.connections_per_user:
            raise ControlError(f"{self.connections - 1} control connections are open already: end one of them")

    async def _read(self, reader: StreamReader) -> bytes | None:
        """The body of the next frame; None at the end. TimeoutError if it does not come."""
        async with asyncio.timeout(self._limits.idle_s):
            first = await reader.read(1)
        if not first:
            return None
        try:
            async with asyncio.timeout(self._limits.frame_s):
                header = first + await reader.readexactly(LENGTH.size - 1)
                return await reader.readexactly(length_of(header, MAX_ASKED_BYTES))
        except asyncio.IncompleteReadError:
            raise RemoteProtocolError("the connection ended within a frame") from None

    async def _write(self, writer: StreamWriter, message: FromAgent) -> None:
        writer.write(frame(message))
        async with asyncio.timeout(self._limits.write_s):
            await writer.drain()
