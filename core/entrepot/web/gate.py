"""Around every handler: the request id, the limits, errors in the specification's form, the access log and the metrics.

A handler raises; here alone it is decided what a client is told. Nothing that was not meant for a client gets into an answer: an error we
did not foresee is logged whole, and the client gets its request id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from entrepot.errors import EntrepotError, Failed, RegistryError
from entrepot.oci.errors import GrammarError, error_body
from entrepot.web.access_log import AccessLog
from entrepot.web.answers import Answer
from entrepot.web.calls import Call
from entrepot.web.metrics import WebMetrics
from entrepot.web.proxies import Proxies
from entrepot.web.traces import Traces

__all__ = ["Gate", "Handler", "error_answer"]

Handler = Callable[[Call], Awaitable[web.StreamResponse | Answer]]

_RETRY_AFTER = 2
"""Seconds after which it is worth asking again when a part behind us is away."""

_log = structlog.get_logger("web")


def error_answer(error: RegistryError) -> Answer:
    """An error in the form of the distribution specification, "Error Codes"."""
    headers = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", **error.headers}
    return Answer(error.status, headers, error_body(error.code, error.message, error.detail))


class Gate:
    """What aiohttp's server and its connections call. `headers` are set on every answer that lacks them."""

    def __init__(
        self,
        handler: Handler,
        *,
        metrics: WebMetrics,
        access_log: AccessLog,
        max_requests: int,
        headers: Mapping[str, str],
        proxies: Proxies | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._handler = handler
        self._metrics = metrics
        self._access_log = access_log
        self._max_requests = max_requests
        self._headers = dict(headers)
        self._proxies = proxies
        self._traces = traces
        self._running = 0
        self.closing = False

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """For aiohttp's server."""
        answer = await self.run(Call(request))
        return answer.as_response() if isinstance(answer, Answer) else answer

    async def run(self, call: Call) -> web.StreamResponse | Answer:
        """The answer to a request, whatever happens."""
        if self._proxies is not None:
            call.client = self._proxies.client(call.client, call.request.headers.getall("X-Forwarded-For", ()))
        if self._traces is not None:
            call.span = self._traces.begin(call)
        if self._running >= self._max_requests:
            self._metrics.refused.inc()
            busy = RegistryError(
                503, "UNAVAILABLE", "too many requests at once; try again", headers={"Retry-After": "1"}
            )
            return self._finish(call, self._dress(call, error_answer(busy)))
        self._running += 1
        self._metrics.in_flight.inc()
        status = 499  # for the log of a request that nobody waits for any more
        try:
            response = await self._answer(call)
            status = response.status
        finally:
            self._running -= 1
            self._metrics.in_flight.dec()
            if status == 499:
                self._note(call, 499)
        return self._finish(call, response)

    async def _answer(self, call: Call) -> web.StreamResponse | Answer:
        try:
            response = await self._handler(call)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the one place where whatever happened becomes an answer
            if call.response is not None:
                self._break_off(call, error)
                return call.response
            response = error_answer(self._explain(call, error))
        return self._dress(call, response) if call.response is None else response

    def _dress(self, call: Call, response: web.StreamResponse | Answer) -> web.StreamResponse | Answer:
        headers = response.headers
        headers["X-Request-Id"] = call.request_id
        for name, value in self._headers.items():
            if name not in headers:
                headers[name] = value
        # When we go, the client's next request is to go to a process that stays. And what still comes of a body that nobody wants must not be
        # taken for the next request, by us or by a proxy between.
        if self.closing or not call.request.content.is_eof():
            response.force_close()
        if call.method != "HEAD":
            body = getattr(response, "body", None)
            call.sent = len(body) if isinstance(body, bytes) else 0
        return response

    def _break_off(self, call: Call, error: Exception) -> None:
        call.abort()
        gone = isinstance(error, ConnectionError)
        reason = "client" if gone else "slow_client" if isinstance(error, TimeoutError) else "server"
        self._metrics.broken.labels(reason).inc()
        if reason == "server":
            unforeseen = not isinstance(error, EntrepotError)
            _log.error(
                "answer broken off",
                request_id=call.request_id,
                path=call.path,
                sent=call.sent,
                error=str(error),
                exc_info=unforeseen,
            )

    def _explain(self, call: Call, error: Exception) -> RegistryError:
        if isinstance(error, RegistryError):
            return error
        if isinstance(error, GrammarError):
            return RegistryError(error.status, error.code, str(error))
        if isinstance(error, Failed):
            _log.warning(
                "a part behind us is away", request_id=call.request_id, reason=error.reason, error=error.message
            )
            after = int(error.retry_after.total_seconds()) if error.retry_after else _RETRY_AFTER
            parts = {"DatabaseUnavailable": "the database", "StorageUnavailable": "the object store"}
            what = parts.get(error.reason, "a part behind the registry")
            return RegistryError(
                503,
                "UNAVAILABLE",
                f"{what} does not answer at the moment; try again",
                headers={"Retry-After": str(after)},
            )
        _log.error("unforeseen error", request_id=call.request_id, path=call.path, exc_info=error)
        return RegistryError(
            500, "UNKNOWN", f"something went wrong here; the log has it under request id {call.request_id}"
        )

    def _finish(self, call: Call, response: web.StreamResponse | Answer) -> web.StreamResponse | Answer:
        self._note(call, response.status)
        return response

    def _note(self, call: Call, status: int) -> None:
        received = call.request.content.total_bytes
        self._metrics.observe(
            call.route,
            call.method,
            status,
            seconds=time.perf_counter() - call.started,
            sent=call.sent,
            received=received,
        )
        if self._traces is not None and call.span is not None:
            self._traces.end(call, status, received=received)
        self._access_log.write(call, status=status, received=received)


def malformed(error: BaseException | None, *, status: int) -> web.Response:
    """The answer to what is not HTTP, or breaks its limits."""
    message = "the request cannot be read"
    if isinstance(error, HttpProcessingError) and status != 500:
        message = f"the request cannot be read: {type(error).__name__}"
    return error_answer(RegistryError(status, "UNKNOWN" if status >= 500 else "UNSUPPORTED", message)).as_response()
