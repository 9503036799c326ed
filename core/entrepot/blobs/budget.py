"""One budget of bytes for all buffers of a process, so that its memory does not depend on how much is under way.

A holder takes what it needs for one part, fills it, sends it and gives it back. Nobody waits for more while holding a part that only
somebody else's progress would free, so waiting in line is enough and there is no deadlock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable

__all__ = ["ByteBudget"]


class ByteBudget:
    """First come, first served: a large wish is not starved by small ones."""

    def __init__(self, total: int) -> None:
        self.observer: Callable[[int], None] | None = None
        """Told how many bytes are held, whenever that changes."""
        self._total = total
        self._free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def total(self) -> int:
        """Bytes."""
        return self._total

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return self._free

    @property
    def is_short(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are free, and hold them. More than the whole budget counts as the whole budget."""
        size = min(size, self._total)
        if not self._waiting and size <= self._free:
            self._free -= size
            self._tell()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            else:
                # Who gave something back since then has passed it over already.
                with contextlib.suppress(ValueError):
                    self._waiting.remove((size, turn))
                self._serve()
            raise

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self._free += min(size, self._total)
        self._serve()

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes for the length of a block."""
        await self.take(size)
        try:
            yield
        finally:
            self.give(size)

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, turn = self._waiting.popleft()
            if turn.done():
                continue
            self._free -= size
            turn.set_result(None)
        self._tell()

    def _tell(self) -> None:
        if self.observer is not None:
            self.observer(self._total - self._free)
