"""Mounting, and that naming a digest gives access to nothing: who may see what, by every way that names one."""

from __future__ import annotations

import asyncio
import os
import statistics
import time

import pytest

from entrepot.db.content import Change
from tests import contents, pushes
from tests.integration.registry.conftest import Demo
from tests.pushes import Pusher, digest_of
from tests.services import Running

BLOB = os.urandom(40 * 1024)


@pytest.fixture
async def target(demo: Demo) -> int:
    """`team/app`, private: where is pushed to."""
    repository = await contents.make_repository(demo.running.owner, namespace="team")
    await contents.make_distribution(
        demo.running.owner, repository, base_path="team/app", access="Private", namespace="team"
    )
    return repository


async def make_source(running: Running, access: str, *, blob: bytes = BLOB, name: str = "source") -> int:
    repository = await contents.make_repository(running.owner, name=name)
    await contents.make_distribution(running.owner, repository, base_path=f"demo/{name}", access=access)
    await contents.store(running.owner, repository, blob, s3=running.store)
    return repository


async def pusher(running: Running) -> Pusher:
    """Who may pull and push at the target, and asked for more in vain."""
    names = ("demo/app", "demo/source", "demo/none")
    return await pushes.pusher(running, "team/app", "pull", "push", more=dict.fromkeys(names, ()))


async def mount(client: Pusher, source: str | None, digest: str = digest_of(BLOB)) -> int:
    query = f"?mount={digest}" + (f"&from={source}" if source else "")
    got = await client.ask("POST", f"blobs/uploads/{query}")
    if got.status == 201:
        assert got.headers["Location"] == f"/v2/{client.name}/blobs/{digest}"
        assert got.headers["Docker-Content-Digest"] == digest
        assert (await client.ask("GET", f"blobs/{digest}")).status == 200
    else:
        assert got.headers["Range"] == "0-0"
        assert (await client.ask("HEAD", f"blobs/{digest}")).status == 404
    return got.status


@pytest.mark.parametrize(
    ("access", "right", "source", "status"),
    [
        # By name: what the token may pull from, or what everybody may.
        ("Private", ("pull",), "demo/source", 201),
        ("Authenticated", ("pull",), "demo/source", 201),
        ("Public", (), "demo/source", 201),
        ("Private", (), "demo/source", 202),
        ("Authenticated", (), "demo/source", 202),
        ("Private", ("push",), "demo/source", 202),
        ("Private", ("delete",), "demo/source", 202),
        # Without a name: the same, wherever it is.
        ("Private", ("pull",), None, 201),
        ("Public", (), None, 201),
        ("Private", (), None, 202),
        ("Authenticated", (), None, 202),
        ("Private", ("push",), None, 202),
        # By another name than where it is.
        ("Private", ("pull",), "team/app", 202),
        ("Public", (), "team/app", 202),
        ("Public", (), "demo/nothing", 202),
    ],
)  # fmt: skip
async def test_a_mount_gives_what_the_token_may_pull_and_nothing_else(
    demo: Demo, target: int, access: str, right: tuple[str, ...], source: str | None, status: int
) -> None:
    await make_source(demo.running, access)
    more = {"demo/source": right, "demo/nothing": ()} if right or source else None
    client = await pushes.pusher(demo.running, "team/app", "pull", "push", more=more)
    assert await mount(client, source) == status


async def test_what_is_nowhere_is_not_mounted(demo: Demo, target: int) -> None:
    client = await pushes.pusher(demo.running, "team/app", more={"demo/app": ("pull",)})
    for source in ("demo/app", "team/app", None):
        assert await mount(client, source, digest_of(b"nowhere")) == 202


async def test_what_the_target_serves_already_is_mounted_without_a_source(demo: Demo, target: int) -> None:
    await contents.store(demo.running.owner, target, BLOB, s3=demo.running.store)
    client = await pusher(demo.running)
    assert await mount(client, None) == 201
    blind = await pushes.pusher(demo.running, "team/app", "push")
    got = await blind.ask("POST", f"blobs/uploads/?mount={digest_of(BLOB)}")
    assert got.status == 202, "who may not read there learns nothing"


