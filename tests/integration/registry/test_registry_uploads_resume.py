"""Uploads that go on: in another process or replica, after a kill, after S3 or PostgreSQL was away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from entrepot.settings import S3Settings
from tests import pushes, services
from tests.conftest import Database, ObjectStore, Postgres
from tests.integration.registry.conftest import Demo, fill
from tests.integration.registry.test_registry_uploads import Slowly, is_leased, outcome
from tests.processes import Processes, process
from tests.pushes import Pusher, digest_of
from tests.services import Running, signed, until, wait_ready

KIB, MIB = 1024, 1024 * 1024


@pytest.fixture
async def replicas(database: Database, s3: S3Settings, tmp_path: Path) -> AsyncIterator[tuple[Pusher, Pusher, Running]]:
    """Two registries over one database, and a client that holds one token for both."""
    keys = tmp_path / "keys"
    async with services.running(database, s3, keys) as one, services.running(database, s3, keys) as two:
        await fill(one)
        first = await pushes.pusher(one)
        yield first, Pusher(two.http, two.url, first.name, first.headers), two


async def served(client: Pusher, data: bytes, algorithm: str = "sha256") -> bool:
    got = await client.ask("GET", f"blobs/{digest_of(data, algorithm)}")
    return got.status == 200 and got.body == data


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize(
    ("size", "chunk"),
    [(40 * KIB, 9 * KIB), (3 * MIB, 700 * KIB), (30 * MIB, 9 * MIB + 1), (24 * MIB, 12 * MIB), (20 * MIB, 20 * MIB)],
)
async def test_every_request_of_an_upload_may_go_to_another_replica(
    replicas: tuple[Pusher, Pusher, Running], size: int, chunk: int, algorithm: str
) -> None:
    *clients, _ = replicas
    data = os.urandom(size)
    location = await clients[0].begin()
    for turn, at in enumerate(range(0, size, chunk), 1):
        part = data[at : at + chunk]
        got = await clients[turn % 2].patch(location, part, at=at)
        assert (got.status, got.headers["Range"]) == (202, f"0-{at + len(part) - 1}"), got.body
        told = await clients[(turn + 1) % 2].ask("GET", location)
        assert told.headers["Range"] == got.headers["Range"]
    turn += 1
    got = await clients[turn % 2].finish(location, digest_of(data, algorithm))
    assert got.status == 201, got.body
    for client in clients:
        assert await served(client, data, algorithm)


async def test_only_a_hash_that_is_not_there_costs_reading_again(replicas: tuple[Pusher, Pusher, Running]) -> None:
    here, there, other = replicas
    data = os.urandom(18 * MIB)

    async def reads_of(*turns: tuple[Pusher, int]) -> float:
        location = await here.begin()
        at = 0
        for client, size in turns:
            assert (await client.patch(location, data[at : at + size])).status == 202
            at += size
        before = await other.storage_calls("GetObject")
        assert (await there.finish(location, digest_of(data))).status == 201
        return await other.storage_calls("GetObject") - before

    assert await reads_of((here, 8 * MIB), (here, 10 * MIB)) == 0, "the row has the digest of what one process received"
    assert await reads_of((here, 10 * MIB), (there, 8 * MIB)) == 1, "the hash could not go on there"
    assert await reads_of((here, 8 * MIB), (there, 10 * MIB)) == 0, "no part was sent before, so all bytes were at hand"


async def test_wrong_bytes_are_found_also_where_they_must_be_read_again(
    replicas: tuple[Pusher, Pusher, Running],
) -> None:
    here, there, other = replicas
    location = await here.begin()
    assert (await here.patch(location, os.urandom(10 * MIB))).status == 202
    assert (await there.patch(location, os.urandom(8 * MIB))).status == 202
    assert outcome(await there.finish(location, digest_of(b"other"))) == (400, "DIGEST_INVALID")
    assert outcome(await there.ask("GET", location)) == (404, "BLOB_UPLOAD_UNKNOWN")
    left = await other.owner.fetchval(
        "select count(*) from object where owner like 'upload/%' and delete_after is null"
    )
    assert left == 0


async def test_cancelling_at_one_replica_ends_a_patch_at_the_other(replicas: tuple[Pusher, Pusher, Running]) -> None:
    here, there, other = replicas
    location = await here.begin()
    stream = Slowly()
    stream.send(os.urandom(MIB))
    patch = asyncio.create_task(here.patch(location, stream))
    await until(lambda: is_leased(other))
    assert outcome(await there.patch(location, b"x")) == (409, "BLOB_UPLOAD_INVALID")
    assert (await there.ask("DELETE", location)).status == 204
    stream.end()
    assert outcome(await patch) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_a_lease_that_is_lost_ends_the_request_that_held_it(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with services.running(database, s3, tmp_path / "keys", upload_lease=timedelta(milliseconds=300)) as started:
        await fill(started)
        client = await pushes.pusher(started)
        location = await client.begin()
        stream = Slowly()
        stream.send(b"slow")
        patch = asyncio.create_task(client.patch(location, stream))
        await until(lambda: is_leased(started))
        # It is renewed for as long as the request lives.
        until_then = await started.owner.fetchval("select writer_until from upload")
        await until(lambda: _is_later(started, until_then))
        assert outcome(await client.patch(location, b"quick")) == (409, "BLOB_UPLOAD_INVALID")
        await started.owner.execute("update upload set writer = 'another', writer_until = now() + interval '1 minute'")
        while not patch.done():
            stream.send(b"more")
            await asyncio.sleep(0.02)
        assert outcome(await patch) == (404, "BLOB_UPLOAD_UNKNOWN")
        assert await started.owner.fetchval("select writer from upload") == "another"
        stream.end()


async def _is_later(running: Running, then: object) -> bool:
    return bool(await running.owner.fetchval("select writer_until > $1 from upload", then))


async def test_an_upload_whose_process_is_killed_goes_on_after_its_lease(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with services.running(database, s3, tmp_path / "others") as survivor:
        await fill(survivor)
        started = Processes(database, s3, tmp_path)
        variables = {**started.registry, "ENTREPOT_UPLOAD_LEASE": "6s"}
        headers = await signed(survivor.owner, tmp_path / "keys", {"demo/app": ("pull", "push")})
        with (
            process("entrepot_token", started.token_log, started.token),
            process("entrepot_registry", started.log, variables) as doomed,
        ):
            async with aiohttp.ClientSession() as http:
                await started.ready(http)
                victim = Pusher(http, started.url, "demo/app", headers)
                client = await pushes.pusher(survivor)
                kept = os.urandom(9 * MIB)
                location = await victim.begin()
                assert (await victim.patch(location, kept, at=0)).status == 202
                stream = Slowly()
                stream.send(os.urandom(20 * MIB))
                broken = asyncio.create_task(victim.patch(location, stream))
                await until(lambda: is_leased(survivor))
                doomed.send_signal(signal.SIGKILL)
                with pytest.raises(aiohttp.ClientError):
                    await broken
                assert outcome(await client.patch(location, b"x", at=9 * MIB)) == (409, "BLOB_UPLOAD_INVALID")
        rest = os.urandom(6 * MIB)
        async with asyncio.timeout(20):
            while (got := await client.patch(location, rest, at=9 * MIB)).status == 409:  # noqa: ASYNC110 - the lease is the server's
                await asyncio.sleep(0.1)
        assert (got.status, got.headers["Range"]) == (202, f"0-{15 * MIB - 1}")
        assert (await client.finish(location, digest_of(kept + rest))).status == 201
        assert await served(client, kept + rest)


async def test_s3_away_while_a_chunk_is_sent_is_503_and_the_upload_goes_on(
    demo: Demo, object_store: ObjectStore
) -> None:
    client = await pushes.pusher(demo.running)
    data = os.urandom(20 * MIB)
    location = await client.begin()
    assert (await client.patch(location, data[: 9 * MIB], at=0)).status == 202
    small = await client.begin()
    await asyncio.to_thread(object_store.stop)
    try:
        for got in (
            await client.patch(location, data[9 * MIB :], at=9 * MIB),
            await client.finish(location, digest_of(data), data[9 * MIB :], at=9 * MIB),
            await client.finish(small, digest_of(data[:MIB]), data[:MIB]),
            await client.blob(data[:MIB]),
        ):
            assert outcome(got) == (503, "UNAVAILABLE")
            assert int(got.headers["Retry-After"]) > 0
        # What needs no S3 goes on.
        assert (await client.blob(b"small enough")).status == 201
        assert (await client.ask("GET", location)).headers["Range"] == f"0-{9 * MIB - 1}"
    finally:
        await asyncio.to_thread(object_store.start)
    await wait_ready(demo.running.http, demo.running.registry)
    assert (await client.finish(small, digest_of(data[:MIB]), data[:MIB])).status == 201
    assert (await client.patch(location, data[9 * MIB :], at=9 * MIB)).status == 202
    assert (await client.finish(location, digest_of(data))).status == 201
    assert await served(client, data)
    assert await demo.running.metric("entrepot_registry_buffer_bytes") == 0


@pytest.mark.parametrize("size", [10 * KIB, MIB, 18 * MIB])
async def test_postgresql_away_at_the_end_is_503_and_the_put_can_be_repeated(
    demo: Demo, postgres: Postgres, size: int
) -> None:
    client = await pushes.pusher(demo.running)
    data = os.urandom(size)
    location = await client.begin()
    assert (await client.patch(location, data)).status == 202
    await asyncio.to_thread(postgres.stop)
    try:
        assert outcome(await client.finish(location, digest_of(data))) == (503, "UNAVAILABLE")
    finally:
        await asyncio.to_thread(postgres.start)
    await wait_ready(demo.running.http, demo.running.registry)
    assert (await client.ask("GET", location)).headers["Range"] == f"0-{size - 1}"
    assert (await client.finish(location, digest_of(data))).status == 201
    assert await served(client, data)


async def test_an_object_that_was_completed_before_its_row_was_written_is_found_again(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    """The transaction fails after S3 has made an object of the parts, which it does only once."""
    async with services.running(database, s3, tmp_path / "keys", commit_timeout=timedelta(milliseconds=500)) as started:
        demo = await fill(started)
        client = await pushes.pusher(started)
        data = os.urandom(18 * MIB)
        location = await client.begin()
        assert (await client.patch(location, data)).status == 202
        async with started.owner.transaction():
            await started.owner.execute("select from repository where id = $1 for update", demo.repository)
            assert outcome(await client.finish(location, digest_of(data))) == (503, "UNAVAILABLE")
        assert await started.storage_calls("CompleteMultipartUpload") == 1
        assert outcome(await client.finish(location, digest_of(b"wrong"))) == (400, "DIGEST_INVALID")
        assert (await client.finish(location, digest_of(data))).status == 201
        assert await served(client, data)


async def test_an_upload_whose_bytes_are_gone_is_unknown(demo: Demo) -> None:
    client = await pushes.pusher(demo.running)
    data = os.urandom(18 * MIB)
    for size in (MIB, 9 * MIB):
        location = await client.begin()
        assert (await client.patch(location, data[:size])).status == 202
        row = await demo.running.owner.fetchrow(
            "select object_key, multipart, tail_key from upload where id = $1", location.rpartition("/")[2]
        )
        assert row is not None
        if row["multipart"]:
            await demo.running.store.abort(row["object_key"], row["multipart"])
        if row["tail_key"]:
            await demo.running.store.delete([row["tail_key"]])
        assert outcome(await client.patch(location, data[size:])) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_a_hanging_database_is_503_within_the_limit_and_the_upload_goes_on(demo: Demo) -> None:
    client = await pushes.pusher(demo.running)
    location = await client.begin()
    assert (await client.patch(location, b"before")).status == 202
    owner = demo.running.owner
    async with owner.transaction():
        await owner.execute("lock table upload in access exclusive mode")
        for method, path in (
            ("POST", "blobs/uploads/"), ("PATCH", location), ("GET", location), ("DELETE", location),
            ("PUT", f"{location}?digest={digest_of(b'before')}"),
        ):  # fmt: skip
            async with asyncio.timeout(5):
                assert outcome(await client.ask(method, path, data=b"x")) == (503, "UNAVAILABLE")
    assert (await client.finish(location, digest_of(b"before"))).status == 201


async def test_an_object_that_was_given_up_meanwhile_is_never_pointed_at(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    """As the keeper does with what was begun long ago."""
    async with services.running(database, s3, tmp_path / "keys", upload_keys=1) as started:
        await fill(started)
        client = await pushes.pusher(started)
        data = os.urandom(MIB)
        location = await client.begin()
        stream = Slowly()
        stream.send(data[:1000])
        put = asyncio.create_task(client.ask("PUT", f"{location}?digest={digest_of(data)}", data=stream))
        await until(lambda: _has_a_key(started))
        await started.owner.execute("update object set delete_after = now() where owner like 'registry/%'")
        stream.send(data[1000:])
        stream.end()
        assert outcome(await put) == (503, "UNAVAILABLE")
        assert (await client.ask("HEAD", f"blobs/{digest_of(data)}")).status == 404
        assert (await client.finish(location, digest_of(data), data)).status == 201
        assert await served(client, data)


async def _has_a_key(running: Running) -> bool:
    return bool(await running.owner.fetchval("select exists (select from object where owner like 'registry/%')"))
