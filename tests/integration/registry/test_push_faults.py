"""Pushes while S3 and PostgreSQL fail: 201 only for what is durable, otherwise an error that says to come again, and then it works."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from yarl import URL

from entrepot.settings import S3Settings
from tests import contents, services
from tests.conftest import Database, ObjectStore, Postgres
from tests.faults import Fault, FaultyS3, PostgresWire
from tests.pushes import Pusher, digest_of, pusher
from tests.services import Answer, Running, wait_ready

MIB = 1024 * 1024
REFUSING = [Fault.SLOW_DOWN, Fault.RESET, Fault.LOST]
LASTING = 1_000_000
"""Times that a request fails: until all is well again."""


@dataclass
class Bench:
    """A registry that reaches S3 through a proxy that can fail, with an empty repository."""

    running: Running
    client: Pusher
    s3: FaultyS3

    async def holds(self, data: bytes, algorithm: str = "sha256") -> bool:
        """Whether the blob is there, and if so, that it is right."""
        path = f"blobs/{digest_of(data, algorithm)}"
        if await self.client.status("HEAD", path) == 404:
            return False
        got = await self.client.ask("GET", path)
        assert (got.status, got.body == data) == (200, True)
        return True


@pytest.fixture
async def bench(database: Database, s3: S3Settings, object_store: ObjectStore, tmp_path: Path) -> AsyncIterator[Bench]:
    async with FaultyS3(object_store.port) as proxy:
        through = dataclasses.replace(s3, endpoint=f"http://127.0.0.1:{proxy.port}")
        async with services.running(database, through, tmp_path / "keys") as started:
            await contents.make_distribution(
                started.owner, await contents.make_repository(started.owner), access="Private"
            )
            yield Bench(started, await pusher(started), proxy)


def is_put(method: str, url: URL) -> bool:
    return method == "PUT"


def is_begin(method: str, url: URL) -> bool:
    return method == "POST" and "uploads" in url.query


def is_part(method: str, url: URL) -> bool:
    return method == "PUT" and "partNumber" in url.query


def is_last_part(method: str, url: URL) -> bool:
    return method == "PUT" and url.query.get("partNumber") == "2"


def is_completion(method: str, url: URL) -> bool:
    return method == "POST" and "uploadId" in url.query


def is_read(method: str, url: URL) -> bool:
    return method == "GET" and "blobs/" in url.path


def is_away(answer: Answer) -> bool:
    """The error that tells a client to come again."""
    return (answer.status, answer.code) == (503, "UNAVAILABLE") and int(answer.headers["Retry-After"]) > 0


# S3


@pytest.mark.parametrize("fault", REFUSING)
async def test_a_blob_that_s3_does_not_take_is_503_and_not_there_and_works_later(bench: Bench, fault: Fault) -> None:
    data = os.urandom(100_000)
    bench.s3.fail(fault, is_put)
    async with asyncio.timeout(60):
        refused = await bench.client.blob(data)
    assert bench.s3.failed
    assert is_away(refused)
    assert not await bench.holds(data)
    bench.s3.heal()
    assert (await bench.client.blob(data)).status == 201
    assert await bench.holds(data)


@pytest.mark.parametrize("fault", REFUSING)
async def test_what_s3_fails_at_once_is_there_if_it_was_answered_with_201(bench: Bench, fault: Fault) -> None:
    for size in (1000, 100_000):
        data = os.urandom(size)
        bench.s3.fail(fault, is_put, times=1)
        got = await bench.client.blob(data)
        assert got.status == 201 or is_away(got)
        assert await bench.holds(data) == (got.status == 201)
        bench.s3.heal()
        assert (await bench.client.blob(data)).status == 201
        assert await bench.holds(data)


@pytest.mark.parametrize(("fault", "times"), [(Fault.LOST, 1), (Fault.LOST, LASTING), (Fault.SLOW_DOWN, LASTING)])
@pytest.mark.parametrize("step", [is_begin, is_part, is_last_part, is_completion])
async def test_a_large_upload_goes_on_after_a_failure_of_s3(
    bench: Bench, fault: Fault, step: object, times: int
) -> None:
    data = os.urandom(12 * MIB)
    location = await bench.client.begin()
    bench.s3.fail(fault, step, times=times)  # type: ignore[arg-type]
    patched = await bench.client.patch(location, data, at=0)
    assert patched.status == 202 or is_away(patched)
    done = None
    if patched.status == 202:
        done = await bench.client.finish(patched.headers["Location"], digest_of(data))
        assert done.status == 201 or is_away(done)
        assert await bench.holds(data) == (done.status == 201)
    assert bench.s3.failed
    bench.s3.heal()
    if done is None or done.status != 201:
        await finish_as_a_client_would(bench, location, data)
    assert await bench.holds(data)


async def finish_as_a_client_would(bench: Bench, location: str, data: bytes) -> None:
    """Ask what has arrived, send the rest, and end; or begin anew if the session is lost."""
    standing = await bench.client.ask("GET", location)
    if standing.status == 404:
        location, offset = await bench.client.begin(), 0
    else:
        assert standing.status == 204
        location, last = standing.headers["Location"], int(standing.headers["Range"].removeprefix("0-"))
        offset = last + 1 if last else 0
    if offset < len(data):
        patched = await bench.client.patch(location, data[offset:], at=offset)
        assert patched.status == 202, patched.body
        location = patched.headers["Location"]
    done = await bench.client.finish(location, digest_of(data))
    assert done.status == 201, done.body


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.RESET, Fault.TRUNCATED, Fault.WRONG])
async def test_what_has_to_be_read_again_for_its_digest_is_never_believed_unread(bench: Bench, fault: Fault) -> None:
    """The session began without telling that it would be sha512: the bytes are read again from S3 before the answer."""
    data = os.urandom(6 * MIB)
    location = await bench.client.begin()
    patched = await bench.client.patch(location, data)
    assert patched.status == 202
    bench.s3.fail(fault, is_read)
    digest = digest_of(data, "sha512")
    got = await bench.client.finish(patched.headers["Location"], digest)
    assert bench.s3.failed
    assert is_away(got) or (fault is Fault.WRONG and (got.status, got.code) == (400, "DIGEST_INVALID"))
    assert not await bench.holds(data, "sha512")
    bench.s3.heal()
    again = await bench.client.finish(location, digest)
    if again.status != 201:
        # The session may end with a wrong digest; then the client begins anew.
        assert again.code == "BLOB_UPLOAD_UNKNOWN"
        assert (await bench.client.blob(data, algorithm="sha512")).status == 201
    assert await bench.holds(data, "sha512")


async def test_a_manifest_needs_no_s3(bench: Bench) -> None:
    image = contents.image(os.urandom(100_000))
    for blob in image.blobs:
        assert (await bench.client.blob(blob)).status == 201
    bench.s3.fail(Fault.RESET, lambda _method, _url: True)
    assert (await bench.client.manifest(image.body, "v1")).status == 201
    assert (await bench.client.ask("GET", "manifests/v1")).body == image.body
    assert bench.s3.failed == 0


# PostgreSQL


@pytest.fixture
async def wire(postgres: Postgres) -> AsyncIterator[PostgresWire]:
    async with PostgresWire(postgres.port) as made:
        yield made


@pytest.fixture
async def wired(database: Database, s3: S3Settings, wire: PostgresWire, tmp_path: Path) -> AsyncIterator[Bench]:
    """The same, but it is PostgreSQL that is reached through a proxy."""
    dsn = database.dsn("registry").replace(f":{database.server.port}/", f":{wire.port}/")
    through = dataclasses.replace(database.settings("registry"), dsn=dsn)
    async with services.running(database, s3, tmp_path / "keys", registry_database=through) as started:
        await contents.make_distribution(started.owner, await contents.make_repository(started.owner), access="Private")
        yield Bench(started, await pusher(started), FaultyS3(0))


@pytest.mark.parametrize("is_executed", [False, True])
@pytest.mark.parametrize("size", [1000, 100_000])
async def test_a_connection_cut_at_a_blobs_commit(
    wired: Bench, wire: PostgresWire, size: int, is_executed: bool
) -> None:
    data = os.urandom(size)
    wire.cut(digest_of(data).encode(), is_executed=is_executed)
    got = await wired.client.blob(data)
    assert wire.cuts == 1
    assert got.status == 201 or is_away(got)
    if got.status == 201 or is_executed:
        assert await wired.holds(data)
    assert (await wired.client.blob(data)).status == 201
    assert await wired.holds(data)


@pytest.mark.parametrize("is_executed", [False, True])
async def test_a_connection_cut_at_a_manifests_commit(wired: Bench, wire: PostgresWire, is_executed: bool) -> None:
    image = contents.image(os.urandom(1000))
    for blob in image.blobs:
        await wired.client.blob(blob)
    wire.cut(b"a-tag-of-its-own", is_executed=is_executed)
    got = await wired.client.manifest(image.body, "a-tag-of-its-own")
    assert wire.cuts == 1
    assert got.status == 201 or is_away(got)
    there = await wired.client.status("HEAD", "manifests/a-tag-of-its-own") == 200
    assert there == (await wired.client.status("HEAD", f"manifests/{image.digest}") == 200)
    assert there or got.status != 201
    assert (await wired.client.manifest(image.body, "a-tag-of-its-own")).status == 201
    assert (await wired.client.ask("GET", "manifests/a-tag-of-its-own")).body == image.body
    # However often it was tried, it is one version.
    assert await wired.running.owner.fetchval("select count(*) from version") == 1


async def test_an_upload_and_a_push_get_over_a_restart_of_the_database(
    bench: Bench, postgres: Postgres, database: Database
) -> None:
    data = os.urandom(6 * MIB)
    location = await bench.client.begin()
    patched = await bench.client.patch(location, data[: 3 * MIB], at=0)
    assert patched.status == 202
    await asyncio.to_thread(postgres.stop)
    try:
        for got in (
            await bench.client.patch(patched.headers["Location"], data[3 * MIB :], at=3 * MIB),
            await bench.client.blob(os.urandom(1000)),
            await bench.client.blob(os.urandom(100_000)),
            await bench.client.manifest(contents.image(b"x").body, "v1"),
            await bench.client.ask("DELETE", "manifests/v1"),
            await bench.client.ask("POST", "blobs/uploads/"),
        ):
            assert is_away(got)
    finally:
        await asyncio.to_thread(postgres.start)
    await wait_ready(bench.running.http, bench.running.registry)
    standing = await bench.client.ask("GET", patched.headers["Location"])
    assert (standing.status, standing.headers["Range"]) == (204, f"0-{3 * MIB - 1}")
    patched = await bench.client.patch(standing.headers["Location"], data[3 * MIB :], at=3 * MIB)
    assert patched.status == 202
    assert (await bench.client.finish(patched.headers["Location"], digest_of(data))).status == 201
    assert await bench.holds(data)
