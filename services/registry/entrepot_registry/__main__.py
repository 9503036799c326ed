"""The registry's process: `python -m entrepot_registry`; with several workers, the one that looks after them."""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop

from entrepot import logs
from entrepot.blobs.settings import BufferSettings
from entrepot.memory import return_large_buffers
from entrepot.settings import DatabaseSettings, S3Settings, SettingInvalid, load
from entrepot.web.settings import WebSettings
from entrepot.web.traces import TracesSettings
from entrepot.web.workers import Worker, current_worker, follow_supervisor, supervise
from entrepot_registry.settings import RegistrySettings


async def _run(
    settings: RegistrySettings, web_settings: WebSettings, *, database: DatabaseSettings, s3: S3Settings,
    buffers: BufferSettings, tracing: TracesSettings, worker: Worker | None,
) -> None:  # fmt: skip
    # Here, because the process that looks after workers needs none of it: it stays small.
    from entrepot.web.service import until_told_to_stop  # noqa: PLC0415
    from entrepot_registry.app import open_registry  # noqa: PLC0415

    return_large_buffers()
    if worker is not None:
        follow_supervisor()
    async with open_registry(
        settings, web_settings=web_settings, database=database, s3=s3, buffers=buffers, tracing=tracing, worker=worker
    ) as service:
        await until_told_to_stop(service, web_settings)


def main() -> int:
    """Serve until told to stop; 64 if a setting is wrong."""
    try:
        settings, web_settings, tracing = load(RegistrySettings), load(WebSettings), load(TracesSettings)
        database, s3, buffers = load(DatabaseSettings), load(S3Settings), load(BufferSettings)
        if settings.max_blob_size > buffers.largest_object:
            raise SettingInvalid(
                f"ENTREPOT_MAX_BLOB_SIZE is more than S3's parts can hold, {buffers.largest_object} bytes: raise"
                " ENTREPOT_BUFFER_PART_SIZE or lower it"
            )
    except SettingInvalid as error:
        print(f"entrepot_registry: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 64
    logs.configure(settings.log_level)
    worker = current_worker(os.environ)
    if worker is None and settings.workers > 1:
        return asyncio.run(
            supervise(
                "entrepot_registry",
                part="registry",
                workers=settings.workers,
                metrics_port=settings.metrics_port,
                settings=web_settings,
            )
        )
    uvloop.run(_run(settings, web_settings, database=database, s3=s3, buffers=buffers, tracing=tracing, worker=worker))
    return 0


if __name__ == "__main__":
    sys.exit(main())
