"""Pushing blobs, step by step, over real PostgreSQL and S3: sessions, chunks, digests, and what is refused."""

from __future__ import annotations

import hashlib
import os

import pytest

from tests import pushes
from tests.integration.registry.conftest import Demo
from tests.pushes import Pusher, digest_of

KIB, MIB = 1024, 1024 * 1024
SIZES = [0, 1, 32 * KIB, 32 * KIB + 1, MIB, 8 * MIB, 8 * MIB + 1, 17 * MIB + 5]


@pytest.fixture
async def client(demo: Demo) -> Pusher:
    return await pushes.pusher(demo.running)


async def served(client: Pusher, data: bytes, algorithm: str = "sha256") -> bool:
    digest = digest_of(data, algorithm)
    got = await client.ask("GET", f"blobs/{digest}")
    return got.status == 200 and got.body == data and got.headers["Docker-Content-Digest"] == digest


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", SIZES)
async def test_a_blob_in_one_post(client: Pusher, size: int, algorithm: str) -> None:
    data = os.urandom(size)
    got = await client.blob(data, algorithm=algorithm)
    assert got.status == 201, got.body
    assert got.headers["Docker-Content-Digest"] == digest_of(data, algorithm)
    assert got.headers["Location"] == f"/v2/demo/app/blobs/{digest_of(data, algorithm)}"
    assert await served(client, data, algorithm)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", SIZES)
async def test_a_blob_by_post_and_put(client: Pusher, size: int, algorithm: str) -> None:
    data = os.urandom(size)
    location = await client.begin()
    got = await client.finish(location, digest_of(data, algorithm), data)
    assert got.status == 201, got.body
    assert await served(client, data, algorithm)
    assert (await client.ask("GET", location)).code == "BLOB_UPLOAD_UNKNOWN"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("chunk", [7 * KIB, 3 * MIB + 1, 9 * MIB])
@pytest.mark.parametrize("size", [20 * KIB, 5 * MIB, 30 * MIB + 7])
async def test_a_blob_in_chunks(client: Pusher, size: int, chunk: int, algorithm: str) -> None:
    data = os.urandom(size if chunk > 7 * KIB else 50 * KIB)
    location = await client.begin()
    at = 0
    while at < len(data):
        part = data[at : at + chunk]
        got = await client.patch(location, part, at=at)
        at += len(part)
        assert (got.status, got.headers["Range"]) == (202, f"0-{at - 1}"), got.body
        location = got.headers["Location"]
        told = await client.ask("GET", location)
        assert (told.status, told.headers["Range"], told.headers["Location"]) == (204, f"0-{at - 1}", location)
    got = await client.finish(location, digest_of(data, algorithm))
    assert got.status == 201, got.body
    assert await served(client, data, algorithm)
    assert hashlib.sha256(data).digest()
