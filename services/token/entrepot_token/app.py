"""The token service, all of it together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import msgspec
import structlog
from aiohttp import web

from entrepot.db.pool import REQUIRED_SCHEMA, Pool, open_pool, schema_is_ready, translated
from entrepot.db.token import PlaceRow, find_places, list_namespaces
from entrepot.errors import RegistryError
from entrepot.settings import DatabaseSettings
from entrepot.web.calls import Call
from entrepot.web.metrics import WebMetrics
from entrepot.web.readiness import NotReady, Readiness
from entrepot.web.service import WebService, health
from entrepot.web.settings import WebSettings
from entrepot_token.htpasswd import Htpasswd, Users, parse_users
from entrepot_token.identity import Authenticator, Identities, Subject
from entrepot_token.keys import KeyRing
from entrepot_token.requests import read_request
from entrepot_token.reviews import open_cluster
from entrepot_token.rights import Authorizer, Catalog, NoRights, Reviewer, Rights, Wish
from entrepot_token.rules import RuleFile, Rules, parse_rules
from entrepot_token.settings import TokenSettings
from entrepot_token.tokens import Granted, make_claims, timestamp
from entrepot_token.watched import WatchedFile

__all__ = ["App", "TokenMetrics", "open_token_service"]

_JSON = {"Content-Type": "application/json"}
_T = TypeVar("_T")

_log = structlog.get_logger("token")


class TokenMetrics(WebMetrics):
    """The token service's metrics, besides those of every web service."""

    def __init__(self) -> None:
        super().__init__("token")
        self.statements = self.counter("database_statements", "Statements sent to PostgreSQL.", "statement")
        self.issued = self.counter("issued", "Tokens issued, by kind of subject.", "subject")
        self.passwords = self.counter(
            "passwords", "Passwords that were compared (right, wrong), or refused after too many wrong ones.", "outcome"
        )
        self.reviews = self.counter(
            "reviews", "Questions to the Kubernetes API, about a token or a right (access).", "kind", "outcome"
        )


class App:
    """The dispatcher, and the one thing that is done here."""

    def __init__(
        self, pool: Pool, keys: KeyRing, *, settings: TokenSettings, metrics: TokenMetrics, readiness: Readiness,
        authenticator: Authenticator, authorizer: Authorizer,
    ) -> None:  # fmt: skip
        self._pool = pool
        self._keys = keys
        self._settings = settings
        self._metrics = metrics
        self._readiness = readiness
        self._authenticator = authenticator
        self._authorizer = authorizer

    async def handle(self, call: Call) -> web.StreamResponse:
        """Answer a request. Raises RegistryError and Failed, which the gate puts into words."""
        if call.path == "/token" and call.method == "GET":
            call.route = "/token"
            return await self._token(call)
        if call.path == "/jwks" and call.method in {"GET", "HEAD"}:
            call.route = "/jwks"
            body = msgspec.json.encode({"keys": self._keys.published()})
            return web.Response(
                body=body, headers={"Content-Type": "application/jwk-set+json", "Cache-Control": "no-cache"}
            )
        answer = await health(call.path, self._readiness)
        if answer is not None:
            call.route = call.path
            return answer
        # Also POST to /token: 404 makes clients fall back to GET (CNCF distribution, "OAuth2 token authentication").
        raise RegistryError(404, "UNSUPPORTED", "GET /token and GET /jwks are here")

    async def _token(self, call: Call) -> web.Response:
        settings = self._settings
        request = read_request(call.query, service=settings.service_id, max_scopes=settings.max_scopes)
        subject = await self._authenticator.authenticate(call.request.headers.get("Authorization"))
        call.subject = subject.name or "anonymous"
        found = await self._find(list(request.scopes)) if request.scopes else {}
        wishes = [Wish(found[name], actions) for name, actions in request.scopes.items() if name in found]
        actions = await self._authorizer.authorize(subject, wishes)
        granted = [Granted(wish.place, allowed) for wish, allowed in zip(wishes, actions, strict=True) if allowed]
        pushed_to = sorted({grant.place.namespace for grant in granted if "push" in grant.actions})
        readable = await self._authorizer.readable(subject, pushed_to)
        catalog = await self._catalog(subject) if request.wants_catalog else None
        now = int(time.time())
        lifetime = int(settings.token_lifetime.total_seconds())
        given = {grant.place.name for grant in granted}
        refused = [name for name in request.scopes if name not in given]
        claims = make_claims(
            subject,
            granted,
            refused=refused,
            readable=readable,
            catalog=catalog,
            service=settings.service_id,
            now=now,
            lifetime=lifetime,
        )
        token = self._keys.sign(claims)
        self._metrics.issued.labels("anonymous" if subject.is_anonymous else "identified").inc()
        body = {"token": token, "access_token": token, "expires_in": lifetime, "issued_at": timestamp(now)}
        return web.Response(body=msgspec.json.encode(body), headers={**_JSON, "Cache-Control": "no-store"})

    async def _catalog(self, subject: Subject) -> Catalog:
        if subject.is_anonymous:
            return ()
        most = self._settings.catalog_namespaces
        namespaces = await self._asked("list_namespaces", list_namespaces(self._pool, count=most + 1))
        if len(namespaces) > most:
            _log.warning("a catalog leaves namespaces out", subject=subject.name, asked=most)
        return await self._authorizer.catalog(subject, namespaces[:most])

    async def _find(self, names: list[str]) -> dict[str, PlaceRow]:
        return await self._asked("find_places", find_places(self._pool, names))

    async def _asked(self, statement: str, answer: Awaitable[_T]) -> _T:
        self._metrics.statements.labels(statement).inc()
        with translated():
            async with asyncio.timeout(self._settings.lookup_timeout.total_seconds()):
                return await answer


