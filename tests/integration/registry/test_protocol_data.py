"""The kinds of content that a registry has to take, pushed, listed, pulled, asked for by their subject, and deleted again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest

from entrepot.oci import media_types
from tests import contents
from tests.contents import descriptor, sha256
from tests.pushes import Pusher, digest_of, document

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLE = "application/vnd.example.thing"
OTHER = "application/vnd.example.other"


@dataclass
class Batch:
    """Content to push: blobs, then manifests in order, each with its media type and its tag if it has one."""

    algorithm: str = "sha256"
    blobs: list[bytes] = field(default_factory=list)
    manifests: list[tuple[bytes, str, str | None]] = field(default_factory=list)

    def describe(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        return {**descriptor(data, media_type, **more), "digest": digest_of(data, self.algorithm)}

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        self.blobs.append(data)
        return self.describe(data, media_type, **more)

    def manifest(
        self, *, tag: str | None = None, media_type: str = media_types.OCI_MANIFEST, **fields: Any
    ) -> dict[str, Any]:
        body = document(media_type, **fields)
        self.manifests.append((body, media_type, tag))
        return self.describe(body, media_type)

    def image(
        self, *, tag: str | None = None, architecture: str = "amd64", config: bytes | None = None, **fields: Any
    ) -> dict[str, Any]:
        """An image with a layer of its own."""
        parts: dict[str, Any] = {
            "config": self.blob(
                config if config is not None else json.dumps({"os": "linux", "architecture": architecture}).encode(),
                media_types.OCI_CONFIG,
            ),
            "layers": [self.blob(os.urandom(300), media_types.OCI_LAYER_GZIP)],
        }
        return self.manifest(tag=tag, **{**parts, **fields})

    def index(self, *children: dict[str, Any], tag: str | None = None, **fields: Any) -> dict[str, Any]:
        return self.manifest(tag=tag, media_type=media_types.OCI_INDEX, manifests=list(children), **fields)

    def artifact(self, artifact_type: str = EXAMPLE, *, tag: str | None = None, **fields: Any) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "artifactType": artifact_type,
            "config": self.blob(b"{}", media_types.OCI_EMPTY),
            "layers": [self.blob(os.urandom(100), artifact_type)],
        }
        return self.manifest(tag=tag, **{**parts, **fields})

    def platforms(self) -> list[dict[str, Any]]:
        return [
            {**self.image(architecture=name), "platform": {"os": "linux", "architecture": name}}
            for name in ("amd64", "arm64")
        ]


def uncompressed(batch: Batch) -> None:
    batch.image(tag="v1", layers=[batch.blob(os.urandom(300), media_types.OCI_LAYER)])


def large_manifest(batch: Batch) -> None:
    batch.image(tag="v1", annotations={f"large-{n}": "A" * 10_000 for n in range(390)})


def docker(batch: Batch) -> None:
    config = batch.blob(b'{"os":"linux","architecture":"amd64"}', media_types.DOCKER_CONFIG)
    layer = batch.blob(os.urandom(300), media_types.DOCKER_LAYER_GZIP)
    child = batch.manifest(media_type=media_types.DOCKER_MANIFEST, config=config, layers=[layer])
    batch.manifest(tag="v1", media_type=media_types.DOCKER_MANIFEST_LIST, manifests=[child])


def nested_index(batch: Batch) -> None:
    batch.index(*[batch.index(*batch.platforms()) for _ in range(2)], tag="v1")


def artifact_index(batch: Batch) -> None:
    batch.index(batch.artifact(), batch.artifact(), tag="v1", artifactType=EXAMPLE)


def artifact_without_layers(batch: Batch) -> None:
    batch.artifact(tag="v1", layers=[batch.blob(b"{}", media_types.OCI_EMPTY)])


def data_field(batch: Batch) -> None:
    batch.artifact(tag="v1", config={**batch.blob(b"{}", media_types.OCI_EMPTY), "data": "e30="})


def foreign_layers(batch: Batch) -> None:
    absent = {
        **descriptor(b"absent", media_types.OCI_NONDISTRIBUTABLE_LAYER_GZIP),
        "urls": ["https://store.example.test/blob"],
    }
    batch.image(tag="v1", layers=[absent, batch.blob(os.urandom(300), media_types.OCI_LAYER_GZIP)])


def custom_fields(batch: Batch) -> None:
    config = json.dumps({"os": "linux", "architecture": "amd64", "org.example.more": [1, {"a": None}]}).encode()
    more: dict[str, Any] = {"org.example.more": {"deep": [1.5, "x"]}, "x-more": [[], {}]}
    child = batch.manifest(config=batch.blob(config, media_types.OCI_CONFIG), layers=[], **more)
    batch.manifest(tag="v1", media_type=media_types.OCI_INDEX, manifests=[child], **more)


def empty_blobs(batch: Batch) -> None:
    batch.image(tag="v1", layers=[batch.blob(b"", EXAMPLE), batch.blob(b"{}", media_types.OCI_EMPTY)])


CONTENT: dict[str, Callable[[Batch], Any]] = {
    "image": lambda batch: batch.image(tag="v1"),
    "uncompressed image": uncompressed,
    "large manifest": large_manifest,
    "Docker's own types": docker,
    "index": lambda batch: batch.index(*batch.platforms(), tag="v1"),
    "nested index": nested_index,
    "empty index": lambda batch: batch.index(tag="v1"),
    "artifact": lambda batch: batch.artifact(tag="v1"),
    "artifact index": artifact_index,
    "artifact without layers": artifact_without_layers,
    "data in a descriptor": data_field,
    "layers that are elsewhere": foreign_layers,
    "fields of its own": custom_fields,
    "no layers": lambda batch: batch.image(tag="v1", layers=[]),
    "blobs of nothing": empty_blobs,
}


async def push_all(client: Pusher, batch: Batch) -> list[str]:
    """Push everything, by digest first and then by tag; gives the manifests' digests."""
    digests = []
    for blob in batch.blobs:
        assert (await client.blob(blob, algorithm=batch.algorithm)).status == 201
    for body, media_type, tag in batch.manifests:
        digest = digest_of(body, batch.algorithm)
        done = await client.manifest(body, digest, media_type=media_type)
        assert done.status == 201, done.body
        if tag is not None and batch.algorithm == "sha256":
            assert (await client.manifest(body, tag, media_type=media_type)).status == 201
        digests.append(digest)
    return digests


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("kind", CONTENT)
async def test_content_of_every_kind_goes_in_comes_out_and_goes_away(one: Pusher, kind: str, algorithm: str) -> None:
    batch = Batch(algorithm)
    CONTENT[kind](batch)
    digests = await push_all(one, batch)
    for (body, media_type, tag), digest in zip(batch.manifests, digests, strict=True):
        for reference in (digest, *([tag] if tag and algorithm == "sha256" else [])):
            got = await one.ask("GET", f"manifests/{reference}", headers={"Accept": media_type})
            assert (got.status, got.body == body, got.headers["Content-Type"]) == (200, True, media_type)
    for blob in batch.blobs:
        assert (await one.ask("GET", f"blobs/{digest_of(blob, algorithm)}")).body == blob
    for digest in reversed(digests):
        assert await one.status("DELETE", f"manifests/{digest}") == 202
        assert await one.status("HEAD", f"manifests/{digest}") == 404
    for blob in batch.blobs:
        path = f"blobs/{digest_of(blob, algorithm)}"
        assert await one.status("DELETE", path) in {202, 404}
        assert await one.status("HEAD", path) == 404
    assert (await one.ask("GET", "tags/list")).json()["tags"] == []


