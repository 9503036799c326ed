"""The token service's pure parts: requests, credentials, rights, keys."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from entrepot.db.token import DistributionRow
from entrepot.errors import RegistryError
from entrepot_token.identity import ANONYMOUS, AnonymousOnly, Subject
from entrepot_token.keys import KeyInvalid, load_keys
from entrepot_token.requests import read_request
from entrepot_token.rights import PublicPull, Wish
from entrepot_token.tokens import Granted, make_claims, timestamp
from tests.services import write_key


def read(query: str, *, max_scopes: int = 8) -> dict[str, frozenset[str]]:
    return read_request(query, service="entrepot", max_scopes=max_scopes).scopes


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("scope=repository:a/b:pull", {"a/b": {"pull"}}),
        ("scope=repository:a/b:pull&scope=repository:c:push,pull", {"a/b": {"pull"}, "c": {"push", "pull"}}),
        ("scope=repository:a/b:pull%20repository:c:push,pull", {"a/b": {"pull"}, "c": {"push", "pull"}}),
        ("scope=repository:a/b:pull+repository:a/b:push", {"a/b": {"pull", "push"}}),
        ("scope=repository(plugin):a:pull", {"a": {"pull"}}),
        ("scope=repository:a:*", {"a": {"*"}}),
        ("scope=registry:catalog:*", {}),
        ("scope=repository:host.test:5000/a:pull", {}),
        ("scope=repository:A:pull", {}),
        ("scope=repository:a/../b:pull", {}),
        ("scope=repository:a%252fb:pull", {}),
        ("scope=repository:*:pull", {}),
        ("scope=repository:a:", {}),
        ("scope=repository:a", {}),
        ("scope=::", {}),
        ("scope=repository:a:pull&account=x&client_id=docker&offline_token=true", {"a": {"pull"}}),
    ],
)
def test_scopes(query: str, expected: dict[str, set[str]]) -> None:
    assert read(f"service=entrepot&{query}") == expected


@pytest.mark.parametrize(
    "query", ["", "service=", "service=other", "service=entrepot&service=other", "service=entrepo", "service=ENTREPOT"]
)
def test_another_service_is_refused(query: str) -> None:
    with pytest.raises(RegistryError) as caught:
        read(query)
    assert caught.value.status == 400


def test_too_many_scopes_are_refused() -> None:
    read("service=entrepot" + "&scope=repository:a:pull" * 8)
    with pytest.raises(RegistryError) as caught:
        read("service=entrepot" + "&scope=repository:a:pull" * 9)
    assert caught.value.status == 400


@given(st.text(max_size=300))
def test_any_query_is_read_or_refused(query: str) -> None:
    try:
        scopes = read("service=entrepot&" + query.replace("#", "").encode("utf-8", "ignore").decode())
    except RegistryError as error:
        refused = error.status
    else:
        refused = 400
        assert len(scopes) <= 8
    assert refused == 400


def basic(text: bytes) -> str:
    return "Basic " + base64.b64encode(text).decode()


async def test_nobody_is_nobody_and_everybody_else_is_told() -> None:
    authenticator = AnonymousOnly()
    for header in (None, basic(b":")):
        assert await authenticator.authenticate(header) is ANONYMOUS
    for header in (basic(b"user:password"), basic(b"user:"), basic(b":password"), "Basic ###", "Bearer x", ""):
        with pytest.raises(RegistryError) as caught:
            await authenticator.authenticate(header)
        assert (caught.value.status, caught.value.code) == (401, "UNAUTHORIZED")
        assert "anonymous pull" in caught.value.message
        assert "password" not in caught.value.message


def row(access: str) -> DistributionRow:
    return DistributionRow("a/b", uuid.uuid4(), access, "a", "b")


async def test_everybody_pulls_what_is_public_and_nothing_else() -> None:
    wishes = [
        Wish(row(access), frozenset(actions))
        for access in ("Public", "Authenticated", "Private")
        for actions in (["pull"], ["pull", "push"], ["*"], ["push"], ["delete"])
    ]
    for subject in (ANONYMOUS, Subject("somebody")):
        granted = await PublicPull().authorize(subject, wishes)
        assert [set(g) for g in granted] == [{"pull"}, {"pull"}, {"pull"}, set(), set()] + [set()] * 10


def test_claims() -> None:
    distribution = row("Public")
    claims = make_claims(ANONYMOUS, [Granted(distribution, frozenset({"pull"}))], service="s", now=1000, lifetime=60)
    jti = claims.pop("jti")
    assert len(jti) >= 16
    assert claims == {
        "iss": "s", "aud": "s", "sub": "", "iat": 1000, "nbf": 1000, "exp": 1060,
        "access": [{"type": "repository", "name": "a/b", "actions": ["pull"]}],
        "entrepot": {"distributions": {"a/b": str(distribution.uuid)}},
    }  # fmt: skip
    assert timestamp(0) == "1970-01-01T00:00:00Z"


def test_the_last_key_signs_and_hidden_files_are_none(tmp_path: Path) -> None:
    for name in ("2026-b", "2026-a"):
        write_key(tmp_path, name)
    write_key(tmp_path, "2025-rsa", kind="rsa")
    (tmp_path / "..data").mkdir()
    (tmp_path / ".hidden").write_text("no key")
    keys = load_keys(tmp_path, algorithm="ES256")
    assert [(key.id, key.algorithm) for key in keys] == [
        ("2025-rsa", "RS256"),
        ("2026-a", "ES256"),
        ("2026-b", "ES256"),
    ]
    for key in keys:
        assert not {"d", "p", "q", "dp", "dq", "qi"} & set(key.public)


def test_bad_directories_are_refused_without_showing_what_is_in_them(tmp_path: Path) -> None:
    with pytest.raises(KeyInvalid, match="cannot be read"):
        load_keys(tmp_path / "absent", algorithm="ES256")
    with pytest.raises(KeyInvalid, match="no key"):
        load_keys(tmp_path, algorithm="ES256")
    write_key(tmp_path, "a")
    with pytest.raises(KeyInvalid, match="not one for RS256"):
        load_keys(tmp_path, algorithm="RS256")
    key = ec.generate_private_key(ec.SECP256R1())
    bad = {
        "text": b"canary text",
        "public": b"-----BEGIN PUBLIC KEY-----\ncanary\n-----END PUBLIC KEY-----\n",
        "encrypted": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
        "curve": ec.generate_private_key(ec.SECP384R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "weak": rsa.generate_private_key(65537, 1024).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    for name, data in bad.items():
        path = tmp_path / f"{name}.pem"
        path.write_bytes(data)
        with pytest.raises(KeyInvalid, match=name) as caught:
            load_keys(tmp_path, algorithm="ES256")
        assert "canary" not in str(caught.value)
        path.unlink()
