"""The keeper's process: `python -m entrepot_keeper`."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog
import uvloop

from entrepot import logs
from entrepot.settings import DatabaseSettings, S3Settings, SettingInvalid, load
from entrepot.web.settings import WebSettings
from entrepot_keeper.app import keep
from entrepot_keeper.settings import KeeperSettings


async def _run(
    settings: KeeperSettings, web_settings: WebSettings, *, database: DatabaseSettings, s3: S3Settings
) -> None:
    task = asyncio.create_task(keep(settings, web_settings, database=database, s3=s3))
    for number in (signal.SIGTERM, signal.SIGINT):
        # At once: whatever it was doing, the next round does the rest.
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        structlog.get_logger("keeper").info("stopped by a signal")


def main() -> int:
    """Work until told to stop; 64 if a setting is wrong."""
    try:
        settings, web_settings = load(KeeperSettings), load(WebSettings)
        database, s3 = load(DatabaseSettings), load(S3Settings)
    except SettingInvalid as error:
        print(f"entrepot_keeper: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 64
    logs.configure(settings.log_level)
    uvloop.run(_run(settings, web_settings, database=database, s3=s3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
