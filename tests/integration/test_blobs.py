"""The blob store against a real S3 server."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from entrepot.blobs.budget import ByteBudget
from entrepot.blobs.failures import BuffersFull
from entrepot.blobs.settings import MAX_PARTS
from entrepot.blobs.store import BlobStore, BufferSettings, ObjectMissing, open_store
from entrepot.errors import StorageUnavailable
from entrepot.settings import S3Settings
from entrepot_registry.settings import RegistrySettings
from tests.servers import ObjectStore, free_port

MIB = 1024 * 1024


@pytest.fixture
async def store(s3: S3Settings) -> AsyncIterator[BlobStore]:
    async with open_store(s3) as opened:
        yield opened


async def collect(store: BlobStore, key: str, start: int = 0, end: int | None = None) -> bytes:
    async with store.read(key, start, end) as stream:
        chunks = [chunk async for chunk in stream]
    assert all(len(chunk) <= 256 * 1024 for chunk in chunks)
    return b"".join(chunks)


async def test_what_was_put_is_read_back_whole_and_in_ranges(store: BlobStore) -> None:
    data = os.urandom(3 * MIB + 17)
    await store.put("blobs/a", data, sha256_hex=hashlib.sha256(data).hexdigest())
    assert await collect(store, "blobs/a") == data
    assert await collect(store, "blobs/a", 5, 9) == data[5:10]
    assert await collect(store, "blobs/a", len(data) - 3) == data[-3:]
    assert await collect(store, "blobs/a", 0, 0) == data[:1]


async def test_a_wrong_checksum_is_refused_and_leaves_nothing(store: BlobStore) -> None:
    with pytest.raises(StorageUnavailable):
        await store.put("blobs/a", b"some bytes", sha256_hex="0" * 64)
    with pytest.raises(ObjectMissing):
        await collect(store, "blobs/a")


async def test_a_missing_object_and_a_missing_bucket_are_told_apart_from_a_dead_server(
    store: BlobStore, s3: S3Settings
) -> None:
    with pytest.raises(ObjectMissing):
        await collect(store, "blobs/none")
    async with open_store(dataclasses.replace(s3, bucket="bucket-that-is-new")) as other:
        with pytest.raises(ObjectMissing):
            await other.check()
        await other.ensure_bucket()
        await other.ensure_bucket()
        await other.check()
    dead = dataclasses.replace(s3, endpoint=f"http://127.0.0.1:{free_port()}")
    async with open_store(dead) as other:
        with pytest.raises(StorageUnavailable) as caught:
            await other.check()
        assert not isinstance(caught.value, ObjectMissing)
        assert "entrepot-test" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 10 * MIB, 23 * MIB + 5])
@pytest.mark.parametrize("known", [True, False])
async def test_an_upload_of_any_length_becomes_the_same_bytes(s3: S3Settings, size: int, known: bool) -> None:
    data = os.urandom(size)
    opened: list[str] = []

    async def on_open(upload_id: str) -> None:
        opened.append(upload_id)

    buffers = BufferSettings(part_size=5 * MIB, budget=20 * MIB)
    async with open_store(s3, buffers) as store:
        async with store.multipart("blobs/a", size=size if known else None, on_open=on_open) as upload:
            for first in range(0, size, 1_000_003):
                await upload.write(data[first : first + 1_000_003])
            await upload.complete()
        assert upload.written == size
        assert await collect(store, "blobs/a") == data
        assert store.budget.free == store.budget.total
        assert len(opened) == (1 if size > 5 * MIB or (size == 5 * MIB and not known) else 0)


@pytest.mark.parametrize("size", [MIB, 17 * MIB])
async def test_an_upload_left_unfinished_leaves_nothing(s3: S3Settings, object_store: ObjectStore, size: int) -> None:
    buffers = BufferSettings(part_size=5 * MIB, budget=20 * MIB)
    async with open_store(s3, buffers) as store:
        async with store.multipart("blobs/a") as upload:
            await upload.write(os.urandom(size))
        with pytest.raises(ObjectMissing):
            await collect(store, "blobs/a")
        assert store.budget.free == store.budget.total
    left = [path for path in object_store.bucket_path(s3).rglob("*") if path.is_file()]
    assert left == []


async def test_uploads_beyond_the_budget_wait_and_all_complete(s3: S3Settings) -> None:
    buffers = BufferSettings(part_size=5 * MIB, budget=10 * MIB)
    data = os.urandom(12 * MIB)
    async with open_store(s3, buffers) as store:

        async def one(number: int) -> None:
            async with store.multipart(f"blobs/{number}") as upload:
                for first in range(0, len(data), 512 * 1024):
                    await upload.write(data[first : first + 512 * 1024])
                    await asyncio.sleep(0)
                await upload.complete()

        await asyncio.gather(*(one(number) for number in range(6)))
        assert await collect(store, "blobs/5") == data
        assert store.budget.free == store.budget.total


async def test_removing_is_idempotent(store: BlobStore) -> None:
    await store.put("blobs/a", b"a")
    await store.delete(["blobs/a", "blobs/never"])
    await store.delete(["blobs/a"])
    await store.delete([])
    with pytest.raises(ObjectMissing):
        await collect(store, "blobs/a")


async def test_a_budget_is_served_in_order_and_survives_cancelling() -> None:
    budget = ByteBudget(10)
    await budget.take(8)
    large = asyncio.create_task(budget.take(9))
    small = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    assert not large.done()
    assert not small.done(), "a small wish must not overtake"
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    await asyncio.wait_for(small, 1)
    budget.give(8)
    budget.give(1)
    assert budget.free == 10
    await budget.take(100)
    assert budget.free == 0


async def test_who_gives_back_while_somebody_gives_up_waiting_disturbs_neither() -> None:
    budget = ByteBudget(10)
    await budget.take(10)
    waiting = asyncio.create_task(budget.take(5))
    await asyncio.sleep(0)
    assert budget.is_short
    waiting.cancel()
    budget.give(10)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (budget.is_short, budget.free) == (False, 10)


def test_chunks_that_are_just_a_part_do_not_use_all_parts_up() -> None:
    settings = BufferSettings()
    assert settings.smallest_part(0) == 5 * MIB
    assert all(settings.smallest_part(number) <= settings.size_of_part(number) for number in range(MAX_PARTS))
    assert sum(map(settings.smallest_part, range(MAX_PARTS))) > RegistrySettings().max_blob_size


async def test_what_is_small_and_says_so_needs_no_room(s3: S3Settings) -> None:
    async with open_store(s3, BufferSettings(part_size=5 * MIB, budget=10 * MIB)) as store:
        async with store.budget.hold(store.budget.total), store.multipart("blobs/a", size=1000) as upload:
            await upload.write(b"x" * 1000)
            await upload.complete()
        assert await store.size("blobs/a") == 1000
        assert store.budget.free == store.budget.total


async def test_an_upload_of_which_only_the_key_is_known_can_be_dropped(
    s3: S3Settings, object_store: ObjectStore
) -> None:
    buffers = BufferSettings(part_size=5 * MIB, budget=20 * MIB)
    async with open_store(s3, buffers) as store:
        for key in ("blobs/a", "blobs/ab"):
            async with store.multipart(key) as upload:
                await upload.write(os.urandom(6 * MIB))
                await upload.settle(is_last=True)
                upload.keep_parts()
        assert await store.abort_all("blobs/a") == 1
        assert await store.abort_all("blobs/a") == 0
        assert await store.abort_all("blobs/ab") == 1
    assert [path for path in object_store.bucket_path(s3).rglob("*") if path.is_file()] == []


async def test_an_upload_that_finds_no_room_for_long_fails_for_now(s3: S3Settings) -> None:
    buffers = BufferSettings(part_size=5 * MIB, budget=10 * MIB, patience=timedelta(milliseconds=100))
    async with open_store(s3, buffers) as store:
        async with store.budget.hold(6 * MIB), store.multipart("blobs/a") as upload:
            with pytest.raises(BuffersFull):
                await upload.write(b"x")
        assert store.budget.free == store.budget.total


async def test_nobody_gets_all_of_a_budget_and_who_waits_for_it_is_not_overtaken() -> None:
    budget = ByteBudget(12)
    for _ in range(4):
        await budget.take(2, holder="greedy")
    # Half is anybody's; of the rest a quarter of all stays free.
    more = [asyncio.create_task(budget.take(2, holder="greedy")) for _ in range(2)]
    nothing = asyncio.create_task(budget.take(0, holder="greedy"))
    await nothing
    assert (budget.free, budget.is_short) == (4, True)
    await budget.take(4, holder="other")
    waits = asyncio.create_task(budget.take(2, holder="other"))
    await asyncio.sleep(0)
    budget.give(2, holder="greedy")
    await waits
    assert not any(task.done() for task in more), "the share of others comes first"
    for _ in range(2):
        budget.give(2, holder="greedy")
    await asyncio.gather(*more)
    assert (budget.free, budget.is_short) == (0, False)
    for size, holder in ((2, "greedy"), (2, "greedy"), (2, "greedy"), (4, "other"), (2, "other")):
        budget.give(size, holder=holder)
    assert budget.free == budget.total
    await budget.take(12, holder="whole")
    given_up = asyncio.create_task(budget.take(2, holder="other"))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    budget.give(12, holder="whole")
    assert (budget.free, budget.is_short) == (12, False)
