"""Rounds that are cut off anywhere, keepers side by side, and pushes that end at the very moment: nothing in use is lost, nothing stays behind."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from entrepot.db import content
from entrepot.db import keeper as db
from entrepot.db.content import StoredBlob
from entrepot.db.pool import Connection, connect
from entrepot.errors import EntrepotError
from tests import contents
from tests.integration.keeper.conftest import Ward

DATA = b"pushed at the last moment" * 4000
DIGEST = contents.sha256(DATA)
NOW = timedelta(0)


@types.coroutine
def cut_off(work: Coroutine[Any, Any, None], at: int) -> Generator[Any, Any, bool]:
    """Run, and cancel where it waits for the `at`-th time; gives whether it came to that."""
    waits = 0
    try:
        waiting = work.send(None)
        while True:
            waits += 1
            if waits == at:
                waiting = work.throw(asyncio.CancelledError())
                continue
            try:
                value = yield waiting
            except BaseException as error:  # noqa: BLE001 # whatever it is, it is the work's
                waiting = work.throw(error)
            else:
                waiting = work.send(value)
    except (StopIteration, asyncio.CancelledError):
        return waits >= at


async def leave_behind(ward: Ward, number: int) -> tuple[set[str], set[str]]:
    """Something of everything: what must go and what must stay, by key."""
    parts = await ward.begin(f"upload/u{number}", write=False)
    multipart = await ward.multipart(parts)
    tail = await ward.begin(f"upload/u{number}")
    await ward.upload(f"u{number}", object_key=parts, multipart=multipart, tail_key=tail)
    reserved = await ward.begin("registry/one", age="49 hours")
    marked = await ward.begin("import/1", marked="1 hour")
    kept = await ward.begin("registry/one", age="1 hour")
    pointed = await ward.begin("registry/one", age="49 hours")
    await ward.point(pointed)
    return {parts, tail, reserved, marked}, {kept, pointed}


async def test_a_round_that_is_cut_off_anywhere_leaves_the_rest_to_the_next(ward: Ward) -> None:
    for at in range(1, 200):
        leftovers, kept = await leave_behind(ward, at)
        connection = await connect(ward.database.settings("keeper"), application="entrepot-keeper")
        whole = ward.connection
        ward.connection = connection
        was_cut = await cut_off(ward.round(), at)
        # As when a process dies: no farewell.
        connection.terminate()
        ward.connection = whole
        assert kept <= await ward.on_record()
        assert all(ward.in_bucket(key) for key in kept)
        await ward.round()
        assert await ward.on_record() & leftovers == set(), at
        assert not any(ward.in_bucket(key) for key in leftovers), at
        assert await ward.open_multiparts() == 0, at
        assert await ward.uploads() == set(), at
        if not was_cut:
            break
    assert at > 8, "it waits at every statement and every request"
    assert not was_cut


@asynccontextmanager
async def transaction(ward: Ward, role: str) -> AsyncIterator[Connection]:
    """A transaction of a part; what its block raises rolls it back."""
    connection = await connect(ward.database.settings(role), application="test")
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


async def finish_push(connection: Connection, ward: Ward, key: str, *, upload: str | None = None) -> None:
    """The last statement of a push."""
    await connection.execute(
        "select store_pushed_blob($1, $2, $3, $4, null, $5)", ward.repository, DIGEST, len(DATA), key, upload
    )


async def blocked(ward: Ward, task: asyncio.Task[Any]) -> None:
    """Wait until a statement waits for another's lock."""
    async with asyncio.timeout(10):
        while not await ward.owner.fetchval(
            "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')"
        ):
            assert not task.done(), task
            await asyncio.sleep(0.01)


async def mark(connection: Connection) -> int:
    return await db.mark_abandoned(connection, reservation=timedelta(hours=48), delay=NOW, batch=100)


async def pointed_at(ward: Ward) -> str | None:
    key: str | None = await ward.owner.fetchval("select object_key from blob where digest = $1", DIGEST)
    return key


async def test_a_push_that_ends_before_the_keeper_marks_keeps_its_object(ward: Ward) -> None:
    key = await ward.begin("registry/one", age="49 hours")
    async with transaction(ward, "registry") as push:
        await finish_push(push, ward, key)
        marking = asyncio.create_task(mark(ward.connection))
        await blocked(ward, marking)
    assert await marking == 0
    await ward.round()
    assert await pointed_at(ward) == key
    assert ward.in_bucket(key)


