"""One look at one object, the same for every kind: read it, reconcile it, write what came of it.

Here, and only here, status is written and events are recorded: one server-side apply, only where something changed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import timedelta
from secrets import token_hex
from typing import Any, Final

import structlog

from entrepot.errors import EntrepotError, Failed, Stalled, Waiting
from entrepot_operator import metrics
from entrepot_operator.api import FIELD_MANAGER, ApiUnavailable, Conflict
from entrepot_operator.conditions import Result, Transition, condition_of, new_status, one_line, transition
from entrepot_operator.context import Context, Reconciler, StalledForNow, now
from entrepot_operator.distributions import Distributions
from entrepot_operator.kinds import GROUP, VERSION, Key, Object, key_of
from entrepot_operator.remotes import Remotes
from entrepot_operator.repositories import Repositories

__all__ = ["Controller"]

log = structlog.get_logger(__name__)

_NOT_STATUS_FIELDS: Final = frozenset({"observedGeneration", "conditions"})


class Controller:
    """Works on keys of the queue."""

    def __init__(self, context: Context) -> None:
        self._context = context
        reconcilers: tuple[Reconciler, ...] = (Remotes(), Repositories(), Distributions())
        self._reconcilers: Mapping[str, Reconciler] = {one.kind.name: one for one in reconcilers}
        self._ready: dict[Key, str] = {}

    async def work(self, key: Key) -> None:
        """One look at an object, and the arrangement of the next. Raises nothing but cancellation."""
        queue = self._context.queue
        started = time.monotonic()
        outcome = "error"
        try:
            async with asyncio.timeout(self._context.tuning.reconcile_timeout.total_seconds()):
                outcome, again = await self._look(key)
        except Conflict as error:
            log.debug("an object changed under our hands", object=str(key), message=error.message)
            outcome, again = "conflict", queue.backoff(key)
        except EntrepotError as error:
            log.warning("a look at an object failed", object=str(key), reason=error.reason, message=error.message)
            again = queue.backoff(key)
        except TimeoutError:
            log.warning("a look at an object took too long", object=str(key))
            outcome, again = "timeout", queue.backoff(key)
        except Exception:
            log.exception("a look at an object failed unexpectedly", object=str(key))
            again = queue.backoff(key)
        if again is not None:
            queue.add_after(key, again)
        metrics.RECONCILE_SECONDS.labels(key.kind, outcome).observe(time.monotonic() - started)

    async def _look(self, key: Key) -> tuple[str, timedelta | None]:
        """What came of it, for the metrics, and when to look again."""
        reconciler = self._reconcilers[key.kind]
        body = await self._context.api.get(reconciler.kind, key.namespace, key.name)
        if body is None:
            await reconciler.gone(self._context, key)
            self._count(key, None)
            self._context.queue.forget(key)
            return "gone", None
        status = {name: value for name, value in (body.get("status") or {}).items() if name not in _NOT_STATUS_FIELDS}
        outcome: Result | EntrepotError | None
        try:
            outcome = await reconciler.reconcile(self._context, body, status)
        except (Conflict, ApiUnavailable):
            raise  # nothing can or should be written
        except EntrepotError as error:
            outcome = error
        except Exception as error:
            log.exception("a reconciler failed unexpectedly", object=str(key))
            outcome = Failed(
                f"the operator failed with {type(error).__name__}; its log says more", reason="InternalError"
            )
        if outcome is None:
            self._count(key, None)
            self._context.queue.forget(key)
            return "deleting", None
        await self._finish(reconciler, body, outcome=outcome, fields=status)
        return self._next(key, outcome)

    def _next(self, key: Key, outcome: Result | EntrepotError) -> tuple[str, timedelta | None]:
        queue = self._context.queue
        match outcome:
            case Result():
                queue.forget(key)
                return "ready", outcome.requeue_after
            case StalledForNow():
                queue.forget(key)
                return "stalled", outcome.after
            case Stalled():
                queue.forget(key)
                return "stalled", None
            case Waiting():
                queue.forget(key)
                return "waiting", outcome.after
            case Failed() if outcome.retry_after is not None:
                return "failed", outcome.retry_after
            case _:
                return "failed", queue.backoff(key)

    async def _finish(
        self, reconciler: Reconciler, body: Object, *, outcome: Result | EntrepotError, fields: Mapping[str, Any]
    ) -> None:
        old = body.get("status") or {}
        generation = body["metadata"]["generation"]
        new = new_status(old, generation=generation, outcome=outcome, fields=fields, now=now())
        key = key_of(reconciler.kind, body)
        if new != old:
            await self._context.api.apply_status(reconciler.kind, body, new)
            metrics.STATUS_WRITES.labels(key.kind).inc()
            if (happened := transition(old, new)) is not None:
                await self._record(reconciler, body, happened)
            if _verdict(old) != _verdict(new):
                self._context.requeue(*self._context.index.dependants(key))
            _count_run(old, new)
        self._count(key, str((condition_of(new, "Ready") or {}).get("status")))

    async def _record(self, reconciler: Reconciler, body: Object, happened: Transition) -> None:
        """An event. One that cannot be recorded is only logged: the condition says the same."""
        metadata = body["metadata"]
        moment = now()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name'][:200]}.{token_hex(8)}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": reconciler.kind.name,
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": happened.type,
            "reason": happened.reason,
            "message": one_line(happened.message),
            "action": "Reconcile",
            "eventTime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._context.settings.release,
            "source": {"component": FIELD_MANAGER},
            "firstTimestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lastTimestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "count": 1,
        }
        try:
            await self._context.api.create_event(metadata["namespace"], event)
        except EntrepotError as error:
            log.warning("an event could not be recorded", object=metadata["name"], message=error.message)
        else:
            metrics.EVENTS.labels(happened.type, happened.reason).inc()

    def _count(self, key: Key, ready: str | None) -> None:
        before = self._ready.pop(key, None)
        if before is not None:
            metrics.OBJECTS.labels(key.kind, before).dec()
        if ready is not None:
            self._ready[key] = ready
            metrics.OBJECTS.labels(key.kind, ready).inc()


def _verdict(status: Mapping[str, Any]) -> tuple[object, object]:
    ready = condition_of(status, "Ready") or {}
    return ready.get("status"), ready.get("reason")


def _count_run(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, after = old.get("lastSync") or {}, new.get("lastSync") or {}
    if after and after.get("run") != before.get("run"):
        metrics.SYNC_RUNS.labels(after["outcome"]).inc()
