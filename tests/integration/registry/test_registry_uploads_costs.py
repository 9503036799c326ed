"""What a push costs: statements and calls of S3, counted where they are made. Everything else is noise of the machine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests import pushes
from tests.integration.registry.conftest import Demo
from tests.pushes import Pusher, digest_of
from tests.services import Running

KIB, MIB = 1024, 1024 * 1024


@pytest.fixture
async def client(demo: Demo) -> Pusher:
    made = await pushes.pusher(demo.running)
    # Connections and keys are there from the first push on.
    assert (await made.blob(os.urandom(MIB))).status == 201
    await in_two(made, os.urandom(MIB))
    await in_three(made, os.urandom(MIB))
    return made


async def counts(running: Running) -> Counter[str]:
    found: Counter[str] = Counter()
    async with running.http.get(f"http://127.0.0.1:{running.registry.metrics_port}/metrics") as answer:
        text = await answer.text()
    for line in text.splitlines():
        for metric in ("database_statement_seconds_count{statement=", "storage_call_seconds_count{operation="):
            if line.startswith(f"entrepot_registry_{metric}"):
                found[line.split('"')[1]] += int(float(line.rpartition(" ")[2]))
    return found


async def cost(running: Running, work: Callable[[], Awaitable[object]]) -> dict[str, int]:
    """Statements by name and calls of S3 by operation; the readiness checks apart."""
    before = await counts(running)
    await work()
    spent = await counts(running) - before
    checks = {"other", "HeadBucket"}
    return {name: count for name, count in spent.items() if name not in checks}


async def in_two(client: Pusher, data: bytes) -> None:
    location = await client.begin()
    assert (await client.finish(location, digest_of(data), data)).status == 201


async def in_three(client: Pusher, data: bytes) -> None:
    location = await client.begin()
    assert (await client.patch(location, data)).status == 202
    assert (await client.finish(location, digest_of(data))).status == 201


@pytest.mark.parametrize(("size", "calls"), [(0, {}), (32 * KIB, {}), (32 * KIB + 1, {"PutObject": 1}), (8 * MIB, {"PutObject": 1})])  # fmt: skip
async def test_a_small_blob_is_one_call_of_s3_at_most(
    client: Pusher, demo: Demo, size: int, calls: dict[str, int]
) -> None:
    one = await cost(demo.running, lambda: client.blob(os.urandom(size)))
    assert one == {"find_targets": 1, "store_pushed_blob": 1, **calls}
    two = await cost(demo.running, lambda: in_two(client, os.urandom(size)))
    assert two == {"find_targets": 1, "begin_upload": 1, "find_uploads": 1, "store_pushed_blob": 1, **calls}


@pytest.mark.parametrize(("size", "calls"), [(32 * KIB, {}), (MIB, {"PutObject": 1}), (8 * MIB - 1, {"PutObject": 1})])
async def test_a_streamed_blob_is_no_more_calls_of_s3(
    client: Pusher, demo: Demo, size: int, calls: dict[str, int]
) -> None:
    spent = await cost(demo.running, lambda: in_three(client, os.urandom(size)))
    statements = {"find_targets": 1, "begin_upload": 1, "find_uploads": 2, "claim_upload": 1, "save_upload": 1, "store_pushed_blob": 1}  # fmt: skip
    assert spent == {**statements, **calls}


async def test_a_large_blob_is_its_parts_and_nothing_is_read_or_copied(client: Pusher, demo: Demo) -> None:
    parts = {"CreateMultipartUpload": 1, "UploadPart": 4, "CompleteMultipartUpload": 1}
    two = await cost(demo.running, lambda: in_two(client, os.urandom(30 * MIB)))
    assert two == {
        "find_targets": 1, "begin_upload": 1, "find_uploads": 1, "claim_upload": 1, "open_part_upload": 1, "store_pushed_blob": 1, **parts,
    }  # fmt: skip
    three = await cost(demo.running, lambda: in_three(client, os.urandom(30 * MIB)))
    assert three == {
        "find_targets": 1, "begin_upload": 1, "find_uploads": 2, "claim_upload": 2, "open_part_upload": 1, "save_upload": 1,
        "store_pushed_blob": 1, **parts,
    }  # fmt: skip


async def test_what_asks_s3_nothing(client: Pusher, demo: Demo) -> None:
    location = await client.begin()
    digest = demo.large_digest
    for method, path, statements in (
        ("HEAD", f"blobs/{digest}", {"find_blobs": 1}),
        ("POST", "blobs/uploads/", {"find_targets": 1, "begin_upload": 1}),
        ("GET", location, {"find_uploads": 1}),
        ("DELETE", location, {"find_uploads": 1, "cancel_upload": 1}),
        ("POST", f"blobs/uploads/?mount={digest}", {"find_targets": 1, "mount_blob": 1}),
        ("POST", f"blobs/uploads/?mount={digest}&from=demo/app", {"find_targets": 1, "mount_blob": 1}),
        ("DELETE", f"blobs/{digest}", {"find_targets": 1, "hide_blob": 1}),
    ):

        async def work(method: str = method, path: str = path) -> object:
            return await client.ask(method, path)

        assert await cost(demo.running, work) == statements, path


async def test_keys_are_reserved_for_many_pushes_at_once(client: Pusher, demo: Demo) -> None:
    async def many() -> None:
        for _ in range(64):
            assert (await client.blob(os.urandom(33 * KIB))).status == 201

    assert (await cost(demo.running, many))["reserve_keys"] == 1
    inline = await cost(demo.running, lambda: client.blob(b"small"))
    assert "reserve_keys" not in inline
    left = await demo.running.owner.fetchval("select count(*) from object where owner like 'registry/%'")
    assert 0 <= left <= 64, "what was pushed is not on record any more"
