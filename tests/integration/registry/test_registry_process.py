"""The processes as they run in a container: settings, drain, memory, logs without secrets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
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
from tests.conftest import Database
from tests.processes import ROOT, Processes, peak_memory
from tests.services import SERVICE

pytestmark = pytest.mark.allow_blocking

MIB = 1024 * 1024


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
        with both.started() as registry:
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
        with both.started() as registry:
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
            peak = peak_memory(registry)
            assert peak < 200 * MIB, f"{peak} bytes"
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
