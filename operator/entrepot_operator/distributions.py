"""Distributions: a path of the registry, held by one of them at a time, and what is served there.

What is served is a row in PostgreSQL. The row goes when there is nothing to serve any more (its Repository is missing or another), and stays
while it asks for a path or a version that it cannot get: then what it served is served on, to those whom it names now.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from entrepot.db.operator import PathHolder, RepositoryRow, ServedDistribution
from entrepot.errors import Stalled, Waiting
from entrepot_operator.conditions import Result, rfc3339
from entrepot_operator.context import Context, add_finalizer, is_deleted, remove_finalizer
from entrepot_operator.kinds import (
    DISTRIBUTION,
    FINALIZER,
    PATH_PREFIXES,
    REPOSITORY,
    Key,
    Object,
    annotation,
    key_of,
    uid_of,
)
from entrepot_operator.paths import check_path, default_path

__all__ = ["Distributions"]

_NAMED_VERSIONS: Final = 5
"""How many of the versions that there are a message names."""


class Distributions:
    """The reconciler of Distributions."""

    kind = DISTRIBUTION

    async def reconcile(self, context: Context, body: Object, status: dict[str, Any]) -> Result | None:
        """See `context.Reconciler`."""
        if is_deleted(body):
            await _delete(context, body)
            return None
        body = await add_finalizer(context, DISTRIBUTION, body)
        status["uuid"] = body["metadata"]["uid"]
        spec = body["spec"]
        repository = spec["repositoryRef"]["name"]
        served = await context.db.served_distribution(uid_of(body))
        path = spec.get("basePath") or default_path(body["metadata"]["namespace"], repository)
        try:
            await _claim(context, body, path)
        except Stalled:
            if served is None or served.base_path == path or served.repository_name != repository:
                await _withdraw(context, body, served, status)
            else:
                await _put(
                    context, body, served, path=served.base_path, repository=served.repository, pinned=served.pinned
                )
            raise
        status["basePath"] = path
        return await _serve(context, body, served, path=path, repository=repository, status=status)

    async def gone(self, context: Context, key: Key) -> None:
        """Nothing: its finalizer was ours. A row whose resource vanished otherwise is told by a metric, and served on."""
        context.path_waiters.discard(key)


async def _delete(context: Context, body: Object) -> None:
    if FINALIZER not in (body["metadata"].get("finalizers") or ()):
        return
    await _withdraw(context, body, await context.db.served_distribution(uid_of(body)), {}, keep="")
    await remove_finalizer(context, DISTRIBUTION, body)


async def _withdraw(
    context: Context,
    body: Object,
    served: ServedDistribution | None,
    status: dict[str, Any],
    *,
    keep: str | None = None,
) -> None:
    """Serve it no longer. Of its paths `keep` stays its own, all of them if that is None."""
    status.pop("registryPath", None)
    status.pop("servedVersion", None)
    metadata = body["metadata"]
    gone = await context.db.withdraw_distribution(uid_of(body), namespace=metadata["namespace"], name=metadata["name"])
    if gone and served is not None:
        context.views_changed(Key(REPOSITORY.name, metadata["namespace"], served.repository_name))
    if keep is not None and await context.db.release_paths(uid_of(body), keep=keep):
        context.path_released()


async def _claim(context: Context, body: Object, path: str) -> None:
    """Make the path ours. Raises Stalled where it is not allowed or another's."""
    metadata = body["metadata"]
    namespace, name, uid = metadata["namespace"], metadata["name"], uid_of(body)
    annotated = await context.api.namespace(namespace)
    prefixes = annotation(annotated, PATH_PREFIXES) if annotated is not None else None
    check_path(path, namespace=namespace, prefixes=prefixes)
    reservation = context.tuning.path_reservation
    key = key_of(DISTRIBUTION, body)
    holder = await context.db.claim_path(
        path, namespace=namespace, name=name, distribution=uid, reservation=reservation
    )
    if holder is not None and holder.distribution is not None and await _vanished(context, holder, namespace):
        await context.db.release_paths(holder.distribution)
        holder = await context.db.claim_path(
            path, namespace=namespace, name=name, distribution=uid, reservation=reservation
        )
    if holder is not None:
        context.path_waiters.add(key)
        raise Stalled(_conflict(path, holder, namespace, reservation), reason="BasePathConflict")
    context.path_waiters.discard(key)


