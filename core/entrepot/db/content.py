"""Writing content: manifests with their edges, blobs with their bytes, and the one commit.

Everything is set-wise: a sync that found a thousand manifests writes them with a handful of statements. Nothing written here is visible
to anybody before `commit` says so, blobs and manifests being reachable only through a repository.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from entrepot.db.pool import Connection, all_rows, queries, translated
from entrepot.errors import (
    BlobNotInRepository,
    CommitRefused,
    ManifestNotInRepository,
    ObjectGone,
    RepositoryGone,
    RepositoryIsMirror,
    StillReferenced,
    UploadEnded,
    VersionMoved,
)
from entrepot.oci.manifest import Descriptor, Manifest, classify
from entrepot.oci.media_types import is_foreign_layer

__all__ = [
    "INLINE_LIMIT",
    "Cause",
    "Change",
    "Commit",
    "LedgerEntry",
    "ManifestRecord",
    "StoredBlob",
    "begin_objects",
    "commit",
    "discard_objects",
    "latest_manifests",
    "link_blobs",
    "linkable_blobs",
    "open_multipart",
    "put_manifests",
    "record_origins",
    "refusals",
    "store_blobs",
]

INLINE_LIMIT = 32 * 1024
"""Blobs up to this size, in bytes, are kept in PostgreSQL instead of S3."""

_sql = queries("content")

_REFUSALS: Mapping[str, type[CommitRefused]] = {
    "EN001": RepositoryGone,
    "EN002": VersionMoved,
    "EN003": ManifestNotInRepository,
    "EN004": BlobNotInRepository,
    "EN005": StillReferenced,
    "EN006": RepositoryIsMirror,
    "EN007": ObjectGone,
    "EN008": UploadEnded,
}


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Raise the content model's refusal, a CommitRefused, in place of PostgreSQL's error; `DatabaseUnavailable` as `translated` does."""
    try:
        with translated():
            yield
    except asyncpg.PostgresError as error:
        refusal = _REFUSALS.get(error.sqlstate or "")
        if refusal is None:
            raise
        raise refusal(str(error)) from error


@dataclass(frozen=True, slots=True)
class Cause:
    """What made a version: `kind` is Sync, Push, Build, ContentChange …; `name` its run, tag or resource."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A change that must happen once: the same kind, name and hash are never applied twice to a repository."""

    kind: str
    name: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a commit is to do, by ids of manifests and signatures; what is there already counts for nothing."""

    tags: Mapping[str, int] = field(default_factory=dict)
    untag: Sequence[str] = ()
    add_manifests: Sequence[int] = ()
    remove_manifests: Sequence[int] = ()
    add_signatures: Sequence[int] = ()
    remove_signatures: Sequence[int] = ()
    base: int | None = None
    """Refuse unless this is the latest version's number."""
    is_step: bool = False
    withdrawn: bool = False
    """An explicit delete: what goes is not served for pullGrace."""


@dataclass(frozen=True, slots=True)
class Commit:
    """`outcome` is Changed, NoChange or AlreadyApplied; `version` is the number made (or made then), if any."""

    outcome: str
    version: int | None
    added_tags: int
    removed_tags: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRecord:
    """A parsed manifest with what is read from its config."""

    manifest: Manifest
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlob:
    """Bytes that were verified: either an object's key or the bytes themselves."""

    digest: str
    size: int
    object_key: str | None = None
    inline: bytes | None = None


async def commit(
    connection: Connection, repository: int, *, change: Change, cause: Cause, ledger: LedgerEntry | None = None
) -> Commit:
    """Make the next version of a repository, or find that nothing changes.

    Raises:
        CommitRefused: one of its subclasses; nothing was written.
        DatabaseUnavailable: PostgreSQL went away; whether the version was made is unknown, a ledger entry tells later.
    """
    with refusals():
        row = await _sql.commit_content(
            connection,
            repository=repository,
            cause_kind=cause.kind,
            cause_name=cause.name,
            tag_names=list(change.tags),
            tag_manifests=list(change.tags.values()),
            untag=list(change.untag),
            manifests_add=list(change.add_manifests),
            manifests_remove=list(change.remove_manifests),
            signatures_add=list(change.add_signatures),
            signatures_remove=list(change.remove_signatures),
            ledger_kind=ledger.kind if ledger else None,
            ledger_name=ledger.name if ledger else None,
            ledger_hash=ledger.hash if ledger else None,
            base=change.base,
            is_step=change.is_step,
            withdrawn=change.withdrawn,
        )
    return Commit(row["outcome"], row["number"], row["added_tags"] or 0, row["removed_tags"] or 0)


async def put_manifests(connection: Connection, records: Sequence[ManifestRecord]) -> dict[str, int]:
    """Store manifests and their edges; gives their ids by digest. Call it in a transaction.

    The blobs they name get rows, not bytes; that they are linked is checked by the commit.
    """
    # Always in the order of digests: writers of the same manifests wait for each other, and never in a circle.
    by_digest = {str(r.manifest.digest): r for r in sorted(records, key=lambda r: str(r.manifest.digest))}
    named = {str(b.digest) for r in by_digest.values() for b in r.manifest.blobs}
    with translated():
        await _sql.insert_blobs(connection, digests=sorted(named))
        inserted = await all_rows(_sql.insert_manifests(connection, **_manifest_columns(list(by_digest.values()))))
        new = {row["digest"]: row["id"] for row in inserted}
        await _insert_edges(connection, [(new[d], by_digest[d].manifest) for d in new])
        known = await all_rows(_sql.manifest_ids(connection, digests=[d for d in by_digest if d not in new]))
    return new | {row["digest"]: row["id"] for row in known}


