"""Who the client is: the other end of the socket, unless that is a proxy of ours, whose word is taken for it.

Anybody can send X-Forwarded-For. So it counts only where the connection itself comes from a trusted network, and of its entries only those
which a trusted proxy added: read from the right, the first address that is not a trusted proxy's is the client's, and what stands left of
it is the client's own claim.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

__all__ = ["Proxies"]

_MAX_HOPS = 16
"""Entries looked at; more proxies than this do not stand in a row."""


class Proxies:
    """The trusted networks. Raises ValueError for what is not one."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)
        # The same few proxies are asked about at every request.
        self._trusts = functools.lru_cache(maxsize=1024)(self._look_up)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def trusts(self, peer: str | None) -> bool:
        """Whether the socket's other end is a proxy of ours."""
        return peer is not None and self._trusts(peer)

    def client(self, peer: str | None, forwarded: Iterable[str]) -> str | None:
        """The client's address, given the socket's other end and the values of the X-Forwarded-For headers, in order."""
        if peer is None or not self._trusts(peer):
            return peer
        hops = [hop.strip() for value in forwarded for hop in value.split(",")]
        client = peer
        for hop in reversed(hops[-_MAX_HOPS:]):
            address = _without_port(hop)
            if not _is_address(address):
                break  # not what a proxy of ours writes: the last that was is all that is known
            client = address
            if not self._trusts(address):
                break
        return client

    def _look_up(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)


def _without_port(hop: str) -> str:
    """Some proxies write `192.0.2.1:1234` and `[2001:db8::1]:1234`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


@functools.lru_cache(maxsize=4096)
def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
