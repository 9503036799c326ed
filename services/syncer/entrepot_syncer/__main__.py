"""`python -m entrepot_syncer run <run id>`: does one run, and says by its exit status whether to try again.

0: the run is finished, whatever its outcome and whoever ended it: its row says. 64: there is nothing to run like this, ever. 75: worth another attempt.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from uuid import UUID

import structlog
import uvloop

from entrepot import logs
from entrepot.db.syncer import RunEnd
from entrepot.errors import EntrepotError
from entrepot.settings import DatabaseSettings, S3Settings, SettingInvalid, load
from entrepot.upstream.settings import UpstreamSettings
from entrepot_syncer.lease import RunOver
from entrepot_syncer.run import Environment, RunUnknown, perform
from entrepot_syncer.settings import DEFAULT_TERMINATION_LOG, ProcessSettings, SyncerSettings

__all__ = ["main"]

_EX_USAGE = 64
_EX_TEMPFAIL = 75
_USAGE = "usage: python -m entrepot_syncer run <run id>"


def main(arguments: list[str] | None = None) -> int:
    """Gives the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command, text = arguments
        if command != "run":
            raise ValueError(command)
        run = UUID(text)
    except ValueError:
        sys.stderr.write(f"{_USAGE}\n")
        return _EX_USAGE
    try:
        environment = Environment(
            database=load(DatabaseSettings),
            s3=load(S3Settings),
            upstream=load(UpstreamSettings),
            syncer=load(SyncerSettings),
            process=load(ProcessSettings),
        )
    except SettingInvalid as error:
        sys.stderr.write(f"{error}\n")
        return _EX_USAGE
    logs.configure(environment.process.log_level)
    status, words = uvloop.run(_run(run, environment))
    if words is not None:
        _last_words(environment.process.termination_log, words)
    return status


async def _run(run: UUID, environment: Environment) -> tuple[int, dict[str, object] | None]:
    """Exit status and last words."""
    log = structlog.get_logger("entrepot_syncer").bind(run=str(run))
    task = asyncio.create_task(perform(run, environment))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        end = await task
    except asyncio.CancelledError:
        log.info("stopped by a signal")
        return _EX_TEMPFAIL, {"outcome": None, "reason": "Stopped", "message": "stopped by a signal"}
    except RunOver as over:
        log.warning("the run is over", message=over.message)
        return 0, {"outcome": None, "reason": over.reason, "message": over.message}
    except EntrepotError as error:
        log.warning("run not finished", reason=error.reason, message=error.message)
        status = _EX_USAGE if isinstance(error, RunUnknown) else _EX_TEMPFAIL
        return status, {"outcome": None, "reason": error.reason, "message": error.message}
    except Exception as error:  # logged with its traceback; its words might hold anything
        log.exception("the process failed by a defect")
        message = f"a defect of the syncer: {type(error).__name__}; see its log"
        return _EX_TEMPFAIL, {"outcome": None, "reason": "InternalError", "message": message}
    if end is None:
        log.info("the run was finished before")
        return 0, None
    return 0, _summary(end)


def _summary(end: RunEnd) -> dict[str, object]:
    return {"outcome": end.outcome, "reason": end.reason, "message": end.message, "version": end.version}


def _last_words(path: Path, words: dict[str, object]) -> None:
    """Kubernetes makes the file; elsewhere it is written only where the setting asks for it."""
    if path == DEFAULT_TERMINATION_LOG and not path.exists():
        return
    try:
        path.write_text(json.dumps(words), encoding="utf-8")
    except OSError as error:
        structlog.get_logger("entrepot_syncer").warning(
            "termination log not written", path=str(path), error=error.strerror
        )


if __name__ == "__main__":
    sys.exit(main())
