"""What the keeper decides in PostgreSQL: which uploads and objects nobody will come back for. It finds them by query, never by listing S3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from entrepot.db.pool import Connection, all_rows, queries, translated

__all__ = [
    "Expired",
    "MarkedObject",
    "count_marked",
    "expire_uploads",
    "forget_objects",
    "mark_abandoned",
    "removable_objects",
    "try_lock",
]

_sql = queries("keeper")


@dataclass(frozen=True, slots=True)
class Expired:
    """Uploads that were ended, and the bytes they had received."""

    uploads: int
    bytes: int


@dataclass(frozen=True, slots=True)
class MarkedObject:
    """An object that nothing points at; `upload_id` is S3's, of the multipart upload that may still be open."""

    key: str
    upload_id: str | None


async def try_lock(connection: Connection) -> bool:
    """Take the keeper's lock for the life of this connection; False if another one holds it."""
    with translated():
        return bool(await _sql.try_lock(connection))


async def expire_uploads(connection: Connection, *, expiry: timedelta, delay: timedelta, batch: int) -> Expired:
    """End up to `batch` uploads that were not touched for `expiry`; their objects may be removed after `delay`."""
    with translated():
        row = await _sql.expire_uploads(connection, expiry=expiry, delay=delay, batch=batch)
    return Expired(row["uploads"], row["bytes"])


async def mark_abandoned(connection: Connection, *, reservation: timedelta, delay: timedelta, batch: int) -> int:
    """Mark up to `batch` objects without an owner to be removed after `delay`; `reservation` is how long a registry may hold one."""
    with translated():
        return int(await _sql.mark_abandoned(connection, reservation=reservation, delay=delay, batch=batch))


async def removable_objects(connection: Connection, *, after: str, batch: int) -> list[MarkedObject]:
    """Up to `batch` objects to be removed now, in the order of keys, those behind `after`."""
    with translated():
        rows = await all_rows(_sql.removable_objects(connection, after=after, batch=batch))
    return [MarkedObject(row["key"], row["upload_id"]) for row in rows]


async def forget_objects(connection: Connection, keys: Sequence[str]) -> int:
    """Drop the rows of removed objects; gives how many there were."""
    with translated():
        return int(await _sql.forget_objects(connection, keys=list(keys)))


async def count_marked(connection: Connection) -> int:
    """Objects that wait to be removed."""
    with translated():
        return int(await _sql.count_marked(connection))
