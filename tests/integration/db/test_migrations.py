"""The schema comes from the migrations alone, applies once, and can be taken back."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from entrepot.db.migrate import migrate
from entrepot.db.pool import REQUIRED_SCHEMA, open_pool, schema_is_ready
from entrepot.errors import DatabaseUnavailable
from entrepot.settings import DatabaseSettings
from tests.conftest import Database, Postgres, free_port
from tests.schema import SCHEMA, dump


async def test_migrating_again_changes_nothing(database: Database) -> None:
    await migrate(database.settings())
    connection = await asyncpg.connect(database.dsn())
    assert await connection.fetchval("select max(version) from schema_migrations") == REQUIRED_SCHEMA
    await connection.close()


async def test_two_processes_may_migrate_at_once(postgres: Postgres) -> None:
    admin = await asyncpg.connect(postgres.dsn(user="postgres", database="postgres"))
    await admin.execute("create database twice")
    settings = DatabaseSettings(dsn=postgres.dsn(user="postgres", database="twice"))
    async with open_pool(settings, application="test") as pool:
        assert not await schema_is_ready(pool)
        await asyncio.gather(migrate(settings), migrate(settings))
        assert await schema_is_ready(pool)
    await admin.execute("drop database twice with (force)")
    await admin.close()


async def test_a_database_that_is_away_is_said_so() -> None:
    with pytest.raises(DatabaseUnavailable, match="PostgreSQL does not answer"):
        await migrate(DatabaseSettings(dsn=f"postgresql://nobody@127.0.0.1:{free_port()}/none"))


async def test_parts_have_only_the_rights_they_need(database: Database) -> None:
    forbidden = {
        "operator": ["select ciphertext from remote_credential", "insert into tag values (1, 'a', 1, 1, null)", "update repository set latest = 1"],
        "registry": ["select * from remote_credential", "insert into blob (digest) values ('x')", "select * from sync_run", "delete from tag"],
        "token": ["select * from manifest", "select * from blob", "select * from remote_credential", "update distribution set access = 'Public'"],
        "syncer": ["update repository set latest = 1", "insert into version (repository) values (1)", "insert into tag values (1, 'a', 1, 1, null)",
                   "delete from repository_manifest", "update repository_blob set in_latest = 1", "delete from blob"],
    }  # fmt: skip
    for part, statements in forbidden.items():
        connection = await asyncpg.connect(database.dsn(part))
        for statement in statements:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.close()
    connection = await asyncpg.connect(database.dsn("registry"))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(
            "select commit_content(1,'','','{}','{}','{}','{}','{}','{}','{}',null,null,null,null,false,false)"
        )
    await connection.close()


@pytest.mark.allow_blocking
async def test_the_schema_file_equals_the_sum_of_the_migrations(database: Database) -> None:
    assert SCHEMA.read_text() == dump(database.server, database.name), "run `make schema` and look at what changed"
