"""Manifests: by tag what the tag points at now, by digest the bytes of that digest.

What a tag points at and whether a digest is served here is asked at every request; only bytes are cached, by digest, once for all names.
The bytes and the media type go out as they came in.
"""

from __future__ import annotations

from datetime import timedelta

from aiohttp import web
from cachetools import LRUCache

from entrepot.db.manifests import touch_manifests
from entrepot.db.pool import Pool
from entrepot.db.registry import FoundManifest, ManifestQuery, find_manifests, manifest_bodies
from entrepot.errors import RegistryError
from entrepot.oci.digest import Digest
from entrepot.oci.reference import TagInvalid
from entrepot.web.answers import Answer
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.conditions import accepts, format_warning, is_known
from entrepot_registry.lookups import Batcher
from entrepot_registry.manifest_writes import ManifestWrites
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.routes import Route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.statements import Statement

__all__ = ["Manifests"]

_ENTRY_OVERHEAD = 512
"""Bytes that a cached manifest costs besides its own: keys, objects, the cache's links."""


class Manifests:
    """The endpoint `manifests/<reference>`. `async with` opens its lookups."""

    def __init__(
        self, pool: Pool, guard: Guard, *, writes: ManifestWrites, settings: RegistrySettings, metrics: RegistryMetrics
    ) -> None:
        self._guard = guard
        self._writes = writes
        self._grace: timedelta = settings.pull_grace
        self._metrics = metrics
        self._warning = format_warning(settings.warning) if settings.warning else None
        self._touching = Statement(pool, "touch_manifests", timeout=settings.lookup_timeout, metrics=metrics)
        self._hits = metrics.cache_hits.labels("manifest")
        self._misses = metrics.cache_misses.labels("manifest")
        self._bodies: LRUCache[str, bytes] = LRUCache(
            settings.manifest_cache, getsizeof=lambda body: len(body) + _ENTRY_OVERHEAD
        )
        self._lookups: Batcher[ManifestQuery, FoundManifest] = Batcher(
            pool,
            "find_manifests",
            lambda connection, asked: find_manifests(connection, asked, grace=self._grace, fresh=settings.gc_grace / 4),
            settings=settings,
            metrics=metrics,
            connections=settings.lookup_connections,
        )
        # A batch of manifests of up to 4 MiB each must not be a gigabyte.
        self._contents: Batcher[str, bytes | None] = Batcher(
            pool, "manifest_bodies", manifest_bodies, settings=settings, metrics=metrics, size=8
        )

    async def __aenter__(self) -> Manifests:
        await self._lookups.__aenter__()
        await self._contents.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lookups.__aexit__()
        await self._contents.__aexit__()

    async def answer(self, call: Call, route: Route) -> web.Response | Answer:
        """Raises RegistryError, GrammarError and `DatabaseUnavailable`."""
        if call.method == "PUT":
            return await self._writes.put(call, route)
        if call.method == "DELETE":
            return await self._writes.delete(call, route)
        name = route.name or ""
        try:
            reference = route.tag_or_digest
        except TagInvalid as error:
            # Nothing can be tagged like that, so it is not there: what older versions of the specification's own tests expect.
            raise RegistryError(404, "MANIFEST_UNKNOWN", str(error), detail={"name": name}) from error
        grant = await self._guard.identify(call, name=name)
        digest = str(reference) if isinstance(reference, Digest) else None
        found = await self._lookups.ask(
            ManifestQuery(name, None if digest else str(reference), digest, with_body=False)
        )
        self._guard.admit(call, grant, name, found.place)
        if found.digest is None:
            raise RegistryError(
                404,
                "MANIFEST_UNKNOWN",
                "this repository has no such manifest",
                detail={"name": name, "reference": str(reference)},
            )
        if digest is None and not accepts(call.request.headers.getall("Accept", ()), found.media_type):
            raise RegistryError(
                404, "MANIFEST_UNKNOWN", f"the tag's manifest is {found.media_type}, which the request's Accept does not name",
                detail={"name": name, "reference": str(reference), "mediaType": found.media_type},
            )  # fmt: skip
        headers = {
            "Content-Type": found.media_type,
            "Docker-Content-Digest": found.digest,
            "ETag": f'"{found.digest}"',
        }
        if self._warning is not None:
            headers["Warning"] = self._warning
        if found.is_stale and call.method == "HEAD":
            await self._touch(found.digest)
        if is_known(call.request.headers.getall("If-None-Match", ()), found.digest):
            return Answer(304, headers)
        if call.method == "HEAD":
            return Answer(headers={**headers, "Content-Length": str(found.size)})
        return Answer(headers=headers, body=await self._body(found.digest))

    async def _touch(self, digest: str) -> None:
        """A client that is told by HEAD that a manifest is here may leave out its push: the answer puts off the collection."""
        await self._touching.run(lambda connection: touch_manifests(connection, [digest]))

    async def _body(self, digest: str) -> bytes:
        body = self._bodies.get(digest)
        if body is not None:
            self._hits.inc()
            return body
        self._misses.inc()
        body = await self._contents.ask(digest)
        if body is None:  # collected between the two statements
            raise RegistryError(404, "MANIFEST_UNKNOWN", "this repository has no such manifest any more")
        if len(body) + _ENTRY_OVERHEAD <= self._bodies.maxsize:
            self._bodies[digest] = body
            self._metrics.cache_bytes.set(self._bodies.currsize)
        return body
