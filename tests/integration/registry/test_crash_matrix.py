"""The registry is killed at every await between the first byte of a push and its answer.

Whatever the moment: no tag without its manifest, no manifest without its blobs, nothing lost that was answered with 201, the same request
succeeds when it is made again, and what was left behind in S3 is found and removed by the keeper.

A matrix is one test: its request is recorded once, and then killed at each await, every time that it comes by there; the first time and the
last where it comes by more often than a few times, which is when it waits for bytes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from entrepot.blobs.store import BlobStore, open_store
from entrepot.db.pool import Connection, connect
from entrepot_keeper.metrics import KeeperMetrics
from entrepot_keeper.rounds import Rounds
from entrepot_keeper.settings import KeeperSettings
from tests import contents
from tests.conftest import ObjectStore, Postgres, fresh_database
from tests.crashing import END
from tests.processes import ROOT, Processes, process
from tests.pushes import Pusher, digest_of
from tests.services import Answer, signed

pytestmark = [pytest.mark.allow_blocking, pytest.mark.asyncio(loop_scope="module")]

MIB = 1024 * 1024
FEW = 3
Request = Callable[[Mapping[str, str]], Awaitable[Answer]]
"""Makes the request that is to be killed, with these headers."""

Prepare = Callable[[], Awaitable[tuple[Request, Callable[[], Awaitable[Any]]]]]
"""Makes new content and what comes before the request; gives the request, and what makes it again and looks at the result."""

# What must hold whatever happened: rows that break a promise.
BROKEN = {
    "a tag without its manifest": """
        select t.name from tag t where t.removed is null and not exists (
            select from repository_manifest m where m.repository = t.repository and m.manifest = t.manifest and m.removed is null)""",
    "a manifest without a blob": """
        select b.digest from repository_manifest m join manifest_blob e on e.manifest = m.manifest join blob b on b.id = e.blob
        where m.removed is null and not e.is_foreign and (b.stored_at is null or not exists (
            select from repository_blob l where l.repository = m.repository and l.blob = b.id))""",
    "a version that is not whole": """
        select r.id::text from repository r where r.latest > 0 and not exists (
            select from version v where v.repository = r.id and v.number = r.latest)""",
    "an object that is both a blob's and a leftover": "select o.key from object o join blob b on b.object_key = o.key",
}


@dataclass
class Matrix:
    """A registry that dies when told to, and what is needed to look at what it left."""

    processes: Processes
    owner: Connection
    keeper: Connection
    store: BlobStore
    bucket: Path
    keys: Path
    token: dict[str, str]
    client: Pusher
    promised: dict[str, bytes] = field(default_factory=dict)
    """By path, what has been answered with 201."""

    async def up(self) -> None:
        """Wait until the registry answers."""
        async with asyncio.timeout(30):
            while True:
                try:
                    async with self.client.http.get(f"http://127.0.0.1:{self.processes.ports[1]}/readyz") as answer:
                        if answer.status == 200:
                            return
                except (aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(0.01)

    async def killed(self, request: Request, place: str) -> bool:
        """Make a request that is to die at a place; whether it came by there."""
        try:
            await request({"X-Crash": place})
        except (aiohttp.ClientError, OSError):
            await self.up()
            return True
        return False

    async def renew(self) -> None:
        """Start the registry anew: nothing in it is warm."""
        assert await self.killed(lambda headers: self.client.ask("GET", "/v2/", headers=headers), f"{END}#1")

    async def blob(self, data: bytes) -> None:
        """Push a blob; it has to be there from now on."""
        done = await self.client.blob(data)
        assert done.status == 201, done.body
        self.promised[f"blobs/{digest_of(data)}"] = data

    async def check(self) -> None:
        """Nothing is broken and nothing is lost."""
        for what, query in BROKEN.items():
            assert await self.owner.fetch(query) == [], what
        for row in await self.owner.fetch("select object_key, size from blob where object_key is not null"):
            assert (self.bucket / row["object_key"]).stat().st_size == row["size"]
        for path, data in self.promised.items():
            got = await self.client.ask("GET", path)
            assert (got.status, got.body == data) == (200, True), path

    async def clean(self) -> None:
        """After a keeper's round, with all of time gone by, S3 has what blobs point at and nothing else."""
        await self.owner.execute(
            "update upload set touched_at = now() - interval '1 year', writer_until = null, writer = null"
        )
        await self.owner.execute(
            "update object set created_at = now() - interval '1 year', delete_after = delete_after - interval '1 year'"
        )
        settings = KeeperSettings(metrics_port=0, removal_delay=timedelta(0))
        for _ in range(2):
            await Rounds(self.store, settings=settings, metrics=KeeperMetrics()).perform(self.keeper)
        assert await self.owner.fetch("select key, owner from object") == []
        assert await self.owner.fetch("select id from upload") == []
        pointed = {
            row["object_key"]
            for row in await self.owner.fetch("select object_key from blob where object_key is not null")
        }
        found = {str(path.relative_to(self.bucket)) for path in self.bucket.rglob("*") if path.is_file()}
        assert found == pointed
        await self.check()

    async def run(self, prepare: Prepare) -> int:
        """Kill a request at each of its awaits; gives how often it died."""
        self.promised.clear()
        # On a busy machine all of them take longer than a token lives.
        self.token.update(await signed(self.owner, self.keys, {"demo/app": ("pull", "push", "delete")}))
        await self.renew()
        request, _ = await prepare()
        recorded = await request({"X-Crash": "record"})
        assert recorded.status in {201, 202}, recorded.body
        died = missed = 0
        for entry in recorded.headers["X-Awaits"].split():
            place, _, last = entry.rpartition("#")
            for number in range(1, int(last) + 1) if int(last) <= FEW else (1, int(last)):
                again = await self._kill_at(f"{place}#{number}", prepare)
                if again is None:
                    missed += 1
                    continue
                died += 1
                await self.check()
                await again()
        # Nobody waits for bytes that have come already, so a place may be passed without being suspended there.
        assert missed <= died // 3, (missed, died)
        await self.check()
        await self.clean()
        return died

    async def _kill_at(self, place: str, prepare: Prepare) -> Callable[[], Awaitable[Any]] | None:
        """Kill a new request at a place; gives how it is made again, or None if it does not come by there."""
        for _ in range(3):
            request, again = await prepare()
            if await self.killed(request, place):
                return again
            # Perhaps it was suspended there only because it was the first to come by.
            await self.renew()
        return None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def matrix(
    postgres: Postgres, template_database: str, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Matrix]:
    directory, s3 = tmp_path_factory.mktemp("matrix"), object_store.settings()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(fresh_database(postgres, template_database))
        both = Processes(database, s3, directory)
        both.registry |= {"ENTREPOT_HTTP_DRAIN_DELAY": "0s", "ENTREPOT_LOG_LEVEL": "info"}
        both.registry |= {"PYTHONPATH": os.pathsep.join([str(ROOT), both.registry["PYTHONPATH"]])}
        owner = await connect(database.settings(), application="test")
        stack.push_async_callback(owner.close)
        keeper = await connect(database.settings("keeper"), application="keeper")
        stack.push_async_callback(keeper.close)
        store = await stack.enter_async_context(open_store(s3))
        await contents.make_distribution(owner, await contents.make_repository(owner), access="Private")
        # A connection is used once: the client must not make a request again by itself because its connection was closed.
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), max_field_size=256 * 1024)
        )
        stack.enter_context(process("entrepot_token", both.token_log, both.token))
        stack.enter_context(process("tests.crashing", both.log, both.registry))
        token: dict[str, str] = {}
        client = Pusher(http, both.url, "demo/app", token)
        made = Matrix(both, owner, keeper, store, object_store.bucket_path(s3), directory / "keys", token, client)
        await made.up()
        yield made


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_a_blob_in_one_post(matrix: Matrix, size: int) -> None:
    async def prepare() -> tuple[Request, Callable[[], Awaitable[Any]]]:
        data = os.urandom(size)
        path = f"blobs/uploads/?digest={digest_of(data)}"

        async def request(headers: Mapping[str, str]) -> Answer:
            return await matrix.client.ask("POST", path, headers=headers, data=data)

        return request, lambda: matrix.blob(data)

    assert await matrix.run(prepare) >= 3


