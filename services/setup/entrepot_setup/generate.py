"""Where the release's secrets come from: the operating system's random numbers, in the form each reader expects."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import bcrypt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from entrepot_setup.settings import InstallSettings

__all__ = ["ADMIN", "PARTS", "Wanted", "WantedUsers", "wanted_secrets"]

PARTS: Final = ("operator", "registry", "token", "syncer", "keeper")
"""Parts that log in to PostgreSQL, each as the role `entrepot_<part>`. A part that comes later gets its key at the upgrade."""

ADMIN: Final = "admin"
"""The registry's first user; the chart binds it to the role that may do everything."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A Secret that must be there. `make` gives the value of each key that is missing from it."""

    name: str
    purpose: str
    make: Mapping[str, Callable[[], bytes]]
    any_key: bool = False
    """One key by any name is enough: its names are key ids, and whoever rotates keys chooses them."""

    def missing(self, present: Mapping[str, str]) -> dict[str, bytes]:
        """What has to be added to a Secret with these keys (their values are base64); what is there is never changed."""
        if self.any_key and present:
            return {}
        return {key: make() for key, make in self.make.items() if key not in present}


class WantedUsers(Wanted):
    """The registry's first user, whose two keys belong together: a password that people read, and the line that it is checked by.

    Whoever keeps an htpasswd file of his own there needs no password beside it.
    """

    def missing(self, present: Mapping[str, str]) -> dict[str, bytes]:
        """See Wanted. Without the file its line is made from the password that is there."""
        if "htpasswd" in present:
            return {}
        kept = present.get("admin-password")
        password = _password() if kept is None else base64.b64decode(kept)
        made = {"admin-password": password, "htpasswd": _user(ADMIN, password)}
        return {key: value for key, value in made.items() if key not in present}


def wanted_secrets(settings: InstallSettings) -> list[Wanted]:
    """All Secrets of a release."""
    key_id = f"key-{datetime.now(UTC):%Y%m%dt%H%M%Sz}"  # sorts by time: the newest key takes over
    passwords = ("postgres", "owner", *PARTS)
    users = [WantedUsers(settings.users_secret, "users of the registry", {})] if settings.users_secret else []
    return [
        Wanted(
            settings.database_secret, "passwords of the PostgreSQL roles", {f"{role}-password": _password for role in passwords}
        ),
        Wanted(
            settings.storage_secret, "keys to S3", {"access-key-id": _access_key, "secret-access-key": _password}
        ),
        Wanted(
            settings.signing_keys_secret, "private keys that sign tokens", {f"{key_id}.pem": _signing_key}, any_key=True
        ),
        Wanted(
            settings.credentials_key_secret, "keys that seal upstream credentials", {key_id: _sealing_key}, any_key=True
        ),
        *users,
    ]  # fmt: skip


def _password() -> bytes:
    return secrets.token_urlsafe(32).encode()


def _user(name: str, password: bytes) -> bytes:
    """A line of an htpasswd file."""
    return name.encode() + b":" + bcrypt.hashpw(password, bcrypt.gensalt()) + b"\n"


def _access_key() -> bytes:
    return b"entrepot-" + secrets.token_hex(8).encode()


def _signing_key() -> bytes:
    """A P-256 key, PKCS #8 in PEM (RFC 5958), for ES256."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _sealing_key() -> bytes:
    return base64.b64encode(secrets.token_bytes(32)) + b"\n"
