"""What the watches lost: every few minutes all our resources are listed, by page, and compared with what was told.

It finds objects whose deletion was lost, watches that no longer tell anything, RepositoryVersions that are not what they should be, and rows in
PostgreSQL whose resource vanished. And it has every object looked at again, so that whatever else was missed is mended by then.

It is also how the operator starts: the first comparison fills the index before the watches begin.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import structlog

from entrepot.errors import EntrepotError
from entrepot_operator import metrics
from entrepot_operator.context import Context
from entrepot_operator.kinds import (
    DISTRIBUTION,
    KINDS,
    REMOTE,
    REPOSITORY,
    REPOSITORY_LABEL,
    REPOSITORY_VERSION,
    Key,
    Kind,
    fingerprint,
    key_of,
)

__all__ = ["Comparison"]

log = structlog.get_logger(__name__)

_PAGE = 500


@dataclass(frozen=True, slots=True)
class _Suspect:
    """An object that a LIST showed in a state the watch had not told."""

    told: tuple[object, ...] | None
    since: float


class Comparison:
    """Compares, and remembers how that went."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._suspects: dict[Key, _Suspect] = {}
        self.dead: frozenset[str] = frozenset()
        """Kinds whose watch has told nothing of what comparisons saw."""
        self.succeeded_at: float | None = None
        """When all resources were listed last, by the monotonic clock."""
        self.heartbeat = time.monotonic()
        """When it last tried."""

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            await asyncio.sleep(self._context.tuning.comparison_interval.total_seconds())
            await self.once()

    async def once(self, *, first: bool = False) -> bool:
        """One comparison; gives whether all could be listed. The first one takes everything in."""
        self.heartbeat = time.monotonic()
        try:
            uids = await self._resources(first=first)
        except EntrepotError as error:
            log.warning("the resources could not be listed", reason=error.reason, message=error.message)
            metrics.COMPARISONS.labels("failed").inc()
            return False
        self.succeeded_at = time.monotonic()
        try:
            await self._rows(uids)
            await self._runs()
            await self._views()
        except EntrepotError as error:
            log.warning("the comparison was cut short", reason=error.reason, message=error.message)
            metrics.COMPARISONS.labels("partial").inc()
        else:
            metrics.COMPARISONS.labels("succeeded").inc()
        return True

    async def _resources(self, *, first: bool) -> Mapping[str, set[UUID]]:
        """List what is reconciled; gives the UIDs by kind."""
        uids: dict[str, set[UUID]] = {}
        dead = set()
        for kind in KINDS:
            uids[kind.name], late = await self._one_kind(kind, first=first)
            if late:
                dead.add(kind.name)
                log.error("the watch of a kind is dead", kind=kind.name)
            metrics.WATCH_ALIVE.labels(kind.name).set(0 if late else 1)
        self.dead = frozenset(dead)
        return uids

    async def _one_kind(self, kind: Kind, *, first: bool) -> tuple[set[UUID], bool]:
        context = self._context
        before = set(context.index.keys(kind))
        seen: set[Key] = set()
        uids: set[UUID] = set()
        late = False
        async for page in context.api.pages(kind):
            for body in page:
                key = key_of(kind, body)
                seen.add(key)
                uids.add(UUID(body["metadata"]["uid"]))
                if first:
                    context.index.put(kind, body)
                    if kind is REPOSITORY:
                        context.stale_views.add(key)
                late |= self._is_late(key, fingerprint(body))
                context.queue.add(key)
        for key in before - seen:
            log.info("a deletion was lost", object=str(key))
            dependants = context.index.dependants(key)
            context.index.remove(key)
            context.requeue(key, *dependants)
        for key in [key for key in self._suspects if key.kind == kind.name and key not in seen]:
            del self._suspects[key]
        return uids, late

    def _is_late(self, key: Key, listed: tuple[object, ...]) -> bool:
        """Whether the watch has had time enough to tell of this state, and has not told anything."""
        told = self._context.index.fingerprint(key)
        if told == listed:
            self._suspects.pop(key, None)
            return False
        suspect = self._suspects.get(key)
        if suspect is None or suspect.told != told:
            self._suspects[key] = _Suspect(told, time.monotonic())
            return False
        return time.monotonic() - suspect.since >= self._context.tuning.watch_grace.total_seconds()

    async def _rows(self, uids: Mapping[str, set[UUID]]) -> None:
        """Rows without a resource: credentials of a Remote go, a Distribution is told of and served on."""
        context = self._context
        after = UUID(int=0)
        while remotes := await context.db.remote_names(after=after, maximum=_PAGE):
            for uuid, namespace, name in remotes:
                if uuid not in uids[REMOTE.name]:
                    context.queue.add(Key(REMOTE.name, namespace, name))
            after = remotes[-1][0]
        vanished = 0
        after = UUID(int=0)
        while distributions := await context.db.distribution_names(after=after, maximum=_PAGE):
            for uuid, namespace, name in distributions:
                if uuid not in uids[DISTRIBUTION.name]:
                    vanished += 1
                    log.warning(
                        "a Distribution vanished without being deleted; it is served on", namespace=namespace, name=name
                    )
            after = distributions[-1][0]
        metrics.VANISHED_DISTRIBUTIONS.set(vanished)

    async def _runs(self) -> None:
        """Runs of Repositories that nobody looks at any more, as after a restored cluster: they would hold their places for ever."""
        lost = await self._context.db.fail_lost_runs(
            deadline=self._context.jobs.active_deadline,
            message="the sync gave no sign of life for longer than its Job may take",
        )
        if lost:
            log.warning("ended syncs that nobody works on any more", runs=lost)

    async def _views(self) -> None:
        """RepositoryVersions that are missing or too many, found by their names alone."""
        context = self._context
        existing: dict[tuple[str, str], set[int]] = {}
        async for page in context.api.pages(REPOSITORY_VERSION, metadata_only=True):
            for body in page:
                metadata = body["metadata"]
                repository = (metadata.get("labels") or {}).get(REPOSITORY_LABEL)
                number = metadata["name"].rpartition("-v")[2]
                if repository and number.isdecimal():
                    existing.setdefault((metadata["namespace"], repository), set()).add(int(number))
        after = 0
        while rows := await context.db.shown_numbers(window=context.tuning.version_window, after=after, maximum=_PAGE):
            for row in rows:
                shown = existing.get((row.namespace, row.name), set())
                if shown != set(row.numbers):
                    await context.db.raise_number(row.id, floor=max(shown, default=0))
                    context.views_changed(Key(REPOSITORY.name, row.namespace, row.name))
            after = rows[-1].id
