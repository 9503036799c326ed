"""Tags: pages of names in byte order, read at the request."""

from __future__ import annotations

import msgspec

from entrepot.db.pool import Pool
from entrepot.db.registry import list_tags
from entrepot.web.answers import Answer
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.pages import next_page, page_of
from entrepot_registry.routes import Route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.statements import Statement

__all__ = ["Tags"]


class Tags:
    """The endpoint `tags/list`."""

    def __init__(self, pool: Pool, guard: Guard, *, settings: RegistrySettings, metrics: RegistryMetrics) -> None:
        self._guard = guard
        self._settings = settings
        self._list = Statement(pool, "list_tags", timeout=settings.lookup_timeout, metrics=metrics)

    async def answer(self, call: Call, route: Route) -> Answer:
        """GET and HEAD. Raises RegistryError, GrammarError and `DatabaseUnavailable`."""
        name = route.name or ""
        page = page_of(call, default=self._settings.tags_default, maximum=self._settings.tags_maximum)
        grant = await self._guard.identify(call, name=name)
        # One more than asked for: whether there is a next page.
        found = await self._list.run(lambda c: list_tags(c, name, last=page.last or "", count=page.limit + 1))
        self._guard.admit(call, grant, name, found.place)
        tags = found.tags[: page.limit]
        headers = {"Content-Type": "application/json"}
        if tags and len(found.tags) > len(tags):
            headers |= next_page(f"/v2/{name}/tags/list", n=page.limit, last=tags[-1])
        return Answer(headers=headers, body=msgspec.json.encode({"name": name, "tags": tags}))
