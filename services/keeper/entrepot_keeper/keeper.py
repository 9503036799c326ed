"""Round after round, by one process at a time.

Who works holds a lock of its PostgreSQL session, and does all its work over that same connection: who has lost the lock cannot go on. The
others ask for the lock now and then. A round that fails gives the connection and the lock away, so that another process, which may reach
what this one does not, can take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator

import asyncpg
import structlog

from entrepot.db import keeper as db
from entrepot.db.pool import REQUIRED_SCHEMA, Connection, connect, schema_is_ready
from entrepot.errors import DatabaseUnavailable, EntrepotError
from entrepot.settings import DatabaseSettings
from entrepot.web.readiness import NotReady
from entrepot_keeper.metrics import KeeperMetrics
from entrepot_keeper.rounds import Rounds
from entrepot_keeper.settings import KeeperSettings

__all__ = ["Keeper"]

_log = structlog.get_logger("keeper")


class Keeper:
    """The loop."""

    def __init__(
        self, rounds: Rounds, *, database: DatabaseSettings, settings: KeeperSettings, metrics: KeeperMetrics
    ) -> None:
        self._rounds = rounds
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._problem: str | None = "PostgreSQL has not been asked yet"

    async def check(self) -> None:
        """Raises NotReady while PostgreSQL is away, or its schema too old."""
        if self._problem is not None:
            raise NotReady(self._problem)

    async def work(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            try:
                async with self._turn() as connection:
                    while True:
                        await self._round(connection)
                        failures = 0
                        await asyncio.sleep(self._settings.round_interval.total_seconds())
            except EntrepotError as error:
                if isinstance(error, (DatabaseUnavailable, NotReady)):
                    self._problem = error.message
                _log.warning("the round was broken off", reason=error.reason, error=error.message)
            except asyncpg.PostgresError as error:
                self._problem = str(error)
                _log.exception("the round was broken off by a statement that failed")
            failures += 1
            self._metrics.failures.labels("round").inc()
            await asyncio.sleep(self._pause(failures))

    def _pause(self, failures: int) -> float:
        longest = min(self._settings.retry_limit.total_seconds(), 2.0 ** min(failures, 10))
        return longest * (0.5 + secrets.randbelow(500) / 1000)

    async def _round(self, connection: Connection) -> None:
        begun = time.monotonic()
        await self._rounds.perform(connection)
        self._metrics.round_seconds.observe(time.monotonic() - begun)
        self._metrics.rounds.inc()
        self._metrics.succeeded_at.set_to_current_time()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[Connection]:
        """A connection that holds the lock. Raises `DatabaseUnavailable` and NotReady."""
        connection = await connect(self._database, application="entrepot-keeper")
        try:
            if not await schema_is_ready(connection):
                raise NotReady(f"the database's schema is older than {REQUIRED_SCHEMA}")
            self._problem = None
            stands_by = False
            while not await db.try_lock(connection):
                if not stands_by:
                    _log.info("another keeper works; standing by")
                stands_by = True
                await asyncio.sleep(self._settings.standby_interval.total_seconds())
            self._metrics.active.set(1)
            _log.info("working")
            yield connection
        finally:
            self._metrics.active.set(0)
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=2)
