"""What the operator's role can and cannot do in PostgreSQL, and the statements in which two of them could meet."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection
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


async def versions(database: Database, row: RepositoryRow, count: int, *, steps: Collection[int] = ()) -> None:
    """The first versions of a repository, without content."""
    owner = await asyncpg.connect(database.dsn("owner"))
    try:
        await owner.execute(
            "insert into version select $1, n, n - 1, now(), 'Push', 'x', n = any ($3), false, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0"
            " from generate_series(1, $2) n",
            row.id,
            count,
            list(steps),
        )
        await owner.execute("update repository set latest = $2, last_number = $2 where id = $1", row.id, count)
    finally:
        await owner.close()


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


async def test_runs_of_deleted_repositories_hold_no_place(db: OperatorDatabase) -> None:
    left, row = await make(db, "left"), await make(db)
    assert await start(db, left, maximum=1)
    assert await start(db, row, maximum=1) is None
    await db.delete_repository(left.id, grace=WEEK)
    assert await start(db, row, maximum=1)


async def test_runs_without_a_sign_of_life_end_and_others_go_on(db: OperatorDatabase, database: Database) -> None:
    rows = [await make(db, name) for name in ("lost", "alive", "new")]
    runs = [await start(db, row) for row in rows]
    owner = await asyncpg.connect(database.dsn("owner"))
    try:
        change = "update sync_run set created_at = now() - interval '2 days', heartbeat_at = now() - $2::interval where id = $1"
        await owner.execute(change, runs[0], timedelta(days=1, minutes=1))
        await owner.execute(change, runs[1], timedelta(hours=23))
    finally:
        await owner.close()
    assert await db.fail_lost_runs(deadline=timedelta(days=1), message="no sign of life") == 1
    last = await db.last_run(rows[0].id)
    assert last is not None
    assert (last.outcome, last.reason, last.message) == ("Failed", "JobFailed", "no sign of life")
    assert [await db.active_run(row.id) is not None for row in rows] == [False, True, True]


async def test_old_runs_are_forgotten_but_those_that_scheduling_goes_by(
    db: OperatorDatabase, database: Database
) -> None:
    row, other = await make(db), await make(db, "other")
    owner = await asyncpg.connect(database.dsn("owner"))
    try:
        for number in range(10):
            outcome, request = "Synced" if number in {1, 2} else "Failed", "please" if number == 4 else None
            for repository in (row.id, other.id):
                await owner.execute(
                    "insert into sync_run (repository, spec, spec_hash, trigger, request, created_at, finished_at, phase, outcome)"
                    " values ($1, '{}', $2, 'Created', $3, now() - make_interval(hours => 20 - $4::int), now(), 'Finished', $5)",
                    repository,
                    f"s{number}",
                    request,
                    number,
                    outcome,
                )
        before = await db.run_history(row.id, spec_hash="s9")
        active = await start(db, row)
        await db.prune_runs(row.id, keep=3)
        found = await owner.fetch(
            "select id, spec_hash from sync_run where repository = $1 order by created_at", row.id
        )
        assert [run["spec_hash"] for run in found] == ["s2", "s4", "s7", "s8", "s9", "s"]
        assert found[-1]["id"] == active
        assert await db.run_history(row.id, spec_hash="s9") == before
        assert await owner.fetchval("select count(*) from sync_run where repository = $1", other.id) == 10
    finally:
        await owner.close()


async def test_a_path_that_was_claimed_and_never_served_is_given_back(db: OperatorDatabase) -> None:
    row, uid = await make(db), uuid.uuid4()

    async def claim(path: str, *, by: uuid.UUID = uid, name: str = "app") -> bool:
        return await db.claim_path(path, namespace="demo", name=name, distribution=by, reservation=WEEK) is None

    async def put(path: str) -> bool:
        return await db.put_distribution(
            uid, namespace="demo", name="app", base_path=path, repository=row.id, access="Public"
        )

    assert await claim("demo/first")
    assert await claim("demo/second")
    assert await db.release_paths(uid, keep="demo/second")
    assert not await db.release_paths(uid, keep="demo/second")
    assert await claim("demo/first", by=uuid.uuid4(), name="other")
    assert await put("demo/second")
    assert not await put("demo/second")
    assert await claim("demo/third")
    assert await put("demo/second")
    assert await claim("demo/third", by=uuid.uuid4(), name="another")


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


async def test_a_row_is_written_when_anything_of_a_distribution_changes(
    db: OperatorDatabase, database: Database
) -> None:
    row, uid = await make(db), uuid.uuid4()
    assert await db.claim_path("demo/app", namespace="demo", name="app", distribution=uid, reservation=WEEK) is None
    await versions(database, row, 2)

    async def put(*, access: str = "Public", pinned: int | None = None, redirect: bool | None = None) -> bool:
        return await db.put_distribution(
            uid, namespace="demo", name="app", base_path="demo/app", repository=row.id,
            access=access, pinned=pinned, redirect=redirect,
        )  # fmt: skip

    async def written() -> tuple[object, ...]:
        async with asyncpg.create_pool(database.dsn("owner"), min_size=1, max_size=1) as owner:
            return tuple(await owner.fetchrow("select access, pinned, redirect from distribution where uuid = $1", uid))

    assert await put()
    for changed in (
        {"access": "Authenticated"},
        {"access": "Private", "pinned": 1},
        {"access": "Private", "pinned": 2, "redirect": False},
        {"access": "Private", "pinned": 2, "redirect": True},
        {},
    ):
        assert await put(**changed)
        assert not await put(**changed), "the same again changes nothing"
        assert await written() == (changed.get("access", "Public"), changed.get("pinned"), changed.get("redirect"))


async def test_a_pinned_version_cannot_go_and_one_that_is_not_there_cannot_be_pinned(
    db: OperatorDatabase, database: Database
) -> None:
    row, uid = await make(db), uuid.uuid4()
    assert await db.find_version(row.id, 1, maximum=3) == (False, [])
    await versions(database, row, 5)
    assert await db.find_version(row.id, 2, maximum=3) == (True, [5, 4, 3])
    assert await db.find_version(row.id, 6, maximum=3) == (False, [5, 4, 3])
    assert await db.claim_path("demo/app", namespace="demo", name="app", distribution=uid, reservation=WEEK) is None

    async def pin(version: int | None) -> None:
        await db.put_distribution(
            uid, namespace="demo", name="app", base_path="demo/app", repository=row.id, access="Public", pinned=version
        )

    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await pin(6)
    await pin(2)
    owner = await asyncpg.connect(database.dsn("owner"))
    try:
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await owner.execute("delete from version where repository = $1 and number = 2", row.id)
        await owner.execute("delete from version where repository = $1 and number = 1", row.id)
        # With the repository everything goes, whatever pins it.
        await owner.execute("delete from repository where id = $1", row.id)
        assert await owner.fetchval("select count(*) from distribution") == 0
    finally:
        await owner.close()


async def test_steps_are_not_shown_unless_they_are_pinned(db: OperatorDatabase, database: Database) -> None:
    row, uid = await make(db), uuid.uuid4()
    await versions(database, row, 6, steps={2, 3, 5})
    assert [v.number for v in await db.shown_versions(row.id, window=2)] == [4, 6]
    assert await db.claim_path("demo/app", namespace="demo", name="app", distribution=uid, reservation=WEEK) is None
    await db.put_distribution(
        uid, namespace="demo", name="app", base_path="demo/app", repository=row.id, access="Public", pinned=3
    )
    assert [v.number for v in await db.shown_versions(row.id, window=2)] == [3, 4, 6]
    [shown] = await db.shown_numbers(window=2, after=0, maximum=10)
    assert list(shown.numbers) == [3, 4, 6]


async def test_clients_may_write_to_a_repository_that_is_no_mirror(db: OperatorDatabase, database: Database) -> None:
    row = await make(db)
    assert not row.is_mirror
    async with asyncpg.create_pool(database.dsn("owner"), min_size=1, max_size=1) as owner:
        await owner.execute("select writable_repository($1)", row.id)
        await db.set_mirror(row.id, is_mirror=True)
        with pytest.raises(asyncpg.PostgresError) as caught:
            await owner.execute("select writable_repository($1)", row.id)
        assert caught.value.sqlstate == "EN006"
        await db.set_mirror(row.id, is_mirror=False)
        await owner.execute("select writable_repository($1)", row.id)


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
