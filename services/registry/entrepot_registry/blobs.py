"""Blobs: small ones out of PostgreSQL, the others streamed from S3, whole or a range.

Memory does not grow with a blob: a chunk is read when the client has taken the one before. What S3 sends is counted, and the answer's end is
sent only if it was all: a client that got less sees a broken connection, never a short blob that looks whole. HEAD asks PostgreSQL alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import structlog
from aiohttp import web

from entrepot.blobs.store import BlobStore, ObjectMissing
from entrepot.db.pool import Pool
from entrepot.db.registry import BlobQuery, FoundBlob, find_blobs
from entrepot.errors import RegistryError, StorageUnavailable
from entrepot.oci.ranges import ByteRange, RangeNotSatisfiable, content_range, parse_range
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.conditions import is_known, range_applies
from entrepot_registry.lookups import Batcher
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.routes import Route
from entrepot_registry.settings import RegistrySettings

__all__ = ["Blobs"]

_log = structlog.get_logger("blobs")


class Blobs:
    """The endpoint `blobs/<digest>`. `async with` opens its lookups."""

    def __init__(
        self,
        pool: Pool,
        store: BlobStore,
        guard: Guard,
        *,
        settings: RegistrySettings,
        metrics: RegistryMetrics,
        write_timeout: float,
    ) -> None:
        self._store = store
        self._guard = guard
        self._grace: timedelta = settings.pull_grace
        self._storage_timeout = settings.storage_timeout.total_seconds()
        self._write_timeout = write_timeout
        self._metrics = metrics
        self._lookups: Batcher[BlobQuery, FoundBlob] = Batcher(
            pool, lambda connection, asked: find_blobs(connection, asked, grace=self._grace),
            connections=settings.lookup_connections, size=settings.lookup_batch, timeout=settings.lookup_timeout.total_seconds(),
            statements=metrics.statements.labels("find_blobs"), questions=metrics.questions.labels("find_blobs"),
        )  # fmt: skip

    async def __aenter__(self) -> Blobs:
        await self._lookups.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lookups.__aexit__()

    async def answer(self, call: Call, route: Route) -> web.StreamResponse:
        """GET and HEAD. Raises RegistryError, GrammarError, `DatabaseUnavailable` and `StorageUnavailable`."""
        name = route.name or ""
        digest = str(route.digest)
        grant = await self._guard.identify(call, name=name)
        is_get = call.method == "GET"
        found = await self._lookups.ask(BlobQuery(name, digest, with_inline=is_get))
        self._guard.admit(call, grant, name, found.place)
        if found.size is None:
            raise RegistryError(
                404, "BLOB_UNKNOWN", "this repository has no such blob", detail={"name": name, "digest": digest}
            )
        request = call.request.headers
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        if is_known(request.getall("If-None-Match", ()), digest):
            return web.Response(status=304, headers=headers)
        if not is_get:
            return web.Response(headers={**headers, "Content-Length": str(found.size)})
        part = self._part(request.get("Range"), request.get("If-Range"), digest=digest, size=found.size)
        if part is not None:
            headers["Content-Range"] = content_range(part, found.size)
        if found.inline is not None:
            body = found.inline if part is None else found.inline[part.start : part.end + 1]
            return web.Response(status=200 if part is None else 206, body=body, headers=headers)
        return await self._stream(call, found, part, digest=digest, headers=headers)

    @staticmethod
    def _part(value: str | None, if_range: str | None, *, digest: str, size: int) -> ByteRange | None:
        if value is None or not range_applies(if_range, digest):
            return None
        try:
            return parse_range(value, size)
        except RangeNotSatisfiable as error:
            headers = {"Content-Range": content_range(None, size)}
            raise RegistryError(error.status, error.code, str(error), headers=headers) from error

    async def _stream(
        self, call: Call, found: FoundBlob, part: ByteRange | None, *, digest: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        expected = part.length if part is not None else (found.size or 0)
        async with AsyncExitStack() as stack:
            chunk, rest = await self._open(stack, found.object_key or "", part, digest=digest)
            response = web.StreamResponse(status=200 if part is None else 206, headers=headers)
            response.content_length = expected
            await call.begin(response)
            while chunk and call.sent + len(chunk) <= expected:
                await call.write(chunk, seconds=self._write_timeout)
                chunk = await anext(rest, b"")
            if chunk or call.sent != expected:
                _log.error(
                    "ALERT: an object is not as long as its row says",
                    digest=digest,
                    key=found.object_key,
                    expected=expected,
                    sent=call.sent,
                )
                raise StorageUnavailable(f"the object of {digest} is not {expected} bytes long")
            await response.write_eof()
            return response

    async def _open(
        self, stack: AsyncExitStack, key: str, part: ByteRange | None, *, digest: str
    ) -> tuple[bytes, AsyncIterator[bytes]]:
        """The first chunk and the others. The first is waited for before anything is promised to the client."""
        started = time.perf_counter()
        start, end = (part.start, part.end) if part is not None else (0, None)
        outcome = "failed"
        try:
            async with asyncio.timeout(self._storage_timeout):
                stream = await stack.enter_async_context(self._store.read(key, start, end))
                first = await anext(stream, b"")
            outcome = "begun"
            return first, stream
        except ObjectMissing as error:
            outcome = "missing"
            _log.error("ALERT: an object is missing although a row points at it", digest=digest, key=key)
            raise RegistryError(
                500, "UNKNOWN", "the blob's bytes are missing here; the operators have been alerted"
            ) from error
        except TimeoutError as error:
            raise StorageUnavailable(f"S3 sent nothing within {self._storage_timeout:g} s") from error
        finally:
            self._metrics.storage_seconds.observe(time.perf_counter() - started)
            self._metrics.storage_reads.labels(outcome).inc()
