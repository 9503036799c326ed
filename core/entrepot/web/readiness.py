"""Whether a service may be sent requests: named checks, run together, asked at most every few seconds however many probes come.

The checks are of what all replicas share: PostgreSQL, S3, the token service. Where one of these fails, unreadiness would take away all
replicas at once, and clients would see refused connections in place of the worded 503 that says when to try again. So checks decide
only until all have passed for the first time; from then on a failure is told, by metric, log and the probe's body, and readiness ends
with the process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

from entrepot.errors import EntrepotError
from entrepot.web.metrics import PartMetrics
from entrepot.web.settings import WebSettings

__all__ = ["Check", "NotReady", "Readiness"]

_log = structlog.get_logger("readiness")

Check = Callable[[], Awaitable[None]]
"""Returns when all is well, otherwise raises an EntrepotError, OSError or TimeoutError."""


class NotReady(EntrepotError):
    """A check's own way to say why not."""

    default_reason = "NotReady"


class Readiness:
    """The checks of a service and their last results."""

    def __init__(self, checks: Mapping[str, Check], *, settings: WebSettings, metrics: PartMetrics) -> None:
        self._checks = dict(checks)
        self._failing = metrics.failing_checks
        self._interval = settings.readiness_interval.total_seconds()
        self._timeout = settings.readiness_timeout.total_seconds()
        self._lock = asyncio.Lock()
        self._asked_at = -1e9
        self._problems: dict[str, str] = {}
        self._has_started = False
        self.draining = False

    @property
    def is_ready(self) -> bool:
        """As of the last look at the problems."""
        return self._has_started and not self.draining

    async def problems(self) -> dict[str, str]:
        """What is wrong, by the name of the check; empty when all is well."""
        if self.draining:
            return {"drain": "the process is about to end"}
        async with self._lock:
            if time.monotonic() - self._asked_at >= self._interval:
                results = await asyncio.gather(*(self._ask(check) for check in self._checks.values()))
                self._note(dict(zip(self._checks, results, strict=True)))
                self._asked_at = time.monotonic()
        return self._problems

    def _note(self, results: Mapping[str, str | None]) -> None:
        for name, text in results.items():
            self._failing.labels(name).set(text is not None)
            if text is not None and name not in self._problems:
                _log.warning("a check fails", check=name, problem=text)
            elif text is None and name in self._problems:
                _log.info("a check passes again", check=name)
        self._problems = {name: text for name, text in results.items() if text is not None}
        self._has_started = self._has_started or not self._problems

    async def _ask(self, check: Check) -> str | None:
        try:
            async with asyncio.timeout(self._timeout):
                await check()
        except TimeoutError:
            return f"no answer within {self._timeout:g} s"
        except (EntrepotError, OSError) as error:
            return (str(error) or type(error).__name__).splitlines()[0]
        return None
