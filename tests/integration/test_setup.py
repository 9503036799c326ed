"""The set-up's part in PostgreSQL and S3, on a server that checks passwords: who can log in, and what each role can and cannot do."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from entrepot.blobs.store import open_store
from entrepot.db.migrate import migrate
from entrepot.settings import DatabaseSettings, S3Settings
from entrepot_setup.commands import make_bucket
from entrepot_setup.errors import SetupFailed
from entrepot_setup.generate import PARTS
from entrepot_setup.roles import PasswordRefused, ensure_owner, ensure_roles, role_of, wait_for_database
from entrepot_setup.settings import SetupSettings
from tests.servers import Postgres, free_port, running_postgres

ADMIN_PASSWORD = "the superuser's"
OWNER_PASSWORD = "the owner's"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL server that wants SCRAM passwords, as the chart's does."""
    with running_postgres() as server:

        async def protect() -> None:
            connection = await asyncpg.connect(server.dsn(user="postgres", database="postgres"))
            await connection.execute(f"alter role postgres password '{ADMIN_PASSWORD.replace(chr(39), chr(39) * 2)}'")
            rules = Path(await connection.fetchval("show hba_file"))
            rules.write_text("host all all 127.0.0.1/32 scram-sha-256\n")
            await connection.execute("select pg_reload_conf()")
            await connection.close()

        asyncio.run(protect())
        yield server


@dataclass(frozen=True)
class SetUp:
    """A database that the set-up made and migrated."""

    server: Postgres
    name: str

    def settings(self, user: str, password: str, *, database: str | None = None) -> DatabaseSettings:
        return DatabaseSettings(dsn=self.server.dsn(user=user, database=database or self.name), password=password)

    @property
    def admin(self) -> DatabaseSettings:
        return self.settings("postgres", ADMIN_PASSWORD, database="postgres")

    @property
    def owner(self) -> DatabaseSettings:
        return self.settings("entrepot_owner", OWNER_PASSWORD)

    async def set_up(self, passwords: dict[str, str]) -> None:
        admin = await wait_for_database(self.admin, seconds=5)
        await ensure_owner(admin, owner=self.owner)
        await admin.close()
        owner = await wait_for_database(self.owner, seconds=5)
        await ensure_roles(owner, passwords=passwords)
        await owner.close()

    async def connect(self, part: str) -> asyncpg.Connection[asyncpg.Record]:
        return await wait_for_database(self.settings(role_of(part), part), seconds=0)


PASSWORDS = {role_of(part): part for part in PARTS}


@pytest.fixture(scope="module")
def setup(server: Postgres) -> SetUp:
    """Set up and migrated, as after an install; the tests that use it leave it so."""
    made = SetUp(server, "entrepot")

    async def make() -> None:
        await made.set_up(PASSWORDS)
        await migrate(made.owner)

    asyncio.run(make())
    return made


async def test_each_part_logs_in_with_its_password_and_with_no_other(setup: SetUp) -> None:
    for part in PARTS:
        connection = await setup.connect(part)
        assert await connection.fetchval("select current_user") == f"entrepot_{part}"
        await connection.close()
        with pytest.raises(PasswordRefused, match=f"'entrepot_{part}'"):
            await wait_for_database(setup.settings(role_of(part), "another"), seconds=5)


async def test_running_the_set_up_again_changes_nothing_but_a_changed_password(setup: SetUp) -> None:
    await setup.set_up(PASSWORDS)
    await setup.set_up({**PASSWORDS, "entrepot_token": "a new one"})
    changed = await wait_for_database(setup.settings("entrepot_token", "a new one"), seconds=0)
    await changed.close()
    await (await setup.connect("registry")).close()
    await setup.set_up(PASSWORDS)


async def test_two_set_ups_at_once_do_not_disturb_each_other(setup: SetUp) -> None:
    await asyncio.gather(*(setup.set_up(PASSWORDS) for _ in range(4)))
    for part in PARTS:
        connection = await setup.connect(part)
        assert await connection.fetchval("select current_user") == f"entrepot_{part}"
        await connection.close()


async def test_the_owner_is_no_superuser_and_migrates_all_the_same(setup: SetUp) -> None:
    owner = await wait_for_database(setup.owner, seconds=0)
    assert (
        await owner.fetchval(
            "select rolsuper or rolcreatedb or rolreplication or rolbypassrls from pg_roles where rolname = current_user"
        )
        is False
    )
    assert await owner.fetchval("select count(*) from schema_migrations") > 0
    await owner.close()


async def test_parts_have_no_rights_on_the_server(setup: SetUp) -> None:
    for part in PARTS:
        connection = await setup.connect(part)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("create role intruder")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("create table intruder ()")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("create temporary table intruder ()")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("set role entrepot_owner")
        await connection.close()


async def test_nobody_else_may_connect(setup: SetUp) -> None:
    admin = await wait_for_database(setup.admin, seconds=0)
    await admin.execute("drop role if exists stranger")
    await admin.execute("create role stranger login password 'stranger'")
    await admin.close()
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        await wait_for_database(setup.settings("stranger", "stranger"), seconds=0)


