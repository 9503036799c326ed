"""What the token service is configured by, besides DatabaseSettings and WebSettings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from entrepot.settings import SettingInvalid, Settings

__all__ = ["TokenSettings"]

_ALGORITHMS = ("ES256", "RS256", "PS256")
_SHORTEST = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class TokenSettings(Settings):
    """The token service's own settings."""

    signing_key_dir: Path
    """Directory of private keys in PEM, file name without its end = key id; the lexically last one that is not new signs, all are published."""

    port: int = 5001
    """Where tokens and keys are served."""

    metrics_port: int = 9090
    """Where /metrics, /healthz and /readyz are served."""

    log_level: str = "info"
    """debug, info, warning or error."""

    service_id: str = "entrepot"
    """`service` that clients must name, audience and issuer of tokens; the same in the registry."""

    token_algorithm: str = "ES256"  # noqa: S105 - an algorithm's name
    """ES256 with EC P-256 keys; RS256 or PS256 with RSA keys of at least 2048 bits."""

    token_lifetime: timedelta = timedelta(seconds=300)
    """How long a token is valid; at least 60s. A right that is taken away ends after this time at the latest."""

    max_scopes: int = 32
    """Resources a request may name."""

    lookup_timeout: timedelta = timedelta(seconds=5)
    """How long PostgreSQL may take before the client is told to try again."""

    keys_interval: timedelta = timedelta(seconds=5)
    """How often the directory is looked at for changes."""

    key_delay: timedelta = timedelta(minutes=3)
    """How long a new key is only published, until every replica has it, before it signs."""

    def __post_init__(self) -> None:
        if self.token_algorithm not in _ALGORITHMS:
            raise SettingInvalid(
                f"{self.prefix}TOKEN_ALGORITHM takes {', '.join(_ALGORITHMS)}, not {self.token_algorithm!r}"
            )
        if self.token_lifetime < _SHORTEST:
            # Clients take 60 s for granted where they are told less (CNCF distribution, token specification).
            raise SettingInvalid(f"{self.prefix}TOKEN_LIFETIME must be at least 60s")
        if not 1 <= self.max_scopes <= 64:
            raise SettingInvalid(f"{self.prefix}MAX_SCOPES must be between 1 and 64")
        if not self.keys_interval:
            raise SettingInvalid(f"{self.prefix}KEYS_INTERVAL must be more than 0")
