"""Several processes behind one port: one that looks after them, and workers that answer.

Each worker is the whole service, started as a program of its own and listening on the same port (SO_REUSEPORT), among which the kernel spreads
connections. They share nothing but what all replicas share. The supervising process answers no requests. It starts a worker again that
has ended, hands on SIGTERM, serves the metrics of all together, and is ready when every worker is.

A worker counts into files of the run's private directory, under its number and not its process id: one that takes over another's number
goes on counting where that one was, so counters never fall and the files never become more. Probes reach a worker by a socket in the same
directory. Its standard input is a pipe that says nothing and ends with the supervisor, so that no worker outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, exposition, multiprocess, values
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from entrepot.web.settings import WebSettings

__all__ = ["SupervisorMetrics", "Worker", "current_worker", "follow_supervisor", "supervise"]

_log = structlog.get_logger("workers")

_NUMBER = "ENTREPOT_WORKER_NUMBER"
_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # the client library's own name
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_STEADY = 60.0
"""Seconds after which a worker's end is not held against its start any more."""
_GRACE = 10.0
"""Seconds that a worker may take longer than its own limits to end, before it is killed."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker's place: its number from 0, and the directory of the run."""

    number: int
    directory: Path

    @property
    def socket(self) -> Path:
        """Where it answers probes."""
        return self.directory / f"{self.number}.sock"


def current_worker(environ: Mapping[str, str]) -> Worker | None:
    """The place of this process, if a supervisor started it. To be asked before the first metric is made."""
    number = environ.get(_NUMBER)
    if not number:
        return None
    worker = Worker(int(number), Path(environ[_DIRECTORY]))
    values.ValueClass = values.MultiProcessValue(lambda: worker.number)  # type: ignore[no-untyped-call]
    return worker


def follow_supervisor() -> None:
    """End as on SIGTERM when the supervisor is gone; to be called in the event loop."""
    loop, pipe = asyncio.get_running_loop(), sys.stdin.fileno()

    def gone() -> None:
        loop.remove_reader(pipe)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(pipe, gone)


class SupervisorMetrics:
    """What the supervisor counts itself, and what it gathers from its workers."""

    def __init__(self, part: str) -> None:
        self.prefix = f"entrepot_{part}_"
        self.registry = CollectorRegistry()
        self.restarts = Counter(
            f"{self.prefix}worker_restarts", "Workers started again after they had ended.", registry=self.registry
        )
        self.workers = Gauge(f"{self.prefix}workers", "Workers that are running.", registry=self.registry)

    def gather(self, directory: Path, processes: Mapping[str, int]) -> bytes:
        """All metrics in Prometheus' form; reads files, so to be called in a thread."""
        registry = CollectorRegistry()
        registry.register(_Whole(self.registry))
        multiprocess.MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]
        registry.register(_Processes(processes))
        return exposition.generate_latest(registry)


class _Whole(Collector):
    """Another registry as a part of one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        return self._registry.collect()


class _Processes(Collector):
    """Memory, processor time and open files of each process, with a label that says which."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for name, pid in self._processes.items():
            collector = ProcessCollector(pid=lambda pid=pid: pid, registry=None)  # type: ignore[misc]
            for family in collector.collect():
                kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    kept.add_sample(sample.name, {**sample.labels, "process": name}, sample.value)
        return families.values()


@dataclass
class _Slot:
    """A worker's number and who has it at present."""

    worker: Worker
    process: asyncio.subprocess.Process | None = None
    has_listened: bool = False
    session: aiohttp.ClientSession | None = field(default=None, repr=False)


async def supervise(module: str, *, part: str, workers: int, metrics_port: int, settings: WebSettings) -> int:
    """Run `python -m <module>` several times until told to stop; gives the exit code.

    That of a worker which could not even start is the supervisor's own: its reason stands in the log, and trying again would not help.
    """
    with tempfile.TemporaryDirectory(prefix="entrepot-workers-") as directory:
        supervisor = _Supervisor(module, Path(directory), part=part, workers=workers, settings=settings)
        return await supervisor.run(metrics_port)


