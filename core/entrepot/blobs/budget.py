"""One budget of bytes for all buffers of a process, so that its memory does not depend on how much is under way.

Who needs room takes what one part needs, fills it, sends it and gives it back. Nobody waits for more while holding a part that only
somebody else's progress would free, so waiting in line is enough and there is no deadlock.

Who fills a part slowly holds it for long. So that nobody holds all of them, what is taken in somebody's name is bounded: up to half of the
budget as for everybody, more only as long as a quarter stays free for others. Whoever is alone loses no more than that quarter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

__all__ = ["ByteBudget"]


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    size: int
    holder: str | None
    turn: asyncio.Future[None]


class ByteBudget:
    """First come, first served: a large wish is not starved by small ones. Only who has more than a share is passed over."""

    def __init__(self, total: int) -> None:
        self.observer: Callable[[int], None] | None = None
        """Told how many bytes are held, whenever that changes."""
        self._total = total
        self._free = total
        self._held: Counter[str] = Counter()
        self._waiting: deque[_Wish] = deque()

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

    async def take(self, size: int, *, holder: str | None = None) -> None:
        """Wait until `size` bytes are free, and hold them, in the name of `holder` if there is one. Nothing never waits.

        More than the whole budget counts as the whole budget.
        """
        if not size:
            return
        wish = _Wish(min(size, self._total), holder, asyncio.get_running_loop().create_future())
        self._waiting.append(wish)
        self._serve()
        try:
            await wish.turn
        except asyncio.CancelledError:
            if wish.turn.done() and not wish.turn.cancelled():
                self.give(size, holder=holder)
            else:
                # Who gave something back since then has passed it over already.
                with contextlib.suppress(ValueError):
                    self._waiting.remove(wish)
                self._serve()
            raise

    def give(self, size: int, *, holder: str | None = None) -> None:
        """Give back what was taken."""
        size = min(size, self._total)
        self._free += size
        if holder is not None:
            self._held[holder] -= size
            if not self._held[holder]:
                del self._held[holder]
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
        beyond_share: deque[_Wish] = deque()
        while self._waiting:
            wish = self._waiting[0]
            if wish.turn.done():
                self._waiting.popleft()
            elif not self._is_within_share(wish):
                beyond_share.append(self._waiting.popleft())
            elif wish.size <= self._free:
                self._waiting.popleft()
                self._free -= wish.size
                if wish.holder is not None:
                    self._held[wish.holder] += wish.size
                wish.turn.set_result(None)
            else:
                break
        # They keep their place in the line.
        self._waiting.extendleft(reversed(beyond_share))
        self._tell()

    def _is_within_share(self, wish: _Wish) -> bool:
        held = self._held[wish.holder] if wish.holder is not None else 0
        return not held or held + wish.size <= self._total // 2 or self._free - wish.size >= self._total // 4

    def _tell(self) -> None:
        if self.observer is not None:
            self.observer(self._total - self._free)
