"""What the keeper is configured by, besides DatabaseSettings, S3Settings and WebSettings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from entrepot.settings import SettingInvalid, Settings

__all__ = ["KeeperSettings"]

_MOST_KEYS = 1000
"""S3: keys that one request may name."""


@dataclass(frozen=True, kw_only=True)
class KeeperSettings(Settings):
    """The keeper's own settings."""

    metrics_port: int = 9090
    """Where /metrics, /healthz and /readyz are served."""

    log_level: str = "info"
    """debug, info, warning or error."""

    round_interval: timedelta = timedelta(seconds=60)
    """How long it rests between two rounds."""

    standby_interval: timedelta = timedelta(seconds=5)
    """How often one that stands by looks whether it may take over."""

    retry_limit: timedelta = timedelta(seconds=60)
    """How long it waits at most after a round that failed; less after the first ones."""

    upload_expiry: timedelta = timedelta(hours=24)
    """How long an upload may be left alone before it is ended."""

    reservation_expiry: timedelta = timedelta(hours=48)
    """How old an object may be that a registry has begun and no blob points at; longer than any push takes."""

    removal_delay: timedelta = timedelta(minutes=15)
    """How long after it was given up an object is removed; longer than a request to S3 that may still be writing it."""

    batch: int = 500
    """Uploads or objects of one statement, and of one request to S3; at most 1000."""

    batches: int = 20
    """Batches of one step in a round; what is left over waits for the next."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= _MOST_KEYS:
            raise SettingInvalid(f"{self.prefix}BATCH must be between 1 and {_MOST_KEYS}, not {self.batch}")
        if self.batches < 1:
            raise SettingInvalid(f"{self.prefix}BATCHES must be at least 1")
        for name in ("round_interval", "standby_interval", "retry_limit"):
            if not getattr(self, name):
                raise SettingInvalid(f"{self.prefix}{name.upper()} must be more than 0")
