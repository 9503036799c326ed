"""A run that was given up lives on, transactions that lock each other out, and upstreams that drip: nothing goes backwards, nothing hangs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from collections.abc import Sequence
from datetime import timedelta

import pytest
from aiohttp import web

from entrepot.db.pool import Connection, open_pool
from entrepot.db.syncer import RunEnd
from entrepot_syncer.batches import Batcher
from entrepot_syncer.lease import RunOver
from entrepot_syncer.patience import Database as Patient
from entrepot_syncer.run import perform
from tests.integration.syncer.conftest import Mirror
from tests.integration.syncer.test_crashes import ended, gate, started
from tests.upstreams.images import Generated
from tests.upstreams.server import Handler, Upstream

GIVEN_UP = (
    "update sync_run set finished_at = now(), phase = 'Finished', outcome = 'Failed', reason = 'NodeLost' where id = $1"
)


async def under_way(upstream: Upstream) -> None:
    async with asyncio.timeout(30):
        while not upstream.counts()["GET blobs"]:  # noqa: ASYNC110 # it comes true in a server
            await asyncio.sleep(0.02)


async def given_up_in_the_middle(mirror: Mirror, upstream: Upstream, *, interval: timedelta) -> RunEnd | None:
    """Begins a run with an old image, gives it up as the operator does, lets a newer one mirror a new image, and lets the old one go on."""
    old = upstream.content("app/old")
    old.add_image("latest", layers=[b"old" * 20_000])
    upstream.content().add_image("latest", layers=[b"new" * 20_000])
    released = gate(upstream, after=0)
    run = await mirror.new_run(upstream, name="app/old")
    environment = mirror.environment()
    slow = dataclasses.replace(environment.syncer, progress_interval=interval)
    task = asyncio.create_task(perform(run, dataclasses.replace(environment, syncer=slow)))
    await under_way(upstream)
    await mirror.owner.execute(GIVEN_UP, run)
    upstream.heal()
    assert (await mirror.sync(upstream))["outcome"] == "Synced"
    if interval > timedelta(seconds=1):
        released.set()
    try:
        async with asyncio.timeout(30):
            return await task
    finally:
        row = await mirror.row(run)
        assert (row["outcome"], row["reason"], row["version"]) == ("Failed", "NodeLost", None)
        released.set()


async def test_a_run_that_was_given_up_commits_nothing(mirror: Mirror, upstream: Upstream) -> None:
    with pytest.raises(RunOver):
        await given_up_in_the_middle(mirror, upstream, interval=timedelta(hours=1))
    assert await mirror.tags() == upstream.content().tags
    assert await mirror.latest() == 1


async def test_a_run_that_was_given_up_stops_working(mirror: Mirror, upstream: Upstream) -> None:
    with pytest.raises(RunOver):
        await given_up_in_the_middle(mirror, upstream, interval=timedelta(milliseconds=50))
    assert await mirror.tags() == upstream.content().tags


async def test_the_process_of_a_run_that_was_given_up_asks_for_no_other_attempt(
    mirror: Mirror, upstream: Upstream
) -> None:
    upstream.content().add_image("v1")
    released = gate(upstream, after=0)
    run = await mirror.new_run(upstream)
    with started(mirror, run) as process:
        await under_way(upstream)
        await mirror.owner.execute(GIVEN_UP, run)
        assert await ended(process, seconds=30) == 0, mirror.log()
    released.set()
    words = json.loads((mirror.directory / "termination").read_text())
    assert (words["outcome"], words["reason"]) == (None, "RunOver")


async def test_a_commit_whose_answer_was_lost_counts_once(mirror: Mirror, upstream: Upstream) -> None:
    """The same transaction again, after it was committed: the run is finished by then, and the ledger says by whom."""
    from entrepot.db import syncer

    upstream.content().add_image("v1")
    run = await mirror.new_run(upstream)
    end = await mirror.perform(run)
    assert end is not None
    async with open_pool(mirror.database.settings("syncer"), application="test") as pool, pool.acquire() as connection:
        async with connection.transaction():
            assert await syncer.lock_run(connection, run) is False
            assert await syncer.run_is_applied(connection, run) is True
            assert await syncer.lock_run(connection, uuid.uuid4()) is False
        assert await syncer.report_progress(connection, run, progress=syncer.RunProgress()) is False
        assert await connection.fetchval("show idle_in_transaction_session_timeout") == "1min"


async def test_progress_does_not_wait_for_the_commit(mirror: Mirror, upstream: Upstream) -> None:
    from entrepot.db import syncer

    run = await mirror.new_run(upstream)
    async with (
        open_pool(mirror.database.settings("syncer"), application="test") as pool,
        pool.acquire() as connection,
        pool.acquire() as other,
        connection.transaction(),
    ):
        assert await syncer.lock_run(connection, run)
        async with asyncio.timeout(5):
            assert await syncer.report_progress(other, run, progress=syncer.RunProgress(phase="Committing"))
    assert (await mirror.row(run))["phase"] != "Committing"


async def test_the_victim_of_a_deadlock_is_tried_again(mirror: Mirror, upstream: Upstream) -> None:
    runs = [await mirror.new_run(upstream)]
    await mirror.owner.execute(GIVEN_UP, runs[0])
    runs.append(await mirror.new_run(upstream))
    tries = 0
    lock = "select id from sync_run where id = $1 for update"
    await mirror.owner.execute("set deadlock_timeout = '10min'")  # the other side finds out, and is the victim
    first_is_locked = asyncio.Event()

    async def work(connection: Connection) -> str:
        nonlocal tries
        tries += 1
        await connection.execute(lock, runs[1])
        first_is_locked.set()
        await asyncio.sleep(0.3)
        await connection.execute(lock, runs[0])
        return "done"

    async def other() -> None:
        async with mirror.owner.transaction():
            await mirror.owner.execute(lock, runs[0])
            await first_is_locked.wait()
            await mirror.owner.execute(lock, runs[1])

    async with open_pool(mirror.database.settings("syncer"), application="test") as pool:
        database = Patient(pool, outage=timedelta(seconds=20))

        async def write(items: Sequence[int]) -> Sequence[str]:
            return [await database.run(work, transaction=True) for _ in items]

        batcher = Batcher(write, limit=10, linger=0)
        against = asyncio.create_task(other())
        async with asyncio.timeout(30):
            assert await batcher.submit(1) == "done"
            await against
        await batcher.close()
    assert tries >= 2


@pytest.mark.parametrize("length", [10, 3 * 1024 * 1024])
async def test_the_length_in_an_answer_to_head_is_a_hint(mirror: Mirror, upstream: Upstream, length: int) -> None:
    content = upstream.content()
    content.add_image("v1")

    async def head(_: web.Request) -> web.StreamResponse:
        headers = {"Docker-Content-Digest": content.tags["v1"], "Content-Length": str(length)}
        return web.StreamResponse(headers=headers)

    upstream.fault("HEAD", "manifests/v1", head)
    assert (await mirror.sync(upstream))["outcome"] == "Synced"
    assert await mirror.tags() == content.tags


async def contact(mirror: Mirror) -> str | None:
    found: str | None = await mirror.owner.fetchval("select contact_outcome from remote")
    return found


async def test_contact_is_what_the_upstream_said_where_nothing_is_listed(mirror: Mirror, upstream: Upstream) -> None:
    upstream.content().add_image("v1")
    upstream.auth = "basic"
    row = await mirror.sync(upstream, includeTags=["v1"])
    assert (row["outcome"], row["reason"]) == ("Failed", "Unauthorized")
    assert await contact(mirror) == "Unauthorized"
    upstream.auth = ""
    assert (await mirror.sync(upstream, includeTags=["v1"]))["outcome"] == "Synced"
    assert await contact(mirror) == "Reachable"


def drips(length: int) -> Handler:
    """A handler that sends a byte now and then, often enough for a time-out of single reads."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(length)})
        await response.prepare(request)
        for _ in range(length):
            await response.write(b" ")
            await asyncio.sleep(0.1)
        return response

    return handler


