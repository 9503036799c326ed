"""PostgreSQL, S3, the token service and clients that go away, at the start and in the middle; and that all recovers by itself."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from entrepot.settings import S3Settings
from tests import contents, services
from tests.conftest import Database, ObjectStore, Postgres
from tests.integration.registry.conftest import Demo, fill
from tests.services import Running, until, wait_problem, wait_ready

MANIFEST = "/v2/demo/app/manifests/latest"
MIB = 1024 * 1024


class Wire:
    """A TCP proxy before S3 that can be cut after a number of bytes, or stopped in the middle."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.cut_after: int | None = None
        self.passed = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def open(self) -> int:
        return len(self._writers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            up = asyncio.create_task(self._pump(reader, to_writer, count=False))
            down = asyncio.create_task(self._pump(to_reader, writer, count=True))
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            for one in (up, down):
                one.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        finally:
            to_writer.close()
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        while chunk := await reader.read(65536):
            if count:
                self.passed += len(chunk)
                if self.cut_after is not None and self.passed > self.cut_after:
                    return
            writer.write(chunk)
            await writer.drain()


@pytest.fixture
async def wire(object_store: ObjectStore) -> AsyncIterator[Wire]:
    async with Wire(object_store.port) as made:
        yield made


@pytest.fixture
async def wired(database: Database, s3: S3Settings, wire: Wire, tmp_path: Path) -> AsyncIterator[Demo]:
    """The demo, its registry speaking to S3 through the wire."""
    through = dataclasses.replace(s3, endpoint=f"http://127.0.0.1:{wire.port}")
    async with services.running(database, through, tmp_path / "keys") as started:
        yield await fill(started)


async def add_blob(demo: Demo, size: int) -> str:
    """A blob that is larger than what sockets buffer; gives its path."""
    data = os.urandom(size)
    await contents.store(demo.running.owner, demo.repository, data, s3=demo.running.store)
    return f"/v2/demo/app/blobs/{contents.sha256(data)}"


async def test_the_database_goes_and_comes_back(demo: Demo, postgres: Postgres) -> None:
    running = demo.running
    headers = await running.bearer()
    assert (await running.request("GET", MANIFEST, headers=headers)).status == 200
    await asyncio.to_thread(postgres.stop)
    try:
        for path in (MANIFEST, f"/v2/demo/app/blobs/{demo.small_digest}", "/v2/demo/app/tags/list"):
            async with asyncio.timeout(3):
                got = await running.request("GET", path, headers=headers)
            assert (got.status, got.code) == (503, "UNAVAILABLE")
            assert int(got.headers["Retry-After"]) > 0
            assert "database" in got.json()["errors"][0]["message"]
        refused = await running.ask_token("repository:demo/app:pull")
        assert (refused.status, refused.code) == (503, "UNAVAILABLE")
        assert "PostgreSQL" in await wait_problem(running.http, running.registry, "database")
        assert await running.metric(r'entrepot_registry_check_failing\{check="database"\}') == 1
    finally:
        await asyncio.to_thread(postgres.start)
    await wait_ready(running.http, running.registry, running.token)
    for path in (MANIFEST, f"/v2/demo/app/blobs/{demo.large_digest}", "/v2/demo/app/tags/list"):
        assert (await running.request("GET", path, headers=headers)).status == 200


async def test_a_restart_of_the_database_between_two_requests_is_not_noticed(demo: Demo, postgres: Postgres) -> None:
    headers = await demo.running.bearer()
    for _ in range(3):
        for path in (MANIFEST, f"/v2/demo/app/blobs/{demo.small_digest}"):
            assert (await demo.running.request("GET", path, headers=headers)).status == 200
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(postgres.start)
    assert (await demo.running.request("GET", MANIFEST, headers=headers)).status == 200


async def test_a_hanging_database_is_503_within_the_limit(demo: Demo) -> None:
    headers = await demo.running.bearer()
    async with demo.running.owner.transaction():
        await demo.running.owner.execute("lock table tag, repository_blob in access exclusive mode")
        for path in (MANIFEST, f"/v2/demo/app/blobs/{demo.small_digest}", "/v2/demo/app/tags/list"):
            async with asyncio.timeout(4):
                got = await demo.running.request("GET", path, headers=headers)
            assert (got.status, got.code) == (503, "UNAVAILABLE")
    assert (await demo.running.request("GET", MANIFEST, headers=headers)).status == 200


async def test_s3_goes_and_comes_back(demo: Demo, object_store: ObjectStore) -> None:
    running = demo.running
    path = f"/v2/demo/app/blobs/{demo.large_digest}"
    assert (await running.get(path)).status == 200
    await asyncio.to_thread(object_store.stop)
    try:
        got = await running.get(path)
        assert (got.status, got.code) == (503, "UNAVAILABLE")
        assert "Retry-After" in got.headers
        await wait_problem(running.http, running.registry, "storage")
        # What needs no S3 goes on.
        for other in (MANIFEST, f"/v2/demo/app/blobs/{demo.small_digest}"):
            assert (await running.get(other)).status == 200
        assert (await running.head(path)).status == 200
    finally:
        await asyncio.to_thread(object_store.start)
    await wait_ready(running.http, running.registry)
    assert (await running.get(path)).body == demo.large


async def test_s3_breaking_off_in_the_middle_breaks_the_connection(wired: Demo, wire: Wire) -> None:
    path = await add_blob(wired, 20 * MIB)
    wire.cut_after = wire.passed + 10 * MIB
    with pytest.raises(aiohttp.ClientPayloadError):
        await wired.running.get(path)
    assert await wired.running.metric(r'entrepot_registry_responses_broken_total\{reason="server"\}') == 1
    wire.cut_after = None
    assert len((await wired.running.get(path)).body) == 20 * MIB


@pytest.mark.parametrize("change", ["shorter", "longer"])
async def test_an_object_of_another_length_is_never_passed_off_as_the_blob(
    demo: Demo, object_store: ObjectStore, s3: S3Settings, change: str
) -> None:
    key = await demo.running.owner.fetchval("select object_key from blob where digest = $1", demo.large_digest)
    await demo.running.store.put(key, demo.large[:-1000] if change == "shorter" else demo.large + b"x" * 500_000)
    path = f"/v2/demo/app/blobs/{demo.large_digest}"
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
        await demo.running.get(path)


async def test_a_missing_object_is_an_error_of_ours_and_not_a_404(demo: Demo) -> None:
    key = await demo.running.owner.fetchval("select object_key from blob where digest = $1", demo.large_digest)
    await demo.running.store.delete([key])
    got = await demo.running.get(f"/v2/demo/app/blobs/{demo.large_digest}")
    assert (got.status, got.code) == (500, "UNKNOWN")
    assert await demo.running.metric(r'entrepot_registry_storage_reads_total\{outcome="missing"\}') == 1
    assert key not in got.body.decode()


async def test_a_client_that_goes_away_lets_go_of_s3(wired: Demo, wire: Wire) -> None:
    path = await add_blob(wired, 48 * MIB)
    headers = await wired.running.bearer()
    await until(lambda: _is(wire.open <= 2))
    before = wire.passed
    async with aiohttp.ClientSession() as session:
        answer = await session.get(wired.running.url + path, headers=headers)
        assert len(await answer.content.readexactly(MIB)) == MIB
        answer.close()
    await until(lambda: _in_flight(wired.running, 0))
    assert wire.passed - before < 40 * MIB
    assert await wired.running.metric(r'entrepot_registry_responses_broken_total\{reason="client"\}') == 1


async def test_a_client_that_takes_nothing_is_dropped(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    web = dataclasses.replace(services.WEB, write_timeout=timedelta(seconds=1))
    async with services.running(database, s3, tmp_path / "keys", web=web) as started:
        demo = await fill(started)
        path = await add_blob(demo, 48 * MIB)
        bearer = (await started.bearer())["Authorization"]
        reader, writer = await asyncio.open_connection("127.0.0.1", started.registry.port, limit=1024)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n\r\n".encode())
        await until(lambda: _broken(started, "slow_client"))
        await until(lambda: _in_flight(started, 0))
        writer.close()
        del reader


async def test_connections_without_a_request_are_closed(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    web = dataclasses.replace(services.WEB, idle_timeout=timedelta(seconds=1))
    async with services.running(database, s3, tmp_path / "keys", web=web) as started:
        for first in (b"", b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX-Slow: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", started.registry.port)
            writer.write(first)
            async with asyncio.timeout(10):
                await reader.read()
            writer.close()


async def test_more_requests_than_the_limit_are_told_to_come_again(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    web = dataclasses.replace(services.WEB, max_requests=4)
    async with services.running(database, s3, tmp_path / "keys", web=web) as started:
        demo = await fill(started)
        headers = await started.bearer()
        async with demo.running.owner.transaction():
            await demo.running.owner.execute("lock table tag in access exclusive mode")
            waiting = [asyncio.create_task(started.request("GET", MANIFEST, headers=headers)) for _ in range(4)]
            await until(lambda: _in_flight(started, 4))
            got = await started.request("GET", MANIFEST, headers=headers)
            assert (got.status, got.code, got.headers["Retry-After"]) == (503, "UNAVAILABLE", "1")
            assert await started.metric("entrepot_registry_requests_refused_total") == 1
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}


async def test_without_the_token_service_known_keys_go_on_and_token_requests_are_503(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with services.running(database, s3, tmp_path / "keys") as started:
        await fill(started)
        headers = await started.bearer()
        await started.token.__aexit__(None, None, None)
        assert (await started.request("GET", MANIFEST, headers=headers)).status == 200
        got = await started.ask_token("repository:demo/app:pull")
        assert (got.status, got.code, got.headers["Retry-After"]) == (503, "UNAVAILABLE", "2")
        await wait_ready(started.http, started.registry)


async def test_a_registry_that_starts_before_the_others_waits_for_them(database: Database, s3: S3Settings) -> None:
    from entrepot_registry.app import open_registry
    from entrepot_registry.settings import RegistrySettings

    nowhere = dataclasses.replace(database.settings("registry"), dsn="postgresql://x@127.0.0.1:1/x")
    settings = RegistrySettings(port=0, metrics_port=0, token_url="http://127.0.0.1:1")
    away = dataclasses.replace(s3, endpoint="http://127.0.0.1:1")
    async with (
        open_registry(settings, web_settings=services.WEB, database=nowhere, s3=away) as registry,
        aiohttp.ClientSession() as http,
    ):
        unready = await wait_ready(http, registry, status=503)
        assert set(unready["problems"]) == {"database", "storage", "keys"}
        async with http.get(f"http://127.0.0.1:{registry.port}/healthz") as answer:
            assert answer.status == 200
        async with http.get(f"http://127.0.0.1:{registry.port}/readyz") as answer:
            assert answer.status == 503
        async with http.get(
            f"http://127.0.0.1:{registry.port}/v2/", headers={"Authorization": "Bearer a.b.c"}
        ) as answer:
            assert answer.status == 401


async def _is(value: bool) -> bool:
    return value


async def _in_flight(running: Running, count: int) -> bool:
    return await running.metric("entrepot_registry_requests_in_flight") == count


async def _broken(running: Running, reason: str) -> bool:
    return await running.metric(rf'entrepot_registry_responses_broken_total\{{reason="{reason}"\}}') > 0
