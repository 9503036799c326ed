"""What a push asks of PostgreSQL and writes there: where it goes, upload sessions, and blobs that become a repository's.

An upload session is a row, and what the row says is durable. While a request writes to one it holds a lease, which ends by itself when its
process is killed; every change names the lease, so that a writer who lost it changes nothing any more.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from asyncpg import Record

from entrepot.db.content import refusals
from entrepot.db.pool import Connection, queries, translated
from entrepot.db.registry import Place

__all__ = [
    "FoundUpload", "Target", "UploadQuery", "UploadState", "begin_upload", "cancel_upload", "claim_upload", "find_targets", "find_uploads",
    "give_up_object", "hide_blob", "mount_blob", "open_multipart", "release_upload", "renew_upload", "reserve_keys", "save_upload",
    "store_pushed_blob", "touch_blob",
]  # fmt: skip

_sql = queries("uploads")


@dataclass(frozen=True, slots=True)
class Target:
    """What a name stands for, for one who wants to write there."""

    place: Place
    repository: int
    namespace: str
    pinned: int | None
    """The version that the distribution is pinned to."""
    is_mirror: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadState:
    """What of an upload is durable. The bytes are in parts of a multipart upload, and what is left over after them in a tail."""

    offset: int = 0
    sha256: str | None = None
    """Hexadecimal, of all bytes so far; None: not known."""
    object_key: str | None = None
    """The key that the multipart upload writes to."""
    multipart: str | None = None
    """S3's upload id, if there are parts."""
    part_etags: tuple[str, ...] = ()
    """Of the parts; where there is a tail as well, the last one is that of the tail, sent as if nothing followed."""
    part_bytes: int = 0
    """Bytes in parts before the tail; those after them, up to the offset, are in tail or tail_key."""
    tail: bytes | None = None
    tail_key: str | None = None
    """An object of its own."""


@dataclass(frozen=True, slots=True)
class UploadQuery:
    """An upload as a client names it."""

    name: str
    id: str
    subject: str


@dataclass(frozen=True, slots=True)
class FoundUpload:
    """`target` is None if the name stands for nothing, `state` if there is no such upload for this name and subject."""

    target: Target | None
    state: UploadState | None
    is_busy: bool = False
    """Another request writes to it."""


async def find_targets(connection: Connection, names: Sequence[str]) -> list[Target | None]:
    """What names stand for, in order. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await connection.fetch(_sql.find_targets.sql, list(names))
    targets: list[Target | None] = [None] * len(names)
    for row in rows:
        targets[row["position"] - 1] = _target(row)
    return targets


async def find_uploads(connection: Connection, asked: Sequence[UploadQuery]) -> list[FoundUpload]:
    """Uploads with the targets of their names, in order. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await connection.fetch(
            _sql.find_uploads.sql, [q.name for q in asked], [q.id for q in asked], [q.subject for q in asked]
        )
    found = [FoundUpload(None, None)] * len(asked)
    for row in rows:
        state = _state(row) if row["id"] is not None else None
        found[row["position"] - 1] = FoundUpload(_target(row), state, bool(row["is_busy"]))
    return found


async def begin_upload(connection: Connection, *, upload: str, repository: int, subject: str) -> None:
    """Open a session. Raises `DatabaseUnavailable`."""
    with translated():
        await _sql.begin_upload(connection, id=upload, repository=repository, subject=subject)


async def claim_upload(
    connection: Connection, *, upload: str, repository: int, subject: str, writer: str, lease: timedelta
) -> UploadState | None:
    """Take the lease; None if another holds it, or the upload has ended. Raises `DatabaseUnavailable`."""
    with translated():
        row = await _sql.claim_upload(
            connection, id=upload, repository=repository, subject=subject, writer=writer, lease=lease
        )
    return _state(row) if row is not None else None


async def renew_upload(connection: Connection, *, upload: str, writer: str, lease: timedelta) -> bool:
    """Keep the lease; False if it, or the upload, is gone. Raises `DatabaseUnavailable`."""
    with translated():
        return bool(await _sql.renew_upload(connection, id=upload, writer=writer, lease=lease))


async def release_upload(connection: Connection, *, upload: str, writer: str) -> None:
    """End the lease without a change. Raises `DatabaseUnavailable`."""
    with translated():
        await _sql.release_upload(connection, id=upload, writer=writer)


