"""The process killed, PostgreSQL and S3 away in the middle: it completes, and nothing half-stored was visible."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web

from entrepot.credentials import Credentials
from entrepot_syncer.lease import RunHeld, hold_lease
from entrepot_syncer.run import RunUnknown
from tests.integration.syncer.conftest import ROOT, Mirror
from tests.servers import ObjectStore
from tests.upstreams.images import Content, Generated
from tests.upstreams.server import Upstream

MIB = 1024 * 1024
FAST = {"ENTREPOT_SYNCER_PROGRESS_INTERVAL": "50ms", "ENTREPOT_UPSTREAM_MAX_BACKOFF": "100ms"}


async def eventually(condition: Callable[[], Awaitable[bool]], *, what: str, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 # it comes true in another process
            await asyncio.sleep(0.02)
    assert what


async def ended(process: subprocess.Popen[bytes], *, seconds: float = 120) -> int:
    return await asyncio.wait_for(asyncio.to_thread(process.wait), seconds)


@contextlib.contextmanager
def started(mirror: Mirror, run: uuid.UUID, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = mirror.start(run, **{**FAST, **environment})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


def many(content: Content, *, images: int = 30) -> None:
    for number in range(images):
        content.add_image(f"v{number:02}", layers=[f"{number} {i} ".encode() * 30_000 for i in range(4)])


def gate(upstream: Upstream, *, after: int) -> asyncio.Event:
    """Lets this many blobs through and holds the rest until the event is set."""
    released = asyncio.Event()
    served = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal served
        served += 1
        if served > after:
            await released.wait()
        return await upstream._blob(request)

    upstream.fault("GET", "/blobs/", handler)
    return released


async def blobs_stored(mirror: Mirror) -> int:
    number: int = await mirror.owner.fetchval("select count(*) from blob where stored_at is not null")
    return number


async def test_a_killed_process_is_continued_and_fetches_nothing_twice(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    many(content)
    content.add_image("large", layers=[Generated(5, 40)])
    gate(upstream, after=60)
    run = await mirror.new_run(upstream)

    async def half() -> bool:
        return await blobs_stored(mirror) >= 40

    with started(mirror, run) as process:
        await eventually(half, what="half of the blobs are stored")
        process.send_signal(signal.SIGKILL)
        assert await ended(process) == -signal.SIGKILL
    row = await mirror.row(run)
    assert (row["finished_at"], row["attempts"]) == (None, 1)
    assert await mirror.tags() == {}, "nothing is visible before the commit"
    assert await mirror.owner.fetchval("select count(*) from repository_manifest") == 0
    stored = await mirror.check_everything_stored()
    assert await mirror.leftovers() > 0, "the rows of objects under way are there to be found"

    upstream.heal()
    upstream.seen.clear()
    with started(mirror, run) as process:
        assert await ended(process) == 0, mirror.log()
    row = await mirror.row(run)
    assert (row["outcome"], row["attempts"], row["version"]) == ("Synced", 2, 1)
    assert await mirror.tags() == content.tags
    assert await mirror.check_everything_stored() == len(content.blobs)
    assert upstream.counts()["GET blobs"] == len(content.blobs) - stored
    assert await mirror.leftovers() == 0
    assert json.loads((mirror.directory / "termination").read_text()) == {
        "outcome": "Synced", "reason": None, "message": None, "version": 1,
    }  # fmt: skip
    assert list((mirror.directory / "tmp").iterdir()) == []


async def test_a_multipart_upload_of_a_killed_process_is_aborted(
    mirror: Mirror, upstream: Upstream, object_store: ObjectStore
) -> None:
    content = upstream.content()
    content.add_image("large", layers=[Generated(6, 64)])
    digest = content.layers_of("large")[0]
    released = asyncio.Event()

    async def halfway(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(64 * MIB)})
        await response.prepare(request)
        for number, chunk in enumerate(Generated(6, 64).chunks()):
            if number == 32:
                await released.wait()
            await response.write(chunk)
        return response

    upstream.fault("GET", f"blobs/{digest}", halfway)
    run = await mirror.new_run(upstream)

    async def uploading() -> bool:
        return bool(await mirror.owner.fetchval("select count(*) from object where upload_id is not null"))

    with started(mirror, run) as process:
        await eventually(uploading, what="a multipart upload is open")
        process.kill()
        await ended(process)
    upstream.heal()
    with started(mirror, run) as process:
        assert await ended(process) == 0, mirror.log()
    assert (await mirror.row(run))["outcome"] == "Synced"
    files = [path for path in object_store.bucket_path(mirror.s3).rglob("*") if path.is_file()]
    assert len(files) == 1, "the object, and nothing of the first attempt"
    assert await mirror.leftovers() == 0
    released.set()


async def test_a_signal_to_stop_leaves_the_run_to_another_attempt(mirror: Mirror, upstream: Upstream) -> None:
    many(upstream.content(), images=5)
    gate(upstream, after=5)
    run = await mirror.new_run(upstream)

    async def begun() -> bool:
        return len(upstream.seen) > 10

    with started(mirror, run) as process:
        await eventually(begun, what="blobs are asked for")
        process.terminate()
        assert await ended(process, seconds=20) == 75
    assert json.loads((mirror.directory / "termination").read_text())["reason"] == "Stopped"
    upstream.heal()
    await mirror.perform(run)
    assert (await mirror.row(run))["outcome"] == "Synced"


async def test_postgresql_restarting_in_the_middle_is_waited_for(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    many(content)
    released = gate(upstream, after=60)
    run = await mirror.new_run(upstream)
    with started(mirror, run) as process:

        async def half() -> bool:
            return await blobs_stored(mirror) >= 30

        await eventually(half, what="some blobs are stored")
        server = mirror.database.server
        await asyncio.to_thread(server.stop)
        released.set()
        await asyncio.sleep(1)
        await asyncio.to_thread(server.start)
        assert await ended(process) == 0, mirror.log()
    await mirror.owner.close(timeout=1)
    import asyncpg

    mirror.owner = await asyncpg.connect(mirror.database.dsn())
    row = await mirror.row(run)
    assert (row["outcome"], row["version"], row["attempts"]) == ("Synced", 1, 1)
    assert await mirror.tags() == content.tags
    await mirror.check_everything_stored()


async def test_s3_restarting_in_the_middle_is_waited_for(
    mirror: Mirror, upstream: Upstream, object_store: ObjectStore
) -> None:
    content = upstream.content()
    many(content)
    content.add_image("large", layers=[Generated(8, 30)])
    released = gate(upstream, after=60)
    run = await mirror.new_run(upstream)
    with started(mirror, run) as process:

        async def half() -> bool:
            return await blobs_stored(mirror) >= 30

        await eventually(half, what="some blobs are stored")
        await asyncio.to_thread(object_store.stop)
        try:
            released.set()
            await asyncio.sleep(2)
        finally:
            await asyncio.to_thread(object_store.start)
        assert await ended(process) == 0, mirror.log()
    row = await mirror.row(run)
    assert (row["outcome"], row["version"], row["attempts"]) == ("Synced", 1, 1)
    assert await mirror.tags() == content.tags
    await mirror.check_everything_stored()
    assert await mirror.leftovers() == 0


@pytest.mark.parametrize("what", ["database", "s3"])
async def test_storage_that_stays_away_ends_the_process_for_another_attempt(
    mirror: Mirror, upstream: Upstream, what: str
) -> None:
    upstream.content().add_image("v1")
    run = await mirror.new_run(upstream)
    wrong = {
        "database": {"ENTREPOT_DATABASE_DSN": "postgresql://x@127.0.0.1:1/x"},
        "s3": {"ENTREPOT_S3_ENDPOINT": "http://127.0.0.1:1"},
    }
    with started(mirror, run, ENTREPOT_SYNCER_OUTAGE="1s", **wrong[what]) as process:
        assert await ended(process) == 75, mirror.log()
    reason = {"database": "DatabaseUnavailable", "s3": "StorageUnavailable"}[what]
    assert json.loads((mirror.directory / "termination").read_text())["reason"] == reason
    assert (await mirror.row(run))["finished_at"] is None
    await mirror.perform(run)
    assert (await mirror.row(run))["outcome"] == "Synced"


async def test_one_process_works_on_a_run_and_a_finished_one_is_left_alone(mirror: Mirror, upstream: Upstream) -> None:
    upstream.content().add_image("v1")
    run = await mirror.new_run(upstream)
    environment = mirror.environment()
    quick = type(environment.syncer)(lock_wait=timedelta(milliseconds=100))
    async with hold_lease(run, database=environment.database, settings=quick):
        with pytest.raises(RunHeld):
            async with hold_lease(run, database=environment.database, settings=quick):
                pass
    assert await mirror.perform(run) is not None
    before = await mirror.row(run)
    assert await mirror.perform(run) is None
    assert await mirror.row(run) == before
    with pytest.raises(RunUnknown):
        await mirror.perform(uuid.uuid4())


async def test_bad_invocations_say_what_is_wrong(mirror: Mirror) -> None:
    with started(mirror, uuid.uuid4()) as process:
        assert await ended(process) == 64
    with started(mirror, uuid.uuid4(), ENTREPOT_UPSTREAM_MAX_TAGS="many") as process:
        assert await ended(process) == 64
    assert "ENTREPOT_UPSTREAM_MAX_TAGS must be a whole number" in mirror.log()
    with started(mirror, "no-uuid") as process:  # type: ignore[arg-type]
        assert await ended(process) == 64
    assert "usage: " in mirror.log()


def memory(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory the process had at most so far; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


def open_files(process: subprocess.Popen[bytes]) -> list[str]:
    found = []
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(entry.readlink()))
    return found


async def test_memory_does_not_depend_on_layers_and_no_file_is_written(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    content.add_image("large", layers=[Generated(1, 300)])
    content.add_image("three", layers=[Generated(seed, 60) for seed in (2, 3, 4)])
    run = await mirror.new_run(upstream)
    peak, files = 0, set()
    with started(mirror, run) as process:
        while process.poll() is None:
            peak = max(peak, memory(process))
            files.update(open_files(process))
            await asyncio.sleep(0.01)
        assert process.returncode == 0, mirror.log()
    row = await mirror.row(run)
    assert (row["outcome"], row["bytes_transferred"]) == ("Synced", row["bytes_total"])
    assert 0 < peak < 200 * MIB, f"{peak / MIB:.0f} MiB"
    written = {
        f
        for f in files
        if f.startswith("/")
        and not f.startswith(("/dev/", "/proc/", "/memfd:", str(ROOT)))
        and f != str(mirror.directory / "log")
    }
    ours = {f for f in written if str(mirror.directory) in f or f.startswith(("/tmp", "/var/tmp", "/dev/shm"))}
    assert ours == set()
    assert list((mirror.directory / "tmp").iterdir()) == []


async def test_no_secret_reaches_a_log_a_row_or_the_last_words(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    content.add_image("v1")
    upstream.auth, upstream.password = "token", "PASSWORD-CANARY"
    await mirror.use_credentials(upstream, Credentials(username="user", password="PASSWORD-CANARY"))
    for prepare in (
        lambda: None,
        lambda: setattr(upstream, "password", "changed"),
        lambda: setattr(upstream, "auth", "basic"),
    ):
        prepare()
        run = await mirror.new_run(upstream)
        with started(mirror, run) as process:
            assert await ended(process) == 0, mirror.log()
        everything = mirror.log() + str(dict(await mirror.row(run))) + (mirror.directory / "termination").read_text()
        for secret in ("CANARY", "token-0", "Basic ", "Bearer t", "entrepot-test-secret"):
            assert secret not in everything, secret
    assert '"run started"' in mirror.log()


async def test_progress_is_written_while_a_run_goes_on(mirror: Mirror, upstream: Upstream) -> None:
    many(upstream.content(), images=5)
    released = gate(upstream, after=12)
    run = await mirror.new_run(upstream)
    task = asyncio.create_task(mirror.perform(run))

    async def told() -> bool:
        row = await mirror.row(run)
        return row["phase"] == "Downloading" and row["blobs_done"] >= 8 and 0 < row["bytes_done"] < row["bytes_total"]

    begun = time.monotonic()
    await eventually(told, what="progress is written")
    assert time.monotonic() - begun < 30
    released.set()
    end = await task
    assert end is not None
    assert end.outcome == "Synced"
