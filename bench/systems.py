"""The two registries that `bench.registry` compares, on one S3 server, with the same content in both.

Ours is one worker process and the token service, over PostgreSQL with fsync. The peer is Debian's docker-registry without any authentication.
Content gets into ours by the functions that every part commits with. Into the peer the many small manifests and tags are put by writing
files in its own layout into the directory that the S3 server serves, since 50,000 pushes would take an hour; everything else is pushed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from entrepot.blobs.store import open_store
from entrepot.db import content
from entrepot.db.content import Change, StoredBlob
from entrepot.db.migrate import migrate
from entrepot.db.pool import Connection, connect
from entrepot.oci import media_types
from entrepot.settings import DatabaseSettings, S3Settings
from tests import contents
from tests.conftest import PARTS, Database
from tests.contents import Image
from tests.processes import Processes, process
from tests.servers import ObjectStore, Postgres, running_object_store, running_postgres
from tests.services import SERVICE
from tests.upstreams.docker_registry import running_docker_registry

__all__ = ["Content", "System", "Systems", "running_systems"]

NAME = "demo/app"
REDIRECTED = "demo/redirected"
LARGE = 100_000_000
_BATCH = 2_500


@dataclass(frozen=True)
class Content:
    """What is in both. The first manifest's tag is `latest` as well."""

    hot: Image
    manifests: list[str]
    """Digests."""
    large: str
    """The digest of a blob of 100 MB."""
    config: str
    """The descriptor of a config blob, in JSON."""


@dataclass(frozen=True)
class System:
    """A registry, as the load generator reaches it."""

    title: str
    address: str
    host: str
    headers: str
    pid: int
    behind: tuple[int, ...]
    """The processes that it makes work, besides S3."""
    bucket: str


@dataclass(frozen=True)
class Systems:
    """Both, what they hold, and the S3 server."""

    ours: System
    peer: System
    content: Content
    objects: ObjectStore
    presigned: str
    """The large blob in S3 itself."""

    @property
    def s3_pid(self) -> int:
        assert self.objects.process is not None
        return self.objects.process.pid

    def calls_to_s3(self, bucket: str, mark: int) -> int:
        """Requests for a bucket since the access log had `mark` bytes."""
        with (self.objects.directory / "access.log").open("rb") as log:
            log.seek(mark)
            return sum(b" %s " % bucket.encode() in line for line in log)

    def mark(self) -> int:
        path = self.objects.directory / "access.log"
        return path.stat().st_size if path.exists() else 0


def images(count: int) -> Iterator[Image]:
    """Images that share their blobs and differ in an annotation: manifests of nine blobs, about 1.5 kB."""
    layers = [b"layer %d" % n for n in range(8)]
    for number in range(count):
        yield contents.image(*layers, annotations={"org.opencontainers.image.version": f"1.0.{number}"})


async def fill_ours(owner: Connection, s3: S3Settings, found: list[Image], large: bytes) -> str:
    """Manifests, a tag for each, and the large blob; gives its key in S3."""
    repository = await contents.make_repository(owner)
    await contents.make_distribution(owner, repository)
    redirected = await contents.make_distribution(owner, repository, base_path=REDIRECTED)
    await owner.execute("update distribution set redirect = uuid = $1", redirected)
    await contents.store(owner, repository, *found[0].blobs)
    async with open_store(s3) as store:
        [key] = await content.begin_objects(owner, owner="bench", count=1)
        async with store.multipart(key, size=len(large)) as upload:
            await upload.write(large)
            await upload.complete()
    digest = contents.sha256(large)
    await content.store_blobs(owner, [StoredBlob(digest=digest, size=len(large), object_key=key)])
    await content.link_blobs(owner, repository, sizes={digest: len(large)})
    for first in range(0, len(found), _BATCH):
        ids = await contents.put(owner, *found[first : first + _BATCH])
        tags = {f"v{first + n}": id_ for n, id_ in enumerate(ids)}
        if first == 0:
            tags["latest"] = ids[0]
        await contents.commit(owner, repository, Change(tags=tags, add_manifests=ids))
    await owner.execute("vacuum analyze")
    return key


