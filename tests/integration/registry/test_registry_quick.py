"""Answers past aiohttp's machinery are those that it would give, in order, on connections that live and end as always."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from entrepot.db.pool import connect
from entrepot.settings import S3Settings
from entrepot.web.answers import Answer
from tests import contents, services
from tests.conftest import Database
from tests.integration.registry.conftest import Demo, fill
from tests.processes import Processes
from tests.services import WEB, until

TAG = "/v2/demo/app/manifests/latest"
HOST = {"Host": "localhost"}


@dataclasses.dataclass
class Wire:
    """A connection of bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        version: str = "1.1",
        body: bytes = b"",
    ) -> None:
        lines = [f"{method} {path} HTTP/{version}", *(f"{n}: {v}" for n, v in {**HOST, **(headers or {})}.items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def receive(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        length = int(headers.get("content-length", 0)) if has_body else 0
        return int(head[0].split()[1]), headers, await self.reader.readexactly(length)

    async def is_over(self) -> bool:
        return await self.reader.read(1) == b""


@asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            yield Wire(reader, writer)
    finally:
        writer.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [TAG, "/v2/demo/app/manifests/absent", "/v2/demo/app/tags/list", "/v2/", "/v2/demo/app/manifests/%20", "/else"],
)
async def test_an_answer_is_the_same_by_either_way(demo: Demo, method: str, path: str) -> None:
    """A request with a body, if an empty chunked one, is aiohttp's."""
    headers = await demo.running.bearer()
    async with wire(demo.running.registry.port) as made:
        made.send(path, method=method, headers=headers)
        quick = await made.receive(has_body=method == "GET")
        made.send(path, method=method, headers={**headers, "Transfer-Encoding": "chunked"}, body=b"0\r\n\r\n")
        slow = await made.receive(has_body=method == "GET")
    assert "server" not in quick[1]
    assert "server" in slow[1], "aiohttp's own answers bear its name: this one was to be one"
    for _, got, _ in (quick, slow):
        for varying in ("x-request-id", "date", "server", "connection"):
            got.pop(varying, None)
    quick_body, slow_body = (body.partition(b"request id ")[0] for body in (quick[2], slow[2]))
    assert (*quick[:2], quick_body) == (*slow[:2], slow_body)


async def test_pipelined_requests_are_answered_in_order(demo: Demo) -> None:
    headers = await demo.running.bearer()
    paths = [
        TAG,
        "/v2/demo/app/tags/list",
        f"/v2/demo/app/blobs/{demo.large_digest}",
        "/v2/demo/app/manifests/absent",
        TAG,
    ]
    async with wire(demo.running.registry.port) as made:
        for _ in range(3):
            made.send(TAG, headers=headers)
            await made.writer.drain()
            for path in paths:  # some of these come while the first is looked up
                made.send(path, headers=headers)
            found = [await made.receive() for _ in range(6)]
            assert [status for status, _, _ in found] == [200, 200, 200, 200, 404, 200]
            assert [found[n][2] for n in (0, 1, 5)] == [demo.image.body] * 2 + [demo.image.body]
            assert found[3][2] == demo.large


async def test_a_head_in_pieces_and_one_with_a_body_are_read_whole(demo: Demo) -> None:
    headers = await demo.running.bearer()
    async with wire(demo.running.registry.port) as made:
        text = f"GET {TAG} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {headers['Authorization']}\r\n\r\n".encode()
        for part in (text[:9], text[9:40], text[40:]):
            made.writer.write(part)
            await made.writer.drain()
        assert (await made.receive())[2] == demo.image.body
        made.send(TAG, headers={**headers, "Content-Length": "5"}, body=b"GET /")
        made.send(TAG, headers=headers)
        assert [(await made.receive())[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(("version", "headers"), [("1.0", {}), ("1.1", {"Connection": "close"})])
async def test_a_connection_that_is_not_to_be_kept_is_closed(demo: Demo, version: str, headers: dict[str, str]) -> None:
    headers = {**headers, **await demo.running.bearer()}
    async with wire(demo.running.registry.port) as made:
        made.send(TAG, headers=headers, version=version)
        assert (await made.receive())[2] == demo.image.body
        assert await made.is_over()


async def test_what_is_no_http_is_refused_after_quick_answers_too(demo: Demo) -> None:
    async with wire(demo.running.registry.port) as made:
        made.send("/v2/")
        assert (await made.receive())[0] == 401
        made.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n")
        assert (await made.receive())[0] == 400
        assert await made.is_over()


async def test_a_client_that_goes_away_leaves_nothing(demo: Demo) -> None:
    headers = await demo.running.bearer()
    in_flight = r"entrepot_registry_requests_in_flight "
    async with demo.running.owner.transaction():
        await demo.running.owner.execute("lock table tag in access exclusive mode")
        async with wire(demo.running.registry.port) as made:
            made.send(TAG, headers=headers)

            async def is_asked() -> bool:
                return await demo.running.metric(in_flight) == 1

            await until(is_asked)

    async def is_over() -> bool:
        return await demo.running.metric(in_flight) == 0

    await until(is_over)
    assert (await demo.running.get(TAG)).status == 200


async def test_an_idle_connection_ends_after_quick_answers_as_well(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    web = dataclasses.replace(WEB, idle_timeout=timedelta(milliseconds=300))
    async with (
        services.running(database, s3, tmp_path / "keys", web=web) as started,
        wire(started.registry.port) as made,
    ):
        for _ in range(3):
            made.send("/v2/")
            assert (await made.receive())[0] == 401
        assert await made.is_over()


async def test_a_client_that_reads_nothing_is_sent_no_more_than_fits(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    """However many requests it sends: the next is looked at when it has taken the answer before."""
    async with services.running(database, s3, tmp_path / "keys") as started:
        demo = await fill(started)
        big = contents.image(b"layer", annotations={"filling": "x" * 3_000_000})
        await contents.push(started.owner, demo.repository, "big", big)
        headers = await started.bearer()
        answered = r'entrepot_registry_requests_total\{code="200",method="GET",route="/v2/\{name\}/manifests'
        async with wire(started.registry.port) as made:
            for _ in range(20):
                made.send("/v2/demo/app/manifests/big", headers=headers)
            await made.writer.drain()

            async def some() -> bool:
                return await started.metric(answered) >= 1

            await until(some)
            assert await started.metric(answered) <= 4
            for _ in range(20):
                assert (await made.receive())[2] == big.body


@pytest.mark.allow_blocking
async def test_an_answer_under_way_survives_sigterm(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    owner = await connect(database.settings(), application="test")
    repository = await contents.make_repository(owner)
    await contents.make_distribution(owner, repository)
    image = contents.image(b"layer")
    await contents.push(owner, repository, "latest", image)
    both = Processes(database, s3, tmp_path)
    both.registry["ENTREPOT_LOOKUP_TIMEOUT"] = "15s"
    async with aiohttp.ClientSession() as http:
        with both.started() as registry:
            await both.ready(http)
            headers = await both.bearer(http)
            async with wire(both.ports[0]) as made:
                async with owner.transaction():
                    await owner.execute("lock table tag in access exclusive mode")
                    made.send(TAG, headers=headers)
                    await made.writer.drain()

                    async def is_asked() -> bool:
                        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'entrepot-registry'"
                        return bool(await owner.fetchval(waiting))

                    await until(is_asked)
                    registry.send_signal(signal.SIGTERM)
                    await both.ready(http, 503)
                status, got, body = await made.receive()
                assert (status, got["connection"], body) == (200, "close", image.body)
                assert await made.is_over()
            assert await asyncio.to_thread(registry.wait, 20) == 0
    await owner.close()


def test_a_line_break_within_a_header_is_refused() -> None:
    for text in ("a\r\nSet-Cookie: b", "a\nb", "a\rb"):
        with pytest.raises(ValueError, match="line break"):
            Answer(headers={"Content-Type": text}).as_bytes()
