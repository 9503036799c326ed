"""PUT of manifests: what is taken, what is refused and why, what it makes, and what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from entrepot.oci import media_types
from tests import contents, services
from tests.contents import Image, descriptor, sha256
from tests.integration.registry.conftest import Demo
from tests.pushes import Pusher, digest_of, document, pusher
from tests.services import Running, until

CONFIG = json.dumps(
    {"os": "linux", "architecture": "arm64", "variant": "v8", "config": {"Labels": {"a": "b"}}}
).encode()
LAYER = b"a layer"


@pytest.fixture
async def client(demo: Demo) -> Pusher:
    """All rights on demo/app, which holds two blobs more: an image config and a layer."""
    await contents.store(demo.running.owner, demo.repository, CONFIG, LAYER)
    return await pusher(demo.running)


def image_document(**more: Any) -> bytes:
    return document(
        **{
            "config": descriptor(CONFIG, media_types.OCI_CONFIG),
            "layers": [descriptor(LAYER, media_types.OCI_LAYER)],
            **more,
        }
    )


def index_document(*images: bytes, **more: Any) -> bytes:
    entries = [descriptor(body, media_types.OCI_MANIFEST) for body in images]
    return document(media_types.OCI_INDEX, manifests=entries, **more)


async def latest(running: Running) -> int:
    return int(await running.owner.fetchval("select latest from repository"))


async def versions(running: Running) -> list[tuple[int, str, str]]:
    rows = await running.owner.fetch("select number, cause_kind, cause_name from version order by number")
    return [(row["number"], row["cause_kind"], row["cause_name"]) for row in rows]


async def is_served(client: Pusher, reference: str, body: bytes, media_type: str = media_types.OCI_MANIFEST) -> bool:
    got = await client.ask("GET", f"manifests/{reference}")
    return (got.status, got.body, got.headers.get("Content-Type")) == (200, body, media_type)


async def test_a_push_by_tag_is_one_version_and_is_served_at_once(demo: Demo, client: Pusher) -> None:
    body = image_document()
    got = await client.manifest(body, "new")
    assert (got.status, got.body) == (201, b"")
    assert got.headers["Docker-Content-Digest"] == sha256(body)
    assert got.headers["Location"] == f"/v2/demo/app/manifests/{sha256(body)}"
    assert got.headers["Entrepot-Version"] == "2"
    assert "OCI-Subject" not in got.headers
    assert "OCI-Tag" not in got.headers
    assert await is_served(client, "new", body)
    assert await is_served(client, got.headers["Location"].rpartition("/")[2], body)
    assert await versions(demo.running) == [(1, "Test", "test"), (2, "Push", "new")]
    row = await demo.running.owner.fetchrow("select * from manifest where digest = $1", sha256(body))
    assert row is not None
    assert (row["kind"], row["os"], row["architecture"], row["variant"]) == ("image", "linux", "arm64", "v8")
    assert row["labels"] == {"a": "b"}


async def test_the_same_push_again_makes_nothing_and_is_answered_alike(demo: Demo, client: Pusher) -> None:
    """Whoever did not see the answer, or not the end of it, may repeat the request."""
    body = image_document()
    first, again = [await client.manifest(body, "new") for _ in range(2)]
    for header in ("Location", "Docker-Content-Digest", "Entrepot-Version"):
        assert first.headers[header] == again.headers[header]
    assert again.status == 201
    assert await latest(demo.running) == 2


async def test_a_push_by_digest_is_a_version_without_a_tag(demo: Demo, client: Pusher) -> None:
    body = image_document()
    got = await client.manifest(body, sha256(body))
    assert (got.status, got.headers["Entrepot-Version"]) == (201, "2")
    assert await is_served(client, sha256(body), body)
    assert (await client.ask("GET", "tags/list")).json()["tags"] == ["latest"]
    assert (await versions(demo.running))[-1] == (2, "Push", sha256(body))


async def test_several_tags_are_one_version(demo: Demo, client: Pusher) -> None:
    body = image_document()
    tags = [f"t{n}" for n in range(32)]
    got = await client.manifest(body, sha256(body), tags=[*tags, "t0"])
    assert (got.status, got.headers["Entrepot-Version"]) == (201, "2")
    assert got.headers.getall("OCI-Tag") == tags
    assert (await client.ask("GET", "tags/list")).json()["tags"] == sorted(["latest", *tags])
    assert all([await is_served(client, tag, body) for tag in tags])


async def test_tags_in_the_query_are_judged_like_others(demo: Demo, client: Pusher) -> None:
    body = image_document()
    for reference, tags in ((sha256(body), ["-no"]), (sha256(body), [f"t{n}" for n in range(33)]), ("new", ["other"])):
        assert (await client.manifest(body, reference, tags=tags)).status == 400
    assert await latest(demo.running) == 1


async def test_sha512_all_through(demo: Demo, client: Pusher) -> None:
    owner = demo.running.owner
    digests = {data: digest_of(data, "sha512") for data in (CONFIG, LAYER)}
    for data, digest in digests.items():
        await owner.execute(
            "with b as (insert into blob (digest, size, inline, stored_at) values ($1, $2, $3, now()) returning id)"
            " insert into repository_blob (repository, blob, size) select $4, id, $2 from b",
            digest, len(data), data, demo.repository,
        )  # fmt: skip
    body = document(
        config={"mediaType": media_types.OCI_CONFIG, "digest": digests[CONFIG], "size": len(CONFIG)},
        layers=[{"mediaType": media_types.OCI_LAYER, "digest": digests[LAYER], "size": len(LAYER)}],
    )
    reference = digest_of(body, "sha512")
    got = await client.manifest(body, reference, tags=["strong"])
    assert (got.status, got.headers["Docker-Content-Digest"]) == (201, reference)
    assert await is_served(client, reference, body)
    assert await is_served(client, "strong", body)
    refused = await client.manifest(body, digest_of(body + b" ", "sha512"))
    assert (refused.status, refused.code) == (400, "DIGEST_INVALID")


async def test_a_digest_that_is_not_the_bodys_is_refused(demo: Demo, client: Pusher) -> None:
    for reference in (sha256(b"else"), "sha256:baddigeststring", "md5:" + "0" * 32):
        got = await client.manifest(image_document(), reference)
        assert (got.status, got.code) == (400, "DIGEST_INVALID")
    assert await latest(demo.running) == 1


EMPTY = {"mediaType": media_types.OCI_EMPTY, "digest": sha256(b"{}"), "size": 2}
URLS = ["https://layers.example.test/1"]
ACCEPTED: dict[str, bytes] = {
    "image": image_document(),
    "no layers": image_document(layers=[]),
    "docker image": document(
        media_types.DOCKER_MANIFEST,
        config=descriptor(CONFIG, media_types.DOCKER_CONFIG), layers=[descriptor(LAYER, media_types.DOCKER_LAYER_GZIP)],
    ),
    "empty docker list": document(media_types.DOCKER_MANIFEST_LIST, manifests=[]),
    "empty index": index_document(),
    "large": image_document(annotations={f"key-{n:03}": "x" * 10_000 for n in range(390)}),
    "custom fields": image_document(**{"org.example": {"deep": [1, None, {"x": 1e3}]}, "Layers": "not these"}),
    "artifact": document(artifactType="application/vnd.example.thing", config=EMPTY, layers=[descriptor(LAYER, "text/plain")]),
    "artifact without layers": document(artifactType="application/vnd.example.thing", config=EMPTY, layers=[EMPTY]),
    "artifact index": index_document(artifactType="application/vnd.example.thing"),
    "missing subject": image_document(subject=descriptor(b"nobody", media_types.OCI_MANIFEST)),
    "index with subject": index_document(subject=descriptor(b"nobody", media_types.OCI_MANIFEST)),
    "data": document(config={**EMPTY, "data": "e30="}, layers=[]),
    "data that lies": document(config={**EMPTY, "data": "e31="}, layers=[]),
    "foreign layer": image_document(
        layers=[descriptor(b"elsewhere", media_types.OCI_NONDISTRIBUTABLE_LAYER_GZIP, urls=URLS)]
    ),
    "foreign layer that is here": image_document(layers=[descriptor(LAYER, media_types.DOCKER_FOREIGN_LAYER_GZIP)]),
    "without mediaType": json.dumps(
        {"schemaVersion": 2, "config": descriptor(CONFIG, media_types.OCI_CONFIG), "layers": []}
    ).encode(),
    "build cache": document(
        media_types.OCI_INDEX,
        manifests=[descriptor(LAYER, media_types.OCI_LAYER_GZIP), descriptor(CONFIG, "application/vnd.buildkit.cacheconfig.v0")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ACCEPTED)
async def test_every_valid_kind_is_taken_and_comes_out_as_it_went_in(demo: Demo, client: Pusher, kind: str) -> None:
    await contents.store(demo.running.owner, demo.repository, b"{}")
    body = ACCEPTED[kind]
    media_type = json.loads(body).get("mediaType", media_types.OCI_MANIFEST)
    for reference in ("new", sha256(body)):
        got = await client.manifest(body, reference, media_type=media_type)
        assert (got.status, got.headers["Docker-Content-Digest"]) == (201, sha256(body))
        subject = json.loads(body).get("subject")
        assert got.headers.get("OCI-Subject") == (subject and subject["digest"])
        assert await is_served(client, reference, body, media_type)
    gone = await client.ask("DELETE", f"manifests/{sha256(body)}")
    assert gone.status == 202


def image_with(**config: Any) -> bytes:
    return image_document(config={**descriptor(CONFIG, media_types.OCI_CONFIG), **config})


SCHEMA1 = json.dumps({"schemaVersion": 1, "name": "demo/app", "tag": "x", "fsLayers": [], "history": []}).encode()
REFUSED: dict[str, tuple[str | None, bytes]] = {
    "nothing": (media_types.OCI_MANIFEST, b""),
    "no JSON": (media_types.OCI_MANIFEST, b"{"),
    "no object": (media_types.OCI_MANIFEST, b"[]"),
    "no UTF-8": (media_types.OCI_MANIFEST, b'{"schemaVersion":2,"x":"\xff"}'),
    "no schemaVersion": (media_types.OCI_MANIFEST, image_document(schemaVersion=None)),
    "another schemaVersion": (media_types.OCI_MANIFEST, image_document(schemaVersion=3)),
    "schema 1 by its type": (media_types.DOCKER_MANIFEST_V1_SIGNED, SCHEMA1),
    "schema 1 as an image": (media_types.OCI_MANIFEST, SCHEMA1),
    "layers and manifests": (media_types.OCI_MANIFEST, image_document(manifests=[])),
    "manifests and layers": (media_types.OCI_INDEX, index_document(layers=[])),
    "a config in an index": (media_types.OCI_INDEX, index_document(config=descriptor(CONFIG, media_types.OCI_CONFIG))),
    "no config": (media_types.OCI_MANIFEST, document(layers=[])),
    "no manifests": (media_types.OCI_INDEX, document(media_types.OCI_INDEX)),
    "an image as an index": (media_types.OCI_INDEX, image_document()),
    "an image as a docker image": (media_types.DOCKER_MANIFEST, image_document()),
    "a docker type that is not named": (media_types.DOCKER_MANIFEST, ACCEPTED["without mediaType"]),
    "an image without mediaType as an index": (media_types.OCI_INDEX, ACCEPTED["without mediaType"]),
    "a Content-Type that says nothing": ("application/json", image_document()),
    "no Content-Type": (None, image_document()),
    "an unknown type": ("application/vnd.example+json", document("application/vnd.example+json")),
    "a bad digest": (media_types.OCI_MANIFEST, image_with(digest="sha256:../../etc")),
    "a negative size": (media_types.OCI_MANIFEST, image_with(size=-1)),
    "a huge size": (media_types.OCI_MANIFEST, image_with(size=2**63)),
    "NUL": (media_types.OCI_MANIFEST, image_document(annotations={"a": "\0"})),
    "half a surrogate": (media_types.OCI_MANIFEST, image_document(annotations={"a": "\ud800"})),
    "too deep": (media_types.OCI_MANIFEST, image_document(x=json.loads("[" * 100 + "]" * 100))),
    "a foreign layer without URLs": (
        media_types.OCI_MANIFEST,
        image_document(layers=[descriptor(b"elsewhere", media_types.OCI_NONDISTRIBUTABLE_LAYER_GZIP)]),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_is_no_valid_manifest_is_refused_and_nothing_is_kept(demo: Demo, client: Pusher, kind: str) -> None:
    media_type, body = REFUSED[kind]
    headers = {"Content-Type": media_type} if media_type else {"Content-Type": ""}
    for reference in ("new", sha256(body)):
        got = await client.ask("PUT", f"manifests/{reference}", headers=headers, data=body)
        assert (got.status, got.code) == (400, "MANIFEST_INVALID"), got.body
    assert await latest(demo.running) == 1
    assert await demo.running.owner.fetchval("select count(*) from manifest") == 1


async def test_bytes_never_change_their_type(demo: Demo, client: Pusher) -> None:
    """CVE-2021-41190: the same bytes under another Content-Type, after they were stored."""
    body = ACCEPTED["without mediaType"]
    assert (await client.manifest(body, "new")).status == 201
    for media_type in (
        media_types.OCI_INDEX,
        media_types.DOCKER_MANIFEST,
        media_types.DOCKER_MANIFEST_LIST,
        "text/html",
    ):
        for reference in ("new", "other", sha256(body)):
            assert (await client.manifest(body, reference, media_type=media_type)).code == "MANIFEST_INVALID"
    assert await is_served(client, "new", body)
    assert await latest(demo.running) == 2


async def test_missing_blobs_are_named(demo: Demo, client: Pusher) -> None:
    layers = [descriptor(data, media_types.OCI_LAYER) for data in (b"absent 2", LAYER, b"absent 1")]
    got = await client.manifest(image_document(layers=layers), "new")
    assert (got.status, got.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert got.json()["errors"][0]["detail"] == [{"digest": sha256(b"absent 2")}, {"digest": sha256(b"absent 1")}]
    assert await latest(demo.running) == 1
    assert await demo.running.owner.fetchval("select count(*) from manifest") == 1


async def test_a_blob_counts_only_where_it_is_linked_stored_and_not_hidden(demo: Demo, client: Pusher) -> None:
    owner, body = demo.running.owner, image_document()
    changes = {
        "hidden": "update repository_blob l set hidden = $1 from blob b where b.id = l.blob and b.digest = $2",
        "quarantined": "update blob set quarantined_at = case when $1 then now() end where digest = $2",
    }
    for change in changes.values():
        await owner.execute(change, True, sha256(LAYER))
        assert (await client.manifest(body, "new")).code == "MANIFEST_BLOB_UNKNOWN"
        await owner.execute(change, False, sha256(LAYER))
    await contents.make_repository(owner, name="other")
    elsewhere = await pusher(demo.running, "r/demo/other")
    assert (await elsewhere.manifest(body, "new")).code == "MANIFEST_BLOB_UNKNOWN"
    assert (await client.manifest(body, "new")).status == 201


async def test_an_index_may_be_sparse_unless_a_setting_says_otherwise(
    demo: Demo, client: Pusher, database: Any, s3: Any, tmp_path: Any
) -> None:
    body = index_document(image_document(), b"absent")
    async with services.running(database, s3, tmp_path / "keys", sparse_indexes=False) as strict:
        whole = Pusher(strict.http, strict.url, "demo/app", client.headers)
        got = await whole.manifest(body, "multi", media_type=media_types.OCI_INDEX)
        assert (got.status, got.code) == (404, "MANIFEST_BLOB_UNKNOWN")
        assert [d["digest"] for d in got.json()["errors"][0]["detail"]] == [sha256(image_document()), sha256(b"absent")]
        assert (await whole.manifest(image_document(), sha256(image_document()))).status == 201
        complete = index_document(image_document())
        assert (await whole.manifest(complete, "whole", media_type=media_types.OCI_INDEX)).status == 201
        nested = document(media_types.OCI_INDEX, manifests=[descriptor(complete, media_types.OCI_INDEX)])
        assert (await whole.manifest(nested, "nested", media_type=media_types.OCI_INDEX)).status == 201
    assert (await client.manifest(body, "multi", media_type=media_types.OCI_INDEX)).status == 201


async def test_foreign_layers_are_never_fetched_and_may_be_pushed_later(demo: Demo, client: Pusher) -> None:
    """A layer that is linked after a manifest named it counts as named, so that the manifest can go again."""
    body = ACCEPTED["foreign layer"]
    assert (await client.manifest(body, "new")).status == 201
    assert await client.status("GET", f"blobs/{sha256(b'elsewhere')}") == 404
    assert (await client.blob(b"elsewhere")).status == 201
    assert await client.status("GET", f"blobs/{sha256(b'elsewhere')}") == 200
    row = await demo.running.owner.fetchrow(
        "select in_latest, in_any, named from repository_blob l join blob b on b.id = l.blob where digest = $1", sha256(b"elsewhere")
    )  # fmt: skip
    assert row is not None
    assert tuple(row) == (1, 1, True)
    assert (await client.ask("DELETE", f"manifests/{sha256(body)}")).status == 202
    assert await client.status("GET", f"blobs/{sha256(b'elsewhere')}") == 404


async def test_hostile_text_comes_out_as_it_went_in(demo: Demo, client: Pusher) -> None:
    hostile = {"org.opencontainers.image.title": "<script>alert(1)</script>", "=cmd|' /C calc'!A0": "\u2028\"'\\&%00"}
    body = image_document(annotations=hostile, subject=descriptor(demo.image.body, media_types.OCI_MANIFEST))
    assert (await client.manifest(body, "new")).status == 201
    assert await is_served(client, "new", body)
    listed = await client.ask("GET", f"referrers/{demo.image.digest}")
    assert listed.json()["manifests"][0]["annotations"] == hostile
    assert listed.headers["X-Content-Type-Options"] == "nosniff"


async def test_who_may_not_push_does_not(demo: Demo, client: Pusher) -> None:
    for actions in (("pull",), ("pull", "delete"), ()):
        other = await pusher(demo.running, "demo/app", *actions) if actions else Pusher(
            demo.running.http, demo.running.url, "demo/app", await demo.running.bearer()
        )  # fmt: skip
        got = await other.manifest(image_document(), "new")
        assert (got.status, got.code) == (401, "UNAUTHORIZED")
        assert 'scope="repository:demo/app:pull,push"' in got.headers["WWW-Authenticate"]
    assert await latest(demo.running) == 1


async def test_mirrors_and_pinned_distributions_take_nothing_and_say_why(demo: Demo, client: Pusher) -> None:
    owner, body = demo.running.owner, image_document()
    by_name = await pusher(demo.running, "r/demo/app")
    requests = [("PUT", "manifests/new"), ("PUT", f"manifests/{sha256(body)}?tag=a"), ("PUT", "manifests/latest"),
                ("DELETE", "manifests/latest"), ("DELETE", f"manifests/{demo.image.digest}")]  # fmt: skip

    async def refusals(through: Pusher) -> set[str]:
        answers = [
            await through.ask(
                m, p, headers={"Content-Type": media_types.OCI_MANIFEST}, data=body if m == "PUT" else None
            )
            for m, p in requests
        ]
        assert {(a.status, a.code) for a in answers} == {(405, "UNSUPPORTED")}
        return {a.json()["errors"][0]["message"] for a in answers}

    await owner.execute("update repository set is_mirror = true")
    assert all("mirror" in message for message in await refusals(client) | await refusals(by_name))
    await owner.execute("update repository set is_mirror = false")
    await owner.execute("update distribution set pinned = 1")
    assert all("pinned to version 1" in message for message in await refusals(client))
    assert await latest(demo.running) == 1
    assert (await by_name.manifest(body, "new")).status == 201
    assert (await client.ask("GET", "manifests/new")).status == 404, "the pinned version goes on being served"


async def test_a_body_that_is_too_large_is_refused_however_it_comes(demo: Demo, client: Pusher) -> None:
    limit = 4 * 1024 * 1024
    exact = image_document(annotations={"x": ""})
    exact = image_document(annotations={"x": "x" * (limit - len(exact))})
    assert len(exact) == limit
    assert (await client.manifest(exact, "exact")).status == 201
    got = await client.manifest(exact + b" ", "new")
    assert (got.status, got.code) == (413, "SIZE_INVALID")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536

    async def dribble() -> AsyncIterator[bytes]:
        for n in range(len(small)):
            yield small[n : n + 1]

    small = image_document()
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    got = await client.ask("PUT", "manifests/new", headers=headers, data=endless())
    assert (got.status, got.code) == (413, "SIZE_INVALID")
    got = await client.ask("PUT", "manifests/new", headers=headers, data=dribble())
    assert got.status == 201


async def test_an_encoded_body_is_refused(demo: Demo, client: Pusher) -> None:
    headers = {"Content-Type": media_types.OCI_MANIFEST, "Content-Encoding": "gzip"}
    got = await client.ask("PUT", "manifests/new", headers=headers, data=image_document())
    assert (got.status, got.code) == (415, "UNSUPPORTED")


async def test_large_manifests_wait_for_room_and_all_get_through(database: Any, s3: Any, tmp_path: Any) -> None:
    async with services.running(database, s3, tmp_path / "keys", manifest_budget=4 * 1024 * 1024) as running:
        repository = await contents.make_repository(running.owner)
        await contents.make_distribution(running.owner, repository)
        await contents.store(running.owner, repository, CONFIG, LAYER)
        client = await pusher(running)
        bodies = [image_document(annotations={"n": str(n), "x": "x" * 1_000_000}) for n in range(12)]
        answers = await asyncio.gather(*(client.manifest(body, f"t{n}") for n, body in enumerate(bodies)))
        assert {answer.status for answer in answers} == {201}
        assert sorted(int(answer.headers["Entrepot-Version"]) for answer in answers) == list(range(1, 13))


async def test_a_client_that_takes_too_long_is_given_up(database: Any, s3: Any, tmp_path: Any) -> None:
    from datetime import timedelta

    async with services.running(
        database, s3, tmp_path / "keys", manifest_timeout=timedelta(milliseconds=200)
    ) as running:
        await contents.make_distribution(running.owner, await contents.make_repository(running.owner))
        client = await pusher(running)
        head = "\r\n".join(
            ["PUT /v2/demo/app/manifests/new HTTP/1.1", f"Host: localhost:{running.registry.port}", "Content-Length: 100",
             f"Content-Type: {media_types.OCI_MANIFEST}", f"Authorization: {client.headers['Authorization']}", "", "{"]
        )  # fmt: skip
        got = await services.raw(running.registry.port, head.encode())
        assert got.startswith(b"HTTP/1.1 408 ")


async def test_a_document_that_finds_no_room_is_503_and_not_the_clients_fault(
    database: Any, s3: Any, tmp_path: Any
) -> None:
    from datetime import timedelta

    async with services.running(
        database, s3, tmp_path / "keys", manifest_timeout=timedelta(seconds=1), manifest_budget=4 * 1024 * 1024
    ) as running:
        await contents.make_distribution(running.owner, await contents.make_repository(running.owner))
        client = await pusher(running)
        head = "\r\n".join(
            ["PUT /v2/demo/app/manifests/new HTTP/1.1", f"Host: localhost:{running.registry.port}", "Content-Length: 1000000",
             f"Content-Type: {media_types.OCI_MANIFEST}", f"Authorization: {client.headers['Authorization']}", "", ""]
        )  # fmt: skip
        slow = head.encode() + b"x" * 200_000
        answers = await asyncio.gather(*(services.raw(running.registry.port, slow, seconds=20) for _ in range(4)))
        assert {answer.split(b" ")[1] for answer in answers} == {b"408", b"503"}
        for answer in answers:
            if answer.startswith(b"HTTP/1.1 503 "):
                assert b'"UNAVAILABLE"' in answer
                assert b"retry-after: " in answer.lower()


async def test_ten_writers_of_one_digest_agree(demo: Demo, client: Pusher) -> None:
    body = image_document()
    answers = await asyncio.gather(*(client.manifest(body, "new" if n % 2 else sha256(body)) for n in range(10)))
    assert {answer.status for answer in answers} == {201}
    assert {answer.headers["Docker-Content-Digest"] for answer in answers} == {sha256(body)}
    assert await latest(demo.running) in {2, 3}
    assert await is_served(client, "new", body)


async def test_of_concurrent_writers_of_a_tag_the_last_wins_and_history_has_all(demo: Demo, client: Pusher) -> None:
    bodies = [image_document(annotations={"n": str(n)}) for n in range(12)]
    answers = await asyncio.gather(*(client.manifest(body, "new") for body in bodies))
    numbers = {int(answer.headers["Entrepot-Version"]): body for answer, body in zip(answers, bodies, strict=True)}
    assert sorted(numbers) == list(range(2, 14))
    assert await is_served(client, "new", numbers[13])
    rows = await demo.running.owner.fetch(
        "select t.added, t.removed, m.digest from tag t join manifest m on m.id = t.manifest where t.name = 'new' order by t.added"
    )
    assert [(r["added"], r["removed"], r["digest"]) for r in rows] == [
        (n, n + 1 if n < 13 else None, sha256(numbers[n])) for n in range(2, 14)
    ]
    steps = await demo.running.owner.fetch("select number from version where is_step order by number")
    assert [row["number"] for row in steps] == list(range(2, 13)), (
        "of pushes that follow each other only the last counts"
    )


async def test_the_same_manifests_in_many_repositories_at_once(demo: Demo) -> None:
    """Writers who share every row but the repository's own wait for each other, and never in a circle."""
    owner = demo.running.owner
    clients = []
    for n in range(6):
        repository = await contents.make_repository(owner, name=f"r{n}")
        await contents.store(owner, repository, CONFIG, LAYER, b"{}")
        clients.append(await pusher(demo.running, f"r/demo/r{n}"))
    kinds = [kind for kind in ACCEPTED if kind != "large"]

    async def push_all(client: Pusher, order: list[str]) -> None:
        for kind in order:
            body = ACCEPTED[kind]
            media_type = json.loads(body).get("mediaType", media_types.OCI_MANIFEST)
            assert (await client.manifest(body, kind.replace(" ", "-"), media_type=media_type)).status == 201

    await asyncio.gather(*(push_all(c, kinds if n % 2 else kinds[::-1]) for n, c in enumerate(clients)))
    assert await owner.fetchval("select count(*) from manifest") == len(kinds) + 1