async def test_a_push_that_ends_after_the_keeper_marked_is_refused(ward: Ward) -> None:
    key = await ward.begin("registry/one", age="49 hours")
    async with transaction(ward, "keeper") as keeper:
        assert await mark(keeper) == 1

        async def push() -> None:
            async with transaction(ward, "registry") as connection:
                await finish_push(connection, ward, key)

        pushing = asyncio.create_task(push())
        await blocked(ward, pushing)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await pushing
    assert caught.value.sqlstate == "EN007"
    assert await pointed_at(ward) is None
    await ward.round()
    assert not ward.in_bucket(key)


async def expire(connection: Connection) -> int:
    return (await db.expire_uploads(connection, expiry=timedelta(hours=24), delay=NOW, batch=100)).uploads


async def test_an_upload_that_ends_before_the_keeper_expires_it_keeps_its_object(ward: Ward) -> None:
    key = await ward.begin("upload/upload-1")
    await ward.upload(tail_key=key)
    async with transaction(ward, "registry") as push:
        await finish_push(push, ward, key, upload="upload-1")
        expiring = asyncio.create_task(expire(ward.connection))
        await blocked(ward, expiring)
    assert await expiring == 0
    await ward.round()
    assert (await pointed_at(ward), ward.in_bucket(key)) == (key, True)


async def test_an_upload_that_ends_after_the_keeper_expired_it_is_refused(ward: Ward) -> None:
    key = await ward.begin("upload/upload-1")
    await ward.upload(tail_key=key)
    async with transaction(ward, "keeper") as keeper:
        assert await expire(keeper) == 1

        async def push() -> None:
            async with transaction(ward, "registry") as connection:
                await finish_push(connection, ward, key, upload="upload-1")

        pushing = asyncio.create_task(push())
        await blocked(ward, pushing)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await pushing
    assert caught.value.sqlstate == "EN008"
    await ward.round()
    assert (await pointed_at(ward), await ward.on_record()) == (None, set())


async def test_an_upload_that_is_touched_while_it_is_looked_at_stays(ward: Ward) -> None:
    await ward.upload(tail=b"few", offset=3)
    async with transaction(ward, "registry") as client:
        await client.execute("update upload set touched_at = now()")
        expiring = asyncio.create_task(expire(ward.connection))
        await blocked(ward, expiring)
    assert await expiring == 0
    assert await ward.uploads() == {"upload-1"}


async def test_an_object_that_becomes_an_uploads_while_it_is_looked_at_stays(ward: Ward) -> None:
    key = await ward.begin("registry/one", age="49 hours")
    async with transaction(ward, "registry") as client:
        await client.execute(
            "insert into upload (id, repository, subject, tail_key) values ('u', $1, 's', $2)", ward.repository, key
        )
        await client.execute("update object set owner = 'upload/u' where key = $1", key)
        marking = asyncio.create_task(mark(ward.connection))
        await blocked(ward, marking)
    assert await marking == 0
    await ward.round()
    assert (await ward.on_record(), ward.in_bucket(key)) == ({key}, True)


async def test_a_run_that_was_given_up_stores_nothing_in_what_the_keeper_has_marked(ward: Ward) -> None:
    key = await ward.begin(f"sync/{await ward.sync_run(finished=True)}")
    stored = StoredBlob(digest=DIGEST, size=len(DATA), object_key=key)
    assert await mark(ward.connection) == 1
    with pytest.raises(EntrepotError, match="not on record"):
        async with transaction(ward, "syncer") as syncer:
            await content.store_blobs(syncer, [stored])
    assert await pointed_at(ward) is None
    await ward.round()
    with pytest.raises(EntrepotError, match="not on record"):
        async with transaction(ward, "syncer") as syncer:
            await content.store_blobs(syncer, [stored])
    assert await pointed_at(ward) is None


async def test_storing_blobs_again_after_a_lost_answer_changes_nothing(ward: Ward) -> None:
    key = await ward.begin(f"sync/{await ward.sync_run()}")
    for _ in range(2):
        async with transaction(ward, "syncer") as syncer:
            await content.store_blobs(syncer, [StoredBlob(digest=DIGEST, size=len(DATA), object_key=key)])
    assert (await pointed_at(ward), await ward.on_record()) == (key, set())


async def test_of_two_blobs_of_the_same_bytes_one_object_is_left_to_the_keeper(ward: Ward) -> None:
    run = await ward.sync_run()
    first, second = [await ward.begin(f"sync/{run}") for _ in range(2)]
    for key in (first, second):
        async with transaction(ward, "syncer") as syncer:
            await content.store_blobs(syncer, [StoredBlob(digest=DIGEST, size=len(DATA), object_key=key)])
    assert await pointed_at(ward) == first
    await ward.owner.execute("update object set delete_after = delete_after - interval '1 hour'")
    await ward.round()
    assert await ward.on_record() == set()
    assert (ward.in_bucket(first), ward.in_bucket(second)) == (True, False)
