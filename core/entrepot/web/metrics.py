"""The Prometheus metrics that every part and every web service has. Labels are route templates: a raw path would make a series a name."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

__all__ = ["PartMetrics", "WebMetrics"]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class PartMetrics:
    """Metrics named `entrepot_<part>_…`, in a registry of their own, so that a process may hold several services."""

    def __init__(self, part: str) -> None:
        self.prefix = f"entrepot_{part}_"
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.failing_checks = self.gauge("check_failing", "1 while a check of what lies behind fails.", "check")

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """A new counter of this service."""
        return Counter(self.prefix + name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """A new gauge of this service; with several workers, the sum of those that live."""
        return Gauge(self.prefix + name, text, labels, registry=self.registry, multiprocess_mode="livesum")

    def histogram(self, name: str, text: str, *labels: str) -> Histogram:
        """A new histogram of this service, in seconds."""
        return Histogram(self.prefix + name, text, labels, buckets=_SECONDS, registry=self.registry)


class WebMetrics(PartMetrics):
    """And those of who answers requests."""

    def __init__(self, part: str) -> None:
        super().__init__(part)
        self._requests = self.counter("requests", "Requests answered.", "route", "method", "code")
        self._seconds = self.histogram(
            "request_seconds", "Time from the request's head to the last byte of the answer.", "route", "method"
        )
        self._bytes = self.counter("response_bytes", "Bytes of answers' bodies.", "route")
        self._received = self.counter("request_bytes", "Bytes of requests' bodies.", "route")
        self.in_flight = self.gauge("requests_in_flight", "Requests being answered.")
        self.refused = self.counter("requests_refused", "Requests refused because too many were being answered.")
        self.broken = self.counter("responses_broken", "Answers broken off after they had begun.", "reason")
        self.dropped = self.counter("connections_dropped", "Connections closed because of their client.", "reason")
        # Children by their labels: asking the library for one takes as long as encoding a small answer.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram, Counter, Counter]] = {}

    def observe(self, route: str, method: str, code: int, *, seconds: float, sent: int, received: int) -> None:
        """Count a request that was answered."""
        key = (route, method if method in _METHODS else "OTHER", code)
        children = self._children.get(key)
        if children is None:
            children = (
                self._requests.labels(key[0], key[1], str(code)),
                self._seconds.labels(key[0], key[1]),
                self._bytes.labels(key[0]),
                self._received.labels(key[0]),
            )
            self._children[key] = children
        requests, histogram, transferred, taken = children
        requests.inc()
        histogram.observe(seconds)
        transferred.inc(sent)
        if received:
            taken.inc(received)
