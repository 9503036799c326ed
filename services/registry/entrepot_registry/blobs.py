"""Blobs: small ones out of PostgreSQL, the others streamed from S3, whole or a range.

Memory does not grow with a blob: a chunk is read when the client has taken the one before. What S3 sends is counted, and the answer's end is
sent only if it was all: a client that got less sees a broken connection, never a short blob that looks whole. HEAD asks PostgreSQL alone.

By setting, a GET of what is in S3 is answered with a link to it there, which is made without asking S3 and good for one object and a few
minutes. Who holds the link may read that object, so it stands in no log and is kept by no shared cache.

A client that is told by HEAD that a blob is here leaves out its upload. So the answer counts as a use, which puts off the collection; it is
written down when the last one was a good while ago.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import timedelta

import structlog
from aiohttp import web

from entrepot.blobs.store import BlobStore, ObjectMissing, ObjectStream
from entrepot.db.pool import Pool
from entrepot.db.registry import BlobQuery, FoundBlob, find_blobs
from entrepot.db.uploads import hide_blob, touch_blob
from entrepot.errors import CommitRefused, RegistryError, StillReferenced, StorageUnavailable
from entrepot.oci.ranges import ByteRange, RangeNotSatisfiable, content_range, parse_range
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.conditions import is_known, range_applies
from entrepot_registry.lookups import Batcher
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.routes import Route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.statements import Statement
from entrepot_registry.writing import Targets, refused_write, writable_place

__all__ = ["Blobs"]

_log = structlog.get_logger("blobs")

_WORTH_A_PIPE = 256 * 1024
"""Bytes still to come, from which on it is quicker to have the kernel move them."""


class Blobs:
    """The endpoint `blobs/<digest>`. `async with` opens its lookups."""

    def __init__(
        self,
        pool: Pool,
        store: BlobStore,
        guard: Guard,
        targets: Targets,
        *,
        settings: RegistrySettings,
        metrics: RegistryMetrics,
        write_timeout: float,
    ) -> None:
        self._store = store
        self._guard = guard
        self._targets = targets
        self._redirect = settings.redirect
        self._redirect_ttl = settings.redirect_ttl
        self._touching = Statement(pool, "touch_blob", timeout=settings.lookup_timeout, metrics=metrics)
        self._hiding = Statement(pool, "hide_blob", timeout=settings.commit_timeout, metrics=metrics)
        self._grace: timedelta = settings.pull_grace
        self._storage_timeout = settings.storage_timeout.total_seconds()
        self._write_timeout = write_timeout
        self._metrics = metrics
        self._lookups: Batcher[BlobQuery, FoundBlob] = Batcher(
            pool,
            "find_blobs",
            lambda connection, asked: find_blobs(connection, asked, grace=self._grace, fresh=settings.gc_grace / 4),
            settings=settings,
            metrics=metrics,
            connections=settings.lookup_connections,
        )

    async def __aenter__(self) -> Blobs:
        await self._lookups.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lookups.__aexit__()

    async def answer(self, call: Call, route: Route) -> web.StreamResponse:
        """GET, HEAD and DELETE. Raises RegistryError, GrammarError, `DatabaseUnavailable` and `StorageUnavailable`."""
        name = route.name or ""
        digest = str(route.digest)
        if call.method == "DELETE":
            return await self._delete(call, name, digest)
        grant = await self._guard.identify(call, name=name)
        is_get = call.method == "GET"
        found = await self._lookups.ask(BlobQuery(name, digest, with_inline=is_get))
        self._guard.admit(call, grant, name, found.place)
        if found.size is None:
            raise _unknown(name, digest)
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
            if found.stale is not None and not await self._touch(*found.stale):
                raise _unknown(name, digest)
            return web.Response(headers={**headers, "Content-Length": str(found.size)})
        if found.object_key is not None and (self._redirect if found.redirect is None else found.redirect):
            return await self._refer(found.object_key, digest)
        part = self._part(request.get("Range"), request.get("If-Range"), digest=digest, size=found.size)
        if part is not None:
            headers["Content-Range"] = content_range(part, found.size)
        if found.inline is not None:
            body = found.inline if part is None else found.inline[part.start : part.end + 1]
            return web.Response(status=200 if part is None else 206, body=body, headers=headers)
        return await self._stream(call, found, part, digest=digest, headers=headers)

    async def _touch(self, repository: int, blob: int) -> bool:
        return await self._touching.run(lambda connection: touch_blob(connection, repository, blob=blob))

    async def _refer(self, key: str, digest: str) -> web.Response:
        """A redirect. The client repeats its Range there by itself."""
        headers = {
            "Location": await self._store.presign(key, self._redirect_ttl),
            "Docker-Content-Digest": digest,
            "Cache-Control": "private, no-store",
            # The link is nobody's business but the client's.
            "Referrer-Policy": "no-referrer",
        }
        return web.Response(status=307, headers=headers)

    async def _delete(self, call: Call, name: str, digest: str) -> web.Response:
        place = await writable_place(call, name, guard=self._guard, targets=self._targets, action="delete")
        try:
            is_hidden = await self._hiding.run(
                lambda connection: hide_blob(connection, place.repository, digest=digest)
            )
        except StillReferenced as error:
            raise RegistryError(
                405, "UNSUPPORTED", "a manifest of the latest version needs this blob; delete the manifest first",
                detail={"name": name, "digest": digest}, headers={"Allow": "GET, HEAD"},
            ) from error  # fmt: skip
        except CommitRefused as error:
            raise refused_write(error, name, action="delete") from error
        if not is_hidden:
            raise _unknown(name, digest)
        return web.Response(status=202)

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
            if rest.length == expected and call.is_plain:
                chunk = await self._pass_on(call, chunk, rest)
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

    async def _pass_on(self, call: Call, chunk: bytes, stream: ObjectStream) -> bytes:
        """Send the chunk and, where it can, let the kernel move the rest; gives the chunk that is still to be sent."""
        taken = stream.take_rest() if stream.length - len(chunk) >= _WORTH_A_PIPE else None
        if taken is None:
            return chunk
        arrived, source = taken
        await call.write(chunk + arrived, seconds=self._write_timeout)
        missing = stream.length - call.sent
        if missing and await call.pass_on(source, missing, seconds=self._write_timeout) < missing:
            raise StorageUnavailable(f"S3 broke off after {call.sent} of {stream.length} bytes")
        return b""

    async def _open(
        self, stack: AsyncExitStack, key: str, part: ByteRange | None, *, digest: str
    ) -> tuple[bytes, ObjectStream]:
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


def _unknown(name: str, digest: str) -> RegistryError:
    return RegistryError(
        404, "BLOB_UNKNOWN", "this repository has no such blob", detail={"name": name, "digest": digest}
    )
