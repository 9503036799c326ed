"""Settings of the syncer alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from entrepot.settings import SettingInvalid, Settings

__all__ = ["DEFAULT_TERMINATION_LOG", "ProcessSettings", "SyncerSettings"]

DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last words by default."""


@dataclass(frozen=True, kw_only=True)
class ProcessSettings(Settings):
    """What the syncer shares with other parts by name."""

    credentials_key_dir: Path | None = None
    """Directory of the keys that upstream credentials are encrypted with; needed for Remotes that have any."""

    termination_log: Path = DEFAULT_TERMINATION_LOG
    """File that the outcome is written to, as JSON."""

    log_level: str = "info"
    """debug, info, warning or error."""

    def __post_init__(self) -> None:
        if self.log_level not in {"debug", "info", "warning", "error"}:
            raise SettingInvalid(
                f"{self.prefix}LOG_LEVEL must be debug, info, warning or error, not {self.log_level!r}"
            )


@dataclass(frozen=True, kw_only=True)
class SyncerSettings(Settings):
    """Bounds of a run."""

    prefix: ClassVar[str] = "ENTREPOT_SYNCER_"

    outage: timedelta = timedelta(minutes=2)
    """How long PostgreSQL or S3 may be away before the process ends and leaves the run to another attempt."""

    lock_wait: timedelta = timedelta(seconds=10)
    """How long to wait for an earlier process of the same run to be gone."""

    manifest_budget: int = 16 * 1024 * 1024
    """Bytes of manifests that are held in memory at a time."""

    max_manifests: int = 500_000
    """Manifests a run may fetch."""

    max_depth: int = 8
    """How deep an index may list indexes."""

    progress_interval: timedelta = timedelta(seconds=1)
    """How often progress is written."""

    linger: timedelta = timedelta(milliseconds=40)
    """How long a write waits for others, to go with them in one transaction."""
