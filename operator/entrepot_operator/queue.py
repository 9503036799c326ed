"""Which resource is worked on next: a queue of keys, where each key is worked on by one worker at a time.

`Backlog` is the rules, without clock and without waiting, as the queue of Kubernetes' own controllers has them: a key that is added twice is
worked on once; one that is added while it is worked on is worked on again afterwards; one can be added for later; failures grow a pause.
`WorkQueue` puts it into an event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from datetime import timedelta
from typing import Generic, TypeVar

__all__ = ["Backlog", "WorkQueue"]

K = TypeVar("K", bound=Hashable)


class Backlog(Generic[K]):
    """The keys that wait, by the rules above. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._ready: OrderedDict[K, None] = OrderedDict()
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def active(self) -> int:
        """Keys that are worked on."""
        return len(self._active)

    @property
    def delayed(self) -> int:
        """Keys that wait for their time."""
        return len(self._due)

    def add(self, key: K) -> None:
        """Have a key worked on as soon as possible."""
        self._due.pop(key, None)
        if key in self._active:
            self._again.add(key)
        else:
            self._ready.setdefault(key)

    def add_at(self, key: K, when: float) -> None:
        """Have a key worked on at a time; of several times the earliest counts."""
        if key in self._ready or when >= self._due.get(key, float("inf")):
            return
        self._due[key] = when
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, key))
        if len(self._heap) > 64 + 4 * len(self._due):
            # Times that were replaced by others leave entries behind; not more than a few times as many as there are keys.
            self._heap = [(due, number, key) for number, (key, due) in enumerate(self._due.items())]
            self._sequence = len(self._heap)
            heapq.heapify(self._heap)

    def next_time(self) -> float | None:
        """When the next delayed key is due."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def promote(self, now: float) -> None:
        """Let the keys whose time has come be worked on."""
        while (when := self.next_time()) is not None and when <= now:
            self.add(heapq.heappop(self._heap)[2])

    def take(self) -> K | None:
        """The next key to work on, if any; `done` must follow."""
        if not self._ready:
            return None
        key, _ = self._ready.popitem(last=False)
        self._active.add(key)
        return key

    def done(self, key: K) -> None:
        """A key has been worked on."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)


class WorkQueue(Generic[K]):
    """A `Backlog` in the event loop, with workers and a pause that grows with each failure of a key."""

    def __init__(self, *, initial: timedelta, maximum: timedelta, clock: Callable[[], float] | None = None) -> None:
        self._backlog: Backlog[K] = Backlog()
        self._failures: dict[K, int] = {}
        self._initial = initial.total_seconds()
        self._maximum = maximum.total_seconds()
        self._clock = clock or asyncio.get_running_loop().time
        self._wake = asyncio.Event()
        self.heartbeat = self._clock()
        """When the queue last looked after its delayed keys."""

    def __len__(self) -> int:
        return len(self._backlog)

    @property
    def active(self) -> int:
        """Keys that are worked on."""
        return self._backlog.active

    @property
    def delayed(self) -> int:
        """Keys that wait for their time."""
        return self._backlog.delayed

    def add(self, key: K) -> None:
        """Have a key worked on as soon as possible."""
        self._backlog.add(key)
        self._wake.set()

    def add_after(self, key: K, delay: timedelta) -> None:
        """Have a key worked on later, unless it is to be earlier anyway."""
        self._backlog.add_at(key, self._clock() + max(0.0, delay.total_seconds()))
        self._wake.set()

    def backoff(self, key: K) -> timedelta:
        """The pause after one more failure of a key: it doubles, up to a maximum, less up to a half by chance."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        longest = min(self._maximum, self._initial * 2.0 ** min(failures - 1, 32))
        return timedelta(seconds=longest * random.uniform(0.5, 1))  # noqa: S311 - spreads load, keeps no secret

    def forget(self, key: K) -> None:
        """A key has succeeded: its next failure is its first again."""
        self._failures.pop(key, None)

    async def run(self, work: Callable[[K], Awaitable[None]], *, workers: int) -> None:
        """Work until cancelled. `work` must not raise; what it raises ends the whole queue, so that nothing fails unseen."""
        slots = asyncio.Semaphore(workers)
        async with asyncio.TaskGroup() as group:
            while True:
                await slots.acquire()
                key = await self._next()
                group.create_task(self._one(key, work, slots), name=f"work on {key}")

    async def _one(self, key: K, work: Callable[[K], Awaitable[None]], slots: asyncio.Semaphore) -> None:
        try:
            await work(key)
        finally:
            self._backlog.done(key)
            slots.release()
            self._wake.set()

    async def _next(self) -> K:
        while True:
            self.heartbeat = now = self._clock()
            self._backlog.promote(now)
            key = self._backlog.take()
            if key is not None:
                return key
            when = self._backlog.next_time()
            # At least every few seconds, for the heartbeat.
            pause = 5.0 if when is None else min(5.0, max(0.0, when - now))
            self._wake.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue
