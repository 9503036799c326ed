"""Writing to a name: who may, what it stands for, and why it takes no writes if it does not.

One function for everything that changes content, so that a mirror or a pinned distribution is refused in every way there is, with a
message that says what to do. The functions of the database refuse once more, under the repository's lock.
"""

from __future__ import annotations

from dataclasses import dataclass

from entrepot.db.pool import Pool
from entrepot.db.uploads import Target, find_targets
from entrepot.errors import CommitRefused, ObjectGone, RegistryError, RepositoryGone, RepositoryIsMirror, UploadEnded
from entrepot.web.calls import Call
from entrepot_registry.access import Grant, Guard
from entrepot_registry.lookups import Batcher
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.settings import RegistrySettings

__all__ = ["Targets", "WritablePlace", "admit_writer", "open_targets", "refused_write", "writable_place"]

Targets = Batcher[str, Target | None]
"""Looks up what names stand for; requests at the same time share a statement."""

_WORDS = {"push": "pushes", "delete": "deletes"}


@dataclass(frozen=True, slots=True)
class WritablePlace:
    """A name that takes writes, and the grant under which it was asked."""

    grant: Grant
    target: Target

    @property
    def repository(self) -> int:
        """Its id in the database."""
        return self.target.repository


def open_targets(pool: Pool, settings: RegistrySettings, *, metrics: RegistryMetrics) -> Targets:
    """To be opened with `async with`, once a process."""
    return Batcher(pool, "find_targets", find_targets, settings=settings, metrics=metrics)


async def writable_place(
    call: Call, name: str, *, guard: Guard, targets: Targets, action: str = "push", mount_from: str | None = None
) -> WritablePlace:
    """The place that a name stands for, if this request may do `action` (push or delete) there and it takes that. One statement.

    `mount_from` is where a blob is to come from: the client is asked to have a token for that too.

    Raises:
        RegistryError: 401, 404 NAME_UNKNOWN, and 405 UNSUPPORTED for mirrors and pinned distributions.
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    grant = await guard.identify(call, name=name, action=action, mount_from=mount_from)
    return admit_writer(call, name, grant, await targets.ask(name), guard=guard, action=action)


def admit_writer(
    call: Call, name: str, grant: Grant, target: Target | None, *, guard: Guard, action: str = "push"
) -> WritablePlace:
    """As `writable_place`, for a target that was looked up together with something else."""
    guard.admit(call, grant, name, target.place if target is not None else None, action=action)
    if target is None:  # a place that is not there is not admitted to
        raise RegistryError(404, "NAME_UNKNOWN", "no such repository", detail={"name": name})
    if target.is_mirror:
        raise _mirror(name, action)
    if target.pinned is not None:
        raise RegistryError(
            405, "UNSUPPORTED",
            f"{name} is pinned to version {target.pinned} and takes no {_WORDS[action]}; use another Distribution of its"
            " Repository, or remove spec.version",
            detail={"name": name, "version": target.pinned}, headers={"Allow": "GET, HEAD"},
        )  # fmt: skip
    return WritablePlace(grant, target)


def refused_write(error: CommitRefused, name: str, *, action: str = "push") -> RegistryError:
    """What a client is told when the database refuses a write that was admitted just before; other refusals are for the caller."""
    if isinstance(error, RepositoryIsMirror):
        return _mirror(name, action)
    if isinstance(error, RepositoryGone):
        return RegistryError(404, "NAME_UNKNOWN", "the repository was deleted", detail={"name": name})
    if isinstance(error, UploadEnded):
        return RegistryError(404, "BLOB_UPLOAD_UNKNOWN", "the upload was finished, cancelled or has expired")
    if isinstance(error, ObjectGone):
        return RegistryError(
            503, "UNAVAILABLE", "the upload took too long to be kept; try again", headers={"Retry-After": "1"}
        )
    raise error


def _mirror(name: str, action: str) -> RegistryError:
    return RegistryError(
        405, "UNSUPPORTED",
        f"{name} is a mirror and takes no {_WORDS[action]}: its content comes from its sources alone;"
        " use another Repository, or remove spec.mirror",
        detail={"name": name}, headers={"Allow": "GET, HEAD"},
    )  # fmt: skip
