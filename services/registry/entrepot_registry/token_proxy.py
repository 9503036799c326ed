"""The token service as the registry speaks to it, and `/token`, passed on so that clients need to reach one host only.

What goes through is small and named: the query as it was sent, the credentials, the request id; back come status, body and the few headers
that mean something to a client. POST is answered 404, upon which clients fall back to GET.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import structlog
from aiohttp import web
from yarl import URL

from entrepot.errors import RegistryError
from entrepot.web.calls import Call
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.settings import RegistrySettings

if TYPE_CHECKING:
    from entrepot_registry.logins import PasswordRule

__all__ = ["TokenAnswer", "TokenProxy", "TokenService"]

_FORWARDED = ("Authorization", "User-Agent", "Accept")
_RETURNED = ("Content-Type", "Cache-Control", "WWW-Authenticate", "Retry-After")
_MAX_BODY = 64 * 1024
_TIMEOUT = 10.0
_BLANK = frozenset({"", "basic og=="})
"""Authorization, in lower case, of clients that say "nobody"."""

_log = structlog.get_logger("token_proxy")


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """What the token service said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TokenService:
    """Token requests to it."""

    def __init__(self, session: aiohttp.ClientSession, settings: RegistrySettings, *, metrics: RegistryMetrics) -> None:
        self._session = session
        self._url = settings.token_url.rstrip("/") + "/token"
        self._outcomes = metrics.token_proxied

    async def ask(self, query: str, *, headers: Mapping[str, str], request_id: str) -> TokenAnswer:
        """GET with a query string as it stands. Raises RegistryError 503."""
        sent = {**headers, "X-Request-Id": request_id, "Accept-Encoding": "identity"}
        url = URL(f"{self._url}?{query}" if query else self._url, encoded=True)
        try:
            async with (
                asyncio.timeout(_TIMEOUT),
                self._session.get(url, headers=sent, allow_redirects=False, auto_decompress=False) as answer,
            ):
                body = b""
                while len(body) <= _MAX_BODY and (chunk := await answer.content.readany()):
                    body += chunk
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._outcomes.labels("failed").inc()
            _log.warning(
                "the token service does not answer", request_id=request_id, error=str(error) or type(error).__name__
            )
            raise self.away() from error
        if len(body) > _MAX_BODY:
            self._outcomes.labels("failed").inc()
            _log.error("the token service's answer is too long", request_id=request_id, status=answer.status)
            raise self.away()
        self._outcomes.labels("answered").inc()
        returned = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
        return TokenAnswer(answer.status, returned, body)

    @staticmethod
    def away() -> RegistryError:
        """What a client is told when it does not answer, or not as it should."""
        return RegistryError(
            503,
            "UNAVAILABLE",
            "the token service does not answer at the moment; try again",
            headers={"Retry-After": "2"},
        )


class TokenProxy:
    """The endpoint `/token`."""

    def __init__(self, service: TokenService, *, rule: PasswordRule) -> None:
        self._service = service
        self._rule = rule

    async def answer(self, call: Call) -> web.Response:
        """GET; any other method is 404. Raises RegistryError."""
        if call.method != "GET":
            raise RegistryError(404, "UNSUPPORTED", "tokens are asked for with GET here")
        given = call.request.headers
        if given.get("Authorization", "").strip().lower() not in _BLANK:
            self._rule.check(call)
        headers = {name: given[name] for name in _FORWARDED if name in given}
        answer = await self._service.ask(call.query, headers=headers, request_id=call.request_id)
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
