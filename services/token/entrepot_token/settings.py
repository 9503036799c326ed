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

    htpasswd_file: Path | None = None
    """Users and bcrypt hashes, as Apache's htpasswd -B writes them; read again when it changes. Without it there are no users."""

    rights_file: Path | None = None
    """Rules in YAML in place of a cluster's RBAC, for tests; then no token of a cluster is taken."""

    files_interval: timedelta = timedelta(seconds=5)
    """How often these two files are looked at for changes."""

    password_cache: timedelta = timedelta(minutes=5)
    """How long a right password is not compared again; a changed line of the file ends it."""

    password_cache_size: int = 10_000
    """Right passwords remembered at most, by keyed hash."""

    login_concurrency: int = 2
    """Passwords compared at the same time, each by a thread that takes a processor for some 200 ms."""

    login_waiting: int = 64
    """Passwords that are compared or wait for it; one more gets 429."""

    login_failures: int = 10
    """Wrong passwords for one user name within the window below; after that, passwords not known to be right get 429."""

    login_window: timedelta = timedelta(minutes=1)
    """How long wrong passwords count against a user name."""

    kubeconfig: Path | None = None
    """How to reach the Kubernetes API; empty: as a pod, with its ServiceAccount. Where there is neither, RBAC grants nothing."""

    cluster_audience: str = ""
    """Audience that tokens of the cluster must have; empty: the service id."""

    review_cache: timedelta = timedelta(seconds=30)
    """How long an answer of the API server stands, about a token or a right."""

    review_cache_size: int = 20_000
    """Answers remembered at most, of each kind."""

    review_concurrency: int = 32
    """Questions to the API server at the same time."""

    review_timeout: timedelta = timedelta(seconds=5)
    """How long an answer may take before the client is told to try again."""

    catalog_namespaces: int = 500
    """Namespaces asked about for one catalog, in byte order; what is Private in later ones is listed only to those who may pull everywhere."""

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
        for name in ("keys_interval", "files_interval", "login_window", "review_timeout"):
            if not getattr(self, name):
                raise SettingInvalid(f"{self.prefix}{name.upper()} must be more than 0")
        for name in ("password_cache_size", "login_concurrency", "login_waiting", "login_failures", "review_cache_size",
                     "review_concurrency", "catalog_namespaces"):  # fmt: skip
            if getattr(self, name) < 1:
                raise SettingInvalid(f"{self.prefix}{name.upper()} must be at least 1")
