"""`/healthz`, `/readyz` and `/metrics`.

Alive means that the operator still notices changes, which a process can stop doing while it goes on answering: its queue turns, its comparisons
are tried, kopf's watches run, and what comparisons see the watches have told. That PostgreSQL or the API server is away is no illness of the
operator, and no restart heals it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from entrepot_operator import metrics
from entrepot_operator.comparison import Comparison
from entrepot_operator.context import Context
from entrepot_operator.kinds import GROUP, KINDS, VERSION
from entrepot_operator.poller import Poller

__all__ = ["Health", "serve"]

_STALE = 180.0
"""Seconds without a sign of life after which something hangs; more than the longest look at an object."""
_WATCH_START = 60.0
"""Seconds that kopf may take to start or restart its watches."""


@dataclass(slots=True)
class Health:
    """Evidence of life; parts that have not been started yet are None."""

    context: Context | None = None
    comparison: Comparison | None = None
    poller: Poller | None = None
    watching_since: float | None = None
    _watches_seen: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether it works: the schema is there and all resources have been listed once."""
        return self.watching_since is not None

    def illness(self) -> str:
        """What is wrong, in one sentence; empty if nothing is."""
        now = time.monotonic()
        if self.context is None or self.comparison is None or self.poller is None or self.watching_since is None:
            return ""
        # The queue's clock is the loop's, which is monotonic as well.
        if asyncio.get_running_loop().time() - self.context.queue.heartbeat > _STALE:
            return "the queue stands still"
        if now - self.poller.heartbeat > _STALE:
            return "PostgreSQL is not asked any more"
        interval = self.context.tuning.comparison_interval.total_seconds()
        if now - self.comparison.heartbeat > 2 * interval + _STALE:
            return "the comparison stands still"
        if self.comparison.dead:
            return f"the watch of {', '.join(sorted(self.comparison.dead))} does not tell what is there"
        missing = self._missing_watches()
        if not missing:
            self._watches_seen = now
        elif now - max(self._watches_seen, self.watching_since) > _WATCH_START:
            return f"kopf does not watch {', '.join(missing)} any more"
        return ""

    @staticmethod
    def _missing_watches() -> list[str]:
        names = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("watcher for ")]
        return [kind.plural for kind in KINDS if not any(f"{kind.plural}.{VERSION}.{GROUP}" in name for name in names)]

    def measure(self) -> None:
        """Set the metrics that are read rather than counted."""
        if self.context is not None:
            metrics.QUEUE_DEPTH.set(len(self.context.queue))
            metrics.QUEUE_ACTIVE.set(self.context.queue.active)
            metrics.QUEUE_DELAYED.set(self.context.queue.delayed)
        if self.comparison is not None and self.comparison.succeeded_at is not None:
            metrics.COMPARISON_AGE.set(time.monotonic() - self.comparison.succeeded_at)


@contextlib.asynccontextmanager
async def serve(health: Health, *, port: int) -> AsyncIterator[None]:
    """Answer on a port until the block ends."""

    async def healthz(_: web.Request) -> web.Response:
        illness = health.illness()
        return web.Response(status=500 if illness else 200, text=illness or "ok")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(status=200 if health.ready else 503, text="ok" if health.ready else "starting")

    async def numbers(_: web.Request) -> web.Response:
        health.measure()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", numbers)])
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
