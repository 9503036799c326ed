"""Private keys out of a directory.

The directory is a mounted Secret: a new key appears there without a restart, and in another replica up to a minute or two later. So it is
published at once, and signs (if its name is the last) only when it has been there for a while: by then a registry finds it at whichever
replica it asks. An old key stays published until its file goes. A directory that cannot be read, or holds a broken file, leaves
the keys as they were: tokens go on.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from entrepot.errors import Failed
from entrepot_token.settings import TokenSettings

__all__ = ["KeyInvalid", "KeyRing", "SigningKey", "load_keys"]

_MIN_RSA_BITS = 2048
_MAX_FILE = 64 * 1024
_MAX_KEYS = 16

_log = structlog.get_logger("keys")


class KeyInvalid(Failed):
    """The directory holds no usable signing key, or a file that is no key. The message never holds any of it."""

    default_reason = "SigningKeyInvalid"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and its public half as a registry reads it (RFC 7517)."""

    id: str
    algorithm: str
    key: EllipticCurvePrivateKey | RSAPrivateKey
    public: dict[str, Any]


def load_keys(directory: Path, *, algorithm: str) -> list[SigningKey]:
    """The keys, in the order of their names; the last one fits `algorithm`. Blocks. Raises KeyInvalid."""
    try:
        # What begins with a dot is how Kubernetes swaps the contents of a mounted Secret.
        paths = sorted(path for path in directory.iterdir() if not path.name.startswith(".") and path.is_file())
        if len(paths) > _MAX_KEYS:
            raise KeyInvalid(f"{directory} holds more than {_MAX_KEYS} keys")
        keys = [_read(path, algorithm=algorithm) for path in paths]
    except OSError as error:
        raise KeyInvalid(f"{directory} cannot be read: {error.strerror}") from error
    if not keys:
        raise KeyInvalid(f"{directory} holds no key")
    if keys[-1].algorithm != algorithm:
        raise KeyInvalid(f"the key {keys[-1].id} is not one for {algorithm}")
    return keys


def _read(path: Path, *, algorithm: str) -> SigningKey:
    with path.open("rb") as file:
        text = file.read(_MAX_FILE)
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyInvalid(f"{path.name} is not a private key in PEM without a password") from None
    identity = path.stem
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1):
        public, own = ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "ES256"
    elif isinstance(key, RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        public, own = (
            RSAAlgorithm.to_jwk(key.public_key(), as_dict=True),
            algorithm if algorithm != "ES256" else "RS256",
        )
    else:
        raise KeyInvalid(f"{path.name} is neither an EC P-256 key nor an RSA key of at least {_MIN_RSA_BITS} bits")
    return SigningKey(identity, own, key, {**public, "kid": identity, "alg": own, "use": "sig", "key_ops": ["verify"]})


def _fingerprint(directory: Path) -> tuple[tuple[str, int, int, int], ...]:
    if not directory.is_dir():
        return ()
    states = ((path.name, path.stat()) for path in sorted(directory.iterdir()))
    return tuple((name, state.st_mtime_ns, state.st_size, state.st_ino) for name, state in states)


def _identity(key: SigningKey) -> tuple[str, str]:
    return key.id, str(key.public.get("x") or key.public.get("n"))


class KeyRing:
    """The keys at present. `async with` reads them and keeps looking."""

    def __init__(self, settings: TokenSettings) -> None:
        self._directory = settings.signing_key_dir
        self._algorithm = settings.token_algorithm
        self._interval = settings.keys_interval.total_seconds()
        self._delay = settings.key_delay.total_seconds()
        self._keys: list[SigningKey] = []
        self._since: dict[tuple[str, str], float] = {}
        """When each key was first seen, by its id and its public half: another key under an old name is a new key."""
        self._seen: tuple[tuple[str, int, int, int], ...] | None = None
        self._problem = "the keys have not been read yet"
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> KeyRing:
        await self._look()
        self._task = asyncio.create_task(self._keep_looking(), name="keys")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def check(self) -> None:
        """Raises `KeyInvalid` while there is no key to sign with."""
        if not self._keys:
            raise KeyInvalid(self._problem)

    def published(self) -> list[dict[str, Any]]:
        """The public halves of all keys."""
        return [key.public for key in self._keys]

    def sign(self, claims: dict[str, Any]) -> str:
        """A token. Raises `KeyInvalid` while there is no key."""
        if not self._keys:
            raise KeyInvalid(self._problem)
        key = self._signer()
        return jwt.encode(claims, key.key, algorithm=key.algorithm, headers={"kid": key.id})

    def _signer(self) -> SigningKey:
        """The last key that the other replicas have as well by now. Where none is known to be (after the start), the first: keys are added behind."""
        usable = [key for key in self._keys if key.algorithm == self._algorithm]
        latest = time.monotonic() - self._delay
        return next((key for key in reversed(usable) if self._since[_identity(key)] <= latest), usable[0])

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._look()

    async def _look(self) -> None:
        try:
            seen = await asyncio.to_thread(_fingerprint, self._directory)
            if seen == self._seen:
                return
            keys = await asyncio.to_thread(load_keys, self._directory, algorithm=self._algorithm)
        except (KeyInvalid, OSError) as error:
            self._problem = str(error)
            _log.error("the signing keys were not read", error=self._problem, kept=[key.id for key in self._keys])
            return
        now = time.monotonic()
        self._since = {_identity(key): self._since.get(_identity(key), now) for key in keys}
        self._keys, self._seen = keys, seen
        _log.info("signing keys", ids=[key.id for key in keys], signs=self._signer().id, signs_next=keys[-1].id)
