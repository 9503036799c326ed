"""Blobs: linked if they may be, otherwise fetched, verified on their way, and stored once however many images name them."""

from __future__ import annotations

import asyncio

from entrepot.db.content import INLINE_LIMIT, StoredBlob
from entrepot.errors import UpstreamInvalid
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import MAX_CONFIG_SIZE, Descriptor, Manifest
from entrepot.oci.media_types import is_foreign_layer
from entrepot.upstream.client import UpstreamClient
from entrepot_syncer.patience import patiently
from entrepot_syncer.progress import Progress
from entrepot_syncer.settings import SyncerSettings
from entrepot_syncer.store import RunStore

__all__ = ["Blobs"]


class Blobs:
    """The blobs of a run."""

    def __init__(
        self, client: UpstreamClient, store: RunStore, *, settings: SyncerSettings, progress: Progress
    ) -> None:
        self._client = client
        self._store = store
        self._settings = settings
        self._progress = progress
        self._sizes: dict[str, int] = {}
        """Verified sizes of what is linked by now."""
        self._counted: set[str] = set()
        self._fetching: dict[tuple[str, int], asyncio.Task[bytes | None]] = {}

    async def close(self) -> None:
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)

    async def ensure(self, manifest: Manifest) -> bytes | None:
        """See that every blob of an image is stored and linked; gives its config's bytes, unless they are too many to look at.

        Layers that lie elsewhere by their type (foreign layers) are not fetched, from there least of all.

        Raises:
            UpstreamError: a blob is missing upstream, or is not what the manifest says.
        """
        blobs = [blob for blob in manifest.blobs if not is_foreign_layer(blob.media_type)]
        for blob in blobs:
            self._count(blob)
        unknown = [str(blob.digest) for blob in blobs if str(blob.digest) not in self._sizes]
        if unknown:
            linked = await self._store.link_known(unknown)
            for digest, size in linked.items():
                if self._done(digest, size):
                    self._progress.bytes_done += size
        results = await asyncio.gather(*map(self._one, blobs), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error
        config = manifest.config
        if config is None or config.size > MAX_CONFIG_SIZE:
            return None
        known = dict(zip((blob.digest for blob in blobs), results, strict=True)).get(config.digest)
        return (
            known if isinstance(known, bytes) else await self._store.config(str(config.digest), limit=MAX_CONFIG_SIZE)
        )

    def _count(self, blob: Descriptor) -> None:
        if str(blob.digest) not in self._counted:
            self._counted.add(str(blob.digest))
            self._progress.blobs_total += 1
            self._progress.bytes_total += blob.size

    def _done(self, digest: str, size: int) -> bool:
        """Whether this is news."""
        if digest in self._sizes:
            return False
        self._sizes[digest] = size
        self._progress.blobs_done += 1
        return True

    async def _one(self, blob: Descriptor) -> bytes | None:
        """Gives the bytes of a small blob that was fetched."""
        digest = str(blob.digest)
        size = self._sizes.get(digest)
        if size is None:
            # By size as well: a manifest that lies about it must not spoil the one that does not.
            key = (digest, blob.size)
            task = self._fetching.get(key)
            if task is None:
                task = self._fetching[key] = asyncio.create_task(self._fetch(blob))
                task.add_done_callback(lambda _: self._fetching.pop(key, None))
            return await asyncio.shield(task)
        if size != blob.size:
            raise UpstreamInvalid(
                f"blob {digest} has {size} bytes, the manifest says {blob.size}", reason="SizeMismatch"
            )
        return None

    async def _fetch(self, blob: Descriptor) -> bytes | None:
        data: bytes | None = None
        if blob.data is not None and blob.size <= INLINE_LIMIT:
            data = blob.data
            self._progress.bytes_done += blob.size
        elif blob.size <= INLINE_LIMIT:
            data = await self._receive(blob.digest, blob.size)
        if data is not None:
            stored = StoredBlob(digest=str(blob.digest), size=blob.size, inline=data)
        else:
            stored = await patiently(lambda: self._stream(blob), outage=self._settings.outage)
        await self._store.add_blob(stored)
        if not self._done(str(blob.digest), blob.size):
            # Found to be linked in the very moment it was: its bytes are counted already.
            self._progress.bytes_done -= blob.size
        return data

    async def _receive(self, digest: Digest, size: int) -> bytes:
        chunks: list[bytes] = []

        async def sink(chunk: bytes) -> None:
            chunks.append(chunk)
            self._received(len(chunk))

        await self._client.blob(digest, size, sink=sink)
        return b"".join(chunks)

    async def _stream(self, blob: Descriptor) -> StoredBlob:
        """From the upstream to S3 through a few buffers. It becomes an object only after it is verified."""
        objects = await self._store.objects()
        key = await self._store.key()
        before = self._progress.bytes_done
        taken = 0
        try:
            async with objects.multipart(
                key, size=blob.size, on_open=lambda upload_id: self._store.opened_multipart(key, upload_id)
            ) as upload:

                async def sink(chunk: bytes) -> None:
                    nonlocal taken
                    await upload.write(chunk)
                    taken += len(chunk)
                    self._received(len(chunk))

                await self._client.blob(blob.digest, blob.size, sink=sink)
                await upload.complete()
        except BaseException:
            self._progress.bytes_done = max(before, self._progress.bytes_done - taken)
            raise
        return StoredBlob(digest=str(blob.digest), size=blob.size, object_key=key)

    def _received(self, size: int) -> None:
        self._progress.bytes_done += size
        self._progress.bytes_transferred += size
