"""Real servers for the tests: one PostgreSQL and one versitygw a test run, a fresh database and bucket a test, all on loopback.

A missing binary is a failure, not a skip: `make setup` installs all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import asyncpg
import pytest

from entrepot.db.migrate import migrate
from entrepot.settings import DatabaseSettings, S3Settings
from tests.servers import (
    ObjectStore,
    Postgres,
    find_tool,
    free_port,
    is_listening,
    running_object_store,
    running_postgres,
    stop,
    wait_until,
)

__all__ = ["Database", "ObjectStore", "Postgres", "find_tool", "free_port", "is_listening", "stop", "wait_until"]

PARTS = ("operator", "registry", "token", "syncer", "keeper")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL server."""
    with running_postgres() as server:
        yield server


@dataclass(frozen=True)
class Database:
    """A migrated database of one test."""

    server: Postgres
    name: str

    def settings(self, role: str = "owner", *, pool_size: int = 10) -> DatabaseSettings:
        """How a part reaches it: role is owner, operator, registry, token, syncer or keeper."""
        return DatabaseSettings(dsn=self.dsn(role), pool_size=pool_size)

    def dsn(self, role: str = "owner") -> str:
        return self.server.dsn(user="postgres" if role == "owner" else f"entrepot_{role}", database=self.name)


async def _execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def template_database(postgres: Postgres) -> str:
    """The name of a migrated database that each test's own is copied from."""
    name = "template_entrepot"
    admin = postgres.dsn(user="postgres", database="postgres")
    asyncio.run(_execute(admin, f"create database {name}"))
    asyncio.run(migrate(DatabaseSettings(dsn=postgres.dsn(user="postgres", database=name))))
    asyncio.run(_execute(admin, *(f"alter role entrepot_{part} login" for part in PARTS)))
    return name


@contextlib.asynccontextmanager
async def fresh_database(postgres: Postgres, template: str) -> AsyncIterator[Database]:
    """A database of one's own, copied from a migrated one."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = postgres.dsn(user="postgres", database="postgres")
    await _execute(admin, f"create database {name} template {template}")
    yield Database(postgres, name)
    await _execute(admin, f"drop database {name} with (force)")


@pytest.fixture
async def database(postgres: Postgres, template_database: str) -> AsyncIterator[Database]:
    """A fresh migrated database."""
    async with fresh_database(postgres, template_database) as made:
        yield made


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """A running S3 server."""
    with running_object_store() as store:
        yield store


@pytest.fixture
def s3(object_store: ObjectStore) -> S3Settings:
    """Settings of a fresh bucket."""
    return object_store.settings()


@pytest.fixture(autouse=True)
def no_blocking(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which our code blocks the event loop."""
    from blockbuster import blockbuster_ctx

    with contextlib.ExitStack() as stack:
        if "asyncio" in request.keywords and "allow_blocking" not in request.keywords:
            guard = stack.enter_context(blockbuster_ctx("entrepot"))
            for function in guard.functions.values():
                # asyncpg looks for .pgpass and client certificates, once a connection.
                function.can_block_in("asyncpg/connect_utils.py", {"_parse_connect_dsn_and_args"})
                # Only for an unforeseen error, whose report should say what it was.
                function.can_block_in("structlog/tracebacks.py", {"extract"})
                # Reading a kubeconfig, once a process.
                function.can_block_in("entrepot_token/reviews.py", {"open_cluster"})
                # Finding dbmate and starting it: once a process, in the init container.
                function.can_block_in("entrepot/db/migrate.py", {"_dbmate", "migrate"})
        yield
