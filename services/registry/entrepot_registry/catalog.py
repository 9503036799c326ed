"""The catalog: the names that somebody may pull from, and no others.

Which these are the token says: everybody sees what is public, whoever is somebody also what is open to the authenticated, and further the
namespaces that the token names. Whether a distribution is public is read at the request. Repositories by their own names, r/…, are not listed.
"""

from __future__ import annotations

import msgspec
from aiohttp import web

from entrepot.db.manifests import list_catalog
from entrepot.db.pool import Pool
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.pages import next_page, page_of
from entrepot_registry.routes import Route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.statements import Statement

__all__ = ["Catalog"]


class Catalog:
    """The endpoint `_catalog`."""

    def __init__(self, pool: Pool, guard: Guard, *, settings: RegistrySettings, metrics: RegistryMetrics) -> None:
        self._guard = guard
        self._settings = settings
        self._list = Statement(pool, "list_catalog", timeout=settings.lookup_timeout, metrics=metrics)

    async def answer(self, call: Call, route: Route) -> web.Response:
        """GET and HEAD. Raises RegistryError, GrammarError and `DatabaseUnavailable`."""
        page = page_of(call, default=self._settings.catalog_default, maximum=self._settings.catalog_maximum)
        grant = await self._guard.identify_for_catalog(call)
        namespaces = None if grant.catalog == "*" else sorted(grant.catalog)
        found = await self._list.run(
            lambda c: list_catalog(
                c, last=page.last or "", count=page.limit + 1, identified=not grant.is_anonymous, namespaces=namespaces
            )
        )
        names = found[: page.limit]
        headers = {"Content-Type": "application/json"}
        if names and len(found) > len(names):
            headers |= next_page("/v2/_catalog", n=page.limit, last=names[-1])
        return web.Response(body=msgspec.json.encode({"repositories": names}), headers=headers)
