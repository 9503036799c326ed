"""The token service's process: `python -m entrepot_token`."""

from __future__ import annotations

import sys

import uvloop

from entrepot import logs
from entrepot.settings import DatabaseSettings, SettingInvalid, load
from entrepot.web.service import until_told_to_stop
from entrepot.web.settings import WebSettings
from entrepot_token.app import open_token_service
from entrepot_token.settings import TokenSettings


async def _run(settings: TokenSettings, web_settings: WebSettings, *, database: DatabaseSettings) -> None:
    async with open_token_service(settings, web_settings=web_settings, database=database) as service:
        await until_told_to_stop(service, web_settings)


def main() -> int:
    """Serve until told to stop; 64 if a setting is wrong."""
    try:
        settings, web_settings, database = load(TokenSettings), load(WebSettings), load(DatabaseSettings)
    except SettingInvalid as error:
        print(f"entrepot_token: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 64
    logs.configure(settings.log_level)
    uvloop.run(_run(settings, web_settings, database=database))
    return 0


if __name__ == "__main__":
    sys.exit(main())
