"""One round: end what expired, mark what was abandoned, remove what is due.

The steps are independent of each other and of who did the last one. Each statement is one transaction; between marking and removing nothing
has to be remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from entrepot.blobs.store import BlobStore
from entrepot.db import keeper as db
from entrepot.db.keeper import MarkedObject
from entrepot.db.pool import Connection
from entrepot.errors import StorageUnavailable
from entrepot_keeper.metrics import KeeperMetrics
from entrepot_keeper.settings import KeeperSettings

__all__ = ["Rounds"]

_ABORTS = 8
"""Requests to S3 at the same time."""

_log = structlog.get_logger("keeper")


class Rounds:
    """The work, over a connection that holds the keeper's lock."""

    def __init__(self, store: BlobStore, *, settings: KeeperSettings, metrics: KeeperMetrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics

    async def perform(self, connection: Connection) -> None:
        """Do what there is to do. Raises `DatabaseUnavailable`, and `StorageUnavailable` where S3 does nothing at all."""
        await self._in_batches(lambda: self._expire(connection))
        await self._in_batches(lambda: self._mark(connection))
        await self._remove(connection)
        self._metrics.waiting.set(await db.count_marked(connection))

    async def _in_batches(self, step: Callable[[], Awaitable[int]]) -> None:
        for _ in range(self._settings.batches):
            if await step() < self._settings.batch:
                return

    async def _expire(self, connection: Connection) -> int:
        settings = self._settings
        ended = await db.expire_uploads(
            connection, expiry=settings.upload_expiry, delay=settings.removal_delay, batch=settings.batch
        )
        self._metrics.uploads.inc(ended.uploads)
        self._metrics.upload_bytes.inc(ended.bytes)
        if ended.uploads:
            _log.info("uploads expired", uploads=ended.uploads, bytes=ended.bytes)
        return ended.uploads

    async def _mark(self, connection: Connection) -> int:
        settings = self._settings
        marked = await db.mark_abandoned(
            connection, reservation=settings.reservation_expiry, delay=settings.removal_delay, batch=settings.batch
        )
        self._metrics.abandoned.inc(marked)
        if marked:
            _log.info("objects abandoned", objects=marked)
        return marked

    async def _remove(self, connection: Connection) -> None:
        after = ""
        for _ in range(self._settings.batches):
            found = await db.removable_objects(connection, after=after, batch=self._settings.batch)
            if found:
                after = found[-1].key
                aborted = await self._abort(found)
                removed = await self._delete(aborted)
                count = await db.forget_objects(connection, removed)
                self._metrics.removed.inc(count)
                _log.info("objects removed", objects=count, failed=len(found) - len(removed))
            if len(found) < self._settings.batch:
                return

    async def _abort(self, objects: Sequence[MarkedObject]) -> list[str]:
        """End the multipart uploads; gives the keys of those objects that have none open any more."""
        turns = asyncio.Semaphore(_ABORTS)

        async def abort(one: MarkedObject) -> StorageUnavailable | None:
            async with turns:
                try:
                    if one.upload_id is not None:
                        await self._store.abort(one.key, one.upload_id)
                    else:
                        # A process that is killed between S3's answer and its own note leaves one that nobody wrote down.
                        await self._store.abort_all(one.key)
                except StorageUnavailable as error:
                    return error
            return None

        async with asyncio.TaskGroup() as group:
            tasks = {one.key: group.create_task(abort(one)) for one in objects}
        failed = {key: error for key, task in tasks.items() if (error := task.result()) is not None}
        await self._pass_over(failed)
        return [key for key in tasks if key not in failed]

    async def _delete(self, keys: Sequence[str]) -> list[str]:
        """Remove objects; gives the keys of those that are gone."""
        if not keys:
            return []
        try:
            await self._store.delete(keys)
        except StorageUnavailable as error:
            if len(keys) == 1:
                await self._pass_over({keys[0]: error})
                return []
            await self._store.check()
            # One that S3 holds on to must not keep the others.
            return [gone for key in keys for gone in await self._delete([key])]
        return list(keys)

    async def _pass_over(self, failed: Mapping[str, StorageUnavailable]) -> None:
        """These stay until the next round. Raises where it is S3 as a whole that does not answer."""
        if failed:
            await self._store.check()
        for key, error in failed.items():
            self._metrics.failures.labels("object").inc()
            _log.warning("an object was not removed", key=key, error=error.message)