FORBIDDEN = [
    ("registry", "insert into tag (repository, name, manifest, added) values (1, 'latest', 1, 1)"),
    ("registry", "update repository set latest = 1"),
    ("registry", "select * from remote_credential"),
    ("registry", "select * from sync_run"),
    ("token", "select * from blob"),
    ("token", "select * from remote_credential"),
    ("token", "update distribution set access = 'Public'"),
    ("operator", "select ciphertext from remote_credential"),
    ("operator", "insert into tag (repository, name, manifest, added) values (1, 'latest', 1, 1)"),
    ("operator", "select * from blob"),
    ("operator", "update repository set latest = 1"),
    ("syncer", "insert into tag (repository, name, manifest, added) values (1, 'latest', 1, 1)"),
    ("syncer", "update repository set latest = 1"),
    ("syncer", "update remote_credential set ciphertext = ''"),
    ("syncer", "insert into distribution (uuid) values (gen_random_uuid())"),
    ("syncer", "update sync_run set spec = '{}'"),
    ("syncer", "delete from blob"),
    ("keeper", "insert into object (key, owner) values ('', '')"),
    ("keeper", "update object set owner = ''"),
    ("keeper", "select tail from upload"),
    ("keeper", "update upload set touched_at = now()"),
    ("keeper", "select inline from blob"),
    ("keeper", "delete from blob"),
    ("keeper", "select spec from sync_run"),
    ("keeper", "select * from repository"),
    ("keeper", "select * from remote_credential"),
]


@pytest.mark.parametrize(("part", "statement"), FORBIDDEN)
async def test_no_role_can_do_what_its_part_never_does(setup: SetUp, part: str, statement: str) -> None:
    connection = await setup.connect(part)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement)
    await connection.close()


async def test_only_the_syncer_may_commit_content(setup: SetUp) -> None:
    may = {}
    for part in PARTS:
        connection = await setup.connect(part)
        may[part] = await connection.fetchval(
            "select bool_or(has_function_privilege(oid, 'execute')) from pg_proc where proname = 'commit_content'"
        )
        await connection.close()
    assert may == {"operator": False, "registry": False, "token": False, "syncer": True, "keeper": False}


ALLOWED = [
    ("registry", "select digest from blob"),
    ("registry", "select name from tag"),
    ("token", "select base_path, access from distribution"),
    ("operator", "select remote, key_id from remote_credential"),
    ("operator", "select * from sync_run"),
    ("syncer", "select ciphertext from remote_credential"),
    ("syncer", "select * from sync_run"),
    ("keeper", "delete from upload where touched_at < now() - interval '1 day'"),
    ("keeper", "delete from object where delete_after <= now()"),
    ("keeper", "select object_key from blob"),
    *((part, "select max(version) from schema_migrations") for part in PARTS),
]


@pytest.mark.parametrize(("part", "statement"), ALLOWED)
async def test_each_role_can_do_what_its_part_does(setup: SetUp, part: str, statement: str) -> None:
    connection = await setup.connect(part)
    await connection.execute(statement)
    await connection.close()


async def test_the_migrations_may_run_before_the_roles_have_a_login(server: Postgres) -> None:
    early = SetUp(server, f"setup_{uuid.uuid4().hex[:8]}")
    await early.set_up({})
    await migrate(early.owner)
    await early.set_up(PASSWORDS)
    await (await early.connect("syncer")).close()


async def test_a_database_that_is_not_there_yet_is_waited_for(server: Postgres) -> None:
    late = SetUp(server, f"setup_{uuid.uuid4().hex[:8]}")

    async def make() -> None:
        await asyncio.sleep(0.5)
        await late.set_up(PASSWORDS)

    made = asyncio.create_task(make())
    connection = await wait_for_database(late.owner, seconds=20, password_may_come=True)
    assert await connection.fetchval("select current_database()") == late.name
    await connection.close()
    await made


async def test_a_server_that_does_not_come_is_named(server: Postgres) -> None:
    port = free_port()
    nowhere = DatabaseSettings(dsn=f"postgresql://entrepot_owner@127.0.0.1:{port}/entrepot")
    with pytest.raises(
        SetupFailed, match=f"PostgreSQL at 127.0.0.1:{port} was not ready within 1 s: .*does not answer"
    ):
        await wait_for_database(nowhere, seconds=1)


async def test_the_bucket_is_made_once(s3: S3Settings) -> None:
    absent = dataclasses.replace(s3, bucket=f"new-{uuid.uuid4().hex[:8]}")
    for _ in range(2):
        await make_bucket(SetupSettings(), absent)
    async with open_store(absent) as store:
        await store.check()


async def test_an_s3_that_does_not_answer_is_named(s3: S3Settings) -> None:
    away = dataclasses.replace(s3, endpoint=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(SetupFailed, match=f"bucket '{s3.bucket}' at {away.endpoint} cannot be had"):
        await make_bucket(SetupSettings(setup_timeout=timedelta(seconds=1)), away)
