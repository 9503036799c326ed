"""To whom credentials may go, and that a token is asked for once."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import parse_qs, urlsplit

import pytest

from entrepot.errors import UpstreamInvalid, UpstreamUnauthorized
from entrepot.oci.hosts import origin
from entrepot.upstream.auth import Authenticator, may_receive_credentials


@pytest.mark.parametrize(
    ("remote", "realm", "allowed"),
    [
        ("https://registry-1.docker.io", "https://auth.docker.io", True),
        ("https://registry.gitlab.com", "https://gitlab.com", True),
        ("https://ghcr.io", "https://ghcr.io", True),
        ("https://r.example.com:5000", "https://r.example.com", True),
        ("http://r.example.com:5000", "http://r.example.com:5001", True),
        ("http://r.example.com", "https://r.example.com", True),
        ("https://r.example.com", "http://r.example.com", False),
        ("https://r.example.com", "https://evil.test", False),
        ("http://r.example.com", "https://auth.example.com", False),
        ("http://r.example.com", "http://evil.example.com", False),
        ("https://ghcr.io", "https://evil.io", False),
        ("https://example.com", "https://other.com", False),
        ("https://r.example.com", "https://169.254.169.254", False),
        ("https://10.1.2.3", "https://10.1.2.4", False),
        ("https://10.1.2.3", "https://9.1.2.3", False),
        ("https://r.example.com", "https://example.com.evil.test", False),
    ],
)
def test_credentials_stay_with_the_host_and_its_domain(remote: str, realm: str, allowed: bool) -> None:
    assert may_receive_credentials(origin(realm), remote=origin(remote)) is allowed


def test_a_trusted_realm_needs_https() -> None:
    remote, trusted = origin("https://r.example.com"), ("sso.other.test",)
    assert may_receive_credentials(origin("https://sso.other.test"), remote=remote, trusted=trusted)
    assert not may_receive_credentials(origin("http://sso.other.test"), remote=remote, trusted=trusted)


class Service:
    """Records what it is asked."""

    def __init__(self, answer: object = None) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.answer = answer

    async def __call__(self, url: str, authorization: str | None) -> bytes:
        self.asked.append((url, authorization))
        await asyncio.sleep(0.01)
        return json.dumps(self.answer or {"token": f"t{len(self.asked)}", "expires_in": 300}).encode()


def make(service: Service, *, username: str = "u", password: str = "p") -> Authenticator:
    return Authenticator(
        origin("https://registry-1.docker.io"), default_scope="repository:a/b:pull", username=username, password=password,
        trusted_realms=(), fetch=service,
    )  # fmt: skip


CHALLENGE = ['Bearer realm="https://auth.docker.io/token?x=1",service="registry.docker.io",scope="repository:a/b:pull"']


async def test_many_requests_at_once_ask_for_one_token() -> None:
    service = Service()
    auth = make(service)
    headers = await asyncio.gather(*(auth.challenged(CHALLENGE, sent=None) for _ in range(20)))
    assert set(headers) == {"Bearer t1"}
    assert await auth.header() == "Bearer t1"
    assert len(service.asked) == 1
    url, authorization = service.asked[0]
    assert parse_qs(urlsplit(url).query) == {
        "x": ["1"],
        "service": ["registry.docker.io"],
        "scope": ["repository:a/b:pull"],
    }
    assert authorization == "Basic dTpw"


async def test_a_refused_token_is_replaced_and_an_expired_one_before_it_is_sent() -> None:
    service = Service()
    auth = make(service)
    assert await auth.challenged(CHALLENGE, sent=None) == "Bearer t1"
    assert await auth.challenged(CHALLENGE, sent="Bearer t1") == "Bearer t2"
    service = Service({"access_token": "short", "expires_in": 0.001})
    auth = make(service)
    await auth.challenged(CHALLENGE, sent=None)
    await asyncio.sleep(0.01)
    assert await auth.header() == "Bearer short"
    assert len(service.asked) == 2


async def test_the_scope_defaults_to_pulling_the_repository() -> None:
    service = Service()
    await make(service).challenged(['Bearer realm="https://auth.docker.io/token"'], sent=None)
    assert parse_qs(urlsplit(service.asked[0][0]).query) == {"scope": ["repository:a/b:pull"]}


async def test_a_realm_elsewhere_is_asked_without_credentials_or_not_at_all() -> None:
    challenge = ['Bearer realm="https://evil.test/token",service="s"']
    service = Service()
    with pytest.raises(UpstreamUnauthorized, match=r"evil\.test"):
        await make(service).challenged(challenge, sent=None)
    assert service.asked == []
    assert await make(service, username="", password="").challenged(challenge, sent=None) == "Bearer t1"
    assert service.asked[0][1] is None


async def test_basic_is_sent_once_and_only_if_there_are_credentials() -> None:
    auth = make(Service())
    assert await auth.challenged(['Basic realm="x"'], sent=None) == "Basic dTpw"
    assert await auth.header() == "Basic dTpw"
    assert await auth.challenged(['Basic realm="x"'], sent="Basic dTpw") is None
    assert await make(Service(), username="", password="").challenged(['Basic realm="x"'], sent=None) is None


@pytest.mark.parametrize(
    "answer", [{"token": ""}, {"token": "a\r\nb"}, {"token": "SECRET \x00"}, ["SECRET"], {"token": 5}]
)
async def test_what_is_no_token_is_refused_and_not_quoted(answer: object) -> None:
    with pytest.raises(UpstreamInvalid) as caught:
        await make(Service(answer)).challenged(CHALLENGE, sent=None)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="ftp://x/"',
        'Bearer realm="https://u:p@auth.docker.io/"',
        "Bearer service=x",
        'Bearer realm="',
        'Bearer realm="https://["',
        'Bearer realm="https://auth.docker.io/tökén"',
        'Bearer realm="https://auth.docker.io/\udcff"',
        'Bearer realm="https://auth.docker.io/",service="\udcff"',
        'Bearer realm="https://auth.docker.io/",scope="ä"',
    ],
)
async def test_an_unusable_challenge_is_the_upstreams_fault(challenge: str) -> None:
    with pytest.raises(UpstreamInvalid):
        await make(Service()).challenged([challenge], sent=None)
