"""What a run writes, in batches: rows of blobs and manifests, and objects.

The order is what makes a crash harmless at any point: an object's row before its first byte, a blob's row after its bytes are verified and
durable, a manifest after all its blobs are linked, the commit after everything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from entrepot.db import content, syncer
from entrepot.db.content import ManifestRecord, StoredBlob
from entrepot.db.pool import Connection
from entrepot.settings import S3Settings
from entrepot_syncer.batches import Batcher
from entrepot_syncer.patience import Database, patiently
from entrepot_syncer.settings import SyncerSettings

if TYPE_CHECKING:
    from entrepot.blobs.store import BlobStore

__all__ = ["RunStore", "objects_owner", "open_run_store"]

_LOOKUP_BATCH = 500
"""Lists of digests in one query."""
_BLOB_BATCH = 200
_MANIFEST_BATCH = 200
_KEYS = 64
"""Object keys that are recorded at a time."""


class _Opener(Protocol):
    def __call__(self, settings: S3Settings) -> AbstractAsyncContextManager[BlobStore]: ...


def _import_opener() -> _Opener:
    # botocore takes a quarter of a second to import, which a run that finds nothing new need not pay for.
    from entrepot.blobs.store import open_store  # noqa: PLC0415

    return open_store


def objects_owner(run: UUID) -> str:
    """Under what a run's objects stand until blobs point at them."""
    return f"sync/{run}"


