"""Requests per subject, and whose address counts."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import RegistryError
from entrepot.web.limits import RateLimit, network_of
from entrepot.web.proxies import Proxies


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admitted(limit: RateLimit, subject: str | None = "u", address: str | None = None) -> bool:
    try:
        limit.admit(subject, address)
    except RegistryError:
        return False
    return True


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 5), min_size=1, max_size=200),
)
def test_nobody_gets_more_than_the_burst_and_the_rate(rate: float, burst: int, pauses: list[float]) -> None:
    clock = Clock()
    limit = RateLimit(rate=rate, burst=burst, table=10, clock=clock)
    got = 0
    for pause in pauses:
        clock.now += pause
        got += admitted(limit)
    assert got <= burst + rate * (clock.now - 1000.0 + 1e-5)


@given(rate=st.floats(0.1, 1000), burst=st.integers(1, 50))
def test_a_burst_is_admitted_and_after_retry_after_there_is_room_again(rate: float, burst: int) -> None:
    clock = Clock()
    limit = RateLimit(rate=rate, burst=burst, table=10, clock=clock)
    assert all(admitted(limit) for _ in range(burst))
    with pytest.raises(RegistryError) as refused:
        limit.admit("u", None)
    assert (refused.value.status, refused.value.code) == (429, "TOOMANYREQUESTS")
    assert int(refused.value.headers["Retry-After"]) >= 1
    clock.now += int(refused.value.headers["Retry-After"])
    assert admitted(limit)


def test_subjects_and_addresses_have_buckets_of_their_own() -> None:
    limit = RateLimit(rate=1, burst=1, table=10, clock=Clock())
    assert admitted(limit, "a", "192.0.2.1")
    assert admitted(limit, "b", "192.0.2.1")
    assert admitted(limit, None, "192.0.2.1")
    assert not admitted(limit, None, "192.0.2.1")
    assert admitted(limit, None, "192.0.2.2")
    # A subject may be called like an address, and is not one.
    assert admitted(limit, "192.0.2.1", "192.0.2.1")
    with pytest.raises(RegistryError):
        limit.check("192.0.2.1")
    limit.check("192.0.2.9")


def test_the_table_is_bounded_and_the_least_recent_makes_room() -> None:
    limit = RateLimit(rate=1, burst=1, table=100, clock=Clock())
    for number in range(1000):
        assert admitted(limit, f"u{number}")
    assert len(limit) == 100
    assert not admitted(limit, "u999")
    assert admitted(limit, "u0")


def test_an_ipv6_customer_is_one_client() -> None:
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:db8:1:2:ffff::1") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::1") != network_of("2001:db8:1:2::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("nonsense") == "nonsense"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        # What a client claims stands left of what our proxy wrote.
        ("10.0.0.1", ["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["203.0.113.9", "192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["203.0.113.9, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("::ffff:10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1:4711"], "192.0.2.1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["203.0.113.9, <script>"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
        # Not our proxy: it may say what it likes.
        ("192.0.2.7", ["203.0.113.9"], "192.0.2.7"),
        (None, ["203.0.113.9"], None),
    ],
)
def test_only_a_trusted_proxy_is_believed(peer: str | None, forwarded: list[str], client: str | None) -> None:
    assert Proxies(["10.0.0.0/8"]).client(peer, forwarded) == client


def test_without_trusted_networks_nothing_is_believed() -> None:
    assert not Proxies([])
    assert Proxies([]).client("10.0.0.1", ["192.0.2.1"]) == "10.0.0.1"
    with pytest.raises(ValueError, match="host bits"):
        Proxies(["10.0.0.1/8"])


@given(st.lists(st.text(max_size=40), max_size=6))
def test_whatever_is_forwarded_the_client_is_an_address(values: list[str]) -> None:
    client = Proxies(["10.0.0.0/8"]).client("10.0.0.1", values)
    assert client is not None
    ipaddress.ip_address(client)