async def test_another_replica_sees_it_at_once(
    demo: Demo, client: Pusher, database: Any, s3: Any, tmp_path: Any
) -> None:
    async with services.running(database, s3, tmp_path / "keys") as second:
        other = Pusher(second.http, second.url, "demo/app", client.headers)
        for n in range(5):
            body = image_document(annotations={"n": str(n)})
            writer, reader = (client, other) if n % 2 else (other, client)
            assert (await writer.manifest(body, "new")).status == 201
            assert await is_served(reader, "new", body)
            assert (await writer.ask("DELETE", f"manifests/{sha256(body)}")).status == 202
            assert await reader.status("HEAD", "manifests/new") == 404
            assert await reader.status("HEAD", f"manifests/{sha256(body)}") == 404


async def test_what_a_push_costs(demo: Demo, client: Pusher) -> None:
    running = demo.running
    bodies = [image_document(annotations={"n": str(n)}) for n in range(3)]
    before = await running.statements()
    for body in bodies:
        assert (await client.manifest(body, "new")).status == 201
    assert await running.statements() - before == 6, "where it goes, with the config; and the push itself"
    before = await running.statements()
    assert (await client.ask("DELETE", f"manifests/{sha256(bodies[0])}")).status == 202
    assert await running.statements() - before == 2
    before = await running.statements()
    assert (await client.manifest(b"{}", "new")).status == 400
    assert await running.statements() - before == 1, "whether the name takes pushes"


