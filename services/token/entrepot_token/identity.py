"""Who asks for a token.

An Authenticator turns an Authorization header into a Subject, a name and groups as Kubernetes knows them. There are two sources: users of
an htpasswd file (`htpasswd`), and whoever the cluster knows by a token of its own (`reviews`). Which of them is asked never depends on the
user name: bcrypt takes 72 bytes at most, so what is longer is a token, and what is not is a password. A cluster's token may also come as
Bearer. So a name that exists and one that does not take the same way.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from entrepot.errors import RegistryError

__all__ = [
    "ANONYMOUS",
    "AUTHENTICATED",
    "MAX_PASSWORD",
    "Authenticator",
    "Credentials",
    "Identities",
    "PasswordSource",
    "Subject",
    "TokenSource",
    "read_credentials",
]

AUTHENTICATED: Final = "entrepot:authenticated"
"""The group of everybody who is somebody."""

MAX_PASSWORD: Final = 72
"""Bytes of a password that bcrypt takes."""

_MAX_TOKEN: Final = 6 * 1024
_CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="entrepot"'}


@dataclass(frozen=True, slots=True)
class Subject:
    """A name and groups as Kubernetes RBAC knows them; an empty name is nobody."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What else the cluster said of it, passed on as it came."""

    @property
    def is_anonymous(self) -> bool:
        return not self.name


ANONYMOUS: Final = Subject("", ("system:unauthenticated",))


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password, or a token without a name."""

    name: str
    secret: str
    is_token: bool

    def __repr__(self) -> str:
        return "Credentials(…)"


class Authenticator(Protocol):
    """Credentials -> Subject."""

    async def authenticate(self, authorization: str | None) -> Subject:
        """The subject of an Authorization header; ANONYMOUS if there is none.

        Raises RegistryError: 401 for wrong credentials, 429 where too many are tried; and Failed where a source of identities is away.
        """
        ...


class PasswordSource(Protocol):
    """Users with passwords."""

    async def check(self, name: str, password: str) -> Subject | None:
        """The user, None if there is none or the password is wrong. Raises RegistryError 429."""
        ...


class TokenSource(Protocol):
    """Tokens of somebody else."""

    async def identify(self, token: str) -> Subject | None:
        """Whose it is; None if it is nobody's, or not meant for us. Raises Failed."""
        ...


class Identities:
    """The sources there are, asked in turn."""

    def __init__(self, users: PasswordSource, cluster: TokenSource | None) -> None:
        self._users = users
        self._cluster = cluster

    async def authenticate(self, authorization: str | None) -> Subject:
        """See Authenticator."""
        credentials = read_credentials(authorization)
        if credentials is None:
            return ANONYMOUS
        if not credentials.is_token:
            subject = await self._users.check(credentials.name, credentials.secret)
            if subject is None:
                _refuse("the user name or the password is wrong")
            return subject
        subject = await self._cluster.identify(credentials.secret) if self._cluster is not None else None
        if subject is None:
            _refuse(
                "the cluster does not know this token, or it is not one for this registry: make one with "
                "`kubectl create token <serviceaccount> --audience=<the registry's audience>`"
            )
        return subject


def read_credentials(authorization: str | None) -> Credentials | None:
    """What an Authorization header holds; None if nobody's. Raises RegistryError 401."""
    if authorization is None or not authorization.strip():
        return None
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return _token(value)
    if scheme.lower() != "basic":
        _refuse("credentials are a user name and a password (Basic), or a token of the cluster (Bearer)")
    try:
        name, colon, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        _refuse("the credentials cannot be read: Basic takes base64 of <user name>:<password>, in UTF-8")
    if not colon:
        _refuse("the credentials cannot be read: Basic takes base64 of <user name>:<password>, in UTF-8")
    if not name and not secret:
        return None  # some clients say "nobody" like this
    if not secret:
        _refuse("the password is empty")
    return _token(secret) if len(secret.encode()) > MAX_PASSWORD else Credentials(name, secret, is_token=False)


def _token(value: str) -> Credentials:
    if len(value) > _MAX_TOKEN or not value.isascii() or not value.isprintable():
        _refuse("this is not a token of a cluster")
    return Credentials("", value, is_token=True)


def _refuse(message: str) -> NoReturn:
    raise RegistryError(401, "UNAUTHORIZED", message, headers=dict(_CHALLENGE))
