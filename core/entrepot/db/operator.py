"""What the operator reads and writes in PostgreSQL: identities of repositories, remotes and their sealed credentials, claims of paths,
Distributions as they are served, and sync runs. Content itself it only looks at.

Every method raises `DatabaseUnavailable` while PostgreSQL is away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from entrepot.db.pool import Pool, all_rows, queries, translated

__all__ = [
    "ActiveRun",
    "Contact",
    "FinishedRun",
    "History",
    "OperatorDatabase",
    "PathHolder",
    "RepositoryRow",
    "ServedDistribution",
    "Serving",
    "ShownNumbers",
    "VersionRow",
]

T = TypeVar("T")

_sql = queries("operator")
_NO_UUID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class RepositoryRow:
    """A repository, which outlives its resource."""

    id: int
    uuid: UUID
    namespace: str
    name: str
    resource_uid: UUID
    latest: int
    last_number: int
    projected: int
    is_mirror: bool
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version, with its summary; `base` is 0 for the first."""

    number: int
    base: int
    created_at: datetime
    cause_kind: str
    cause_name: str
    is_step: bool
    added_tags: int
    removed_tags: int
    added_manifests: int
    removed_manifests: int
    added_blobs: int
    removed_blobs: int
    added_signatures: int
    removed_signatures: int
    tags: int
    manifests: int
    indexes: int
    blobs: int
    signatures: int
    size: int


@dataclass(frozen=True, slots=True)
class ShownNumbers:
    """The versions of a repository that have a resource."""

    id: int
    namespace: str
    name: str
    numbers: Sequence[int]


@dataclass(frozen=True, slots=True)
class Contact:
    """What the last run that spoke to a Remote found."""

    contact_at: datetime | None
    contact_outcome: str | None
    contact_message: str | None


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run that is not finished."""

    id: UUID
    spec_hash: str
    trigger: str
    request: str | None
    created_at: datetime
    started_at: datetime | None
    heartbeat_at: datetime | None
    phase: str
    attempts: int
    tags_done: int
    tags_total: int
    manifests_done: int
    manifests_total: int
    blobs_done: int
    blobs_total: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that is finished."""

    id: UUID
    spec_hash: str
    trigger: str
    request: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime
    outcome: str
    reason: str | None
    message: str | None
    version: int | None
    added: int
    removed: int
    bytes_transferred: int
    failed_tags: Sequence[Mapping[str, Any]]
    failed_tag_count: int


@dataclass(frozen=True, slots=True)
class History:
    """What scheduling needs of earlier runs: the spec of the last that did anything, failures of the present spec, the last request."""

    good_hash: str | None
    failures: int
    request: str | None


@dataclass(frozen=True, slots=True)
class Serving:
    """A Distribution that serves a repository."""

    name: str
    pinned: int | None


@dataclass(frozen=True, slots=True)
class PathHolder:
    """Who has a base path; `distribution` is None while it is only reserved, `name` where nothing is served."""

    namespace: str
    distribution: UUID | None
    released_at: datetime | None
    name: str | None


@dataclass(frozen=True, slots=True)
class ServedDistribution:
    """What is served for a Distribution."""

    base_path: str
    repository: int
    pinned: int | None
    latest: int
    repository_name: str


