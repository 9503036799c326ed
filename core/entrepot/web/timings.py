"""What the parts behind a service take: each statement and each call of S3, into the metrics and into the trace of the request.

`db.pool` and `blobs.store` know neither; they are given these methods to call.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Histogram

from entrepot.web.metrics import WebMetrics
from entrepot.web.traces import Traces

__all__ = ["Timings"]


class Timings:
    """Metrics named after the service that `metrics` is of. Names of statements and operations come from our code and are few."""

    def __init__(self, metrics: WebMetrics) -> None:
        self._statements = metrics.histogram("database_statement_seconds", "Time of statements.", "statement")
        self._statement_failures = metrics.counter("database_failures", "Statements that failed.", "statement")
        self._wait = metrics.histogram("database_pool_wait_seconds", "Time until the pool gave a connection.")
        self._calls = metrics.histogram(
            "storage_call_seconds", "Time of calls of S3, its retries included.", "operation"
        )
        self._call_failures = metrics.counter(
            "storage_failures", "Calls of S3 that failed after all retries.", "operation"
        )
        self.traces: Traces | None = None
        self._children: dict[tuple[str, str], tuple[Histogram, Counter]] = {}

    def statement(self, name: str, seconds: float, error: str | None) -> None:
        """A statement has ended."""
        self._note("postgresql", name, seconds=seconds, error=error)

    def storage(self, operation: str, seconds: float, error: str | None) -> None:
        """A call of S3 has ended, or has begun to give its body."""
        self._note("s3", operation, seconds=seconds, error=error)

    def lookup(self, name: str) -> Callable[[float], None] | None:
        """Who is to be told how long a lookup took that shared its statement with others, and so is no statement of its request's own.

        None without traces: the statement itself is counted anyway.
        """
        traces = self.traces
        if traces is None:
            return None
        return lambda seconds: traces.note("postgresql", name, seconds=seconds, error=None)

    def pool_wait(self, seconds: float) -> None:
        """The pool has given a connection."""
        self._wait.observe(seconds)

    def _note(self, system: str, name: str, *, seconds: float, error: str | None) -> None:
        children = self._children.get((system, name))
        if children is None:
            of_postgresql = system == "postgresql"
            histogram = self._statements if of_postgresql else self._calls
            failures = self._statement_failures if of_postgresql else self._call_failures
            children = self._children[system, name] = histogram.labels(name), failures.labels(name)
        children[0].observe(seconds)
        if error is not None:
            children[1].inc()
        if self.traces is not None:
            self.traces.note(system, name, seconds=seconds, error=error)
