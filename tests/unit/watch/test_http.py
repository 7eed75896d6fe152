"""The server of metrics and health: what it answers, what it refuses, and that nobody holds it up."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from test_metrics import figures

from qkdnode.config import decode_config
from qkdnode.errors import ConfigError
from qkdnode.watch.figures import Figures, LoopLag, Readiness
from qkdnode.watch.http import WatchServer

READY = Readiness((), {"line": "OPEN"})


class Watched:
    """A node that is asked, and how often."""

    def __init__(self) -> None:
        self.asked = 0
        self.reason: str | None = None
        self.found = READY

    async def figures(self) -> Figures:
        self.asked += 1
        await asyncio.sleep(0.01)
        return figures()

    async def alive(self) -> str | None:
        return self.reason

    def server(self, **options: Any) -> WatchServer:
        return WatchServer(figures=self.figures, alive=self.alive, readiness=lambda: self.found, **options)


async def exchange(server: WatchServer, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes; status, headers and body of the answer, once the server has ended the connection."""
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]) if first else 0, headers, body


async def until_open(server: WatchServer, count: int) -> None:
    """Wait until the server has so many connections."""
    assert server._runner.server is not None
    async with asyncio.timeout(10):
        while len(server._runner.server.connections) != count:
            await asyncio.sleep(0.001)


def asking(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def served(test: Callable[[Watched, WatchServer], Awaitable[None]], **options: Any) -> None:
    """Run a test against a server on a free port of this machine."""

    async def run() -> None:
        watched = Watched()
        server = watched.server(**options)
        await server.start("127.0.0.1", 0)
        try:
            await test(watched, server)
        finally:
            await server.close()
            await server.close()

    asyncio.run(run())


def test_metrics_are_text_for_prometheus_one_request_for_each_connection() -> None:
    async def test(_: Watched, server: WatchServer) -> None:
        status, headers, body = await exchange(server, asking("/metrics") * 3)
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        assert headers["connection"] == "close"
        assert body.count(b"\nqkdnode_vault_up 1.0\n") == 1
        status, headers, body = await exchange(server, asking("/metrics", "HEAD"))
        assert (status, body) == (200, b"")

    served(test)


def test_who_asks_often_gets_the_same_figures() -> None:
    async def test(watched: Watched, server: WatchServer) -> None:
        answers = await asyncio.gather(*(exchange(server, asking("/metrics")) for _ in range(8)))
        assert [status for status, _, _ in answers] == [200] * 8
        assert watched.asked == 1

    served(test, fresh_s=60.0)


def test_figures_are_new_once_they_are_old() -> None:
    async def test(watched: Watched, server: WatchServer) -> None:
        await exchange(server, asking("/metrics"))
        await exchange(server, asking("/metrics"))
        assert watched.asked == 2

    served(test, fresh_s=0.0)


def test_health_and_readiness_say_why_not() -> None:
    async def test(watched: Watched, server: WatchServer) -> None:
        status, headers, body = await exchange(server, asking("/healthz"))
        assert (status, json.loads(body)) == (200, {"alive": True, "reason": None})
        assert headers["content-type"].startswith("application/json")
        watched.reason = "the vault has not answered for 2 s"
        status, _, body = await exchange(server, asking("/healthz"))
        assert (status, json.loads(body)) == (503, {"alive": False, "reason": watched.reason})

        status, _, body = await exchange(server, asking("/readyz"))
        assert (status, json.loads(body)) == (200, {"ready": True, "reasons": [], "links": {"line": "OPEN"}})
        watched.found = Readiness(("the vault is not open",), {})
        status, _, body = await exchange(server, asking("/readyz"))
        assert (status, json.loads(body)["reasons"]) == (503, ["the vault is not open"])

    served(test)


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (asking("/"), 404),
        (asking("/metrics/../secret"), 404),
        (asking("/metrics", "POST"), 405),
        (asking("/metrics", "DELETE"), 405),
        (asking("/" + "x" * 5000), 400),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 5000 + b"\r\n\r\n", 400),
        (b"\x00\x01 nothing of HTTP\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", 200),
    ],
    ids=["root", "elsewhere", "post", "delete", "long path", "long header", "no http", "long body"],
)
def test_anything_else_is_refused_in_bounds(request_: bytes, wanted: int) -> None:
    async def test(watched: Watched, server: WatchServer) -> None:
        status, _, body = await exchange(server, request_)
        assert status == wanted
        assert len(body) < 30_000
        assert (await exchange(server, asking("/healthz")))[0] == 200

    served(test)


def test_a_reader_that_says_nothing_or_half_of_it_is_cut_off() -> None:
    async def test(_: Watched, server: WatchServer) -> None:
        for said in (b"", b"GET /metrics HTTP/1.1\r\nHost: loc"):
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(said)
            with suppress(ConnectionResetError):
                async with asyncio.timeout(5):
                    assert await reader.read() == b""
            writer.close()

    served(test, connection_s=0.1)


def test_one_connection_too_many_is_ended_and_the_others_are_served() -> None:
    async def test(_: Watched, server: WatchServer) -> None:
        held = [await asyncio.open_connection(*server.address) for _ in range(4)]
        await until_open(server, 4)
        status, _, _ = await exchange(server, b"")
        assert (status, server.refused) == (0, 1)
        for _, writer in held:
            writer.close()
        await until_open(server, 0)
        assert (await exchange(server, asking("/healthz")))[0] == 200

    served(test, connections=4)


def test_an_address_in_use_is_an_error_for_people() -> None:
    async def test(watched: Watched, server: WatchServer) -> None:
        other = watched.server()
        with pytest.raises(ConfigError, match=r"`watch.listen`: cannot listen on 127.0.0.1 port \d+: .*free it"):
            await other.start(*server.address)

    served(test)


NODE = """
[node]
name = "alice"
identity = "i"
vault = "v"
root_key = { credential = "root" }
[watch]
"""


@pytest.mark.parametrize("listen", ["127.0.0.1:9464", "[::1]:1", "localhost:65535", "127.5.6.7:80"])
def test_a_loopback_address_needs_nothing_more(listen: str) -> None:
    watch = decode_config(f'{NODE}listen = "{listen}"').watch
    assert watch is not None
    host, port = watch.address
    assert f"{host}:{port}" == listen.replace("[", "").replace("]", "")


def test_the_default_is_this_machine_alone() -> None:
    watch = decode_config(NODE).watch
    assert watch is not None
    assert watch.address == ("127.0.0.1", 9464)


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464", "node.example:9464"])
def test_another_address_must_be_allowed(listen: str) -> None:
    with pytest.raises(ConfigError, match="allow_remote"):
        decode_config(f'{NODE}listen = "{listen}"')
    assert decode_config(f'{NODE}listen = "{listen}"\nallow_remote = true').watch is not None


@pytest.mark.parametrize("listen", ["9464", "127.0.0.1", "127.0.0.1:70000", "::1:80", "tcp://127.0.0.1:80", "a b:1"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError):
        decode_config(f'{NODE}listen = "{listen}"')


def test_the_lag_of_the_loop_is_measured() -> None:
    async def run() -> float:
        lag = LoopLag()
        measuring = asyncio.create_task(lag.run())
        await asyncio.sleep(0.15)
        until = asyncio.get_running_loop().time() + 0.4
        while asyncio.get_running_loop().time() < until:
            pass  # a loop that is held up
        await asyncio.sleep(0.01)
        measuring.cancel()
        return lag.worst_s

    assert asyncio.run(run()) > 0.25
