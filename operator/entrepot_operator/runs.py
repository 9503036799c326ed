"""Sync runs: following the one that is under way, and telling of the one that ended.

A run is a row in PostgreSQL that the syncer works off, and a Job that makes a syncer run. The row is what counts: as long as it is not finished
there must be a Job, and when its Job ends without finishing it, the operator finishes it, with what the pod says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import structlog

from entrepot.db.operator import ActiveRun, FinishedRun, RepositoryRow
from entrepot.errors import Failed
from entrepot_operator.api import Conflict
from entrepot_operator.conditions import one_line, rfc3339
from entrepot_operator.context import Context, now
from entrepot_operator.jobs import RUN_LABEL, diagnose, job_body, job_name, job_state, pod_trouble
from entrepot_operator.kinds import REPOSITORY, Object, key_of, uid_of
from entrepot_operator.remotes import Upstream

__all__ = ["KNOWN_REASONS", "Runs", "abandon", "follow", "launch", "run_spec", "run_status", "spec_hash"]

log = structlog.get_logger(__name__)

KNOWN_REASONS: Final = frozenset(
    {
        "Unauthorized",
        "RepositoryNotFound",
        "RateLimited",
        "UpstreamUnreachable",
        "UpstreamInvalid",
        "AddressDenied",
        "InvalidTLS",
        "CredentialsUnreadable",
        "InvalidFilter",
        "SpecInvalid",
        "StorageUnavailable",
        "DatabaseUnavailable",
        "JobFailed",
    }
)
"""Reasons of failed runs that a condition shows as they are; any other shows as SyncFailed."""

_START_GRACE: Final = timedelta(seconds=5)
"""How long a pod may be on its way before anybody asks what it waits for."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The run that is under way, why it does not start (empty if nothing is known to be wrong), and the one that ended last."""

    active: ActiveRun | None
    trouble: str
    last: FinishedRun | None


