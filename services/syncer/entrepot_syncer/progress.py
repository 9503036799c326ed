"""The counts of a run, as they grow."""

from __future__ import annotations

from dataclasses import dataclass

from entrepot.db.syncer import RunProgress

__all__ = ["Progress"]


@dataclass(slots=True)
class Progress:
    """Counted wherever something happens, read once a second by the lease."""

    phase: str = "Listing"
    tags_done: int = 0
    tags_total: int = 0
    manifests_done: int = 0
    manifests_total: int = 0
    blobs_done: int = 0
    blobs_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_transferred: int = 0
    """Bytes that really came over the wire, those of earlier attempts included."""

    def snapshot(self) -> RunProgress:
        return RunProgress(**{name: getattr(self, name) for name in RunProgress.__slots__})
