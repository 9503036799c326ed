"""The registry's pure parts: routes, conditions, addresses, keys, settings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from entrepot.errors import RegistryError
from entrepot.oci import media_types
from entrepot.oci.errors import GrammarError
from entrepot.settings import SettingInvalid, load
from entrepot_registry.conditions import accepts, is_known, range_applies
from entrepot_registry.keys import read_keys
from entrepot_registry.origins import Origins
from entrepot_registry.routes import Endpoint, parse_route
from entrepot_registry.settings import RegistrySettings

COMPONENT = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True).filter(lambda x: len(x) < 30)
NAMES = st.lists(
    COMPONENT | st.sampled_from(["manifests", "blobs", "tags", "uploads", "list", "v2", "referrers"]),
    min_size=1,
    max_size=6,
)
TAGS = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True)


@given(NAMES, TAGS)
def test_every_name_and_tag_is_found_again_in_its_path(parts: list[str], tag: str) -> None:
    name = "/".join(parts)
    for kind, endpoint in (
        ("manifests", Endpoint.MANIFEST),
        ("blobs", Endpoint.BLOB),
        ("referrers", Endpoint.REFERRERS),
    ):
        route = parse_route(f"/v2/{name}/{kind}/{tag}")
        assert (route.endpoint, route.name, route.reference) == (endpoint, name, tag)
    listing = parse_route(f"/v2/{name}/tags/list")
    assert (listing.endpoint, listing.name) == (Endpoint.TAGS, name)
    for end, endpoint in (("", Endpoint.UPLOADS), (tag, Endpoint.UPLOAD)):
        upload = parse_route(f"/v2/{name}/blobs/uploads/{end}")
        assert (upload.endpoint, upload.name, upload.reference) == (endpoint, name, end)


@given(st.text() | st.text(alphabet="/v2abmnistfeogldu%:.-_\x00\\ ", max_size=60).map(lambda text: "/v2/" + text))
def test_any_path_is_a_route_or_a_refusal(path: str) -> None:
    try:
        route = parse_route(path)
    except (GrammarError, RegistryError) as error:
        refused = error.status
    else:
        refused = 0
        assert route.name is None or route.name in path
    assert refused in {0, 400, 404}


def test_templates_hold_no_part_of_a_path() -> None:
    assert parse_route("/v2/a/b/manifests/c").endpoint.value == "/v2/{name}/manifests/{reference}"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], True),
        ([""], True),
        (["*/*"], True),
        (["application/*"], True),
        ([media_types.OCI_MANIFEST], True),
        ([media_types.OCI_MANIFEST.upper()], True),
        ([media_types.DOCKER_MANIFEST, media_types.OCI_MANIFEST], True),
        ([f"{media_types.DOCKER_MANIFEST}, {media_types.OCI_MANIFEST};q=0.2"], True),
        ([f"{media_types.OCI_MANIFEST}; charset=utf-8"], True),
        ([media_types.DOCKER_MANIFEST], False),
        (["text/*"], False),
        ([f"{media_types.OCI_MANIFEST};q=0"], False),
        ([f"{media_types.OCI_MANIFEST};q=0, */*"], False),
        ([f"{media_types.OCI_MANIFEST};q=0.000"], False),
        ([f"{media_types.OCI_MANIFEST};q=7"], True),
        (["*/*;q=0"], False),
        (["application/*;q=0, */*"], False),
        (["x" * 10_000], True),
    ],
)
def test_accept(headers: list[str], expected: bool) -> None:
    assert accepts(headers, media_types.OCI_MANIFEST) is expected


@given(st.lists(st.text(max_size=200), max_size=4))
def test_no_header_makes_conditions_fail(headers: list[str]) -> None:
    accepts(headers, media_types.OCI_MANIFEST)
    is_known(headers, "sha256:0")


def test_conditions_on_a_digest() -> None:
    assert is_known(['"a", "sha256:1"'], "sha256:1")
    assert is_known(['W/"sha256:1"'], "sha256:1")
    assert is_known(["*"], "sha256:1")
    assert not is_known(["sha256:1", '"sha256:12"'], "sha256:1")
    assert not is_known([], "sha256:1")
    assert range_applies(None, "sha256:1")
    assert range_applies('"sha256:1"', "sha256:1")
    assert not range_applies('W/"sha256:1"', "sha256:1")
    assert not range_applies("Sat, 21 Nov 2026 07:00:00 GMT", "sha256:1")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:30500", "http://localhost:30500"),
        ("LocalHost:30500", "http://localhost:30500"),
        ("registry.test", "https://registry.test"),
        ("registry.test:443", "https://registry.test"),
        ("registry.test:80", "http://localhost:30500"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("localhost", "http://localhost:30500"),
        ("", "http://localhost:30500"),
        (None, "http://localhost:30500"),
        ("evil.test\r\nX: y", "http://localhost:30500"),
    ],
)
def test_the_address_of_a_request(host: str | None, expected: str) -> None:
    assert Origins(["http://localhost:30500/", "https://registry.test", "http://[::1]:5000"]).of(host) == expected


def jwks(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def test_only_fitting_public_keys_are_read() -> None:
    good = {
        **ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True),
        "kid": "good",
        "alg": "ES256",
    }
    other_curve = {
        **ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True),
        "kid": "p384",
        "alg": "ES384",
    }
    strong = {
        **RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key(), as_dict=True),
        "kid": "rsa",
        "alg": "RS256",
    }
    weak = {
        **RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True),
        "kid": "weak",
        "alg": "RS256",
    }
    edwards = {
        **OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True),
        "kid": "ed",
        "alg": "EdDSA",
    }
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"}
    wrong = [
        other_curve, weak, edwards, secret,
        {**good, "alg": "HS256", "kid": "a"}, {**good, "alg": "RS256", "kid": "b"}, {**strong, "alg": "ES256", "kid": "c"},
        {**good, "kid": 5}, {**good, "kid": "d", "x": "short"}, {**good, "kid": "e", "crv": "P-384"}, {k: v for k, v in good.items() if k != "kid"},
        "text", None, 5,
    ]  # fmt: skip
    everything = ("ES256", "RS256", "PS256")
    assert set(read_keys(jwks(good, strong, *wrong), algorithms=everything)) == {"good", "rsa"}
    assert set(read_keys(jwks(good, strong), algorithms=("ES256",))) == {"good"}
    for body in (b"", b"[]", b"{}", b'{"keys":5}', jwks(*[good] * 33)):
        with pytest.raises(ValueError):
            read_keys(body, algorithms=everything)


def test_a_private_half_in_a_jwks_is_not_kept() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    entry = {**ECAlgorithm.to_jwk(key, as_dict=True), "kid": "a", "alg": "ES256"}
    assert "d" in entry
    read = read_keys(jwks(entry), algorithms=["ES256"])["a"]
    assert isinstance(read.key, ec.EllipticCurvePublicKey)


def test_settings_are_read_and_judged() -> None:
    settings = load(
        RegistrySettings,
        {"ENTREPOT_EXTERNAL_URLS": "http://localhost:30500, https://registry.test/", "ENTREPOT_PULL_GRACE": "5m"},
    )
    assert settings.external_urls == ("http://localhost:30500", "https://registry.test/")
    for variable, value in [
        ("ENTREPOT_EXTERNAL_URLS", "https://user:password@registry.test"),
        ("ENTREPOT_EXTERNAL_URLS", "https://registry.test/path"),
        ("ENTREPOT_EXTERNAL_URLS", ","),
        ("ENTREPOT_TOKEN_ALGORITHMS", "none"),
        ("ENTREPOT_TOKEN_URL", "token:5001"),
        ("ENTREPOT_LOOKUP_BATCH", "0"),
        ("ENTREPOT_PULL_GRACE", "soon"),
        ("ENTREPOT_REDIRECT_TTL", "21m"),
        ("ENTREPOT_REDIRECT_TTL", "0s"),
    ]:
        with pytest.raises(SettingInvalid, match=variable):
            load(RegistrySettings, {variable: value})
