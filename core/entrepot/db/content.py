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
from entrepot.oci.manifest import Manifest, classify
from entrepot.oci.media_types import MANIFEST_TYPES, is_foreign_layer

__all__ = [
    "INLINE_LIMIT",
    "Cause",
    "Change",
    "Commit",
    "LedgerEntry",
    "ManifestRecord",
    "Push",
    "StoredBlob",
    "begin_objects",
    "commit",
    "delete_manifest",
    "discard_objects",
    "latest_manifests",
    "link_blobs",
    "linkable_blobs",
    "open_multipart",
    "push_manifest",
    "put_manifests",
    "record_origins",
    "refusals",
    "sign_manifest",
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


@dataclass(frozen=True, slots=True)
class Push:
    """What came of a push: the latest version's number; or, when nothing was written, digests of what has to be there before it."""

    version: int | None
    missing: tuple[str, ...]


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
    """Store manifests and their edges; gives their ids by digest.

    The blobs they name get rows, not bytes; that they are linked is checked by the commit.
    """
    by_digest = {str(r.manifest.digest): r for r in records}
    with translated():
        rows = await all_rows(
            _sql.store_manifests(
                connection,
                manifests=[_manifest_row(r) for r in by_digest.values()],
                bodies=[r.manifest.body for r in by_digest.values()],
                blobs=[row for r in by_digest.values() for row in _blob_rows(r.manifest)],
                children=[row for r in by_digest.values() for row in _child_rows(r.manifest)],
            )
        )
    return {row["digest"]: row["id"] for row in rows}


async def push_manifest(
    connection: Connection, repository: int, record: ManifestRecord, *, cause: str, tags: Sequence[str], blobs_needed: Sequence[str],
    manifests_needed: Sequence[str],
) -> Push:  # fmt: skip
    """Put a manifest into a repository, tagged, as its next version; one statement, all or nothing.

    Raises:
        CommitRefused: RepositoryGone or RepositoryIsMirror.
        DatabaseUnavailable: PostgreSQL went away; whether the version was made is unknown, and the same push again gives the same result.
    """
    with refusals():
        row = await _sql.push_manifest(
            connection, repository=repository, cause=cause, tags=list(tags), blobs_needed=list(blobs_needed),
            manifests_needed=list(manifests_needed), manifest=_manifest_row(record), body=record.manifest.body,
            blobs=_blob_rows(record.manifest), children=_child_rows(record.manifest),
        )  # fmt: skip
    return Push(row["number"], tuple(row["missing"]))


async def delete_manifest(
    connection: Connection, repository: int, *, tag: str | None = None, digest: str | None = None
) -> int | None:
    """Delete a tag, or a manifest with its tags and signatures; gives the version's number, None if there is no such thing.

    Raises what `push_manifest` raises.
    """
    with refusals():
        made: int | None = await _sql.delete_manifest(connection, repository=repository, tag=tag, digest=digest)
    return made


async def sign_manifest(
    connection: Connection, repository: int, *, manifest: str, name: str, digest: str, content: bytes, limit: int
) -> tuple[str, int | None]:
    """Add a signature, `digest` being that of its content, to a manifest of the latest version.

    Gives Signed and the latest version's number, or Unknown (there is no such manifest) or TooMany. Raises what `push_manifest` raises.
    """
    with refusals():
        row = await _sql.sign_manifest(
            connection, repository=repository, manifest=manifest, name=name, digest=digest, content=content, limit=limit
        )
    return row["outcome"], row["number"]


def _manifest_row(record: ManifestRecord) -> dict[str, object]:
    m = record.manifest
    return {
        "digest": str(m.digest),
        "media_type": m.media_type,
        "kind": str(classify(m, record.labels)),
        "artifact_type": m.artifact_type,
        "subject": str(m.subject.digest) if m.subject else None,
        "os": record.os,
        "architecture": record.architecture,
        "variant": record.variant,
        "annotations": dict(m.annotations),
        "labels": dict(record.labels),
    }


def _blob_rows(manifest: Manifest) -> list[dict[str, object]]:
    # Build caches are indexes that list blobs. An index may list what is not here, as a foreign layer may be absent.
    listed = {child.digest: child for child in manifest.children if child.media_type not in MANIFEST_TYPES}
    return [
        {
            "manifest": str(manifest.digest),
            "position": position,
            "digest": str(blob.digest),
            "role": "config" if blob is manifest.config else "layer",
            "media_type": blob.media_type,
            "size": blob.size,
            "is_foreign": blob.digest in listed or is_foreign_layer(blob.media_type),
        }
        for position, blob in enumerate((*manifest.blobs, *listed.values()))
    ]


def _child_rows(manifest: Manifest) -> list[dict[str, object]]:
    return [
        {
            "manifest": str(manifest.digest),
            "position": position,
            "digest": str(child.digest),
            "os": child.platform.os if child.platform else None,
            "architecture": child.platform.architecture if child.platform else None,
            "variant": child.platform.variant if child.platform else None,
        }
        for position, child in enumerate(manifest.children)
    ]


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
    """Point blobs at their bytes. Where another writer was first, its bytes stay and ours are left for the keeper.

    Raises:
        ObjectGone: the keeper has an object already, since who wrote it was taken for dead; nothing was written.
    """
    if not blobs:
        return
    columns = _columns(
        ("digests", "sizes", "keys", "inlines"), [(b.digest, b.size, b.object_key, b.inline) for b in blobs]
    )
    with translated():
        async with connection.transaction():
            ours = [b.object_key for b in blobs if b.object_key is not None]
            usable = await all_rows(_sql.usable_objects(connection, keys=ours)) if ours else []
            if not {row["key"] for row in usable}.issuperset(ours):
                raise ObjectGone("an object is not on record any more")
            rows = await all_rows(_sql.store_blobs(connection, **columns))
            kept = {row["object_key"] for row in rows}
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