async def test_a_list_that_drips_ends(mirror: Mirror, upstream: Upstream) -> None:
    upstream.content().add_image("v1")
    upstream.fault("GET", "tags/list", drips(1000))
    async with asyncio.timeout(20):
        row = await mirror.sync(upstream, readTimeout="300ms", maxRetries=0)
    assert (row["outcome"], row["reason"]) == ("Failed", "UpstreamUnreachable")


async def test_a_blob_that_drips_is_broken_off(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    content.add_image("v1", layers=[Generated(9, 1)])
    upstream.fault("GET", f"blobs/{content.layers_of('v1')[0]}", drips(1024 * 1024))
    mirror.upstream_settings = dataclasses.replace(
        mirror.upstream_settings, min_rate_window=timedelta(milliseconds=500)
    )
    async with asyncio.timeout(20):
        row = await mirror.sync(upstream, maxRetries=0)
    assert (row["outcome"], row["reason"]) == ("Failed", "UpstreamUnreachable")
    assert "too slow" in row["message"]


async def test_a_failed_run_leaves_no_objects_behind(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    content.add_image("v1", layers=[b"x" * 100_000, b"y" * 100_000])
    released = gate(upstream, after=1)
    run = await mirror.new_run(upstream)
    task = asyncio.create_task(mirror.perform(run))
    await under_way(upstream)
    await mirror.owner.execute("update repository set deleted_at = now(), purge_after = now()")
    released.set()
    async with asyncio.timeout(30):
        await task
    row = await mirror.row(run)
    assert (row["outcome"], row["reason"]) == ("Failed", "RepositoryGone")
    assert await mirror.leftovers() == 0