@pytest.mark.parametrize("size", [1000, 50_000, 11 * MIB])
async def test_a_chunk_of_an_upload(matrix: Matrix, size: int) -> None:
    async def prepare() -> tuple[Request, Callable[[], Awaitable[Any]]]:
        data = os.urandom(size)
        location = await matrix.client.begin()

        async def request(headers: Mapping[str, str]) -> Answer:
            return await matrix.client.ask("PATCH", location, headers=headers, data=data)

        async def again() -> None:
            await matrix.owner.execute("update upload set writer_until = now()")
            # What the session says it has, it has: what is left is sent, and all of it is the blob.
            standing = await matrix.client.ask("GET", location)
            assert standing.status == 204
            begun = int(standing.headers["Range"].removeprefix("0-"))
            offset = begun + 1 if begun else 0
            assert offset in {0, size}
            done = await matrix.client.finish(standing.headers["Location"], digest_of(data), data[offset:])
            assert done.status == 201, done.body
            matrix.promised = {f"blobs/{digest_of(data)}": data}

        return request, again

    assert await matrix.run(prepare) >= 3


@pytest.mark.parametrize(("before", "last"), [(0, 20_000), (50_000, 0), (50_000, 20_000), (6 * MIB, 0)])
async def test_the_end_of_an_upload(matrix: Matrix, before: int, last: int) -> None:
    async def prepare() -> tuple[Request, Callable[[], Awaitable[Any]]]:
        data = os.urandom(before + last)
        location = await matrix.client.begin()
        if before:
            patched = await matrix.client.patch(location, data[:before], at=0)
            assert patched.status == 202
            location = patched.headers["Location"]
        joint = "&" if "?" in location else "?"

        async def request(headers: Mapping[str, str]) -> Answer:
            return await matrix.client.ask(
                "PUT", f"{location}{joint}digest={digest_of(data)}", headers=headers, data=data[before:]
            )

        async def again() -> None:
            await matrix.owner.execute("update upload set writer_until = now()")
            standing = await matrix.client.ask("GET", location)
            if standing.status == 204:
                assert standing.headers["Range"] == f"0-{max(0, before - 1)}"
                assert (await request({})).status == 201
            else:
                # The session is gone because it ended well, and only the answer was lost.
                assert standing.code == "BLOB_UPLOAD_UNKNOWN"
            matrix.promised = {f"blobs/{digest_of(data)}": data}
            await matrix.check()

        return request, again

    assert await matrix.run(prepare) >= 3