def run_spec(
    source: Mapping[str, Any], remote: UUID, upstream: Upstream, *, mirror: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run is to do, as the syncer reads it; times as durations."""
    return {
        "sources": [
            {
                "remote": str(remote),
                "url": upstream.url,
                "upstreamName": source["upstreamName"],
                "includeTags": list(source.get("includeTags") or ()),
                "excludeTags": list(source.get("excludeTags") or ()),
                "insecureSkipVerify": upstream.insecure_skip_verify,
                "downloadConcurrency": upstream.download_concurrency,
                "maxRetries": upstream.max_retries,
                "connectTimeout": upstream.connect_timeout,
                "readTimeout": upstream.read_timeout,
            }
        ],
        "policy": mirror.get("policy", "Immediate"),
        "mode": mirror.get("mode", "Additive"),
    }


def spec_hash(spec: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON: keys sorted, no blanks."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


async def launch(context: Context, body: Object, run: UUID) -> str:
    """See to it that the run has its Job; gives the Job's name."""
    namespace = context.settings.namespace
    name = job_name(body["metadata"]["name"], uid=uid_of(body), run=run)
    job = job_body(
        context.pod_template,
        name=name,
        namespace=namespace,
        release=context.settings.release,
        owner=body,
        run=run,
        settings=context.jobs,
    )
    try:
        await context.api.create_job(namespace, job)
    except Conflict:
        there = await context.api.job(namespace, name)
        if there is not None and (there["metadata"].get("labels") or {}).get(RUN_LABEL) != str(run):
            raise Failed(
                f"there is a Job {name} in the namespace {namespace} that is not this run's; delete it",
                reason="JobFailed",
            ) from None
    else:
        log.info("launched a sync", repository=_path(body), run=str(run), job=name)
    return name


async def abandon(context: Context, body: Object, row: RepositoryRow, *, reason: str, message: str) -> None:
    """End the run, with its Job, of a Repository that has no use for one any more: what it would still find is not committed."""
    run = await context.db.active_run(row.id)
    if run is not None:
        # The Job first: a run that has ended is not looked at again, and its Job would stay for good.
        name = job_name(body["metadata"]["name"], uid=uid_of(body), run=run.id)
        await context.api.delete_job(context.settings.namespace, name)
        await context.db.fail_run(run.id, reason=reason, message=message)


async def follow(context: Context, body: Object, row: RepositoryRow) -> Runs:
    """How the runs of a Repository are. A run without a Job gets one, a run whose Job is over without it ends."""
    run = await context.db.active_run(row.id)
    trouble = ""
    if run is not None:
        trouble, over = await _check_job(context, body, run)
        if over:
            await _finish(context, body, run, message=trouble)
            run, trouble = await context.db.active_run(row.id), ""
    if run is not None:
        context.running.add(key_of(REPOSITORY, body))
    return Runs(run, trouble, await context.db.last_run(row.id))


async def _check_job(context: Context, body: Object, run: ActiveRun) -> tuple[str, bool]:
    """What is wrong with the Job of a run, if anything, and whether the run is over with it."""
    namespace = context.settings.namespace
    name = job_name(body["metadata"]["name"], uid=uid_of(body), run=run.id)
    job = await context.api.job(namespace, name)
    if job is None:
        if run.started_at is not None:
            return f"the sync's Job {name} in the namespace {namespace} was deleted before it ended", True
        await launch(context, body, run.id)
        return "", False
    state = job_state(job)
    if state.phase != "Active":
        return diagnose(state, await context.api.job_pods(namespace, name), name=name, namespace=namespace), True
    if run.started_at is not None:
        return await _check_life(context, run, name=name)
    age = now() - run.created_at
    if age < _START_GRACE:
        return "", False
    trouble = pod_trouble(await context.api.job_pods(namespace, name))
    if age < context.jobs.start_deadline:
        return trouble, False
    await context.api.delete_job(namespace, name)
    return (
        f"the sync's Job {name} in the namespace {namespace} did not start in time: {trouble or 'no pod came up'}",
        True,
    )


async def _check_life(context: Context, run: ActiveRun, *, name: str) -> tuple[str, bool]:
    """Whether a run that has begun still shows signs of life. Of a lost node nobody says that its pods are gone, so a Job alone stays active."""
    seen = max(filter(None, [run.started_at, run.heartbeat_at]))
    if now() - seen < context.jobs.heartbeat_deadline:
        return "", False
    namespace = context.settings.namespace
    await context.api.delete_job(namespace, name)
    return (
        f"the sync's Job {name} in the namespace {namespace} gave no sign of life since {rfc3339(seen)} and was deleted",
        True,
    )


async def _finish(context: Context, body: Object, run: ActiveRun, *, message: str) -> None:
    # The syncer may have finished it between our two looks: then this changes nothing, and what it wrote is shown.
    await context.db.fail_run(run.id, reason="JobFailed", message=one_line(message))
    log.warning("a sync's Job is over", repository=_path(body), run=str(run.id), message=message)


def run_status(context: Context, body: Object, runs: Runs, status: dict[str, Any]) -> None:
    """Show the runs in a Repository's status."""
    status.pop("sync", None)
    if runs.active is not None:
        status["sync"] = _sync(context, body, runs.active)
    if runs.last is not None:
        status["lastSync"] = _last_sync(runs.last)


def _sync(context: Context, body: Object, run: ActiveRun) -> dict[str, Any]:
    counts = {
        "tags": (run.tags_done, run.tags_total),
        "manifests": (run.manifests_done, run.manifests_total),
        "blobs": (run.blobs_done, run.blobs_total),
        "bytes": (run.bytes_done, run.bytes_total),
    }
    progress = {kind: {"done": done, "total": total} for kind, (done, total) in counts.items() if done or total}
    return {
        "phase": run.phase,
        "run": str(run.id),
        "job": job_name(body["metadata"]["name"], uid=uid_of(body), run=run.id),
        **({"startedAt": rfc3339(run.started_at)} if run.started_at else {}),
        **({"progress": progress} if progress else {}),
    }


def _last_sync(run: FinishedRun) -> dict[str, Any]:
    return {
        "run": str(run.id),
        **({"startedAt": rfc3339(run.started_at)} if run.started_at else {}),
        "finishedAt": rfc3339(run.finished_at),
        "outcome": run.outcome,
        **({"version": run.version} if run.version else {}),
        "added": run.added,
        "removed": run.removed,
        "bytesTransferred": run.bytes_transferred,
        **({"failedTags": _failed_tags(run.failed_tags)} if run.failed_tags else {}),
        "failedTagCount": run.failed_tag_count,
    }


def _failed_tags(tags: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "tag": str(tag.get("tag", ""))[:256],
            "reason": str(tag.get("reason") or "Unknown")[:128],
            **({"message": one_line(str(tag["message"]))} if tag.get("message") else {}),
        }
        for tag in tags[:10]
    ]


def _path(body: Object) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"
