"""One request on its way: what is known about it for the access log, the metrics and the error that may come of it."""

from __future__ import annotations

import asyncio
import random
import re
import time

from aiohttp import web

from entrepot.splice import is_plain, splice

__all__ = ["Call"]

# Taken over from a client or a load balancer when it is harmless; otherwise we make one.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _new_id() -> str:
    # To be found in a log, not to be unguessable; `secrets` would ask the kernel at every request.
    return f"{random.getrandbits(64):016x}"


class Call:
    """A request and what becomes of it. `route` is a template such as `/v2/{name}/blobs/{digest}`, never the raw path."""

    __slots__ = (
        "client",
        "length",
        "method",
        "name",
        "path",
        "query",
        "reference",
        "request",
        "request_id",
        "response",
        "route",
        "sent",
        "span",
        "started",
        "subject",
    )

    def __init__(self, request: web.BaseRequest) -> None:
        self.request = request
        self.method = request.method
        # As it stood in the request line, undecoded: two spellings of one path must not become the same here.
        self.path, _, self.query = request.raw_path.partition("?")
        given = request.headers.get("X-Request-Id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else _new_id()
        # The socket's other end; the gate puts the client there where that is a trusted proxy.
        self.client = request.remote
        self.route = "unmatched"
        self.name: str | None = None
        self.reference: str | None = None
        self.subject: str | None = None
        self.span: object | None = None
        self.response: web.StreamResponse | None = None
        self.length = 0
        self.sent = 0
        self.started = time.perf_counter()

    async def begin(self, response: web.StreamResponse) -> None:
        """Send the head of a streamed answer; from here on an error can only break the connection."""
        response.headers["X-Request-Id"] = self.request_id
        self.response = response
        await response.prepare(self.request)

    async def write(self, chunk: bytes, *, seconds: float) -> None:
        """Send a piece of a streamed answer; waits for a slow client, but not longer than `seconds`.

        Raises TimeoutError, or ConnectionResetError when the client is gone.
        """
        if self.response is None:
            raise RuntimeError("begin comes first")
        async with asyncio.timeout(seconds):
            await self.response.write(chunk)
        self.sent += len(chunk)

    @property
    def is_plain(self) -> bool:
        """Whether `pass_on` may be used."""
        transport = self.request.transport
        return transport is not None and is_plain(transport)

    async def pass_on(self, source: asyncio.BaseTransport, length: int, *, seconds: float) -> int:
        """Send what comes from another plain socket, at rest; gives how much that was, less than `length` if there was no more.

        Either end may make the other wait, but not longer than `seconds`. Raises TimeoutError if the client does, or ConnectionError
        when it is gone.
        """
        transport = self.request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        # What was written so far goes first, all of it.
        transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(seconds):
                await self.request.writer.drain()
        finally:
            transport.set_write_buffer_limits()
        moved = await splice(source, transport, length, source_timeout=seconds, sink_timeout=seconds)
        self.sent += moved
        return moved

    def abort(self) -> None:
        """Break the connection, so that a client does not take what it has for the whole."""
        transport = self.request.transport
        if transport is not None:
            transport.abort()
