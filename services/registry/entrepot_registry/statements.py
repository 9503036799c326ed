"""Statements that are not shared between requests: each in a transaction of its own, bounded in time, tried again where PostgreSQL asks for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import asyncpg

from entrepot.db.pool import Connection, Pool, translated
from entrepot.errors import DatabaseUnavailable
from entrepot_registry.metrics import RegistryMetrics

__all__ = ["Statement", "Statements"]

T = TypeVar("T")

_ATTEMPTS = 4


class Statement:
    """One named statement. A change must give the same result when it is made again."""

    def __init__(self, pool: Pool, name: str, *, timeout: timedelta, metrics: RegistryMetrics) -> None:
        self._pool = pool
        self._timeout = timeout.total_seconds()
        self._count = metrics.statements.labels(name)

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What `work` gives, which must be one statement: then nothing is ever half done.

        Raises:
            CommitRefused: as `work` does.
            DatabaseUnavailable: PostgreSQL does not answer; whether a change was made is unknown.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return await self._once(work)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
                rolled_back = error
                # Not all of the losers come back at once.
                await asyncio.sleep(random.uniform(0.01, 0.05) * 2**attempt)  # noqa: S311 - nobody gains by guessing it
        raise DatabaseUnavailable("PostgreSQL rolled a change back again and again") from rolled_back

    async def _once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        with translated():
            async with asyncio.timeout(self._timeout), self._pool.acquire() as connection:
                self._count.inc()
                return await work(connection)


class Statements:
    """Statements of one kind, by name."""

    def __init__(self, pool: Pool, *, timeout: timedelta, metrics: RegistryMetrics) -> None:
        self._pool = pool
        self._timeout = timeout
        self._metrics = metrics
        self._by_name: dict[str, Statement] = {}

    async def run(self, name: str, work: Callable[[Connection], Awaitable[T]]) -> T:
        """As `Statement.run`."""
        statement = self._by_name.get(name)
        if statement is None:
            statement = Statement(self._pool, name, timeout=self._timeout, metrics=self._metrics)
            self._by_name[name] = statement
        return await statement.run(work)
