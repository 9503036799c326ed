"""How fast the syncer is, how little it asks when nothing has changed, and how little memory it and the registry take.

`python -m bench.sync` compares one run of `python -m entrepot_syncer`, from exec to exit, with `skopeo sync --all` into Debian's
docker-registry. Both read the same docker-registry on disk and write to the same S3 server (versitygw), each into a fresh bucket a round,
in turns; the median counts. The content: 200 tags, 50 images of 10 layers of 1 MB, 200 distinct layers that do not compress.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import asyncpg

from entrepot.db.migrate import migrate
from entrepot.settings import DatabaseSettings, S3Settings
from tests.conftest import Database
from tests.contents import make_distribution
from tests.processes import Processes, peak_memory
from tests.servers import ObjectStore, Postgres, running_object_store, running_postgres
from tests.upstreams.docker_registry import DockerRegistry, running_docker_registry

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("core", "operator", "services/registry", "services/setup", "services/syncer", "services/token")
MIB = 1024 * 1024
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TARGET_RATIO = 4.0
TARGET_MEMORY = 200 * MIB


@dataclass(frozen=True)
class Measured:
    """One run."""

    seconds: float
    cpu: float
    peak: int
    """Bytes of memory at most (VmHWM)."""


def block(seed: int) -> bytes:
    return random.Random(seed).randbytes(1_000_000)


def large(mebibytes: int) -> Iterator[bytes]:
    noise = random.Random(1).randbytes(MIB)
    for number in range(mebibytes):
        yield number.to_bytes(8, "big") + noise[8:]


async def push_blob(session: aiohttp.ClientSession, url: str, data: bytes) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with session.post(f"{url}/blobs/uploads/") as begun:
        location = begun.headers["Location"]
    mark = "&" if "?" in location else "?"
    async with session.put(f"{location}{mark}digest={digest}", data=data) as done:
        assert done.status == 201, await done.text()
    return {"digest": digest, "size": len(data)}


async def push_large(session: aiohttp.ClientSession, url: str, mebibytes: int) -> dict[str, object]:
    hasher = hashlib.sha256()

    async def chunks():  # type: ignore[no-untyped-def]
        for chunk in large(mebibytes):
            hasher.update(chunk)
            yield chunk

    async with session.post(f"{url}/blobs/uploads/") as begun:
        location = begun.headers["Location"]
    async with session.patch(location, data=chunks(), headers={"Content-Type": "application/octet-stream"}) as sent:
        location = sent.headers["Location"]
    digest = f"sha256:{hasher.hexdigest()}"
    mark = "&" if "?" in location else "?"
    async with session.put(f"{location}{mark}digest={digest}") as done:
        assert done.status == 201, await done.text()
    return {"digest": digest, "size": mebibytes * MIB}


async def push_image(
    session: aiohttp.ClientSession, url: str, *, tags: list[str], layers: list[dict[str, object]], number: int
) -> None:
    config = json.dumps({"os": "linux", "architecture": "amd64", "config": {}, "created": str(number)}).encode()
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **await push_blob(session, url, config)},
            "layers": [{"mediaType": LAYER, **layer} for layer in layers],
        }
    ).encode()
    for tag in tags:
        async with session.put(f"{url}/manifests/{tag}", data=body, headers={"Content-Type": MANIFEST}) as done:
            assert done.status == 201, await done.text()


async def fill(registry: DockerRegistry, mebibytes: int) -> None:
    """Push the content of the comparison, and the one large layer."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        url = f"{registry.url}/v2/bench/app"
        layers = [await push_blob(session, url, block(seed)) for seed in range(200)]
        choice = random.Random(7)
        for number in range(50):
            own = [layers[(number * 4 + i) % 200] for i in range(4)]
            shared = choice.sample([layer for layer in layers if layer not in own], 6)
            await push_image(
                session, url, tags=[f"v{number}.{i}" for i in range(4)], layers=own + shared, number=number
            )
        if mebibytes:
            url = f"{registry.url}/v2/bench/large"
            await push_image(session, url, tags=["v1"], layers=[await push_large(session, url, mebibytes)], number=0)


def measure(command: list[str], *, environment: dict[str, str] | None = None, directory: Path) -> Measured:
    """Run a command to its end, by wait4, which tells its processor time and its memory at most."""
    with (directory / "log").open("ab") as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command} failed:\n{(directory / 'log').read_text()[-4000:]}")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


