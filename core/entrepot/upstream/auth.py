"""Authentication to an upstream, and to whom its credentials may go.

An upstream answers 401 and names in its challenge a *realm*, the token service that takes the password. Following that blindly hands
passwords to whoever can write a header (CVE-2026-33540). The rule here: credentials go to the Remote's own origin, and to a realm that is

- on the same host (another port may be meant; from https never down to http), or
- reached by https, for a Remote that is https itself, on a host of the same domain: the host's parent (`gitlab.com` for
  `registry.gitlab.com`), or one with all but the first label in common, two labels at least (`auth.docker.io` for `registry-1.docker.io`), or
- reached by https, on a host that the setting `ENTREPOT_UPSTREAM_TRUSTED_REALMS` lists.

Where no credentials are configured any realm may be asked, there being nothing to give away. Tokens go to the Remote's origin alone.
They are cached for the run, by realm, service and scope, and asked for once however many requests need them.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from entrepot.errors import UpstreamInvalid, UpstreamUnauthorized
from entrepot.oci.challenge import Challenge, ChallengeInvalid, parse_challenges
from entrepot.oci.errors import excerpt
from entrepot.oci.hosts import Origin, UrlInvalid, origin

__all__ = ["Authenticator", "TokenFetcher", "may_receive_credentials"]

TokenFetcher = Callable[[str, str | None], Awaitable[bytes]]
"""Asks a URL, with this Authorization if any, and gives the body of its 200."""

_TOKEN = re.compile(r"[\x21-\x7e]{1,32768}")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_DEFAULT_LIFETIME = 60.0
"""Seconds; CNCF distribution, "Token Authentication Specification": what holds when `expires_in` is not given."""
_MARGIN = 10.0
"""Seconds before its end from which on a token is not used any more."""


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    good_until: float


def may_receive_credentials(realm: Origin, *, remote: Origin, trusted: Sequence[str] = ()) -> bool:
    """Whether a realm may be sent the credentials of a remote; the rule is in the module's docstring."""
    if remote.scheme == "https" and realm.scheme != "https":
        return False
    if realm.host == remote.host:
        return True
    if realm.scheme != "https" or remote.scheme != "https":
        return False
    if realm.host in {host.lower() for host in trusted}:
        return True
    if _is_address(remote.host) or _is_address(realm.host):
        return False
    domain = remote.host.partition(".")[2]
    if domain.count(".") < 1:
        return False
    return realm.host == domain or realm.host.partition(".")[2] == domain


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


class Authenticator:
    """The Authorization of all requests to one upstream."""

    def __init__(
        self, remote: Origin, *, default_scope: str, username: str, password: str, trusted_realms: Sequence[str],
        fetch: TokenFetcher,
    ) -> None:  # fmt: skip
        self._remote = remote
        self._default_scope = default_scope
        self._basic = None
        if username or password:
            self._basic = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
        self._trusted = trusted_realms
        self._fetch = fetch
        self._tokens: dict[tuple[str, str, str], _Token] = {}
        self._current: tuple[str, str, str] | None = None
        self._uses_basic = False
        self._lock = asyncio.Lock()

    async def header(self) -> str | None:
        """What to send with a request to the remote's origin, as far as is known; a token near its end is replaced first."""
        if self._uses_basic:
            return self._basic
        if self._current is None:
            return None
        return (await self._token(self._current)).header

    async def challenged(self, challenges: Sequence[str], *, sent: str | None) -> str | None:
        """After a 401 to a request that was sent with `sent`: what to send instead; None if there is nothing better."""
        try:
            offered = parse_challenges(challenges)
        except ChallengeInvalid as error:
            raise UpstreamInvalid(f"the upstream's challenge cannot be read: {error}") from error
        bearer = next((c for c in offered if c.scheme == "bearer"), None)
        if bearer is not None:
            key = self._key(bearer)
            known = self._tokens.get(key)
            if known is not None and known.header == sent:
                # It was refused although it should be good: perhaps revoked, and worth one more.
                self._tokens.pop(key)
            self._current = key
            header = (await self._token(key)).header
            return header if header != sent else None
        if any(c.scheme == "basic" for c in offered) and self._basic is not None and sent != self._basic:
            self._uses_basic = True
            return self._basic
        return None

    def _key(self, challenge: Challenge) -> tuple[str, str, str]:
        realm = challenge.parameters.get("realm", "")
        self._origin(realm)
        service = challenge.parameters.get("service", "")
        scope = challenge.parameters.get("scope") or self._default_scope
        if not (_PRINTABLE.fullmatch(service) and _PRINTABLE.fullmatch(scope)):
            raise UpstreamInvalid("the upstream's challenge names no usable service or scope")
        return realm, service, scope

    def _origin(self, realm: str) -> Origin:
        try:
            if not _PRINTABLE.fullmatch(realm):
                raise UrlInvalid("not in ASCII")
            parts = urlsplit(realm)
            return origin(urlunsplit((parts.scheme, parts.netloc, "", "", "")))
        except ValueError as error:  # UrlInvalid is one, and urlsplit raises plain ones
            raise UpstreamInvalid(f"the upstream's challenge names no usable realm: {excerpt(realm)}") from error

    async def _token(self, key: tuple[str, str, str]) -> _Token:
        # One lock for all keys: an upstream has one in all but theory, and many requests need it at the same time.
        async with self._lock:
            known = self._tokens.get(key)
            if known is not None and time.monotonic() < known.good_until:
                return known
            token = await self._ask(key)
            self._tokens[key] = token
            return token

    async def _ask(self, key: tuple[str, str, str]) -> _Token:
        realm, service, scope = key
        place = self._origin(realm)
        authorization = None
        if self._basic is not None:
            if not may_receive_credentials(place, remote=self._remote, trusted=self._trusted):
                raise UpstreamUnauthorized(
                    f"{self._remote} asks for its credentials to be sent to {place}, which is neither its own host nor a trusted realm"
                )
            authorization = self._basic
        parts = urlsplit(realm)
        query = [*parse_qsl(parts.query), *([("service", service)] if service else []), ("scope", scope)]
        url = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))
        asked = time.monotonic()
        body = await self._fetch(url, authorization)
        try:
            answer = msgspec.json.decode(body, type=_TokenAnswer)
        except (msgspec.MsgspecError, ValueError):
            # Without its cause, which could quote a token.
            raise UpstreamInvalid(f"the token service at {place} did not answer with a token") from None
        text = answer.token or answer.access_token or ""
        if not _TOKEN.fullmatch(text):
            raise UpstreamInvalid(f"the token service at {place} did not answer with a token")
        lifetime = answer.expires_in if answer.expires_in and answer.expires_in > 0 else _DEFAULT_LIFETIME
        return _Token(f"Bearer {text}", asked + max(lifetime - _MARGIN, lifetime / 2))
