"""An answer that is known as a whole: a status, headers and a body in memory, which is what all but streamed blobs are.

The gate has it before it becomes aiohttp's response, or, for most requests, bytes without that detour (`entrepot.web.quick`).
"""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time

__all__ = ["Answer"]

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}
_WITHOUT_LENGTH = frozenset({204, 304})


class Answer(msgspec.Struct, gc=False):
    """To HEAD no body is sent; `Content-Length` is the body's where the headers do not say otherwise."""

    status: int = 200
    headers: dict[str, str] = {}
    body: bytes = b""
    is_last: bool = False
    """The connection is not kept after it."""

    def force_close(self) -> None:
        """Make it the last on its connection; named as aiohttp does."""
        self.is_last = True

    def as_bytes(self, *, is_head: bool = False) -> bytes:
        """As HTTP/1.1. Raises ValueError where a header's value would end its line."""
        lines = [_STATUS_LINES[self.status]]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if "Content-Length" not in self.headers and self.status not in _WITHOUT_LENGTH:
            lines.append(f"Content-Length: {len(self.body)}")
        lines.append(f"Date: {rfc822_formatted_time()}")
        if self.is_last:
            lines.append("Connection: close")
        head = "\r\n".join(lines)
        if head.count("\n") >= len(lines) or head.count("\r") >= len(lines):
            raise ValueError("a line break within a header")
        head += "\r\n\r\n"
        return head.encode("utf-8") if is_head else head.encode("utf-8") + self.body

    def as_response(self) -> web.Response:
        """As aiohttp's."""
        response = web.Response(status=self.status, headers=self.headers, body=self.body or None)
        if self.is_last:
            response.force_close()
        return response
