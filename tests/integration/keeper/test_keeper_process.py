"""The loop and the process: one works, the others stand by; outages are lived through; a signal ends it at once."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from entrepot.settings import DatabaseSettings, SettingInvalid
from entrepot_keeper.app import keep
from tests.conftest import Postgres
from tests.integration.keeper.conftest import SETTINGS, Ward
from tests.processes import environment, process
from tests.servers import free_port, running_postgres
from tests.services import WEB, until

ROOT = Path(__file__).parents[3]


@dataclass
class Running:
    """A keeper in the test's own event loop, or a process."""

    port: int
    http: aiohttp.ClientSession
    task: asyncio.Task[None] | None = None

    async def metric(self, name: str) -> float:
        async with self.http.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = await answer.text()
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        return sum(sample.value for sample in samples if sample.name == f"entrepot_keeper_{name}")

    async def probe(self, path: str = "/readyz") -> tuple[int, str]:
        async with self.http.get(f"http://127.0.0.1:{self.port}{path}") as answer:
            return answer.status, await answer.text()

    def reaches(self, name: str, value: float) -> Callable[[], Awaitable[bool]]:
        async def reached() -> bool:
            try:
                return await self.metric(name) >= value
            except aiohttp.ClientConnectionError:
                return False

        return reached

    async def is_ready(self) -> bool:
        try:
            return (await self.probe())[0] == 200
        except aiohttp.ClientConnectionError:
            return False


@asynccontextmanager
async def keeper(ward: Ward, *, database: DatabaseSettings | None = None) -> AsyncIterator[Running]:
    """A keeper at work, or standing by."""
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        keep(SETTINGS, WEB, database=database or ward.database.settings("keeper"), s3=ward.s3, listening=listening.set_result)
    )  # fmt: skip
    async with aiohttp.ClientSession() as http:
        try:
            async with asyncio.timeout(20):
                await asyncio.shield(listening)
            yield Running(await listening, http, task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_it_works_round_after_round_and_says_so(ward: Ward) -> None:
    key = await ward.begin("registry/one", age="49 hours")
    async with keeper(ward) as running:
        await until(running.reaches("rounds_total", 3))
        assert await running.is_ready()
        assert (await running.probe("/healthz"))[0] == 200
        assert (await running.probe("/elsewhere"))[0] == 404
        assert await running.metric("active") == 1
        assert await running.metric("last_success_timestamp_seconds") > 1_600_000_000
        assert await running.metric("failures_total") == 0
    assert (await ward.on_record(), ward.in_bucket(key)) == (set(), False)


async def test_of_two_one_works_and_the_other_takes_over(ward: Ward) -> None:
    async with keeper(ward) as first:
        await until(first.reaches("rounds_total", 2))
        async with keeper(ward) as second:
            await until(second.is_ready)
            await until(first.reaches("rounds_total", await first.metric("rounds_total") + 3))
            assert (await first.metric("active"), await second.metric("active")) == (1, 0)
            assert await second.metric("rounds_total") == 0
            assert first.task is not None
            first.task.cancel()
            await asyncio.wait([first.task])
            await until(second.reaches("rounds_total", 1))
            assert await second.metric("active") == 1


async def test_who_loses_its_connection_works_no_more_and_stands_by(ward: Ward) -> None:
    async with keeper(ward) as first:
        await until(first.reaches("rounds_total", 1))
        async with keeper(ward) as second:
            await until(second.is_ready)
            await ward.owner.execute(
                "select pg_terminate_backend(l.pid) from pg_locks l where l.locktype = 'advisory' and l.granted"
            )
            await until(first.reaches("failures_total", 1))
            before = await first.metric("rounds_total") + await second.metric("rounds_total")

            async def goes_on() -> bool:
                return await first.metric("rounds_total") + await second.metric("rounds_total") > before + 2

            await until(goes_on)
            holders = await ward.owner.fetchval("select count(*) from pg_locks where locktype = 'advisory' and granted")
            assert holders == 1
            assert await first.metric("active") + await second.metric("active") == 1
            assert await first.is_ready()


async def test_it_lives_through_an_absence_of_s3(ward: Ward) -> None:
    async with keeper(ward) as running:
        await until(running.reaches("rounds_total", 1))
        await until(running.is_ready)
        ward.server.stop()
        try:
            await ward.begin("registry/one", age="49 hours", write=False)
            await until(running.reaches("failures_total", 1))
            status, text = await running.probe()
            assert status == 200, text
        finally:
            ward.server.start()
        rounds = await running.metric("rounds_total")
        await until(running.reaches("rounds_total", rounds + 1))
    assert await ward.on_record() == set()


async def test_it_waits_for_postgresql_and_for_the_schema_and_lives_through_a_restart(ward: Ward) -> None:
    from entrepot.db.migrate import migrate

    def own() -> tuple[object, Postgres]:
        context = running_postgres()
        return context, context.__enter__()

    context, server = await asyncio.to_thread(own)
    try:
        await asyncio.to_thread(server.stop)
        settings = DatabaseSettings(dsn=server.dsn(user="postgres", database="postgres"))
        async with keeper(ward, database=settings) as running:
            await until(running.reaches("failures_total", 1))
            status, text = await running.probe()
            assert status == 503
            assert "PostgreSQL does not answer" in text
            await asyncio.to_thread(server.start)

            async def wants_the_schema() -> bool:
                return "schema is older" in (await running.probe())[1]

            await until(wants_the_schema)
            assert (await running.probe())[0] == 503
            await migrate(settings)
            await until(running.is_ready)
            await until(running.reaches("rounds_total", 1))
            await asyncio.to_thread(server.stop)
            failures = await running.metric("failures_total")
            await until(running.reaches("failures_total", failures + 1))
            assert await running.is_ready(), "where PostgreSQL is away, another keeper would not help"
            await asyncio.to_thread(server.start)
            rounds = await running.metric("rounds_total")
            await until(running.reaches("rounds_total", rounds + 1))
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)  # type: ignore[attr-defined]


