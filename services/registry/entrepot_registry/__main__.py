"""The registry's process: `python -m entrepot_registry`."""

from __future__ import annotations

import sys

import uvloop

from entrepot import logs
from entrepot.settings import DatabaseSettings, S3Settings, SettingInvalid, load
from entrepot.web.service import until_told_to_stop
from entrepot.web.settings import WebSettings
from entrepot_registry.app import open_registry
from entrepot_registry.settings import RegistrySettings


async def _run(
    settings: RegistrySettings, web_settings: WebSettings, *, database: DatabaseSettings, s3: S3Settings
) -> None:
    async with open_registry(settings, web_settings=web_settings, database=database, s3=s3) as service:
        await until_told_to_stop(service, web_settings)


def main() -> int:
    """Serve until told to stop; 64 if a setting is wrong."""
    try:
        settings, web_settings = load(RegistrySettings), load(WebSettings)
        database, s3 = load(DatabaseSettings), load(S3Settings)
    except SettingInvalid as error:
        print(f"entrepot_registry: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 64
    logs.configure(settings.log_level)
    uvloop.run(_run(settings, web_settings, database=database, s3=s3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
