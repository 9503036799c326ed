"""Sockets: the service's port, the port for metrics and probes, and the way out.

On SIGTERM a service becomes unready at once and goes on accepting for a while, because load balancers learn of it late; then it stops
accepting, and answers under way may finish, up to a limit.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from types import TracebackType

import msgspec
import structlog
from aiohttp import http_parser, web
from aiohttp.web_server import Server
from prometheus_client import exposition

from entrepot.web.access_log import AccessLog
from entrepot.web.connection import BoundedServer
from entrepot.web.gate import Gate, Handler
from entrepot.web.metrics import WebMetrics
from entrepot.web.proxies import Proxies
from entrepot.web.readiness import Readiness
from entrepot.web.settings import WebSettings
from entrepot.web.traces import Traces
from entrepot.web.workers import Worker

__all__ = ["WebService", "health", "until_told_to_stop"]

_log = structlog.get_logger("web")


class WebService:
    """A handler, listening: `async with`, then `port` and `metrics_port` are what it listens on."""

    def __init__(
        self, handler: Handler, *, port: int, metrics_port: int, settings: WebSettings, metrics: WebMetrics, readiness: Readiness,
        headers: Mapping[str, str] | None = None, traces: Traces | None = None, worker: Worker | None = None,
    ) -> None:  # fmt: skip
        if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
            # The fallback has had more ways to be led astray by a crafted request than the compiled one.
            raise RuntimeError("aiohttp was installed without its compiled HTTP parser")
        self._settings = settings
        self._metrics = metrics
        self._readiness = readiness
        self._access_log = AccessLog(is_shared=worker is not None)
        self._worker = worker
        base = {"X-Content-Type-Options": "nosniff", **(headers or {})}
        self._gate = Gate(
            handler, metrics=metrics, access_log=self._access_log, max_requests=settings.max_requests, headers=base,
            proxies=Proxies(settings.trusted_proxies) if settings.trusted_proxies else None, traces=traces,
        )  # fmt: skip
        self._ports = (port, metrics_port)
        self._runners: list[web.ServerRunner] = []
        self.port = port
        self.metrics_port = metrics_port

    async def __aenter__(self) -> WebService:
        operations = web.Server(self._operations, access_log=None)
        if self._worker is None:
            # The probes' port first: a process that cannot have its main port should say so where it is looked at.
            self.metrics_port = await self._listen(operations, self._ports[1], patience=1)
        server = BoundedServer(self._gate, settings=self._settings, metrics=self._metrics)
        self.port = await self._listen(server, self._ports[0], patience=self._settings.drain_timeout.total_seconds())
        if self._worker is not None:
            # Last: by it the supervisor sees that this worker has what it needs.
            runner = await self._runner(operations, patience=1)
            await web.UnixSite(runner, str(self._worker.socket)).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The main port first: probes and metrics stay until the last answer is out.
        for runner in reversed(self._runners):
            await runner.cleanup()
        self._access_log.flush()

    async def _listen(self, server: Server, port: int, *, patience: float) -> int:
        runner = await self._runner(server, patience=patience)
        # Workers share the port, among which the kernel spreads connections.
        is_shared = True if self._worker is not None else None
        site = web.TCPSite(runner, self._settings.host or None, port, backlog=1024, reuse_port=is_shared)
        await site.start()
        bound: int = runner.addresses[0][1]
        return bound

    async def _runner(self, server: Server, *, patience: float) -> web.ServerRunner:
        runner = web.ServerRunner(server, shutdown_timeout=patience)
        await runner.setup()
        self._runners.append(runner)
        return runner

    def retire(self) -> None:
        """Become unready, and ask clients not to keep their connections."""
        self._readiness.draining = True
        self._gate.closing = True

    async def _operations(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/metrics":
            # In a thread: reading the process's own numbers reads files.
            body = await asyncio.to_thread(exposition.generate_latest, self._metrics.registry)
            return web.Response(body=body, headers={"Content-Type": exposition.CONTENT_TYPE_LATEST})
        answer = await health(request.path, self._readiness)
        return answer or web.Response(status=404, text="/metrics, /healthz and /readyz are here\n")


async def health(path: str, readiness: Readiness) -> web.Response | None:
    """The answer to a probe; None if the path is not one's."""
    if path == "/healthz":
        return web.Response(body=b'{"status":"alive"}', content_type="application/json")
    if path == "/readyz":
        problems = await readiness.problems()
        is_ready = readiness.is_ready
        body: dict[str, object] = {"status": "ready" if is_ready else "unready"}
        if problems:
            body["problems"] = problems
        return web.Response(
            status=200 if is_ready else 503, body=msgspec.json.encode(body), content_type="application/json"
        )
    return None


async def until_told_to_stop(service: WebService, settings: WebSettings) -> None:
    """Serve until SIGTERM or SIGINT, then retire; a second signal ends the delay."""
    loop = asyncio.get_running_loop()
    told, told_again = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (told_again if told.is_set() else told).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    _log.info("serving", port=service.port, metrics_port=service.metrics_port)
    await told.wait()
    service.retire()
    _log.info("draining", delay=settings.drain_delay.total_seconds(), limit=settings.drain_timeout.total_seconds())
    try:
        async with asyncio.timeout(settings.drain_delay.total_seconds()):
            await told_again.wait()
    except TimeoutError:
        pass
