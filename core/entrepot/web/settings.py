"""Limits and times of a web service's listener."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from entrepot.settings import SettingInvalid, Settings
from entrepot.web.proxies import Proxies

__all__ = ["WebSettings"]


@dataclass(frozen=True, kw_only=True)
class WebSettings(Settings):
    """How a web service listens, and what it bears."""

    prefix: ClassVar[str] = "ENTREPOT_HTTP_"

    host: str = ""
    """The address to listen on; empty: all, IPv4 and IPv6."""

    max_requests: int = 512
    """Requests answered at the same time; one more gets 503 with Retry-After."""

    max_connections: int = 4096
    """Open connections; one more is closed at once."""

    max_header: int = 8190
    """Bytes of the request line, and of each header."""

    max_headers: int = 64
    """Headers of a request."""

    idle_timeout: timedelta = timedelta(seconds=75)
    """How long a connection may be without a complete request, between two and before the first."""

    head_timeout: timedelta = timedelta(seconds=15)
    """How long the head of a request may take from its first byte to its last."""

    write_timeout: timedelta = timedelta(seconds=60)
    """How long a client may take no byte of an answer before it is dropped."""

    drain_delay: timedelta = timedelta(seconds=5)
    """After SIGTERM: unready, but still accepting, while load balancers learn of it."""

    drain_timeout: timedelta = timedelta(seconds=120)
    """After the delay: how long requests under way may take to finish."""

    readiness_interval: timedelta = timedelta(seconds=3)
    """How long the result of the readiness checks stands."""

    readiness_timeout: timedelta = timedelta(seconds=2)
    """How long one readiness check may take."""

    trusted_proxies: tuple[str, ...] = ()
    """Networks (10.0.0.0/8) whose X-Forwarded-For is believed: the client's address is the last one in it that is not theirs. Their
    X-Forwarded-Proto says whether a password came by TLS."""

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_connections", "max_headers"):
            if getattr(self, name) < 1:
                raise SettingInvalid(f"{self.prefix}{name.upper()} must be at least 1")
        if not 1024 <= self.max_header <= 64 * 1024:
            raise SettingInvalid(f"{self.prefix}MAX_HEADER must be between 1024 and 65536 bytes, not {self.max_header}")
        for name in ("idle_timeout", "head_timeout", "write_timeout", "readiness_timeout"):
            if not getattr(self, name):
                raise SettingInvalid(f"{self.prefix}{name.upper()} must be more than 0")
        try:
            Proxies(self.trusted_proxies)
        except ValueError as error:
            raise SettingInvalid(f"{self.prefix}TRUSTED_PROXIES: {error}") from error
