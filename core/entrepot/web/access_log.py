"""The access log: one JSON line a request, of the same form as the other log lines.

It does not go through the logging libraries: at thousands of requests a second these would take longer than the requests. Lines are
collected for a fraction of a second and written at once; they never hold a query string or a header that could carry a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import BinaryIO

import msgspec

from entrepot.web.calls import Call

__all__ = ["AccessLog"]

_MAX_TEXT = 512
_MAX_PENDING = 10_000


class _Line(msgspec.Struct, kw_only=True, gc=False):
    event: str = "request"
    level: str = "info"
    logger: str = "access"
    timestamp: datetime
    request_id: str
    method: str
    path: str
    route: str
    name: str | None
    reference: str | None
    status: int
    bytes: int
    bytes_in: int
    seconds: float
    client: str | None
    user_agent: str
    subject: str | None


class AccessLog:
    """Writes lines to standard output, or to `stream`. Where other processes write there too (`is_shared`), no line is torn."""

    def __init__(self, *, delay: float = 0.2, stream: BinaryIO | None = None, is_shared: bool = False) -> None:
        self._is_shared = is_shared
        self._delay = delay
        self._stream = stream
        self._encode = msgspec.json.Encoder().encode
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(self, call: Call, *, status: int, received: int) -> None:
        """Note what became of a request."""
        line = _Line(
            timestamp=datetime.now(UTC),
            request_id=call.request_id,
            method=call.method[:16],
            path=_printable(call.path),
            route=call.route,
            name=call.name,
            reference=_printable(call.reference) if call.reference else None,
            status=status,
            bytes=call.sent,
            bytes_in=received,
            seconds=round(time.perf_counter() - call.started, 6),
            client=call.client,
            user_agent=_printable(call.request.headers.get("User-Agent", "")),
            subject=call.subject,
        )
        self._lines.append(self._encode(line))
        if len(self._lines) >= _MAX_PENDING:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay, self.flush)

    def flush(self) -> None:
        """Write what was collected."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            # Nobody reads the log any more: no reason to stop answering.
            with contextlib.suppress(BrokenPipeError):
                stream = self._stream or sys.stdout.buffer
                for piece in _pieces(lines) if self._is_shared else (lines,):
                    stream.write(b"\n".join(piece) + b"\n")
                    stream.flush()


def _pieces(lines: list[bytes]) -> Iterator[list[bytes]]:
    """Lines for one write each: a pipe takes up to PIPE_BUF bytes whole (POSIX, write)."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) + 1 > select.PIPE_BUF:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line) + 1
    yield piece


def _printable(text: str) -> str:
    text = text[:_MAX_TEXT]
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
