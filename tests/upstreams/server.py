"""A registry that serves `images.Content`, asks for credentials in every way, and does wrong on demand.

A fault is a rule: for requests that match, `times` of them, its handler answers instead. Everything that is asked is recorded.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

from aiohttp import web

from tests.upstreams.images import Content, Generated

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Rule:
    method: str
    pattern: re.Pattern[str]
    handler: Handler
    times: int | None
    used: int = 0


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    method: str
    path: str
    headers: dict[str, str]
    query: str = ""


@dataclass
class Upstream:
    """One registry, on loopback unless `host` says otherwise. `auth` is "", "basic" or "token"."""

    host: str = "127.0.0.1"
    repositories: dict[str, Content] = field(default_factory=dict)
    auth: str = ""
    username: str = "user"
    password: str = "secret"
    page_size: int = 0
    """Tags of a page; 0: all."""
    realm: str = ""
    """Overrides the realm of the challenge."""
    token_lifetime: int = 300
    latency: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    port: int = 0
    runner: web.AppRunner | None = None
    tokens: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def content(self, name: str = "app/web") -> Content:
        return self.repositories.setdefault(name, Content())

    def fault(self, method: str, pattern: str, handler: Handler, *, times: int | None = None) -> None:
        """Answer requests whose path (with query) matches the pattern by this handler, `times` times."""
        self.rules.append(Rule(method, re.compile(pattern), handler, times))

    def heal(self) -> None:
        self.rules.clear()

    def counts(self) -> Counter[str]:
        """How often what was asked: `HEAD manifests`, `GET tags` …"""
        kinds: Counter[str] = Counter()
        for request in self.seen:
            kind = next((k for k in ("tags", "manifests", "blobs", "token") if f"/{k}" in request.path), "other")
            kinds[f"{request.method} {kind}"] += 1
        return kinds

    async def __aenter__(self) -> Upstream:
        app = web.Application(middlewares=[self._middleware])
        app.router.add_get("/token", self._token)
        app.router.add_get("/v2/{name:.+}/tags/list", self._tags)
        app.router.add_get("/v2/{name:.+}/manifests/{reference}", self._manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._blob)
        self.runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.2)
        await self.runner.setup()
        site = web.TCPSite(self.runner, self.host, self.port)
        await site.start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.runner is not None
        await self.runner.cleanup()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.seen.append(Seen(request.method, request.path, dict(request.headers), request.rel_url.raw_query_string))
        if self.latency:
            await asyncio.sleep(self.latency)
        for rule in self.rules:
            if rule.method == request.method and rule.pattern.search(request.path_qs):
                if rule.times is not None and rule.used >= rule.times:
                    continue
                rule.used += 1
                return await rule.handler(request)
        refusal = self._authorize(request)
        return refusal if refusal is not None else await handler(request)

    def _authorize(self, request: web.Request) -> web.Response | None:
        if not self.auth or request.path == "/token":
            return None
        given = request.headers.get("Authorization", "")
        if self.auth == "basic":
            if given == self._basic():
                return None
            return failure(401, "UNAUTHORIZED", headers={"WWW-Authenticate": 'Basic realm="registry"'})
        if given.removeprefix("Bearer ") in self.tokens:
            return None
        name = request.match_info.get("name", "")
        realm = self.realm or f"{self.url}/token"
        challenge = f'Bearer realm="{realm}",service="test",scope="repository:{name}:pull"'
        return failure(401, "UNAUTHORIZED", headers={"WWW-Authenticate": challenge})

    def _basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    async def _token(self, request: web.Request) -> web.Response:
        if self.password and request.headers.get("Authorization") != self._basic():
            return failure(401, "UNAUTHORIZED")
        token = f"token-{len(self.tokens)}"
        self.tokens.add(token)
        return web.json_response({"token": token, "expires_in": self.token_lifetime})

    def _content(self, request: web.Request) -> Content:
        content = self.repositories.get(request.match_info["name"])
        if content is None:
            raise web.HTTPNotFound(text=errors("NAME_UNKNOWN"), content_type="application/json")
        return content

    async def _tags(self, request: web.Request) -> web.Response:
        names = sorted(self._content(request).tags)
        last = request.query.get("last", "")
        names = [name for name in names if name > last]
        headers = {}
        if self.page_size and len(names) > self.page_size:
            names = names[: self.page_size]
            headers["Link"] = f'<{request.path}?last={names[-1]}&n={self.page_size}>; rel="next"'
        return web.json_response({"name": request.match_info["name"], "tags": names}, headers=headers)

    async def _manifest(self, request: web.Request) -> web.Response:
        content = self._content(request)
        reference = request.match_info["reference"]
        digest = content.tags.get(reference, reference)
        found = content.manifests.get(digest)
        if found is None:
            return failure(404, "MANIFEST_UNKNOWN")
        media_type, body = found
        headers = {"Docker-Content-Digest": digest, "Content-Type": media_type}
        return web.Response(body=body, headers=headers)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        data = self._content(request).blobs.get(request.match_info["digest"])
        if data is None:
            return failure(404, "BLOB_UNKNOWN")
        if isinstance(data, Generated):
            response = web.StreamResponse(headers={"Content-Length": str(data.size)})
            await response.prepare(request)
            for chunk in data.chunks():
                await response.write(chunk)
            return response
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
            return web.Response(
                status=206, body=data[start:], headers={"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            )
        return web.Response(body=data, headers={"Content-Type": "application/octet-stream"})


def errors(code: str) -> str:
    """A body that also holds what must never be repeated."""
    return json.dumps({"errors": [{"code": code, "message": "BODY-CANARY", "detail": "BODY-CANARY"}]})


def failure(status: int, code: str = "UNKNOWN", *, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=errors(code), content_type="application/json", headers=headers)


def answers(status: int, code: str = "UNKNOWN", *, headers: dict[str, str] | None = None) -> Handler:
    """A handler that always answers with this error."""

    async def handler(_: web.Request) -> web.Response:
        return failure(status, code, headers=headers)

    return handler


def sends(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    """A handler that always answers with these bytes."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return handler


def breaks_off(data: bytes, *, after: int) -> Handler:
    """A handler that promises all bytes and hangs up after some."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[:after])
        assert request.transport is not None
        request.transport.abort()
        return response

    return handler


def streams(chunks: Callable[[], Iterator[bytes]]) -> Handler:
    """A handler that sends chunks without stating a length."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for chunk in chunks():
            await response.write(chunk)
        await response.write_eof()
        return response

    return handler
