"""Token service and registry as processes of their own, as they run in a container; for tests and benchmarks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from entrepot.settings import S3Settings
from tests.conftest import Database
from tests.servers import free_port, stop
from tests.services import SERVICE, write_key

ROOT = Path(__file__).parents[1]


def environment(database: Database, s3: S3Settings, role: str, **more: str) -> dict[str, str]:
    parts = ("core", "services/registry", "services/token")
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in parts),
        "ENTREPOT_DATABASE_DSN": database.dsn(role),
        "ENTREPOT_DATABASE_PASSWORD": "canary-database-password",
        "ENTREPOT_S3_ENDPOINT": s3.endpoint,
        "ENTREPOT_S3_BUCKET": s3.bucket,
        "ENTREPOT_S3_ACCESS_KEY_ID": s3.access_key_id,
        "ENTREPOT_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
        "ENTREPOT_SERVICE_ID": SERVICE,
        "ENTREPOT_HTTP_HOST": "127.0.0.1",
        **more,
    }


@contextmanager
def process(part: str, log: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        started = subprocess.Popen(
            [sys.executable, "-m", part],
            env=variables,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield started
    finally:
        stop(started)


class Processes:
    """A token service and a registry as processes of their own."""

    def __init__(self, database: Database, s3: S3Settings, directory: Path) -> None:
        write_key(directory / "keys")
        self.ports = [free_port() for _ in range(4)]
        self.log = directory / "registry.log"
        self.token_log = directory / "token.log"
        port, metrics, token_port, token_metrics = map(str, self.ports)
        self.token = environment(
            database, s3, "token", ENTREPOT_PORT=token_port, ENTREPOT_METRICS_PORT=token_metrics,
            ENTREPOT_SIGNING_KEY_DIR=str(directory / "keys"),
        )  # fmt: skip
        self.registry = environment(
            database, s3, "registry", ENTREPOT_PORT=port, ENTREPOT_METRICS_PORT=metrics, ENTREPOT_TOKEN_URL=f"http://127.0.0.1:{token_port}",
            ENTREPOT_EXTERNAL_URLS=f"http://localhost:{port}", ENTREPOT_HTTP_DRAIN_DELAY="1s", ENTREPOT_HTTP_READINESS_INTERVAL="50ms",
            ENTREPOT_LOG_LEVEL="debug",
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://localhost:{self.ports[0]}"

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Both of them running; gives the registry."""
        with (
            process("entrepot_token", self.token_log, self.token),
            process("entrepot_registry", self.log, self.registry) as registry,
        ):
            yield registry

    async def ready(self, http: aiohttp.ClientSession, status: int = 200) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    async with http.get(f"http://127.0.0.1:{self.ports[1]}/readyz") as answer:
                        if answer.status == status:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)

    async def bearer(self, http: aiohttp.ClientSession) -> dict[str, str]:
        async with http.get(
            f"{self.url}/token", params={"service": SERVICE, "scope": "repository:demo/app:pull"}
        ) as answer:
            return {"Authorization": f"Bearer {(await answer.json())['token']}"}


def peak_memory(process: subprocess.Popen[bytes]) -> int:
    """The most memory that a running process has had, in bytes (VmHWM)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
