"""The port for metrics and probes: all that the keeper listens on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web
from prometheus_client import exposition

from entrepot.web.readiness import Readiness
from entrepot.web.service import health
from entrepot_keeper.metrics import KeeperMetrics

__all__ = ["serve"]


@contextlib.asynccontextmanager
async def serve(*, host: str, port: int, metrics: KeeperMetrics, readiness: Readiness) -> AsyncIterator[int]:
    """Answer until the block ends; gives the port that is listened on."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/metrics":
            # In a thread: reading the process's own numbers reads files.
            body = await asyncio.to_thread(exposition.generate_latest, metrics.registry)
            return web.Response(body=body, headers={"Content-Type": exposition.CONTENT_TYPE_LATEST})
        found = await health(request.path, readiness)
        return found or web.Response(status=404, text="/metrics, /healthz and /readyz are here\n")

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
