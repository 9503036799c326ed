"""What changes in PostgreSQL without any resource changing: versions by push, the progress of runs, what runs found about Remotes.

It asks every two seconds rather than listening: a few indexed queries cost next to nothing, and an answer cannot get lost.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import structlog

from entrepot.errors import DatabaseUnavailable
from entrepot_operator import metrics
from entrepot_operator.context import Context
from entrepot_operator.kinds import REMOTE, REPOSITORY, Key

__all__ = ["Poller"]

log = structlog.get_logger(__name__)

_MAXIMUM = 500
_REPEAT = 60.0
"""Seconds until a version is told again that nobody has taken up: its Repository may be Stalled, or have no resource."""


class Poller:
    """Asks PostgreSQL."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._contacts = datetime(1970, 1, 1, tzinfo=UTC)
        self._told: dict[Key, tuple[int, float]] = {}
        self._up = True
        self.heartbeat = time.monotonic()
        """When it last tried."""

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(self._context.tuning.poll_interval.total_seconds())

    async def once(self) -> None:
        """Ask once. When PostgreSQL is back after it was away, everything is looked at again."""
        self.heartbeat = time.monotonic()
        self._runs()
        try:
            await self._versions()
            await self._remotes()
        except DatabaseUnavailable as error:
            if self._up:
                log.warning("PostgreSQL is away", message=error.message)
            self._up = False
        else:
            if not self._up:
                log.info("PostgreSQL is back")
                self._context.requeue(*self._context.index.keys())
            self._up = True
        metrics.DATABASE_UP.set(1 if self._up else 0)

    async def _versions(self) -> None:
        now = time.monotonic()
        told: dict[Key, tuple[int, float]] = {}
        for namespace, name, latest in await self._context.db.unprojected_repositories(maximum=_MAXIMUM):
            key = Key(REPOSITORY.name, namespace, name)
            known = self._told.get(key)
            if known is None or known[0] != latest or now - known[1] > _REPEAT:
                self._context.queue.add(key)
                known = (latest, now)
            told[key] = known
        self._told = told

    def _runs(self) -> None:
        """Have everybody looked at who has a run under way; the look says whether it still has."""
        keys, self._context.running = self._context.running, set()
        self._context.requeue(*keys)

    async def _remotes(self) -> None:
        for namespace, name, at in await self._context.db.contacts_since(self._contacts, maximum=_MAXIMUM):
            self._context.queue.add(Key(REMOTE.name, namespace, name))
            self._contacts = max(self._contacts, at)
