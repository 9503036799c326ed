"""A repository to be mirrored, and runs of the syncer in this process or in one of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from entrepot.blobs.store import open_store
from entrepot.credentials import Credentials, Keys, seal
from entrepot.db.syncer import RunEnd
from entrepot.oci.hosts import origin
from entrepot.settings import S3Settings
from entrepot.upstream.settings import UpstreamSettings
from entrepot_syncer.run import Environment, perform
from entrepot_syncer.settings import ProcessSettings, SyncerSettings
from tests.conftest import Database
from tests.upstreams.images import digest_of
from tests.upstreams.server import Upstream

ROOT = Path(__file__).resolve().parents[3]
PARTS = ("core", "operator", "services/registry", "services/setup", "services/syncer", "services/token")


@dataclass
class Mirror:
    """One Repository as the operator would have written it to the database."""

    database: Database
    s3: S3Settings
    owner: asyncpg.Connection
    directory: Path
    repository: int
    remote: uuid.UUID
    keys: Keys
    upstream_settings: UpstreamSettings = field(
        default_factory=lambda: UpstreamSettings(allow_loopback=True, max_backoff=timedelta(milliseconds=50))
    )
    outage: timedelta = timedelta(seconds=20)

    async def new_run(self, upstream: Upstream | str, *, name: str = "app/web", **spec: Any) -> uuid.UUID:
        """The row of a run, not begun."""
        url = upstream if isinstance(upstream, str) else upstream.url
        source = {
            "remote": str(self.remote),
            "url": url,
            "upstreamName": name,
            "includeTags": [],
            "excludeTags": [],
            **spec,
        }
        document = {"sources": [source], "policy": "Immediate", "mode": "Additive"}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        run: uuid.UUID = await self.owner.fetchval(
            "insert into sync_run (repository, spec, spec_hash, trigger) values ($1, $2, $3, 'Requested') returning id",
            self.repository, text, hashlib.sha256(text.encode()).hexdigest(),
        )  # fmt: skip
        return run

    async def use_credentials(self, upstream: Upstream | str, credentials: Credentials) -> None:
        url = upstream if isinstance(upstream, str) else upstream.url
        key_id, ciphertext = seal(self.keys, self.remote, origin=str(origin(url)), credentials=credentials)
        await self.owner.execute("delete from remote_credential")
        await self.owner.execute(
            "insert into remote_credential (remote, key_id, ciphertext) values ($1, $2, $3)",
            self.remote,
            key_id,
            ciphertext,
        )

    def environment(self) -> Environment:
        return Environment(
            database=self.database.settings("syncer"),
            s3=self.s3,
            upstream=self.upstream_settings,
            syncer=SyncerSettings(
                outage=self.outage, lock_wait=timedelta(seconds=5), progress_interval=timedelta(milliseconds=50)
            ),
            process=ProcessSettings(credentials_key_dir=self.directory / "keys"),
        )

    async def perform(self, run: uuid.UUID) -> RunEnd | None:
        return await perform(run, self.environment())

    async def sync(self, upstream: Upstream | str, *, name: str = "app/web", **spec: Any) -> asyncpg.Record:
        """A run from its row to its outcome, in this process; gives the row."""
        run = await self.new_run(upstream, name=name, **spec)
        await self.perform(run)
        return await self.row(run)

    async def row(self, run: uuid.UUID) -> asyncpg.Record:
        row = await self.owner.fetchrow("select * from sync_run where id = $1", run)
        assert row is not None
        return row

    def start(self, run: uuid.UUID, **environment: str) -> subprocess.Popen[bytes]:
        """The real process."""
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in PARTS),
            "TMPDIR": str(self.directory / "tmp"),
            "ENTREPOT_DATABASE_DSN": self.database.dsn("syncer"),
            "ENTREPOT_S3_ENDPOINT": self.s3.endpoint,
            "ENTREPOT_S3_BUCKET": self.s3.bucket,
            "ENTREPOT_S3_ACCESS_KEY_ID": self.s3.access_key_id,
            "ENTREPOT_S3_SECRET_ACCESS_KEY": self.s3.secret_access_key,
            "ENTREPOT_CREDENTIALS_KEY_DIR": str(self.directory / "keys"),
            "ENTREPOT_UPSTREAM_ALLOW_LOOPBACK": "true",
            "ENTREPOT_TERMINATION_LOG": str(self.directory / "termination"),
            "ENTREPOT_LOG_LEVEL": "debug",
            **environment,
        }
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "entrepot_syncer", "run", str(run)],
                env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
            )  # fmt: skip

    def log(self) -> str:
        return (self.directory / "log").read_text()

    async def tags(self) -> dict[str, str]:
        """What the latest version says."""
        rows = await self.owner.fetch(
            "select t.name, m.digest from tag t join manifest m on m.id = t.manifest where t.repository = $1 and t.removed is null",
            self.repository,
        )
        return {row["name"]: row["digest"] for row in rows}

    async def latest(self) -> int:
        number: int = await self.owner.fetchval("select latest from repository where id = $1", self.repository)
        return number

    async def check_everything_stored(self) -> int:
        """Every blob that is said to be stored has the bytes of its digest, and every manifest of the latest version has its blobs.

        Gives the number of blobs.
        """
        rows = await self.owner.fetch("select digest, size, object_key, inline from blob where stored_at is not null")
        async with open_store(self.s3) as store:
            for row in rows:
                data = row["inline"]
                if data is None:
                    async with store.read(row["object_key"]) as stream:
                        data = b"".join([chunk async for chunk in stream])
                assert digest_of(data) == row["digest"]
                assert len(data) == row["size"]
        for row in await self.owner.fetch("select digest, body from manifest"):
            assert digest_of(row["body"]) == row["digest"]
        missing = await self.owner.fetch(
            """
            select b.digest from repository_manifest r join manifest_blob e on e.manifest = r.manifest join blob b on b.id = e.blob
            where r.repository = $1 and r.removed is null and not e.is_foreign
                and (b.stored_at is null or not exists (select from repository_blob l where l.repository = $1 and l.blob = b.id))
            """,
            self.repository,
        )
        assert missing == []
        absent = await self.owner.fetch(
            """
            select c.digest from repository_manifest r join manifest_child c on c.parent = r.manifest
            where r.repository = $1 and r.removed is null and not exists (
                select from manifest m join repository_manifest k on k.manifest = m.id
                where m.digest = c.digest and k.repository = $1 and k.removed is null)
            """,
            self.repository,
        )
        assert absent == []
        return len(rows)

    async def leftovers(self) -> int:
        """Objects on their way that nothing would clean up."""
        number: int = await self.owner.fetchval("select count(*) from object where delete_after is null")
        return number


async def make_repository(owner: asyncpg.Connection, *, namespace: str = "team", name: str = "web") -> int:
    repository: int = await owner.fetchval(
        "insert into repository (namespace, name, resource_uid) values ($1, $2, gen_random_uuid()) returning id",
        namespace,
        name,
    )
    return repository


@pytest.fixture
async def mirror(database: Database, s3: S3Settings, tmp_path: Path) -> AsyncIterator[Mirror]:
    owner = await asyncpg.connect(database.dsn())
    (tmp_path / "keys").mkdir()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "keys" / "k1").write_text("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")
    remote = uuid.uuid4()
    await owner.execute(
        "insert into remote (uuid, namespace, name, url) values ($1, 'team', 'up', 'http://127.0.0.1')", remote
    )
    repository = await make_repository(owner)
    keys = await asyncio.to_thread(Keys.load, tmp_path / "keys")
    yield Mirror(database, s3, owner, tmp_path, repository, remote, keys)
    await owner.close(timeout=5)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        yield server
