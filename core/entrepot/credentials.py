"""Upstream credentials on their way from the Secrets to the sync runs, sealed while they lie in PostgreSQL.

The operator may read the referenced Secrets and write what this module makes of them; the syncer may read that, and has no right to read
Secrets. Whoever gets hold of the table alone holds nothing: AES-256-GCM (NIST SP 800-38D), the keys being files that PostgreSQL never sees.

A Remote has one sealed row, and its Secret may hold several entries for its host, each for some of the repositories there. All of them are
sealed, so that the row is the same whoever writes it, and the run chooses the one for its repository.

A sealed row belongs to one Remote and one origin: both are associated data, so a row copied to another Remote, or kept while the Remote's
url was changed to another host, does not open.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets as random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from entrepot.errors import Failed
from entrepot.oci.hosts import find_auth

__all__ = ["Credentials", "CredentialsUnreadable", "Keys", "KeysInvalid", "seal", "unseal"]

_NONCE: Final = 12  # bytes; SP 800-38D section 5.2.1.1 recommends 96 bits
_KEY: Final = 32
_MAX_KEY_FILE: Final = 4096


class KeysInvalid(Exception):
    """The directory of keys cannot be used; the message names the file and never holds any of its content."""


class CredentialsUnreadable(Failed):
    """A sealed row does not open: its key is not here, it was made for another Remote or origin, or it was damaged."""

    default_reason = "CredentialsUnreadable"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a registry may ask for. Empty strings stand for what there is not; certificates and keys are PEM.

    `auths` has user name and password by `host` or `host/path`, for whoever chooses with `for_repository`.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    ca: str = field(default="", repr=False)
    client_cert: str = field(default="", repr=False)
    client_key: str = field(default="", repr=False)
    auths: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False, hash=False)

    def __bool__(self) -> bool:
        return any((self.username, self.password, self.ca, self.client_cert, self.client_key, self.auths))

    def for_repository(self, host: str, name: str) -> Credentials:
        """Those for one repository at the host: of `auths` the entry that holds it, by the longest path; none if there is no such entry."""
        if not self.auths:
            return self
        entries = {entry: {"username": user, "password": password} for entry, (user, password) in self.auths.items()}
        username, password = find_auth({"auths": entries}, host, name) or ("", "")
        return replace(self, username=username, password=password, auths={})


_JSON_NAMES: Final = {
    "username": "username",
    "password": "password",
    "ca": "ca",
    "client_cert": "clientCert",
    "client_key": "clientKey",
}


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys by id. The lexically last one seals, so a new key takes over by its name; all of them open."""

    by_id: Mapping[str, bytes] = field(repr=False)

    @property
    def newest(self) -> str:
        """The id of the key that seals."""
        return max(self.by_id)

    @classmethod
    def load(cls, directory: Path) -> Keys:
        """Read every file of the directory: its name is the key's id, its one line is 32 bytes in base64.

        Names that begin with a dot are left out: in a mounted Secret they are Kubernetes' own.

        Raises:
            KeysInvalid: there is no key, or a file is not one.
        """
        try:
            files = sorted(path for path in directory.iterdir() if not path.name.startswith(".") and path.is_file())
        except OSError as error:
            raise KeysInvalid(f"the directory of keys {directory} cannot be read: {error.strerror}") from error
        if not files:
            raise KeysInvalid(f"the directory of keys {directory} holds no key: a file with 32 random bytes in base64")
        return cls({path.name: _read_key(path) for path in files})


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_FILE)
    except OSError as error:
        raise KeysInvalid(f"the key {path} cannot be read: {error.strerror}") from error
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY:
        # Without its cause: the decoder's error would carry the text.
        raise KeysInvalid(f"the key {path} is not {_KEY} bytes in base64") from None
    return key


def _associated(remote: UUID, origin: str) -> bytes:
    return f"{remote}\n{origin}".encode()


def seal(keys: Keys, remote: UUID, *, origin: str, credentials: Credentials) -> tuple[str, bytes]:
    """Encrypt with the newest key; gives the key's id and nonce || ciphertext || tag. `origin` is `str(oci.hosts.origin(url))`."""
    values: dict[str, object] = {
        name: text for attribute, name in _JSON_NAMES.items() if (text := getattr(credentials, attribute))
    }
    if credentials.auths:
        values["auths"] = dict(credentials.auths)
    # A random nonce is safe up to 2^32 messages a key (SP 800-38D section 8.3), far above what a cluster's Remotes make.
    nonce = random.token_bytes(_NONCE)
    sealed = AESGCM(keys.by_id[keys.newest]).encrypt(nonce, json.dumps(values).encode(), _associated(remote, origin))
    return keys.newest, nonce + sealed


def unseal(keys: Keys, remote: UUID, *, origin: str, key_id: str, ciphertext: bytes) -> Credentials:
    """Decrypt what `seal` made for the same Remote and origin.

    Raises:
        CredentialsUnreadable: it does not open; the operator's next look at the Remote writes it anew.
    """
    key = keys.by_id.get(key_id)
    if key is None:
        raise CredentialsUnreadable(f"the credentials were encrypted with the key {key_id!r}, which is not here")
    try:
        plain = AESGCM(key).decrypt(ciphertext[:_NONCE], ciphertext[_NONCE:], _associated(remote, origin))
    except (InvalidTag, ValueError):
        raise CredentialsUnreadable(
            f"the encrypted credentials do not belong to this Remote at {origin}, or are damaged"
        ) from None
    values = json.loads(plain)
    auths = {str(entry): (str(user), str(password)) for entry, (user, password) in values.get("auths", {}).items()}
    return Credentials(
        **{attribute: str(values.get(name, "")) for attribute, name in _JSON_NAMES.items()},
        auths=auths,
    )
