"""Many small writes become few statements.

A sync of a thousand blobs makes a thousand small facts, each of which would be a round trip and a flush of PostgreSQL's log. Whoever has
one hands it in and waits; what came together goes together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import asyncpg

__all__ = ["Batcher"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """`write` gets at most `limit` items and gives a result for each, in order. One batch is written at a time."""

    def __init__(
        self, write: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]], *, limit: int, linger: float
    ) -> None:
        self._write = write
        self._limit = limit
        self._linger = linger
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Hand in an item; returns when it is written, or raises what its batch raised."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= self._limit:
            self._full.set()
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await future

    async def close(self) -> None:
        """Stop. Whoever still waits is cancelled as well."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for _, future in self._waiting:
            future.cancel()

    async def _drain(self) -> None:
        while self._waiting:
            if len(self._waiting) < self._limit and self._linger:
                self._full.clear()
                try:
                    async with asyncio.timeout(self._linger):
                        await self._full.wait()
                except TimeoutError:
                    pass
            batch, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
            await self._flush(batch)
        self._task = None

    async def _flush(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._write([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except asyncpg.PostgresError as error:
            # One item that PostgreSQL does not take must not spoil the others: look for it.
            if len(batch) > 1:
                await self._flush(batch[: len(batch) // 2])
                await self._flush(batch[len(batch) // 2 :])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
        except Exception as error:  # noqa: BLE001 # handed to everybody who waits for it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
