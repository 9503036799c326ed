"""Requests without a body, answered without most of aiohttp's machinery.

For each request aiohttp wakes the connection's loop (`RequestHandler.start`), which makes a task of its own for the handler and, around
what that gives, a response that could be a stream. A manifest is a few hundred bytes that are known at once, and there are thousands a
second: this was a third of what one costs. So a request that has no body and is alone on its connection is handed to the gate as soon as
aiohttp's parser has read it, and an `Answer` is written as bytes. aiohttp's loop waits all the while and knows nothing of it. All else goes
its way: bodies, pipelined requests, upgrades, other versions of HTTP, heads that break the rules.

Of aiohttp's insides this relies on `_waiter`, the future by which the loop is woken, and `_messages`, where the parser's results wait for it.
While we answer, `_waiter` is kept from everyone, so that nothing wakes the loop; what arrives meanwhile is bounded there as always.
"""

from __future__ import annotations

from aiohttp.http import HttpVersion11, RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from entrepot.web.answers import Answer
from entrepot.web.calls import Call
from entrepot.web.gate import Gate

__all__ = ["QuickConnection"]

_METHODS = frozenset({"GET", "HEAD"})


class QuickConnection(RequestHandler):
    """aiohttp's connection with a short way for short answers. Its server's handler is the gate."""

    __slots__ = ("_kept_waiter", "_quick_task")

    def data_received(self, data: bytes) -> None:
        """Give requests that are alone and have no body to the gate, others to aiohttp."""
        waiter = self._waiter
        if waiter is None or waiter.done() or self._messages or self._upgraded:
            super().data_received(data)
            return
        self._waiter = None
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        if not self._messages:
            return
        message, payload = self._messages[0]
        if len(self._messages) == 1 and payload is EMPTY_PAYLOAD and _is_plain(message):
            self._messages.popleft()
            self._parser.message_consumed()  # type: ignore[union-attr]
            self._kept_waiter, self._waiter = waiter, None
            self._request_in_progress = True  # as `shutdown` asks
            self._quick_task = self._loop.create_task(self._answer(message))  # type: ignore[arg-type]
        else:
            waiter.set_result(None)

    async def _answer(self, message: RawRequestMessage) -> None:
        is_kept = False
        try:
            is_kept = await self._answer_one(message)
        except ConnectionError:
            pass  # the client has gone
        finally:
            self._go_on(is_kept=is_kept)

    async def _answer_one(self, message: RawRequestMessage) -> bool:
        """Gives whether the connection may be kept."""
        gate: Gate = self._request_handler  # type: ignore[assignment]
        writer = StreamWriter(self, self._loop)
        request = self._request_factory(message, EMPTY_PAYLOAD, self, writer, self._task_handler)  # type: ignore[misc,arg-type]
        answer = await gate.run(Call(request))
        if not isinstance(answer, Answer):
            response, is_reset = await self.finish_response(request, answer, None)
            return bool(response.keep_alive) and not is_reset
        if self.transport is not None:
            self.transport.write(answer.as_bytes(is_head=message.method == "HEAD"))
            if self._paused:
                await self._drain_helper()
        return not answer.is_last

    def _go_on(self, *, is_kept: bool) -> None:
        """Let aiohttp have the connection again, or end it."""
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        waiter = self._kept_waiter
        if not is_kept or self._close or self._force_close or self.transport is None:
            waiter.cancel()
            self.force_close()  # once what was written is out
            return
        self._waiter = waiter
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        if self._messages:
            waiter.set_result(None)


def _is_plain(message: object) -> bool:
    """Whether it is a request for which there is nothing to arrange: no error, and a connection that is kept as it is."""
    return (
        isinstance(message, RawRequestMessage)
        and message.method in _METHODS
        and message.version == HttpVersion11
        and not message.should_close
        and not message.upgrade
    )
