"""Who asks for a token.

An Authenticator turns an Authorization header into a Subject. Further ones (cluster tokens by TokenReview, users of an htpasswd Secret)
are further classes behind the same interface; the rest of the service does not change with them.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Protocol

from entrepot.errors import RegistryError

__all__ = ["ANONYMOUS", "AnonymousOnly", "Authenticator", "Subject"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A name and groups as Kubernetes RBAC knows them; an empty name is nobody."""

    name: str
    groups: tuple[str, ...] = ()

    @property
    def is_anonymous(self) -> bool:
        return not self.name


ANONYMOUS = Subject("", ("system:unauthenticated",))


class Authenticator(Protocol):
    """Credentials -> Subject."""

    async def authenticate(self, authorization: str | None) -> Subject:
        """The subject of an Authorization header; ANONYMOUS if there is none. Raises RegistryError 401 for wrong credentials."""
        ...


class AnonymousOnly:
    """Nobody has an identity here yet.

    Credentials are refused, not ignored: who sends them believes that they count, and would take what is missing for not existing.
    """

    async def authenticate(self, authorization: str | None) -> Subject:
        """See Authenticator."""
        if authorization is None or _is_blank(authorization):
            return ANONYMOUS
        raise RegistryError(
            401, "UNAUTHORIZED",
            "this version offers anonymous pull of public content only: there are no accounts yet; log out of this registry and try again",
            headers={"WWW-Authenticate": 'Basic realm="entrepot"'},
        )  # fmt: skip


def _is_blank(authorization: str) -> bool:
    """Some clients say "nobody" with Basic credentials that are an empty name and an empty password."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        return base64.b64decode(encoded.strip(), validate=True) == b":"
    except (binascii.Error, ValueError):
        return False
