"""The registry's metrics, besides those of every web service."""

from __future__ import annotations

from entrepot.web.metrics import WebMetrics
from entrepot.web.timings import Timings

__all__ = ["RegistryMetrics"]


class RegistryMetrics(WebMetrics):
    """What tells whether requests are cheap: statements against questions, calls to S3, and what the caches spare."""

    def __init__(self) -> None:
        super().__init__("registry")
        self.statements = self.counter("database_statements", "Statements sent to PostgreSQL.", "statement")
        self.questions = self.counter("lookups", "Lookups answered; several may share a statement.", "statement")
        self.storage_reads = self.counter("storage_reads", "Objects asked of S3, by what came of it.", "outcome")
        self.storage_seconds = self.histogram("storage_first_byte_seconds", "Time until the first bytes of an object.")
        self.cache_hits = self.counter("cache_hits", "Answers out of a cache.", "cache")
        self.cache_misses = self.counter("cache_misses", "Answers that a cache should have had and did not.", "cache")
        self.cache_bytes = self.gauge("manifest_cache_bytes", "Bytes of manifests in the cache.")
        self.limited = self.counter("requests_limited", "Requests refused because their client makes too many.", "by")
        self.timings = Timings(self)
        self.uploads = self.gauge("uploads_in_progress", "Requests that are receiving a blob.")
        self.buffer_bytes = self.gauge("buffer_bytes", "Bytes held of the budget for buffers.")
        self.pushes = self.counter("pushes", "Pushes, by what was pushed and what came of it.", "what", "outcome")
        self.key_fetches = self.counter("key_fetches", "Readings of the token service's public keys.", "outcome")
        self.token_proxied = self.counter("token_requests", "Token requests passed on to the token service.", "outcome")