async def _vanished(context: Context, holder: PathHolder, namespace: str) -> bool:
    """Whether a path is held, in our own namespace, by a Distribution that does not exist any more."""
    if holder.namespace != namespace:
        return False
    async for page in context.api.pages(DISTRIBUTION, namespace=namespace):
        if any(body["metadata"]["uid"] == str(holder.distribution) for body in page):
            return False
    return True


def _conflict(path: str, holder: PathHolder, namespace: str, reservation: timedelta) -> str:
    """What may be told: who holds it only if that is of the same namespace."""
    if holder.distribution is None:
        until = f" until {rfc3339(holder.released_at + reservation)}" if holder.released_at else ""
        return (
            f"the path {path!r} is reserved to another namespace{until}, whose Distribution had it; choose another path"
        )
    if holder.namespace == namespace:
        name = f" {holder.name!r}" if holder.name else ""
        return f"another Distribution{name} of this namespace holds the path {path!r}; choose another path or delete that one"
    return f"a Distribution of another namespace holds the path {path!r}; choose another path"


async def _serve(
    context: Context,
    body: Object,
    served: ServedDistribution | None,
    *,
    path: str,
    repository: str,
    status: dict[str, Any],
) -> Result:
    namespace = body["metadata"]["namespace"]
    row = await context.db.live_repository(namespace, repository)
    if row is None:
        await _withdraw(context, body, served, status, keep=path)
        if await context.api.get(REPOSITORY, namespace, repository) is not None:
            raise Waiting(
                f"the Repository {repository!r} is being set up", reason="RepositoryPending", after=timedelta(seconds=2)
            )
        raise Stalled(
            f"there is no Repository {repository!r} in the namespace {namespace}; make it or correct repositoryRef",
            reason="RepositoryNotFound",
        )
    pinned = body["spec"].get("version")
    if pinned is not None:
        found, newest = await context.db.find_version(row.id, pinned, maximum=_NAMED_VERSIONS)
        if not found:
            await _stay(context, body, served, path=path, row=row, status=status)
            raise Stalled(_no_version(repository, pinned, newest, status), reason="VersionNotFound")
    await _put(context, body, served, path=path, repository=row.id, pinned=pinned)
    _show(context, status, path=path, version=row.latest if pinned is None else pinned)
    if pinned is not None:
        return Result(reason="Serving", message=f"version {pinned} of {repository} is served, pinned by spec.version")
    if row.latest == 0:
        return Result(reason="Serving", message="served with no tags: the Repository is empty")
    return Result(reason="Serving", message=f"version {row.latest} of {repository} is served")


async def _stay(
    context: Context,
    body: Object,
    served: ServedDistribution | None,
    *,
    path: str,
    row: RepositoryRow,
    status: dict[str, Any],
) -> None:
    """Serve the version that was served, whatever the spec asks for, if it is of the same content."""
    if served is None or served.repository != row.id:
        await _withdraw(context, body, served, status, keep=path)
        return
    await _put(context, body, served, path=path, repository=row.id, pinned=served.pinned)
    _show(context, status, path=path, version=row.latest if served.pinned is None else served.pinned)


async def _put(
    context: Context, body: Object, served: ServedDistribution | None, *, path: str, repository: int, pinned: int | None
) -> None:
    """Write the row, and have those looked at whom it concerns if it is another than before."""
    metadata, spec = body["metadata"], body["spec"]
    changed = await context.db.put_distribution(
        uid_of(body),
        namespace=metadata["namespace"],
        name=metadata["name"],
        base_path=path,
        repository=repository,
        access=spec["access"],
        pinned=pinned,
        redirect=spec.get("redirect"),
    )
    if changed:
        context.path_released()
        names = {spec["repositoryRef"]["name"], served.repository_name if served is not None else None}
        for name in filter(None, names):
            context.views_changed(Key(REPOSITORY.name, metadata["namespace"], name))


def _show(context: Context, status: dict[str, Any], *, path: str, version: int) -> None:
    status["registryPath"] = f"{context.settings.registry_host}/{path}"
    if version == 0:
        status.pop("servedVersion", None)
    else:
        status["servedVersion"] = version


def _no_version(repository: str, wanted: int, newest: Sequence[int], status: dict[str, Any]) -> str:
    """What there is instead, and what is served meanwhile."""
    there = (
        f"its newest are {', '.join(map(str, newest))}; name one that exists" if newest else "it is empty; push to it"
    )
    served = status.get("servedVersion")
    meanwhile = f"; version {served} is served meanwhile" if served else ""
    return f"the Repository {repository!r} has no version {wanted}, {there} or remove spec.version{meanwhile}"
