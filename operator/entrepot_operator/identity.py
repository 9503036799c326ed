"""Which content belongs to which Repository.

Content outlives its resource, so a resource has to be matched with it: by UID as long as it is the same object, by annotation where a person
says so, and never by name alone, since a name is free for anybody once its resource is gone.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog

from entrepot.db.operator import RepositoryRow
from entrepot.errors import Failed, Stalled
from entrepot_operator.context import Context
from entrepot_operator.kinds import ADOPT, REPOSITORY, Object, annotation, key_of, uid_of
from entrepot_operator.views import highest_shown

__all__ = ["identify", "shown_number"]

log = structlog.get_logger(__name__)


def shown_number(status: dict[str, Any]) -> int:
    """The highest version number that a Repository's own status shows."""
    latest: int = (status.get("latestVersion") or {}).get("number", 0)
    synced: int = (status.get("lastSync") or {}).get("version", 0)
    return max(latest, synced)


async def identify(context: Context, body: Object) -> RepositoryRow:
    """The repository of a resource: its own, one it adopts, or a new one.

    Raises:
        Stalled: IdentityConflict; a person has to say whose the content is.
    """
    metadata = body["metadata"]
    namespace, name, uid = metadata["namespace"], metadata["name"], uid_of(body)
    live = await context.db.live_repository(namespace, name)
    if live is not None and live.resource_uid == uid:
        return live
    adopt = annotation(body, ADOPT)
    if live is not None:
        if adopt != str(live.uuid):
            raise Stalled(
                f"content of a Repository {name!r} is here that belongs to another object of that name (uuid {live.uuid}), as after a"
                f" restored cluster; annotate this one with {ADOPT}={live.uuid} to go on with it",
                reason="IdentityConflict",
            )
        return await _take(context, body, live)
    own = await context.db.own_repository(namespace, resource_uid=uid)
    if own is not None:
        # The very same object lives again: the Kubernetes API was restored to before its deletion.
        return await _take(context, body, own)
    if adopt is not None:
        return await _take(context, body, await _deleted(context, namespace, adopt))
    return await _new(context, body)


async def _deleted(context: Context, namespace: str, adopt: str) -> RepositoryRow:
    try:
        uuid = UUID(adopt)
    except ValueError:
        raise Stalled(f"the annotation {ADOPT} is not a uuid: {adopt[:64]!r}", reason="IdentityConflict") from None
    row = await context.db.deleted_repository(namespace, uuid=uuid)
    if row is None:
        raise Stalled(
            f"no deleted Repository of the namespace {namespace} has the uuid {uuid}, or its content is gone by now; correct or remove"
            f" the annotation {ADOPT}",
            reason="IdentityConflict",
        )
    return row


async def _take(context: Context, body: Object, row: RepositoryRow) -> RepositoryRow:
    key = key_of(REPOSITORY, body)
    # Before it is ours: afterwards it is found by its UID, and nobody would come back here.
    await context.db.raise_number(row.id, floor=await highest_shown(context, key))
    taken = await context.db.take_repository(row, name=key.name, resource_uid=uid_of(body))
    if taken is None:
        raise _moved()
    context.stale_views.add(key)
    log.info("adopted content", repository=str(key), uuid=str(row.uuid))
    return taken


async def _new(context: Context, body: Object) -> RepositoryRow:
    """A new repository. Numbers that were ever shown under its name do not come again, whatever PostgreSQL knows."""
    key = key_of(REPOSITORY, body)
    shown = await highest_shown(context, key)
    row = await context.db.insert_repository(key.namespace, key.name, resource_uid=uid_of(body), last_number=shown)
    if row is None:
        raise _moved()
    context.stale_views.add(key)
    return row


def _moved() -> Failed:
    return Failed("another Repository took the name at the same moment", reason="IdentityConflict")