class OperatorDatabase:
    """The operator's statements, one thin method each."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def _one(self, query: Any, /, **parameters: object) -> Any:
        with translated():
            async with self._pool.acquire() as connection:
                return await query(connection, **parameters)

    async def _all(self, query: Any, /, **parameters: object) -> list[Any]:
        with translated():
            async with self._pool.acquire() as connection:
                return await all_rows(query(connection, **parameters))

    # Repositories

    async def live_repository(self, namespace: str, name: str) -> RepositoryRow | None:
        """The repository of a name."""
        return _row(RepositoryRow, await self._one(_sql.live_repository, namespace=namespace, name=name))

    async def own_repository(self, namespace: str, *, resource_uid: UUID) -> RepositoryRow | None:
        """The newest repository of a resource, living or deleted."""
        row = await self._one(_sql.own_repository, namespace=namespace, resource_uid=resource_uid)
        return _row(RepositoryRow, row)

    async def deleted_repository(self, namespace: str, *, uuid: UUID) -> RepositoryRow | None:
        """A deleted repository whose content is still there."""
        return _row(RepositoryRow, await self._one(_sql.deleted_repository, namespace=namespace, uuid=uuid))

    async def insert_repository(
        self, namespace: str, name: str, *, resource_uid: UUID, last_number: int
    ) -> RepositoryRow | None:
        """A new repository whose first version gets a number above `last_number`; None if the name was taken meanwhile."""
        row = await self._one(
            _sql.insert_repository, namespace=namespace, name=name, resource_uid=resource_uid, last_number=last_number
        )
        return _row(RepositoryRow, row)

    async def take_repository(self, row: RepositoryRow, *, name: str, resource_uid: UUID) -> RepositoryRow | None:
        """Give a repository, living or deleted, to a resource; None if another has the name."""
        taken = await self._one(
            _sql.take_repository, repository=row.id, namespace=row.namespace, name=name, resource_uid=resource_uid
        )
        return _row(RepositoryRow, taken)

    async def delete_repository(self, repository: int, *, grace: timedelta) -> None:
        """Mark a repository deleted; its content stays for `grace`."""
        await self._one(_sql.delete_repository, repository=repository, grace=grace)

    async def set_mirror(self, repository: int, *, is_mirror: bool) -> None:
        """Refuse writes of clients from now on, or take them."""
        await self._one(_sql.set_mirror, repository=repository, is_mirror=is_mirror)

    async def raise_number(self, repository: int, *, floor: int) -> None:
        """No version gets `floor` or a lower number any more."""
        await self._one(_sql.raise_number, repository=repository, floor=floor)

    async def set_projected(self, repository: int, *, number: int) -> None:
        """The resources show this version now."""
        await self._one(_sql.set_projected, repository=repository, number=number)

    async def unprojected_repositories(self, *, maximum: int) -> list[tuple[str, str, int]]:
        """Namespace, name and latest version of repositories that got one since their resources were written."""
        rows = await self._all(_sql.unprojected_repositories, maximum=maximum)
        return [(row["namespace"], row["name"], row["latest"]) for row in rows]

    # Versions

    async def version(self, repository: int, number: int) -> VersionRow | None:
        """One version."""
        return _row(VersionRow, await self._one(_sql.version, repository=repository, number=number))

    async def find_version(self, repository: int, number: int, *, maximum: int) -> tuple[bool, Sequence[int]]:
        """Whether a repository has a version, and the numbers of its newest `maximum`."""
        row = await self._one(_sql.find_version, repository=repository, number=number, maximum=maximum)
        return row["found"], row["newest"]

    async def shown_versions(self, repository: int, *, window: int) -> list[VersionRow]:
        """The newest `window` versions that are no steps, and the pinned ones, by number."""
        return _rows(VersionRow, await self._all(_sql.shown_versions, repository=repository, window=window))

    async def shown_numbers(self, *, window: int, after: int, maximum: int) -> list[ShownNumbers]:
        """The same as numbers, for the next `maximum` repositories with an id above `after`."""
        return _rows(ShownNumbers, await self._all(_sql.shown_numbers, window=window, after=after, maximum=maximum))

    async def serving_distributions(self, repository: int) -> list[Serving]:
        """Which Distributions serve a repository."""
        return _rows(Serving, await self._all(_sql.serving_distributions, repository=repository))

    # Remotes

    async def put_remote(
        self, uuid: UUID, *, namespace: str, name: str, url: str, credential: tuple[str, bytes] | None
    ) -> Contact:
        """Make a Remote and its sealed credential (key id, bytes) what they should be; gives what is known of its contacts."""
        with translated():
            async with self._pool.acquire() as connection, connection.transaction():
                await _sql.delete_moved_remote(connection, uuid=uuid, namespace=namespace, name=name, url=url)
                await _sql.upsert_remote(connection, uuid=uuid, namespace=namespace, name=name, url=url)
                if credential is None:
                    await _sql.delete_credential(connection, remote=uuid)
                else:
                    key_id, ciphertext = credential
                    await _sql.upsert_credential(connection, remote=uuid, key_id=key_id, ciphertext=ciphertext)
                row = await _sql.remote_contact(connection, uuid=uuid)
        return Contact(**row)

    async def delete_remote(self, namespace: str, name: str) -> None:
        """Forget a Remote with its credentials."""
        await self._one(_sql.delete_remote, namespace=namespace, name=name)

    async def remote_names(self, *, after: UUID = _NO_UUID, maximum: int) -> list[tuple[UUID, str, str]]:
        """Known Remotes in the order of their uuids."""
        return [
            (row["uuid"], row["namespace"], row["name"])
            for row in await self._all(_sql.remote_names, after=after, maximum=maximum)
        ]

    async def contacts_since(self, since: datetime, *, maximum: int) -> list[tuple[str, str, datetime]]:
        """Remotes that were spoken to after a time, with that time."""
        rows = await self._all(_sql.contacts_since, since=since, maximum=maximum)
        return [(row["namespace"], row["name"], row["contact_at"]) for row in rows]

    # Runs

    async def active_run(self, repository: int) -> ActiveRun | None:
        """The run that is not finished."""
        return _row(ActiveRun, await self._one(_sql.active_run, repository=repository))

    async def last_run(self, repository: int) -> FinishedRun | None:
        """The finished run that was made last."""
        return _row(FinishedRun, await self._one(_sql.last_run, repository=repository))

    async def run_history(self, repository: int, *, spec_hash: str) -> History:
        """What scheduling needs beside the last run."""
        return History(**await self._one(_sql.run_history, repository=repository, spec_hash=spec_hash))

    async def insert_run(
        self,
        repository: int,
        *,
        spec: Mapping[str, Any],
        spec_hash: str,
        trigger: str,
        request: str | None,
        maximum: int,
    ) -> UUID | None:
        """A new run; None if one is active, or `maximum` are in all."""
        row = await self._one(
            _sql.insert_run,
            repository=repository,
            spec=spec,
            spec_hash=spec_hash,
            trigger=trigger,
            request=request,
            maximum=maximum,
        )
        return row["id"] if row else None

    async def fail_run(self, run: UUID, *, reason: str, message: str) -> None:
        """End a run that nobody works on any more; one that has ended stays as it ended."""
        await self._one(_sql.fail_run, run=run, reason=reason, message=message)

    async def fail_lost_runs(self, *, deadline: timedelta, message: str) -> int:
        """End runs that gave no sign of life for longer than a Job may take, whoever was to look after them; gives how many."""
        return len(await self._all(_sql.fail_lost_runs, deadline=deadline, message=message))

    async def prune_runs(self, repository: int, *, keep: int) -> None:
        """Forget finished runs but the newest `keep`, the last good one and the last that was asked for."""
        await self._one(_sql.prune_runs, repository=repository, keep=keep)

    # Distributions

    async def claim_path(
        self, path: str, *, namespace: str, name: str, distribution: UUID, reservation: timedelta
    ) -> PathHolder | None:
        """Take a path for a Distribution; gives who has it instead, or None if it is ours now."""
        with translated():
            async with self._pool.acquire() as connection, connection.transaction():
                claimed = await _sql.claim_path(
                    connection,
                    path=path,
                    namespace=namespace,
                    name=name,
                    distribution=distribution,
                    reservation=reservation,
                )
                if claimed:
                    return None
                return PathHolder(**await _sql.path_holder(connection, path=path))

    async def release_paths(self, distribution: UUID, *, keep: str = "") -> bool:
        """Give back all paths of a Distribution but the one it keeps; gives whether there were any."""
        return bool(await self._all(_sql.release_paths, distribution=distribution, keep=keep))

    async def withdraw_distribution(self, uuid: UUID, *, namespace: str, name: str) -> bool:
        """Serve it no longer; gives whether it was."""
        return bool(await self._all(_sql.withdraw_distribution, uuid=uuid, namespace=namespace, name=name))

    async def put_distribution(
        self,
        uuid: UUID,
        *,
        namespace: str,
        name: str,
        base_path: str,
        repository: int,
        access: str,
        pinned: int | None = None,
        redirect: bool | None = None,
    ) -> bool:
        """Serve a repository at a path that is claimed, and give back other paths; gives whether that changed anything.

        `pinned` is a version that exists; None serves the latest. `redirect` is None where the registry's setting decides.
        """
        with translated():
            async with self._pool.acquire() as connection, connection.transaction():
                await _sql.withdraw_others(connection, uuid=uuid, namespace=namespace, name=name, base_path=base_path)
                row = await _sql.upsert_distribution(
                    connection,
                    uuid=uuid,
                    namespace=namespace,
                    name=name,
                    base_path=base_path,
                    repository=repository,
                    access=access,
                    pinned=pinned,
                    redirect=redirect,
                )
                # Also where nothing else changed: a path may have been claimed when it could not be served yet.
                freed = await all_rows(_sql.release_paths(connection, distribution=uuid, keep=base_path))
        return row is not None or bool(freed)

    async def served_distribution(self, uuid: UUID) -> ServedDistribution | None:
        """What is served for a Distribution."""
        return _row(ServedDistribution, await self._one(_sql.served_distribution, uuid=uuid))

    async def distribution_names(self, *, after: UUID = _NO_UUID, maximum: int) -> list[tuple[UUID, str, str]]:
        """Served Distributions in the order of their uuids."""
        return [
            (row["uuid"], row["namespace"], row["name"])
            for row in await self._all(_sql.distribution_names, after=after, maximum=maximum)
        ]


def _row(kind: type[T], row: Any) -> T | None:
    return kind(**row) if row is not None else None


def _rows(kind: type[T], rows: Iterable[Any]) -> list[T]:
    return [kind(**row) for row in rows]
