"""Where an upstream may lead us: checked on the address that is connected to, not on a name.

A name can resolve to anything, and to something else a moment later; a redirect or a realm can name an address outright. So the check sits
where a socket is made, behind every name, redirect and resolver (CVE-2026-32591 and its kin, server-side request forgery). IPv6 has ways
to write IPv4 addresses; what is denied is denied in each of them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from entrepot.errors import UpstreamUnreachable
from entrepot.upstream.settings import UpstreamSettings

__all__ = ["AddressDenied", "denial", "deny_hosts", "socket_factory"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 6052 section 2.1, the prefix for NAT64 that every network may use.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressDenied(OSError):
    """The address is one that no upstream may have."""


def denial(address: str, settings: UpstreamSettings) -> str | None:
    """Why no connection may be made to an address; None if it may."""
    try:
        written = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "is no address"
    for form in _forms(written):
        if form.is_loopback:
            if not settings.allow_loopback:
                return "is this machine itself"
        elif form.is_link_local:
            return "is link-local"
        elif form.is_unspecified or form.is_multicast:
            return "is no host's address"
        if any(form in network for network in settings.networks if network.version == form.version):
            return "lies in a denied network"
        if str(form) == os.environ.get("KUBERNETES_SERVICE_HOST"):
            return "is the Kubernetes API"
    return None


async def deny_hosts(settings: UpstreamSettings) -> UpstreamSettings:
    """Settings that deny the present addresses of `denied_hosts`. A name that does not exist leads nowhere, and is left out.

    Raises UpstreamUnreachable where the resolver does not say.
    """

    async def resolve(host: str) -> set[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
                return set()
            # Not known is not the same as harmless.
            raise UpstreamUnreachable(
                f"the denied host {host} cannot be resolved at present: {error.strerror}"
            ) from error
        return {str(address[0]).partition("%")[0] for *_, address in found}

    addresses = await asyncio.gather(*(resolve(host) for host in settings.denied_hosts))
    denied = sorted(set().union(*addresses))
    return dataclasses.replace(settings, denied_cidrs=(*settings.denied_cidrs, *denied))


def _forms(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 address that it stands for, if any."""
    yield address
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    low = int(address) & 0xFFFFFFFF
    # IPv4-compatible addresses (RFC 4291 section 2.5.5.1) are deprecated, and some stacks still connect them; ::1 is not one.
    if address in _NAT64 or (int(address) >> 32 == 0 and low > 1):
        yield ipaddress.IPv4Address(low)


def socket_factory(settings: UpstreamSettings) -> Callable[[Any], socket.socket]:
    """For aiohttp's connector: makes the socket of a connection, unless its address is denied."""

    def make(info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        family, kind, protocol, _, address = info
        reason = denial(str(address[0]), settings)
        if reason is not None:
            raise AddressDenied(f"{address[0]} {reason}")
        return socket.socket(family=family, type=kind, proto=protocol)

    return make
