"""Requests per subject: so many at once, and so many a second in the long run.

A token bucket, kept as one number for each subject: the time at which its bucket will be full again (known as the generic cell rate
algorithm). A request moves it on by 1/rate; one that would move it further ahead of now than the burst allows is refused, and the
difference is what `Retry-After` says. Clients that nobody has vouched for are counted by address, those on IPv6 by their /64, since that
is what one customer has.

Each process counts for itself: the rate is a guard against one client taking it all, not an account.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from prometheus_client import Counter

from entrepot.errors import RegistryError

__all__ = ["RateLimit"]


class RateLimit:
    """The table of who has asked how much. It holds a bounded number of subjects, the least recent of which makes room.

    `by_address`: whether addresses mean anything. Where no proxy tells them, a whole cluster may come from one, as nodes translate them.
    """

    def __init__(
        self,
        *,
        rate: float,
        burst: int,
        table: int,
        by_address: bool = True,
        refused: Counter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cost = 1 / rate
        # A hair more, since times are floats.
        self._ahead = (burst - 1) / rate + min(1e-6, 0.5 / rate)
        self._table = table
        self._by_address = by_address
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._refused = refused
        self._clock = clock

    def __len__(self) -> int:
        return len(self._full_at)

    def admit(self, subject: str | None, address: str | None) -> None:
        """Count a request of a subject, or of an address where nobody stands behind it. Raises RegistryError 429."""
        if not subject and not self._by_address:
            return
        key = f"subject {subject}" if subject else network_of(address or "")
        now = self._clock()
        full_at = max(self._full_at.get(key, now), now)
        if full_at - now > self._ahead:
            raise self._refusal(key, full_at - now - self._ahead)
        self._full_at[key] = full_at + self._cost
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._table:
            self._full_at.popitem(last=False)

    def check(self, address: str | None) -> None:
        """Raise as `admit` would for this address, and count nothing: for what is about to cost us something."""
        if not self._by_address:
            return
        key, now = network_of(address or ""), self._clock()
        ahead = self._full_at.get(key, now) - now
        if ahead > self._ahead:
            raise self._refusal(key, ahead - self._ahead)

    def _refusal(self, key: str, seconds: float) -> RegistryError:
        if self._refused is not None:
            self._refused.labels("subject" if key.startswith("subject ") else "address").inc()
        after = str(max(1, math.ceil(seconds)))
        return RegistryError(429, "TOOMANYREQUESTS", "too many requests; slow down", headers={"Retry-After": after})


@functools.lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What is counted for an address: itself, or for IPv6 its /64."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
