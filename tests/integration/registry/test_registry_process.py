"""The processes as they run in a container: settings, drain, memory, logs without secrets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from entrepot.blobs.store import open_store
from entrepot.db import content
from entrepot.db.content import StoredBlob
from entrepot.db.pool import connect
from entrepot.oci.digest import Hasher
from entrepot.settings import S3Settings
from tests import contents
from tests.conftest import Database, free_port, stop
from tests.services import SERVICE, write_key

pytestmark = pytest.mark.allow_blocking

ROOT = Path(__file__).parents[3]
MIB = 1024 * 1024


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

    async def ready(self, http: aiohttp.ClientSession, status: int = 200) -> None:
        async with asyncio.timeout(30):
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


async def prepare(database: Database, s3: S3Settings, size: int) -> str:
    """A public repository with one large blob; gives the blob's digest."""
    chunk = os.urandom(MIB)
    hasher = Hasher()
    owner = await connect(database.settings(), application="test")
    async with open_store(s3) as store:
        repository = await contents.make_repository(owner)
        await contents.make_distribution(owner, repository)
        [key] = await content.begin_objects(owner, owner="test", count=1)
        async with store.multipart(key) as upload:
            for _ in range(size // MIB):
                await asyncio.to_thread(hasher.update, chunk)
                await upload.write(chunk)
            await upload.complete()
    digest = str(hasher.digest())
    await content.store_blobs(owner, [StoredBlob(digest=digest, size=size, object_key=key)])
    await content.link_blobs(owner, repository, sizes={digest: size})
    await owner.close()
    return digest


async def test_a_download_survives_sigterm_and_the_process_ends_after_it(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    digest = await prepare(database, s3, 64 * MIB)
    both = Processes(database, s3, tmp_path)
    async with aiohttp.ClientSession() as http:
        with (
            process("entrepot_token", both.token_log, both.token),
            process("entrepot_registry", both.log, both.registry) as registry,
        ):
            await both.ready(http)
            headers = await both.bearer(http)
            async with http.get(f"{both.url}/v2/demo/app/blobs/{digest}", headers=headers) as answer:
                hasher = Hasher()
                hasher.update(await answer.content.readexactly(MIB))
                registry.send_signal(signal.SIGTERM)
                await both.ready(http, 503)
                # Still accepting, for the load balancer that has not noticed; but keeping no connection.
                async with http.get(f"{both.url}/v2/") as late:
                    assert (late.status, late.headers["Connection"]) == (401, "close")
                async with asyncio.timeout(20):
                    while True:
                        try:
                            async with aiohttp.ClientSession() as other, other.get(f"{both.url}/v2/"):
                                pass
                        except aiohttp.ClientConnectionError:
                            break
                        await asyncio.sleep(0.05)
                assert registry.poll() is None
                async for chunk in answer.content.iter_any():
                    hasher.update(chunk)
            assert str(hasher.digest()) == digest
            assert await asyncio.to_thread(registry.wait, 20) == 0


async def test_memory_does_not_grow_with_the_blob_and_logs_hold_no_secret(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    size = int(os.environ.get("ENTREPOT_TEST_LAYER_MIB", "384")) * MIB
    digest = await prepare(database, s3, size)
    both = Processes(database, s3, tmp_path)
    async with aiohttp.ClientSession() as http:
        with (
            process("entrepot_token", both.token_log, both.token),
            process("entrepot_registry", both.log, both.registry) as registry,
        ):
            await both.ready(http)
            headers = await both.bearer(http)
            received = 0
            async with http.get(f"{both.url}/v2/demo/app/blobs/{digest}", headers=headers) as answer:
                async for chunk in answer.content.iter_any():
                    received += len(chunk)
            assert received == size
            async with http.get(f"{both.url}/v2/", headers={"Authorization": "Basic Y2FuYXJ5OnBhc3N3b3Jk"}) as answer:
                assert answer.status == 401
            async with http.get(
                f"{both.url}/token?service={SERVICE}", headers={"Authorization": "Basic Y2FuYXJ5OnBhc3N3b3Jk"}
            ) as answer:
                assert answer.status == 401
            status = Path(f"/proc/{registry.pid}/status").read_text()
            peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            assert peak < 200 * 1024, f"{peak} KiB"
    logs = both.log.read_text() + both.token_log.read_text()
    token = headers["Authorization"].removeprefix("Bearer ")
    for secret in (
        token,
        token.split(".")[2],
        s3.secret_access_key,
        "canary-database-password",
        "Y2FuYXJ5OnBhc3N3b3Jk",
        "canary:password",
    ):
        assert secret not in logs
    lines = [json.loads(line) for line in logs.splitlines()]
    [download] = [x for x in lines if x.get("event") == "request" and x["route"] == "/v2/{name}/blobs/{digest}"]
    assert (download["status"], download["bytes"], download["subject"]) == (200, size, "anonymous")
    assert download["request_id"]


@pytest.mark.parametrize(
    ("part", "variables", "named"),
    [
        ("entrepot_registry", {}, "ENTREPOT_DATABASE_DSN"),
        ("entrepot_registry", {"ENTREPOT_TOKEN_ALGORITHMS": "ES256,HS256"}, "ENTREPOT_TOKEN_ALGORITHMS"),
        ("entrepot_registry", {"ENTREPOT_EXTERNAL_URLS": "localhost:30500"}, "ENTREPOT_EXTERNAL_URLS"),
        ("entrepot_registry", {"ENTREPOT_EXTERNAL_URLS": "http://localhost:30500/path"}, "ENTREPOT_EXTERNAL_URLS"),
        ("entrepot_registry", {"ENTREPOT_HTTP_MAX_REQUESTS": "0"}, "ENTREPOT_HTTP_MAX_REQUESTS"),
        ("entrepot_token", {}, "ENTREPOT_SIGNING_KEY_DIR"),
        (
            "entrepot_token",
            {"ENTREPOT_SIGNING_KEY_DIR": "/x", "ENTREPOT_TOKEN_LIFETIME": "10s"},
            "ENTREPOT_TOKEN_LIFETIME",
        ),
        (
            "entrepot_token",
            {"ENTREPOT_SIGNING_KEY_DIR": "/x", "ENTREPOT_TOKEN_ALGORITHM": "HS256"},
            "ENTREPOT_TOKEN_ALGORITHM",
        ),
    ],
)
def test_a_wrong_setting_stops_the_start_with_its_name(part: str, variables: dict[str, str], named: str) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("core", "services/registry", "services/token"))
    done = subprocess.run(
        [sys.executable, "-m", part],
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **variables},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 64
    assert named in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
