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


@given(st.builds(Credentials, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS))
def test_what_is_sealed_opens_again(credentials: Credentials) -> None:
    key_id, sealed = seal(KEYS, REMOTE, origin=ORIGIN, credentials=credentials)
    assert unseal(KEYS, REMOTE, origin=ORIGIN, key_id=key_id, ciphertext=sealed) == credentials


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
    shown = repr(Credentials("user", "canary-password", "canary-ca", "canary-cert", "canary-key")) + repr(KEYS)
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
