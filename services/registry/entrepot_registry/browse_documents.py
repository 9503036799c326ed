"""The content API's entries: rows as documents. The names of the fields are what docs/content-api.md promises; a field without a value is left out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from asyncpg import Record

from entrepot.db.browse import Comparison

__all__ = ["comparison_document", "content_document", "run_document", "version_document"]

_KINDS = ("tags", "manifests", "blobs", "signatures")


def version_document(row: Record) -> dict[str, Any]:
    """A version, in the words of RepositoryVersion's status."""
    return _given(
        number=row["number"],
        createdAt=_time(row["created_at"]),
        baseVersion=row["base"] or None,
        cause={"kind": row["cause_kind"], "name": row["cause_name"]},
        isStep=row["is_step"],
        contentSummary={
            "added": {kind: row[f"added_{kind}"] for kind in _KINDS},
            "removed": {kind: row[f"removed_{kind}"] for kind in _KINDS},
            "present": {kind: row[kind] for kind in _KINDS},
        },
        size=row["size"],
    )


def content_document(kind: str, row: Record) -> dict[str, Any]:
    """A tag, manifest, blob or signature."""
    if kind == "tags":
        return {
            "name": row["name"], "digest": row["digest"], "mediaType": row["media_type"], "kind": row["kind"], "size": row["size"],
            "since": row["since"],
        }  # fmt: skip
    if kind == "manifests":
        platform = _given(os=row["os"], architecture=row["architecture"], variant=row["variant"])
        return _given(
            digest=row["digest"], mediaType=row["media_type"], kind=row["kind"], size=row["size"], artifactType=row["artifact_type"],
            subject=row["subject"], platform=platform or None, since=row["since"],
        )  # fmt: skip
    if kind == "blobs":
        return {"digest": row["digest"], "mediaType": row["media_type"], "role": row["role"], "size": row["size"]}
    return {
        "digest": row["digest"], "manifest": row["manifest"], "name": row["name"], "size": row["size"], "since": row["since"],
    }  # fmt: skip


def comparison_document(found: Comparison, *, first: bool) -> dict[str, Any]:
    """What differs, without the tags themselves."""
    counts = found.counts
    summary: dict[str, Any] = {
        "tags": {"added": counts["tags_added"], "removed": counts["tags_removed"], "moved": counts["tags_moved"]}
    }
    for kind in ("manifests", "blobs") if first else ():
        summary[kind] = {
            change: {"count": counts[f"{kind}_{change}"], "size": counts[f"{kind}_{change}_size"]}
            for change in ("added", "removed")
        }
    return {
        "from": found.a,
        "to": found.b,
        "summary": summary,
        "tags": [_tag_change(row) for row in found.rows],
    }


def _tag_change(row: Record) -> dict[str, Any]:
    change = "added" if row["old_digest"] is None else "removed" if row["new_digest"] is None else "moved"
    return _given(
        name=row["name"], change=change, oldDigest=row["old_digest"], oldSize=row["old_size"], newDigest=row["new_digest"],
        newSize=row["new_size"],
    )  # fmt: skip


def run_document(row: Record) -> dict[str, Any]:
    """A sync run, as it stands on record."""
    return _given(
        id=str(row["id"]),
        trigger=row["trigger"],
        createdAt=_time(row["created_at"]),
        startedAt=_time(row["started_at"]),
        finishedAt=_time(row["finished_at"]),
        attempts=row["attempts"],
        phase=row["phase"],
        outcome=row["outcome"],
        reason=row["reason"],
        message=row["message"],
        version=row["version"],
        added=row["added"],
        removed=row["removed"],
        bytesTransferred=row["bytes_transferred"],
        failedTags=row["failed_tags"],
        failedTagCount=row["failed_tag_count"],
    )


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
