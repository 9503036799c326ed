"""Sealed credentials open for their own Remote and origin, and for nothing else."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.credentials import Credentials, CredentialsUnreadable, Keys, KeysInvalid, seal, unseal

REMOTE = uuid.UUID("6dd7d1ee-95a0-4a4c-a2f6-9d5b7c3f2a10")
ORIGIN = "https://registry.example.com"
KEYS = Keys({"2026-01": b"a" * 32, "2026-02": b"b" * 32})
TEXTS = st.text(max_size=50)


@given(
    st.builds(
        Credentials,
        *[TEXTS] * 5,
        auths=st.dictionaries(TEXTS, st.tuples(TEXTS, TEXTS), max_size=3),
    )
)
def test_what_is_sealed_opens_again(credentials: Credentials) -> None:
    key_id, sealed = seal(KEYS, REMOTE, origin=ORIGIN, credentials=credentials)
    assert unseal(KEYS, REMOTE, origin=ORIGIN, key_id=key_id, ciphertext=sealed) == credentials


def test_each_repository_gets_the_entry_for_its_path_out_of_the_same_bytes() -> None:
    auths = {
        "registry.example.com": ("host", "1"),
        "registry.example.com/team": ("team", "2"),
        "registry.example.com/team/app": ("app", "3"),
    }
    key_id, sealed = seal(KEYS, REMOTE, origin=ORIGIN, credentials=Credentials(ca="pem", auths=auths))
    opened = unseal(KEYS, REMOTE, origin=ORIGIN, key_id=key_id, ciphertext=sealed)
    for name, user in (("team/app", "app"), ("team/other", "team"), ("teams", "host")):
        chosen = opened.for_repository("registry.example.com", name)
        assert (chosen.username, chosen.ca, chosen.auths) == (user, "pem", {})
    assert not Credentials(auths={"registry.example.com/a": ("u", "p")}).for_repository("registry.example.com", "b")
    # Of a Secret without hosts there is one login, for all.
    assert Credentials("u", "p").for_repository("registry.example.com", "a") == Credentials("u", "p")


def test_the_lexically_last_key_seals_and_older_ones_still_open() -> None:
    old = Keys({"2026-01": b"a" * 32})
    key_id, sealed = seal(old, REMOTE, origin=ORIGIN, credentials=Credentials("u", "p"))
    assert seal(KEYS, REMOTE, origin=ORIGIN, credentials=Credentials())[0] == "2026-02"
    assert unseal(KEYS, REMOTE, origin=ORIGIN, key_id=key_id, ciphertext=sealed).password == "p"


def test_sealing_twice_gives_different_bytes() -> None:
    one, two = (seal(KEYS, REMOTE, origin=ORIGIN, credentials=Credentials("u", "p"))[1] for _ in range(2))
    assert one != two


@pytest.mark.parametrize("change", ["remote", "origin", "key", "unknown key", "bit", "short", "empty"])
def test_it_opens_for_nothing_else(change: str) -> None:
    key_id, sealed = seal(KEYS, REMOTE, origin=ORIGIN, credentials=Credentials("u", "p"))
    remote = uuid.uuid4() if change == "remote" else REMOTE
    origin = "https://evil.example.com" if change == "origin" else ORIGIN
    key_id = {"key": "2026-01", "unknown key": "2025-12"}.get(change, key_id)
    sealed = {
        "bit": sealed[:-1] + bytes([sealed[-1] ^ 1]),
        "short": sealed[:10],
        "empty": b"",
    }.get(change, sealed)
    with pytest.raises(CredentialsUnreadable):
        unseal(KEYS, remote, origin=origin, key_id=key_id, ciphertext=sealed)


def test_neither_keys_nor_credentials_show_in_repr() -> None:
    auths = {"host": ("canary-user", "canary-password")}
    shown = repr(Credentials("user", "canary-password", "canary-ca", "canary-cert", "canary-key", auths)) + repr(KEYS)
    assert "canary" not in shown
    assert "bbb" not in shown
    assert "user" in shown


def test_keys_are_the_files_of_a_mounted_secret(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..2026").write_text("not a key")
    (tmp_path / "k1").write_text(base64.b64encode(b"1" * 32).decode() + "\n")
    (tmp_path / "k2").write_text(base64.b64encode(b"2" * 32).decode())
    keys = Keys.load(tmp_path)
    assert keys.newest == "k2"
    assert keys.by_id == {"k1": b"1" * 32, "k2": b"2" * 32}


@pytest.mark.parametrize("content", ["", "canary", base64.b64encode(b"x" * 31).decode(), "é" * 44])
def test_a_file_that_is_no_key_is_named_but_not_quoted(tmp_path: Path, content: str) -> None:
    (tmp_path / "k1").write_text(content)
    with pytest.raises(KeysInvalid, match="k1") as caught:
        Keys.load(tmp_path)
    assert "canary" not in str(caught.value)


def test_no_keys_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeysInvalid, match="holds no key"):
        Keys.load(tmp_path)
    with pytest.raises(KeysInvalid, match="cannot be read"):
        Keys.load(tmp_path / "missing")