async def _insert_edges(connection: Connection, manifests: Sequence[tuple[int, Manifest]]) -> None:
    blobs = [
        (
            id_,
            position,
            str(b.digest),
            "config" if b is m.config else "layer",
            b.media_type,
            b.size,
            is_foreign_layer(b.media_type),
        )
        for id_, m in manifests
        for position, b in enumerate(m.blobs)
    ]
    if blobs:
        blob_names = ("manifests", "positions", "digests", "roles", "media_types", "sizes", "foreigns")
        await _sql.insert_manifest_blobs(connection, **_columns(blob_names, blobs))
    children = [
        (id_, position, str(child.digest), *_platform(child))
        for id_, m in manifests
        for position, child in enumerate(m.children)
    ]
    if children:
        child_names = ("parents", "positions", "digests", "systems", "architectures", "variants")
        await _sql.insert_manifest_children(connection, **_columns(child_names, children))


def _platform(child: Descriptor) -> tuple[str | None, str | None, str | None]:
    platform = child.platform
    return (platform.os, platform.architecture, platform.variant) if platform else (None, None, None)


def _manifest_columns(records: Sequence[ManifestRecord]) -> dict[str, list[object]]:
    names = (
        "digests", "media_types", "kinds", "artifact_types", "subjects", "systems", "architectures", "variants",
        "annotations", "labels", "sizes", "bodies",
    )  # fmt: skip
    rows = [
        (
            str(m.digest), m.media_type, str(classify(m, r.labels)), m.artifact_type, str(m.subject.digest) if m.subject else None, r.os,
            r.architecture, r.variant, dict(m.annotations), dict(r.labels), len(m.body), m.body,
        )
        for r in records
        for m in [r.manifest]
    ]  # fmt: skip
    return _columns(names, rows)


def _columns(names: Sequence[str], rows: Sequence[Sequence[object]]) -> dict[str, list[object]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


async def latest_manifests(connection: Connection, repository: int, *, digests: Sequence[str]) -> dict[str, int]:
    """Which digests are manifests of the latest version, with their ids."""
    with translated():
        rows = await all_rows(_sql.latest_manifests(connection, repository=repository, digests=list(digests)))
    return {row["digest"]: row["id"] for row in rows}


async def linkable_blobs(connection: Connection, repository: int, *, digests: Sequence[str]) -> dict[str, int]:
    """Which digests need not be fetched, being stored and linked in the repository's namespace, with their sizes in bytes."""
    with translated():
        rows = await all_rows(_sql.linkable_blobs(connection, repository=repository, digests=list(digests)))
    return {row["digest"]: row["size"] for row in rows}


async def link_blobs(connection: Connection, repository: int, *, sizes: Mapping[str, int]) -> None:
    """Link blobs, by digest with their size in bytes, to a repository. Their rows must exist."""
    with translated():
        await _sql.link_blobs(connection, repository=repository, digests=list(sizes), sizes=list(sizes.values()))


async def begin_objects(connection: Connection, *, owner: str, count: int) -> list[str]:
    """New random object keys, recorded before their first byte. `owner` is `sync/<run id>` or the like."""
    keys = [f"blobs/{secrets.token_hex(20)}" for _ in range(count)]
    with translated():
        await _sql.begin_objects(connection, owner=owner, keys=keys)
    return keys


async def open_multipart(connection: Connection, *, key: str, upload_id: str) -> None:
    """Remember the multipart upload that writes an object."""
    with translated():
        await _sql.open_multipart(connection, key=key, upload_id=upload_id)


async def store_blobs(connection: Connection, blobs: Sequence[StoredBlob]) -> None:
    """Point blobs at their bytes. Where another writer was first, its bytes stay and ours are left for the keeper."""
    if not blobs:
        return
    columns = _columns(
        ("digests", "sizes", "keys", "inlines"), [(b.digest, b.size, b.object_key, b.inline) for b in blobs]
    )
    with translated():
        async with connection.transaction():
            rows = await all_rows(_sql.store_blobs(connection, **columns))
            kept = {row["object_key"] for row in rows}
            ours = [b.object_key for b in blobs if b.object_key is not None]
            await _sql.close_objects(connection, keys=[key for key in ours if key in kept])
            await _sql.discard_objects(connection, keys=[key for key in ours if key not in kept])


async def discard_objects(connection: Connection, *, keys: Sequence[str]) -> None:
    """Leave objects to the keeper, written or not."""
    with translated():
        await _sql.discard_objects(connection, keys=list(keys))


async def record_origins(connection: Connection, *, origin: str, name: str, digests: Sequence[str]) -> None:
    """Remember that bytes came from `origin` (scheme://host:port) as repository `name`."""
    with translated():
        await _sql.record_origins(connection, origin=origin, name=name, digests=list(digests))
