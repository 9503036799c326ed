"""RepositoryVersions: views of versions, written from PostgreSQL.

Nobody's work is lost with one: the newest and the pinned ones have an object, and whatever happens to it, it is written again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from entrepot.db.operator import RepositoryRow, Serving, VersionRow
from entrepot_operator.conditions import Result, new_status, rfc3339
from entrepot_operator.context import Context, now
from entrepot_operator.kinds import (
    DISTRIBUTION,
    GROUP,
    REPOSITORY,
    REPOSITORY_LABEL,
    REPOSITORY_VERSION,
    VERSION,
    Key,
    Object,
    key_of,
)

__all__ = ["highest_shown", "latest_version", "project", "size_text", "view_name"]

_MAX_SERVED_BY = 100
_MAX_CAUSE = 253
"""As the schema has it."""


def view_name(repository: str, number: int) -> str:
    """The name of a RepositoryVersion."""
    return f"{repository}-v{number}"


def size_text(size: int) -> str:
    """A size for people, in powers of 1024: `112 MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    # 1023.9 of a unit is better read as such than as 1024; small numbers keep a digit.
    return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"


def latest_version(version: VersionRow) -> dict[str, Any]:
    """`status.latestVersion` of a Repository."""
    return {
        "number": version.number,
        "createdAt": rfc3339(version.created_at),
        "tags": version.tags,
        "manifests": version.manifests,
        "indexes": version.indexes,
        "blobs": version.blobs,
        "size": version.size,
        "sizeText": size_text(version.size),
    }


async def highest_shown(context: Context, repository: Key) -> int:
    """The highest number that any RepositoryVersion of this name shows, whatever Repository it was made for."""
    label = f"{REPOSITORY_LABEL}={repository.name}"
    highest = 0
    async for page in context.api.pages(REPOSITORY_VERSION, namespace=repository.namespace, label=label):
        highest = max([highest, *(body["spec"]["number"] for body in page)])
    return highest


async def project(context: Context, body: Object, row: RepositoryRow) -> None:
    """Make the RepositoryVersions of a Repository what they should be, and remember up to which version."""
    versions = await context.db.shown_versions(row.id, window=context.tuning.version_window)
    serving = await context.db.serving_distributions(row.id)
    existing = await _existing(context, body)
    for version in versions:
        await _write(context, body, version, _served_by(serving, version.number, row.latest), existing)
    wanted = {view_name(row.name, version.number) for version in versions}
    for name, view in existing.items():
        if name not in wanted:
            await context.api.delete(
                REPOSITORY_VERSION, view["metadata"]["namespace"], name, uid=view["metadata"]["uid"]
            )
    await context.db.set_projected(row.id, number=row.latest)
    if row.latest != row.projected:
        # They show which version they serve.
        dependants = context.index.dependants(key_of(REPOSITORY, body))
        context.requeue(*(key for key in dependants if key.kind == DISTRIBUTION.name))


async def _existing(context: Context, repository: Object) -> dict[str, Object]:
    metadata = repository["metadata"]
    label = f"{REPOSITORY_LABEL}={metadata['name']}"
    found: dict[str, Object] = {}
    async for page in context.api.pages(REPOSITORY_VERSION, namespace=metadata["namespace"], label=label):
        found |= {body["metadata"]["name"]: body for body in page}
    return found


def _served_by(serving: Iterable[Serving], number: int, latest: int) -> list[str]:
    names = [one.name for one in serving if (latest if one.pinned is None else one.pinned) == number]
    return names[:_MAX_SERVED_BY]


async def _write(
    context: Context, repository: Object, version: VersionRow, served_by: list[str], existing: Mapping[str, Object]
) -> None:
    wanted = _object(repository, version)
    view = existing.get(wanted["metadata"]["name"])
    if view is None or not _owned(view, repository):
        view = await context.api.apply(REPOSITORY_VERSION, repository["metadata"]["namespace"], wanted)
    old = view.get("status") or {}
    new = new_status(
        old,
        generation=view["metadata"]["generation"],
        outcome=Result(reason="Available", message="the version is complete and can be read"),
        fields=_status(version, served_by),
        now=now(),
    )
    if new != old:
        await context.api.apply_status(REPOSITORY_VERSION, view, new)


def _owned(view: Object, repository: Object) -> bool:
    owners = view["metadata"].get("ownerReferences") or ()
    return [owner["uid"] for owner in owners] == [repository["metadata"]["uid"]]


def _object(repository: Object, version: VersionRow) -> Object:
    metadata = repository["metadata"]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": REPOSITORY_VERSION.name,
        "metadata": {
            "name": view_name(metadata["name"], version.number),
            "namespace": metadata["namespace"],
            "labels": {REPOSITORY_LABEL: metadata["name"]},
            # With its Repository gone a view has nothing to show: Kubernetes removes it.
            "ownerReferences": [
                {
                    "apiVersion": f"{GROUP}/{VERSION}",
                    "kind": REPOSITORY.name,
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": {"repositoryRef": {"name": metadata["name"]}, "number": version.number},
    }


def _status(version: VersionRow, served_by: list[str]) -> dict[str, Any]:
    kinds = ("tags", "manifests", "blobs", "signatures")
    status: dict[str, Any] = {
        "createdAt": rfc3339(version.created_at),
        "cause": {"kind": version.cause_kind, "name": version.cause_name[:_MAX_CAUSE]},
        "contentSummary": {
            "added": {kind: getattr(version, f"added_{kind}") for kind in kinds},
            "removed": {kind: getattr(version, f"removed_{kind}") for kind in kinds},
            "present": {kind: getattr(version, kind) for kind in kinds},
        },
        "size": version.size,
        "sizeText": size_text(version.size),
    }
    if version.base:
        status["baseVersion"] = version.base
    if served_by:
        status["servedBy"] = served_by
    return status