class Bench:
    """The servers, and a fresh database and bucket for each round."""

    def __init__(self, postgres: Postgres, objects: ObjectStore, upstream: DockerRegistry, directory: Path) -> None:
        self.postgres = postgres
        self.objects = objects
        self.upstream = upstream
        self.directory = directory

    async def fresh_database(self) -> str:
        name = f"bench_{uuid.uuid4().hex[:8]}"
        admin = await asyncpg.connect(self.postgres.dsn(user="postgres", database="postgres"))
        await admin.execute(f"create database {name}")
        await migrate(DatabaseSettings(dsn=self.postgres.dsn(user="postgres", database=name)))
        for part in ("syncer", "registry", "token"):
            await admin.execute(f"alter role entrepot_{part} login")
        await admin.close()
        return name

    async def new_run(self, database: str, upstream_name: str) -> uuid.UUID:
        """The row that the operator would write, for one and the same repository."""
        owner = await asyncpg.connect(self.postgres.dsn(user="postgres", database=database))
        repository = await owner.fetchval("select id from repository limit 1") or await owner.fetchval(
            "insert into repository (namespace, name, resource_uid) values ('bench', 'app', gen_random_uuid()) returning id"
        )
        spec = {
            "sources": [{"remote": str(uuid.uuid4()), "url": self.upstream.url, "upstreamName": upstream_name}],
            "policy": "Immediate",
            "mode": "Additive",
        }
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        run: uuid.UUID = await owner.fetchval(
            "insert into sync_run (repository, spec, spec_hash, trigger) values ($1, $2, $3, 'Requested') returning id",
            repository, text, hashlib.sha256(text.encode()).hexdigest(),
        )  # fmt: skip
        await owner.close()
        return run

    async def outcome(self, database: str, run: uuid.UUID) -> asyncpg.Record:
        owner = await asyncpg.connect(self.postgres.dsn(user="postgres", database=database))
        row = await owner.fetchrow("select * from sync_run where id = $1", run)
        await owner.close()
        assert row is not None
        return row

    def syncer(self, database: str, s3: S3Settings, run: uuid.UUID) -> Measured:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in PARTS),
            "ENTREPOT_DATABASE_DSN": self.postgres.dsn(user="entrepot_syncer", database=database),
            "ENTREPOT_S3_ENDPOINT": s3.endpoint,
            "ENTREPOT_S3_BUCKET": s3.bucket,
            "ENTREPOT_S3_ACCESS_KEY_ID": s3.access_key_id,
            "ENTREPOT_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
            "ENTREPOT_UPSTREAM_ALLOW_LOOPBACK": "true",
        }
        command = [sys.executable, "-m", "entrepot_syncer", "run", str(run)]
        return measure(command, environment=environment, directory=self.directory)

    def skopeo(self, peer: DockerRegistry) -> Measured:
        command = [
            "skopeo", "sync", "--all", "--src", "docker", "--dest", "docker", "--src-tls-verify=false", "--dest-tls-verify=false",
            f"{self.upstream.host}/bench/app", f"{peer.host}/mirror",
        ]  # fmt: skip
        return measure(command, directory=self.directory)


def show(name: str, runs: list[Measured]) -> str:
    seconds = [run.seconds for run in runs]
    cpu = statistics.median(run.cpu for run in runs)
    peak = max(run.peak for run in runs) // MIB
    return f"{name:<34}{statistics.median(seconds):>8.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}{cpu:>8.2f}{peak:>8}"


def count(requests: list[tuple[str, str]]) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for method, path in requests:
        kind = next((k for k in ("tags", "manifests", "blobs", "token") if f"/{k}" in path), "other")
        kinds[f"{method} {kind}"] += 1
    return kinds