async def test_a_grant_for_a_former_distribution_of_that_path_mounts_nothing(demo: Demo, target: int) -> None:
    running = demo.running
    repository = await make_source(running, "Private")
    client = await pushes.pusher(running, "team/app", "pull", "push", more={"demo/source": ("pull",)})
    await running.owner.execute("delete from distribution where base_path = 'demo/source'")
    await running.owner.execute("delete from base_path_claim where path = 'demo/source'")
    await contents.make_distribution(running.owner, repository, base_path="demo/source", access="Private")
    assert await mount(client, "demo/source") == 202
    assert await mount(client, None) == 202


@pytest.mark.parametrize("source", ["demo/source", None])
async def test_only_what_the_source_serves_at_this_moment_is_mounted(
    demo: Demo, target: int, source: str | None
) -> None:
    owner = demo.running.owner
    repository = await make_source(demo.running, "Public")
    identity = await owner.fetchval("select id from blob where digest = $1", digest_of(BLOB))
    link = "where repository = $1 and blob = $2"
    client = await pusher(demo.running)

    async def again() -> int:
        await owner.execute("delete from repository_blob where repository = $1", target)
        return await mount(client, source)

    assert await again() == 201
    for change, status in (
        ("hidden = true", 202),
        ("hidden = false, named = true", 202),
        ("left_at = now() - interval '1 minute'", 201),
        ("left_at = now() - interval '1 hour'", 202),
        ("named = false", 201),
    ):
        await owner.execute(f"update repository_blob set {change} {link}", repository, identity)
        assert await again() == status, change
    await owner.execute("update blob set quarantined_at = now() where id = $1", identity)
    assert await again() == 202
    await owner.execute("update blob set quarantined_at = null where id = $1", identity)
    other = contents.image(b"another layer")
    await contents.push(owner, repository, "a", other)
    await owner.execute("update distribution set pinned = 1 where base_path = 'demo/source'")
    assert await again() == 202, "a pinned version serves what its manifests name"
    await owner.execute("update distribution set pinned = null where base_path = 'demo/source'")
    assert await again() == 201
    await owner.execute("update repository set deleted_at = now(), purge_after = now() where id = $1", repository)
    assert await again() == 202


async def test_a_pinned_source_mounts_what_its_version_needs(demo: Demo, target: int) -> None:
    running = demo.running
    repository = await contents.make_repository(running.owner, name="source")
    await contents.make_distribution(running.owner, repository, base_path="demo/source")
    image = contents.image(BLOB)
    await contents.push(running.owner, repository, "a", image, s3=running.store)
    await contents.commit(
        running.owner,
        repository,
        Change(untag=["a"], remove_manifests=await contents.put(running.owner, image), withdrawn=True),
    )
    client = await pusher(running)
    assert await mount(client, "demo/source") == 202
    await running.owner.execute("update distribution set pinned = 1 where base_path = 'demo/source'")
    await running.owner.execute("delete from repository_blob where repository = $1", target)
    assert await mount(client, "demo/source") == 201


async def test_what_is_mounted_stays_when_its_source_goes(demo: Demo, target: int) -> None:
    repository = await make_source(demo.running, "Public")
    client = await pusher(demo.running)
    assert await mount(client, "demo/source") == 201
    await demo.running.owner.execute("delete from repository_blob where repository = $1", repository)
    assert (await client.ask("GET", f"blobs/{digest_of(BLOB)}")).body == BLOB


async def test_a_token_that_was_not_asked_for_the_source_is_refused_with_the_scope_to_ask_for(
    demo: Demo, target: int
) -> None:
    await make_source(demo.running, "Private")
    client = await pushes.pusher(demo.running, "team/app", "pull", "push")
    got = await client.ask("POST", f"blobs/uploads/?mount={digest_of(BLOB)}&from=demo/source")
    assert (got.status, got.code) == (401, "UNAUTHORIZED")
    assert 'scope="repository:team/app:pull,push repository:demo/source:pull"' in got.headers["WWW-Authenticate"]


