"""Connections to PostgreSQL, and what its errors mean to us."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import aiosql
import asyncpg
from asyncpg.pool import PoolConnectionProxy

from entrepot.errors import DatabaseUnavailable
from entrepot.settings import DatabaseSettings

__all__ = [
    "REQUIRED_SCHEMA",
    "Connection",
    "Pool",
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


def queries(part: str) -> Any:
    """The named statements of `queries/<part>.sql`, each a coroutine function that takes a connection first."""
    return aiosql.from_path(Path(__file__).parent / "queries" / f"{part}.sql", "asyncpg", mandatory_parameters=False)


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
async def open_pool(settings: DatabaseSettings, *, application: str) -> AsyncIterator[Pool]:
    """A pool for the life of a process. It opens no connection by itself, so a process starts while PostgreSQL is away."""
    pool = asyncpg.create_pool(
        **_arguments(settings, application),
        min_size=0,
        max_size=settings.pool_size,
        max_inactive_connection_lifetime=300,
        init=_prepare,
    )
    with translated():
        await pool
    try:
        yield pool
    finally:
        # A graceful close waits for borrowed connections; by now nobody should hold one.
        with contextlib.suppress(TimeoutError):
            await _close(pool)


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


async def schema_is_ready(pool: Pool) -> bool:
    """Whether the database has every migration this code needs. Raises `DatabaseUnavailable`."""
    with translated():
        try:
            newest = await pool.fetchval("select max(version) from schema_migrations")
        except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
            return False
    return newest is not None and newest >= REQUIRED_SCHEMA


def _one_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
