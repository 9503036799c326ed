"""Docker Hub's names, origins, and the credentials that belong to a host."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.oci.hosts import (
    DOCKER_HUB,
    DOCKER_HUB_ALIASES,
    AuthConfigInvalid,
    Origin,
    UrlInvalid,
    api_host,
    api_origin,
    auths_of,
    find_auth,
    hosts_of,
    origin,
    upstream_repository,
)


def _auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_docker_hub_has_one_api_host_and_implies_library() -> None:
    for alias in (*DOCKER_HUB_ALIASES, "Docker.IO", "docker.io:443"):
        assert api_host(alias) == DOCKER_HUB
        assert upstream_repository(alias, "alpine") == "library/alpine"
        assert upstream_repository(alias, "grafana/grafana") == "grafana/grafana"
    assert str(api_origin("https://docker.io")) == "https://registry-1.docker.io"
    assert api_host("Quay.io") == "quay.io"
    assert upstream_repository("quay.io", "alpine") == "alpine"
    assert upstream_repository("docker.io.evil.example", "alpine") == "alpine"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://Quay.io", "https://quay.io"),
        ("https://quay.io:443/v2/", "https://quay.io"),
        ("HTTP://localhost:5000/x?y#z", "http://localhost:5000"),
        ("http://[::1]:80/", "http://[::1]"),
        ("https://[2001:DB8::1]:5000", "https://[2001:db8::1]:5000"),
        ("https://quay.io:", "https://quay.io"),
    ],
)
def test_an_origin_has_one_spelling(url: str, expected: str) -> None:
    assert str(origin(url)) == expected
    assert origin(str(origin(url))) == origin(url)


@pytest.mark.parametrize(
    "url",
    ["", "quay.io", "//quay.io", "ftp://quay.io", "https://", "https://user:pass@quay.io", "https://@quay.io", "https://quay.io\\@evil/",
     "https://quay.io:99999", "https://quay.io:0", "https://quay.io:x", "https://a b", "https://a\nb", "https://[::1", "https://a..b",
     "https://ä.example", "https://" + "a" * 3000, "javascript:alert(1)"],
)  # fmt: skip
def test_what_is_not_the_url_of_a_registry_is_refused(url: str) -> None:
    with pytest.raises(UrlInvalid):
        origin(url)


@given(st.text() | st.text(alphabet="htps:/.@[]\\a1?#%").map(lambda rest: "https://" + rest))
def test_any_text_has_an_origin_or_is_refused(text: str) -> None:
    try:
        found = origin(text)
    except UrlInvalid:
        return
    assert isinstance(found, Origin)
    assert origin(str(found)) == found


def test_the_longest_path_wins_and_only_at_a_slash() -> None:
    config = {
        "auths": {
            "quay.io": _auth("host", "1"),
            "quay.io/team": _auth("team", "2"),
            "https://quay.io/team/app": _auth("app", "3:with:colons"),
        }
    }
    assert find_auth(config, "quay.io", "team/app/sub") == ("app", "3:with:colons")
    assert find_auth(config, "quay.io", "team/app") == ("app", "3:with:colons")
    assert find_auth(config, "quay.io", "team/apple") == ("team", "2")
    assert find_auth(config, "quay.io", "teams") == ("host", "1")
    assert find_auth(config, "QUAY.io:443", "") == ("host", "1")
    assert find_auth(config, "quay.io:8443", "team") is None
    assert find_auth(config, "evilquay.io", "team") is None
    assert hosts_of(config) == ("quay.io", "quay.io/team", "quay.io/team/app")


@pytest.mark.parametrize(
    "key",
    ["docker.io", "https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io/v2", "http://docker.io"],
)
@pytest.mark.parametrize("host", sorted(DOCKER_HUB_ALIASES))
def test_all_names_of_docker_hub_share_their_credentials(key: str, host: str) -> None:
    assert find_auth({"auths": {key: _auth("u", "p")}}, host, "library/alpine") == ("u", "p")


def test_the_name_asked_for_wins_over_an_alias() -> None:
    config = {"auths": {"docker.io": _auth("a", "1"), "index.docker.io": _auth("b", "2")}}
    assert find_auth(config, "index.docker.io") == ("b", "2")
    assert find_auth(config, "docker.io") == ("a", "1")


def test_username_and_password_do_as_well_and_an_empty_entry_is_none() -> None:
    assert find_auth({"auths": {"a.b": {"username": "u", "password": "p"}}}, "a.b") == ("u", "p")
    assert find_auth({"auths": {"a.b": {}, "a.b/c": {"username": "u"}}}, "a.b", "c") is None
    assert find_auth({"auths": {"a.b": _auth("u", "p"), "a.b/c": {}}}, "a.b", "c") == ("u", "p")


@pytest.mark.parametrize(
    "config",
    [{}, {"auths": []}, {"auths": {"a.b": "x"}}, {"auths": {"a.b": {"auth": "s3cret!"}}}, {"auths": {"a.b": {"auth": 5}}},
     {"auths": {"a.b": {"auth": base64.b64encode(b"s3cret").decode()}}}, {"auths": {"a.b": {"auth": base64.b64encode(b"\xff:s3cret").decode()}}},
     {"auths": {"a.b": {"username": "u", "password": 5}}}],
)  # fmt: skip
def test_a_broken_entry_is_an_error_that_names_it_and_tells_no_secret(config: dict[str, Any]) -> None:
    with pytest.raises(AuthConfigInvalid) as caught:
        find_auth(config, "a.b")
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "s3cret" not in repr(caught.value)
    if config.get("auths"):
        assert "a.b" in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)


@given(st.dictionaries(st.sampled_from(["auths", "x"]), JSON | st.dictionaries(st.text(), JSON)), st.text(), st.text())
def test_any_configuration_gives_credentials_or_none_or_an_error(config: dict[str, Any], host: str, path: str) -> None:
    try:
        found = find_auth(config, host, path)
        hosts_of(config)
    except AuthConfigInvalid:
        return
    assert found is None or all(isinstance(part, str) for part in found)


def test_all_entries_of_a_host_are_found_and_none_of_another() -> None:
    config = {
        "auths": {
            "https://index.docker.io/v1/": _auth("a", "1"),
            "docker.io/team": _auth("b", "2"),
            "docker.io/empty": {},
            "quay.io": _auth("c", "3"),
        }
    }
    found = auths_of(config, "registry-1.docker.io")
    assert found == {"https://index.docker.io/v1/": ("a", "1"), "docker.io/team": ("b", "2")}
    assert auths_of(config, "quay.io:8443") == {}
