"""The keeper's metrics. Documented in docs/keeper.md; a test compares."""

from __future__ import annotations

from entrepot.web.metrics import PartMetrics

__all__ = ["KeeperMetrics"]


class KeeperMetrics(PartMetrics):
    """What was done, what is left to do, and whether anybody does it."""

    def __init__(self) -> None:
        super().__init__("keeper")
        self.active = self.gauge("active", "1 while this process is the one that works, 0 while it stands by.")
        self.rounds = self.counter("rounds", "Rounds that came to their end.")
        self.round_seconds = self.histogram("round_seconds", "Duration of rounds that came to their end.")
        self.succeeded_at = self.gauge(
            "last_success_timestamp_seconds", "When the last round of this process came to its end."
        )
        self.failures = self.counter(
            "failures", "Rounds that were broken off, and objects that S3 did not remove.", "what"
        )
        self.uploads = self.counter("uploads_expired", "Uploads ended because nobody went on with them.")
        self.upload_bytes = self.counter("uploads_expired_bytes", "Bytes that those uploads had received.")
        self.abandoned = self.counter("objects_abandoned", "Objects found without anybody who would use them.")
        self.removed = self.counter("objects_removed", "Objects removed from S3, written or not.")
        self.waiting = self.gauge("objects_waiting", "Objects that wait to be removed, as of the last round.")
