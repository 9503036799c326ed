"""What the operator takes from its environment."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from entrepot.content.durations import MAX_DURATION
from entrepot.settings import SettingInvalid, Settings

__all__ = ["JobSettings", "OperatorSettings", "RemoteDefaults", "TuningSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorSettings(Settings):
    """Where it runs and what it is given."""

    namespace: str
    """The release's namespace; sync Jobs run in it."""

    release: str
    """The release's name, a label of the Jobs."""

    external_urls: tuple[str, ...]
    """Addresses of the registry, comma-separated; the first one is shown in `status.registryPath`."""

    syncer_job_template: Path
    """A YAML file with the pod template of sync Jobs."""

    credentials_key_dir: Path
    """Directory of the keys that upstream credentials are encrypted with; the lexically last name encrypts."""

    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""

    metrics_port: int = 9090
    """Port of `/metrics`, `/healthz` and `/readyz`."""

    def __post_init__(self) -> None:
        for url in self.external_urls:
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path not in {"", "/"}:
                raise SettingInvalid(f"ENTREPOT_EXTERNAL_URLS holds {url!r}; an address is http(s)://host[:port]")

    @property
    def registry_host(self) -> str:
        """Host, and port if any, as it stands before a path in an image's name."""
        return urlsplit(self.external_urls[0]).netloc


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningSettings(Settings):
    """How it works; the defaults fit a cluster with some thousand resources."""

    prefix: ClassVar[str] = "ENTREPOT_OPERATOR_"

    concurrency: int = 8
    """Resources that are worked on at once."""

    reconcile_timeout: timedelta = timedelta(seconds=60)
    """How long one look at a resource may take before it is given up and tried again."""

    comparison_interval: timedelta = timedelta(minutes=5)
    """Time between two comparisons of all resources with what the watches told; all of them are looked at again then."""

    poll_interval: timedelta = timedelta(seconds=2)
    """Time between two looks at PostgreSQL for new versions, and at a run that is under way."""

    backoff_initial: timedelta = timedelta(seconds=1)
    """First pause after a failure; it doubles with each."""

    backoff_maximum: timedelta = timedelta(minutes=5)
    """Longest pause after failures."""

    secret_interval: timedelta = timedelta(seconds=30)
    """Time between two looks for a Secret that is missing or wrong."""

    watch_grace: timedelta = timedelta(seconds=60)
    """How long a watch may take to tell what a comparison saw before it counts as dead and `/healthz` fails."""

    deletion_grace: timedelta = timedelta(hours=168)
    """How long the content of a deleted Repository is kept."""

    path_reservation: timedelta = timedelta(hours=168)
    """How long a released base path stays reserved to its namespace."""

    version_window: int = 10
    """How many of a Repository's newest versions have a RepositoryVersion."""

    maximum_runs: int = 20
    """Sync runs under way at once, over all Repositories; others wait."""

    run_history: int = 100
    """Finished runs of a Repository that are kept in PostgreSQL; the last good one stays in any case."""

    retry_initial: timedelta = timedelta(seconds=30)
    """Pause before a run that failed is repeated; it doubles with each failure."""

    retry_maximum: timedelta = timedelta(minutes=15)
    """Longest pause before a run that failed is repeated."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "version_window", "maximum_runs", "run_history"):
            if getattr(self, name) < 1:
                raise SettingInvalid(f"{self.prefix}{name.upper()} must be 1 or more")
        for name in ("poll_interval", "comparison_interval", "backoff_initial", "retry_initial", "secret_interval"):
            if not timedelta(milliseconds=100) <= getattr(self, name) <= MAX_DURATION:
                raise SettingInvalid(f"{self.prefix}{name.upper()} must be 100ms or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings(Settings):
    """The Jobs that sync runs are done in."""

    prefix: ClassVar[str] = "ENTREPOT_JOB_"

    backoff_limit: int = 6
    """Pods of one Job that may fail before the run counts as failed; each goes on where the one before was."""

    active_deadline: timedelta = timedelta(hours=24)
    """How long a Job may take in all."""

    start_deadline: timedelta = timedelta(minutes=10)
    """How long a Job's first pod may take to start (image pull, scheduling) before the run counts as failed."""

    heartbeat_deadline: timedelta = timedelta(minutes=15)
    """How long a run that has begun may give no sign of life, as on a lost node, before its Job is deleted and it counts as failed. Well above
    `ENTREPOT_SYNCER_OUTAGE`, during which a syncer without PostgreSQL cannot give any."""

    ttl_after_finished: timedelta = timedelta(hours=1)
    """How long a finished Job and its log are kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteDefaults(Settings):
    """What applies where a Remote's spec is silent."""

    prefix: ClassVar[str] = "ENTREPOT_REMOTE_"

    download_concurrency: int = 20
    """`downloadConcurrency`."""

    max_retries: int = 3
    """`maxRetries`."""

    connect_timeout: timedelta = timedelta(seconds=10)
    """`timeouts.connect`."""

    read_timeout: timedelta = timedelta(seconds=60)
    """`timeouts.read`."""
