"""Referrers: what refers to a digest in the version that is served, exactly as the specification says it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from entrepot.oci import media_types
from tests import contents, services
from tests.contents import descriptor, sha256
from tests.integration.registry.conftest import Demo
from tests.pushes import Pusher, digest_of, document, pusher

EMPTY = {"mediaType": media_types.OCI_EMPTY, "digest": sha256(b"{}"), "size": 2}
SBOM = "application/vnd.example.sbom"


@pytest.fixture
async def client(demo: Demo) -> Pusher:
    await contents.store(demo.running.owner, demo.repository, b"{}")
    return await pusher(demo.running)


def referrer(demo: Demo, **more: Any) -> bytes:
    subject = descriptor(demo.image.body, media_types.OCI_MANIFEST)
    return document(**{"config": EMPTY, "layers": [EMPTY], "subject": subject, "artifactType": SBOM, **more})


async def put(client: Pusher, body: bytes, reference: str | None = None) -> None:
    got = await client.manifest(body, reference or sha256(body), media_type=json.loads(body)["mediaType"])
    assert got.status == 201, got.body


async def listed(client: Pusher, digest: str, query: str = "") -> list[dict[str, Any]]:
    got = await client.ask("GET", f"referrers/{digest}{query}")
    assert got.status == 200
    assert got.headers.getall("Content-Type") == [media_types.OCI_INDEX]
    body = got.json()
    assert (body["schemaVersion"], body["mediaType"], set(body)) == (2, media_types.OCI_INDEX, {"schemaVersion", "mediaType", "manifests"})  # fmt: skip
    entries: list[dict[str, Any]] = body["manifests"]
    return entries


def digests(entries: list[dict[str, Any]]) -> set[str]:
    return {entry["digest"] for entry in entries}


async def test_entries_say_what_the_specification_asks(demo: Demo, client: Pusher) -> None:
    typed = referrer(demo, annotations={"created": "now"})
    untyped = referrer(demo, artifactType=None, config={**EMPTY, "mediaType": "application/vnd.example.config"})
    index = referrer(demo, mediaType=media_types.OCI_INDEX, config=None, layers=None, manifests=[], artifactType=None)
    index = json.dumps({k: v for k, v in json.loads(index).items() if v is not None}).encode()
    typed_index = json.dumps({**json.loads(index), "artifactType": SBOM}).encode()
    for body in (typed, untyped, index, typed_index):
        await put(client, body)
    entries = {entry["digest"]: entry for entry in await listed(client, demo.image.digest)}
    assert entries == {
        sha256(typed): descriptor(typed, media_types.OCI_MANIFEST, artifactType=SBOM, annotations={"created": "now"}),
        sha256(untyped): descriptor(untyped, media_types.OCI_MANIFEST, artifactType="application/vnd.example.config"),
        sha256(index): descriptor(index, media_types.OCI_INDEX),
        sha256(typed_index): descriptor(typed_index, media_types.OCI_INDEX, artifactType=SBOM),
    }
    head = await client.ask("HEAD", f"referrers/{demo.image.digest}")
    assert (head.status, head.body, head.headers["Content-Type"]) == (200, b"", media_types.OCI_INDEX)


async def test_nothing_is_known_of_an_unknown_digest(demo: Demo, client: Pusher) -> None:
    for digest in (sha256(b"nothing"), digest_of(b"nothing", "sha512"), demo.image.digest):
        assert await listed(client, digest) == []
    for digest in ("sha256:bad", "latest", "md5:" + "0" * 32):
        got = await client.ask("GET", f"referrers/{digest}")
        assert (got.status, got.code) == (400, "DIGEST_INVALID")


async def test_a_referrer_may_come_before_what_it_refers_to(demo: Demo, client: Pusher) -> None:
    later = document(config=EMPTY, layers=[EMPTY], annotations={"comes": "later"})
    for algorithm in ("sha256", "sha512"):
        subject = {"mediaType": media_types.OCI_MANIFEST, "digest": digest_of(later, algorithm), "size": len(later)}
        body = referrer(demo, subject=subject)
        got = await client.manifest(body, sha256(body))
        assert (got.status, got.headers["OCI-Subject"]) == (201, subject["digest"])
        assert digests(await listed(client, digest_of(later, algorithm))) == {sha256(body)}


async def test_the_filter_says_that_it_was_applied(demo: Demo, client: Pusher) -> None:
    other = "application/vnd.example.signature+json;v=1 &?/"
    bodies = {kind: referrer(demo, artifactType=kind) for kind in (SBOM, other)}
    for body in bodies.values():
        await put(client, body)
    for kind, body in bodies.items():
        got = await client.ask("GET", f"referrers/{demo.image.digest}?artifactType={quote(kind, safe='')}")
        assert got.headers["OCI-Filters-Applied"] == "artifactType"
        assert [entry["digest"] for entry in got.json()["manifests"]] == [sha256(body)]
    assert await listed(client, demo.image.digest, "?artifactType=application/vnd.example.none") == []
    unfiltered = await client.ask("GET", f"referrers/{demo.image.digest}")
    assert "OCI-Filters-Applied" not in unfiltered.headers
    assert len(unfiltered.json()["manifests"]) == 2
    assert await client.status("GET", f"referrers/{demo.image.digest}?" + "&".join(["artifactType=a"] * 17)) == 400
    assert await client.status("GET", f"referrers/{demo.image.digest}?artifactType=a%00") == 400


async def test_pages_by_number_and_by_bytes(demo: Demo, client: Pusher, database: Any, s3: Any, tmp_path: Any) -> None:
    bodies = [referrer(demo, annotations={"n": str(n), "x": "x" * (50_000 if n % 4 == 0 else 10)}) for n in range(23)]
    for body in bodies:
        await put(client, body)
    settings: list[dict[str, Any]] = [
        {"referrers_page": 5},
        {"referrers_size": 60_000},
        {"referrers_size": 1},
        {"referrers_page": 23},
    ]
    for limits in settings:
        async with services.running(database, s3, tmp_path / "keys", **limits) as small:
            through = Pusher(small.http, small.url, "demo/app", client.headers)
            path: str | None = f"referrers/{demo.image.digest}?artifactType={quote(SBOM, safe='')}"
            seen: list[str] = []
            pages = 0
            while path is not None:
                got = await through.ask("GET", path)
                assert got.headers["OCI-Filters-Applied"] == "artifactType"
                assert len(got.body) < limits.get("referrers_size", 400_000) + 60_000
                page = [entry["digest"] for entry in got.json()["manifests"]]
                assert 0 < len(page) <= limits.get("referrers_page", 23)
                seen += page
                pages += 1
                link = got.headers.get("Link")
                path = link.removeprefix("<").removesuffix('>; rel="next"') if link else None
            assert seen == sorted(map(sha256, bodies))
            assert pages == {5: 5, 60_000: pages, 1: 23, 23: 1}[next(iter(limits.values()))]
    for last in ("sha256:x", "..%2f..", "%ff"):
        assert await client.status("GET", f"referrers/{demo.image.digest}?last={last}") == 400


async def test_what_old_clients_listed_under_a_tag_is_listed_once(demo: Demo, client: Pusher) -> None:
    with_subject = referrer(demo, annotations={"a": "b"})
    without = document(config=EMPTY, layers=[EMPTY], artifactType="application/vnd.example.old")
    elsewhere = referrer(demo, subject=descriptor(b"else", media_types.OCI_MANIFEST))
    for body in (with_subject, without, elsewhere):
        await put(client, body)
    entries = [descriptor(body, media_types.OCI_MANIFEST) for body in (with_subject, without, elsewhere, b"absent")]
    fallback = document(media_types.OCI_INDEX, manifests=entries)
    await put(client, fallback, demo.image.digest.replace(":", "-"))
    assert digests(await listed(client, demo.image.digest)) == {sha256(with_subject), sha256(without)}
    assert len(await listed(client, demo.image.digest)) == 2
    only = await listed(client, demo.image.digest, "?artifactType=application/vnd.example.old")
    assert only == [descriptor(without, media_types.OCI_MANIFEST, artifactType="application/vnd.example.old")]
    assert (await client.ask("DELETE", f"manifests/{demo.image.digest.replace(':', '-')}")).status == 202
    assert digests(await listed(client, demo.image.digest)) == {sha256(with_subject)}


async def test_only_the_served_version_counts(demo: Demo, client: Pusher) -> None:
    first, second = referrer(demo, annotations={"n": "1"}), referrer(demo, annotations={"n": "2"})
    await put(client, first)
    await demo.running.owner.execute("update distribution set pinned = 2")
    by_name = await pusher(demo.running, "r/demo/app")
    await put(by_name, second)
    assert (await by_name.ask("DELETE", f"manifests/{sha256(first)}")).status == 202
    assert digests(await listed(client, demo.image.digest)) == {sha256(first)}
    assert digests(await listed(by_name, demo.image.digest)) == {sha256(second)}
    elsewhere = await contents.make_repository(demo.running.owner, name="other")
    assert elsewhere
    other = await pusher(demo.running, "r/demo/other")
    assert await listed(other, demo.image.digest) == [], "another repository's referrers are not shown"


async def test_docker_manifests_have_no_subject(demo: Demo, client: Pusher) -> None:
    body = document(
        media_types.DOCKER_MANIFEST, config={**EMPTY, "mediaType": media_types.DOCKER_CONFIG}, layers=[],
        subject=descriptor(demo.image.body, media_types.OCI_MANIFEST),
    )  # fmt: skip
    got = await client.manifest(body, "docker", media_type=media_types.DOCKER_MANIFEST)
    assert got.status == 201
    assert "OCI-Subject" not in got.headers
    assert await listed(client, demo.image.digest) == []


async def test_it_costs_one_statement_and_takes_the_right_to_pull(demo: Demo, client: Pusher) -> None:
    await put(client, referrer(demo))
    before = await demo.running.statements()
    await listed(client, demo.image.digest)
    assert await demo.running.statements() - before == 1
    assert (await demo.running.request("GET", f"/v2/demo/app/referrers/{demo.image.digest}")).status == 401
    await demo.running.owner.execute("update distribution set access = 'Private'")
    assert (await demo.running.get(f"/v2/demo/app/referrers/{demo.image.digest}")).status == 401
    assert len(await listed(client, demo.image.digest)) == 1


async def test_a_deep_graph_of_shared_indexes_is_only_ever_looked_at_one_level_deep(demo: Demo, client: Pusher) -> None:
    """Thirty levels, each listing the one below twice: walked as a tree that would be a thousand million manifests."""
    body = document(media_types.OCI_INDEX, manifests=[])
    for level in range(30):
        entry = descriptor(body, media_types.OCI_INDEX)
        await put(client, body, f"level-{level}")
        subject = {"subject": descriptor(body, media_types.OCI_INDEX)} if level else {}
        body = document(media_types.OCI_INDEX, manifests=[entry, entry], **subject)
    await put(client, body, "top")
    assert (await client.ask("GET", "manifests/top")).body == body
    assert len(await listed(client, sha256(body))) == 0
    assert len(await listed(client, json.loads(body)["manifests"][0]["digest"])) == 1
    assert (await client.ask("DELETE", f"manifests/{sha256(body)}")).status == 202