def fill_peer(bucket: Path, found: list[Image]) -> None:
    """Manifests and tags, in the layout that its S3 driver has for them."""
    root = bucket / "docker" / "registry" / "v2"
    manifests = root / "repositories" / NAME / "_manifests"

    def put(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    for number, image in enumerate(found):
        digest = image.digest
        hexadecimal = digest.removeprefix("sha256:")
        put(root / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal / "data", image.body)
        put(manifests / "revisions" / "sha256" / hexadecimal / "link", digest.encode())
        for tag in (f"v{number}", "latest") if number == 0 else (f"v{number}",):
            put(manifests / "tags" / tag / "current" / "link", digest.encode())


async def push(url: str, name: str, data: bytes, headers: dict[str, str] | None = None) -> None:
    """A blob, by the protocol."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
        async with http.post(f"{url}/v2/{name}/blobs/uploads/") as begun:
            location = begun.headers["Location"]
        mark = "&" if "?" in location else "?"
        async with http.put(f"{location}{mark}digest={contents.sha256(data)}", data=data) as done:
            assert done.status == 201, await done.text()


async def bearer(owner: Connection, keys: Path) -> str:
    """A token as the token service signs them, for an hour, so that none ends within a measurement."""
    rows = await owner.fetch("select name, uuid from place where name = any ($1::text[])", [NAME, REDIRECTED])
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": SERVICE, "aud": SERVICE, "sub": "bench", "iat": now, "nbf": now, "exp": now + 3600, "jti": "bench",
        "access": [{"type": "repository", "name": row["name"], "actions": ["pull", "push"]} for row in rows],
        "entrepot": {"distributions": {row["name"]: str(row["uuid"]) for row in rows}},
    }  # fmt: skip
    key: Any = load_pem_private_key((keys / "key-1.pem").read_bytes(), password=None)
    return jwt.encode(claims, key, algorithm="ES256", headers={"kid": "key-1"})


async def new_database(server: Postgres) -> Database:
    admin = await asyncpg.connect(server.dsn(user="postgres", database="postgres"))
    await admin.execute("create database bench")
    await migrate(DatabaseSettings(dsn=server.dsn(user="postgres", database="bench")))
    for part in PARTS:
        await admin.execute(f"alter role entrepot_{part} login")
    await admin.close()
    return Database(server, "bench")


async def presign(s3: S3Settings, key: str) -> str:
    async with open_store(s3) as store:
        client: Any = store._client  # noqa: SLF001 - S3's own address, without our code in between
        address: str = await client.generate_presigned_url(
            "get_object", Params={"Bucket": s3.bucket, "Key": key}, ExpiresIn=3600
        )
        return address


def postmaster(server: Postgres) -> int:
    return int((server.directory / "data" / "postmaster.pid").read_text().split()[0])


@asynccontextmanager
async def running_systems(directory: Path, *, manifests: int) -> AsyncIterator[Systems]:
    """Both, filled and ready."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(running_postgres(durable=True))
        objects = stack.enter_context(running_object_store(with_log=True))
        database = await new_database(server)
        our_s3, peer_s3 = objects.settings(), objects.settings()
        owner = await connect(database.settings(), application="bench")
        stack.push_async_callback(owner.close)
        found, large = list(images(manifests)), os.urandom(LARGE)
        config = found[0].config
        key = await fill_ours(owner, our_s3, found, large)
        await asyncio.to_thread(fill_peer, objects.bucket_path(peer_s3), found)

        processes = Processes(database, our_s3, directory)
        processes.registry["ENTREPOT_LOG_LEVEL"] = "warning"
        stack.enter_context(process("entrepot_token", processes.token_log, processes.token))
        registry = stack.enter_context(process("entrepot_registry", processes.log, processes.registry))
        async with aiohttp.ClientSession() as http:
            await processes.ready(http)
        headers = f"Authorization: Bearer {await bearer(owner, directory / 'keys')}"
        ours = System(
            "entrepot", f"127.0.0.1:{processes.ports[0]}", f"localhost:{processes.ports[0]}", headers, registry.pid,
            (postmaster(server),), our_s3.bucket,
        )  # fmt: skip

        running = stack.enter_context(running_docker_registry(peer_s3, is_peer=True))
        for blob in (config, large):
            await push(running.url, NAME, blob)
        peer = System("docker-registry", running.host, running.host, "", running.pid, (), peer_s3.bucket)

        descriptor = {"mediaType": media_types.OCI_CONFIG, "digest": contents.sha256(config), "size": len(config)}
        digests = [f"sha256:{hashlib.sha256(image.body).hexdigest()}" for image in found]
        made = Content(found[0], digests, contents.sha256(large), json.dumps(descriptor))
        yield Systems(ours, peer, made, objects, await presign(our_s3, key))
