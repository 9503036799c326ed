"""Whether a service may be sent requests: named checks, run together, asked at most every few seconds however many probes come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from entrepot.errors import EntrepotError
from entrepot.web.settings import WebSettings

__all__ = ["Check", "NotReady", "Readiness"]

Check = Callable[[], Awaitable[None]]
"""Returns when all is well, otherwise raises an EntrepotError, OSError or TimeoutError."""


class NotReady(EntrepotError):
    """A check's own way to say why not."""

    default_reason = "NotReady"


class Readiness:
    """The checks of a service and their last results."""

    def __init__(self, checks: Mapping[str, Check], *, settings: WebSettings) -> None:
        self._checks = dict(checks)
        self._interval = settings.readiness_interval.total_seconds()
        self._timeout = settings.readiness_timeout.total_seconds()
        self._lock = asyncio.Lock()
        self._asked_at = -1e9
        self._problems: dict[str, str] = {}
        self.draining = False

    async def problems(self) -> dict[str, str]:
        """What is wrong, by the name of the check; empty when ready."""
        if self.draining:
            return {"drain": "the process is about to end"}
        async with self._lock:
            if time.monotonic() - self._asked_at >= self._interval:
                results = await asyncio.gather(*(self._ask(check) for check in self._checks.values()))
                self._problems = {
                    name: text for name, text in zip(self._checks, results, strict=True) if text is not None
                }
                self._asked_at = time.monotonic()
        return self._problems

    async def _ask(self, check: Check) -> str | None:
        try:
            async with asyncio.timeout(self._timeout):
                await check()
        except TimeoutError:
            return f"no answer within {self._timeout:g} s"
        except (EntrepotError, OSError) as error:
            return (str(error) or type(error).__name__).splitlines()[0]
        return None