@asynccontextmanager
async def open_token_service(
    settings: TokenSettings, *, web_settings: WebSettings, database: DatabaseSettings
) -> AsyncIterator[WebService]:
    """A listening token service. It starts whether or not database and keys are there, and is ready once they are."""
    metrics = TokenMetrics()
    async with AsyncExitStack() as stack:
        keys = await stack.enter_async_context(KeyRing(settings))
        pool = await stack.enter_async_context(open_pool(database, application="entrepot-token"))
        authenticator, reviewer = await _open_sources(stack, settings, metrics=metrics)
        readiness = Readiness(
            {"database": lambda: _check_database(pool), "keys": keys.check}, settings=web_settings, metrics=metrics
        )
        app = App(
            pool,
            keys,
            settings=settings,
            metrics=metrics,
            readiness=readiness,
            authenticator=authenticator,
            authorizer=Rights(reviewer),
        )
        yield await stack.enter_async_context(
            WebService(
                app.handle,
                port=settings.port,
                metrics_port=settings.metrics_port,
                settings=web_settings,
                metrics=metrics,
                readiness=readiness,
            )
        )


async def _check_database(pool: Pool) -> None:
    if not await schema_is_ready(pool):
        raise NotReady(f"the database's schema is older than {REQUIRED_SCHEMA}")


async def _open_sources(
    stack: AsyncExitStack, settings: TokenSettings, *, metrics: TokenMetrics
) -> tuple[Authenticator, Reviewer]:
    """Where identities and rights come from, by the settings."""
    users: WatchedFile[Users] = WatchedFile(
        settings.htpasswd_file, parse_users, empty={}, interval=settings.files_interval
    )
    await stack.enter_async_context(users)
    htpasswd = Htpasswd(users, settings, checks=metrics.passwords)
    if settings.rights_file is not None:
        rules: WatchedFile[Rules] = WatchedFile(
            settings.rights_file, parse_rules, empty=(), interval=settings.files_interval
        )
        return Identities(htpasswd, None), RuleFile(await stack.enter_async_context(rules))
    cluster = await stack.enter_async_context(open_cluster(settings, reviews=metrics.reviews))
    if cluster is None:
        _log.warning("there is neither a cluster nor a file of rules: nobody holds a right")
    return Identities(htpasswd, cluster), cluster or NoRights()
