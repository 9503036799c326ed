"""The registry, all of it together: what is opened, in what order, and which endpoint answers what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from aiohttp import web

from entrepot.blobs.store import open_store
from entrepot.db.pool import REQUIRED_SCHEMA, Pool, open_pool, schema_is_ready
from entrepot.errors import RegistryError
from entrepot.settings import DatabaseSettings, S3Settings
from entrepot.web.calls import Call
from entrepot.web.readiness import NotReady, Readiness
from entrepot.web.service import WebService, health
from entrepot.web.settings import WebSettings
from entrepot_registry.access import Guard
from entrepot_registry.blobs import Blobs
from entrepot_registry.keys import KeySet
from entrepot_registry.manifests import Manifests
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.routes import Endpoint, parse_route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.tags import Tags
from entrepot_registry.token_proxy import TokenProxy

__all__ = ["App", "open_registry"]

_HEADERS = {"Docker-Distribution-Api-Version": "registry/2.0"}
_PULL_ONLY = "this registry serves mirrors and takes no pushes yet: content comes in by synchronisation"


class App:
    """The dispatcher."""

    def __init__(
        self, *, guard: Guard, manifests: Manifests, blobs: Blobs, tags: Tags, token: TokenProxy, readiness: Readiness
    ) -> None:
        self._guard = guard
        self._manifests = manifests
        self._blobs = blobs
        self._tags = tags
        self._token = token
        self._readiness = readiness

    async def handle(self, call: Call) -> web.StreamResponse:
        """Answer a request. Raises RegistryError, GrammarError and Failed, which the gate puts into words."""
        route = parse_route(call.path)
        endpoint = route.endpoint
        call.route = endpoint.value
        if endpoint is Endpoint.TOKEN:
            return await self._token.answer(call)
        if call.method not in {"GET", "HEAD"}:
            raise self._refuse_method(endpoint)
        match endpoint:
            case Endpoint.MANIFEST:
                return await self._manifests.answer(call, route)
            case Endpoint.BLOB:
                return await self._blobs.answer(call, route)
            case Endpoint.TAGS:
                return await self._tags.answer(call, route)
            case Endpoint.BASE:
                await self._guard.identify(call)
                return web.Response(body=b"{}", headers={"Content-Type": "application/json"})
            case Endpoint.HEALTH | Endpoint.READY:
                return await health(call.path, self._readiness) or web.Response(status=404)
            case Endpoint.UPLOAD:
                raise RegistryError(404, "BLOB_UPLOAD_UNKNOWN", _PULL_ONLY)
            case _:
                # Clients take 404 for "this registry does not offer it", and help themselves.
                raise RegistryError(404, "UNSUPPORTED", f"{endpoint.value} is not offered in this version")

    @staticmethod
    def _refuse_method(endpoint: Endpoint) -> RegistryError:
        pushes = endpoint in {Endpoint.MANIFEST, Endpoint.BLOB, Endpoint.UPLOAD}
        message = _PULL_ONLY if pushes else "only GET and HEAD are supported here"
        return RegistryError(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD"})


@asynccontextmanager
async def open_registry(
    settings: RegistrySettings, *, web_settings: WebSettings, database: DatabaseSettings, s3: S3Settings
) -> AsyncIterator[WebService]:
    """A listening registry. It starts whether or not the parts behind it are there, and is ready once they are."""
    metrics = RegistryMetrics()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=32, limit_per_host=32),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=10, connect=3),
                trust_env=False,
            )
        )
        keys = await stack.enter_async_context(KeySet(session, settings, fetches=metrics.key_fetches))
        pool = await stack.enter_async_context(open_pool(database, application="entrepot-registry"))
        store = await stack.enter_async_context(open_store(s3))
        guard = Guard(keys, settings, cache_hits=metrics.cache_hits)
        readiness = Readiness(
            {"database": lambda: _check_database(pool), "storage": store.check, "keys": keys.check},
            settings=web_settings,
            metrics=metrics,
        )
        app = App(
            guard=guard,
            manifests=await stack.enter_async_context(Manifests(pool, guard, settings=settings, metrics=metrics)),
            blobs=await stack.enter_async_context(
                Blobs(
                    pool,
                    store,
                    guard,
                    settings=settings,
                    metrics=metrics,
                    write_timeout=web_settings.write_timeout.total_seconds(),
                )
            ),
            tags=Tags(pool, guard, settings=settings, metrics=metrics),
            token=TokenProxy(session, settings, metrics=metrics),
            readiness=readiness,
        )
        yield await stack.enter_async_context(
            WebService(
                app.handle,
                port=settings.port,
                metrics_port=settings.metrics_port,
                settings=web_settings,
                metrics=metrics,
                readiness=readiness,
                headers=_HEADERS,
            )
        )


async def _check_database(pool: Pool) -> None:
    if not await schema_is_ready(pool):
        raise NotReady(f"the database's schema is older than {REQUIRED_SCHEMA}")
