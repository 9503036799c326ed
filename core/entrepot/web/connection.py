"""One client's connection: aiohttp's, with our form of errors, and with an end to what a slow client can hold.

aiohttp closes a connection that is idle. Three more ways to hold one for nothing end here: a head that comes byte by byte, an answer of
which no byte is taken, and more connections than the process bears. Pipelined requests are bounded by aiohttp: beyond some tens it reads
no more until they are answered. What an answer is buffered in is the transport's; a client that takes some of it, however slowly, stays.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

from entrepot.web.gate import Gate, malformed
from entrepot.web.metrics import WebMetrics
from entrepot.web.quick import QuickConnection
from entrepot.web.settings import WebSettings

__all__ = ["BoundedServer"]

_log = structlog.get_logger("web")

_AFTER_THE_HANDLER = 1.0
"""Seconds: a streamed answer has the same limit in its handler, which knows what it breaks off, and is to be first."""


class _Connection(QuickConnection):
    """aiohttp's connection with times for what it leaves open."""

    __slots__ = ("_buffered", "_head_timeout", "_head_timer", "_metrics", "_stall_timeout", "_stall_timer", "_wire")

    def __init__(self, server: Server, *, settings: WebSettings, metrics: WebMetrics, **more: Any) -> None:
        super().__init__(server, **more)
        self._metrics = metrics
        self._head_timeout = settings.head_timeout.total_seconds()
        self._stall_timeout = settings.write_timeout.total_seconds() + _AFTER_THE_HANDLER
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._buffered = 0
        # aiohttp forgets its own as soon as it closes; but closing waits for the client to take the rest.
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = transport  # type: ignore[assignment]
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._stall_timer = self._wire = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiter = self._waiter
        # Nothing is being answered, and what has come is no whole request yet.
        if waiter is not None and self._head_timer is None and not waiter.done():
            self._head_timer = self._loop.call_later(self._head_timeout, self._head_is_late, self._request_count)

    def _head_is_late(self, count: int) -> None:
        self._head_timer = None
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._request_count == count:
            self._metrics.dropped.labels("head").inc()
            self.force_close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_the_rest()

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().resume_writing()

    def _watch_the_rest(self) -> None:
        if self._wire is not None:
            self._buffered = self._wire.get_write_buffer_size()
            self._stall_timer = self._loop.call_later(self._stall_timeout, self._check_the_rest)

    def _check_the_rest(self) -> None:
        if self._wire is None:
            return
        if self._wire.get_write_buffer_size() < self._buffered:
            self._watch_the_rest()
        else:
            self._metrics.dropped.labels("stalled").inc()
            self._wire.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        _log.info("unreadable request", client=request.remote, status=status, error=type(exc).__name__)
        response = malformed(exc, status=status)
        response.force_close()
        return response


class BoundedServer(Server):
    """aiohttp's low-level server, with a bound on its connections."""

    def __init__(self, gate: Gate, *, settings: WebSettings, metrics: WebMetrics) -> None:
        super().__init__(gate)
        self._settings = settings
        self._metrics = metrics

    def __call__(self) -> RequestHandler:
        settings = self._settings
        return _Connection(
            self,
            settings=settings,
            metrics=self._metrics,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=settings.idle_timeout.total_seconds(),
            max_line_size=settings.max_header,
            max_field_size=settings.max_header,
            max_headers=settings.max_headers,
            access_log=None,
            auto_decompress=False,
        )

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._connections) > self._settings.max_connections:
            self._metrics.dropped.labels("too_many").inc()
            transport.abort()
