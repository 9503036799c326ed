"""What the registry asks about manifests besides serving them: where a push goes, what refers to a manifest, who signed it, and the catalog.

Nothing here decides about rights: each answer names the place it was found through and who may read there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from asyncpg import Record

from entrepot.db.pool import Connection, all_rows, queries, translated
from entrepot.db.registry import Place
from entrepot.db.uploads import Target

__all__ = [
    "FoundPush", "PushQuery", "Referrer", "Referrers", "Signature", "Signatures", "find_pushes", "find_referrers", "find_signatures",
    "list_catalog", "touch_manifests",
]  # fmt: skip

_sql = queries("manifests")


@dataclass(frozen=True, slots=True)
class PushQuery:
    """A name that is pushed to, and the digest of the image config whose labels tell what the manifest is."""

    name: str
    config: str | None


@dataclass(frozen=True, slots=True)
class FoundPush:
    """`target` is None if the name stands for nothing, `config` if the config is not kept in PostgreSQL or not there."""

    target: Target | None
    config: bytes | None


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to another; `artifact_type` falls back to the media type of its config."""

    digest: str
    media_type: str
    size: int
    artifact_type: str | None
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Referrers:
    """A page in the order of digests; `place` is None if the name stands for nothing."""

    place: Place | None
    found: tuple[Referrer, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """An atomic container signature; `content` is what was signed, with the signature."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Signatures:
    """`place` is None if the name stands for nothing."""

    place: Place | None
    found: tuple[Signature, ...]


async def find_pushes(connection: Connection, asked: Sequence[PushQuery]) -> list[FoundPush]:
    """One answer a question, in order. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await connection.fetch(_sql.find_pushes.sql, [q.name for q in asked], [q.config for q in asked])
    answers = [FoundPush(None, None)] * len(asked)
    for row in rows:
        target = Target(
            Place(row["uuid"], row["access"]), row["repository"], row["namespace"], row["pinned"], row["is_mirror"]
        )
        answers[row["position"] - 1] = FoundPush(target, row["config"])
    return answers


async def touch_manifests(connection: Connection, digests: Sequence[str]) -> None:
    """Put off the collection of manifests. Raises `DatabaseUnavailable`."""
    with translated():
        await _sql.touch_manifests(connection, digests=list(digests))


async def find_referrers(
    connection: Connection, name: str, *, digest: str, tag: str, types: Sequence[str], last: str, count: int, size: int
) -> Referrers:
    """At most `count` referrers after the digest `last` (empty: from the first), of any type if `types` is empty.

    `tag` is where old clients list the referrers. The page ends with the one that makes it `size` bytes or more. Raises `DatabaseUnavailable`.
    """
    with translated():
        rows = await all_rows(
            _sql.find_referrers(
                connection, name=name, digest=digest, tag=tag, types=list(types), last=last, count=count + 1, bytes=size
            )
        )
    found = [
        Referrer(row["digest"], row["media_type"], row["size"], row["artifact_type"], row["annotations"])
        for row in rows
        if row["digest"] is not None
    ]
    return Referrers(_place(rows), tuple(found[:count]), bool(found) and rows[0]["listed"] > len(found[:count]))


async def find_signatures(
    connection: Connection, name: str, *, digest: str, grace: timedelta, count: int
) -> Signatures:
    """At most `count` signatures of a manifest. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await all_rows(_sql.find_signatures(connection, name=name, digest=digest, grace=grace, count=count))
    found = [Signature(row["name"], row["content"]) for row in rows if row["name"] is not None]
    return Signatures(_place(rows), tuple(found))


async def list_catalog(
    connection: Connection, *, last: str, count: int, identified: bool, namespaces: Sequence[str] | None
) -> tuple[str, ...]:
    """At most `count` names after `last`: what is public, for the identified also Authenticated, and all of some namespaces (None: of all).

    Raises `DatabaseUnavailable`.
    """
    with translated():
        rows = await all_rows(
            _sql.list_catalog(
                connection,
                last=last,
                count=count,
                identified=identified,
                all_namespaces=namespaces is None,
                namespaces=list(namespaces or ()),
            )
        )
    return tuple(row["name"] for row in rows)


def _place(rows: Sequence[Record]) -> Place | None:
    return next((Place(row["place"], row["access"]) for row in rows if row["place"] is not None), None)
