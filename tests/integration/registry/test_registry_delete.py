"""DELETE of tags and manifests: what it removes, what it leaves, and that it is gone at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from entrepot.db.content import Change
from entrepot.oci import media_types
from entrepot.settings import S3Settings
from tests import contents, services
from tests.conftest import Database
from tests.contents import Image, sha256
from tests.integration.registry.conftest import Demo
from tests.pushes import Pusher, pusher


@pytest.fixture
async def client(demo: Demo) -> Pusher:
    return await pusher(demo.running)


async def put(demo: Demo, client: Pusher, tag: str, image: Image) -> None:
    await contents.store(demo.running.owner, demo.repository, *image.blobs)
    assert (await client.manifest(image.body, tag)).status == 201


async def blobs_served(client: Pusher, image: Image) -> list[int]:
    return [await client.status("HEAD", f"blobs/{sha256(blob)}") for blob in image.blobs]


async def test_a_tag_alone_is_removed(demo: Demo, client: Pusher) -> None:
    got = await client.ask("DELETE", "manifests/latest")
    assert (got.status, got.body, got.headers["Entrepot-Version"]) == (202, b"", "2")
    for method in ("HEAD", "GET"):
        assert await client.status(method, "manifests/latest") == 404
        assert await client.status(method, f"manifests/{demo.image.digest}") == 200
    assert await blobs_served(client, demo.image) == [200, 200, 200]
    assert (await client.ask("GET", "tags/list")).json()["tags"] == []
    row = await demo.running.owner.fetchrow("select * from version where number = 2")
    assert row is not None
    assert (row["cause_kind"], row["cause_name"], row["removed_tags"], row["removed_manifests"]) == ("Delete", "latest", 1, 0)  # fmt: skip


async def test_a_manifest_goes_with_all_its_tags_in_one_version(demo: Demo, client: Pusher) -> None:
    await put(demo, client, "other", other := contents.image(b"other", demo.small))
    assert (await client.manifest(demo.image.body, "second")).status == 201
    before = await demo.running.owner.fetchval("select latest from repository")
    got = await client.ask("DELETE", f"manifests/{demo.image.digest}")
    assert (got.status, got.headers["Entrepot-Version"]) == (202, str(before + 1))
    assert (await client.ask("GET", "tags/list")).json()["tags"] == ["other"]
    for reference in ("latest", "second", demo.image.digest):
        assert await client.status("HEAD", f"manifests/{reference}") == 404
        assert (await client.ask("DELETE", f"manifests/{reference}")).code == "MANIFEST_UNKNOWN"
    config, small, large = await blobs_served(client, demo.image)
    assert (config, small, large) == (404, 200, 404), "what another manifest names stays"
    assert await blobs_served(client, other) == [200, 200, 200]
    row = await demo.running.owner.fetchrow("select * from version where number = $1", before + 1)
    assert row is not None
    assert (row["cause_kind"], row["removed_tags"], row["removed_manifests"], row["withdrawn"]) == ("Delete", 2, 1, True)  # fmt: skip


async def test_what_is_listed_in_an_index_can_be_deleted_and_the_index_stays(demo: Demo, client: Pusher) -> None:
    images = [contents.image(arch.encode(), architecture=arch) for arch in ("amd64", "arm64")]
    await contents.push(demo.running.owner, demo.repository, "multi", *images)
    assert (await client.ask("DELETE", f"manifests/{images[0].digest}")).status == 202
    assert await client.status("HEAD", f"manifests/{images[0].digest}") == 404
    assert await client.status("HEAD", f"manifests/{images[1].digest}") == 200
    assert (await client.ask("GET", "manifests/multi")).body == contents.index(*images).body


async def test_a_pinned_version_goes_on_serving_what_was_deleted(demo: Demo, client: Pusher) -> None:
    owner = demo.running.owner
    await contents.make_distribution(owner, demo.repository, base_path="demo/pinned")
    await owner.execute("update distribution set pinned = 1 where base_path = 'demo/pinned'")
    pinned = await pusher(demo.running, "demo/pinned")
    assert (await client.ask("DELETE", f"manifests/{demo.image.digest}")).status == 202
    for reference in ("latest", demo.image.digest):
        assert await client.status("HEAD", f"manifests/{reference}") == 404
        assert (await pinned.ask("GET", f"manifests/{reference}")).body == demo.image.body
    assert await blobs_served(client, demo.image) == [404, 404, 404]
    assert await blobs_served(pinned, demo.image) == [200, 200, 200]


async def test_pushing_again_brings_it_back(demo: Demo, client: Pusher) -> None:
    for _ in range(3):
        assert (await client.ask("DELETE", f"manifests/{demo.image.digest}")).status == 202
        assert await client.status("GET", f"manifests/{demo.image.digest}") == 404
        assert (await client.manifest(demo.image.body, "latest")).status == 201
        assert (await client.ask("GET", "manifests/latest")).body == demo.image.body
        assert await blobs_served(client, demo.image) == [200, 200, 200]


async def test_unknown_and_ill_formed(demo: Demo, client: Pusher) -> None:
    for reference, status, code in (
        ("absent", 404, "MANIFEST_UNKNOWN"),
        (sha256(b"absent"), 404, "MANIFEST_UNKNOWN"),
        ("sha256:short", 400, "DIGEST_INVALID"),
    ):
        got = await client.ask("DELETE", f"manifests/{reference}")
        assert (got.status, got.code) == (status, code)
    gone = await pusher(demo.running, "r/demo/absent")
    assert (await gone.ask("DELETE", "manifests/latest")).status == 401
    assert await demo.running.owner.fetchval("select latest from repository") == 1


async def test_what_only_a_sync_removed_is_not_deleted_again(demo: Demo, client: Pusher) -> None:
    [number] = await contents.put(demo.running.owner, demo.image)
    await contents.commit(demo.running.owner, demo.repository, Change(untag=["latest"], remove_manifests=[number]))
    assert await client.status("HEAD", f"manifests/{demo.image.digest}") == 200, "for pulls under way"
    assert (await client.ask("DELETE", f"manifests/{demo.image.digest}")).status == 404


@pytest.mark.parametrize("actions", [("pull",), ("pull", "push")])
async def test_deleting_takes_its_own_right(demo: Demo, actions: tuple[str, ...]) -> None:
    other = await pusher(demo.running, "demo/app", *actions)
    for reference in ("latest", demo.image.digest):
        got = await other.ask("DELETE", f"manifests/{reference}")
        assert (got.status, got.code) == (401, "UNAUTHORIZED")
        challenge = got.headers["WWW-Authenticate"]
        assert 'scope="repository:demo/app:delete"' in challenge
        assert 'error="insufficient_scope"' in challenge
    assert await other.status("HEAD", "manifests/latest") == 200


async def test_a_token_does_not_outlive_what_it_was_given_for(demo: Demo, client: Pusher) -> None:
    """The same path again is another place."""
    owner = demo.running.owner
    await owner.execute("delete from distribution")
    await owner.execute("delete from base_path_claim")
    await contents.make_distribution(owner, demo.repository)
    for method, path in (("DELETE", "manifests/latest"), ("PUT", "manifests/latest"), ("GET", "manifests/latest")):
        got = await client.ask(
            method, path, headers={"Content-Type": media_types.OCI_MANIFEST}, data=demo.image.body if method == "PUT" else None
        )  # fmt: skip
        assert (got.status, got.code) == (401, "UNAUTHORIZED")
    assert await owner.fetchval("select latest from repository") == 1


async def test_of_two_who_delete_one_wins(demo: Demo, client: Pusher) -> None:
    answers = await asyncio.gather(*(client.ask("DELETE", f"manifests/{demo.image.digest}") for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [202, *[404] * 7]
    assert await demo.running.owner.fetchval("select latest from repository") == 2


async def test_pushing_and_deleting_at_once_ends_in_one_of_both(demo: Demo, client: Pusher) -> None:
    images = [contents.image(b"layer %d" % n) for n in range(4)]
    for image in images:
        await contents.store(demo.running.owner, demo.repository, *image.blobs)

    async def churn(image: Image) -> None:
        for _ in range(5):
            assert (await client.manifest(image.body, "churn")).status == 201
            assert (await client.ask("DELETE", f"manifests/{image.digest}")).status == 202
            assert await client.status("HEAD", f"manifests/{image.digest}") == 404

    await asyncio.gather(*(churn(image) for image in images))
    assert await client.status("HEAD", "manifests/churn") == 404
    counters = await demo.running.owner.fetch(
        "select l.in_latest, l.in_any from repository_blob l join blob b on b.id = l.blob where b.digest = any ($1::text[])",
        [sha256(blob) for image in images for blob in image.blobs],
    )
    assert {row["in_latest"] for row in counters} == {0}
    assert all(row["in_any"] > 0 for row in counters)


async def test_what_was_deleted_here_is_not_read_by_way_of_another_repository(
    demo: Demo, client: Pusher, database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    """The bytes stay for the other repository, in every cache: that gives nobody a way to them by this name."""
    other = await contents.make_repository(demo.running.owner, name="other")
    await contents.push(demo.running.owner, other, "latest", demo.image, s3=demo.running.store)
    elsewhere = await pusher(demo.running, "r/demo/other")
    async with services.running(database, s3, tmp_path / "keys") as second:
        replicas = [client, Pusher(second.http, second.url, "demo/app", client.headers)]
        digests = [f"manifests/{demo.image.digest}", *(f"blobs/{sha256(blob)}" for blob in demo.image.blobs)]
        for replica in replicas:
            assert [await replica.status("GET", path) for path in digests] == [200] * 4
        assert (await client.ask("DELETE", f"manifests/{demo.image.digest}")).status == 202
        for replica in replicas:
            assert [await elsewhere.status("GET", path) for path in digests] == [200] * 4
            for method in ("GET", "HEAD"):
                assert [await replica.status(method, path) for path in digests] == [404] * 4
