"""Tokens: what they grant, and what a client without the right one is told.

A verified token is remembered until it expires, by a hash of it. What it grants names distributions by uuid as well as by path: who held a
path before does not get into what is there now. A token of nobody (no subject) counts only where the distribution is public at this
moment, which the same lookup that finds the content tells.

Who sends a password in place of a token gets the token that the token service gives for it (`logins`); nothing below knows the difference.

For anonymous clients a name that does not exist and one they may not read are the same: 401 with a challenge.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import jwt
from cachetools import TLRUCache
from prometheus_client import Counter

from entrepot.db.registry import Place
from entrepot.errors import RegistryError
from entrepot.oci.challenge import format_bearer
from entrepot.web.calls import Call
from entrepot.web.limits import RateLimit
from entrepot_registry.keys import KeySet, PublicKey
from entrepot_registry.logins import LoginRefused, Logins
from entrepot_registry.origins import Origins
from entrepot_registry.settings import RegistrySettings

__all__ = ["Grant", "Guard", "TokenInvalid", "read_claims"]

_REQUIRED = ["exp", "iat", "nbf", "aud", "iss", "sub"]
_MAX_GRANTS = 128
_ACTIONS = frozenset({"pull", "push", "delete"})
_SCOPES = {"pull": "pull", "push": "pull,push", "delete": "delete"}
"""By action, what the challenge tells the client to ask for."""
_CATALOG = "registry:catalog:*"


class TokenInvalid(Exception):
    """The token proves nothing; the message is for our log and never for the client."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a verified token says: for each name the uuid of the place that it stood for, and the actions there: pull, push, delete."""

    subject: str
    expires: float
    names: Mapping[str, tuple[UUID, frozenset[str]]]
    catalog: frozenset[str] | Literal["*"] = frozenset()
    """Namespaces whose Private distributions the subject may see listed, besides what its being somebody shows; "*": all."""
    has_catalog: bool = False
    """Whether the catalog was asked for; only then `catalog` says anything."""
    refused: frozenset[str] = frozenset()
    """Names that the token was asked for and does nothing for: asking for another token is no use."""
    readable: frozenset[str] = frozenset()
    """Namespaces whose distributions the subject may all pull from; told of those only that it may push to."""

    def allows(self, name: str, action: str) -> bool:
        """Whether the token grants this action on this name; the place that is found there is for `Guard.admit` to compare."""
        entry = self.names.get(name)
        return entry is not None and action in entry[1]

    @property
    def is_anonymous(self) -> bool:
        return not self.subject


def read_claims(token: str, key: PublicKey, *, audience: str, leeway: float) -> Grant:
    """Verify a token with this key, and no other algorithm than the key's. Raises TokenInvalid."""
    try:
        claims = jwt.decode(
            token, key.key, algorithms=[key.algorithm], audience=audience, issuer=audience, leeway=leeway,
            options={"require": _REQUIRED, "strict_aud": True},
        )  # fmt: skip
        names, catalog = _names(claims), _catalog(claims)
        refused, readable = _listed(claims, "refused"), _listed(claims, "readable")
        return Grant(
            claims["sub"], float(claims["exp"]), names, catalog or frozenset(), catalog is not None, refused, readable
        )
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise TokenInvalid(f"{type(error).__name__}: {error}") from error


def _names(claims: Mapping[str, Any]) -> dict[str, tuple[UUID, frozenset[str]]]:
    identities = claims.get("entrepot", {}).get("distributions", {})
    names: dict[str, tuple[UUID, frozenset[str]]] = {}
    for entry in claims.get("access", ())[:_MAX_GRANTS]:
        name = entry["name"]
        if entry["type"] == "repository" and name in identities:
            names[name] = UUID(identities[name]), frozenset(_ACTIONS.intersection(entry["actions"]))
    return names


