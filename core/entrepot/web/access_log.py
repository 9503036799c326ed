"""The access log: one JSON line a request, of the same form as the other log lines.

It does not go through the logging libraries: at thousands of requests a second these would take longer than the requests. Lines are
collected for a fraction of a second and written at once; they never hold a query string or a header that could carry a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from datetime import UTC, datetime
from typing import BinaryIO

import msgspec

from entrepot.web.calls import Call

__all__ = ["AccessLog"]

_MAX_TEXT = 512
_MAX_PENDING = 10_000


class AccessLog:
    """Writes lines to standard output, or to `stream`."""

    def __init__(self, *, delay: float = 0.2, stream: BinaryIO | None = None) -> None:
        self._delay = delay
        self._stream = stream
        self._encode = msgspec.json.Encoder().encode
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(self, call: Call, *, status: int, received: int) -> None:
        """Note what became of a request."""
        request = call.request
        self._lines.append(
            self._encode(
                {
                    "event": "request",
                    "level": "info",
                    "logger": "access",
                    "timestamp": datetime.now(UTC).isoformat(),
                    "request_id": call.request_id,
                    "method": call.method[:16],
                    "path": _printable(call.path),
                    "route": call.route,
                    "name": call.name,
                    "reference": call.reference,
                    "status": status,
                    "bytes": call.sent,
                    "bytes_in": received,
                    "seconds": round(time.perf_counter() - call.started, 6),
                    "client": call.client,
                    "user_agent": _printable(request.headers.get("User-Agent", "")),
                    "subject": call.subject,
                }
            )
        )
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
                stream.write(b"\n".join(lines) + b"\n")
                stream.flush()


def _printable(text: str) -> str:
    return text[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()
