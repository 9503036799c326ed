"""A file that is read again when it changes.

It may be a mounted Secret: Kubernetes swaps its contents behind a link, so what is looked at is what the link leads to. What cannot be parsed
leaves things as they were; a file that is gone is taken for an empty one, since who removes it means to take rights away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

__all__ = ["FileInvalid", "WatchedFile"]

T = TypeVar("T")
_MAX_FILE: Final = 4 * 1024 * 1024

_log = structlog.get_logger("files")


class FileInvalid(Exception):
    """A file is not what it should be. The message never holds any of it."""


class WatchedFile(Generic[T]):
    """`async with` reads it and keeps looking; `value` is what it says at present. No path: nothing to look at."""

    def __init__(self, path: Path | None, parse: Callable[[bytes], T], *, empty: T, interval: timedelta) -> None:
        self._path = path
        self._parse = parse
        self._empty = empty
        self._interval = interval.total_seconds()
        self._seen: tuple[int, int, int] | str | None = "never"
        self._task: asyncio.Task[None] | None = None
        self.value = empty

    async def __aenter__(self) -> WatchedFile[T]:
        if self._path is not None:
            await self._look(self._path)
            self._task = asyncio.create_task(self._keep_looking(self._path), name=f"watch {self._path.name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_looking(self, path: Path) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._look(path)

    async def _look(self, path: Path) -> None:
        try:
            seen = await asyncio.to_thread(_fingerprint, path)
            if seen == self._seen:
                return
            data = None if seen is None else await asyncio.to_thread(_read, path)
        except OSError as error:
            _log.error("a file cannot be read; what it said before stays", file=str(path), error=error.strerror)
            return
        self._seen = seen
        try:
            if data is not None and len(data) > _MAX_FILE:
                raise FileInvalid(f"it has more than {_MAX_FILE} bytes")
            self.value = self._empty if data is None else self._parse(data)
        except FileInvalid as error:
            _log.error("a file is not valid; what it said before stays", file=str(path), error=str(error))
            return
        _log.info("read a file" if seen else "a file is not there, and taken for empty", file=str(path))


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_FILE + 1)
