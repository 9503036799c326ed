"""The body of a request as it comes in: bounded in length and in patience, never decoded.

What a client pushes is named by its digest, so the bytes are taken as they are sent; a body that says it is compressed is refused, since
the one who reads it later would not know. Whoever waits for `100 Continue` is told to go on only when its body is wanted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError

from entrepot.errors import RegistryError
from entrepot.web.calls import Call

__all__ = ["Body"]

_HURRY = 10.0
"""Seconds in which something must come of a body whose room others wait for."""


class Body:
    """`async for chunk in body`, once. `length` is None where the client does not say it."""

    def __init__(
        self, call: Call, *, limit: int, patience: float, pace: int = 0, is_awaited: Callable[[], bool] = lambda: False
    ) -> None:
        """Raises RegistryError 413 and 415, before anything was read.

        `limit` is in bytes, `patience` in seconds without a byte; `pace` bytes must come in each `patience` of waiting for the client, and
        within seconds while `is_awaited` says that others wait for the room that this body takes.
        """
        self._call = call
        self._limit = limit
        self._patience = patience
        self._pace = pace
        self._is_awaited = is_awaited
        self.received = 0
        request = call.request
        encoding = request.headers.get("Content-Encoding", "identity").strip(" \t").lower()
        if encoding not in {"", "identity"}:
            raise RegistryError(415, "UNSUPPORTED", "send the bytes as they are, without a Content-Encoding")
        self.length = request.content_length if request.can_read_body else 0
        if self.length is not None and self.length > limit:
            raise self._too_large()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await self._tell_to_go_on()
        content = self._call.request.content
        waited, came = 0.0, 0
        while True:
            started = time.monotonic()
            try:
                chunk = await self._next(content)
            except TimeoutError as error:
                raise _too_slow(f"no byte of the body came for {self._patience:g} s") from error
            except (ConnectionError, HttpProcessingError, aiohttp.ClientPayloadError) as error:
                raise RegistryError(400, "BLOB_UPLOAD_INVALID", "the body broke off before its end") from error
            if not chunk:
                return
            # Only what we waited for the client counts, not what we did with its bytes meanwhile.
            waited, came = waited + time.monotonic() - started, came + len(chunk)
            patience = min(self._patience, _HURRY) if self._is_awaited() else self._patience
            if waited > patience:
                if came < self._pace:
                    raise _too_slow(f"less than {self._pace} bytes of the body came in {patience:g} s")
                waited, came = 0.0, 0
            self.received += len(chunk)
            if self.received > self._limit:
                raise self._too_large()
            yield chunk

    async def _next(self, content: aiohttp.StreamReader) -> bytes:
        """What comes next; looks now and then whether others wait. Raises TimeoutError."""
        silent = 0.0
        while True:
            step = min(self._patience - silent, _HURRY)
            try:
                async with asyncio.timeout(step):
                    return await content.readany()
            except TimeoutError:
                silent += step
                if silent >= self._patience or self._is_awaited():
                    raise

    async def _tell_to_go_on(self) -> None:
        """RFC 9110 section 10.1.1. aiohttp does this for applications, not for its server alone."""
        request = self._call.request
        if request.version == HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
            writer = request.writer
            await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            writer.output_size = 0  # the answer has not begun yet

    def _too_large(self) -> RegistryError:
        return RegistryError(413, "SIZE_INVALID", f"at most {self._limit} bytes are taken here")


def _too_slow(message: str) -> RegistryError:
    return RegistryError(408, "BLOB_UPLOAD_INVALID", message, headers={"Connection": "close"})
