"""OpenTelemetry traces, as a collector receives them."""

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from entrepot.settings import S3Settings, SettingInvalid
from entrepot.web.traces import TracesSettings
from tests import services
from tests.conftest import Database
from tests.integration.registry.conftest import fill
from tests.servers import free_port
from tests.services import Running, until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Collector:
    """Takes OTLP over HTTP, and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.port = 0

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        assert (request.method, request.path) == ("POST", "/v1/traces")
        body = await request.read()
        message = ExportTraceServiceRequest()
        message.ParseFromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        for resource in message.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == trace]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    runner = web.ServerRunner(web.Server(collector))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.port = runner.addresses[0][1]
    yield collector
    await runner.cleanup()


@asynccontextmanager
async def traced(
    database: Database, s3: S3Settings, tmp_path: Path, *, port: int, ratio: float = 0.0
) -> AsyncIterator[Running]:
    tracing = TracesSettings(endpoint=f"http://127.0.0.1:{port}", sample_ratio=ratio)
    async with services.running(database, s3, tmp_path / "keys", tracing=tracing) as running:
        yield running


def attributes(span: Span) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


async def test_a_request_is_a_span_of_the_client_s_trace_and_what_it_asked_for_are_its_children(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with collecting() as collector:
        async with traced(database, s3, tmp_path, port=collector.port) as running:
            demo = await fill(running)
            # Not sampled: the ratio is 0, and no client has decided otherwise.
            assert (await running.get("/v2/demo/app/manifests/latest")).status == 200
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "User-Agent": "tracer/1"}
            path = f"/v2/demo/app/blobs/{demo.large_digest}"
            got = await running.get(path + "?secret=canary-query", headers=headers)
            assert got.body == demo.large
            await until(lambda: _is(len(collector.of(TRACE)) >= 3))
        [server] = [span for span in collector.of(TRACE) if span.kind == Span.SPAN_KIND_SERVER]
        assert server.name == "GET /v2/{name}/blobs/{digest}"
        assert server.parent_span_id.hex() == PARENT
        found = attributes(server)
        assert found["http.request.method"] == "GET"
        assert found["http.route"] == "/v2/{name}/blobs/{digest}"
        assert found["http.response.status_code"] == 200
        assert found["http.response.body.size"] == len(demo.large)
        assert found["url.path"] == path
        assert found["client.address"] == "127.0.0.1"
        assert found["user_agent.original"] == "tracer/1"
        assert found["entrepot.request_id"] == got.headers["X-Request-Id"]
        children = [span for span in collector.of(TRACE) if span is not server]
        assert {span.name for span in children} == {"find_blobs", "S3.GetObject"}
        for child in children:
            assert child.parent_span_id == server.span_id
            assert child.kind == Span.SPAN_KIND_CLIENT
            assert server.start_time_unix_nano <= child.start_time_unix_nano
            assert child.start_time_unix_nano < child.end_time_unix_nano <= server.end_time_unix_nano
        assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
        assert collector.services == {"entrepot-registry"}
        everything = b"".join(span.SerializeToString() for span in collector.spans)
        token = (await running.bearer())["Authorization"][7:]
        for secret in (token, "canary-query", s3.secret_access_key, s3.bucket):
            assert secret.encode() not in everything


async def test_statements_of_a_push_are_children_and_failures_are_errors(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with collecting() as collector:
        async with traced(database, s3, tmp_path, port=collector.port, ratio=1.0) as running:
            await fill(running)
            path = "/v2/demo/app/tags/list"
            assert (await running.get(path)).status == 200
            assert (await running.get("/v2/demo/app/manifests/absent")).status == 404
            named = "GET /v2/{name}/tags/list"
            await until(lambda: _is(named in {span.name for span in collector.spans}))
        servers = {span.name: span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER}
        statements = [span for span in collector.spans if span.parent_span_id == servers[named].span_id]
        assert statements
        assert all(attributes(span)["db.system.name"] == "postgresql" for span in statements)
        # A client's mistake is no error of the server's.
        missing = servers["GET /v2/{name}/manifests/{reference}"]
        assert attributes(missing)["http.response.status_code"] == 404
        assert missing.status.code == Status.STATUS_CODE_UNSET


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_collector_that_is_away_or_hangs_costs_no_request_anything(
    database: Database, s3: S3Settings, tmp_path: Path, hangs: bool
) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while await reader.read(65536):
            pass

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1] if hangs else free_port()
    loop = asyncio.get_running_loop()
    async with traced(database, s3, tmp_path, port=port, ratio=1.0) as running:
        longest = 0.0
        # More than a batch, so that the thread that sends them is at work meanwhile.
        for _ in range(1000):
            started = loop.time()
            assert (await running.request("GET", "/v2/")).status == 401
            longest = max(longest, loop.time() - started)
        assert longest < 2
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


@pytest.mark.allow_blocking
@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
async def test_without_an_endpoint_the_libraries_are_not_even_loaded(endpoint: str) -> None:
    program = (
        "import asyncio, sys\n"
        "from entrepot_registry.app import open_registry\n"
        "from entrepot.web.traces import TracesSettings, open_traces\n"
        "async def main():\n"
        f"    async with open_traces(TracesSettings(endpoint={endpoint!r}), service='x') as traces:\n"
        "        print(traces is None, any(name.startswith('opentelemetry') for name in sys.modules))\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], check=True, capture_output=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert done.stdout.decode().split() == ([str(not endpoint), str(bool(endpoint))])


def test_settings_of_traces_are_judged_at_the_start() -> None:
    assert TracesSettings(endpoint="http://collector:4318").url == "http://collector:4318/v1/traces"
    assert TracesSettings(endpoint="https://collector/otlp/v1/traces").url == "https://collector/otlp/v1/traces"
    for wrong in ({"endpoint": "collector:4318"}, {"endpoint": "ftp://collector"}, {"sample_ratio": 1.5}):
        with pytest.raises(SettingInvalid, match="ENTREPOT_TRACES_"):
            TracesSettings(**wrong)
