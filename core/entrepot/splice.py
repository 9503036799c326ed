"""Bytes from one socket to another without coming into this process: Linux's splice(2), which hands pages from the one to a pipe and from
the pipe to the other.

It takes a third of the processor time of reading and writing them, and one event loop serves as many more downloads. It is for plain
sockets only: where TLS is spoken, the bytes have to pass through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["is_plain", "splice"]

_PIPE = 256 * 1024
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


def is_plain(transport: asyncio.BaseTransport) -> bool:
    """Whether what goes through this transport is what goes through its socket."""
    found = transport.get_extra_info("socket")
    return found is not None and found.family in _FAMILIES and transport.get_extra_info("sslcontext") is None


async def splice(
    source: asyncio.BaseTransport,
    sink: asyncio.BaseTransport,
    length: int,
    *,
    source_timeout: float,
    sink_timeout: float,
) -> int:
    """Move `length` bytes, and give how many came: fewer if the source ended, broke, or gave nothing for `source_timeout` seconds.

    Both transports must be plain and at rest: the source's reading is paused, the sink has written all it was given.

    Raises:
        TimeoutError: the sink took nothing for `sink_timeout` seconds.
        ConnectionError: the sink is gone.
    """
    with contextlib.ExitStack() as stack:
        # Numbers of our own for the sockets, since the event loop lets nobody wait for those of its transports.
        from_socket, to_socket = (os.dup(end.get_extra_info("socket").fileno()) for end in (source, sink))
        from_pipe, to_pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (from_socket, to_socket, from_pipe, to_pipe):
            stack.callback(os.close, number)
        with contextlib.suppress(
            OSError
        ):  # the kernel bounds what a user's pipes hold together; a small one serves too
            fcntl.fcntl(to_pipe, fcntl.F_SETPIPE_SZ, _PIPE)
        loop = asyncio.get_running_loop()
        done = 0
        while done < length:
            try:
                held = await _move(
                    from_socket, to_pipe, min(length - done, _PIPE),
                    add=loop.add_reader, remove=loop.remove_reader, waits_for=from_socket, timeout=source_timeout,
                )  # fmt: skip
            except OSError:  # a TimeoutError is one as well
                return done
            if held == 0:
                return done
            while held:
                moved = await _move(
                    from_pipe, to_socket, held,
                    add=loop.add_writer, remove=loop.remove_writer, waits_for=to_socket, timeout=sink_timeout,
                )  # fmt: skip
                held -= moved
                done += moved
            await asyncio.sleep(0)  # two quick ends must not keep the others waiting
        return done


async def _move(
    source: int, sink: int, count: int, *, add: Callable[..., Any], remove: Callable[[int], Any], waits_for: int, timeout: float
) -> int:  # fmt: skip
    while True:
        try:
            return os.splice(source, sink, count, flags=_FLAGS)
        except BlockingIOError:
            ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            add(waits_for, _wake, ready)
            try:
                async with asyncio.timeout(timeout):
                    await ready
            finally:
                remove(waits_for)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
