"""Keys for objects, on record before they are needed: so a push that writes one costs no statement for its key.

A key that was on record for long is not used any more, because the keeper takes old ones that nothing points at for abandoned.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator

import structlog

from entrepot.db.uploads import give_up_object, open_multipart, reserve_keys
from entrepot.errors import DatabaseUnavailable, RegistryError, StorageUnavailable
from entrepot_registry.statements import Statements

__all__ = ["KeyPool", "LentKey"]

_log = structlog.get_logger("uploads")
_MAX_AGE = 3600
"""Seconds; the keeper waits for two days."""


class LentKey:
    """A key for one object, and what became of it."""

    __slots__ = ("is_kept", "is_used", "name", "reserved_at")

    def __init__(self, name: str, reserved_at: float) -> None:
        self.name = name
        self.reserved_at = reserved_at
        self.is_used = False
        """Something may lie under it."""
        self.is_kept = False
        """A row points at it."""


class KeyPool:
    """The keys of this process."""

    def __init__(self, statements: Statements, *, batch: int) -> None:
        self._statements = statements
        self._batch = batch
        self.owner = f"registry/{uuid.uuid4()}"
        self._keys: deque[LentKey] = deque()
        self._filling = asyncio.Lock()

    async def open_multipart(self, key: str, *, owner: str, multipart: str) -> None:
        """Put a multipart upload on record. Raises RegistryError 503 if the key was given up, being too old."""
        is_kept = await self._statements.run(
            "open_part_upload",
            lambda connection: open_multipart(connection, key=key, owner=owner, multipart=multipart),
        )
        if not is_kept:
            raise RegistryError(
                503, "UNAVAILABLE", "the upload took too long to begin; try again", headers={"Retry-After": "1"}
            )

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[LentKey]:
        """A key; afterwards it goes back if it was not used, and to the keeper if nothing points at it. Raises `DatabaseUnavailable`."""
        key = await self._take()
        try:
            yield key
        except (StorageUnavailable, asyncio.CancelledError):
            # S3 may have begun something whose answer did not come.
            key.is_used = True
            raise
        finally:
            if not key.is_used:
                self._keys.appendleft(key)
            elif not key.is_kept:
                await self._give_up(key)

    async def _take(self) -> LentKey:
        while True:
            while self._keys:
                key = self._keys.popleft()
                if time.monotonic() - key.reserved_at < _MAX_AGE:
                    return key
            async with self._filling:
                if not self._keys:
                    names = await self._statements.run(
                        "reserve_keys",
                        lambda connection: reserve_keys(connection, owner=self.owner, count=self._batch),
                    )
                    now = time.monotonic()
                    self._keys.extend(LentKey(name, now) for name in names)

    async def _give_up(self, key: LentKey) -> None:
        try:
            await self._statements.run("give_up_object", lambda connection: give_up_object(connection, key=key.name))
        except DatabaseUnavailable as error:
            # Its row stays as it is, and the keeper finds it later by its owner and age.
            _log.info("an object is left over", key=key.name, error=error.message)
