"""kopf, used for what it does best: lists, watches, reconnects. Its handlers put keys on our queue and nothing else.

No handler here is one for which kopf would keep notes on the objects (annotations, finalizers, progress): only raw events are asked for. It
stands alone, without peering, posts no events, and does not watch CustomResourceDefinitions, so that the operator needs no right to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import kopf

from entrepot_operator.context import Context
from entrepot_operator.kinds import (
    GROUP,
    KINDS,
    REPOSITORY,
    REPOSITORY_LABEL,
    REPOSITORY_VERSION,
    VERSION,
    Key,
    Kind,
    Object,
    key_of,
)

__all__ = ["Informer"]


class Informer:
    """The watches of all our kinds."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self, stop: asyncio.Event, *, started: Callable[[], None]) -> None:
        """Watch until `stop`. Ends only then, or when kopf gives up; `started` is called once its tasks are there."""
        # kopf's own chatter about every object is of no use to an operator's reader.
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
        ours = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=self._registry(), settings=_settings(), clusterwide=True, standalone=True, stop_flag=stop
        )
        started()
        await kopf.run_tasks(tasks, ignored=ours)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(_login)
        for kind in KINDS:
            kopf.on.event(GROUP, VERSION, kind.plural, registry=registry, id=kind.name)(self._handler(kind))
        kopf.on.event(GROUP, VERSION, REPOSITORY_VERSION.plural, registry=registry, id=REPOSITORY_VERSION.name)(
            self._view_changed
        )
        return registry

    def _handler(self, kind: Kind) -> Callable[..., Any]:
        async def changed(event: Any, **_: Any) -> None:
            self._told(kind, event["type"], dict(event["object"]))

        return changed

    def _told(self, kind: Kind, what: str | None, body: Object) -> None:
        context = self._context
        key = key_of(kind, body)
        if what == "DELETED":
            context.index.remove(key)
        elif not context.index.put(kind, body):
            return
        context.requeue(key, *context.index.dependants(key))

    async def _view_changed(self, event: Any, **_: Any) -> None:
        """Somebody deleted a view: it is written again. Its spec cannot be changed; a changed status is mended with the next version."""
        body = event["object"]
        repository = (body["metadata"].get("labels") or {}).get(REPOSITORY_LABEL)
        if repository and event["type"] == "DELETED":
            self._context.views_changed(Key(REPOSITORY.name, body["metadata"]["namespace"], repository))


async def _login(**arguments: Any) -> kopf.ConnectionInfo | None:
    def read() -> kopf.ConnectionInfo | None:
        # Both read files.
        return kopf.login_with_service_account(**arguments) or kopf.login_with_kubeconfig(**arguments)

    return await asyncio.to_thread(read)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    return settings
