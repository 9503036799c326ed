"""Changes of content, each one statement and one transaction: tried again where PostgreSQL asks for that, and bounded in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg
from prometheus_client import Counter

from entrepot.db.pool import Connection, Pool, translated
from entrepot.errors import DatabaseUnavailable

__all__ = ["Commits"]

T = TypeVar("T")

_ATTEMPTS = 4


class Commits:
    """Runs changes. What they call must be one statement, so that nothing is half done, and give the same result when done again."""

    def __init__(self, pool: Pool, *, timeout: float, statements: Counter) -> None:
        self._pool = pool
        self._timeout = timeout
        self._statements = statements

    async def run(self, change: Callable[[Connection], Awaitable[T]]) -> T:
        """What `change` gives.

        Raises:
            CommitRefused: as `change` does.
            DatabaseUnavailable: whether the change was made is unknown, unless it is said to be rolled back.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return await self._once(change)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
                last = error
                # The others go on meanwhile, and not all of the losers come back at once.
                await asyncio.sleep(random.uniform(0.01, 0.05) * 2**attempt)  # noqa: S311 - nobody gains by guessing it
        raise DatabaseUnavailable("PostgreSQL rolled a change back again and again") from last

    async def _once(self, change: Callable[[Connection], Awaitable[T]]) -> T:
        with translated():
            async with asyncio.timeout(self._timeout), self._pool.acquire() as connection:
                self._statements.inc()
                return await change(connection)
