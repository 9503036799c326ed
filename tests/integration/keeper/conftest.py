"""A keeper's rounds over a real database and a real bucket, and what they find there."""

from __future__ import annotations

import dataclasses
import secrets
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from entrepot import logs
from entrepot.blobs.store import BlobStore, open_store
from entrepot.db.pool import Connection, connect
from entrepot.settings import S3Settings
from entrepot_keeper.metrics import KeeperMetrics
from entrepot_keeper.rounds import Rounds
from entrepot_keeper.settings import KeeperSettings
from tests import contents
from tests.conftest import Database, ObjectStore

SETTINGS = KeeperSettings(
    metrics_port=0,
    removal_delay=timedelta(0),
    round_interval=timedelta(milliseconds=50),
    standby_interval=timedelta(milliseconds=20),
    retry_limit=timedelta(milliseconds=100),
)


@dataclass
class Ward:
    """What a keeper keeps. `owner` may do everything, `connection` what the keeper may."""

    database: Database
    s3: S3Settings
    owner: Connection
    connection: Connection
    store: BlobStore
    server: ObjectStore
    repository: int
    settings: KeeperSettings
    metrics: KeeperMetrics

    async def round(self, **settings: Any) -> None:
        """One round, with other settings if given."""
        changed = dataclasses.replace(self.settings, **settings)
        await Rounds(self.store, settings=changed, metrics=self.metrics).perform(self.connection)

    async def begin(
        self, owner: str, *, age: str = "0", write: bool = True, key: str | None = None, marked: str | None = None
    ) -> str:
        """An object on record, of an age and marked for removal some time ago, both as PostgreSQL writes intervals."""
        key = key or f"blobs/{secrets.token_hex(20)}"
        # First, since a keeper may be at work already.
        if write:
            await self.store.put(key, b"left over")
        await self.owner.execute(
            "insert into object (key, owner, created_at, delete_after) values ($1, $2, now() - $3::text::interval, now() - $4::text::interval)",
            key, owner, age, marked,
        )  # fmt: skip
        return key

    async def multipart(self, key: str) -> str:
        """Begin a multipart upload with a part, and note it."""
        client, bucket = self.store._client, self.s3.bucket
        begun = await client.create_multipart_upload(Bucket=bucket, Key=key)
        identity = begun["UploadId"]
        await client.upload_part(Bucket=bucket, Key=key, UploadId=identity, PartNumber=1, Body=b"x" * 1024)
        await self.owner.execute("update object set upload_id = $2 where key = $1", key, identity)
        return identity

    async def open_multiparts(self) -> int:
        """Multipart uploads that S3 has."""
        answer = await self.store._client.list_multipart_uploads(Bucket=self.s3.bucket)
        return len(answer.get("Uploads", []))

    async def upload(self, identity: str = "upload-1", *, idle: str = "25 hours", **columns: object) -> str:
        """An upload that was last touched some time ago."""
        names = ["id", "repository", "subject", *columns]
        quoted = [f'"{name}"' for name in names]
        places = ", ".join(f"${i + 1}" for i in range(len(names)))
        await self.owner.execute(
            f"insert into upload ({', '.join(quoted)}) values ({places})", identity, self.repository, "somebody", *columns.values()
        )  # fmt: skip
        await self.owner.execute(
            "update upload set touched_at = now() - $2::text::interval where id = $1", identity, idle
        )
        return identity

    async def point(self, key: str) -> None:
        """Point a blob at an object."""
        await self.owner.execute(
            "insert into blob (digest, size, object_key, stored_at) values ($1, 9, $2, now())",
            contents.sha256(key.encode()),
            key,
        )

    async def sync_run(self, *, finished: bool = False) -> uuid.UUID:
        """A run of a repository of its own."""
        repository = await contents.make_repository(self.owner, name=f"mirror-{secrets.token_hex(4)}")
        run: uuid.UUID = await self.owner.fetchval(
            "insert into sync_run (repository, spec, spec_hash, trigger) values ($1, '{}', '', 'Created') returning id",
            repository,
        )
        if finished:
            await self.owner.execute(
                "update sync_run set finished_at = now(), phase = 'Finished', outcome = 'Failed' where id = $1", run
            )
        return run

    async def on_record(self) -> set[str]:
        """Keys of all object rows."""
        return {row["key"] for row in await self.owner.fetch("select key from object")}

    async def uploads(self) -> set[str]:
        return {row["id"] for row in await self.owner.fetch("select id from upload")}

    def in_bucket(self, key: str) -> bool:
        """Whether S3 has the object."""
        return (self.server.bucket_path(self.s3) / key).is_file()

    def counted(self, name: str, **labels: str) -> float:
        """The value of a metric."""
        return self.metrics.registry.get_sample_value(f"entrepot_keeper_{name}", labels) or 0.0


@pytest.fixture
async def ward(database: Database, s3: S3Settings, object_store: ObjectStore) -> AsyncIterator[Ward]:
    logs.configure("info")
    async with AsyncExitStack() as stack:
        owner = await connect(database.settings(), application="test")
        stack.push_async_callback(owner.close)
        connection = await connect(database.settings("keeper"), application="entrepot-keeper")
        stack.push_async_callback(connection.close)
        store = await stack.enter_async_context(open_store(s3))
        await store.ensure_bucket()
        repository = await contents.make_repository(owner)
        yield Ward(database, s3, owner, connection, store, object_store, repository, SETTINGS, KeeperMetrics())
