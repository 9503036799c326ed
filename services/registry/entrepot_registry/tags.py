"""Tags: pages of names in byte order, read at the request."""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

import msgspec
from aiohttp import web
from yarl import URL

from entrepot.db.pool import Pool, translated
from entrepot.db.registry import TagPage, list_tags
from entrepot.oci.link import format_next
from entrepot.oci.paging import PaginationInvalid, parse_page
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.routes import Route
from entrepot_registry.settings import RegistrySettings

__all__ = ["Tags"]


class Tags:
    """The endpoint `tags/list`."""

    def __init__(self, pool: Pool, guard: Guard, *, settings: RegistrySettings, metrics: RegistryMetrics) -> None:
        self._pool = pool
        self._guard = guard
        self._settings = settings
        self._statements = metrics.statements.labels("list_tags")

    async def answer(self, call: Call, route: Route) -> web.Response:
        """GET and HEAD. Raises RegistryError, GrammarError and `DatabaseUnavailable`."""
        name = route.name or ""
        query = URL.build(query_string=call.query, encoded=True).query
        if len(query.getall("n", ())) > 1 or len(query.getall("last", ())) > 1:
            raise PaginationInvalid("'n' and 'last' are given once at most")
        page = parse_page(
            query.get("n"), query.get("last"), default=self._settings.tags_default, maximum=self._settings.tags_maximum
        )
        grant = await self._guard.identify(call, name=name)
        # One more than asked for: whether there is a next page.
        found = await self._list(name, last=page.last or "", count=page.limit + 1)
        self._guard.admit(call, grant, name, found.place)
        tags = found.tags[: page.limit]
        body = msgspec.json.encode({"name": name, "tags": tags})
        headers = {"Content-Type": "application/json"}
        if tags and len(found.tags) > len(tags):
            headers["Link"] = format_next(f"/v2/{name}/tags/list?" + urlencode({"n": page.limit, "last": tags[-1]}))
        return web.Response(body=body, headers=headers)

    async def _list(self, name: str, *, last: str, count: int) -> TagPage:
        self._statements.inc()
        with translated():
            async with (
                asyncio.timeout(self._settings.lookup_timeout.total_seconds()),
                self._pool.acquire() as connection,
            ):
                return await list_tags(connection, name, last=last, count=count)
