"""What the service manager is told (sd_notify(3)): ready, stopping, a status line, signs of life for its watchdog."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Self


class ServiceManager:
    """The socket that systemd, or what stands in for it, gave this process; without one nothing is told.

    `address` is a path, or begins with '@' for the abstract namespace. A sign of life is due every `watchdog_s`.
    """

    def __init__(self, address: str | None, watchdog_s: float | None) -> None:
        self.watchdog_s = watchdog_s
        self._address = address.replace("@", "\0", 1) if address is not None and address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """From NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, which are taken out, so that no child speaks for us."""
        address = environment.pop("NOTIFY_SOCKET", None)
        microseconds = environment.pop("WATCHDOG_USEC", "")
        ours = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_s = int(microseconds) / 1e6 if ours and microseconds.isdecimal() and int(microseconds) > 0 else None
        return cls(address if address and address[0] in "/@" else None, watchdog_s)

    def ready(self, status: str) -> None:
        """The start, or a reload, is done."""
        self._tell("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1", "STATUS=stopping")

    def status(self, text: str) -> None:
        """One line for people."""
        self._tell(f"STATUS={_line(text)}")

    def alive(self) -> None:
        """A sign of life."""
        self._tell("WATCHDOG=1")

    async def keep_alive(
        self, why_not: Callable[[float], Awaitable[str | None]], status: Callable[[], str], every_s: float = 15.0
    ) -> None:
        """Until cancelled: a status line, and a sign of life at half of the watchdog's time, but only after an answer.

        `why_not(seconds)` gives None if all that must answer has done so within the time. A loop that hangs does not
        come here, and what does not answer keeps the sign of life back: the watchdog then ends the process.
        """
        if self._socket is None:
            return
        pause_s = every_s if self.watchdog_s is None else self.watchdog_s / 2
        while True:
            reason = await why_not(pause_s / 2)
            if reason is None:
                self.alive()
            self.status(status() if reason is None else reason)
            await asyncio.sleep(pause_s)

    def close(self) -> None:
        """Tell nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *lines: str) -> None:
        if self._socket is not None and self._address is not None:
            # A manager that is gone or busy must not stop the node; a lost sign of life costs one interval.
            with suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
