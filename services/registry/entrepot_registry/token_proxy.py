"""`/token`, passed on to the token service, so that clients need to reach one host only.

What goes through is small and named: the query as it was sent, the credentials, the request id; back come status, body and the few headers
that mean something to a client. POST is answered 404, upon which clients fall back to GET.
"""

from __future__ import annotations

import asyncio

import aiohttp
import structlog
from aiohttp import web
from yarl import URL

from entrepot.errors import RegistryError
from entrepot.web.calls import Call
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.settings import RegistrySettings

__all__ = ["TokenProxy"]

_FORWARDED = ("Authorization", "User-Agent", "Accept")
_RETURNED = ("Content-Type", "Cache-Control", "WWW-Authenticate", "Retry-After")
_MAX_BODY = 64 * 1024
_TIMEOUT = 10.0

_log = structlog.get_logger("token_proxy")


class TokenProxy:
    """The endpoint `/token`."""

    def __init__(self, session: aiohttp.ClientSession, settings: RegistrySettings, *, metrics: RegistryMetrics) -> None:
        self._session = session
        self._url = settings.token_url.rstrip("/") + "/token"
        self._outcomes = metrics.token_proxied

    async def answer(self, call: Call) -> web.Response:
        """GET; any other method is 404. Raises RegistryError."""
        if call.method != "GET":
            raise RegistryError(404, "UNSUPPORTED", "tokens are asked for with GET here")
        given = call.request.headers
        headers = {name: given[name] for name in _FORWARDED if name in given}
        headers["X-Request-Id"] = call.request_id
        headers["Accept-Encoding"] = "identity"
        url = URL(f"{self._url}?{call.query}" if call.query else self._url, encoded=True)
        try:
            async with (
                asyncio.timeout(_TIMEOUT),
                self._session.get(url, headers=headers, allow_redirects=False, auto_decompress=False) as answer,
            ):
                body = b""
                while len(body) <= _MAX_BODY and (chunk := await answer.content.readany()):
                    body += chunk
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._outcomes.labels("failed").inc()
            _log.warning(
                "the token service does not answer",
                request_id=call.request_id,
                error=str(error) or type(error).__name__,
            )
            raise self._away() from error
        if len(body) > _MAX_BODY:
            self._outcomes.labels("failed").inc()
            _log.error("the token service's answer is too long", request_id=call.request_id, status=answer.status)
            raise self._away()
        self._outcomes.labels("answered").inc()
        returned = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
        return web.Response(status=answer.status, body=body, headers=returned)

    @staticmethod
    def _away() -> RegistryError:
        return RegistryError(
            503,
            "UNAVAILABLE",
            "the token service does not answer at the moment; try again",
            headers={"Retry-After": "2"},
        )