class RunStore:
    """The content that one run stores for one repository."""

    def __init__(
        self, database: Database, s3: S3Settings, *, repository: int, run: UUID, origin: tuple[str, str],
        settings: SyncerSettings, stack: contextlib.AsyncExitStack,
    ) -> None:  # fmt: skip
        self._database = database
        self._s3 = s3
        self._repository = repository
        self._owner = objects_owner(run)
        self._origin = origin
        self._settings = settings
        self._stack = stack
        self._keys: list[str] = []
        self._keys_lock = asyncio.Lock()
        self._objects: BlobStore | None = None
        self._objects_lock = asyncio.Lock()
        linger = settings.linger.total_seconds()
        self._latest = Batcher(self._find_latest, limit=_LOOKUP_BATCH, linger=linger / 4)
        self._linkable = Batcher(self._find_linkable, limit=_LOOKUP_BATCH, linger=linger / 4)
        self._configs = Batcher(self._find_configs, limit=_LOOKUP_BATCH, linger=linger / 4)
        self._blobs = Batcher(self._write_blobs, limit=_BLOB_BATCH, linger=linger)
        self._manifests = Batcher(self._write_manifests, limit=_MANIFEST_BATCH, linger=linger)

    async def close(self) -> None:
        for batcher in (self._latest, self._linkable, self._configs, self._blobs, self._manifests):
            await batcher.close()

    async def objects(self) -> BlobStore:
        """S3, opened when it is needed for the first time."""
        async with self._objects_lock:
            if self._objects is None:
                opener = await asyncio.to_thread(_import_opener)
                self._objects = await self._stack.enter_async_context(opener(self._s3))
            return self._objects

    async def key(self) -> str:
        """The key of an object that may be written now: its row is there."""
        async with self._keys_lock:
            if not self._keys:
                self._keys = await self._database.run(
                    lambda c: content.begin_objects(c, owner=self._owner, count=_KEYS), transaction=True
                )
            return self._keys.pop()

    async def opened_multipart(self, key: str, upload_id: str) -> None:
        """Record a multipart upload, so that it can be aborted whatever becomes of this process."""
        await self._database.run(lambda c: content.open_multipart(c, key=key, upload_id=upload_id))

    async def latest(self, digests: Sequence[str]) -> dict[str, int]:
        """Which of these manifests are in the latest version, with their ids."""
        return await self._latest.submit(digests)

    async def link_known(self, digests: Sequence[str]) -> dict[str, int]:
        """Link what may be linked without fetching; gives the sizes of these blobs."""
        return await self._linkable.submit(digests)

    async def config(self, digest: str, *, limit: int) -> bytes | None:
        """The bytes of a stored blob that is linked to the repository; None if it has more than `limit`."""
        found = await self._configs.submit(digest)
        if found is None or found.object_key is None:
            return found.inline if found is not None else None
        return await patiently(lambda: self._read(found.object_key or "", limit), outage=self._settings.outage)

    async def _read(self, key: str, limit: int) -> bytes | None:
        objects = await self.objects()
        data = bytearray()
        async with objects.budget.hold(limit), objects.read(key) as stream:
            async for chunk in stream:
                data += chunk
                if len(data) > limit:
                    return None
        return bytes(data)

    async def add_blob(self, blob: StoredBlob) -> None:
        """Make verified bytes a blob of the repository; returns when that is durable."""
        await self._blobs.submit(blob)

    async def add_manifest(self, record: ManifestRecord) -> int:
        """Store a manifest, whose blobs are linked; gives its id. It is visible only after the commit."""
        return await self._manifests.submit(record)

    async def clean_up(self) -> None:
        """Abort and discard what earlier attempts at this run left behind."""
        uploads = await self._database.run(lambda c: syncer.open_uploads(c, self._owner))
        if uploads:
            objects = await self.objects()
            for key, upload_id in uploads:
                await patiently(lambda k=key, u=upload_id: objects.abort(k, u), outage=self._settings.outage)  # type: ignore[misc]
        await self._database.run(self.discard_leftovers)

    async def discard_leftovers(self, connection: Connection) -> None:
        """Leave to the keeper every object of this run that no blob points at; for the end of an attempt."""
        self._keys.clear()
        await syncer.discard_leftovers(connection, self._owner)

    async def _find_latest(self, wishes: Sequence[Sequence[str]]) -> list[dict[str, int]]:
        digests = sorted({digest for wish in wishes for digest in wish})
        found = await self._database.run(lambda c: content.latest_manifests(c, self._repository, digests=digests))
        return [{digest: found[digest] for digest in wish if digest in found} for wish in wishes]

    async def _find_linkable(self, wishes: Sequence[Sequence[str]]) -> list[dict[str, int]]:
        digests = sorted({digest for wish in wishes for digest in wish})

        async def work(connection: Connection) -> dict[str, int]:
            sizes = await content.linkable_blobs(connection, self._repository, digests=digests)
            if sizes:
                await content.link_blobs(connection, self._repository, sizes=sizes)
            return sizes

        found = await self._database.run(work, transaction=True)
        return [{digest: found[digest] for digest in wish if digest in found} for wish in wishes]

    async def _find_configs(self, digests: Sequence[str]) -> list[syncer.StoredConfig | None]:
        found = await self._database.run(lambda c: syncer.stored_configs(c, sorted(set(digests))))
        return [found.get(digest) for digest in digests]

    async def _write_blobs(self, blobs: Sequence[StoredBlob]) -> Sequence[None]:
        by_digest = {blob.digest: blob for blob in blobs}

        async def work(connection: Connection) -> None:
            await content.store_blobs(connection, list(by_digest.values()))
            sizes = {blob.digest: blob.size for blob in by_digest.values()}
            await content.link_blobs(connection, self._repository, sizes=sizes)
            origin, name = self._origin
            await content.record_origins(connection, origin=origin, name=name, digests=list(by_digest))

        await self._database.run(work, transaction=True)
        return [None] * len(blobs)

    async def _write_manifests(self, records: Sequence[ManifestRecord]) -> list[int]:
        ids = await self._database.run(lambda c: content.put_manifests(c, records), transaction=True)
        return [ids[str(record.manifest.digest)] for record in records]


@contextlib.asynccontextmanager
async def open_run_store(
    database: Database, s3: S3Settings, *, repository: int, run: UUID, origin: tuple[str, str], settings: SyncerSettings
) -> AsyncIterator[RunStore]:
    """The store of one attempt. `origin` is where the bytes come from: scheme://host:port and the repository's name there."""
    async with contextlib.AsyncExitStack() as stack:
        store = RunStore(database, s3, repository=repository, run=run, origin=origin, settings=settings, stack=stack)
        try:
            yield store
        finally:
            await store.close()