async def test_a_deadlock_is_tried_again(demo: Demo, client: Pusher) -> None:
    """PostgreSQL ends one of two who wait for each other; ours goes on by itself."""
    owner, body = demo.running.owner, image_document()
    await owner.execute("set deadlock_timeout = '30s'")  # so that it is the registry's side that finds the circle
    transaction = owner.transaction()
    await transaction.start()
    await owner.execute(
        "insert into manifest (digest, media_type, kind, size, body) values ($1, $2, 'image', $3, $4)",
        sha256(body), media_types.OCI_MANIFEST, len(body), body,
    )  # fmt: skip
    task = asyncio.create_task(client.manifest(body, "new"))

    async def is_waiting() -> bool:
        return bool(await owner.fetchval("select exists (select from pg_locks where not granted)"))

    await until(is_waiting)
    # The push holds the repository and waits for the manifest; this waits for the repository.
    await owner.execute("select from repository for update")
    await transaction.rollback()
    got = await task
    assert got.status == 201
    assert await is_served(client, "new", body)


async def test_pushing_to_the_repository_by_its_own_name(demo: Demo, client: Pusher) -> None:
    by_name = await pusher(demo.running, "r/demo/app")
    got = await by_name.manifest(image_document(), "new")
    assert got.headers["Location"] == f"/v2/r/demo/app/manifests/{sha256(image_document())}"
    assert await is_served(client, "new", image_document())


