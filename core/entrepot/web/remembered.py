"""Answers of somebody else, kept for a while: of the API server about a right, of bcrypt about a password, of the token service about a login.

Whoever asks what is just being asked waits for the same answer, so that a client's many connections cost one question. A failure is not an
answer: it goes to those who wait, and the next one asks anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from cachetools import TLRUCache

__all__ = ["Remembered"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """At most `size` answers, each for as many seconds as `lifetime` says of it. What is under way is bounded by the requests that wait."""

    def __init__(self, *, size: int, lifetime: Callable[[V], float]) -> None:
        self._kept: TLRUCache[K, V] = TLRUCache(
            size, ttu=lambda _key, value, now: now + lifetime(value), timer=time.monotonic
        )
        self._asking: dict[K, asyncio.Task[V]] = {}

    def known(self, key: K) -> V | None:
        """The answer, if it is kept."""
        return self._kept.get(key)

    async def get(self, key: K, ask: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """The answer kept, or what `ask` gives; raises what it raises."""
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(ask())
            task.add_done_callback(lambda done: self._note(key, done))
        # Shielded: who has come second must not lose the answer because the first has gone.
        return await asyncio.shield(task)

    def _note(self, key: K, done: asyncio.Task[V]) -> None:
        del self._asking[key]
        if not done.cancelled() and done.exception() is None:
            self._kept[key] = done.result()
