"""Passwords: whether they may come this way at all, and what they are exchanged for.

Clients send a password to `/token`, and some (scripts, small libraries) with every request. Here it is exchanged at the token service for a token
of the scope that the request needs, and from then on all is as with that token. What is kept is the token, under a keyed hash of the
credentials, until shortly before it expires.

A password over plain HTTP is anybody's on the way. It is taken only where the client came to this host itself (a loopback name, which is
how nodes reach their NodePort), or by TLS: to a listed https address, or by the word of a trusted proxy. A setting lifts this.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from dataclasses import dataclass
from urllib.parse import urlencode

import msgspec

from entrepot.errors import RegistryError
from entrepot.web.calls import Call
from entrepot.web.proxies import Proxies
from entrepot.web.remembered import Remembered
from entrepot_registry.origins import Origins
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.token_proxy import TokenService

__all__ = ["LoginRefused", "Logins", "PasswordRule"]

_MARGIN = 15.0
"""Seconds before its end that a token is not used any more: a request takes time, and clocks differ."""


class LoginRefused(Exception):
    """The credentials are wrong; the message is the token service's, for the client."""


class _TokenAnswer(msgspec.Struct):
    token: str
    expires_in: float


class _ErrorText(msgspec.Struct):
    message: str = "authentication is required"


class _ErrorAnswer(msgspec.Struct):
    errors: list[_ErrorText]


@dataclass(frozen=True, slots=True)
class _Login:
    token: str
    seconds: float


class PasswordRule:
    """Whether credentials that are worth something to a listener may come the way they came."""

    def __init__(self, settings: RegistrySettings, *, proxies: Proxies) -> None:
        self._insecure = settings.insecure_login
        self._origins = Origins(settings.external_urls)
        self._proxies = proxies

    def check(self, call: Call) -> None:
        """Raises RegistryError 403."""
        request = call.request
        host = request.headers.get("Host")
        if self._insecure or _is_loopback(host):
            return
        said = request.headers.get("X-Forwarded-Proto") if self._proxies.trusts(request.remote) else None
        if said.strip().lower() == "https" if said else self._origins.is_https(host):
            return
        raise RegistryError(
            403,
            "DENIED",
            "passwords and tokens of others are not taken over plain HTTP here: log in through the registry's https address, "
            "through localhost, or let the registry's operator allow it (ENTREPOT_INSECURE_LOGIN)",
        )


class Logins:
    """Basic credentials -> a token."""

    def __init__(self, service: TokenService, settings: RegistrySettings, *, rule: PasswordRule) -> None:
        self._service = service
        self._service_id = settings.service_id
        self._rule = rule
        self._secret = secrets.token_bytes(32)
        self._kept: Remembered[bytes, _Login] = Remembered(
            size=settings.login_cache, lifetime=lambda login: login.seconds
        )

    async def token(self, call: Call, *, scope: str) -> str:
        """A token for the request's Basic credentials. Raises LoginRefused, and RegistryError 403, 429 and 503."""
        self._rule.check(call)
        authorization = call.request.headers["Authorization"]
        text = f"{scope}\n{authorization}".encode("utf-8", "surrogateescape")
        key = hashlib.blake2b(text, key=self._secret, digest_size=32).digest()
        login = await self._kept.get(key, lambda: self._log_in(call, authorization, scope=scope))
        return login.token

    async def _log_in(self, call: Call, authorization: str, *, scope: str) -> _Login:
        query = {"service": self._service_id, **({"scope": scope} if scope else {})}
        answer = await self._service.ask(
            urlencode(query), headers={"Authorization": authorization}, request_id=call.request_id
        )
        try:
            if answer.status == 200:
                given = msgspec.json.decode(answer.body, type=_TokenAnswer)
                return _Login(given.token, given.expires_in - _MARGIN)
            message = msgspec.json.decode(answer.body, type=_ErrorAnswer).errors[0].message
        except (msgspec.DecodeError, IndexError) as error:
            raise TokenService.away() from error
        if answer.status == 401:
            raise LoginRefused(message)
        if answer.status == 429:
            after = answer.headers.get("Retry-After", "5")
            raise RegistryError(429, "TOOMANYREQUESTS", message, headers={"Retry-After": after})
        raise TokenService.away()


def _is_loopback(host: str | None) -> bool:
    """Whether a Host header names the client's own machine."""
    name = (host or "").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
