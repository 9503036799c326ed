"""Repositories: content that outlives its resource, and, for a mirror, the runs that keep it in step with the upstream."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import structlog

from entrepot.content.durations import DurationInvalid, parse_duration
from entrepot.db.operator import FinishedRun, History, RepositoryRow
from entrepot.errors import Failed, Stalled, Waiting
from entrepot_operator.conditions import Result, condition_of, rfc3339
from entrepot_operator.context import Context, StalledForNow, add_finalizer, is_deleted, now, remove_finalizer
from entrepot_operator.identity import identify, shown_number
from entrepot_operator.kinds import (
    DISTRIBUTION,
    FINALIZER,
    REMOTE,
    REPOSITORY,
    SYNC_REQUESTED,
    Key,
    Object,
    annotation,
    key_of,
    uid_of,
)
from entrepot_operator.remotes import accept, check
from entrepot_operator.runs import KNOWN_REASONS, Runs, abandon, follow, launch, run_spec, run_status, spec_hash
from entrepot_operator.schedule import Decision, LastRun, decide
from entrepot_operator.supported import check_supported
from entrepot_operator.views import latest_version, project, size_text

__all__ = ["Repositories"]

log = structlog.get_logger(__name__)

_SLOT_PAUSE = timedelta(seconds=5)


class Repositories:
    """The reconciler of Repositories."""

    kind = REPOSITORY

    async def reconcile(self, context: Context, body: Object, status: dict[str, Any]) -> Result | None:
        """See `context.Reconciler`."""
        if is_deleted(body):
            await _delete(context, body)
            return None
        body = await add_finalizer(context, REPOSITORY, body)
        row = await identify(context, body)
        status["uuid"] = str(row.uuid)
        if (shown := shown_number(status)) > row.last_number:
            await context.db.raise_number(row.id, floor=shown)
        mirror = body["spec"].get("mirror")
        await _admit_writes(context, body, row, is_mirror=mirror is not None)
        runs = await follow(context, body, row)
        # Read again: the run may have committed since.
        row = await context.db.live_repository(row.namespace, row.name) or row
        await _show_versions(context, body, row, status)
        run_status(context, body, runs, status)
        status.pop("nextSyncTime", None)
        check_supported(REPOSITORY, body["spec"])
        if mirror is None:
            return Result(reason="Available", message=_content(status) or "an ordinary Repository, empty so far")
        return await _mirror(context, body, row, runs=runs, mirror=mirror, status=status)

    async def gone(self, context: Context, key: Key) -> None:
        """Nothing: its finalizer was ours, so what had to be done is done, and what nobody deleted stays."""
        context.stale_views.discard(key)


async def _delete(context: Context, body: Object) -> None:
    """Mark the content deleted, then let the resource go. The keeper removes the content when its time has come."""
    if FINALIZER not in (body["metadata"].get("finalizers") or ()):
        return
    row = await context.db.own_repository(body["metadata"]["namespace"], resource_uid=uid_of(body))
    if row is not None and row.deleted_at is None:
        await context.db.delete_repository(row.id, grace=context.tuning.deletion_grace)
        log.info("marked content deleted", repository=str(key_of(REPOSITORY, body)), uuid=str(row.uuid))
    if row is not None:
        await abandon(context, body, row, reason="RepositoryDeleted", message="the Repository was deleted")
    await remove_finalizer(context, REPOSITORY, body)
    dependants = context.index.dependants(key_of(REPOSITORY, body))
    context.requeue(*(key for key in dependants if key.kind == DISTRIBUTION.name))


async def _admit_writes(context: Context, body: Object, row: RepositoryRow, *, is_mirror: bool) -> None:
    """Let clients write to an ordinary Repository, and to no mirror: never while a sync could commit as well."""
    if not is_mirror:
        await abandon(context, body, row, reason="MirrorRemoved", message="spec.mirror was removed")
    if row.is_mirror != is_mirror:
        await context.db.set_mirror(row.id, is_mirror=is_mirror)


async def _show_versions(context: Context, body: Object, row: RepositoryRow, status: dict[str, Any]) -> None:
    key = key_of(REPOSITORY, body)
    stale = key in context.stale_views
    if row.latest == 0:
        status.pop("latestVersion", None)
    elif stale or (status.get("latestVersion") or {}).get("number") != row.latest:
        version = await context.db.version(row.id, row.latest)
        if version is not None:
            status["latestVersion"] = latest_version(version)
    if stale or row.projected != row.latest:
        context.stale_views.discard(key)
        try:
            await project(context, body, row)
        except BaseException:
            context.stale_views.add(key)
            raise


async def _mirror(
    context: Context, body: Object, row: RepositoryRow, *, runs: Runs, mirror: dict[str, Any], status: dict[str, Any]
) -> Result:
    source = mirror["sources"][0]
    request = annotation(body, SYNC_REQUESTED)
    interval = _interval(mirror)
    if mirror.get("suspend", False):
        return _suspended(runs, status)
    remote = await _remote(context, body, source["remoteRef"]["name"])
    try:
        upstream = check(remote, context.remote_defaults)
    except Stalled as error:
        raise _remote_not_ready(remote, error) from error
    spec = run_spec(source, uid_of(remote), upstream, mirror=mirror)
    digest = spec_hash(spec)
    history = await context.db.run_history(row.id, spec_hash=digest)
    handled = frozenset(filter(None, [status.get("lastHandledSyncRequest"), history.request]))
    if request in handled:
        status["lastHandledSyncRequest"] = request
    if runs.active is not None:
        return _verdict(runs, status, digest=digest, history=history, decision=Decision())
    decision = decide(
        now=now(),
        spec_hash=digest,
        suspended=False,
        interval=interval,
        last=_last_run(runs.last),
        failures=history.failures,
        request=request,
        handled=handled,
        retry_initial=context.tuning.retry_initial,
        retry_maximum=context.tuning.retry_maximum,
    )
    if decision.trigger is None:
        if (stalled := _stalled(remote)) is not None:
            raise _remote_not_ready(remote, Stalled(stalled))
        if decision.next_at is not None:
            status["nextSyncTime"] = rfc3339(decision.next_at)
        return _verdict(runs, status, digest=digest, history=history, decision=decision)
    return await _start(
        context,
        body,
        row,
        remote=remote,
        spec=spec,
        trigger=decision.trigger,
        request=request,
        runs=runs,
        status=status,
    )


async def _start(
    context: Context,
    body: Object,
    row: RepositoryRow,
    *,
    remote: Object,
    spec: dict[str, Any],
    trigger: str,
    request: str | None,
    runs: Runs,
    status: dict[str, Any],
) -> Result:
    """Start a run, with the credentials that the Secrets hold now."""
    digest = spec_hash(spec)
    try:
        await accept(context, remote, upstream=spec["sources"][0]["upstreamName"])
    except Stalled as error:
        context.requeue(key_of(REMOTE, remote))
        raise _remote_not_ready(remote, error) from error
    run = await context.db.insert_run(
        row.id,
        spec=spec,
        spec_hash=digest,
        trigger=trigger,
        request=request,
        maximum=context.tuning.maximum_runs,
    )
    if run is None:
        history = await context.db.run_history(row.id, spec_hash=digest)
        tried = runs.last is not None and runs.last.spec_hash == digest
        if tried or history.good_hash == digest:
            return _verdict(
                Runs(None, "", runs.last),
                status,
                digest=digest,
                history=history,
                decision=Decision(next_at=now() + _SLOT_PAUSE),
            )
        raise Waiting(
            f"a sync is due and waits until one of the {context.tuning.maximum_runs} that may run at once has ended",
            reason="SyncPending",
            after=_SLOT_PAUSE,
        )
    if request is not None:
        status["lastHandledSyncRequest"] = request
    context.running.add(key_of(REPOSITORY, body))
    await launch(context, body, run)
    await context.db.prune_runs(row.id, keep=context.tuning.run_history)
    begun = Runs(await context.db.active_run(row.id), "", runs.last)
    run_status(context, body, begun, status)
    history = await context.db.run_history(row.id, spec_hash=digest)
    return _verdict(begun, status, digest=digest, history=history, decision=Decision())


def _verdict(runs: Runs, status: dict[str, Any], *, digest: str, history: History, decision: Decision) -> Result:
    """What Ready says: the last attempt with this spec; while there was none, the one that is under way."""
    last, run = runs.last, runs.active
    after = max(decision.next_at - now(), timedelta(0)) if decision.next_at is not None else None
    if last is not None and last.spec_hash == digest:
        if last.outcome == "Failed":
            reason = last.reason if last.reason in KNOWN_REASONS else "SyncFailed"
            raise Failed(last.message or "the sync failed", reason=reason, retry_after=after or timedelta(minutes=1))
        return Result(reason=_good_reason(last), message=_good_message(last, status), requeue_after=after)
    if history.good_hash == digest:
        # A spec that was tried meanwhile was taken back.
        return Result(reason="Synced", message=_content(status) or "the upstream is empty", requeue_after=after)
    if run is None or run.started_at is None:
        message = runs.trouble or "the first sync with this spec waits for its pod"
        raise Waiting(message, reason="SyncPending", after=timedelta(minutes=1))
    message = f"the first sync with this spec is under way: {run.phase}, {run.tags_done} of {run.tags_total} tags"
    raise Waiting(message, reason="SyncRunning", after=timedelta(minutes=1))


def _suspended(runs: Runs, status: dict[str, Any]) -> Result:
    content = _content(status) or "nothing was ever synced"
    run = ", but the sync that is under way goes on" if runs.active is not None else ""
    return Result(reason="Suspended", message=f"syncing is switched off by spec.mirror.suspend{run}; {content}")


def _good_reason(last: FinishedRun | None) -> str:
    return last.outcome if last is not None and last.outcome in {"Synced", "NoChange", "Partial"} else "Synced"


def _good_message(last: FinishedRun, status: dict[str, Any]) -> str:
    content = _content(status) or "the upstream has no tags that are wanted"
    match last.outcome:
        case "Synced":
            fetched = size_text(last.bytes_transferred)
            return f"{content}: {last.added} added, {last.removed} removed, {fetched} fetched by the last sync"
        case "Partial":
            first = last.failed_tags[0] if last.failed_tags else {}
            example = f", first {first.get('tag')}: {first.get('message') or first.get('reason')}" if first else ""
            return f"{content}; {last.failed_tag_count} tags failed and are tried again{example}"
        case _:
            return f"{content}, in step with the upstream"


def _content(status: dict[str, Any]) -> str:
    latest = status.get("latestVersion")
    if latest is None:
        return ""
    tags = latest["tags"]
    return f"version {latest['number']} with {tags} tag{'' if tags == 1 else 's'}"


def _interval(mirror: dict[str, Any]) -> timedelta | None:
    text = mirror.get("interval")
    if text is None:
        return None
    try:
        interval = parse_duration(text)
    except DurationInvalid as error:
        raise Stalled(f"spec.mirror.interval: {error}", reason="InvalidSpec") from None
    if interval < timedelta(seconds=10):
        raise Stalled(f"spec.mirror.interval: {text!r} is shorter than 10s", reason="InvalidSpec")
    return interval


async def _remote(context: Context, body: Object, name: str) -> Object:
    namespace = body["metadata"]["namespace"]
    remote = await context.api.get(REMOTE, namespace, name)
    if remote is None:
        raise Stalled(
            f"there is no Remote {name!r} in the namespace {namespace}; make it or correct remoteRef",
            reason="RemoteNotFound",
        )
    return remote


def _stalled(remote: Object) -> str | None:
    """Why a Remote is Stalled, unless that was said of an earlier generation."""
    status = remote.get("status") or {}
    condition = condition_of(status, "Stalled")
    if condition is None or condition.get("observedGeneration") != remote["metadata"]["generation"]:
        return None
    return str(condition["message"])


def _remote_not_ready(remote: Object, why: Stalled) -> Stalled:
    message = f"the Remote {remote['metadata']['name']!r} cannot be used: {why.message}"
    if isinstance(why, StalledForNow):
        # The Remote may be fine for other repositories, and then nobody tells of the Secret's change.
        return StalledForNow(message, reason="RemoteNotReady", after=why.after)
    return Stalled(message, reason="RemoteNotReady")


def _last_run(last: FinishedRun | None) -> LastRun | None:
    if last is None:
        return None
    return LastRun(id=last.id, spec_hash=last.spec_hash, outcome=last.outcome, finished_at=last.finished_at)
