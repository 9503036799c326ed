"""What Prometheus may know. Names and labels are documented in docs/operator.md; a test compares."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "COMPARISONS",
    "COMPARISON_AGE",
    "DATABASE_UP",
    "EVENTS",
    "OBJECTS",
    "QUEUE_ACTIVE",
    "QUEUE_DELAYED",
    "QUEUE_DEPTH",
    "RECONCILE_SECONDS",
    "STATUS_WRITES",
    "SYNC_RUNS",
    "VANISHED_DISTRIBUTIONS",
    "WATCH_ALIVE",
]

QUEUE_DEPTH: Final = Gauge("entrepot_operator_queue_depth", "Resources that wait to be looked at now.")
QUEUE_DELAYED: Final = Gauge("entrepot_operator_queue_delayed", "Resources that wait for their time.")
QUEUE_ACTIVE: Final = Gauge("entrepot_operator_queue_active", "Resources that are looked at now.")
RECONCILE_SECONDS: Final = Histogram(
    "entrepot_operator_reconcile_seconds",
    "Duration of one look at a resource.",
    ["kind", "outcome"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
OBJECTS: Final = Gauge(
    "entrepot_operator_objects", "Resources by kind and the status of their condition Ready.", ["kind", "ready"]
)
STATUS_WRITES: Final = Counter("entrepot_operator_status_writes", "Statuses that were written.", ["kind"])
EVENTS: Final = Counter("entrepot_operator_events", "Events that were recorded.", ["type", "reason"])
SYNC_RUNS: Final = Counter("entrepot_operator_sync_runs", "Sync runs that were seen to end.", ["outcome"])
COMPARISONS: Final = Counter("entrepot_operator_comparisons", "Comparisons of all resources by LIST.", ["outcome"])
COMPARISON_AGE: Final = Gauge(
    "entrepot_operator_last_comparison_seconds", "Seconds since the last comparison that succeeded."
)
VANISHED_DISTRIBUTIONS: Final = Gauge(
    "entrepot_operator_vanished_distributions",
    "Distributions that are served, but whose resource is gone without having been deleted.",
)
WATCH_ALIVE: Final = Gauge(
    "entrepot_operator_watch_alive", "1 while the watch of a kind tells what comparisons see.", ["kind"]
)
DATABASE_UP: Final = Gauge("entrepot_operator_database_up", "1 while PostgreSQL answers.")
