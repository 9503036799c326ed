"""Moving bytes between sockets in the kernel: all of them, in order, and an end told for what it is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from entrepot.splice import is_plain, splice

MIB = 1024 * 1024
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a connection."""
    accepted: asyncio.Queue[Stream] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait((reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    ours = await asyncio.open_connection(*server.sockets[0].getsockname()[:2], limit=MIB)
    theirs = await accepted.get()
    try:
        yield ours, theirs
    finally:
        for _, writer in (ours, theirs):
            writer.close()
        server.close()


@asynccontextmanager
async def chain() -> AsyncIterator[tuple[Stream, asyncio.WriteTransport, asyncio.WriteTransport, Stream]]:
    """Who sends, the two ends between which bytes are moved, and who receives."""
    async with connected() as (sender, source), connected() as (sink, receiver):
        source[1].transport.pause_reading()  # type: ignore[attr-defined]
        yield sender, source[1].transport, sink[1].transport, receiver


async def test_all_bytes_come_in_order_and_no_more_than_asked_for() -> None:
    data = os.urandom(20 * MIB + 12345)
    async with asyncio.timeout(30), chain() as (sender, source, sink, receiver):
        assert is_plain(source)
        sender[1].write(data + b"of something else")
        moving = asyncio.create_task(splice(source, sink, len(data), source_timeout=10, sink_timeout=10))
        assert await receiver[0].readexactly(len(data)) == data
        assert await moving == len(data)
        sink.close()
        assert await receiver[0].read() == b""


async def test_a_source_that_ends_or_falls_silent_is_told_by_the_count() -> None:
    async with asyncio.timeout(30), chain() as (sender, source, sink, receiver):
        sender[1].write(b"x" * 1000)
        assert await splice(source, sink, 5000, source_timeout=0.2, sink_timeout=10) == 1000
        sender[1].write(b"y" * 500)
        sender[1].write_eof()
        assert await splice(source, sink, 5000, source_timeout=10, sink_timeout=10) == 500
        assert await receiver[0].readexactly(1500) == b"x" * 1000 + b"y" * 500


async def test_a_source_that_breaks_is_told_by_the_count() -> None:
    async with asyncio.timeout(30), chain() as (sender, source, sink, _):
        moving = asyncio.create_task(splice(source, sink, 5000, source_timeout=10, sink_timeout=10))
        await asyncio.sleep(0)
        sender[1].transport.abort()
        assert await moving == 0


async def test_a_sink_that_takes_nothing_times_out_and_one_that_is_gone_is_an_error() -> None:
    async with asyncio.timeout(30), chain() as (sender, source, sink, receiver):
        receiver[1].transport.pause_reading()  # type: ignore[attr-defined]
        sender[1].write(bytes(64 * MIB))
        with pytest.raises(TimeoutError):
            await splice(source, sink, 64 * MIB, source_timeout=10, sink_timeout=0.3)
        receiver[1].transport.abort()
        with pytest.raises(ConnectionError):
            await splice(source, sink, 32 * MIB, source_timeout=10, sink_timeout=10)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_is_left() -> None:
    before = open_files()
    async with chain() as (sender, source, sink, _):
        inside = open_files()
        sender[1].write(b"x" * 1000)
        for _ in range(20):
            await splice(source, sink, 5000, source_timeout=0.01, sink_timeout=1)
        assert open_files() == inside > before
