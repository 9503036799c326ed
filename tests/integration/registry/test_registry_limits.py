"""What one client, or many, cannot do to the registry: hold it by slowness, flood it, lead it astray by crooked requests or false headers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from entrepot.blobs.store import BufferSettings
from entrepot.settings import S3Settings
from entrepot_registry import bodies
from tests import services
from tests.conftest import Database
from tests.integration.registry.conftest import Demo, fill
from tests.processes import Processes
from tests.pushes import digest_of, pusher
from tests.services import Running, raw, until

pytestmark = pytest.mark.allow_blocking

KIB = 1024


@asynccontextmanager
async def limited(
    database: Database, s3: S3Settings, tmp_path: Path, *, registry: dict[str, Any] | None = None, **web: Any
) -> AsyncIterator[Running]:
    settings = dataclasses.replace(services.WEB, **web)
    async with services.running(database, s3, tmp_path / "keys", web=settings, **(registry or {})) as running:
        yield running


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * KIB


async def test_a_head_that_comes_byte_by_byte_is_cut_off(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    async with limited(database, s3, tmp_path, head_timeout=timedelta(seconds=1)) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.registry.port)
        head = b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"y" * 5000
        started = asyncio.get_running_loop().time()
        closed = asyncio.create_task(reader.read())
        for byte in head:
            if closed.done():
                break
            writer.write(bytes([byte]))
            await asyncio.wait([closed], timeout=0.05)
        assert closed.done()
        assert await closed == b""
        assert 0.8 < asyncio.get_running_loop().time() - started < 10
        assert await running.metric(r'entrepot_registry_connections_dropped_total\{reason="head"\}') == 1
        writer.close()


async def test_the_next_request_on_a_kept_connection_has_its_own_time(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with limited(database, s3, tmp_path, head_timeout=timedelta(seconds=2)) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.registry.port)
        for _ in range(4):
            # In two pieces, with most of the time between them: together longer than one head may take.
            writer.write(b"GET /healthz HTTP/1.1\r\n")
            await asyncio.sleep(0.7)
            writer.write(b"Host: a\r\n\r\n")
            answer = await reader.readuntil(b'"}')
            assert b"200 OK" in answer
        writer.close()


async def test_an_answer_that_nobody_takes_does_not_hold_its_connection(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with limited(database, s3, tmp_path, write_timeout=timedelta(seconds=1)) as running:
        await fill(running)
        token = (await running.bearer())["Authorization"]
        request = f"GET /v2/demo/app/manifests/latest HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\n\r\n".encode()
        # So many answers that they fill what the kernel holds for a client that does not read, and then our own.
        _, writer = await asyncio.open_connection("127.0.0.1", running.registry.port, limit=KIB)

        async def flood() -> None:
            while True:
                writer.write(request * 50)
                await writer.drain()

        flooding = asyncio.create_task(flood())
        dropped = r'entrepot_registry_connections_dropped_total\{reason="stalled"\}'

        async def is_dropped() -> bool:
            return await running.metric(dropped) == 1

        await until(is_dropped, seconds=60)
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
        writer.close()
        assert (await running.request("GET", "/v2/")).status == 401


async def test_a_blob_that_comes_byte_by_byte_is_cut_off_and_a_slow_one_is_not(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    limits = {"upload_timeout": timedelta(seconds=1), "upload_pace": 100}
    async with limited(database, s3, tmp_path, registry=limits) as running:
        await fill(running)
        slow = b"s" * 600
        for data, step, expected in ((b"d" * 600, 1, 408), (slow, 40, 201)):
            token = (await running.granted())["Authorization"]
            reader, writer = await asyncio.open_connection("127.0.0.1", running.registry.port)
            path = f"/v2/demo/app/blobs/uploads/?digest={digest_of(data)}"
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\nContent-Length: {len(data)}\r\n\r\n"
            writer.write(head.encode())
            answering = asyncio.create_task(reader.readuntil(b"\r\n"))
            for start in range(0, len(data), step):
                if answering.done():
                    break
                writer.write(data[start : start + step])
                await asyncio.wait([answering], timeout=0.2)
            assert (await answering).startswith(f"HTTP/1.1 {expected} ".encode())
            writer.close()


async def test_idle_uploads_do_not_keep_their_room_while_others_wait(
    running: Running, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_HURRY", 0.2)
    client = await pusher(running)
    held = BufferSettings().budget
    # One subject alone does not get all of it.
    slow = [await pusher(running, subject=f"slow-{number % 2}") for number in range(held // BufferSettings().part_size)]
    heads = [f"PATCH {await one.begin()} HTTP/1.1\r\nAuthorization: {one.headers['Authorization']}" for one in slow]
    idle = [await asyncio.open_connection("127.0.0.1", running.registry.port) for _ in heads]
    for (_, writer), head in zip(idle, heads, strict=True):
        writer.write(f"{head}\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n".encode())

    async def is_full() -> bool:
        return await running.metric("entrepot_registry_buffer_bytes") == held

    await until(is_full)
    async with asyncio.timeout(20):
        assert (await client.blob(b"d" * 100 * KIB)).status == 201
        # Whichever of them it was: the others may stay, since nobody waits any more.
        answers = [asyncio.create_task(reader.readline()) for reader, _ in idle]
        dropped, others = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert all(answer.result().startswith(b"HTTP/1.1 408 ") for answer in dropped)
    for answer in others:
        answer.cancel()
    for _, writer in idle:
        writer.close()


async def test_a_flood_of_pipelined_requests_takes_no_memory(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    both = Processes(database, s3, tmp_path)
    async with aiohttp.ClientSession() as http:
        with both.started() as registry:
            await both.ready(http)
            before = resident(registry.pid)
            writers = []
            for _ in range(20):
                _, writer = await asyncio.open_connection("127.0.0.1", both.ports[0], limit=KIB)
                # Nobody reads the answers, so after some tens of requests nobody reads the requests either.
                writer.write(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n" * 20_000)
                writers.append(writer)
            for _ in range(50):
                async with http.get(f"{both.url}/v2/") as answer:
                    assert answer.status == 401
            grown = resident(registry.pid) - before
            assert grown < 20 * 512 * KIB + 8 * KIB * KIB, grown
            for writer in writers:
                writer.transport.abort()


async def test_two_thousand_idle_connections_cost_little_and_others_are_served(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    both = Processes(database, s3, tmp_path)
    both.registry.update(
        ENTREPOT_HTTP_MAX_CONNECTIONS="2010", ENTREPOT_HTTP_HEAD_TIMEOUT="5m", ENTREPOT_HTTP_IDLE_TIMEOUT="5m"
    )
    async with aiohttp.ClientSession() as http:
        with both.started() as registry:
            await both.ready(http)
            async with http.get(f"{both.url}/v2/") as answer:
                assert answer.status == 401
            before = resident(registry.pid)
            writers = []
            for number in range(2000):
                _, writer = await asyncio.open_connection("127.0.0.1", both.ports[0])
                if number % 2:
                    writer.write(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n")  # half of them with half a request
                writers.append(writer)
            async with http.get(f"{both.url}/v2/") as answer:
                assert answer.status == 401
            each = (resident(registry.pid) - before) / 2000
            assert each < 16 * KIB, each
            # Beyond the limit a connection is closed at once, and those there are stay.
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", both.ports[0])
                writers.append(writer)
            assert await asyncio.wait_for(_read(reader), 30) == b""
            async with http.get(f"{both.url}/v2/") as answer:
                assert answer.status == 401
            for writer in writers:
                writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


SECOND = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Content-Length: 4\r\nContent-Length: 4\r\n",
        b"Content-Length: 4, 4\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: -4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: 4_0\r\n",
        b"Content-Length : 4\r\n",
        "Content-Length: \u0664\r\n".encode(),
        b"X-A: b\r\n c\r\n",
        b"X-A: b\r\n\tContent-Length: 4\r\n",
        "X-\u00c4: b\r\n".encode(),
        b"X-\xff: b\r\n",
        b"X\x00A: b\r\n",
        b"X-A: b\x00c\r\n",
        b"X-A: b\rc\r\n",
        b": b\r\n",
        b"X A: b\r\n",
    ],
)
async def test_what_two_servers_could_read_differently_is_refused_and_nothing_after_it_is_answered(
    running: Running, head: bytes
) -> None:
    request = b"POST /v2/demo/app/blobs/uploads/ HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n0\r\n\r\n" + SECOND
    answer = await raw(running.registry.port, request, seconds=3)
    assert answer.count(b"HTTP/1.") == 1, answer
    status_line, _, body = answer.partition(b"\r\n\r\n")
    assert status_line.split(b" ", 1)[1].startswith(b"400 ")
    assert json.loads(body)["errors"]


async def test_headers_that_anybody_can_send_lead_nobody_elsewhere(demo: Demo) -> None:
    port = demo.running.registry.port
    token = (await demo.running.granted())["Authorization"]
    false = (
        "X-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 666\r\nForwarded: host=evil.example;proto=https\r\n"
        "X-Original-URL: /evil\r\nX-Forwarded-For: 203.0.113.9\r\n"
    )
    for host in (f"localhost:{port}", "evil.example"):
        request = f"GET /v2/ HTTP/1.1\r\nHost: {host}\r\n{false}Connection: close\r\n\r\n"
        answer = (await raw(port, request.encode())).decode()
        assert f'realm="http://localhost:{port}/token"' in answer
        request = (
            f"POST /v2/demo/app/blobs/uploads/ HTTP/1.1\r\nHost: {host}\r\n{false}Authorization: {token}\r\nContent-Length: 0\r\n"
            "Connection: close\r\n\r\n"
        )
        answer = (await raw(port, request.encode())).decode()
        assert "evil" not in answer
        assert "666" not in answer


async def test_a_subject_that_asks_too_much_is_told_when_to_come_back(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    limits = {"request_rate": 0.5, "request_burst": 4}
    async with limited(database, s3, tmp_path, registry=limits, trusted_proxies=("192.0.2.0/24",)) as running:
        await fill(running)
        one, other = await running.granted("pull", subject="one"), await running.granted("pull", subject="other")
        path = "/v2/demo/app/manifests/latest"
        assert [(await running.request("GET", path, headers=one)).status for _ in range(4)] == [200] * 4
        refused = await running.request("GET", path, headers=one)
        assert (refused.status, refused.code, refused.headers["Retry-After"]) == (429, "TOOMANYREQUESTS", "2")
        # Nobody else is, and it does not matter that they share an address.
        assert (await running.request("GET", path, headers=other)).status == 200
        # Those without a subject are counted by address: challenges, passwords and tokens of nobody together.
        assert [(await running.request("GET", "/v2/")).status for _ in range(4)] == [401] * 4
        forged = {"Authorization": "Bearer " + one["Authorization"][7:-8] + "AAAAAAAA"}
        for attempt in (
            await running.request("GET", "/v2/"),
            await running.request("GET", path, headers=forged),
            await running.ask_token("repository:demo/app:pull"),
        ):
            assert (attempt.status, attempt.code) == (429, "TOOMANYREQUESTS")
        assert (await running.request("GET", path, headers=other)).status == 200
        assert await running.metric(r'entrepot_registry_requests_limited_total\{by="subject"\}') == 1
        assert await running.metric(r'entrepot_registry_requests_limited_total\{by="address"\}') == 3
        # The probes are not clients.
        assert (await running.request("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    ("trusted", "client", "statuses"),
    [
        # Without a proxy that could tell, an address says nothing about who it is.
        ((), "127.0.0.1", [401, 401, 401, 401]),
        (("192.0.2.0/24",), "127.0.0.1", [401, 401, 429, 429]),
        (("127.0.0.0/8",), "198.51.100.3", [401, 401, 401, 401]),
    ],
)
async def test_a_proxy_s_word_counts_only_where_it_is_trusted(
    database: Database, s3: S3Settings, tmp_path: Path, trusted: tuple[str, ...], client: str, statuses: list[int],
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:  # fmt: skip
    limits = {"request_rate": 0.01, "request_burst": 2}
    async with limited(database, s3, tmp_path, registry=limits, trusted_proxies=trusted) as running:
        got = []
        for number in range(4):
            headers = {"X-Forwarded-For": f"203.0.113.66, 198.51.100.{number}"}
            got.append((await running.request("GET", "/v2/", headers=headers)).status)
        assert got == statuses
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines() if b'"route":"/v2/"' in line]
    assert lines[-1]["client"] == client
