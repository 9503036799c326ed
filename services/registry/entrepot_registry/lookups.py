"""Concurrent requests, one statement.

While a statement is under way, the requests that come in meanwhile collect, and all of them ask together as soon as a connection is free.
So a statement always begins after every request it answers: nobody is told something that was true only before he asked. The more
requests there are, the larger the batches and the less each costs; a single one waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import asyncpg

from entrepot.db.pool import Connection, Pool, translated
from entrepot.errors import DatabaseUnavailable, RegistryError
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.settings import RegistrySettings

__all__ = ["Batcher"]

_SESSION = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off"
"""One plan for many batches: planning takes longer than the lookup, and PostgreSQL would plan anew for each, since it thinks small arrays
better served by a plan of their own. And always by indexes, which cost little more while the tables are small."""

_PLAN_ANEW = "discard plans"
_PLAN_LIFE = 20.0
"""Seconds. A plan made while the tables were all but empty takes whichever index; PostgreSQL itself throws it away only with the next analyze."""

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(slots=True)
class _Session:
    """A connection, and when its plans were made."""

    connection: Connection
    planned_at: float


class Batcher(Generic[Q, A]):
    """Asks questions of one kind. `async with`, then `ask`.

    Each of its connections is kept, since taking one from the pool and giving it back costs a round trip more than the question.
    """

    def __init__(
        self, pool: Pool, name: str, find: Callable[[Connection, Sequence[Q]], Awaitable[Sequence[A]]], *,
        settings: RegistrySettings, metrics: RegistryMetrics, connections: int = 1, size: int | None = None,
    ) -> None:  # fmt: skip
        """`name` is the statement's, for metrics and traces; `size` the questions that share it at most, if fewer than others have."""
        self._pool = pool
        self._find = find
        self._connections = connections
        self._size = min(size or settings.lookup_batch, settings.lookup_batch)
        self._timeout = settings.lookup_timeout.total_seconds()
        self._statements = metrics.statements.labels(name)
        self._questions = metrics.questions.labels(name)
        self._trace = metrics.timings.lookup(name)
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._arrived = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Batcher[Q, A]:
        self._tasks = [asyncio.create_task(self._work(), name=f"lookups-{n}") for n in range(self._connections)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ask(self, question: Q) -> A:
        """The answer of the present. Raises `DatabaseUnavailable`, and RegistryError (503) when far too many ask."""
        if len(self._waiting) >= self._size * 16:
            raise RegistryError(
                503, "UNAVAILABLE", "too many lookups are waiting; try again", headers={"Retry-After": "1"}
            )
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        self._arrived.set()
        if self._trace is None:
            return await future
        started = time.perf_counter()
        try:
            return await future
        finally:
            self._trace(time.perf_counter() - started)

    def _take(self) -> list[tuple[Q, asyncio.Future[A]]]:
        """What waits, up to a batch, without those whose client is gone."""
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        while self._waiting and len(batch) < self._size:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        return batch

    async def _work(self) -> None:
        session: _Session | None = None
        try:
            while True:
                await self._arrived.wait()
                batch = self._take()
                if not self._waiting:
                    self._arrived.clear()
                if not batch:  # another connection took them
                    continue
                kept, session = session, None
                try:
                    session = await self._answer(kept, batch)
                except BaseException as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(_as_exception(error))
                    if not isinstance(error, Exception):
                        raise
        finally:
            if session is not None:
                await self._give_back(session.connection)

    async def _answer(self, kept: _Session | None, batch: list[tuple[Q, asyncio.Future[A]]]) -> _Session:
        """Ask, and once more on a new connection if the kept one turns out to be dead: reading twice does no harm.

        Gives the connection that is good, and none back to the caller when it raises.
        """
        questions = [question for question, _ in batch]
        self._questions.inc(len(batch))
        if kept is not None:
            now = time.monotonic()
            is_old = now - kept.planned_at > _PLAN_LIFE
            try:
                self._resolve(
                    batch, await self._ask_once(kept.connection, questions, first=_PLAN_ANEW if is_old else None)
                )
                return _Session(kept.connection, now) if is_old else kept
            except DatabaseUnavailable as error:
                await self._give_back(kept.connection)
                if isinstance(error.__cause__, TimeoutError):
                    raise  # it is not the connection that is at fault, and the client has waited long enough
            except BaseException:
                await self._give_back(kept.connection)
                raise
        with translated():
            async with asyncio.timeout(self._timeout):
                fresh = await self._pool.acquire()
        try:
            self._resolve(batch, await self._ask_once(fresh, questions, first=_SESSION))
        except BaseException:
            await self._give_back(fresh)
            raise
        return _Session(fresh, time.monotonic())

    async def _ask_once(self, connection: Connection, questions: Sequence[Q], *, first: str | None) -> Sequence[A]:
        self._statements.inc()
        with translated():
            async with asyncio.timeout(self._timeout):
                if first is not None:
                    await connection.execute(first)
                return await self._find(connection, questions)

    @staticmethod
    def _resolve(batch: list[tuple[Q, asyncio.Future[A]]], answers: Sequence[A]) -> None:
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    async def _give_back(self, connection: Connection) -> None:
        """Close it: what is wrong with a connection is not told apart from what is wrong with the database."""
        # One that was lost has left the pool by itself.
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.terminate()
        await self._pool.release(connection)  # type: ignore[arg-type]


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else DatabaseUnavailable("the process ends")
