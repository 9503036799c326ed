"""Users of an htpasswd file.

Only bcrypt is taken: the other forms of such files can be guessed by the billion. bcrypt is slow on purpose, a fifth of a second of a
processor, so it runs in threads, few at a time; a password that was right is remembered for a while under a keyed hash (a pull is several
token requests), for as long as the file has the same line; and after too many wrong ones a name has to wait. A name that does not exist
costs as much as one that does.

A user is `entrepot:htpasswd:<name>` to Kubernetes RBAC, whatever the file says: no line makes a `system:` name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import bcrypt
import structlog
from cachetools import TTLCache
from prometheus_client import Counter

from entrepot.errors import RegistryError
from entrepot.web.remembered import Remembered
from entrepot_token.identity import AUTHENTICATED, Subject
from entrepot_token.settings import TokenSettings
from entrepot_token.watched import WatchedFile

__all__ = ["GROUP", "PREFIX", "Htpasswd", "Users", "parse_users"]

PREFIX: Final = "entrepot:htpasswd:"
GROUP: Final = "entrepot:htpasswd"

# bcrypt's own form: $2y$ (Apache's htpasswd), $2b$ or $2a$, the cost, 22 characters of salt and 31 of hash.
_LINE = re.compile(rb"([A-Za-z0-9][A-Za-z0-9._@+-]{0,127}):(\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53})")
_COSTS: Final = range(4, 16)
_MAX_USERS: Final = 10_000
_COST: Final = 12
_NAMES: Final = 10_000
"""Names whose wrong passwords are counted."""

_log = structlog.get_logger("htpasswd")

Users = Mapping[str, bytes]
"""Hashes by user name."""


def parse_users(data: bytes) -> Users:
    """The users of a file. A line that is none is logged by its number alone, and passed over; the first of two with one name counts."""
    users: dict[str, bytes] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        line = line.strip()
        if not line or line.startswith(b"#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None or int(found[3]) not in _COSTS:
            _log.warning("a line is passed over: it takes <user name>:<bcrypt hash of cost 4 to 15>", line=number)
        elif found[1].decode() in users:
            _log.warning("a line is passed over: its user has one above", line=number)
        elif len(users) == _MAX_USERS:
            _log.warning("the lines from here on are passed over: too many users", line=number, most=_MAX_USERS)
            break
        else:
            users[found[1].decode()] = found[2]
    return users


@dataclass(slots=True)
class _Attempts:
    wrong: int = 0


@dataclass(slots=True)
class _Attempt:
    is_wrong: bool = False


class Htpasswd:
    """The users of a file, as a PasswordSource."""

    def __init__(self, file: WatchedFile[Users], settings: TokenSettings, *, checks: Counter) -> None:
        self._file = file
        self._checks = checks
        self._key = secrets.token_bytes(32)
        self._right: Remembered[bytes, bool] = Remembered(
            size=settings.password_cache_size,
            lifetime=lambda right: settings.password_cache.total_seconds() if right else 0,
        )
        self._slots = asyncio.Semaphore(settings.login_concurrency)
        self._most_waiting = settings.login_waiting
        self._waiting = 0
        self._most_wrong = settings.login_failures
        self._window = settings.login_window.total_seconds()
        self._attempts: TTLCache[bytes, _Attempts] = TTLCache(_NAMES, self._window, timer=time.monotonic)

    async def check(self, name: str, password: str) -> Subject | None:
        """See PasswordSource."""
        users = self._file.value
        stored = users.get(name)
        hashed = stored or _nobody(users)
        key = self._digest(name.encode(), hashed, password.encode())
        is_right = self._right.known(key)
        if is_right is None:
            who = self._digest(name.encode())
            is_right = await self._right.get(key, lambda: self._check(password.encode(), hashed, who))
        if stored is None or not is_right:
            return None
        return Subject(PREFIX + name, (GROUP, AUTHENTICATED))

    async def _check(self, password: bytes, hashed: bytes, who: bytes) -> bool:
        if self._waiting >= self._most_waiting:
            raise _too_many("too many are logging in at once; try again", seconds=2)
        with self._counted(who) as attempt:
            self._waiting += 1
            try:
                async with self._slots:
                    attempt.is_wrong = not await asyncio.to_thread(bcrypt.checkpw, password, hashed)
            finally:
                self._waiting -= 1
            self._checks.labels("wrong" if attempt.is_wrong else "right").inc()
            return not attempt.is_wrong

    @contextlib.contextmanager
    def _counted(self, who: bytes) -> Iterator[_Attempt]:
        """An attempt counts as wrong from its beginning, or many at the same moment would all be let through; unless it was not."""
        attempts = self._attempts.setdefault(who, _Attempts())
        if attempts.wrong >= self._most_wrong:
            self._checks.labels("refused").inc()
            raise _too_many(
                "too many wrong passwords for this user name; wait, or correct what keeps sending them",
                seconds=int(self._window),
            )
        attempts.wrong += 1
        attempt = _Attempt()
        try:
            yield attempt
        finally:
            if not attempt.is_wrong:
                attempts.wrong -= 1
            if not attempts.wrong and self._attempts.get(who) is attempts:
                # The window begins with a wrong one.
                with contextlib.suppress(KeyError):
                    del self._attempts[who]

    def _digest(self, *parts: bytes) -> bytes:
        state = hashlib.blake2b(key=self._key, digest_size=32)
        for part in parts:
            state.update(len(part).to_bytes(4, "big") + part)
        return state.digest()


def _nobody(users: Users) -> bytes:
    """A hash that no password has, as slow to compare with as the slowest in the file."""
    cost = max((int(hashed[4:6]) for hashed in users.values()), default=_COST)
    return b"$2b$%02d$" % cost + b"." * 53


def _too_many(message: str, *, seconds: int) -> RegistryError:
    return RegistryError(429, "TOOMANYREQUESTS", message, headers={"Retry-After": str(seconds)})
