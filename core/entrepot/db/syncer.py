"""What a sync run reads and writes beside content: its own row, the remote's credentials, and what earlier attempts left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from entrepot.db.pool import Connection, all_rows, queries, translated

__all__ = [
    "ClaimedRun",
    "RunEnd",
    "RunProgress",
    "SealedCredential",
    "StoredConfig",
    "abandon_objects",
    "claim_run",
    "credential",
    "discard_leftovers",
    "finish_run",
    "lock_run",
    "open_uploads",
    "record_contact",
    "report_progress",
    "run_is_applied",
    "run_is_finished",
    "stored_configs",
    "try_lock_run",
]

_sql = queries("syncer")


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that this process works on. `spec` is the JSON that the operator wrote, `attempt` counts from 1."""

    id: UUID
    repository: int
    spec: Any
    spec_hash: str
    attempt: int
    bytes_transferred: int
    namespace: str
    name: str
    is_deleted: bool
    """Whether the repository is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """Counts so far; bytes are those of blobs."""

    phase: str = "Listing"
    tags_done: int = 0
    tags_total: int = 0
    manifests_done: int = 0
    manifests_total: int = 0
    blobs_done: int = 0
    blobs_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_transferred: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended: outcome is Synced, NoChange, Partial or Failed."""

    outcome: str
    reason: str | None = None
    message: str | None = None
    version: int | None = None
    added: int = 0
    removed: int = 0
    failed_tags: Sequence[dict[str, str]] = ()
    failed_tag_count: int = 0


@dataclass(frozen=True, slots=True)
class SealedCredential:
    """See `entrepot.credentials.unseal`."""

    key_id: str
    ciphertext: bytes


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """Either the bytes or the object that holds them."""

    inline: bytes | None
    object_key: str | None


async def try_lock_run(connection: Connection, run: UUID) -> bool:
    """Take the run's lock for the life of this connection; False if another process holds it."""
    with translated():
        return bool(await _sql.try_lock_run(connection, run=str(run)))


async def claim_run(connection: Connection, run: UUID) -> ClaimedRun | None:
    """Begin an attempt; None if the run is finished or unknown (`run_is_finished` tells which)."""
    with translated():
        row = await _sql.claim_run(connection, run=run)
    if row is None:
        return None
    return ClaimedRun(
        run, row["repository"], row["spec"], row["spec_hash"], row["attempts"], row["bytes_transferred"], row["namespace"],
        row["name"], row["is_deleted"],
    )  # fmt: skip


async def run_is_finished(connection: Connection, run: UUID) -> bool | None:
    """None if there is no such run."""
    with translated():
        row = await _sql.run_state(connection, run=run)
    return None if row is None else bool(row["is_finished"])


def _counts(progress: RunProgress) -> dict[str, int]:
    return {name: getattr(progress, name) for name in RunProgress.__slots__ if name != "phase"}


async def report_progress(connection: Connection, run: UUID, *, progress: RunProgress) -> bool:
    """Write the counts; the caller keeps to once a second at most. False if the run is finished, and then nothing is changed."""
    with translated():
        is_finished = await _sql.report_progress(connection, run=run, phase=progress.phase, **_counts(progress))
    return is_finished is False


async def lock_run(connection: Connection, run: UUID) -> bool:
    """Keep a run from being finished by anybody else until the transaction ends; False if it is finished, or gone, already."""
    with translated():
        return await _sql.lock_run(connection, run=run) is False


async def run_is_applied(connection: Connection, run: UUID) -> bool:
    """Whether the run's change was committed."""
    with translated():
        return bool(await _sql.run_is_applied(connection, run=run))


async def finish_run(connection: Connection, run: UUID, *, end: RunEnd, progress: RunProgress) -> bool:
    """End the run; False if it was ended before, and then nothing is changed."""
    with translated():
        done = await _sql.finish_run(
            connection,
            run=run,
            outcome=end.outcome,
            reason=end.reason,
            message=end.message,
            version=end.version,
            added=end.added,
            removed=end.removed,
            failed_tags=list(end.failed_tags),
            failed_tag_count=end.failed_tag_count,
            **_counts(progress),
        )
    return done is not None


async def record_contact(connection: Connection, remote: UUID, *, outcome: str, message: str | None) -> None:
    """`outcome` is Reachable or the reason of the failure."""
    with translated():
        await _sql.record_contact(connection, remote=remote, outcome=outcome, message=message)


async def credential(connection: Connection, remote: UUID) -> SealedCredential | None:
    """None if the remote is spoken to without any."""
    with translated():
        row = await _sql.credential(connection, remote=remote)
    return None if row is None else SealedCredential(row["key_id"], row["ciphertext"])


async def open_uploads(connection: Connection, owner: str) -> list[tuple[str, str]]:
    """Keys and upload ids of multipart uploads that were begun and never ended."""
    with translated():
        return [(row["key"], row["upload_id"]) for row in await all_rows(_sql.open_uploads(connection, owner=owner))]


async def discard_leftovers(connection: Connection, owner: str) -> None:
    """Leave to the keeper what was begun under this owner and nothing points at."""
    with translated():
        await _sql.discard_leftovers(connection, owner=owner)


async def abandon_objects(connection: Connection, owner: str) -> None:
    """Leave to the keeper what was begun under this owner and nothing points at, with its open uploads."""
    with translated():
        await _sql.abandon_objects(connection, owner=owner)


async def stored_configs(connection: Connection, digests: Sequence[str]) -> dict[str, StoredConfig]:
    """Where the bytes of these blobs are. Ask only for those that the repository may see."""
    with translated():
        rows = await all_rows(_sql.stored_configs(connection, digests=list(digests)))
    return {row["digest"]: StoredConfig(row["inline"], row["object_key"]) for row in rows}
