"""What the operator's role can and cannot do in PostgreSQL, and the statements in which two of them could meet."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from entrepot.db.operator import OperatorDatabase, RepositoryRow
from entrepot.db.pool import Pool, open_pool
from tests.conftest import Database

WEEK = timedelta(days=7)


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    async with open_pool(database.settings("operator"), application="test") as opened:
        yield opened


@pytest.fixture
def db(pool: Pool) -> OperatorDatabase:
    return OperatorDatabase(pool)


async def make(db: OperatorDatabase, name: str = "app", *, namespace: str = "demo") -> RepositoryRow:
    row = await db.insert_repository(namespace, name, resource_uid=uuid.uuid4(), last_number=0)
    assert row is not None
    return row


async def start(db: OperatorDatabase, row: RepositoryRow, *, maximum: int = 10) -> uuid.UUID | None:
    return await db.insert_run(row.id, spec={"a": 1}, spec_hash="s", trigger="Created", request=None, maximum=maximum)


async def test_sealed_credentials_can_be_written_and_not_read_back(db: OperatorDatabase, pool: Pool) -> None:
    remote = uuid.uuid4()
    for sealed in (b"one", b"two"):
        contact = await db.put_remote(remote, namespace="demo", name="up", url="https://a", credential=("k1", sealed))
        assert contact.contact_at is None
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.fetch("select ciphertext from remote_credential")
    await db.put_remote(remote, namespace="demo", name="up", url="https://a", credential=None)
    assert await pool.fetchval("select count(remote) from remote_credential") == 0


async def test_content_can_neither_be_changed_nor_removed(db: OperatorDatabase, pool: Pool) -> None:
    await make(db)
    for statement in (
        "delete from repository",
        "update repository set latest = 5",
        "delete from version",
        "delete from tag",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)


async def test_of_two_at_once_one_starts_the_run(db: OperatorDatabase) -> None:
    row = await make(db)
    started = await asyncio.gather(*(start(db, row) for _ in range(5)))
    assert len([run for run in started if run]) == 1
    active = await db.active_run(row.id)
    assert active is not None
    await db.fail_run(active.id, reason="JobFailed", message="gone")
    await db.fail_run(active.id, reason="Other", message="too late")
    last = await db.last_run(row.id)
    assert last is not None
    assert (last.outcome, last.reason) == ("Failed", "JobFailed")
    history = await db.run_history(row.id, spec_hash="s")
    assert (history.good_hash, history.failures) == (None, 1)


async def test_not_more_runs_start_than_may_be_under_way(db: OperatorDatabase) -> None:
    rows = [await make(db, f"app{n}") for n in range(3)]
    assert [await start(db, row, maximum=2) is not None for row in rows] == [True, True, False]


async def test_a_path_is_claimed_once_and_reserved_after_its_release(db: OperatorDatabase, pool: Pool) -> None:
    one, two, other = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()

    async def claim(uid: uuid.UUID, *, namespace: str = "demo", name: str = "x") -> bool:
        holder = await db.claim_path("demo/app", namespace=namespace, name=name, distribution=uid, reservation=WEEK)
        return holder is None

    assert await claim(one)
    assert await claim(one)
    assert not await claim(two, name="y")
    assert not await claim(other, namespace="other")
    await db.release_paths(one)
    assert not await claim(other, namespace="other")
    await pool.execute("update base_path_claim set released_at = now() - interval '8 days'")
    assert await claim(other, namespace="other")
    await db.release_paths(other)
    assert not await claim(one)


async def test_a_distribution_made_anew_under_its_name_takes_its_path_over(db: OperatorDatabase) -> None:
    row, old, new = await make(db), uuid.uuid4(), uuid.uuid4()
    for uid in (old, new):
        holder = await db.claim_path("demo/app", namespace="demo", name="app", distribution=uid, reservation=WEEK)
        assert holder is None
        assert await db.put_distribution(
            uid, namespace="demo", name="app", base_path="demo/app", repository=row.id, access="Public"
        )
    assert not await db.put_distribution(
        new, namespace="demo", name="app", base_path="demo/app", repository=row.id, access="Public"
    )
    assert [found[0] for found in await db.distribution_names(maximum=10)] == [new]


async def test_numbers_only_rise(db: OperatorDatabase) -> None:
    row = await make(db)
    for floor in (5, 3):
        await db.raise_number(row.id, floor=floor)
    found = await db.live_repository("demo", "app")
    assert found is not None
    assert found.last_number == 5


async def test_a_deleted_repository_frees_its_name_and_can_be_taken_only_while_the_name_is_free(
    db: OperatorDatabase,
) -> None:
    old = await make(db)
    await db.delete_repository(old.id, grace=WEEK)
    assert await db.live_repository("demo", "app") is None
    deleted = await db.deleted_repository("demo", uuid=old.uuid)
    assert deleted is not None
    assert await db.deleted_repository("other", uuid=old.uuid) is None
    await make(db)
    assert await db.take_repository(deleted, name="app", resource_uid=uuid.uuid4()) is None
    taken = await db.take_repository(deleted, name="back", resource_uid=uuid.uuid4())
    assert taken is not None
    assert taken.deleted_at is None
