"""The registry's process, made to die at a chosen await of a chosen request: `python -m tests.crashing`, settings as the registry's own.

A request with the header `X-Crash` decides. `record` lets it through and answers with `X-Awaits`, the awaits at which it was suspended, in order
and by their places in our own code. `<place>#<n>` kills the process when the request is suspended at that place for the n-th time. Work that the
request hands to other tasks counts as its own. The process comes back by itself: a parent that has everything imported forks another.
"""

from __future__ import annotations

import asyncio
import collections
import os
import re
import signal
import sys
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import uvloop

from entrepot import logs
from entrepot.blobs import store
from entrepot.settings import DatabaseSettings, S3Settings, load
from entrepot.web.service import until_told_to_stop
from entrepot.web.settings import WebSettings
from entrepot_registry.app import App, open_registry
from entrepot_registry.settings import RegistrySettings

END = "end"
"""The place after the last await: all is done and the answer is not sent yet."""


class Watch:
    """Where one request was suspended, and where it is to die."""

    def __init__(self, wish: str) -> None:
        self.seen: list[str] = []
        place, _, number = wish.partition("#")
        self._place = place
        self._left = int(number) if number else 0

    def suspended(self, place: str) -> None:
        self.seen.append(place)
        if place == self._place:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


_OURS = re.compile(r"/(core/entrepot|entrepot_registry)/")
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


class _Stepped:
    """A coroutine that tells its watch each time it is suspended."""

    def __init__(self, inner: Coroutine[Any, Any, Any], watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __await__(self) -> Generator[Any, Any, Any]:
        send, argument = self._inner.send, None
        while True:
            try:
                waited_for = send(argument)
            except StopIteration as end:
                return end.value
            self._watch.suspended(place_of(self._inner))
            try:
                send, argument = self._inner.send, (yield waited_for)
            except BaseException as error:  # noqa: BLE001 - handed on to the coroutine, as an await does
                send, argument = self._inner.throw, error


def place_of(coroutine: Any) -> str:
    """The frames of our own code, outermost first, that a coroutine is suspended in."""
    found: list[str] = []
    current = coroutine
    while current is not None:
        frame = (
            getattr(current, "cr_frame", None)
            or getattr(current, "gi_frame", None)
            or getattr(current, "ag_frame", None)
        )
        if frame is not None and _OURS.search(frame.f_code.co_filename):
            found.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}:{frame.f_lineno}")
        current = (
            getattr(current, "cr_await", None)
            or getattr(current, "gi_yieldfrom", None)
            or getattr(current, "ag_await", None)
        )
    return ">".join(found) or "library"


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
    watch = _watch.get()
    if watch is not None and asyncio.iscoroutine(coroutine):
        return asyncio.Task(_step(coroutine, watch), loop=loop, **more)
    return asyncio.Task(coroutine, loop=loop, **more)


async def _step(coroutine: Coroutine[Any, Any, Any], watch: Watch) -> Any:
    return await _Stepped(coroutine, watch)


_handle = App.handle


async def _watched(self: App, call: Any) -> Any:
    wish = call.request.headers.get("X-Crash")
    if wish is None:
        return await _handle(self, call)
    watch = Watch(wish)
    token = _watch.set(watch)
    try:
        answer = await _step(_handle(self, call), watch)
    finally:
        _watch.reset(token)
    watch.suspended(END)
    answer.headers["X-Awaits"] = " ".join(
        f"{place}#{count}" for place, count in collections.Counter(watch.seen).items()
    )
    return answer


async def _serve() -> None:
    asyncio.get_running_loop().set_task_factory(_make_task)
    settings, web_settings = load(RegistrySettings), load(WebSettings)
    async with open_registry(
        settings, web_settings=web_settings, database=load(DatabaseSettings), s3=load(S3Settings)
    ) as service:
        await until_told_to_stop(service, web_settings)


def main() -> int:
    """Fork registries until one ends otherwise than by its own hand, or we are told to stop."""
    App.handle = _watched  # type: ignore[method-assign]
    # Read once for all children: it takes longer than all else that a start needs.
    session = store._prepare_session()
    store._prepare_session = lambda: session
    logs.configure("info")
    child = 0

    def told(number: int, _: object) -> None:
        if child:
            os.kill(child, number)
            os.waitpid(child, 0)
        os._exit(0)

    signal.signal(signal.SIGTERM, told)
    while True:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            uvloop.run(_serve())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            return 1


if __name__ == "__main__":
    sys.exit(main())
