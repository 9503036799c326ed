"""Pushing blobs, step by step, over real PostgreSQL and S3: sessions, chunks, digests, and what is refused."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from entrepot.blobs.store import BufferSettings
from entrepot.settings import S3Settings
from tests import contents, pushes, services
from tests.conftest import Database
from tests.integration.registry.conftest import Demo, fill
from tests.pushes import Pusher, digest_of
from tests.services import Answer, Running, raw, until

KIB, MIB = 1024, 1024 * 1024
SIZES = [0, 1, 32 * KIB, 32 * KIB + 1, MIB, 8 * MIB, 8 * MIB + 1, 17 * MIB + 5]
UNKNOWN = (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.fixture
async def client(demo: Demo) -> Pusher:
    return await pushes.pusher(demo.running)


async def served(client: Pusher, data: bytes, algorithm: str = "sha256") -> bool:
    digest = digest_of(data, algorithm)
    got = await client.ask("GET", f"blobs/{digest}")
    return got.status == 200 and got.body == data and got.headers["Docker-Content-Digest"] == digest


def outcome(got: Answer) -> tuple[int, str]:
    return got.status, got.code


class Slowly:
    """A body that comes when the test says so."""

    def __init__(self) -> None:
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()

    def send(self, chunk: bytes) -> None:
        for first in range(0, len(chunk), 512 * KIB):
            self._chunks.put_nowait(chunk[first : first + 512 * KIB])

    def end(self) -> None:
        self._chunks.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk


async def is_leased(running: Running) -> bool:
    return bool(await running.owner.fetchval("select exists (select from upload where writer is not null)"))


async def none_leased(running: Running) -> bool:
    return not await is_leased(running)


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
    assert outcome(await client.ask("GET", location)) == UNKNOWN


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", SIZES)
async def test_a_blob_as_one_stream_of_unknown_length(client: Pusher, size: int, algorithm: str) -> None:
    data = os.urandom(size)
    location = await client.begin()
    stream = Slowly()
    stream.send(data)
    stream.end()
    got = await client.patch(location, stream)
    assert (got.status, got.headers["Range"]) == (202, f"0-{max(0, size - 1)}")
    assert got.headers["Docker-Upload-UUID"] == location.rpartition("/")[2]
    got = await client.finish(got.headers["Location"], digest_of(data, algorithm))
    assert got.status == 201, got.body
    assert await served(client, data, algorithm)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("size", "chunk"), [(50 * KIB, 7 * KIB), (20 * MIB + 7, 3 * MIB + 1), (20 * MIB + 7, 9 * MIB), (16 * MIB, 8 * MIB)]
)
async def test_a_blob_in_chunks(client: Pusher, size: int, chunk: int, last: bool, algorithm: str) -> None:
    data = os.urandom(size)
    location = await client.begin()
    starts = range(0, size, chunk)
    for at in starts[:-1] if last else starts:
        part = data[at : at + chunk]
        got = await client.patch(location, part, at=at)
        end = at + len(part) - 1
        assert (got.status, got.headers["Range"]) == (202, f"0-{end}"), got.body
        location = got.headers["Location"]
        told = await client.ask("GET", location)
        assert (told.status, told.headers["Range"], told.headers["Location"]) == (204, f"0-{end}", location)
    at = starts[-1]
    rest = data[at:] if last else b""
    got = await client.finish(location, digest_of(data, algorithm), rest, at=at if last else None)
    assert got.status == 201, got.body
    assert await served(client, data, algorithm)


async def test_an_upload_that_has_begun_says_so(client: Pusher) -> None:
    got = await client.ask("POST", "blobs/uploads/")
    assert (got.status, got.headers["Range"], got.body) == (202, "0-0", b"")
    assert got.headers["Location"] == f"/v2/demo/app/blobs/uploads/{got.headers['Docker-Upload-UUID']}"
    told = await client.ask("GET", got.headers["Location"])
    assert (told.status, told.headers["Range"]) == (204, "0-0")
    empty = await client.patch(got.headers["Location"], b"")
    assert (empty.status, empty.headers["Range"]) == (202, "0-0")


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("start", [0, 99, 101, 10**12])
async def test_a_chunk_out_of_order_is_416_and_the_upload_goes_on(client: Pusher, method: str, start: int) -> None:
    data = os.urandom(200)
    location = await client.begin()
    assert (await client.patch(location, data[:100], at=0)).status == 202
    if method == "PATCH":
        got = await client.patch(location, data[100:], at=start)
    else:
        got = await client.finish(location, digest_of(data), data[100:], at=start)
    assert outcome(got) == (416, "RANGE_INVALID")
    assert (got.headers["Range"], got.headers["Location"]) == ("0-99", location)
    told = await client.ask("GET", f"{location}?digest={digest_of(data)}")
    assert (told.status, told.headers["Range"]) == (204, "0-99")
    assert (await client.patch(location, data[100:], at=100)).status == 202
    assert (await client.finish(location, digest_of(data))).status == 201
    assert await served(client, data)


@pytest.mark.parametrize("value", ["bytes 0-9/10", "bytes=0-9", "0", "a-b", "-5", "9-0", "0-9-9", "0 - 9", ""])
async def test_a_content_range_that_is_none_is_400(client: Pusher, value: str) -> None:
    location = await client.begin()
    got = await client.ask("PATCH", location, headers={"Content-Range": value}, data=b"0123456789")
    assert outcome(got) == (400, "BLOB_UPLOAD_INVALID")
    assert (await client.ask("GET", location)).headers["Range"] == "0-0"


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_body_of_another_length_than_its_content_range_is_400(client: Pusher, is_known: bool) -> None:
    location = await client.begin()
    stream = Slowly()
    stream.send(b"0123456789")
    stream.end()
    got = await client.patch(location, b"0123456789" if is_known else stream, at=0, size=12)
    assert outcome(got) == (400, "SIZE_INVALID")
    assert (await client.ask("GET", location)).headers["Range"] == "0-0"


@pytest.mark.parametrize("size", [10, 100 * KIB, 9 * MIB])
@pytest.mark.parametrize("how", ["post", "put", "patch", "patch and put"])
async def test_bytes_that_are_not_what_was_named_are_400_and_kept_from_view(
    client: Pusher, demo: Demo, size: int, how: str
) -> None:
    data, other = os.urandom(size), digest_of(b"other")
    if how == "post":
        got = await client.ask("POST", f"blobs/uploads/?digest={other}", data=data)
        assert outcome(got) == (400, "DIGEST_INVALID")
    else:
        location = await client.begin()
        half = size // 2 if how == "patch and put" else size
        if how != "put":
            assert (await client.patch(location, data[:half])).status == 202
        rest = data if how == "put" else data[half:]
        assert outcome(await client.finish(location, other, rest)) == (400, "DIGEST_INVALID")
        # The upload is as it was, so the right digest may follow.
        assert (await client.finish(location, digest_of(data), rest)).status == 201
        assert await served(client, data)
    assert (await client.ask("GET", f"blobs/{other}")).status == 404
    assert await demo.running.owner.fetchval("select count(*) from upload") == 0


@pytest.mark.parametrize(
    "digest", ["", "sha256", "sha256:", "md5:" + 32 * "0", "sha256:" + 64 * "A", "sha256:../../x", "sha256:" + 63 * "a", "sha256+b64:abc"]
)  # fmt: skip
async def test_what_is_no_digest_is_400(client: Pusher, digest: str) -> None:
    location = await client.begin()
    for method, path in (("PUT", f"{location}?digest={digest}"), ("POST", f"blobs/uploads/?digest={digest}"),
                         ("POST", f"blobs/uploads/?mount={digest}&from=demo/app")):  # fmt: skip
        assert outcome(await client.ask(method, path, data=b"x")) == (400, "DIGEST_INVALID")
    assert (await client.ask("GET", location)).status == 204


async def test_a_put_without_a_digest_is_400(client: Pusher) -> None:
    location = await client.begin()
    assert outcome(await client.ask("PUT", location)) == (400, "DIGEST_INVALID")
    many = "&".join(f"a{n}=1" for n in range(40))
    assert outcome(await client.ask("PUT", f"{location}?{many}")) == (400, "UNSUPPORTED")


async def test_an_algorithm_for_later_is_taken_if_it_is_known(client: Pusher) -> None:
    assert (await client.ask("POST", "blobs/uploads/?digest-algorithm=sha512")).status == 202
    assert outcome(await client.ask("POST", "blobs/uploads/?digest-algorithm=md5")) == (400, "DIGEST_INVALID")


async def test_pushing_what_is_there_already_is_201_and_keeps_one_copy(client: Pusher, demo: Demo) -> None:
    for data in (demo.small, demo.large):
        key = await demo.running.owner.fetchval("select object_key from blob where digest = $1", digest_of(data))
        assert (await client.blob(data)).status == 201
        assert await served(client, data)
        assert key == await demo.running.owner.fetchval(
            "select object_key from blob where digest = $1", digest_of(data)
        )
    left = await demo.running.owner.fetch(
        "select key, delete_after from object where owner not like 'registry/%' or delete_after is not null"
    )
    assert len(left) == 1, "the second copy of the large one is for the keeper"


async def test_ten_pushes_of_one_blob_at_once_all_succeed(client: Pusher) -> None:
    data = os.urandom(MIB)
    answers = await asyncio.gather(*(client.blob(data) for _ in range(10)))
    assert {answer.status for answer in answers} == {201}
    assert await served(client, data)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x"])
async def test_an_encoded_body_is_415(client: Pusher, encoding: str) -> None:
    location = await client.begin()
    for method, path in (("PATCH", location), ("PUT", f"{location}?digest={digest_of(b'x')}"),
                         ("POST", f"blobs/uploads/?digest={digest_of(b'x')}")):  # fmt: skip
        got = await client.ask(method, path, headers={"Content-Encoding": encoding}, data=b"x")
        assert outcome(got) == (415, "UNSUPPORTED")
    got = await client.ask("PATCH", location, headers={"Content-Encoding": "identity"}, data=b"x")
    assert got.status == 202


# Whose upload it is


async def test_an_upload_is_unknown_by_another_name_and_to_another_subject(demo: Demo, client: Pusher) -> None:
    running = demo.running
    other = await contents.make_repository(running.owner, name="other")
    await contents.make_distribution(running.owner, other, base_path="demo/other")
    await contents.make_distribution(running.owner, demo.repository, base_path="demo/same")
    location = await client.begin()
    assert (await client.patch(location, b"mine")).status == 202
    identity = location.rpartition("/")[2]
    elsewhere = await pushes.pusher(running, "demo/other")
    somebody = await pushes.pusher(running, subject="somebody")
    digest = digest_of(b"mine")
    for thief, path in (
        (elsewhere, f"/v2/demo/other/blobs/uploads/{identity}"),
        (somebody, location),
    ):
        assert outcome(await thief.ask("GET", path)) == UNKNOWN
        assert outcome(await thief.patch(path, b"more")) == UNKNOWN
        assert outcome(await thief.patch(path, b"more", at=4)) == UNKNOWN
        assert outcome(await thief.finish(path, digest)) == UNKNOWN
        assert outcome(await thief.ask("DELETE", path)) == UNKNOWN
    for bad in ("x", "0" * 36, "%00", "a" * 300):
        assert (await client.ask("GET", f"blobs/uploads/{bad}")).status == 404
    # The same repository by another of its names is the same place.
    same = await pushes.pusher(running, "demo/same")
    got = await same.finish(f"/v2/demo/same/blobs/uploads/{identity}", digest)
    assert (got.status, got.headers["Location"]) == (201, f"/v2/demo/same/blobs/{digest}")


@pytest.mark.parametrize("actions", [("pull",), ("delete",), ("pull", "delete")])
async def test_without_the_right_to_push_nothing_of_an_upload_is_answered(
    demo: Demo, client: Pusher, actions: tuple[str, ...]
) -> None:
    location = await client.begin()
    weak = await pushes.pusher(demo.running, "demo/app", *actions)
    for method, path in (("POST", "blobs/uploads/"), ("GET", location), ("PATCH", location), ("DELETE", location),
                         ("PUT", f"{location}?digest={digest_of(b'')}")):  # fmt: skip
        got = await weak.ask(method, path)
        assert outcome(got) == (401, "UNAUTHORIZED")
        assert 'scope="repository:demo/app:pull,push"' in got.headers["WWW-Authenticate"]
        assert 'error="insufficient_scope"' in got.headers["WWW-Authenticate"]
    assert (await client.ask("GET", location)).status == 204


async def test_a_mirror_and_a_pinned_distribution_take_no_uploads_and_say_why(demo: Demo, client: Pusher) -> None:
    owner = demo.running.owner
    location = await client.begin()
    requests = (
        ("POST", "blobs/uploads/"), ("POST", f"blobs/uploads/?digest={digest_of(b'')}"), ("PATCH", location),
        ("POST", f"blobs/uploads/?mount={demo.small_digest}&from=demo/app"), ("PUT", f"{location}?digest={digest_of(b'')}"),
        ("DELETE", f"blobs/{demo.small_digest}"),
    )  # fmt: skip
    await owner.execute("update distribution set pinned = 1")
    for method, path in requests:
        got = await client.ask(method, path)
        assert outcome(got) == (405, "UNSUPPORTED")
        assert "pinned to version 1" in got.json()["errors"][0]["message"]
    await owner.execute("update distribution set pinned = null")
    await owner.execute("update repository set is_mirror = true")
    for method, path in requests:
        got = await client.ask(method, path)
        assert outcome(got) == (405, "UNSUPPORTED")
        assert "is a mirror" in got.json()["errors"][0]["message"]
    await owner.execute("update repository set is_mirror = false")
    assert (await client.ask("GET", location)).status == 204


async def test_a_repository_takes_blobs_by_its_own_name_too(demo: Demo) -> None:
    own = await pushes.pusher(demo.running, "r/demo/app")
    assert (await own.blob(b"by its own name")).status == 201
    assert await served(own, b"by its own name")
    assert await served(await pushes.pusher(demo.running), b"by its own name")


async def test_a_name_that_stands_for_nothing_is_404(demo: Demo) -> None:
    headers = await demo.running.granted("pull", "push", more={"demo/gone": ("pull", "push")})
    identity = await contents.make_distribution(demo.running.owner, demo.repository, base_path="demo/gone")
    headers = await demo.running.granted("pull", "push", name="demo/gone")
    await demo.running.owner.execute("delete from distribution where uuid = $1", identity)
    got = await demo.running.request("POST", "/v2/demo/gone/blobs/uploads/", headers=headers)
    assert outcome(got) == (404, "NAME_UNKNOWN")


# Two at once, and the end before the end


async def test_of_two_requests_on_one_upload_the_second_is_refused_at_once(client: Pusher, demo: Demo) -> None:
    location = await client.begin()
    stream = Slowly()
    stream.send(b"a" * 1000)
    first = asyncio.create_task(client.patch(location, stream))
    await until(lambda: is_leased(demo.running))
    async with asyncio.timeout(2):
        for got in (
            await client.patch(location, b"b" * 1000),
            await client.patch(location, b"b" * 1000, at=0),
            await client.finish(location, digest_of(b"b" * 1000), b"b" * 1000),
            await client.finish(location, digest_of(b"")),
        ):
            assert outcome(got) == (409, "BLOB_UPLOAD_INVALID")
            assert (got.headers["Range"], got.headers["Retry-After"]) == ("0-0", "1")
        assert outcome(await client.patch(location, b"b", at=7)) == (416, "RANGE_INVALID")
    stream.end()
    assert (await first).status == 202
    assert (await client.finish(location, digest_of(b"a" * 1000))).status == 201
    assert await served(client, b"a" * 1000)


async def test_many_patches_at_the_same_place_leave_exactly_one(client: Pusher) -> None:
    location = await client.begin()
    bodies = [os.urandom(40 * KIB) for _ in range(8)]
    answers = await asyncio.gather(*(client.patch(location, body, at=0) for body in bodies))
    statuses = sorted(answer.status for answer in answers)
    assert statuses[0] == 202
    assert set(statuses[1:]) <= {409, 416}
    [winner] = [body for body, answer in zip(bodies, answers, strict=True) if answer.status == 202]
    assert (await client.finish(location, digest_of(winner))).status == 201
    assert await served(client, winner)


async def test_an_upload_can_be_cancelled(client: Pusher, demo: Demo) -> None:
    location = await client.begin()
    assert (await client.patch(location, os.urandom(9 * MIB))).status == 202
    assert (await client.ask("DELETE", location)).status == 204
    for method in ("GET", "DELETE", "PATCH"):
        assert outcome(await client.ask(method, location)) == UNKNOWN
    assert outcome(await client.finish(location, digest_of(b""))) == UNKNOWN
    marked = await demo.running.owner.fetchval(
        "select count(*) from object where owner like 'upload/%' and delete_after is null"
    )
    assert marked == 0, "what it has at S3 is the keeper's"


@pytest.mark.parametrize("size", [1000, 20 * MIB])
async def test_cancelling_while_a_patch_streams_ends_that_too(client: Pusher, demo: Demo, size: int) -> None:
    location = await client.begin()
    stream = Slowly()
    stream.send(os.urandom(size))
    patch = asyncio.create_task(client.patch(location, stream))
    await until(lambda: is_leased(demo.running))
    assert (await client.ask("DELETE", location)).status == 204
    stream.end()
    assert outcome(await patch) == UNKNOWN
    left = await demo.running.owner.fetch(
        "select owner, upload_id from object where owner like 'upload/%' and delete_after is null"
    )
    assert left == []


@pytest.mark.parametrize("rest", [b"", b"the end"])
@pytest.mark.parametrize("size", [6 * MIB, 9 * MIB])
async def test_a_client_that_breaks_off_leaves_what_was_durable(
    client: Pusher, demo: Demo, size: int, rest: bytes
) -> None:
    location = await client.begin()
    kept = os.urandom(size)
    assert (await client.patch(location, kept)).status == 202
    sent = await demo.running.storage_calls("UploadPart")
    async with aiohttp.ClientSession() as session:
        stream = Slowly()
        stream.send(os.urandom(17 * MIB))
        broken = asyncio.create_task(
            session.request("PATCH", client.url + location, headers=dict(client.headers), data=stream)
        )
        await until(lambda: is_leased(demo.running))
        await until(lambda: _sends_parts(demo.running, sent + 1))
        broken.cancel()
        await asyncio.gather(broken, return_exceptions=True)
    await until(lambda: none_leased(demo.running))
    told = await client.ask("GET", location)
    assert told.headers["Range"] == f"0-{size - 1}"
    whole = kept + rest
    if rest:
        assert (await client.patch(location, rest, at=size)).status == 202
    assert (await client.finish(location, digest_of(whole))).status == 201
    assert await served(client, whole)
    assert await demo.running.metric("entrepot_registry_buffer_bytes") == 0


async def _sends_parts(running: Running, count: float) -> bool:
    return await running.storage_calls("UploadPart") >= count


# Limits


async def test_a_blob_beyond_the_limit_is_413_before_it_is_read(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with services.running(database, s3, tmp_path / "keys", max_blob_size=100 * KIB) as started:
        await fill(started)
        client = await pushes.pusher(started)
        assert (await client.blob(os.urandom(100 * KIB))).status == 201
        over = os.urandom(100 * KIB + 1)
        assert outcome(await client.blob(over)) == (413, "SIZE_INVALID")
        location = await client.begin()
        assert outcome(await client.finish(location, digest_of(over), over)) == (413, "SIZE_INVALID")
        stream = Slowly()
        stream.send(over)
        stream.end()
        assert outcome(await client.patch(location, stream)) == (413, "SIZE_INVALID")
        assert (await client.patch(location, over[:-1], at=0)).status == 202
        assert outcome(await client.patch(location, b"x")) == (413, "SIZE_INVALID")
        assert (await client.finish(location, digest_of(over[:-1]))).status == 201
        head = f"PUT {await client.begin()}?digest={digest_of(b'')} HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Authorization: {client.headers['Authorization']}\r\nContent-Length: {10**15}\r\nExpect: 100-continue\r\n\r\n"
        answer = await raw(started.registry.port, head.encode(), seconds=1)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()


async def test_a_client_that_waits_to_be_told_is_told_to_go_on(demo: Demo, client: Pusher) -> None:
    data = b"waited for"
    location = await client.begin()
    head = f"PUT {location}?digest={digest_of(data)} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    head += f"Authorization: {client.headers['Authorization']}\r\nContent-Length: {len(data)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", demo.running.registry.port)
    writer.write(head.encode())
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(data)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 Created\r\n")
    writer.close()
    # Refused before it was asked for: no 100, and the body that does not come is not waited for.
    refused = await raw(demo.running.registry.port, head.replace("PUT", "PATCH").encode(), seconds=1)
    assert refused.startswith(b"HTTP/1.1 404")


async def test_more_uploads_at_once_than_the_limit_are_429(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    async with services.running(database, s3, tmp_path / "keys", max_uploads=2, max_uploads_per_subject=2) as started:
        await fill(started)
        client = await pushes.pusher(started)
        streams = [Slowly(), Slowly()]
        for stream in streams:
            stream.send(b"some")
        locations = [await client.begin() for _ in range(3)]
        held = [asyncio.create_task(client.patch(at, s)) for at, s in zip(locations, streams, strict=False)]
        await until(lambda: _uploading(started, 2))
        for got in (await client.patch(locations[2], b"x"), await client.blob(b"x")):
            assert outcome(got) == (429, "TOOMANYREQUESTS")
            assert int(got.headers["Retry-After"]) > 0
        # What brings no bytes is not counted.
        assert (await client.finish(await client.begin(), digest_of(b""))).status == 201
        for stream in streams:
            stream.end()
        assert [answer.status for answer in await asyncio.gather(*held)] == [202, 202]
        assert (await client.blob(b"x")).status == 201


async def test_a_subject_with_half_of_the_uploads_leaves_the_others_theirs(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with services.running(database, s3, tmp_path / "keys", max_uploads=4) as started:
        await fill(started)
        client, other = await pushes.pusher(started), await pushes.pusher(started, subject="other")
        streams = [Slowly(), Slowly()]
        for stream in streams:
            stream.send(b"some")
        held = [asyncio.create_task(client.patch(await client.begin(), stream)) for stream in streams]
        await until(lambda: _uploading(started, 2))
        location = await client.begin()
        for got in (
            await client.patch(location, b"x"),
            await client.finish(location, digest_of(b"x"), b"x"),
            await client.blob(b"x"),
        ):
            assert outcome(got) == (429, "TOOMANYREQUESTS")
            assert int(got.headers["Retry-After"]) > 0
        assert (await other.blob(b"x")).status == 201
        for stream in streams:
            stream.end()
        assert [answer.status for answer in await asyncio.gather(*held)] == [202, 202]
        assert (await client.patch(location, b"x")).status == 202


async def test_a_subject_that_uploads_slowly_leaves_the_others_room(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with services.running(database, s3, tmp_path / "keys") as started:
        await fill(started)
        client, other = await pushes.pusher(started), await pushes.pusher(started, subject="other")
        streams = [Slowly() for _ in range(8)]
        for stream in streams:
            stream.send(b"x")
        held = [asyncio.create_task(client.patch(await client.begin(), stream)) for stream in streams]
        await until(lambda: _uploading(started, 8))

        async def has_its_share() -> bool:
            return await started.metric("entrepot_registry_buffer_bytes") == 32 * MIB

        await until(has_its_share)
        data = os.urandom(9 * MIB)
        async with asyncio.timeout(30):
            assert (await other.blob(data)).status == 201
        assert not any(task.done() for task in held)
        for stream in streams:
            stream.end()
        assert {answer.status for answer in await asyncio.gather(*held)} == {202}
        assert await served(other, data)


async def test_more_parts_than_an_object_can_have_are_413_and_the_upload_goes_on(
    client: Pusher, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(20 * MIB)
    monkeypatch.setattr("entrepot.blobs.upload.MAX_PARTS", 2)
    location = await client.begin()
    assert outcome(await client.patch(location, data)) == (413, "SIZE_INVALID")
    assert (await client.ask("GET", location)).headers["Range"] == "0-0"
    assert outcome(await client.finish(location, digest_of(data), data)) == (413, "SIZE_INVALID")
    assert (await client.patch(location, data[: 9 * MIB], at=0)).status == 202
    assert (await client.finish(location, digest_of(data[: 9 * MIB]))).status == 201
    assert await demo.running.metric("entrepot_registry_buffer_bytes") == 0


async def test_a_lease_that_cannot_be_renewed_is_given_up(
    database: Database, s3: S3Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lease = timedelta(milliseconds=600)
    async with services.running(database, s3, tmp_path / "keys", upload_lease=lease) as started:
        await fill(started)
        client = await pushes.pusher(started)
        location = await client.begin()
        stream = Slowly()
        stream.send(b"before")
        patch = asyncio.create_task(client.patch(location, stream))
        await until(lambda: is_leased(started))
        await started.owner.execute("alter table upload add constraint not_now check (writer is null) not valid")
        said: list[str] = []

        async def is_logged() -> bool:
            said.append(capfd.readouterr().out)
            return "a lease is given up" in "".join(said)

        await until(is_logged)
        stream.send(b"after")
        stream.end()
        assert outcome(await patch) == UNKNOWN
        await started.owner.execute("alter table upload drop constraint not_now")

        async def goes_on() -> bool:
            return (await client.patch(location, b"again", at=0)).status == 202

        await until(goes_on)


async def _uploading(running: Running, count: int) -> bool:
    return await running.metric("entrepot_registry_uploads_in_progress") == count


async def test_a_client_that_sends_nothing_is_dropped_and_its_upload_goes_on(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with services.running(database, s3, tmp_path / "keys", upload_timeout=timedelta(milliseconds=300)) as started:
        await fill(started)
        client = await pushes.pusher(started)
        location = await client.begin()
        stream = Slowly()
        stream.send(b"a few bytes")
        async with asyncio.timeout(10):
            got = await client.patch(location, stream)
        assert outcome(got) == (408, "BLOB_UPLOAD_INVALID")
        stream.end()
        assert (await client.ask("GET", location)).headers["Range"] == "0-0"
        assert (await client.patch(location, b"again", at=0)).status == 202


async def test_many_uploads_finish_with_a_small_budget(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    buffers = BufferSettings(budget=10 * MIB, part_size=5 * MIB)
    async with services.running(database, s3, tmp_path / "keys", buffers=buffers) as started:
        await fill(started)
        client = await pushes.pusher(started)
        bodies = [os.urandom(12 * MIB + n) for n in range(6)]

        async def push(data: bytes) -> int:
            location = await client.begin()
            stream = Slowly()
            stream.send(data)
            stream.end()
            assert (await client.patch(location, stream)).status == 202
            return (await client.finish(location, digest_of(data))).status

        async with asyncio.timeout(120):
            assert await asyncio.gather(*map(push, bodies)) == [201] * 6
        assert await served(client, bodies[-1])
        assert await started.metric("entrepot_registry_buffer_bytes") == 0
