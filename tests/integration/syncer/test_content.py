"""What a run makes of upstream content, and how little it asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.sync import push_blob
from entrepot.db import pool
from tests.integration.syncer.conftest import Mirror, make_repository
from tests.upstreams.docker_registry import running_docker_registry
from tests.upstreams.images import OCI_LAYER, digest_of
from tests.upstreams.server import Upstream, answers


async def test_tags_images_and_nested_indexes_arrive_byte_exact_in_one_version(
    mirror: Mirror, upstream: Upstream
) -> None:
    content = upstream.content()
    shared = content.add_image("v1", labels={"a": "b"})
    children = [shared, content.add_image(None, architecture="arm64")]
    inner = content.add_index(None, children)
    content.add_index("nested", [inner, content.add_index("multi", children)])
    content.tags["also-v1"] = content.tags["v1"]
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["version"], row["added"]) == ("Synced", 1, 4)
    assert await mirror.tags() == content.tags
    stored = await mirror.owner.fetch(
        "select m.digest, m.body, m.media_type, m.kind, m.architecture, m.labels from manifest m join repository_manifest r on r.manifest = m.id"
    )
    assert {r["digest"]: bytes(r["body"]) for r in stored} == {d: body for d, (_, body) in content.manifests.items()}
    image = next(r for r in stored if r["digest"] == shared["digest"])
    assert (image["kind"], image["architecture"], json.loads(image["labels"])) == ("image", "amd64", {"a": "b"})
    assert await mirror.check_everything_stored() == len(content.blobs)
    assert await mirror.leftovers() == 0
    for what in ("tags", "manifests", "blobs", "bytes"):
        assert row[f"{what}_done"] == row[f"{what}_total"] > 0, what
    assert row["bytes_transferred"] == sum(len(b) for b in content.blobs.values() if isinstance(b, bytes))
    counts = upstream.counts()
    assert counts == {
        "GET tags": 1,
        "HEAD manifests": 4,
        "GET manifests": len(content.manifests),
        "GET blobs": len(content.blobs),
    }


async def test_a_second_run_asks_for_the_list_one_head_a_tag_and_one_token(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    for number in range(23):
        content.add_image(f"v{number}")
    upstream.auth, upstream.page_size, upstream.password = "token", 10, ""
    upstream.username = ""
    assert (await mirror.sync(upstream))["outcome"] == "Synced"
    upstream.seen.clear()
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["version"], row["bytes_transferred"]) == ("NoChange", None, 0)
    # The first page is asked for twice: without a token, and with one.
    assert upstream.counts() == {"GET tags": 4, "HEAD manifests": 23, "GET token": 1}
    assert await mirror.latest() == 1


async def test_only_what_moved_is_fetched_and_removed_tags_stay(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    for name in ("a", "b", "c"):
        content.add_image(name)
    await mirror.sync(upstream)
    before = dict(content.tags)
    del content.tags["a"]
    content.add_image("b", layers=[b"new layer" * 9000])
    upstream.seen.clear()
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["version"], row["added"], row["removed"]) == ("Synced", 2, 1, 1)
    assert await mirror.tags() == {"a": before["a"], "b": content.tags["b"], "c": before["c"]}
    assert upstream.counts() == {"GET tags": 1, "HEAD manifests": 2, "GET manifests": 1, "GET blobs": 2}


async def test_filters_select_and_exact_names_need_no_list(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    for name in ("1.0", "1.1", "1.1-rc", "2.0"):
        content.add_image(name)
    row = await mirror.sync(upstream, includeTags=["1.*"], excludeTags=["*-rc"])
    assert row["outcome"] == "Synced"
    assert set(await mirror.tags()) == {"1.0", "1.1"}
    upstream.seen.clear()
    untagged = content.add_image(None)["digest"]
    row = await mirror.sync(upstream, includeTags=["2.0", "unknown", untagged])
    assert (row["outcome"], row["tags_total"]) == ("Synced", 3)
    assert set(await mirror.tags()) == {"1.0", "1.1", "2.0"}
    assert upstream.counts()["GET tags"] == 0
    assert await mirror.owner.fetchval("select count(*) from repository_manifest") == 4
    row = await mirror.sync(upstream, includeTags=["nothing-*"])
    assert (row["outcome"], row["message"]) == ("NoChange", "the upstream has no tag that the filters select")


async def test_a_wrong_filter_names_itself(mirror: Mirror, upstream: Upstream) -> None:
    upstream.content().add_image("v1")
    row = await mirror.sync(upstream, includeTags=["sha256:short"])
    assert (row["outcome"], row["reason"]) == ("Failed", "InvalidFilter")
    assert "'short' is not" in row["message"]


async def test_blobs_of_the_namespace_are_linked_and_others_are_fetched_again(
    mirror: Mirror, upstream: Upstream
) -> None:
    content = upstream.content()
    content.add_image("v1")
    await mirror.sync(upstream)
    fetched = len(content.blobs)
    mirror.repository = await make_repository(mirror.owner, namespace="team", name="second")
    upstream.seen.clear()
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["bytes_transferred"]) == ("Synced", 0)
    assert upstream.counts()["GET blobs"] == 0
    assert row["blobs_done"] == row["blobs_total"] == fetched
    await mirror.check_everything_stored()
    mirror.repository = await make_repository(mirror.owner, namespace="strangers", name="third")
    upstream.seen.clear()
    row = await mirror.sync(upstream)
    assert row["outcome"] == "Synced"
    assert upstream.counts()["GET blobs"] == fetched
    assert await mirror.check_everything_stored() == fetched, "stored once for all"
    assert await mirror.leftovers() == 0


async def test_a_blob_in_a_strangers_namespace_is_not_given_to_who_only_names_it(
    mirror: Mirror, upstream: Upstream
) -> None:
    content = upstream.content()
    content.add_image("v1")
    await mirror.sync(upstream)
    secret = content.layers_of("v1")[1]
    size = len(content.blobs[secret])  # type: ignore[arg-type]
    mirror.repository = await make_repository(mirror.owner, namespace="strangers", name="thief")
    thief = upstream.content("app/thief")
    thief.add_image("w1", extra_layers=[{"mediaType": OCI_LAYER, "digest": secret, "size": size}])
    row = await mirror.sync(upstream, name="app/thief")
    assert (row["outcome"], row["reason"]) == ("Failed", "BlobNotFound")
    assert await mirror.tags() == {}
    linked = await mirror.owner.fetchval(
        "select count(*) from repository_blob l join blob b on b.id = l.blob where l.repository = $1 and b.digest = $2",
        mirror.repository, secret,
    )  # fmt: skip
    assert linked == 0


async def test_foreign_layers_are_named_and_never_fetched(mirror: Mirror, upstream: Upstream) -> None:
    async with Upstream() as elsewhere:
        layer = {
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "digest": digest_of(b"windows"),
            "size": 7,
            "urls": [f"{elsewhere.url}/windows"],
        }
        upstream.content().add_image("v1", extra_layers=[layer])
        row = await mirror.sync(upstream)
        assert row["outcome"] == "Synced"
        assert elsewhere.seen == []
    assert not any(digest_of(b"windows") in request.path for request in upstream.seen)
    assert await mirror.owner.fetchval("select count(*) from manifest_blob where is_foreign") == 1


async def test_an_upstream_without_digests_in_head_answers_is_asked_by_get(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    for number in range(3):
        content.add_image(f"v{number}")
    upstream.fault("HEAD", "manifests", answers(405))
    row = await mirror.sync(upstream, downloadConcurrency=1)
    assert row["outcome"] == "Synced"
    assert await mirror.tags() == content.tags
    assert upstream.counts()["HEAD manifests"] == 1


async def test_a_child_that_is_no_manifest_fails_its_index_alone(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    content.add_image("good")
    content.add_index("cache", [{"mediaType": OCI_LAYER, "digest": digest_of(b"x"), "size": 1}])
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["reason"]) == ("Partial", "ManifestUnsupported")
    assert set(await mirror.tags()) == {"good"}


async def test_a_deep_chain_of_indexes_ends(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    child = content.add_image("good")
    for _ in range(12):
        child = content.add_index(None, [child, child])
    content.tags["deep"] = child["digest"]
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["reason"]) == ("Partial", "TooDeep")
    assert set(await mirror.tags()) == {"good"}


async def test_statements_do_not_grow_with_blobs(
    mirror: Mirror, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    original = pool._prepare

    async def listening(connection: Any) -> None:
        await original(connection)
        connection.add_query_logger(lambda record: statements.append(record.query))

    monkeypatch.setattr(pool, "_prepare", listening)
    content = upstream.content()
    for number in range(40):
        content.add_image(
            f"v{number}", layers=[f"layer {number} {i}".encode() * (1 if i % 2 else 4000) for i in range(10)]
        )
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["blobs_done"]) == ("Synced", 440)
    assert await mirror.check_everything_stored() == 440
    writes = [s for s in statements if "insert into blob (digest, size" in s]
    assert 0 < len(writes) <= 30, len(writes)
    assert len(statements) < 350, len(statements)


async def test_a_real_registry_with_indexes_is_mirrored(mirror: Mirror) -> None:
    import aiohttp

    with running_docker_registry() as registry:
        from tests.upstreams.images import Content

        content = Content()
        children = [content.add_image("v1"), content.add_image(None, architecture="arm64")]
        content.add_index("outer", [content.add_index("multi", children)])
        async with aiohttp.ClientSession() as session:
            url = f"{registry.url}/v2/app/web"
            for data in content.blobs.values():
                assert isinstance(data, bytes)
                await push_blob(session, url, data)
            for digest, (media_type, body) in content.manifests.items():
                for reference in [digest, *(tag for tag, target in content.tags.items() if target == digest)]:
                    async with session.put(
                        f"{url}/manifests/{reference}", data=body, headers={"Content-Type": media_type}
                    ) as r:
                        assert r.status == 201, await r.text()
        row = await mirror.sync(registry.url)
        assert row["outcome"] == "Synced", dict(row)
        assert await mirror.tags() == content.tags
        await mirror.check_everything_stored()
        mark = registry.mark()
        assert (await mirror.sync(registry.url))["outcome"] == "NoChange"
        asked = registry.requests(mark)
        assert sorted(method for method, _ in asked) == ["GET", "HEAD", "HEAD", "HEAD"]