class _Supervisor:
    def __init__(self, module: str, directory: Path, *, part: str, workers: int, settings: WebSettings) -> None:
        self._module = module
        self._directory = directory
        self._settings = settings
        self._slots = [_Slot(Worker(number, directory)) for number in range(workers)]
        self._metrics = SupervisorMetrics(part)
        self._stopping = asyncio.Event()
        self._code = 0

    async def run(self, metrics_port: int) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        runner = web.ServerRunner(web.Server(self._operations, access_log=None), shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._settings.host or None, metrics_port).start()
            _log.info("supervising", workers=len(self._slots), metrics_port=metrics_port)
            await asyncio.gather(*(self._keep(slot) for slot in self._slots))
        finally:
            for slot in self._slots:
                if slot.session is not None:
                    await slot.session.close()
            await runner.cleanup()
        return self._code

    def _told_to_stop(self) -> None:
        """Each signal is handed on: workers take the second as leave not to wait for load balancers."""
        self._stopping.set()
        for slot in self._slots:
            if slot.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    slot.process.terminate()

    async def _keep(self, slot: _Slot) -> None:
        """Run a worker, again and again, until all are told to stop."""
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run_once(slot)
            if self._stopping.is_set():
                # Told before it could listen for it, a worker just ends by the signal.
                self._code = self._code or (0 if code == -signal.SIGTERM else abs(code))
                return
            if not slot.has_listened:
                _log.error("a worker could not start", worker=slot.worker.number, code=code)
                self._code = code if code > 0 else 1
                self._told_to_stop()
                return
            pause = _FIRST_PAUSE if time.monotonic() - started > _STEADY else min(pause * 2, _LONGEST_PAUSE)
            _log.error("a worker has ended", worker=slot.worker.number, code=code, again_in=pause)
            self._metrics.restarts.inc()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _run_once(self, slot: _Slot) -> int:
        environment = {**os.environ, _NUMBER: str(slot.worker.number), _DIRECTORY: str(self._directory)}
        # In a session of its own: Ctrl-C is for the supervisor, which hands it on.
        slot.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", self._module, env=environment, stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        self._metrics.workers.inc()
        watch = asyncio.create_task(self._watch_for_listening(slot))
        kill = asyncio.create_task(self._kill_when_late(slot.process))
        try:
            if self._stopping.is_set():  # told while it was being made
                self._told_to_stop()
            return await slot.process.wait()
        finally:
            for task in (watch, kill):
                task.cancel()
            await asyncio.gather(watch, kill, return_exceptions=True)
            slot.process = None
            self._metrics.workers.dec()
            # What it had under way ended with it; what it has counted stays.
            multiprocess.mark_process_dead(slot.worker.number, str(self._directory))  # type: ignore[no-untyped-call]

    async def _watch_for_listening(self, slot: _Slot) -> None:
        while not slot.has_listened:
            try:
                _, writer = await asyncio.open_unix_connection(slot.worker.socket)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                slot.has_listened = True

    async def _kill_when_late(self, process: asyncio.subprocess.Process) -> None:
        await self._stopping.wait()
        limits = self._settings.drain_delay + self._settings.drain_timeout
        await asyncio.sleep(limits.total_seconds() + _GRACE)
        _log.error("a worker did not end in time and is killed", process=process.pid)
        process.kill()

    async def _operations(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/metrics":
            running = {f"worker-{s.worker.number}": s.process.pid for s in self._slots if s.process is not None}
            body = await asyncio.to_thread(
                self._metrics.gather, self._directory, {"supervisor": os.getpid(), **running}
            )
            return web.Response(body=body, headers={"Content-Type": exposition.CONTENT_TYPE_LATEST})
        if request.path == "/healthz":
            return web.Response(body=b'{"status":"alive"}', content_type="application/json")
        if request.path == "/readyz":
            return await self._readiness()
        return web.Response(status=404, text="/metrics, /healthz and /readyz are here\n")

    async def _readiness(self) -> web.Response:
        """Ready when every worker is; each one's problems are told with its number."""
        answers = await asyncio.gather(*(self._ask(slot) for slot in self._slots))
        is_ready = all(ready for ready, _ in answers) and not self._stopping.is_set()
        body: dict[str, object] = {"status": "ready" if is_ready else "unready"}
        problems = {
            f"worker {slot.worker.number}: {check}": text
            for slot, (_, found) in zip(self._slots, answers, strict=True)
            for check, text in found.items()
        }
        if problems:
            body["problems"] = problems
        return web.Response(
            status=200 if is_ready else 503, body=msgspec.json.encode(body), content_type="application/json"
        )

    async def _ask(self, slot: _Slot) -> tuple[bool, dict[str, str]]:
        if slot.session is None:
            slot.session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(slot.worker.socket), force_close=True),
                timeout=aiohttp.ClientTimeout(total=self._settings.readiness_timeout.total_seconds() + 1),
            )
        try:
            async with slot.session.get("http://worker/readyz") as answer:
                return answer.status == 200, (await answer.json()).get("problems", {})
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return False, {"process": f"does not answer: {type(error).__name__}"}