# 12: referrers


async def referrers(client: Pusher, subject: str, artifact_type: str | None = None) -> list[dict[str, Any]]:
    """What refers to a digest; checks the form of the answer."""
    query = f"?artifactType={quote(artifact_type)}" if artifact_type else ""
    got = await client.ask("GET", f"referrers/{subject}{query}")
    assert (got.status, got.headers.getall("Content-Type")) == (200, [media_types.OCI_INDEX])
    assert got.headers.get("OCI-Filters-Applied") == ("artifactType" if artifact_type else None)
    listed = got.json()
    assert (listed["schemaVersion"], listed["mediaType"]) == (2, media_types.OCI_INDEX)
    return list(listed["manifests"])


async def test_12_nothing_refers_to_what_is_not_there_and_what_is_no_digest_is_400(one: Pusher) -> None:
    for algorithm in ("sha256", "sha512"):
        assert await referrers(one, digest_of(b"absent", algorithm)) == []
        assert await referrers(one, digest_of(b"absent", algorithm), EXAMPLE) == []
    bad = await one.ask("GET", "referrers/sha256:bad")
    assert (bad.status, bad.code) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("subject_is", ["an image", "an index", "absent"])
async def test_12_referrers_are_listed_with_their_types_and_by_type(one: Pusher, subject_is: str) -> None:
    batch = Batch()
    if subject_is == "absent":
        subject = descriptor(b"absent", media_types.OCI_MANIFEST)
    else:
        subject = batch.image() if subject_is == "an image" else batch.index(*batch.platforms())
    notes = {"org.example.note": "ä note"}
    wanted = {
        "an image": {**batch.image(subject=subject), "artifactType": media_types.OCI_CONFIG},
        "an artifact": {**batch.artifact(subject=subject, annotations=notes, tag="a"), "artifactType": EXAMPLE, "annotations": notes},
        "another": {**batch.artifact(OTHER, subject=subject), "artifactType": OTHER},
        "an index": batch.index(subject=subject),
        "an index with a type": {**batch.index(subject=subject, artifactType=OTHER, annotations=notes), "artifactType": OTHER, "annotations": notes},
    }  # fmt: skip
    await push_all(one, batch)
    digest = str(subject["digest"])

    def ordered(entries: Any) -> list[dict[str, Any]]:
        return sorted(entries, key=lambda entry: str(entry["digest"]))

    assert ordered(await referrers(one, digest)) == ordered(wanted.values())
    for artifact_type in (EXAMPLE, OTHER, media_types.OCI_CONFIG, "application/vnd.none"):
        matching = [entry for entry in wanted.values() if entry.get("artifactType") == artifact_type]
        assert ordered(await referrers(one, digest, artifact_type)) == ordered(matching)
    # Deleting one takes it off the list at once.
    assert await one.status("DELETE", f"manifests/{wanted['another']['digest']}") == 202
    assert [entry["artifactType"] for entry in await referrers(one, digest, OTHER)] == [OTHER]
    assert await referrers(one, digest, OTHER) == [wanted["an index with a type"]]


