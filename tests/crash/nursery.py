"""A process under the interposing library that has imported everything and forks an end in milliseconds.

It never touches locked memory itself: that is not inherited.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from crash.interposer import library

MAX_ORDERS = 16 * 1024


class Nursery:
    """The starter's side."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tests = Path(__file__).resolve().parents[1]
        environment = {**os.environ, "LD_PRELOAD": str(library())}
        environment["PYTHONPATH"] = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "crash.nursery", str(theirs.fileno())]
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()
        self._socket = ours

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.wait(20)

    def start(self, orders: msgspec.Struct, trace: int | None = None) -> "Child":
        """Start an end; its wire and its process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            ours.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
            theirs.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        fds = [theirs.fileno()] + ([trace] if trace is not None else [])
        socket.send_fds(self._socket, [b"s" + msgspec.msgpack.encode(orders)], fds)
        theirs.close()
        return Child(ours, int(self._socket.recv(32)), self._socket)


class Child:
    """One end that runs."""

    def __init__(self, wire: socket.socket, pid: int, nursery: socket.socket) -> None:
        self.wire, self.pid, self._nursery = wire, pid, nursery

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        self._nursery.send(b"w%d" % self.pid)
        return int(self._nursery.recv(32))


def main(number: int) -> None:
    """Serve until the starter goes."""
    from crash.node import Orders, live

    with socket.socket(fileno=number) as asked:
        while True:
            data, fds, _, _ = socket.recv_fds(asked, MAX_ORDERS, 2)
            if not data:
                return
            if data[:1] == b"w":
                _, status = os.waitpid(int(data[1:]), 0)
                asked.send(b"%d" % os.waitstatus_to_exitcode(status))
                continue
            pid = os.fork()
            if pid == 0:
                asked.close()
                orders = msgspec.msgpack.decode(data[1:], type=Orders)
                live(orders, socket.socket(fileno=fds[0]), fds[1] if len(fds) > 1 else None)
            for fd in fds:
                os.close(fd)
            asked.send(b"%d" % pid)


if __name__ == "__main__":
    main(int(sys.argv[1]))
