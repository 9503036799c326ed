"""The keeper, all of it together."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from entrepot.blobs.store import open_store
from entrepot.settings import DatabaseSettings, S3Settings
from entrepot.web.readiness import Readiness
from entrepot.web.settings import WebSettings
from entrepot_keeper.keeper import Keeper
from entrepot_keeper.metrics import KeeperMetrics
from entrepot_keeper.operations import serve
from entrepot_keeper.rounds import Rounds
from entrepot_keeper.settings import KeeperSettings

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["keep"]


async def keep(
    settings: KeeperSettings, web_settings: WebSettings, *, database: DatabaseSettings, s3: S3Settings,
    listening: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Work until cancelled; `listening` is told the port of metrics and probes. It starts whether or not PostgreSQL and S3 are there."""
    metrics = KeeperMetrics()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(s3))
        keeper = Keeper(
            Rounds(store, settings=settings, metrics=metrics), database=database, settings=settings, metrics=metrics
        )
        readiness = Readiness(
            {"database": keeper.check, "storage": store.check}, settings=web_settings, metrics=metrics
        )
        port = await stack.enter_async_context(
            serve(host=web_settings.host, port=settings.metrics_port, metrics=metrics, readiness=readiness)
        )
        if listening is not None:
            listening(port)
        await keeper.work()
