"""An upload session as a client sees it, and the lease that lets one request at a time write to it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass
from datetime import timedelta

import structlog
from aiohttp import web

from entrepot.db import uploads as db
from entrepot.db.uploads import UploadState
from entrepot.errors import DatabaseUnavailable, RegistryError
from entrepot.oci.ranges import upload_range
from entrepot_registry.statements import Statements
from entrepot_registry.writing import WritablePlace

__all__ = ["Lease", "Session", "busy", "told", "unknown_upload"]

_log = structlog.get_logger("uploads")


@dataclass(frozen=True, slots=True)
class Session:
    """An upload under the name by which the client came to it."""

    name: str
    id: str
    place: WritablePlace

    def headers(self, offset: int) -> dict[str, str]:
        """Where the upload is and how much of it has arrived. The path alone: it is right behind any proxy."""
        return {
            "Location": f"/v2/{self.name}/blobs/uploads/{self.id}",
            "Range": upload_range(offset),
            "Docker-Upload-UUID": self.id,
        }


class Lease:
    """The right to write to an upload, for one request: `claim`, then `async with`. It is renewed in the background."""

    def __init__(self, statements: Statements, upload: Session, length: timedelta) -> None:
        self._statements = statements
        self._upload = upload
        self._length = length
        self._writer = secrets.token_hex(8)
        self._renewing: asyncio.Task[None] | None = None
        self._is_lost = False
        self.is_over = False
        """The upload has ended or goes on without this request: there is nothing to release."""
        self.state = UploadState()

    async def claim(self) -> UploadState | None:
        """What the upload has, and from now on nobody else adds to it; None if somebody else is doing so, or it has ended."""
        place = self._upload.place
        state = await self._statements.run(
            "claim_upload",
            lambda connection: db.claim_upload(
                connection, upload=self._upload.id, repository=place.repository, subject=place.grant.subject, writer=self._writer,
                lease=self._length,
            ),
        )  # fmt: skip
        self.is_over = state is None
        self.state = state or self.state
        return state

    async def __aenter__(self) -> Lease:
        self._renewing = asyncio.create_task(self._renew(), name=f"lease-{self._upload.id}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await self.release()

    async def release(self) -> None:
        """Let others write; the upload is what it was."""
        if self.is_over or self._is_lost:
            return
        # Where the database is away the lease ends by itself.
        with contextlib.suppress(DatabaseUnavailable):
            await self._statements.run(
                "release_upload",
                lambda connection: db.release_upload(connection, upload=self._upload.id, writer=self._writer),
            )

    def check(self) -> None:
        """Raises RegistryError if the upload was cancelled, or is another's: nothing that is still received would count."""
        if self._is_lost:
            raise unknown_upload()

    async def save(self, state: UploadState) -> None:
        """Make this what the upload has, and end the lease. Raises RegistryError 404 if the upload was cancelled meanwhile."""
        saved = await self._statements.run(
            "save_upload",
            lambda connection: db.save_upload(
                connection, state, upload=self._upload.id, writer=self._writer, old_tail_key=self.state.tail_key
            ),
        )
        self.is_over = True
        if not saved:
            raise unknown_upload()

    async def _renew(self) -> None:
        """Until it is cancelled, or the lease is lost: by what the database says, or since nobody can say it any more."""
        try:
            while await self._is_renewed():
                pass
        except Exception:  # noqa: BLE001 - whatever it was, nobody else would see it in this task
            _log.exception("a lease is given up: it could not be renewed", upload=self._upload.id)
        self._is_lost = True

    async def _is_renewed(self) -> bool:
        while True:
            await asyncio.sleep(self._length.total_seconds() / 3)
            try:
                return await self._statements.run(
                    "renew_upload",
                    lambda connection: db.renew_upload(
                        connection, upload=self._upload.id, writer=self._writer, lease=self._length
                    ),
                )
            except DatabaseUnavailable as error:
                _log.info("a lease could not be renewed", upload=self._upload.id, error=error.message)


def told(status: int, upload: Session, offset: int) -> web.Response:
    """An answer that says how far the upload is."""
    return web.Response(status=status, headers=upload.headers(offset))


def unknown_upload() -> RegistryError:
    """Also for what is another's."""
    return RegistryError(404, "BLOB_UPLOAD_UNKNOWN", "this repository has no such upload")


def busy(upload: Session, offset: int) -> RegistryError:
    """Somebody else writes at this moment."""
    return RegistryError(
        409, "BLOB_UPLOAD_INVALID", "another request is writing to this upload",
        headers={**upload.headers(offset), "Retry-After": "1"},
    )  # fmt: skip
