"""Settings of the set-up."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from entrepot.settings import Settings

__all__ = ["AdminSettings", "InstallSettings", "SetupSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetupSettings(Settings):
    """What both commands read."""

    log_level: str = "info"
    """debug, info, warning or error."""

    setup_timeout: timedelta = timedelta(minutes=5)
    """How long PostgreSQL and S3 are waited for before the command fails (and is started again by Kubernetes)."""

    termination_log: Path = Path("/dev/termination-log")
    """Where the reason of a failure is written for `kubectl describe pod`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstallSettings(Settings):
    """What `install` reads besides."""

    namespace: str
    """The release's namespace."""

    release: str
    """The release's name."""

    crd_dir: Path = Path("/usr/share/entrepot/crds")
    """The directory of CustomResourceDefinitions to apply."""

    database_secret: str
    """Name of the Secret with one password a PostgreSQL role."""

    storage_secret: str
    """Name of the Secret with the S3 keys."""

    signing_keys_secret: str
    """Name of the Secret with the token service's private keys."""

    credentials_key_secret: str
    """Name of the Secret with the keys that seal upstream credentials."""

    users_secret: str = ""
    """Name of the Secret with the registry's users (`htpasswd`) and the password of `admin`; empty: it is not made, as somebody else keeps it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdminSettings(Settings):
    """How to make the owner and the database, where the PostgreSQL server is the chart's own."""

    prefix: ClassVar[str] = "ENTREPOT_DATABASE_"

    admin_dsn: str = ""
    """`postgresql://user@host:port/database` of a superuser; empty: the owner and the database are there already."""
