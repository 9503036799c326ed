"""What the content API reads: versions, what they hold, what differs between two of them, and sync runs.

Nothing here decides about rights: each answer names the place it was found through. What of a repository's history may be seen there is part
of the question (`history`) and of the place, and is decided in the statement, so that nothing else is ever read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from asyncpg import Record

from entrepot.db.pool import Connection, all_rows, queries, translated
from entrepot.db.registry import Place

__all__ = [
    "KINDS",
    "Comparison",
    "ContentQuery",
    "Found",
    "compare_versions",
    "find_version",
    "list_content",
    "list_runs",
    "list_versions",
]

_sql = queries("browse")

KINDS = {
    "tags": _sql.list_version_tags,
    "manifests": _sql.list_version_manifests,
    "blobs": _sql.list_version_blobs,
    "signatures": _sql.list_version_signatures,
}
"""What a version holds, with the statement that lists it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentQuery:
    """What of a version is asked for. Filters that are None let everything through."""

    kind: str
    number: int | None
    """None: the version that is served."""
    change: str | None = None
    """None: all of the version; added or removed: compared with its base."""
    names: Sequence[str] | None = None
    digests: Sequence[str] | None = None
    media_types: Sequence[str] | None = None
    after: str | int
    """Of tags the name of the last one that is known, otherwise its position."""
    count: int


@dataclass(frozen=True, slots=True)
class Found:
    """`place` is None if the name stands for nothing; `number` if there is no such version, or none that may be seen."""

    place: Place | None
    number: int | None
    base: int
    sees_history: bool
    rows: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Comparison:
    """As Found. `counts` is of the whole comparison; of manifests and blobs it holds zeros unless the first page was asked for."""

    place: Place | None
    a: int | None
    b: int | None
    counts: Record
    rows: Sequence[Record]


def _place(row: Record) -> Place | None:
    return Place(row["place"], row["access"]) if row["place"] is not None else None


async def list_versions(
    connection: Connection, name: str, *, history: bool, after: int | None, count: int
) -> tuple[Place | None, list[Record]]:
    """Versions with lower numbers than `after`, newest first. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await all_rows(_sql.list_versions(connection, name=name, history=history, after=after, count=count))
    return _place(rows[0]), [row for row in rows if row["number"] is not None]


async def find_version(
    connection: Connection, name: str, *, history: bool, number: int | None
) -> tuple[Place | None, Record | None]:
    """One version; the one that is served where no number is given. Raises `DatabaseUnavailable`."""
    with translated():
        row = await _sql.find_version(connection, name=name, history=history, number=number)
    return _place(row), row if row["number"] is not None else None


async def list_content(connection: Connection, name: str, query: ContentQuery, *, history: bool) -> Found:
    """What a version holds. Raises `DatabaseUnavailable`."""
    values: dict[str, Any] = {"names": query.names, "digests": query.digests, "media_types": query.media_types}
    statement = _sql.list_changed_blobs if query.kind == "blobs" and query.change is not None else KINDS[query.kind]
    with translated():
        rows = await all_rows(
            statement(
                connection, name=name, history=history, number=query.number, change=query.change, after=query.after, count=query.count,
                **values,
            )
        )  # fmt: skip
    first = rows[0]
    return Found(
        _place(first), first["number"], first["base"] or 0, bool(first["sees_history"]),
        [row for row in rows if row["digest"] is not None],
    )  # fmt: skip


async def compare_versions(
    connection: Connection, name: str, *, history: bool, a: int | None, b: int | None, after: str, count: int
) -> Comparison:
    """What version `b` has that `a` has not, and the other way round. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await all_rows(
            _sql.compare_versions(connection, name=name, history=history, a=a, b=b, after=after, count=count)
        )
    first = rows[0]
    return Comparison(_place(first), first["a"], first["b"], first, [row for row in rows if row["name"] is not None])


async def list_runs(
    connection: Connection, name: str, *, after: UUID | None, count: int
) -> tuple[Place | None, list[Record]]:
    """Sync runs that began before run `after`, newest first. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await all_rows(_sql.list_runs(connection, name=name, after=after, count=count))
    return _place(rows[0]), [row for row in rows if row["id"] is not None]
