"""Where connections may go: decided on addresses, in every way IPv6 has to write an IPv4 one."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import UpstreamUnreachable
from entrepot.settings import SettingInvalid
from entrepot.upstream.addresses import AddressDenied, denial, deny_hosts, socket_factory
from entrepot.upstream.settings import UpstreamSettings

STRICT = UpstreamSettings()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1",
        "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1",
        "ff02::1", "not an address", "",
    ],
)  # fmt: skip
def test_loopback_link_local_and_no_hosts_are_denied_in_every_form(address: str) -> None:
    assert denial(address, STRICT) is not None


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.1.1", "172.16.0.1", "8.8.8.8", "2606:4700::1", "fd00::1"])
def test_private_networks_are_allowed_since_registries_live_there(address: str) -> None:
    assert denial(address, STRICT) is None


@given(st.ip_addresses(v=4, network="10.96.0.0/12"))
def test_a_denied_network_is_denied_in_every_form(address: object) -> None:
    settings = UpstreamSettings(denied_cidrs=("10.96.0.0/12", "fd00:1::/32"))
    assert denial(str(address), settings) is not None
    assert denial(f"::ffff:{address}", settings) is not None
    assert denial(f"64:ff9b::{address}", settings) is not None
    assert denial("fd00:1::5", settings) is not None
    assert denial("10.1.0.1", settings) is None


def test_the_kubernetes_api_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.43.0.1")
    assert denial("10.43.0.1", STRICT) is not None
    assert denial("::ffff:10.43.0.1", STRICT) is not None
    assert denial("10.43.0.2", STRICT) is None


def test_loopback_can_be_allowed_for_trials_and_link_local_cannot() -> None:
    settings = UpstreamSettings(allow_loopback=True)
    assert denial("127.0.0.1", settings) is None
    assert denial("169.254.169.254", settings) is not None
    assert denial("127.0.0.1", UpstreamSettings(allow_loopback=True, denied_cidrs=("127.0.0.0/8",))) is not None


def test_a_socket_is_made_only_for_an_allowed_address() -> None:
    make = socket_factory(STRICT)
    with pytest.raises(AddressDenied):
        make((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)))
    made = make((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80)))
    made.close()


def test_a_wrong_network_stops_the_start() -> None:
    with pytest.raises(SettingInvalid, match="ENTREPOT_UPSTREAM_DENIED_CIDRS"):
        UpstreamSettings(denied_cidrs=("10.0.0.0/99",))


async def test_a_resolver_that_does_not_say_denies_nothing_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UpstreamUnreachable, match="entrepot-database"):
        await deny_hosts(UpstreamSettings(denied_hosts=("entrepot-database",)))


async def test_the_addresses_of_denied_hosts_are_denied_and_unknown_names_are_left_out() -> None:
    settings = await deny_hosts(UpstreamSettings(allow_loopback=True, denied_hosts=("localhost", "nowhere.invalid")))
    assert denial("127.0.0.1", settings) == "lies in a denied network"
    assert denial("127.0.0.2", settings) is None