async def test_images_of_all_sizes_by_a_plain_client(demo: Demo) -> None:
    client = await pusher(demo.running)
    made: Image = contents.image(b"x" * 100_000, b"small")
    got = await client.image(made, "plain")
    assert (got.status, got.headers["Docker-Content-Digest"]) == (201, made.digest)
    assert await is_served(client, "plain", made.body)


async def test_a_foreign_layer_that_is_pushed_as_its_manifest_comes_or_goes_is_counted_right(
    demo: Demo, client: Pusher
) -> None:
    wrong = (
        "select count(*) from repository_blob l where l.in_latest <> (select count(distinct e.manifest) from manifest_blob e"
        " join repository_manifest m on m.manifest = e.manifest and m.removed is null where e.blob = l.blob)"
    )
    for n in range(12):
        layer = b"foreign %d" % n
        body = image_document(
            layers=[descriptor(layer, media_types.OCI_NONDISTRIBUTABLE_LAYER, urls=URLS)], annotations={"n": str(n)}
        )
        pushed = await asyncio.gather(client.manifest(body, "new"), client.blob(layer), client.blob(b"other %d" % n))
        assert [answer.status for answer in pushed] == [201, 201, 201]
        assert await demo.running.owner.fetchval(wrong) == 0
        gone = await asyncio.gather(client.ask("DELETE", f"manifests/{sha256(body)}"), client.blob(layer))
        assert [answer.status for answer in gone] == [202, 201]
        assert await demo.running.owner.fetchval(wrong) == 0