def _listed(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    return frozenset(map(str, claims.get("entrepot", {}).get(name, ())[:_MAX_GRANTS]))


def _catalog(claims: Mapping[str, Any]) -> frozenset[str] | Literal["*"] | None:
    """None: the token is not one for the catalog."""
    if not any((entry["type"], entry["name"]) == ("registry", "catalog") for entry in claims["access"][:_MAX_GRANTS]):
        return None
    namespaces = claims["entrepot"]["catalog"]["namespaces"]
    return "*" if namespaces == "*" else frozenset(map(str, namespaces))


class Guard:
    """Who may do what here. `identify`, look up, then `admit` to where it was found."""

    def __init__(
        self,
        keys: KeySet,
        settings: RegistrySettings,
        *,
        logins: Logins,
        cache_hits: Counter,
        cache_misses: Counter,
        limit: RateLimit | None = None,
    ) -> None:
        self._keys = keys
        self._logins = logins
        self._limit = limit
        self._service = settings.service_id
        self._leeway = settings.clock_skew.total_seconds()
        self._origins = Origins(settings.external_urls)
        self._hits = cache_hits.labels("token")
        self._misses = cache_misses.labels("token")
        self._verified: TLRUCache[bytes, Grant] = TLRUCache(
            settings.token_cache, ttu=lambda _key, grant, _now: grant.expires, timer=time.time
        )

    async def identify(
        self, call: Call, *, name: str | None = None, action: str = "pull", mount_from: str | None = None
    ) -> Grant:
        """The grant of the request's token; `name`, if given, is where it must allow the action: pull, push or delete.

        `mount_from` is a further name that pull is asked for, in challenges and in exchange for a password. A token that was never asked for
        it is refused, so that the client asks for another, as it does where it has none; whether the grant allows it is the caller's to see.

        Raises RegistryError 401, for passwords also 403, 429 and 503, and `KeysUnavailable`.
        """
        grant = await self._counted(call, name, action, mount_from)
        call.subject = grant.subject or "anonymous"
        unasked = mount_from is not None and mount_from not in grant.names and mount_from not in grant.refused
        if name is not None and (not grant.allows(name, action) or unasked):
            raise self._challenge(
                call,
                _scope(name, action, mount_from),
                "the credentials do not allow this",
                error="insufficient_scope",
            )
        return grant

    async def identify_for_catalog(self, call: Call) -> Grant:
        """The grant of a token that was asked for the catalog. Raises as `identify`."""
        grant = await self._counted(call, None, "*", None)
        call.subject = grant.subject or "anonymous"
        if not grant.has_catalog:
            raise self._challenge(call, _CATALOG, "the token is not one for the catalog", error="insufficient_scope")
        return grant

    async def _counted(self, call: Call, name: str | None, action: str, mount_from: str | None) -> Grant:
        """The grant, and the request counted for its subject; for the client's address where there is none. Raises 429 as well."""
        limit = self._limit
        if limit is None:
            return await self._grant(call, name, action, mount_from)
        try:
            grant = await self._grant(call, name, action, mount_from)
        except RegistryError as error:
            if error.status != 429:
                limit.admit(None, call.client)
            raise
        limit.admit(grant.subject, call.client)
        return grant

    async def _grant(self, call: Call, name: str | None, action: str, mount_from: str | None) -> Grant:
        scheme, _, token = call.request.headers.get("Authorization", "").partition(" ")
        scheme = scheme.lower()
        try:
            if scheme == "bearer":
                return await self._verify(token.strip(" "), call)
            if scheme == "basic":
                token = await self._logins.token(call, scope=_scope(name, action, mount_from) or "")
                return await self._verify(token, call)
        except TokenInvalid as error:
            raise self._challenge(
                call,
                _scope(name, action, mount_from),
                "the token is not valid, or not any more",
                error="invalid_token",
            ) from error
        except LoginRefused as error:
            raise self._challenge(call, _scope(name, action, mount_from), str(error)) from error
        message = (
            f"tokens and passwords are taken here, not {scheme[:20]!r}" if scheme else "authentication is required"
        )
        raise self._challenge(call, _scope(name, action, mount_from), message)

    def admit(self, call: Call, grant: Grant, name: str, place: Place | None, *, action: str = "pull") -> None:
        """Judge the grant by what the lookup found at the name just now. Raises RegistryError 401 or 404."""
        if (
            place is not None
            and grant.allows(name, action)
            and place.uuid == grant.names[name][0]
            and (place.access == "Public" or not grant.is_anonymous)
        ):
            return
        if place is None and not grant.is_anonymous:
            raise RegistryError(404, "NAME_UNKNOWN", "no such repository", detail={"name": name})
        raise self._challenge(
            call, _scope(name, action), "the credentials do not allow this any more", error="insufficient_scope"
        )

    async def _verify(self, token: str, call: Call) -> Grant:
        cache_key = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        grant = self._verified.get(cache_key)
        if grant is not None:
            self._hits.inc()
            return grant
        self._misses.inc()
        if self._limit is not None:
            # A signature costs more to verify than a refusal to say.
            self._limit.check(call.client)
        try:
            identity = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise TokenInvalid(f"{type(error).__name__}: {error}") from error
        key = await self._keys.get(identity) if isinstance(identity, str) else None
        if key is None:
            raise TokenInvalid("signed with a key that is not the token service's")
        grant = read_claims(token, key, audience=self._service, leeway=self._leeway)
        self._verified[cache_key] = grant
        return grant

    def _challenge(self, call: Call, scope: str | None, message: str, *, error: str | None = None) -> RegistryError:
        realm = self._origins.of(call.request.headers.get("Host")) + "/token"
        header = format_bearer(realm=realm, service=self._service, scope=scope, error=error)
        return RegistryError(401, "UNAUTHORIZED", message, headers={"WWW-Authenticate": header})


def _scope(name: str | None, action: str, mount_from: str | None = None) -> str | None:
    """What a client has to ask for, to be let in (CNCF distribution, "Token Scope Documentation")."""
    if name is None:
        return _CATALOG if action == "*" else None
    scope = f"repository:{name}:{_SCOPES[action]}"
    return f"{scope} repository:{mount_from}:pull" if mount_from and mount_from != name else scope
