"""Proxies that stand before S3 and PostgreSQL and fail in chosen ways at chosen moments."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import aiohttp
from aiohttp import web
from yarl import URL

__all__ = ["Fault", "FaultyS3", "PostgresWire"]

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
_SLOW_DOWN = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>come again</Message></Error>'


class Fault(Enum):
    """What goes wrong."""

    SLOW_DOWN = "503 instead of an answer"
    RESET = "the connection is reset, nothing was done"
    LOST = "it is done, and the answer gets lost"
    TRUNCATED = "the answer breaks off in its middle"
    WRONG = "the answer has other bytes"


@dataclass
class FaultyS3:
    """An S3 server's front. While `fault` is set, requests that `matches` fail like that, at most `times` of them."""

    target: int
    port: int = 0
    fault: Fault | None = None
    times: int = 0
    matches: Callable[[str, URL], bool] = lambda _method, _url: True
    failed: int = 0
    _runner: web.ServerRunner | None = None
    _http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> FaultyS3:
        self._http = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        assert self._http is not None
        await self._runner.cleanup()
        await self._http.close()

    def fail(self, fault: Fault, matches: Callable[[str, URL], bool], *, times: int = 1_000_000) -> None:
        """From now on."""
        self.fault, self.matches, self.times, self.failed = fault, matches, times, 0

    def heal(self) -> None:
        """All is well again."""
        self.fault = None

    def _next_fault(self, method: str, url: URL) -> Fault | None:
        if self.fault is None or self.failed >= self.times or not self.matches(method, url):
            return None
        self.failed += 1
        return self.fault

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        url = URL(f"http://127.0.0.1:{self.target}{request.raw_path}", encoded=True)
        fault = self._next_fault(request.method, url)
        if "Expect" in request.headers:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        # Not read(), which has a limit of its own.
        body = b"".join([chunk async for chunk in request.content.iter_any()])
        if fault is Fault.RESET:
            return _reset(request)
        if fault is Fault.SLOW_DOWN:
            return web.Response(status=503, body=_SLOW_DOWN, content_type="application/xml")
        assert self._http is not None
        # The signature covers Host, so that stays the one the client wrote.
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        async with self._http.request(
            request.method,
            url,
            headers=headers,
            data=io.BytesIO(body) if body else None,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as got:
            data = await got.read()
            returned = {name: value for name, value in got.headers.items() if name.lower() not in _HOP}
            if fault is Fault.LOST:
                return _reset(request)
            if fault is Fault.WRONG:
                data = bytes(byte ^ 0xFF for byte in data[:64]) + data[64:]
            if fault is Fault.TRUNCATED:
                return await _break_off(
                    request, web.StreamResponse(status=got.status, headers=returned), data[: len(data) // 2]
                )
            if request.method == "HEAD":
                return web.Response(status=got.status, headers=returned)
            return web.Response(
                status=got.status, headers={k: v for k, v in returned.items() if k != "Content-Length"}, body=data
            )


def _reset(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _break_off(request: web.BaseRequest, response: web.StreamResponse, data: bytes) -> web.StreamResponse:
    await response.prepare(request)
    await response.write(data)
    # Gone out, before the connection goes.
    await asyncio.sleep(0)
    if request.transport is not None:
        request.transport.close()
    return response


@dataclass
class PostgresWire:
    """A TCP proxy before PostgreSQL that cuts a connection when a statement with certain bytes in it passes by."""

    target: int
    port: int = 0
    marker: bytes | None = None
    is_executed: bool = False
    """Whether the server still gets the statement, and only its answer is lost."""
    cuts: int = 0
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> PostgresWire:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self, marker: bytes, *, is_executed: bool) -> None:
        """Cut the connection that carries these bytes next, once."""
        self.marker, self.is_executed = marker, is_executed

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        muted = asyncio.Event()
        up = asyncio.create_task(self._up(reader, server_writer, muted))
        down = asyncio.create_task(_down(server_reader, writer, muted))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (up, down):
                one.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for one_writer in (writer, server_writer):
                one_writer.transport.abort()
            self._tasks.discard(task)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, muted: asyncio.Event) -> None:
        while chunk := await reader.read(65536):
            if self.marker is not None and self.marker in chunk:
                self.marker = None
                self.cuts += 1
                if not self.is_executed:
                    return
                muted.set()
            writer.write(chunk)
            await writer.drain()


async def _down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, muted: asyncio.Event) -> None:
    while chunk := await reader.read(65536):
        if muted.is_set():
            # It was done and is committed. The client does not learn it.
            return
        with contextlib.suppress(ConnectionError):
            writer.write(chunk)
            await writer.drain()
