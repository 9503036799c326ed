"""Waiting out an absence of PostgreSQL or S3: restarts and fail-overs take seconds, and a run should survive them.

What is repeated is always safe to repeat: rows are written by digest, an object by its own key, the commit by its ledger entry. An
absence that lasts longer than the setting ends the process, and the Job starts another attempt.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import asyncpg
import structlog
import tenacity

from entrepot.db.pool import Connection, Pool, translated
from entrepot.errors import DatabaseUnavailable, StorageUnavailable

__all__ = ["Database", "patiently"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)
_OUTAGES = 10
"""Absences that one operation lives through at most."""


async def patiently(operation: Callable[[], Awaitable[T]], *, outage: timedelta) -> T:
    """Repeat an operation while PostgreSQL or S3 is away, for the length of `outage`; then its error is raised.

    The time counts from the first failure: an operation may have worked for an hour before. One that has worked for longer than an outage
    may last has met another one; that is granted a few times.
    """
    limit = outage.total_seconds()
    begun = time.monotonic()
    first_failure: float | None = None
    outages = 0

    def stop(_: tenacity.RetryCallState) -> bool:
        nonlocal first_failure, outages
        now = time.monotonic()
        if first_failure is None or (now - begun > limit and outages < _OUTAGES):
            first_failure = now
            outages += 1
        return now - first_failure >= limit

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.warning("waiting for storage", error=str(error), attempt=state.attempt_number)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type((DatabaseUnavailable, StorageUnavailable)),
        stop=stop,
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        before_sleep=tell,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            begun = time.monotonic()
            return await operation()
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _rolled_back() -> Iterator[None]:
    """A deadlock's victim did nothing wrong, and nothing of it was done: it is as good as a lost connection."""
    try:
        yield
    except asyncpg.exceptions.TransactionRollbackError as error:
        raise DatabaseUnavailable(f"PostgreSQL rolled a transaction back ({error.sqlstate})") from error


class Database:
    """The pool, with patience."""

    def __init__(self, pool: Pool, *, outage: timedelta) -> None:
        self._pool = pool
        self._outage = outage

    async def run(self, work: Callable[[Connection], Awaitable[T]], *, transaction: bool = False) -> T:
        """Do `work` with a connection, in one transaction if asked to; from the start again where the connection was lost
        or the transaction rolled back."""

        async def once() -> T:
            with translated(), _rolled_back():
                async with self._pool.acquire() as connection:
                    if not transaction:
                        return await work(connection)
                    async with connection.transaction():
                        return await work(connection)

        return await patiently(once, outage=self._outage)
