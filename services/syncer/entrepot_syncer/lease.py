"""One process works on a run: it holds a lock for the life of a connection, and reports over that same connection.

A process that was killed loses the lock with its connection, without any time-out to be tuned. A process whose connection breaks while
PostgreSQL restarts takes the lock again; if another has it by then, it stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import structlog

from entrepot.db import syncer as db
from entrepot.db.pool import connect
from entrepot.errors import DatabaseUnavailable, EntrepotError, Failed
from entrepot.settings import DatabaseSettings
from entrepot_syncer.patience import patiently
from entrepot_syncer.progress import Progress
from entrepot_syncer.settings import SyncerSettings

__all__ = ["Lease", "RunHeld", "RunOver", "hold_lease"]

_log = structlog.get_logger(__name__)
_HEARTBEAT = 5.0
"""Seconds between two signs of life while no count changes."""


class RunHeld(Failed):
    """Another process works on this run."""

    default_reason = "RunHeld"


class RunOver(EntrepotError):
    """Somebody else ended this run while it was worked on, and nothing of it may be committed any more."""

    default_reason = "RunOver"


class Lease:
    """The right to work on a run."""

    def __init__(self, run: UUID, *, database: DatabaseSettings, settings: SyncerSettings) -> None:
        self._run = run
        self._database = database
        self._settings = settings
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def acquire(self) -> None:
        """Raises RunHeld or DatabaseUnavailable."""

        async def once() -> None:
            connection = await connect(self._database, application="entrepot-syncer-lease")
            try:
                await self._lock(connection)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection

        await patiently(once, outage=self._settings.outage)

    async def _lock(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        deadline = time.monotonic() + self._settings.lock_wait.total_seconds()
        while not await db.try_lock_run(connection, self._run):
            if time.monotonic() > deadline:
                raise RunHeld(f"another process works on run {self._run}")
            await asyncio.sleep(0.25)

    async def keep(self, progress: Progress) -> None:
        """Report until cancelled. Raises RunHeld, RunOver or DatabaseUnavailable when the run is not ours any more."""
        told, told_at = None, 0.0
        while True:
            await asyncio.sleep(self._settings.progress_interval.total_seconds())
            now = progress.snapshot()
            if now == told and time.monotonic() - told_at < _HEARTBEAT:
                continue
            try:
                if self._connection is None:
                    await self.acquire()
                assert self._connection is not None  # noqa: S101 # acquire sets it or raises
                if not await db.report_progress(self._connection, self._run, progress=now):
                    raise RunOver(f"run {self._run} was ended by somebody else")
            except DatabaseUnavailable as error:
                if self._connection is None:
                    raise
                _log.warning("the lease's connection was lost", error=str(error))
                self._drop()
                continue
            told, told_at = now, time.monotonic()

    async def release(self) -> None:
        """Give the lock back."""
        if self._connection is not None:
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._connection.close(timeout=2)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


@contextlib.asynccontextmanager
async def hold_lease(run: UUID, *, database: DatabaseSettings, settings: SyncerSettings) -> AsyncIterator[Lease]:
    """Hold the run for the length of a block. Raises RunHeld or DatabaseUnavailable."""
    lease = Lease(run, database=database, settings=settings)
    await lease.acquire()
    try:
        yield lease
    finally:
        await lease.release()