def variables(ward: Ward, port: int, **more: str) -> dict[str, str]:
    """The environment of a keeper's process."""
    made = environment(
        ward.database, ward.s3, "keeper", ENTREPOT_METRICS_PORT=str(port), ENTREPOT_REMOVAL_DELAY="0s",
        ENTREPOT_ROUND_INTERVAL="50ms", ENTREPOT_STANDBY_INTERVAL="50ms", **more,
    )  # fmt: skip
    return {**made, "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("core", "services/keeper"))}


@pytest.mark.allow_blocking
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_and_frees_the_lock(ward: Ward, tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    log = tmp_path / "keeper.log"
    async with aiohttp.ClientSession() as http:
        running = Running(port, http)
        with process("entrepot_keeper", log, variables(ward, port)) as started:
            await until(running.reaches("rounds_total", 1), seconds=60)
            started.send_signal(number)
            assert await asyncio.to_thread(started.wait, 10) == 0, log.read_text()
    assert "canary" not in log.read_text()
    assert await ward.owner.fetchval("select pg_try_advisory_lock(hashtextextended('entrepot/keeper', 0))")


@pytest.mark.allow_blocking
async def test_after_a_kill_another_process_goes_on(ward: Ward, tmp_path: Path) -> None:
    ports = free_port(), free_port()
    async with aiohttp.ClientSession() as http:
        first, second = (Running(port, http) for port in ports)
        with (
            process("entrepot_keeper", tmp_path / "first.log", variables(ward, ports[0])) as one,
            process("entrepot_keeper", tmp_path / "second.log", variables(ward, ports[1])),
        ):
            await until(first.is_ready, seconds=60)
            await until(second.is_ready, seconds=60)

            async def somebody_works() -> bool:
                return await first.metric("active") + await second.metric("active") == 1

            await until(somebody_works)
            keys = [await ward.begin("registry/one", age="49 hours") for _ in range(300)]
            one.kill()
            await asyncio.to_thread(one.wait, 10)

            async def nothing_is_left() -> bool:
                return await ward.on_record() == set()

            await until(nothing_is_left)
            assert await second.metric("active") == 1
    assert not any(ward.in_bucket(key) for key in keys)


def test_a_wrong_setting_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "entrepot_keeper"],
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "ENTREPOT_BATCH": "5000"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 64
    assert "ENTREPOT_BATCH must be between 1 and 1000" in done.stderr


def test_rests_between_rounds_are_never_nothing() -> None:
    for name in ("round_interval", "standby_interval", "retry_limit"):
        with pytest.raises(SettingInvalid, match=name.upper()):
            dataclasses.replace(SETTINGS, **{name: timedelta(0)})  # type: ignore[arg-type]