async def save_upload(
    connection: Connection, state: UploadState, *, upload: str, writer: str, old_tail_key: str | None
) -> bool:
    """Write what the upload has now, and end the lease; False if it, or the upload, is gone. Raises `DatabaseUnavailable`."""
    with translated():
        saved = await _sql.save_upload(
            connection, id=upload, writer=writer, offset=state.offset, sha256=state.sha256, object_key=state.object_key,
            multipart=state.multipart, part_etags=list(state.part_etags), part_bytes=state.part_bytes, tail=state.tail,
            tail_key=state.tail_key, old_tail_key=old_tail_key,
        )  # fmt: skip
    return bool(saved)


async def cancel_upload(connection: Connection, *, upload: str, repository: int, subject: str) -> bool:
    """End a session, whoever writes to it; False if there is none. Raises `DatabaseUnavailable`."""
    with translated():
        return bool(await _sql.cancel_upload(connection, id=upload, repository=repository, subject=subject))


async def reserve_keys(connection: Connection, *, owner: str, count: int) -> list[str]:
    """New random object keys, on record. Raises `DatabaseUnavailable`."""
    keys = [f"blobs/{secrets.token_hex(20)}" for _ in range(count)]
    with translated():
        await _sql.reserve_keys(connection, owner=owner, keys=keys)
    return keys


async def open_multipart(connection: Connection, *, key: str, owner: str, multipart: str) -> bool:
    """Remember the multipart upload that writes to a key; False if the key was given up. Raises `DatabaseUnavailable`."""
    with translated():
        return bool(await _sql.open_part_upload(connection, key=key, owner=owner, multipart=multipart))


async def give_up_object(connection: Connection, *, key: str) -> None:
    """Leave an object to the keeper. Raises `DatabaseUnavailable`."""
    with translated():
        await _sql.give_up_object(connection, key=key)


async def store_pushed_blob(
    connection: Connection, repository: int, *, digest: str, size: int, key: str | None = None, inline: bytes | None = None, upload: str | None = None
) -> None:  # fmt: skip
    """Make verified bytes a blob of the repository, in one transaction, and end the upload that they came by.

    Raises:
        RepositoryGone, RepositoryIsMirror, ObjectGone, UploadEnded: nothing was written.
        DatabaseUnavailable: whether it was written is unknown; doing it again does no harm.
    """
    with refusals():
        await _sql.store_pushed_blob(
            connection, repository=repository, digest=digest, size=size, key=key, inline=inline, upload=upload
        )


async def mount_blob(
    connection: Connection,
    repository: int,
    *,
    digest: str,
    source: str | None,
    readable: Mapping[str, UUID],
    namespaces: Collection[str],
    grace: timedelta,
) -> bool:
    """Link a blob that `source` (None: any name) serves, if it is public, among `readable` or in one of these namespaces.

    Raises `DatabaseUnavailable`.
    """
    with translated():
        row = await _sql.mount_blob(
            connection, repository=repository, digest=digest, source=source, names=list(readable), uuids=list(readable.values()),
            namespaces=list(namespaces), grace=grace,
        )  # fmt: skip
    return row is not None


async def hide_blob(connection: Connection, repository: int, *, digest: str) -> bool:
    """Hide a blob; False if there is none.

    Raises:
        RepositoryGone, RepositoryIsMirror, StillReferenced: nothing was changed.
    """
    with refusals():
        return bool(await _sql.hide_blob(connection, repository=repository, digest=digest))


async def touch_blob(connection: Connection, repository: int, *, blob: int) -> bool:
    """Put off the collection of a blob; False if it was collected meanwhile. Raises `DatabaseUnavailable`."""
    with translated():
        return bool(await _sql.touch_blob(connection, repository=repository, blob=blob))


def _target(row: Record) -> Target:
    place = Place(row["uuid"], row["access"])
    return Target(place, row["repository"], row["namespace"], row["pinned"], row["is_mirror"])


def _state(row: Record) -> UploadState:
    return UploadState(
        offset=row["offset"], sha256=row["sha256"], object_key=row["object_key"], multipart=row["multipart"],
        part_etags=tuple(row["part_etags"]), part_bytes=row["part_bytes"], tail=row["tail"], tail_key=row["tail_key"],
    )  # fmt: skip
