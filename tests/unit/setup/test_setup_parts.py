"""The set-up's parts that need nothing but themselves: what it generates, how it is called, and what it says when it cannot start."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import os
import re
import subprocess
import sys
from pathlib import Path

import bcrypt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from entrepot.credentials import Keys
from entrepot_setup.crds import read_crds
from entrepot_setup.errors import SetupFailed
from entrepot_setup.generate import PARTS, wanted_secrets
from entrepot_setup.scram import verifier
from entrepot_setup.settings import AdminSettings, InstallSettings, SetupSettings

TOP = Path(__file__).parents[3]
SETTINGS = InstallSettings(
    namespace="entrepot",
    release="entrepot",
    database_secret="database",
    storage_secret="storage",
    signing_keys_secret="signing-keys",
    credentials_key_secret="credentials-key",
    users_secret="users",
)
WANTED = {wanted.name: wanted for wanted in wanted_secrets(SETTINGS)}


def test_the_verifier_is_that_of_rfc_7677() -> None:
    """Its section 3 gives an exchange; the server's signature in it can only be made with the right server key."""
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    salt = "W22ZaJ0SNY7soEsUEjb6gQ=="
    exchange = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s={salt},i=4096,c=biws,r={nonce}"
    found = re.fullmatch(r"SCRAM-SHA-256\$4096:(.+)\$(.+):(.+)", verifier("pencil", salt=base64.b64decode(salt)))
    assert found is not None
    assert found[1] == salt
    stored, server = base64.b64decode(found[2]), base64.b64decode(found[3])
    signature = hmac.digest(server, exchange.encode(), "sha256")
    assert base64.b64encode(signature) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    client = bytes(a ^ b for a, b in zip(proof, hmac.digest(stored, exchange.encode(), "sha256"), strict=True))
    assert hashlib.sha256(client).digest() == stored


def test_the_verifier_is_salted() -> None:
    assert verifier("pencil") != verifier("pencil")


def test_each_part_has_a_password_and_none_has_another_s() -> None:
    made = WANTED["database"].missing({})
    assert set(made) == {"postgres-password", "owner-password", *(f"{part}-password" for part in PARTS)}
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch(rb"[A-Za-z0-9_-]{43}", password) for password in made.values())


@given(st.sets(st.sampled_from(sorted(WANTED["database"].make))))
def test_only_what_is_missing_is_made(present: set[str]) -> None:
    assert set(WANTED["database"].missing(dict.fromkeys(present, "kept"))) == set(WANTED["database"].make) - present


@pytest.mark.parametrize("name", ["signing-keys", "credentials-key"])
def test_keys_that_somebody_rotated_are_enough(name: str) -> None:
    assert len(WANTED[name].missing({})) == 1
    assert WANTED[name].missing({"chosen-by-hand": "kept"}) == {}


def test_the_signing_key_is_a_p_256_key_whose_file_stem_is_its_id() -> None:
    ((name, pem),) = WANTED["signing-keys"].missing({}).items()
    assert re.fullmatch(r"key-[0-9]{8}t[0-9]{6}z\.pem", name)
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"


def test_the_sealing_key_is_one_that_operator_and_syncer_can_load(tmp_path: Path) -> None:
    ((name, content),) = WANTED["credentials-key"].missing({}).items()
    (tmp_path / name).write_bytes(content)
    assert Keys.load(tmp_path).newest == name


def test_the_first_user_has_a_random_password_that_its_line_fits() -> None:
    made, other = WANTED["users"].missing({}), WANTED["users"].missing({})
    assert set(made) == {"admin-password", "htpasswd"}
    assert re.fullmatch(rb"[A-Za-z0-9_-]{43}", made["admin-password"])
    assert made["admin-password"] != other["admin-password"]
    name, line = made["htpasswd"].rstrip(b"\n").split(b":")
    assert name == b"admin"
    assert bcrypt.checkpw(made["admin-password"], line)


def test_users_that_somebody_keeps_are_kept_and_a_lost_file_is_made_from_the_password_that_is_there() -> None:
    assert WANTED["users"].missing({"htpasswd": "a2VwdA=="}) == {}
    made = WANTED["users"].missing({"admin-password": base64.b64encode(b"chosen").decode()})
    assert set(made) == {"htpasswd"}
    assert bcrypt.checkpw(b"chosen", made["htpasswd"].rstrip(b"\n").split(b":")[1])
    assert "users" not in {wanted.name for wanted in wanted_secrets(dataclasses.replace(SETTINGS, users_secret=""))}


def test_the_definitions_are_those_of_the_tree() -> None:
    assert [crd["metadata"]["name"] for crd in read_crds(TOP / "crds")] == [
        "distributions.entrepot.dev",
        "remotes.entrepot.dev",
        "repositories.entrepot.dev",
        "repositoryversions.entrepot.dev",
    ]


def test_a_directory_without_definitions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="no CustomResourceDefinitions in"):
        read_crds(tmp_path)
    (tmp_path / "secret.yaml").write_text("kind: Secret\n")
    with pytest.raises(SetupFailed, match=r"secret\.yaml holds something"):
        read_crds(tmp_path)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(TOP / part) for part in ("core", "services/setup"))
    return subprocess.run(
        [sys.executable, "-m", "entrepot_setup", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("uninstall",), ("install", "now")])
def test_a_wrong_call_shows_how_to_call_it(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 64
    assert done.stderr == "usage: python -m entrepot_setup install|migrate\n"


def test_a_missing_setting_is_named() -> None:
    done = run("migrate")
    assert (done.returncode, done.stderr) == (64, "ENTREPOT_DATABASE_DSN is not set; it is required\n")
    done = run("install", ENTREPOT_SETUP_TIMEOUT="soon")
    assert done.returncode == 64
    assert "ENTREPOT_SETUP_TIMEOUT must be a duration such as 30s, not 'soon'" in done.stderr


def test_the_reason_of_a_failure_is_left_for_kubernetes(tmp_path: Path) -> None:
    log = tmp_path / "termination"
    done = run(
        "migrate",
        ENTREPOT_DATABASE_DSN="postgresql://entrepot_owner@127.0.0.1:1/entrepot",
        ENTREPOT_SETUP_TIMEOUT="0s",
        ENTREPOT_TERMINATION_LOG=str(log),
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"PostgreSQL at 127\.0\.0\.1:1 was not ready within 0 s: PostgreSQL does not answer: .*\n", log.read_text()
    )


def test_every_setting_is_documented() -> None:
    page = (TOP / "docs" / "installation.md").read_text()
    settings = {
        f"{kind.prefix}{field.name.upper()}"
        for kind in (SetupSettings, InstallSettings, AdminSettings)
        for field in dataclasses.fields(kind)
    }
    assert {name for name in settings if f"`{name}`" not in page} == set()