async def test_12_a_subject_that_is_deleted_leaves_its_referrers(one: Pusher) -> None:
    batch = Batch()
    subject = batch.image()
    referrer = batch.artifact(subject=subject)
    await push_all(one, batch)
    assert await one.status("DELETE", f"manifests/{subject['digest']}") == 202
    assert [entry["digest"] for entry in await referrers(one, str(subject["digest"]))] == [referrer["digest"]]


async def test_12_many_referrers_come_in_pages(one: Pusher) -> None:
    batch = Batch()
    subject = descriptor(b"absent", media_types.OCI_MANIFEST)
    note = {"note": "x" * 50_000}
    for number in range(100):
        batch.index(subject=subject, artifactType=EXAMPLE, annotations={**note, "number": str(number)})
    digests = await push_all(one, batch)
    seen: list[str] = []
    path = f"referrers/{subject['digest']}"
    pages = 0
    while path:
        page = await one.ask("GET", path)
        assert page.status == 200
        assert len(page.body) <= 4 * 1024 * 1024
        seen += [entry["digest"] for entry in page.json()["manifests"]]
        path, _, relation = page.headers.get("Link", "").removeprefix("<").partition(">")
        assert relation in {"", '; rel="next"'}
        pages += 1
    assert pages > 1
    assert sorted(seen) == sorted(digests)


# Between the rows


async def test_other_types_than_the_stored_one_are_404_by_tag_and_not_asked_about_by_digest(one: Pusher) -> None:
    image = contents.image(b"layer")
    await one.image(image, "v1")
    for accept, status in [
        (media_types.OCI_MANIFEST, 200), ("*/*", 200), (media_types.OCI_INDEX, 404), (media_types.DOCKER_MANIFEST, 404),
        (f"{media_types.DOCKER_MANIFEST}, {media_types.OCI_MANIFEST};q=0.1", 200), (f"{media_types.OCI_MANIFEST};q=0", 404),
    ]:  # fmt: skip
        got = await one.ask("GET", "manifests/v1", headers={"Accept": accept})
        assert got.status == status
        if status == 404:
            assert got.code == "MANIFEST_UNKNOWN"
            assert media_types.OCI_MANIFEST in got.body.decode()
        assert (await one.ask("GET", f"manifests/{image.digest}", headers={"Accept": accept})).status == 200


async def test_the_names_of_upstreams_are_borne_and_ignored(one: Pusher) -> None:
    image = contents.image(b"layer")
    await one.image(image, "v1")
    for path in ("manifests/v1?ns=example.test", f"blobs/{sha256(b'layer')}?ns=example.test"):
        assert await one.status("GET", path) == 200


async def test_an_index_of_what_is_not_here_is_taken(one: Pusher) -> None:
    absent = descriptor(b"absent", media_types.OCI_MANIFEST)
    done = await one.manifest(
        document(media_types.OCI_INDEX, manifests=[absent]), "v1", media_type=media_types.OCI_INDEX
    )
    assert done.status == 201
    assert await one.status("HEAD", f"manifests/{absent['digest']}") == 404


async def test_each_push_is_a_version_that_the_answer_names(one: Pusher) -> None:
    versions = []
    for number in range(3):
        done = await one.image(contents.image(b"layer %d" % number), "v1")
        versions.append(int(done.headers["Entrepot-Version"]))
    assert versions == [1, 2, 3]
    # What changes nothing makes no version.
    assert (await one.image(contents.image(b"layer 2"), "v1")).headers["Entrepot-Version"] == "3"
