"""What every reconciler is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from entrepot.credentials import Keys
from entrepot.db.operator import OperatorDatabase
from entrepot.errors import Stalled
from entrepot_operator.api import Api
from entrepot_operator.conditions import Result
from entrepot_operator.index import Index
from entrepot_operator.kinds import FINALIZER, Key, Kind, Object
from entrepot_operator.queue import WorkQueue
from entrepot_operator.settings import JobSettings, OperatorSettings, RemoteDefaults, TuningSettings

__all__ = ["Context", "Reconciler", "StalledForNow", "add_finalizer", "is_deleted", "now", "remove_finalizer"]


class StalledForNow(Stalled):
    """Stalled for a cause that no watch tells the end of: look again `after`."""

    def __init__(self, message: str, *, reason: str, after: timedelta) -> None:
        super().__init__(message, reason=reason)
        self.after = after


@dataclass(slots=True)
class Context:
    """Connections, settings, and the little that is remembered between two looks at an object; all of it can be lost."""

    api: Api
    db: OperatorDatabase
    queue: WorkQueue[Key]
    index: Index
    settings: OperatorSettings
    tuning: TuningSettings
    jobs: JobSettings
    remote_defaults: RemoteDefaults
    keys: Keys
    pod_template: Object
    stale_views: set[Key] = field(default_factory=set)
    """Repositories whose RepositoryVersions may not be what they should be."""
    running: set[Key] = field(default_factory=set)
    """Repositories with a run under way, which the poller has looked at again; whoever looks adds it again."""
    path_waiters: set[Key] = field(default_factory=set)
    """Distributions that want a base path which another one has."""

    def requeue(self, *keys: Key) -> None:
        """Have objects looked at again."""
        for key in keys:
            self.queue.add(key)

    def views_changed(self, repository: Key) -> None:
        """Have the RepositoryVersions of a Repository written again where they differ."""
        self.stale_views.add(repository)
        self.queue.add(repository)

    def path_released(self) -> None:
        """Have everybody look who waits for a base path."""
        self.requeue(*self.path_waiters)
        self.path_waiters.clear()


class Reconciler(Protocol):
    """The shape of every reconciler: look at what is, do what is to be done, say what came of it. Doing it twice changes nothing."""

    kind: Kind

    async def reconcile(self, context: Context, body: Object, status: dict[str, object]) -> Result | None:
        """Work on an object as it is now.

        `status` holds its status fields and is changed to what they should be, also when an error is raised; conditions are made from what is
        returned or raised. None: the object is going, nothing is to be written.

        Raises:
            Stalled, Waiting, Failed: see entrepot.errors.
        """
        ...

    async def gone(self, context: Context, key: Key) -> None:
        """Clean up after an object that does not exist any more."""
        ...


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def is_deleted(body: Object) -> bool:
    """Whether the object is being deleted."""
    return "deletionTimestamp" in body["metadata"]


async def add_finalizer(context: Context, kind: Kind, body: Object) -> Object:
    """See to it that the object does not go unseen; gives it as it is then."""
    finalizers = body["metadata"].get("finalizers") or []
    if FINALIZER in finalizers:
        return body
    return await context.api.set_finalizers(kind, body, [*finalizers, FINALIZER])


async def remove_finalizer(context: Context, kind: Kind, body: Object) -> None:
    """Let the object go."""
    finalizers = body["metadata"].get("finalizers") or []
    if FINALIZER in finalizers:
        await context.api.set_finalizers(kind, body, [f for f in finalizers if f != FINALIZER])
