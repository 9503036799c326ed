"""`python -m entrepot_setup install` and `python -m entrepot_setup migrate`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Final

import structlog

from entrepot import logs
from entrepot.db.migrate import MigrationFailed
from entrepot.errors import EntrepotError
from entrepot.settings import SettingInvalid, load
from entrepot_setup import commands
from entrepot_setup.errors import SetupFailed
from entrepot_setup.settings import SetupSettings

_COMMANDS: Final = {"install": commands.install, "migrate": commands.migrate_schema}

_log = structlog.get_logger("entrepot_setup")


def main(arguments: list[str]) -> int:
    """Run a command. 0 when it is done, 1 when it failed and may be tried again, 64 when it was called wrongly (as in sysexits.h)."""
    if len(arguments) != 1 or arguments[0] not in _COMMANDS:
        print(f"usage: python -m entrepot_setup {'|'.join(_COMMANDS)}", file=sys.stderr)  # noqa: T201 - for people
        return 64
    try:
        settings = load(SetupSettings)
        logs.configure(settings.log_level)
        run = _COMMANDS[arguments[0]]()
    except (SettingInvalid, SetupFailed) as error:
        print(error, file=sys.stderr)  # noqa: T201 - logging may not be set up
        return 64
    try:
        asyncio.run(run(settings))
    except (SetupFailed, MigrationFailed, EntrepotError) as error:
        _log.error(f"{arguments[0]} failed", why=str(error))
        # Kubernetes shows this file in the pod's status; elsewhere it is not there, and nothing is lost.
        with contextlib.suppress(OSError):
            settings.termination_log.write_text(f"{error}\n", encoding="utf-8")
        return 1
    _log.info(f"{arguments[0]} is done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