@pytest.mark.parametrize("source", ["demo/none", "demo/app"])
async def test_a_mount_that_fails_begins_an_upload(demo: Demo, target: int, source: str) -> None:
    client = await pusher(demo.running)
    got = await client.ask("POST", f"blobs/uploads/?mount={digest_of(BLOB)}&from={source}")
    assert got.status == 202
    assert (await client.finish(got.headers["Location"], digest_of(BLOB), BLOB)).status == 201
    assert (await client.ask("POST", f"blobs/uploads/?mount={digest_of(BLOB)}&from=No/Name")).code == "NAME_INVALID"


async def test_a_mount_that_fails_may_bring_the_blob_itself(demo: Demo, target: int) -> None:
    client = await pusher(demo.running)
    digest = digest_of(BLOB)
    got = await client.ask("POST", f"blobs/uploads/?mount={digest}&digest={digest}", data=BLOB)
    assert got.status == 201
    assert (await client.ask("GET", f"blobs/{digest}")).body == BLOB


async def test_a_blob_that_only_others_have_is_received_and_verified_like_any_other(demo: Demo, target: int) -> None:
    """A digest known from elsewhere opens nothing, and lying about one gives nothing away."""
    await make_source(demo.running, "Private")
    client = await pusher(demo.running)
    digest = digest_of(BLOB)
    for method in ("GET", "HEAD"):
        assert (await client.ask(method, f"blobs/{digest}")).status == 404
    location = await client.begin()
    got = await client.finish(location, digest, b"something else")
    assert (got.status, got.code) == (400, "DIGEST_INVALID")
    assert (await client.finish(location, digest)).code == "DIGEST_INVALID"
    assert (await client.ask("POST", f"blobs/uploads/?digest={digest}", data=b"x")).code == "DIGEST_INVALID"
    assert (await client.ask("HEAD", f"blobs/{digest}")).status == 404
    assert (await client.finish(location, digest, BLOB)).status == 201
    assert (await client.ask("GET", f"blobs/{digest}")).body == BLOB


async def test_the_time_of_a_refusal_does_not_tell_whether_others_have_a_blob(demo: Demo, target: int) -> None:
    """The same statements run either way; compared are medians, generously, since the machine has other things to do."""
    await make_source(demo.running, "Private")
    client = await pusher(demo.running)
    absent = digest_of(b"nobody has this")
    for ask in (
        lambda digest: client.ask("HEAD", f"blobs/{digest}"),
        lambda digest: client.ask("POST", f"blobs/uploads/?mount={digest}&from=demo/source"),
        lambda digest: client.ask("POST", f"blobs/uploads/?mount={digest}"),
    ):
        times: dict[str, list[float]] = {digest_of(BLOB): [], absent: []}
        before = await demo.running.statements()
        for _ in range(30):
            for digest, seconds in times.items():
                began = time.perf_counter()
                await ask(digest)
                seconds.append(time.perf_counter() - began)
        assert (await demo.running.statements() - before) % 30 == 0, "the same statements for both"
        there, not_there = (statistics.median(seconds) for seconds in times.values())
        assert abs(there - not_there) < max(0.002, 0.5 * not_there)


async def test_deleted_here_is_not_served_again_because_another_repository_has_it(demo: Demo, target: int) -> None:
    source = await make_source(demo.running, "Public")
    other = await pushes.pusher(demo.running, "demo/source")
    client = await pushes.pusher(demo.running, "team/app")
    digest = digest_of(BLOB)
    assert (await client.blob(BLOB)).status == 201
    assert (await client.ask("DELETE", f"blobs/{digest}")).status == 202
    assert (await other.ask("GET", f"blobs/{digest}")).body == BLOB
    for method in ("GET", "HEAD"):
        assert (await client.ask(method, f"blobs/{digest}")).status == 404
    assert source != target


async def test_concurrent_mounts_of_one_blob_all_succeed(demo: Demo, target: int) -> None:
    await make_source(demo.running, "Public")
    client = await pusher(demo.running)
    answers = await asyncio.gather(
        *(client.ask("POST", f"blobs/uploads/?mount={digest_of(BLOB)}&from=demo/source") for _ in range(8))
    )
    assert {answer.status for answer in answers} == {201}
