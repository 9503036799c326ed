"""Bounds on what an upstream may make us do, and where it may send us."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

from entrepot.settings import SettingInvalid, Settings

__all__ = ["UpstreamSettings"]


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings(Settings):
    """What holds for every upstream; what differs between them stands in the Remote."""

    prefix: ClassVar[str] = "ENTREPOT_UPSTREAM_"

    denied_cidrs: tuple[str, ...] = ()
    """Networks that no upstream, realm or redirect may lead to, beside those that never are (`addresses.denial`)."""

    denied_hosts: tuple[str, ...] = ()
    """Names that no upstream may lead to either, by whatever address: the release's own Services."""

    allow_loopback: bool = False
    """Whether addresses of this very machine may be upstreams; for tests and trials only."""

    trusted_realms: tuple[str, ...] = ()
    """Further hosts that credentials may be sent to, over https, when a challenge names them as the realm."""

    max_tags: int = 200_000
    """Tags a listing may have."""

    max_pages: int = 20_000
    """Pages a listing may have."""

    max_page_bytes: int = 8 * 1024 * 1024
    """Bytes a page of a listing may have."""

    max_redirects: int = 5
    """Redirects that are followed for one request."""

    max_retry_after: timedelta = timedelta(minutes=5)
    """The longest pause that an upstream's Retry-After is waited for; a longer one ends the run, with that wish in its message."""

    max_backoff: timedelta = timedelta(seconds=30)
    """The longest pause between two attempts of a request when the upstream names none."""

    give_up_after: int = 10
    """Requests in a row that failed in spite of their retries, after which an upstream counts as away for the rest of the run."""

    min_rate: int = 1024
    """Bytes a second that an upstream must send of a blob while it is waited for; slower ones are broken off and tried again. 0: any."""

    min_rate_window: timedelta = timedelta(minutes=5)
    """How long an upstream may be slower than that."""

    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        if self.min_rate < 0 or not self.min_rate_window:
            raise SettingInvalid(
                f"{self.prefix}MIN_RATE must be at least 0, and {self.prefix}MIN_RATE_WINDOW more than 0"
            )
        try:
            networks = tuple(ipaddress.ip_network(text) for text in self.denied_cidrs)
        except ValueError as error:
            raise SettingInvalid(f"{self.prefix}DENIED_CIDRS must be networks such as 10.96.0.0/12: {error}") from error
        object.__setattr__(self, "networks", networks)