@pytest.mark.parametrize("by", ["tag", "digest", "digest with tags"])
async def test_a_manifest(matrix: Matrix, by: str) -> None:
    async def prepare() -> tuple[Request, Callable[[], Awaitable[Any]]]:
        image = contents.image(os.urandom(1000), os.urandom(50_000))
        matrix.promised = {}
        for blob in image.blobs:
            await matrix.blob(blob)
        reference = "latest" if by == "tag" else image.digest
        path = f"manifests/{reference}" + ("?tag=latest&tag=other" if by == "digest with tags" else "")

        async def request(headers: Mapping[str, str]) -> Answer:
            kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
            return await matrix.client.ask("PUT", path, headers={**kind, **headers}, data=image.body)

        async def again() -> None:
            versions = await matrix.owner.fetchval("select max(number) from version")
            stands = await matrix.client.status("HEAD", f"manifests/{image.digest}") == 200
            assert (await request({})).status == 201
            # All of the change was made before, or none of it.
            assert await matrix.owner.fetchval("select max(number) from version") == (versions or 0) + (not stands)
            for tag in {"tag": ["latest"], "digest": [], "digest with tags": ["latest", "other"]}[by]:
                matrix.promised[f"manifests/{tag}"] = image.body
            matrix.promised[f"manifests/{image.digest}"] = image.body

        return request, again

    assert await matrix.run(prepare) >= 3