async def compare(bench: Bench, rounds: int, *, with_skopeo: bool) -> bool:
    ours: list[Measured] = []
    again: list[Measured] = []
    theirs: list[Measured] = []
    theirs_again: list[Measured] = []
    asked: Counter[str] = Counter()
    for _ in range(rounds):
        database, s3 = await bench.fresh_database(), bench.objects.settings()
        run = await bench.new_run(database, "bench/app")
        ours.append(bench.syncer(database, s3, run))
        row = await bench.outcome(database, run)
        assert (row["outcome"], row["added"], row["blobs_done"]) == ("Synced", 200, 250), dict(row)
        run = await bench.new_run(database, "bench/app")
        mark = bench.upstream.mark()
        again.append(bench.syncer(database, s3, run))
        asked = count(bench.upstream.requests(mark))
        row = await bench.outcome(database, run)
        assert (row["outcome"], row["version"]) == ("NoChange", None), dict(row)
        if with_skopeo:
            with running_docker_registry(bench.objects.settings()) as peer:
                theirs.append(bench.skopeo(peer))
                theirs_again.append(bench.skopeo(peer))
    print(f"\n{'':<34}{'median':>8}{'min':>8}{'max':>8}{'cpu s':>8}{'MiB':>8}")
    print(show("entrepot syncer", ours))
    print(show("entrepot syncer, nothing changed", again))
    good = set(asked) <= {"GET tags", "HEAD manifests"} and asked["GET tags"] == 1 and asked["HEAD manifests"] <= 200
    if theirs:
        print(show("skopeo sync --all", theirs))
        print(show("skopeo sync --all, nothing changed", theirs_again))
        ratio = statistics.median(r.seconds for r in theirs) / statistics.median(r.seconds for r in ours)
        print(f"\n{ratio:.1f} times as fast as skopeo; the target is {TARGET_RATIO:.0f}")
        good = good and ratio >= TARGET_RATIO
    print(f"asked of the upstream when nothing has changed: {dict(asked)}")
    return good


async def one_large_layer(bench: Bench, mebibytes: int) -> bool:
    database, s3 = await bench.fresh_database(), bench.objects.settings()
    run = await bench.new_run(database, "bench/large")
    measured = bench.syncer(database, s3, run)
    row = await bench.outcome(database, run)
    assert (row["outcome"], row["added"]) == ("Synced", 1), dict(row)
    rate = mebibytes / measured.seconds
    print(
        f"a layer of {mebibytes} MiB: {measured.seconds:.1f} s, {rate:.0f} MiB/s, {measured.cpu:.1f} s of processor time,"
        f" {measured.peak // MIB} MiB of memory at most; the target is {TARGET_MEMORY // MIB}"
    )
    return await pull_large_layer(bench, database, s3, mebibytes) and measured.peak < TARGET_MEMORY


async def pull_large_layer(bench: Bench, database: str, s3: S3Settings, mebibytes: int) -> bool:
    """The same layer out of the registry, a process of its own, through one client that verifies it."""
    owner = await asyncpg.connect(bench.postgres.dsn(user="postgres", database=database))
    await make_distribution(owner, await owner.fetchval("select id from repository"))
    digest = await owner.fetchval("select digest from blob where object_key is not null order by size desc limit 1")
    await owner.close()
    both = Processes(Database(bench.postgres, database), s3, bench.directory)
    hasher = hashlib.sha256()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
        with both.started() as registry:
            await both.ready(http)
            headers = await both.bearer(http)
            started = time.perf_counter()
            async with http.get(f"{both.url}/v2/demo/app/blobs/{digest}", headers=headers) as answer:
                async for chunk in answer.content.iter_any():
                    hasher.update(chunk)
            seconds = time.perf_counter() - started
            peak = peak_memory(registry)
    assert f"sha256:{hasher.hexdigest()}" == digest
    print(
        f"the same layer pulled: {seconds:.1f} s, {mebibytes / seconds:.0f} MiB/s, {peak // MIB} MiB of memory at most"
    )
    return peak < TARGET_MEMORY


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-skopeo", action="store_true", help="measure the syncer alone")
    parser.add_argument(
        "--layer", type=int, default=2048, metavar="MIB", help="size of the large layer; 0: leave it out"
    )
    arguments = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="entrepot-bench-")))
        postgres = stack.enter_context(running_postgres(durable=True))
        objects = stack.enter_context(running_object_store())
        upstream = stack.enter_context(running_docker_registry())
        await fill(upstream, arguments.layer)
        bench = Bench(postgres, objects, upstream, directory)
        good = await compare(bench, arguments.rounds, with_skopeo=not arguments.no_skopeo)
        if arguments.layer:
            good = await one_large_layer(bench, arguments.layer) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
