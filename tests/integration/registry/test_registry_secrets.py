"""Secrets of every kind go through the processes, logging at debug; none of them is in a log afterwards, nor in metrics."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import bcrypt
import pytest
import yaml
from aiohttp import web

from entrepot.settings import S3Settings
from tests.conftest import Database
from tests.integration.registry.test_registry_process import MIB, prepare
from tests.processes import Processes
from tests.pushes import Pusher, digest_of
from tests.services import SERVICE, until

pytestmark = pytest.mark.allow_blocking

USER, PASSWORD = "pusher", "canary-user-password"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
WRONG = base64.b64encode(b"pusher:canary-wrong-password").decode()
RULES = [{"subjects": [f"entrepot:htpasswd:{USER}"], "verbs": ["pull", "push"], "namespaces": ["demo"], "names": ["*"]}]


def configured(database: Database, s3: S3Settings, directory: Path, *, collector: int) -> Processes:
    both = Processes(database, s3, directory)
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (directory / "htpasswd").write_text(f"{USER}:{hashed}\n")
    (directory / "rules.yaml").write_text(yaml.safe_dump(RULES))
    both.token.update(
        ENTREPOT_LOG_LEVEL="debug",
        ENTREPOT_HTPASSWD_FILE=str(directory / "htpasswd"),
        ENTREPOT_RIGHTS_FILE=str(directory / "rules.yaml"),
    )
    both.registry.update(
        ENTREPOT_WORKERS="2",
        ENTREPOT_REDIRECT="true",
        ENTREPOT_TRACES_ENDPOINT=f"http://127.0.0.1:{collector}",
        ENTREPOT_TRACES_SAMPLE_RATIO="1",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=canary-collector-token",
    )
    return both


async def test_no_secret_gets_into_a_log_or_a_metric(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    digest = await prepare(database, s3, 2 * MIB)
    spans: list[bytes] = []

    async def collect(request: web.BaseRequest) -> web.Response:
        assert request.headers["Authorization"] == "canary-collector-token"
        spans.append(await request.read())
        return web.Response()

    runner = web.ServerRunner(web.Server(collect))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    both = configured(database, s3, tmp_path, collector=runner.addresses[0][1])
    tokens: list[str] = []
    async with aiohttp.ClientSession() as http:
        with both.started():
            await both.ready(http)
            for headers in ({}, {"Authorization": f"Basic {BASIC}"}):
                scope = {"service": SERVICE, "scope": "repository:demo/app:pull,push"}
                async with http.get(f"{both.url}/token", params=scope, headers=headers) as answer:
                    assert answer.status == 200, await answer.text()
                    tokens.append((await answer.json())["token"])
            for wrong in (f"Basic {WRONG}", f"Bearer {tokens[1][:-6]}canary", "Bearer canary-not-a-token"):
                async with http.get(f"{both.url}/v2/", headers={"Authorization": wrong}) as answer:
                    assert answer.status == 401
            bearer, password = {"Authorization": f"Bearer {tokens[1]}"}, {"Authorization": f"Basic {BASIC}"}
            blob = f"{both.url}/v2/demo/app/blobs/{digest}"
            async with http.get(f"{blob}?token=canary-in-query", headers=bearer, allow_redirects=False) as answer:
                assert answer.status == 307
                link = answer.headers["Location"]
            for headers in (bearer, password):
                data = os.urandom(MIB)
                pushed = await Pusher(http, both.url, "demo/app", headers).blob(data)
                assert pushed.status == 201, pushed.body
                assert pushed.headers["Docker-Content-Digest"] == digest_of(data)
            async with http.get(f"http://127.0.0.1:{both.ports[1]}/metrics") as answer:
                metrics = await answer.text()
            await until(lambda: _is(bool(spans)))
    await runner.cleanup()
    [signature] = parse_qs(urlsplit(link).query)["X-Amz-Signature"]
    logs = both.log.read_text() + both.token_log.read_text()
    everything = logs + metrics + b"".join(spans).decode("latin-1")
    secrets = [
        *tokens, *(token.split(".")[2] for token in tokens), PASSWORD, BASIC, WRONG, "canary-wrong-password", "canary-not-a-token",
        "canary-in-query", "canary-database-password", "canary-collector-token", s3.secret_access_key, signature, "X-Amz-Signature=",
        bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()[:7],
    ]  # fmt: skip
    for secret in secrets:
        place = everything.find(secret)
        assert place < 0, everything[max(0, place - 200) : place + 40]
    # And every line is one whole JSON object, although several processes write to the same pipe.
    lines = [json.loads(line) for line in logs.splitlines()]
    assert {line["level"] for line in lines} >= {"debug", "info"}
    [told] = [x for x in lines if x["event"] == "request" and x["route"] == "/v2/{name}/blobs/{digest}"]
    assert (told["name"], told["reference"], told["status"]) == ("demo/app", digest, 307)
    assert told["subject"] == f"entrepot:htpasswd:{USER}"
    pushes = [x for x in lines if x["event"] == "request" and x["route"] == "/v2/{name}/blobs/uploads/"]
    assert [x["bytes_in"] for x in pushes] == [MIB, MIB]


async def _is(value: bool) -> bool:
    return value
