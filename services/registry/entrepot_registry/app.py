"""The registry, all of it together: what is opened, in what order, and which endpoint answers what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import aiohttp
from aiohttp import web
from prometheus_client import Counter

from entrepot.blobs.store import BlobStore, BufferSettings, open_store
from entrepot.db.pool import REQUIRED_SCHEMA, Pool, open_pool, schema_is_ready
from entrepot.errors import RegistryError
from entrepot.oci.errors import GrammarError
from entrepot.settings import DatabaseSettings, S3Settings
from entrepot.web.answers import Answer
from entrepot.web.calls import Call
from entrepot.web.limits import RateLimit
from entrepot.web.proxies import Proxies
from entrepot.web.readiness import NotReady, Readiness
from entrepot.web.service import WebService, health
from entrepot.web.settings import WebSettings
from entrepot.web.traces import TracesSettings, open_traces
from entrepot.web.workers import Worker
from entrepot_registry.access import Guard
from entrepot_registry.blobs import Blobs
from entrepot_registry.browse import BROWSED, Browse
from entrepot_registry.catalog import Catalog
from entrepot_registry.keys import KeySet
from entrepot_registry.logins import Logins, PasswordRule
from entrepot_registry.manifest_writes import ManifestWrites
from entrepot_registry.manifests import Manifests
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.referrers import Referrers
from entrepot_registry.routes import Endpoint, Route, parse_route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.signatures import Signatures
from entrepot_registry.tags import Tags
from entrepot_registry.token_proxy import TokenProxy, TokenService
from entrepot_registry.uploads import Uploads
from entrepot_registry.writing import open_targets

__all__ = ["App", "open_registry"]

_HEADERS = {"Docker-Distribution-Api-Version": "registry/2.0"}
_OFFERS = {"X-Registry-Supports-Signatures": "1"}

_READ = frozenset({"GET", "HEAD"})
_METHODS: Mapping[Endpoint, frozenset[str]] = {
    Endpoint.BASE: _READ,
    Endpoint.MANIFEST: _READ | {"PUT", "DELETE"},
    Endpoint.BLOB: _READ | {"DELETE"},
    Endpoint.UPLOADS: frozenset({"POST"}),
    Endpoint.UPLOAD: frozenset({"GET", "PATCH", "PUT", "DELETE"}),
    Endpoint.TAGS: _READ,
    Endpoint.REFERRERS: _READ,
    Endpoint.CATALOG: _READ,
    Endpoint.SIGNATURES: _READ | {"PUT"},
    Endpoint.VERSIONS: _READ,
    Endpoint.VERSION: _READ,
    Endpoint.COMPARISON: _READ,
    Endpoint.VERSION_CONTENT: _READ,
    Endpoint.RUNS: _READ,
    Endpoint.HEALTH: _READ,
    Endpoint.READY: _READ,
}


_WHAT: Mapping[Endpoint, str] = {
    Endpoint.MANIFEST: "manifest",
    Endpoint.UPLOADS: "blob",
    Endpoint.UPLOAD: "blob",
    Endpoint.SIGNATURES: "signature",
}
"""What a request that writes there pushes."""


class Answering(Protocol):
    """What stands behind an endpoint."""

    async def answer(self, call: Call, route: Route) -> web.StreamResponse | Answer:
        """Raises RegistryError, GrammarError and Failed, which the gate puts into words."""
        ...


class App:
    """The dispatcher."""

    def __init__(
        self, *, guard: Guard, endpoints: Mapping[Endpoint, Answering], token: TokenProxy, readiness: Readiness,
        pushes: Counter, limit: RateLimit | None = None,
    ) -> None:  # fmt: skip
        self._guard = guard
        self._endpoints = endpoints
        self._token = token
        self._readiness = readiness
        self._pushes = pushes
        self._limit = limit

    async def handle(self, call: Call) -> web.StreamResponse | Answer:
        """Answer a request. Raises RegistryError, GrammarError and Failed, which the gate puts into words."""
        route = parse_route(call.path)
        endpoint = route.endpoint
        call.route = endpoint.value
        call.name, call.reference = route.name, route.reference or None
        if endpoint is Endpoint.TOKEN:
            if self._limit is not None:
                self._limit.admit(None, call.client)
            return await self._token.answer(call)
        allowed = _METHODS[endpoint]
        if call.method not in allowed:
            names = ", ".join(sorted(allowed))
            raise RegistryError(405, "UNSUPPORTED", f"only {names} are supported here", headers={"Allow": names})
        if endpoint is Endpoint.BASE:
            try:
                await self._guard.identify(call)
            except RegistryError as error:
                # Clients look for what is offered in the answer that asks them who they are.
                error.headers = {**_OFFERS, **error.headers}
                raise
            return Answer(headers={"Content-Type": "application/json", **_OFFERS}, body=b"{}")
        if endpoint in {Endpoint.HEALTH, Endpoint.READY}:
            return await health(call.path, self._readiness) or web.Response(status=404)
        answering = self._endpoints.get(endpoint)
        if answering is None:
            # Clients take 404 for "this registry does not offer it", and help themselves.
            raise RegistryError(404, "UNSUPPORTED", f"{endpoint.value} is not offered in this version")
        if call.method in _READ:
            return await answering.answer(call, route)
        return await self._write(call, route, answering)

    async def _write(self, call: Call, route: Route, answering: Answering) -> web.StreamResponse | Answer:
        """A request that changes something, and what came of it counted: stored, refused, failed, or broken off by the client."""
        what = _WHAT.get(route.endpoint) if call.method != "DELETE" else None
        outcome = "broken"
        try:
            answer = await answering.answer(call, route)
            # Anything but 201 is a step on the way.
            outcome = "stored" if answer.status == 201 else "begun"
            return answer
        except (RegistryError, GrammarError) as error:
            outcome = "refused" if error.status < 500 else "failed"
            raise
        except Exception as error:
            outcome = "broken" if isinstance(error, ConnectionError) else "failed"
            raise
        finally:
            if what is not None and outcome != "begun":
                self._pushes.labels(what, outcome).inc()


@asynccontextmanager
async def open_registry(
    settings: RegistrySettings, *, web_settings: WebSettings, database: DatabaseSettings, s3: S3Settings,
    tracing: TracesSettings | None = None, worker: Worker | None = None, buffers: BufferSettings | None = None,
) -> AsyncIterator[WebService]:  # fmt: skip
    """A listening registry. It starts whether or not the parts behind it are there, and is ready once they are."""
    metrics = RegistryMetrics()
    async with AsyncExitStack() as stack:
        traces = await stack.enter_async_context(open_traces(tracing or TracesSettings(), service="entrepot-registry"))
        metrics.timings.traces = traces
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=32, limit_per_host=32),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=10, connect=3),
                trust_env=False,
            )
        )
        keys = await stack.enter_async_context(KeySet(session, settings, fetches=metrics.key_fetches))
        pool = await stack.enter_async_context(
            open_pool(database, application="entrepot-registry", observer=metrics.timings)
        )
        store = await stack.enter_async_context(open_store(s3, buffers, observer=metrics.timings))
        store.budget.observer = metrics.buffer_bytes.set
        token_service = TokenService(session, settings, metrics=metrics)
        rule = PasswordRule(settings, proxies=Proxies(web_settings.trusted_proxies))
        logins = Logins(token_service, settings, rule=rule)
        limit = _rate_limit(settings, metrics, by_address=bool(web_settings.trusted_proxies))
        guard = Guard(
            keys, settings, logins=logins, cache_hits=metrics.cache_hits, cache_misses=metrics.cache_misses, limit=limit
        )
        readiness = Readiness(
            {"database": lambda: _check_database(pool), "storage": store.check, "keys": keys.check},
            settings=web_settings,
            metrics=metrics,
        )
        endpoints = await _open_endpoints(
            stack, pool, store, guard, settings=settings, web_settings=web_settings, metrics=metrics
        )
        proxy = TokenProxy(token_service, rule=rule)
        app = App(
            guard=guard, endpoints=endpoints, token=proxy, readiness=readiness, pushes=metrics.pushes, limit=limit
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
                traces=traces,
                worker=worker,
            )
        )


async def _open_endpoints(
    stack: AsyncExitStack, pool: Pool, store: BlobStore, guard: Guard, *, settings: RegistrySettings,
    web_settings: WebSettings, metrics: RegistryMetrics,
) -> dict[Endpoint, Answering]:  # fmt: skip
    """What answers where; the stack closes it."""
    targets = await stack.enter_async_context(open_targets(pool, settings, metrics=metrics))
    writes = await stack.enter_async_context(
        ManifestWrites(pool, guard, targets=targets, settings=settings, metrics=metrics)
    )
    manifests = await stack.enter_async_context(
        Manifests(pool, guard, writes=writes, settings=settings, metrics=metrics)
    )
    write_timeout = web_settings.write_timeout.total_seconds()
    blobs = await stack.enter_async_context(
        Blobs(pool, store, guard, targets, settings=settings, metrics=metrics, write_timeout=write_timeout)
    )
    uploads = await stack.enter_async_context(Uploads(pool, store, guard, targets, settings=settings, metrics=metrics))
    return {
        Endpoint.UPLOADS: uploads,
        Endpoint.UPLOAD: uploads,
        Endpoint.MANIFEST: manifests,
        Endpoint.BLOB: blobs,
        Endpoint.TAGS: Tags(pool, guard, settings=settings, metrics=metrics),
        Endpoint.REFERRERS: Referrers(pool, guard, settings=settings, metrics=metrics),
        Endpoint.SIGNATURES: Signatures(pool, guard, targets, settings=settings, metrics=metrics),
        Endpoint.CATALOG: Catalog(pool, guard, settings=settings, metrics=metrics),
        **dict.fromkeys(BROWSED, Browse(pool, guard, settings=settings, metrics=metrics)),
    }


def _rate_limit(settings: RegistrySettings, metrics: RegistryMetrics, *, by_address: bool) -> RateLimit | None:
    if not settings.request_rate:
        return None
    return RateLimit(
        rate=settings.request_rate,
        burst=settings.request_burst,
        table=settings.rate_table,
        by_address=by_address,
        refused=metrics.limited,
    )


async def _check_database(pool: Pool) -> None:
    if not await schema_is_ready(pool):
        raise NotReady(f"the database's schema is older than {REQUIRED_SCHEMA}")
