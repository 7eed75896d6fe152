"""Metrics and health over HTTP: GET and HEAD of three paths, one request for each connection, everything bounded."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

from qkdnode.errors import ConfigError
from qkdnode.watch.figures import Figures, Readiness
from qkdnode.watch.metrics import CONTENT_TYPE, exposition

FRESH_S = 1.0  # readers within it get the same figures: who asks often does not burden the vault
CONNECTION_S = 10.0  # from accepting a connection to its end, whatever the reader does
CONNECTIONS = 16
LINE_BYTES = 2_048  # of the request, and of each header
BODY_BYTES = 1_024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(asyncio.Protocol):
    """Ends a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class WatchServer:
    """`/metrics` for Prometheus, `/healthz` and `/readyz` for who starts and balances: 200 if so, 503 with why not.

    `figures` is asked at most once a second; `alive` says whether the loop's partners answer; `readiness` what is
    missing. There is no access control: listen where only those reach it who may read it.
    """

    def __init__(
        self,
        *,
        figures: Callable[[], Awaitable[Figures]],
        alive: Callable[[], Awaitable[str | None]],
        readiness: Callable[[], Readiness],
        fresh_s: float = FRESH_S,
        connection_s: float = CONNECTION_S,
        connections: int = CONNECTIONS,
    ) -> None:
        self._figures, self._alive, self._readiness = figures, alive, readiness
        self._fresh_s, self._connection_s, self._most = fresh_s, connection_s, connections
        self._exposed, self._exposed_at = b"", float("-inf")
        self._exposing = asyncio.Lock()
        application = web.Application(client_max_size=BODY_BYTES, middlewares=[_one_request])
        for path, answer in (("/metrics", self._metrics), ("/healthz", self._health), ("/readyz", self._ready)):
            application.router.add_get(path, answer)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            lingering_time=0,
            shutdown_timeout=1.0,
        )
        self._server: asyncio.Server | None = None
        self.refused = 0

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, the port in place of 0."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def start(self, host: str, port: int) -> None:
        """Listen. ConfigError if the address cannot be had."""
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(self._accept, host, port, backlog=self._most)
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"`watch.listen`: cannot listen on {host} port {port}: {error.strerror or error}; "
                "choose another address, or free it"
            ) from None

    async def close(self) -> None:
        """End what is open, and listen no more. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        await self._runner.cleanup()
        self._server = None

    def _accept(self) -> asyncio.BaseProtocol:
        """A protocol for one more connection, that ends in time even if its reader sends or takes nothing."""
        assert self._runner.server is not None
        if len(self._runner.server.connections) >= self._most:
            self.refused += 1
            return Refusal()
        protocol = self._runner.server()
        asyncio.get_running_loop().call_later(self._connection_s, partial(_abort, protocol))
        return protocol

    async def _metrics(self, _: web.Request) -> web.Response:
        async with self._exposing:
            now = asyncio.get_running_loop().time()
            if now - self._exposed_at >= self._fresh_s:
                self._exposed = exposition(await self._figures())
                self._exposed_at = now
            return web.Response(body=self._exposed, headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        reason = await self._alive()
        return _judged(reason is None, {"alive": reason is None, "reason": reason})

    async def _ready(self, _: web.Request) -> web.Response:
        found = self._readiness()
        return _judged(found.ready, {"ready": found.ready, "reasons": found.reasons, "links": dict(found.links)})


def _judged(good: bool, body: dict[str, Any]) -> web.Response:
    return web.Response(
        status=200 if good else 503, text=json.dumps(body) + "\n", content_type="application/json", charset="utf-8"
    )


@web.middleware
async def _one_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A connection ends with its first answer: so its time is bounded by one timer."""
    try:
        response = await handler(request)
    except web.HTTPException as refusal:
        refusal.force_close()
        raise
    response.force_close()
    return response


def _abort(protocol: Any) -> None:
    if protocol.transport is not None:
        protocol.transport.abort()
