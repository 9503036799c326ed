"""Referrers: what in the served version says that it is about a manifest, such as signatures and bills of materials.

Clients from before the specification had this endpoint keep an index themselves, under a tag made of the digest; what stands in such an
index is listed as well, so that nothing is lost when an old client and a new one meet here.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from entrepot.db.manifests import Referrer, find_referrers
from entrepot.db.pool import Pool
from entrepot.errors import RegistryError
from entrepot.oci.digest import Digest
from entrepot.oci.media_types import OCI_INDEX
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.pages import next_page, query_of
from entrepot_registry.routes import Route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.statements import Statement

__all__ = ["Referrers"]

_MAX_TYPES = 16
"""Types that a request may ask for."""


class Referrers:
    """The endpoint `referrers/<digest>`."""

    def __init__(self, pool: Pool, guard: Guard, *, settings: RegistrySettings, metrics: RegistryMetrics) -> None:
        self._guard = guard
        self._count = settings.referrers_page
        self._size = settings.referrers_size
        self._find = Statement(pool, "find_referrers", timeout=settings.lookup_timeout, metrics=metrics)

    async def answer(self, call: Call, route: Route) -> web.Response:
        """GET and HEAD. Raises RegistryError, GrammarError and `DatabaseUnavailable`."""
        name, digest = route.name or "", route.digest
        query = query_of(call)
        types = [text for text in query.getall("artifactType", ()) if text]
        if len(types) > _MAX_TYPES:
            raise RegistryError(400, "UNSUPPORTED", f"at most {_MAX_TYPES} types can be asked for")
        if any("\0" in text for text in types):
            # PostgreSQL's text holds none, and no manifest that was taken does.
            raise RegistryError(400, "UNSUPPORTED", "an artifact type holds no NUL character")
        last = str(Digest.parse(query["last"])) if query.get("last") else ""
        grant = await self._guard.identify(call, name=name)
        page = await self._find.run(
            lambda c: find_referrers(
                c,
                name,
                digest=str(digest),
                tag=_fallback_tag(digest),
                types=types,
                last=last,
                count=self._count,
                size=self._size,
            )
        )
        self._guard.admit(call, grant, name, page.place)
        headers = {"Content-Type": OCI_INDEX}
        if types:
            headers["OCI-Filters-Applied"] = "artifactType"
        if page.has_more:
            path = f"/v2/{name}/referrers/{digest}"
            headers |= next_page(path, **({"artifactType": types} if types else {}), last=page.found[-1].digest)
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_descriptor(entry) for entry in page.found]}
        return web.Response(body=msgspec.json.encode(body), headers=headers)


def _fallback_tag(digest: Digest) -> str:
    """Distribution specification, "Referrers Tag Schema"."""
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def _descriptor(entry: Referrer) -> dict[str, object]:
    descriptor: dict[str, object] = {"mediaType": entry.media_type, "digest": entry.digest, "size": entry.size}
    if entry.artifact_type is not None:
        descriptor["artifactType"] = entry.artifact_type
    if entry.annotations:
        descriptor["annotations"] = entry.annotations
    return descriptor
