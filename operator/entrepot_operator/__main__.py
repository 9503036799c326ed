"""`python -m entrepot_operator`: reads settings, waits until the database and the resource kinds are there, and works until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from typing import Any

import structlog
import uvloop
import yaml

from entrepot import logs
from entrepot.credentials import Keys, KeysInvalid
from entrepot.db.operator import OperatorDatabase
from entrepot.db.pool import Pool, open_pool, schema_is_ready
from entrepot.errors import DatabaseUnavailable
from entrepot.settings import DatabaseSettings, SettingInvalid, load
from entrepot_operator.api import open_api
from entrepot_operator.comparison import Comparison
from entrepot_operator.context import Context
from entrepot_operator.controller import Controller
from entrepot_operator.health import Health, serve
from entrepot_operator.index import Index
from entrepot_operator.informer import Informer
from entrepot_operator.jobs import TemplateInvalid, check_template
from entrepot_operator.kinds import Object
from entrepot_operator.poller import Poller
from entrepot_operator.queue import WorkQueue
from entrepot_operator.settings import JobSettings, OperatorSettings, RemoteDefaults, TuningSettings

log = structlog.get_logger(__name__)

_START_PAUSE = 2.0
_STOP_TIMEOUT = 15.0


def main() -> int:
    """Run; gives the exit code: 0 when told to stop, 1 when something ended by itself, 64 for wrong settings."""
    try:
        settings, tuning = load(OperatorSettings), load(TuningSettings)
        jobs, remotes, database = load(JobSettings), load(RemoteDefaults), load(DatabaseSettings)
        logs.configure(settings.log_level)
        keys = Keys.load(settings.credentials_key_dir)
        template = _read_template(settings)
    except (SettingInvalid, KeysInvalid) as error:
        sys.stderr.write(f"{error}\n")
        return 64
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            _run(settings, tuning, jobs=jobs, remotes=remotes, database=database, keys=keys, template=template)
        )


def _read_template(settings: OperatorSettings) -> Object:
    path = settings.syncer_job_template
    try:
        with path.open("rb") as file:
            return check_template(yaml.safe_load(file))
    except OSError as error:
        raise SettingInvalid(f"ENTREPOT_SYNCER_JOB_TEMPLATE: {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, TemplateInvalid) as error:
        raise SettingInvalid(f"ENTREPOT_SYNCER_JOB_TEMPLATE: {path}: {error}") from error


async def _run(
    settings: OperatorSettings,
    tuning: TuningSettings,
    *,
    jobs: JobSettings,
    remotes: RemoteDefaults,
    database: DatabaseSettings,
    keys: Keys,
    template: Object,
) -> int:
    stop = asyncio.Event()
    _listen_for_signals(stop)
    health = Health()
    async with (
        serve(health, port=settings.metrics_port),
        open_pool(database, application="entrepot-operator") as pool,
        open_api() as api,
    ):
        context = Context(
            api=api,
            db=OperatorDatabase(pool),
            queue=WorkQueue(initial=tuning.backoff_initial, maximum=tuning.backoff_maximum),
            index=Index(),
            settings=settings,
            tuning=tuning,
            jobs=jobs,
            remote_defaults=remotes,
            keys=keys,
            pod_template=template,
        )
        return await _work(context, pool, health=health, stop=stop)


async def _work(context: Context, pool: Pool, *, health: Health, stop: asyncio.Event) -> int:
    comparison, poller, informer = Comparison(context), Poller(context), Informer(context)
    if not await _prepared(pool, comparison, stop=stop):
        return 0

    def watching() -> None:
        # kopf has taken the signals for itself; it is told by `stop` as all others are.
        _listen_for_signals(stop)
        health.context, health.comparison, health.poller = context, comparison, poller
        health.watching_since = time.monotonic()
        log.info("working")

    controller = Controller(context)
    work = [
        asyncio.create_task(context.queue.run(controller.work, workers=context.tuning.concurrency), name="queue"),
        asyncio.create_task(poller.run(), name="poller"),
        asyncio.create_task(comparison.run(), name="comparison"),
        asyncio.create_task(informer.run(stop, started=watching), name="informer"),
    ]
    told = asyncio.create_task(stop.wait(), name="stop")
    ended, _ = await asyncio.wait([*work, told], return_when=asyncio.FIRST_COMPLETED)
    code = 0 if told in ended else 1
    for task in ended - {told}:
        error = None if task.cancelled() else task.exception()
        log.error("a part of the operator ended by itself", part=task.get_name(), exc_info=error)
    stop.set()
    await asyncio.wait(work[-1:], timeout=_STOP_TIMEOUT)
    for task in [*work, told]:
        task.cancel()
    await asyncio.gather(*work, told, return_exceptions=True)
    log.info("stopped")
    return code


async def _prepared(pool: Pool, comparison: Comparison, *, stop: asyncio.Event) -> bool:
    """Wait for the schema, and for the resource kinds, which may be installed after us. False: told to stop."""
    said: str | None = None
    while not stop.is_set():
        missing = await _missing(pool, comparison)
        if missing is None:
            return True
        if missing != said:
            log.info("waiting", what=missing)
            said = missing
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_PAUSE):
                await stop.wait()
    return False


async def _missing(pool: Pool, comparison: Comparison) -> str | None:
    try:
        if not await schema_is_ready(pool):
            return "the database's schema is older than this release: migrations have not run yet"
    except DatabaseUnavailable as error:
        return error.message
    if not await comparison.once(first=True):
        return "the resource kinds cannot be listed"
    return None


def _listen_for_signals(stop: asyncio.Event) -> None:
    loop: Any = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


if __name__ == "__main__":
    sys.exit(main())
