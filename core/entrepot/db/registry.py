"""What the registry asks of PostgreSQL: set-wise, so that concurrent requests share a statement, and always of the present.

Nothing here decides about rights: each answer names the distribution it was found through and who may read there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import msgspec
from asyncpg import Record

from entrepot.db.pool import Connection, all_rows, queries, translated

__all__ = [
    "BlobQuery", "FoundBlob", "FoundManifest", "ManifestQuery", "Place", "TagPage", "find_blobs", "find_manifests", "list_tags", "manifest_bodies",
]  # fmt: skip

_sql = queries("registry")
# Asked thousands of times a second, so past aiosql's own call, which takes longer than the statement. Values go in the order in which
# the statement first names them.
_FIND_MANIFESTS: str = _sql.find_manifests.sql
_MANIFEST_BODIES: str = _sql.manifest_bodies.sql
_FIND_BLOBS: str = _sql.find_blobs.sql


class Place(msgspec.Struct, frozen=True, gc=False):
    """What a name stands for: a distribution, or a repository by r/<namespace>/<name>; and its access (Public, Authenticated or Private)."""

    uuid: UUID
    access: str


class ManifestQuery(msgspec.Struct, frozen=True, gc=False):
    """A manifest by tag or by digest; the other is None."""

    name: str
    tag: str | None
    digest: str | None
    with_body: bool


class FoundManifest(msgspec.Struct, frozen=True, gc=False):
    """`place` is None if the name stands for nothing, `digest` if it does not serve such a manifest."""

    place: Place | None
    digest: str | None
    media_type: str
    size: int
    body: bytes | None
    is_stale: bool | None = None
    """It was not touched for long: who is told that it is there relies on it for a while."""


class BlobQuery(msgspec.Struct, frozen=True, gc=False):
    """A blob by digest; its bytes as well, if they are kept in PostgreSQL and `with_inline`."""

    name: str
    digest: str
    with_inline: bool


class FoundBlob(msgspec.Struct, frozen=True, gc=False):
    """`place` is None if the name stands for nothing, `size` if it does not serve such a blob."""

    place: Place | None
    size: int | None
    object_key: str | None
    inline: bytes | None
    redirect: bool | None
    """Whether the distribution wants redirects to S3; None: as the registry's setting says."""
    stale: tuple[int, int] | None = None
    """Repository and blob, by id, if it was not touched for long: who is told that it is there relies on it for a while."""


@dataclass(frozen=True, slots=True)
class TagPage:
    """Tags in byte order; `place` is None if the name stands for nothing."""

    place: Place | None
    tags: tuple[str, ...]


_NO_MANIFEST = FoundManifest(None, None, "", 0, None)
_NO_BLOB = FoundBlob(None, None, None, None, None)


async def find_manifests(
    connection: Connection, asked: Sequence[ManifestQuery], *, grace: timedelta, fresh: timedelta
) -> list[FoundManifest]:
    """One answer a question, in order. What is asked for by digest is found for `grace` after it left the latest version; stale is what was
    not touched for `fresh`.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    with translated():
        rows = await connection.fetch(
            _FIND_MANIFESTS,
            fresh,
            [q.name for q in asked],
            [q.tag for q in asked],
            [q.digest for q in asked],
            [q.with_body for q in asked],
            grace,
        )
    answers = [_NO_MANIFEST] * len(asked)
    for position, uuid, access, digest, media_type, size, body, is_stale in rows:
        place = Place(uuid, access) if uuid is not None else None
        answers[position - 1] = FoundManifest(place, digest, media_type or "", size or 0, body, is_stale)
    return answers


async def manifest_bodies(connection: Connection, digests: Sequence[str]) -> list[bytes | None]:
    """The bytes of manifests, in order; None for one that is gone. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await connection.fetch(_MANIFEST_BODIES, list(digests))
    answers: list[bytes | None] = [None] * len(digests)
    for position, body in rows:
        answers[position - 1] = body
    return answers


async def find_blobs(
    connection: Connection, asked: Sequence[BlobQuery], *, grace: timedelta, fresh: timedelta
) -> list[FoundBlob]:
    """One answer a question, in order; stale is what was not touched for `fresh`. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await connection.fetch(
            _FIND_BLOBS,
            [q.name for q in asked],
            [q.digest for q in asked],
            [q.with_inline for q in asked],
            fresh,
            grace,
        )
    answers = [_NO_BLOB] * len(asked)
    for position, uuid, access, redirect, size, object_key, inline, stale, repository in rows:
        place = Place(uuid, access) if uuid is not None else None
        link = (repository, stale) if stale is not None else None
        answers[position - 1] = FoundBlob(place, size, object_key, inline, redirect, link)
    return answers


async def list_tags(connection: Connection, name: str, *, last: str, count: int) -> TagPage:
    """At most `count` tags after `last` (empty: from the first). Raises `DatabaseUnavailable`."""
    with translated():
        rows = await all_rows(_sql.list_tags(connection, name=name, last=last, count=count))
    return TagPage(next(_places(rows), None), tuple(row["name"] for row in rows if row["name"] is not None))


def _places(rows: Iterable[Record]) -> Iterator[Place]:
    return (Place(row["place"], row["access"]) for row in rows if row["place"] is not None)
