"""Connections to PostgreSQL, and what its errors mean to us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import aiosql
import asyncpg
from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy

from entrepot.errors import DatabaseUnavailable
from entrepot.settings import DatabaseSettings

__all__ = [
    "REQUIRED_SCHEMA",
    "Connection",
    "Pool",
    "PoolObserver",
    "all_rows",
    "connect",
    "open_pool",
    "queries",
    "schema_is_ready",
    "translated",
]

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

REQUIRED_SCHEMA = max(path.name.split("_")[0] for path in (Path(__file__).parent / "migrations").glob("*.sql"))
"""The newest migration this code was written for; parts are unready until the database has it."""

# What means "the database is away or going away", as opposed to "this statement is wrong".
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # The server's farewell came between two messages of ours: the library then finds itself in no state that it knows.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidPasswordError,
)

# A node that dies says no goodbye: without these its sessions, and every lock they hold, would outlive it by hours.
_SESSION = {
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "idle_in_transaction_session_timeout": "60000",
}


_NAMES: dict[str, str] = {}
"""By the text of a statement, its name; for metrics and traces."""
_TRANSACTION = frozenset({"begin", "commit", "rollback", "savepoint", "release"})


class PoolObserver(Protocol):
    """Who is told what the database takes."""

    def statement(self, name: str, seconds: float, error: str | None) -> None:
        """A statement has ended: its name, never its text; `error` is the type of the exception."""
        ...

    def pool_wait(self, seconds: float) -> None:
        """The pool has given a connection."""
        ...


def queries(part: str) -> Any:
    """The named statements of `queries/<part>.sql`, each a coroutine function that takes a connection first."""
    found: Any = aiosql.from_path(
        Path(__file__).parent / "queries" / f"{part}.sql", "asyncpg", mandatory_parameters=False
    )
    for name in found.available_queries:
        if not name.endswith("_cursor"):  # aiosql's own second name
            _NAMES[getattr(found, name).sql] = name
    return found


def _name_of(query: str) -> str:
    """One of few names, for a label: a statement that is not one of ours by name is `other`."""
    name = _NAMES.get(query)
    if name is None:
        word = query.split(None, 1)[0].rstrip(";").lower() if query else ""
        name = word if word in _TRANSACTION else "other"
    return name


async def all_rows(rows: AsyncIterator[asyncpg.Record]) -> list[asyncpg.Record]:
    """The rows of a statement that gives many: aiosql hands them out one by one, though it has fetched them all."""
    return [row async for row in rows]


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise `DatabaseUnavailable` where the database is away; other errors pass as they are."""
    try:
        yield
    except _AWAY as error:
        raise DatabaseUnavailable(f"PostgreSQL does not answer: {_one_line(error)}") from error


async def _prepare(connection: Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


def _arguments(settings: DatabaseSettings, application: str) -> dict[str, Any]:
    return {
        "dsn": settings.dsn,
        "password": settings.password or None,
        "timeout": settings.connect_timeout.total_seconds(),
        "command_timeout": settings.command_timeout.total_seconds(),
        "server_settings": {"application_name": application, **_SESSION},
    }


@contextlib.asynccontextmanager
async def open_pool(
    settings: DatabaseSettings, *, application: str, observer: PoolObserver | None = None
) -> AsyncIterator[Pool]:
    """A pool for the life of a process. It opens no connection by itself, so a process starts while PostgreSQL is away."""
    pool = _ObservedPool(
        **_arguments(settings, application), min_size=0, max_size=settings.pool_size, max_queries=50_000,
        max_inactive_connection_lifetime=300, connect=None, setup=None, init=_initializer(observer), reset=None, loop=None,
        connection_class=asyncpg.Connection, record_class=asyncpg.Record,
    )  # fmt: skip
    pool.observer = observer
    with translated():
        await pool
    try:
        yield pool
    finally:
        # A graceful close waits for borrowed connections; by now nobody should hold one.
        with contextlib.suppress(TimeoutError):
            await _close(pool)


class _ObservedPool(asyncpg.Pool):
    """A pool that tells how long it let its callers wait."""

    observer: PoolObserver | None = None

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext:
        context = _ObservedAcquire(self, timeout)
        context.observer = self.observer
        return context


class _ObservedAcquire(PoolAcquireContext):
    observer: PoolObserver | None = None

    async def __aenter__(self) -> Any:
        started = time.perf_counter()
        connection = await super().__aenter__()
        if self.observer is not None:
            self.observer.pool_wait(time.perf_counter() - started)
        return connection

    def __await__(self) -> Generator[Any, None, Any]:
        started = time.perf_counter()
        connection = yield from super().__await__()
        if self.observer is not None:
            self.observer.pool_wait(time.perf_counter() - started)
        return connection


def _initializer(observer: PoolObserver | None) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """What is done to a new connection: our types, and our ear, which asyncpg calls in the context of who asked."""
    if observer is None:
        return _prepare
    told = observer

    def note(record: Any) -> None:
        error = type(record.exception).__name__ if record.exception is not None else None
        told.statement(_name_of(record.query), record.elapsed, error)

    async def prepare(connection: Connection) -> None:
        await _prepare(connection)
        connection.add_query_logger(note)

    return prepare


async def _close(pool: Pool) -> None:
    try:
        async with asyncio.timeout(5):
            await pool.close()
    except TimeoutError:
        pool.terminate()


async def connect(settings: DatabaseSettings, *, application: str) -> asyncpg.Connection[asyncpg.Record]:
    """One connection of its own, for LISTEN and advisory locks. Raises `DatabaseUnavailable`."""
    with translated():
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(**_arguments(settings, application))
        await _prepare(connection)
        return connection


async def schema_is_ready(pool: Pool | Connection) -> bool:
    """Whether the database has every migration this code needs. Raises `DatabaseUnavailable`."""
    with translated():
        try:
            newest = await pool.fetchval("select max(version) from schema_migrations")
        except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
            return False
    return newest is not None and newest >= REQUIRED_SCHEMA


def _one_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
