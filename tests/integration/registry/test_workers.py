"""Several worker processes behind one port: who answers, what is counted, and what happens when one of them ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from entrepot.oci.digest import Hasher
from entrepot.settings import S3Settings
from tests.conftest import Database
from tests.integration.registry.test_registry_process import MIB, prepare
from tests.processes import Processes, process
from tests.services import until

pytestmark = pytest.mark.allow_blocking


def with_workers(database: Database, s3: S3Settings, directory: Path, count: int = 2) -> Processes:
    both = Processes(database, s3, directory)
    both.registry["ENTREPOT_WORKERS"] = str(count)
    return both


def children(supervisor: subprocess.Popen[bytes]) -> list[int]:
    pids = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
    return sorted(map(int, pids))


def run_directory(worker: int) -> Path:
    variables = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    [found] = [v.partition(b"=")[2].decode() for v in variables if v.startswith(b"PROMETHEUS_MULTIPROC_DIR=")]
    return Path(found)


async def metrics_of(directory: Path, number: int) -> str:
    connector = aiohttp.UnixConnector(str(directory / f"{number}.sock"))
    async with aiohttp.ClientSession(connector=connector) as http, http.get("http://worker/metrics") as answer:
        return await answer.text()


async def metrics(both: Processes) -> str:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{both.ports[1]}/metrics") as answer,
    ):
        assert answer.status == 200
        return await answer.text()


def total(text: str, pattern: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(pattern, line))


BASE_REQUESTS = r'entrepot_registry_requests_total\{code="401",method="GET",route="/v2/"\}'


async def ask_until(both: Processes, condition: Callable[[], bool], *, asked: list[int]) -> None:
    """One request after the other, each on a connection of its own, until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            async with aiohttp.ClientSession() as http, http.get(f"{both.url}/v2/") as answer:
                assert answer.status == 401
            asked.append(1)


async def test_all_workers_answer_their_metrics_add_up_and_one_that_dies_comes_back(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    both = with_workers(database, s3, tmp_path)
    asked: list[int] = []
    async with aiohttp.ClientSession() as http:
        with both.started() as registry:
            await both.ready(http)
            first = children(registry)
            assert len(first) == 2
            directory = run_directory(first[0])
            await ask_until(both, lambda: len(asked) >= 40, asked=asked)
            shares = [total(await metrics_of(directory, n), BASE_REQUESTS) for n in (0, 1)]
            assert all(share > 0 for share in shares), shares
            text = await metrics(both)
            assert total(text, BASE_REQUESTS) == sum(shares) == len(asked)
            for name in ("supervisor", "worker-0", "worker-1"):
                assert total(text, rf'process_resident_memory_bytes\{{process="{name}"\}}') > 10 * MIB
            assert total(text, "entrepot_registry_workers ") == 2

            os.kill(first[0], signal.SIGKILL)
            await until(lambda: _is(first[0] not in children(registry)))
            # Not ready as a whole; but the other one goes on answering meanwhile.
            await both.ready(http, 503)
            await ask_until(both, lambda: len(children(registry)) == 2, asked=asked)
            await both.ready(http)
            second = children(registry)
            assert len(second) == 2
            assert len(set(first) & set(second)) == 1
            text = await metrics(both)
            assert total(text, "entrepot_registry_worker_restarts_total ") == 1
            # What the dead one had counted still counts, and nothing twice.
            assert total(text, BASE_REQUESTS) == len(asked)
            assert total(text, "entrepot_registry_requests_in_flight ") == 0
        assert registry.returncode == 0
    assert not directory.exists()
    for worker in second:
        assert not Path(f"/proc/{worker}").exists()


async def _is(value: bool) -> bool:
    return value


async def test_sigterm_is_handed_on_and_downloads_are_finished(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    digest = await prepare(database, s3, 64 * MIB)
    both = with_workers(database, s3, tmp_path)
    async with aiohttp.ClientSession() as http:
        with both.started() as registry:
            await both.ready(http)
            headers = await both.bearer(http)
            async with http.get(f"{both.url}/v2/demo/app/blobs/{digest}", headers=headers) as answer:
                hasher = Hasher()
                hasher.update(await answer.content.readexactly(MIB))
                registry.send_signal(signal.SIGTERM)
                await both.ready(http, 503)
                # The idle worker has ended and is not started again; the other one still has something to do.
                await until(lambda: _is(len(children(registry)) == 1))
                assert registry.poll() is None
                async for chunk in answer.content.iter_any():
                    hasher.update(chunk)
            assert str(hasher.digest()) == digest
            assert await asyncio.to_thread(registry.wait, 20) == 0


async def test_where_workers_cannot_start_the_whole_ends_and_says_why(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    both = with_workers(database, s3, tmp_path)
    with (
        socket.create_server(("127.0.0.1", both.ports[0])),
        process("entrepot_registry", both.log, both.registry) as registry,
    ):
        assert await asyncio.to_thread(registry.wait, 60) == 1
    log = both.log.read_text()
    assert "address already in use" in log
    assert "a worker could not start" in log


async def test_no_worker_outlives_its_supervisor(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    both = with_workers(database, s3, tmp_path)
    async with aiohttp.ClientSession() as http:
        with both.started() as registry:
            await both.ready(http)
            workers = children(registry)
            registry.kill()
            await until(lambda: _is(not any(Path(f"/proc/{pid}/environ").exists() and _runs(pid) for pid in workers)))


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_single_process_writes_no_files_and_has_no_children(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    both = with_workers(database, s3, tmp_path, 1)
    (tmp_path / "tmp").mkdir()
    both.registry["TMPDIR"] = str(tmp_path / "tmp")
    async with aiohttp.ClientSession() as http:
        with both.started() as registry:
            await both.ready(http)
            assert children(registry) == []
            assert "entrepot_registry_worker" not in await metrics(both)
    assert list((tmp_path / "tmp").iterdir()) == []
