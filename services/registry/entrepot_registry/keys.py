"""The public keys of the token service.

They are read from its JWKS, again now and then, and again when a token names a key that is not known, but no oftener than a setting allows:
whoever invents key ids must not make requests for us. While the token service is away the last keys stay. A key that is not published any more verifies for as long as tokens live: with several
token services one may still sign with it, or not have a newer one yet that another signs with. A token's own header never
brings or points to a key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import jwt
import msgspec
import structlog
from prometheus_client import Counter
from yarl import URL

from entrepot.errors import EntrepotError, Failed
from entrepot_registry.settings import RegistrySettings

__all__ = ["KeySet", "KeysUnavailable", "PublicKey", "read_keys"]

_MAX_BODY = 64 * 1024
_MAX_KEYS = 32
_TIMEOUT = 3.0
_MIN_RSA_BITS = 2048

_log = structlog.get_logger("keys")


class KeysUnavailable(Failed):
    """There are no keys yet, because the token service has not been reached since the start."""

    default_reason = "TokenServiceUnavailable"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key and the one algorithm it verifies."""

    id: str
    algorithm: str
    key: Any
    """A key object of `cryptography`, never text: text could be taken for a symmetric secret."""


def read_keys(body: bytes, *, algorithms: Iterable[str]) -> dict[str, PublicKey]:
    """The usable keys of a JWKS (RFC 7517), by id; others are passed over. Raises ValueError if it is no JWKS."""
    try:
        document = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ValueError("not a JSON object") from error
    entries = document.get("keys")
    if not isinstance(entries, list) or len(entries) > _MAX_KEYS:
        raise ValueError(f"'keys' is not a list of at most {_MAX_KEYS}")
    allowed = frozenset(algorithms)
    found: dict[str, PublicKey] = {}
    for entry in entries:
        key = _read_key(entry, allowed) if isinstance(entry, dict) else None
        if key is not None:
            found[key.id] = key
    return found


def _read_key(entry: Mapping[str, Any], allowed: frozenset[str]) -> PublicKey | None:
    identity, algorithm, kind = entry.get("kid"), entry.get("alg"), entry.get("kty")
    if not isinstance(identity, str) or not isinstance(algorithm, str) or algorithm not in allowed:
        return None
    if (kind, entry.get("crv")) not in {("EC", "P-256"), ("RSA", None)} or (kind == "EC") != (algorithm == "ES256"):
        return None
    public = {name: value for name, value in entry.items() if name in {"kty", "crv", "x", "y", "n", "e"}}
    try:
        key = jwt.PyJWK(public, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if kind == "RSA" and key.key_size < _MIN_RSA_BITS:
        return None
    return PublicKey(identity, algorithm, key)


class KeySet:
    """The keys at present. `async with` keeps them fresh."""

    def __init__(self, session: aiohttp.ClientSession, settings: RegistrySettings, *, fetches: Counter) -> None:
        self._session = session
        self._url = URL(settings.token_url.rstrip("/") + "/jwks")
        self._algorithms = settings.token_algorithms
        self._interval = settings.keys_interval.total_seconds()
        self._retry = settings.keys_retry.total_seconds()
        self._fetches = fetches
        self._kept = settings.keys_kept.total_seconds()
        self._keys: dict[str, PublicKey] = {}
        self._published_at: dict[str, float] = {}
        self._asked_at = -1e9
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> KeySet:
        self._task = asyncio.create_task(self._keep_fresh(), name="keys")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def check(self) -> None:
        """Raises `KeysUnavailable` while there are none."""
        if not self._keys:
            raise KeysUnavailable("the token service's public keys have not been read yet")

    async def get(self, identity: str) -> PublicKey | None:
        """The key of this id; asks the token service if it is not known. Raises `KeysUnavailable`."""
        key = self._keys.get(identity)
        if key is None:
            async with self._lock:  # whoever waits here finds what the first one brought
                key = self._keys.get(identity)
                if key is None and time.monotonic() - self._asked_at >= (self._retry if self._keys else 1.0):
                    await self._refresh()
                    key = self._keys.get(identity)
        await self.check()
        return key

    async def _keep_fresh(self) -> None:
        delay = 0.25
        while True:
            async with self._lock:
                done = await self._refresh()
            delay = self._interval if done else min(delay * 2, self._retry)
            await asyncio.sleep(delay)

    async def _refresh(self) -> bool:
        self._asked_at = time.monotonic()
        try:
            keys = await self._fetch()
        except (EntrepotError, aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._fetches.labels("failed").inc()
            _log.warning(
                "the public keys were not read",
                url=str(self._url),
                error=str(error) or type(error).__name__,
                kept=len(self._keys),
            )
            return False
        self._fetches.labels("read").inc()
        now = time.monotonic()
        kept = {name: key for name, key in self._keys.items() if now - self._published_at[name] < self._kept}
        self._published_at |= dict.fromkeys(keys, now)
        if len(kept) > _MAX_KEYS:
            kept = {}
        keys = kept | keys
        if set(keys) != set(self._keys):
            _log.info("public keys", ids=sorted(keys))
        self._keys = keys
        self._published_at = {name: self._published_at[name] for name in keys}
        return True

    async def _fetch(self) -> dict[str, PublicKey]:
        async with asyncio.timeout(_TIMEOUT), self._session.get(self._url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise KeysUnavailable(f"the token service answered {answer.status}")
            body = b""
            while len(body) <= _MAX_BODY and (chunk := await answer.content.readany()):
                body += chunk
        if len(body) > _MAX_BODY:
            raise ValueError(f"more than {_MAX_BODY} bytes")
        keys = read_keys(body, algorithms=self._algorithms)
        if not keys:
            raise ValueError(f"no key for {', '.join(self._algorithms)}")
        return keys
