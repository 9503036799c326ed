"""The content API: what versions there are, what they hold, how two differ, and which sync runs there were.

It needs the right to pull, and shows no more than pulling could: by a pinned name the pinned version, to nobody in particular the version that
is served. Who has a name and pulls from what follows the latest version sees the repository's whole retained history, as metadata: seeing
a digest here gives no access to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from asyncpg import Record
from multidict import MultiMapping

from entrepot.db import browse as db
from entrepot.db.browse import ContentQuery
from entrepot.db.pool import Connection, Pool, translated
from entrepot.db.registry import Place
from entrepot.errors import RegistryError
from entrepot.web.calls import Call
from entrepot_registry.access import Grant, Guard
from entrepot_registry.browse_documents import comparison_document, content_document, run_document, version_document
from entrepot_registry.browse_queries import (
    PageQuery,
    parse_change,
    parse_filter,
    parse_numbers,
    parse_page,
    parse_position,
    parse_run,
    refuse_unknown,
)
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.pages import query_of
from entrepot_registry.routes import Endpoint, Route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.statements import Statement

__all__ = ["BROWSED", "Browse"]

T = TypeVar("T")

BROWSED = (Endpoint.VERSIONS, Endpoint.VERSION, Endpoint.COMPARISON, Endpoint.VERSION_CONTENT, Endpoint.RUNS)

_PAGE = ("limit", "after")
_FILTERS = {
    "tags": ("name", "digest", "mediaType"),
    "manifests": ("digest", "mediaType"),
    "blobs": ("digest", "mediaType"),
    "signatures": ("name", "digest"),
}


class Browse:
    """The endpoints below /extensions/entrepot/v1."""

    def __init__(self, pool: Pool, guard: Guard, *, settings: RegistrySettings, metrics: RegistryMetrics) -> None:
        self._guard = guard
        self._settings = settings
        self._statements = {
            name: Statement(pool, name, timeout=settings.browse_timeout, metrics=metrics)
            for name in ("list_versions", "find_version", "list_content", "compare_versions", "list_runs")
        }
        # What takes longer than a lookup must leave connections to those who pull.
        self._turns = asyncio.Semaphore(settings.browse_connections)
        self._answers = {
            Endpoint.VERSIONS: self._versions,
            Endpoint.VERSION: self._version,
            Endpoint.VERSION_CONTENT: self._content,
            Endpoint.COMPARISON: self._comparison,
            Endpoint.RUNS: self._runs,
        }

    async def answer(self, call: Call, route: Route) -> web.Response:
        """GET and HEAD. Raises RegistryError, GrammarError and `DatabaseUnavailable`."""
        grant = await self._guard.identify(call, name=route.name or "")
        document = await self._answers[route.endpoint](call, route, grant)
        body = msgspec.json.encode({"name": route.name, **document})
        return web.Response(body=body, headers={"Content-Type": "application/json"})

    async def _versions(self, call: Call, route: Route, grant: Grant) -> dict[str, Any]:
        query = query_of(call)
        refuse_unknown(query, known=_PAGE)
        page = self._page(query)
        after = parse_position(page.after) or None
        place, rows = await self._run(
            "list_versions",
            lambda c: db.list_versions(
                c, route.name or "", history=_sees_history(grant), after=after, count=page.limit + 1
            ),
        )
        self._admit(call, grant, route, place)
        shown = rows[: page.limit]
        return {"versions": [version_document(row) for row in shown], **_next(rows, page, "number")}

    async def _version(self, call: Call, route: Route, grant: Grant) -> dict[str, Any]:
        refuse_unknown(query_of(call), known=())
        [number] = parse_numbers(route.reference)
        place, row = await self._run(
            "find_version",
            lambda c: db.find_version(c, route.name or "", history=_sees_history(grant), number=number),
        )
        self._admit(call, grant, route, place)
        if row is None:
            raise _no_version(number)
        return version_document(row)

    async def _content(self, call: Call, route: Route, grant: Grant) -> dict[str, Any]:
        query = query_of(call)
        refuse_unknown(query, known=(*_PAGE, "change"), repeatable=_FILTERS[route.kind])
        page = self._page(query)
        [number] = parse_numbers(route.reference)
        names, digests, media_types = (
            parse_filter(query, name, maximum=self._settings.browse_filters) for name in ("name", "digest", "mediaType")
        )
        after = page.after if route.kind == "tags" else parse_position(page.after)
        asked = ContentQuery(
            kind=route.kind, number=number, change=parse_change(query), names=names, digests=digests, media_types=media_types,
            after=after, count=page.limit + 1,
        )  # fmt: skip
        found = await self._run(
            "list_content", lambda c: db.list_content(c, route.name or "", asked, history=_sees_history(grant))
        )
        self._admit(call, grant, route, found.place)
        if found.number is None:
            raise _no_version(number)
        if asked.change == "removed" and not found.sees_history:
            raise RegistryError(403, "DENIED", "what is not served here any more is not shown")
        document: dict[str, Any] = {"version": found.number}
        if asked.change is not None:
            document |= {"change": asked.change, "baseVersion": found.base}
        document[route.kind] = [content_document(route.kind, row) for row in found.rows[: page.limit]]
        return document | _next(found.rows, page, "name" if route.kind == "tags" else "position")

    async def _comparison(self, call: Call, route: Route, grant: Grant) -> dict[str, Any]:
        query = query_of(call)
        refuse_unknown(query, known=_PAGE)
        page = self._page(query)
        numbers = parse_numbers(route.reference)
        if len(numbers) != 2:
            raise RegistryError(400, "VERSION_INVALID", "two versions are compared, as <number>...<number>")
        a, b = numbers
        found = await self._run(
            "compare_versions",
            lambda c: db.compare_versions(
                c, route.name or "", history=_sees_history(grant), a=a, b=b, after=page.after, count=page.limit + 1
            ),
        )
        self._admit(call, grant, route, found.place)
        for number, seen in ((a, found.a), (b, found.b)):
            if seen is None:
                raise _no_version(number)
        document = comparison_document(found, first=not page.after)
        document["tags"] = document["tags"][: page.limit]
        return document | _next(found.rows, page, "name")

    async def _runs(self, call: Call, route: Route, grant: Grant) -> dict[str, Any]:
        query = query_of(call)
        refuse_unknown(query, known=_PAGE)
        page = self._page(query)
        after = parse_run(page.after)
        place, rows = await self._run(
            "list_runs", lambda c: db.list_runs(c, route.name or "", after=after, count=page.limit + 1)
        )
        self._admit(call, grant, route, place)
        if grant.is_anonymous:
            raise RegistryError(403, "DENIED", "sync runs are shown to those who are logged in")
        return {"runs": [run_document(row) for row in rows[: page.limit]], **_next(rows, page, "id")}

    def _page(self, query: MultiMapping[str]) -> PageQuery:
        return parse_page(query, default=self._settings.browse_default, maximum=self._settings.browse_maximum)

    def _admit(self, call: Call, grant: Grant, route: Route, place: Place | None) -> None:
        self._guard.admit(call, grant, route.name or "", place)

    async def _run(self, statement: str, work: Callable[[Connection], Awaitable[T]]) -> T:
        with translated():
            async with asyncio.timeout(self._settings.browse_timeout.total_seconds()), self._turns:
                return await self._statements[statement].run(work)


def _sees_history(grant: Grant) -> bool:
    return not grant.is_anonymous


def _next(rows: Sequence[Record], page: PageQuery, key: str) -> dict[str, str]:
    """One row more was asked for than the page holds: if it came, there is a next page."""
    return {"next": str(rows[page.limit - 1][key])} if len(rows) > page.limit else {}


def _no_version(number: int | None) -> RegistryError:
    which = "version" if number is None else f"version {number}"
    return RegistryError(
        404,
        "VERSION_UNKNOWN",
        f"there is no {which} here, or none that may be seen by this name with these credentials",
    )
