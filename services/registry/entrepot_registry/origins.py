"""The addresses the registry is reached at.

A challenge names the place a client sends its password to. That place is an address from the settings: the one the client itself came to,
if it is listed, otherwise the first. Headers that a proxy may add are not looked at, since anybody may add them.
"""

from __future__ import annotations

from collections.abc import Sequence

from entrepot.oci.hosts import origin

__all__ = ["Origins"]


class Origins:
    """The listed addresses, by the Host header that leads to them."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._by_host: dict[str, str] = {}
        for url in urls:
            found = origin(url)
            host = f"[{found.host}]" if ":" in found.host else found.host
            for spelling in (found.authority, f"{host}:{found.port}"):
                self._by_host.setdefault(spelling, str(found))
        self._default = str(origin(urls[0]))

    def of(self, host: str | None) -> str:
        """The address (scheme://host[:port]) for a request's Host header."""
        return self._by_host.get((host or "").lower(), self._default)

    def is_https(self, host: str | None) -> bool:
        """Whether a Host header leads to a listed address that is reached by TLS."""
        return self._by_host.get((host or "").lower(), "").startswith("https:")
