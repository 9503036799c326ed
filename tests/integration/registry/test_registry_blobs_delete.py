"""Deleting blobs, what HEAD promises, and redirects to S3."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from entrepot.settings import S3Settings
from tests import contents, pushes, services
from tests.conftest import Database
from tests.integration.registry.conftest import Demo, fill
from tests.pushes import Pusher, digest_of
from tests.services import Running

LARGE = os.urandom(100 * 1024)


@pytest.fixture
async def client(demo: Demo) -> Pusher:
    return await pushes.pusher(demo.running)


@pytest.mark.parametrize("size", [10, 50_000])
async def test_a_deleted_blob_is_gone_at_once_and_comes_back_when_it_is_pushed(client: Pusher, size: int) -> None:
    data = os.urandom(size)
    path = f"blobs/{digest_of(data)}"
    assert (await client.blob(data)).status == 201
    got = await client.ask("DELETE", path)
    assert (got.status, got.body) == (202, b"")
    for method in ("GET", "HEAD"):
        assert (await client.ask(method, path)).status == 404
    again = await client.ask("DELETE", path)
    assert (again.status, again.code) == (404, "BLOB_UNKNOWN")
    assert (await client.blob(data)).status == 201
    assert (await client.ask("GET", path)).body == data


async def test_a_blob_that_the_latest_version_needs_stays(client: Pusher, demo: Demo) -> None:
    for data in (demo.small, demo.large, demo.image.config):
        got = await client.ask("DELETE", f"blobs/{digest_of(data)}")
        assert (got.status, got.code) == (405, "UNSUPPORTED")
        assert "manifest of the latest version" in got.json()["errors"][0]["message"]
        assert (await client.ask("GET", f"blobs/{digest_of(data)}")).body == data


async def test_what_is_not_here_cannot_be_deleted(client: Pusher, demo: Demo) -> None:
    other = await contents.make_repository(demo.running.owner, name="other")
    await contents.make_distribution(demo.running.owner, other, base_path="demo/other")
    elsewhere = await pushes.pusher(demo.running, "demo/other")
    for digest in (digest_of(b"nowhere"), demo.small_digest):
        got = await elsewhere.ask("DELETE", f"blobs/{digest}")
        assert (got.status, got.code) == (404, "BLOB_UNKNOWN")
    assert (await elsewhere.ask("DELETE", "blobs/sha256:x")).code == "DIGEST_INVALID"
    assert (await client.ask("GET", f"blobs/{demo.small_digest}")).status == 200


@pytest.mark.parametrize("actions", [("pull",), ("pull", "push"), ("push",)])
async def test_only_the_right_to_delete_deletes(client: Pusher, demo: Demo, actions: tuple[str, ...]) -> None:
    assert (await client.blob(b"mine")).status == 201
    weak = await pushes.pusher(demo.running, "demo/app", *actions)
    got = await weak.ask("DELETE", f"blobs/{digest_of(b'mine')}")
    assert (got.status, got.code) == (401, "UNAUTHORIZED")
    assert 'scope="repository:demo/app:delete"' in got.headers["WWW-Authenticate"]
    assert (await client.ask("HEAD", f"blobs/{digest_of(b'mine')}")).status == 200


async def test_a_pinned_distribution_still_serves_what_was_deleted_from_the_latest(client: Pusher, demo: Demo) -> None:
    owner = demo.running.owner
    pinned = await contents.make_distribution(owner, demo.repository, base_path="demo/pinned")
    await owner.execute("update distribution set pinned = 1 where uuid = $1", pinned)
    assert (await client.ask("DELETE", f"manifests/{demo.image.digest}")).status == 202
    assert (await client.ask("DELETE", f"blobs/{demo.large_digest}")).status == 202
    assert (await client.ask("GET", f"blobs/{demo.large_digest}")).status == 404
    got = await demo.running.get(f"/v2/demo/pinned/blobs/{demo.large_digest}", name="demo/pinned")
    assert got.body == demo.large


# HEAD


async def touched(running: Running, digest: str) -> bool:
    return bool(
        await running.owner.fetchval(
            "select l.touched_at > now() - interval '1 minute' from repository_blob l join blob b on b.id = l.blob where b.digest = $1",
            digest,
        )
    )


async def age(running: Running, hours: float) -> None:
    await running.owner.execute("update repository_blob set touched_at = now() - $1::interval", timedelta(hours=hours))


async def test_head_writes_down_a_use_when_the_last_was_long_ago(client: Pusher, demo: Demo) -> None:
    running = demo.running
    path = f"blobs/{demo.large_digest}"
    await age(running, 5.9)  # a quarter of the grace of a day is six hours
    before = await running.statements()
    assert (await client.ask("HEAD", path)).status == 200
    assert await running.statements() - before == 1
    assert not await touched(running, demo.large_digest)
    await age(running, 6.1)
    before = await running.statements()
    assert (await client.ask("HEAD", path)).status == 200
    assert await running.statements() - before == 2
    assert await touched(running, demo.large_digest)
    before = await running.statements()
    assert (await client.ask("HEAD", path)).status == 200
    assert await running.statements() - before == 1
    await age(running, 6.1)
    assert (await client.ask("GET", path)).status == 200
    assert not await touched(running, demo.large_digest), "a pull promises nothing"


# Redirects


@pytest.mark.parametrize("public", [False, True])
async def test_a_redirect_leads_to_the_object_and_nothing_else(
    database: Database, s3: S3Settings, tmp_path: Path, public: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    settings = dataclasses.replace(s3, public_endpoint=s3.endpoint.replace("127.0.0.1", "127.0.0.2")) if public else s3
    async with services.running(
        database, settings, tmp_path / "keys", redirect=True, redirect_ttl=timedelta(minutes=2)
    ) as started:
        demo = await fill(started)
        calls = await started.storage_calls()
        got = await started.get(f"/v2/demo/app/blobs/{demo.large_digest}", headers={"Range": "bytes=5-9"})
        assert (got.status, got.body) == (307, b"")
        assert "private" in got.headers["Cache-Control"]
        assert got.headers["Docker-Content-Digest"] == demo.large_digest
        link = got.headers["Location"]
        key = await started.owner.fetchval("select object_key from blob where digest = $1", demo.large_digest)
        parts, query = urlsplit(link), parse_qs(urlsplit(link).query)
        host = "127.0.0.2" if public else "127.0.0.1"
        assert (parts.hostname, parts.path) == (host, f"/{s3.bucket}/{key}")
        assert (query["X-Amz-Expires"], query["X-Amz-Algorithm"]) == (["120"], ["AWS4-HMAC-SHA256"])
        # Answered here: HEAD, what is inline, and what the client has already.
        head = await started.head(f"/v2/demo/app/blobs/{demo.large_digest}")
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(demo.large)))
        assert (await started.get(f"/v2/demo/app/blobs/{demo.small_digest}")).body == demo.small
        known = {"If-None-Match": f'"{demo.large_digest}"'}
        assert (await started.get(f"/v2/demo/app/blobs/{demo.large_digest}", headers=known)).status == 304
        assert await started.storage_calls() == calls, "no call of S3 for any of it"
        if not public:
            await _try_link(link, key, demo.large)
        printed = capsys.readouterr()
        assert "X-Amz-Signature" not in printed.out + printed.err


async def _try_link(link: str, key: str, data: bytes) -> None:
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        async with http.get(link) as answer:
            assert await answer.read() == data
        async with http.get(link, headers={"Range": "bytes=5-9"}) as answer:
            assert (answer.status, await answer.read()) == (206, data[5:10])
        for method in ("PUT", "DELETE", "HEAD", "POST"):
            async with http.request(method, link) as answer:
                assert answer.status in {400, 403, 405}, method
        async with http.get(link.replace(key, key[:-1] + ("0" if key[-1] != "0" else "1"))) as answer:
            assert answer.status == 403


async def test_a_distribution_decides_about_redirects_for_itself(demo: Demo) -> None:
    path = f"/v2/demo/app/blobs/{demo.large_digest}"
    assert (await demo.running.get(path)).status == 200
    await demo.running.owner.execute("update distribution set redirect = true")
    assert (await demo.running.get(path)).status == 307
    await demo.running.owner.execute("update distribution set redirect = false")
    assert (await demo.running.get(path)).body == demo.large


async def test_without_the_right_to_pull_there_is_no_link(demo: Demo) -> None:
    await demo.running.owner.execute("update distribution set redirect = true, access = 'Private'")
    got = await demo.running.request("GET", f"/v2/demo/app/blobs/{demo.large_digest}")
    assert (got.status, got.code) == (401, "UNAUTHORIZED")
    assert "Location" not in got.headers
