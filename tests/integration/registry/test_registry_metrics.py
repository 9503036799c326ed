"""What is counted and timed while the registry works."""

from __future__ import annotations

import os
import re

from entrepot_registry.routes import Endpoint
from tests.integration.registry.conftest import Demo
from tests.pushes import digest_of, pusher
from tests.services import Running

MIB = 1024 * 1024


async def lines(running: Running) -> list[str]:
    async with running.http.get(f"http://127.0.0.1:{running.registry.metrics_port}/metrics") as answer:
        return (await answer.text()).splitlines()


async def test_what_lies_behind_is_timed_by_statement_and_by_operation(demo: Demo) -> None:
    running = demo.running
    name = "entrepot_registry_"
    before = await running.metric(rf'{name}storage_call_seconds_count\{{operation="PutObject"\}}')
    client = await pusher(running)
    pushed = os.urandom(MIB)
    assert (await client.blob(pushed)).status == 201
    assert (await running.get(f"/v2/demo/app/blobs/{demo.large_digest}")).status == 200
    assert (await running.get("/v2/demo/app/manifests/latest")).status == 200
    for pattern, least in [
        (r'database_statement_seconds_count\{statement="find_manifests"\}', 1),
        (r'database_statement_seconds_count\{statement="find_blobs"\}', 1),
        (r'database_statement_seconds_count\{statement="store_pushed_blob"\}', 1),
        (r"database_pool_wait_seconds_count ", 1),
        (r'storage_call_seconds_count\{operation="GetObject"\}', 1),
    ]:
        assert await running.metric(name + pattern) >= least, pattern
    assert await running.metric(rf'{name}storage_call_seconds_count\{{operation="PutObject"\}}') == before + 1
    # Names of statements, never their text; few that have none.
    found = {m[1] for line in await lines(running) if (m := re.search(r'statement="([^"]*)"', line))}
    assert all(re.fullmatch(r"[a-z_]{2,40}", statement) for statement in found), found


async def test_a_missing_object_is_a_failure_of_its_operation(demo: Demo) -> None:
    key = await demo.running.owner.fetchval("select object_key from blob where digest = $1", demo.large_digest)
    await demo.running.store.delete([key])
    assert (await demo.running.get(f"/v2/demo/app/blobs/{demo.large_digest}")).status == 500
    assert await demo.running.metric(r'entrepot_registry_storage_failures_total\{operation="GetObject"\}') == 1


async def test_pushes_are_counted_once_by_what_came_of_them(demo: Demo) -> None:
    running = demo.running
    client = await pusher(running)
    data = os.urandom(100_000)
    location = await client.begin()
    assert (await client.patch(location, data)).status == 202
    assert (await client.finish(location, digest_of(data))).status == 201
    assert (await client.blob(data)).status == 201
    assert (await client.image(demo.image, "again")).status == 201
    assert (await client.manifest(b"{}", "broken")).status == 400
    for labels, count in [
        ('outcome="stored",what="blob"', 2 + len(demo.image.blobs)),
        ('outcome="stored",what="manifest"', 1),
        ('outcome="refused",what="manifest"', 1),
        ("", 4 + len(demo.image.blobs)),
    ]:
        assert await running.metric(rf"entrepot_registry_pushes_total\{{{labels}") == count, labels
    received = await running.metric(r'entrepot_registry_request_bytes_total\{route="/v2/\{name\}/blobs/uploads/')
    assert received == 2 * len(data) + sum(map(len, demo.image.blobs))
    assert await running.metric(r"entrepot_registry_uploads_in_progress ") == 0
    assert await running.metric(r"entrepot_registry_buffer_bytes ") == 0


async def test_what_caches_had_and_had_not(demo: Demo) -> None:
    running = demo.running
    for _ in range(3):
        assert (await running.get("/v2/demo/app/manifests/latest")).status == 200
    for cache in ("token", "manifest"):
        assert await running.metric(rf'entrepot_registry_cache_misses_total\{{cache="{cache}"\}}') == 1
        assert await running.metric(rf'entrepot_registry_cache_hits_total\{{cache="{cache}"\}}') == 2


async def test_no_client_makes_new_series(demo: Demo) -> None:
    running = demo.running
    for number in range(30):
        for path in (
            f"/v2/none{number}/manifests/tag{number}",
            f"/nowhere/{number}",
            f"/v2/demo/app/{number}",
            f"/v2/x/blobs/sha256:{number:064x}",
            f"/v2/UPPER{number}/tags/list",
        ):
            await running.get(path)
        await running.request(f"M{number}", "/v2/")
    text = await lines(running)
    routes = {m[1] for line in text if (m := re.search(r'route="([^"]*)"', line))}
    assert routes <= {endpoint.value for endpoint in Endpoint} | {"unmatched"}
    methods = {m[1] for line in text if (m := re.search(r'method="([^"]*)"', line))}
    assert methods <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "OTHER"}
    assert len(text) < 3000
