"""The operator's end of a control connection, for commands: connect, ask, be answered, one after the other."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qkdnode.channel.operator import OwnOperator
from qkdnode.errors import AccessDeniedError, AuthenticationError, ControlError, NoAgentError, RemoteProtocolError
from qkdnode.wire.control import (
    LENGTH,
    MAX_ANSWERED_BYTES,
    VERSION,
    AlarmPage,
    Alarms,
    Challenge,
    Closed,
    Done,
    FromAgent,
    KeyPage,
    ListKeys,
    LogHead,
    LogPage,
    Refused,
    Request,
    Signed,
    decode_answer,
    decode_from_agent,
    encode_request,
    frame,
    length_of,
    signing_input,
)
from qkdnode.wire.control import ExportPage as AskExportPage

TIMEOUT_S = 30.0
ALARMS_AT_ONCE = 64
REFUSALS: dict[str, type[AccessDeniedError] | type[AuthenticationError]] = {
    AccessDeniedError.code: AccessDeniedError,
    AuthenticationError.code: AuthenticationError,
}


class Client:
    """One connection of one operator to one agent. Its errors say what the agent said, and under which rule."""

    def __init__(
        self, path: Path | str, operator: OwnOperator, *, node: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._path, self._operator, self._counter = Path(path), operator, 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            self._connect()
            said = self._receive()
            if not isinstance(said, Challenge):
                raise RemoteProtocolError(f"the agent at {path} began with {type(said).__name__}, not with a challenge")
            if said.version != VERSION:
                raise ControlError(
                    f"the agent at {path} speaks control protocol {said.version}, this command {VERSION}"
                )
            if node is not None and said.node != node:
                raise ControlError(f"the agent at {path} is that of node {said.node!r}, not of {node!r}")
        except BaseException:
            self._socket.close()
            raise
        self.challenge = said

    def ask(self, request: Request) -> Any:
        """Ask and wait for the answer. AccessDeniedError names the rule that refused; ControlError what failed."""
        self._counter += 1
        data = encode_request(request)
        message = signing_input(self.challenge, self._operator.name, os.geteuid(), self._counter, data)
        signed = Signed(VERSION, self._operator.name, self._counter, data, self._operator.sign(message))
        try:
            self._socket.sendall(frame(signed))
        except TimeoutError:
            raise ControlError(f"the agent at {self._path} takes no request") from None
        except OSError:
            pass  # it has closed, and may have said why
        said = self._receive()
        if isinstance(said, Done | Refused) and said.counter != self._counter:
            raise RemoteProtocolError(f"the agent answered request {said.counter}, not {self._counter}")
        if isinstance(said, Refused):
            raise _error(said.code, f"{said.reason} [{said.code}{f', rule {said.rule}' if said.rule else ''}]")
        if not isinstance(said, Done):
            raise RemoteProtocolError(f"the agent answered with {type(said).__name__}")
        return decode_answer(request, said.answer)

    def alarms(self) -> Iterator[dict[str, Any]]:
        """Every alarm, page by page."""
        after: int | None = 0
        while after is not None:
            page: AlarmPage = self.ask(Alarms(after=after, limit=ALARMS_AT_ONCE))
            yield from page.alarms
            after = page.next

    def keys(self, request: ListKeys) -> Iterator[KeyPage]:
        """Every page of keys from a request on; some may be empty."""
        page: KeyPage = self.ask(request)
        yield page
        while page.next is not None:
            page = self.ask(
                ListKeys(
                    after=page.next,
                    limit=request.limit,
                    local=request.local,
                    remote=request.remote,
                    link=request.link,
                    state=request.state,
                    service=request.service,
                )
            )
            yield page

    def log_pages(self, head: LogHead) -> Iterator[LogPage]:
        """The leaves under a head, in order. ControlError if a page is not the one that must follow."""
        position = 0
        while position < head.size:
            page: LogPage = self.ask(AskExportPage(position=position, size=head.size))
            if page.position != position or not page.leaves or position + len(page.leaves) > head.size:
                raise ControlError(f"the agent left out entries of its audit log after entry {position}")
            yield page
            position += len(page.leaves)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> None:
        try:
            self._socket.connect(os.fspath(self._path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoAgentError(
                f"no agent listens at {self._path}: is it running, with this `control.socket`?"
            ) from None
        except OSError as error:
            raise ControlError(f"cannot connect to {self._path}: {error.strerror or error}") from None

    def _receive(self) -> FromAgent:
        try:
            header = self._exactly(LENGTH.size)
            said = decode_from_agent(self._exactly(length_of(header, MAX_ANSWERED_BYTES)))
        except TimeoutError:
            raise ControlError(f"the agent at {self._path} does not answer") from None
        except OSError as error:
            raise ControlError(f"the connection to {self._path} broke: {error.strerror or error}") from None
        if isinstance(said, Closed):
            raise _error(said.code, f"{said.reason} [{said.code}]")
        return said

    def _exactly(self, size: int) -> bytes:
        parts, left = [], size
        while left:
            part = self._socket.recv(left)
            if not part:
                raise ControlError(f"the agent at {self._path} closed the connection before it had answered")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def _error(code: str, text: str) -> Exception:
    return REFUSALS.get(code, ControlError)(text)
