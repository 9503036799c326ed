"""The protocol table, row by row: what each endpoint of the distribution specification answers when all is well and when it is not.

Each test is named for its row. Statuses and codes are the specification's own; what a row leaves open, another test of ours decides.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from entrepot.oci import media_types
from tests import contents
from tests.integration.registry.conftest import new_place
from tests.pushes import Pusher, digest_of, document, pusher
from tests.services import Answer, Running, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALGORITHMS = ("sha256", "sha512")
SIZES = (0, 2, 512, 32 * 1024, 32 * 1024 + 1, 300_000)
"""Nothing, `{}`'s, an ordinary one, the last that is kept in PostgreSQL, the first that is not, and one more."""


async def push_blob(client: Pusher, data: bytes, way: str, algorithm: str = "sha256") -> str:
    """Upload in one of the ways that the specification knows; gives the Location of the blob."""
    digest, size, middle = digest_of(data, algorithm), len(data), len(data) // 2
    patched: Answer | None
    if way == "post":
        done = await client.blob(data, algorithm=algorithm)
    elif way == "post, put":
        done = await client.finish(await client.begin(), digest, data)
    else:
        location, patched = await client.begin(), None
        if way == "streamed":
            patched, arrived = await client.patch(location, _pieces(data)), size
        elif middle:
            patched, arrived = await client.patch(location, data[:middle], at=0), middle
        if patched is not None:
            assert (patched.status, patched.headers["Range"]) == (202, f"0-{max(0, arrived - 1)}")
            location = patched.headers["Location"]
        if way == "chunks, put the last":
            done = await client.finish(location, digest, data[middle:], at=middle if data[middle:] else None)
        else:
            if way == "chunks" and data:
                patched = await client.patch(location, data[middle:], at=middle)
                assert (patched.status, patched.headers["Range"]) == (202, f"0-{len(data) - 1}")
                location = patched.headers["Location"]
            done = await client.finish(location, digest)
    assert (done.status, done.body) == (201, b""), done.body
    assert done.headers["Docker-Content-Digest"] == digest
    return str(done.headers["Location"])


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


# 1: GET /v2/


async def test_1_the_base_is_200_with_a_token_and_401_without(one: Pusher, shared: Running) -> None:
    assert (await one.ask("GET", "/v2/")).status == 200
    refused = await shared.request("GET", "/v2/")
    assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
    assert refused.headers["WWW-Authenticate"].startswith("Bearer realm=")


# 2, 4a, 4b, 5, 6: a blob, by every way of pushing it


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("way", ["post", "post, put", "streamed", "chunks", "chunks, put the last"])
async def test_2_4_5_6_a_pushed_blob_is_there_at_once_whole_and_by_head(one: Pusher, way: str, algorithm: str) -> None:
    for size in SIZES:
        data = os.urandom(size)
        location = await push_blob(one, data, way, algorithm)
        for path in (location, f"blobs/{digest_of(data, algorithm)}"):
            got = await one.ask("GET", path)
            assert (got.status, got.body == data, got.headers["Content-Length"]) == (200, True, str(size)), (way, size)
            head = await one.ask("HEAD", path)
            assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(size))
            assert {a.headers["Docker-Content-Digest"] for a in (got, head)} == {digest_of(data, algorithm)}


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("500-1499", 500, 1499), ("500-", 500, 2047), ("-500", 1548, 2047), ("2000-5000", 2000, 2047), ("500-0", None, None), ("5000-10000", None, None)],
)  # fmt: skip
async def test_2_a_range_of_a_blob(one: Pusher, asked: str, start: int | None, end: int | None) -> None:
    data = os.urandom(2048)
    await one.blob(data)
    got = await one.ask("GET", f"blobs/{digest_of(data)}", headers={"Range": f"bytes={asked}"})
    if start is None or end is None:
        assert (got.status, got.headers["Content-Range"]) == (416, "bytes */2048")
        return
    assert (got.status, got.body == data[start : end + 1]) == (206, True)
    assert got.headers["Content-Range"] == f"bytes {start}-{end}/2048"
    assert got.headers["Content-Length"] == str(end - start + 1)


async def test_2_3_what_is_not_there_is_404_and_what_is_no_digest_is_400(one: Pusher) -> None:
    for algorithm in ALGORITHMS:
        absent = digest_of(b"absent", algorithm)
        for kind, code in (("blobs", "BLOB_UNKNOWN"), ("manifests", "MANIFEST_UNKNOWN")):
            got = await one.ask("GET", f"{kind}/{absent}")
            assert (got.status, got.code) == (404, code)
            assert await one.status("HEAD", f"{kind}/{absent}") == 404
            bad = await one.ask("GET", f"{kind}/sha256:baddigeststring")
            assert (bad.status, bad.code) == (400, "DIGEST_INVALID")
    # What cannot be a tag is not there either; only who would make it one is told that it cannot be.
    for reference in ("absent", ".not-a-tag", "x" * 129):
        assert await one.status("HEAD", f"manifests/{reference}") == 404
        assert (await one.ask("GET", f"manifests/{reference}")).code == "MANIFEST_UNKNOWN"


# 3, 7a: a manifest


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_3_7_a_pushed_manifest_comes_back_byte_for_byte(one: Pusher, by: str, algorithm: str) -> None:
    image = contents.image(b"layer " * 100)
    for blob in image.blobs:
        await one.blob(blob)
    # The spaces are the point: nothing is written anew.
    body = b"\n " + image.body + b" \n"
    digest = digest_of(body, algorithm if by == "digest" else "sha256")
    done = await one.manifest(body, "v1" if by == "tag" else digest)
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, digest)
    assert "OCI-Subject" not in done.headers
    for path in (done.headers["Location"], f"manifests/{digest}", *(["manifests/v1"] if by == "tag" else [])):
        got, head = await one.ask("GET", path), await one.ask("HEAD", path)
        assert (got.status, got.body, head.status, head.body) == (200, body, 200, b"")
        for answer in (got, head):
            assert answer.headers.getall("Content-Type") == [media_types.OCI_MANIFEST]
            assert answer.headers["Content-Length"] == str(len(body))
            assert answer.headers["Docker-Content-Digest"] == digest


async def test_7_a_manifest_under_another_digest_is_400_and_is_not_stored(one: Pusher) -> None:
    image = contents.image(b"layer")
    for blob in image.blobs:
        await one.blob(blob)
    for reference in (digest_of(b"another"), digest_of(b"another", "sha512")):
        got = await one.manifest(image.body, reference)
        assert (got.status, got.code) == (400, "DIGEST_INVALID")
        assert await one.status("HEAD", f"manifests/{reference}") == 404
    assert await one.status("HEAD", f"manifests/{image.digest}") == 404
    assert (await one.manifest(image.body, "sha256:baddigeststring")).status == 400


async def test_7_a_manifest_whose_blobs_are_not_there_is_404_and_is_not_stored(one: Pusher) -> None:
    image = contents.image(b"layer")
    await one.blob(image.config)
    for reference in ("v1", image.digest):
        got = await one.manifest(image.body, reference)
        assert (got.status, got.code) == (404, "MANIFEST_BLOB_UNKNOWN")
        assert contents.sha256(image.layers[0]) in got.body.decode()
        assert await one.status("HEAD", f"manifests/{reference}") == 404
    await one.blob(image.layers[0])
    assert (await one.manifest(image.body, "v1")).status == 201


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", media_types.OCI_MANIFEST),
        (b"no JSON", media_types.OCI_MANIFEST),
        (b"[]", media_types.OCI_MANIFEST),
        (b"{}", media_types.OCI_MANIFEST),
        (document(config=contents.descriptor(b"{}", media_types.OCI_CONFIG), layers=[], manifests=[]), media_types.OCI_MANIFEST),
        (document(media_types.OCI_INDEX, manifests=[]), media_types.OCI_MANIFEST),
        (document(media_types.OCI_INDEX), media_types.OCI_INDEX),
        (b'{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[],"history":[]}', media_types.DOCKER_MANIFEST),
    ],
)  # fmt: skip
async def test_7_what_is_no_manifest_is_400(one: Pusher, body: bytes, media_type: str) -> None:
    got = await one.manifest(body, "bad", media_type=media_type)
    assert (got.status, got.code) == (400, "MANIFEST_INVALID")
    assert await one.status("HEAD", "manifests/bad") == 404


async def test_7_a_manifest_of_more_than_4_mib_is_413_with_and_without_a_length(one: Pusher) -> None:
    body = document(media_types.OCI_INDEX, manifests=[], annotations={"a": "x" * 4 * 1024 * 1024})
    headers = {"Content-Type": media_types.OCI_INDEX}
    for data in (body, _pieces(body)):
        got = await one.ask("PUT", "manifests/large", headers=headers, data=data)
        assert got.status == 413
        assert got.code in {"SIZE_INVALID", "MANIFEST_INVALID"}
    assert await one.status("HEAD", "manifests/large") == 404


async def test_7_a_subject_is_acknowledged_whether_it_is_there_or_not(one: Pusher) -> None:
    subject = contents.descriptor(b"absent", media_types.OCI_MANIFEST)
    image = contents.image(b"layer", subject=subject)
    done = await one.image(image, "signed")
    assert (done.status, done.headers["OCI-Subject"]) == (201, subject["digest"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_7b_tags_given_as_parameters_are_set_together_and_acknowledged(one: Pusher, algorithm: str) -> None:
    image = contents.image(b"layer")
    for blob in image.blobs:
        await one.blob(blob)
    digest, tags = digest_of(image.body, algorithm), [f"v{n}" for n in range(12)]
    done = await one.manifest(image.body, digest, tags=tags)
    assert done.status == 201
    acknowledged = {tag.strip() for value in done.headers.getall("OCI-Tag") for tag in value.split(",")}
    assert acknowledged == set(tags)
    for tag in tags:
        assert (await one.ask("HEAD", f"manifests/{tag}")).headers["Docker-Content-Digest"] == digest
    for tag in ("-bad", "", "x" * 129):
        assert (await one.manifest(image.body, digest, tags=["good", tag])).status == 400
    assert await one.status("HEAD", "manifests/good") == 404


# 4: the ways in


async def test_4a_an_upload_has_a_location_in_its_repository(one: Pusher) -> None:
    got = await one.ask("POST", "blobs/uploads/")
    assert (got.status, got.headers["Range"]) == (202, "0-0")
    assert f"/v2/{one.name}/blobs/uploads/" in got.headers["Location"]


@pytest.mark.parametrize("digest", ["sha256:baddigeststring", "md5:" + "0" * 32, "sha256:" + "A" * 64, "", "latest"])
async def test_4b_6_a_blob_under_what_is_no_digest_is_400(one: Pusher, digest: str) -> None:
    for got in (
        await one.ask("POST", f"blobs/uploads/?digest={digest}", data=b"data"),
        await one.finish(await one.begin(), digest, b"data"),
    ):
        assert (got.status, got.code) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [100, 100_000])
async def test_4b_6_a_blob_that_is_not_what_its_digest_says_is_400_and_not_there(
    one: Pusher, size: int, algorithm: str
) -> None:
    data = os.urandom(size)
    digest, other = digest_of(data, algorithm), data + b"oh no"
    location = await one.begin()
    patched = await one.patch(location, other)
    for got in (
        await one.ask("POST", f"blobs/uploads/?digest={digest}", data=other),
        await one.finish(await one.begin(), digest, other),
        await one.finish(patched.headers["Location"], digest),
    ):
        assert (got.status, got.code) == (400, "DIGEST_INVALID")
        assert await one.status("HEAD", f"blobs/{digest}") == 404


async def test_4c_the_algorithm_may_be_told_beforehand(one: Pusher) -> None:
    data = os.urandom(1000)
    location = await one.begin(**{"digest-algorithm": "sha512"})
    assert (await one.finish(location, digest_of(data, "sha512"), data)).status == 201
    refused = await one.ask("POST", "blobs/uploads/?digest-algorithm=md5")
    assert (refused.status, refused.code) == (400, "DIGEST_INVALID")


async def test_4_7_what_is_no_name_is_400_and_a_name_of_nothing_is_404_or_401(one: Pusher, shared: Running) -> None:
    for method, path in (("POST", "/v2/Demo/app/blobs/uploads/"), ("PUT", "/v2/demo/-app/manifests/x")):
        got = await one.ask(method, path)
        assert (got.status, got.code) == (400, "NAME_INVALID")
    nobody = await pusher(shared, "demo/nothing")
    assert (await nobody.ask("POST", "blobs/uploads/")).status in {401, 404}
    assert (await one.ask("PUT", "manifests/-bad", data=b"{}")).status == 400


# 5, 6, 13, 14: upload sessions


@pytest.mark.parametrize("last", ["patch", "put"])
async def test_5_6_13_a_chunk_out_of_order_is_416_and_the_upload_goes_on(one: Pusher, last: str) -> None:
    data = os.urandom(3000)
    digest = digest_of(data)
    location = await one.begin()
    early = await one.patch(location, data[1000:2000], at=1000)
    assert early.status == 416
    standing = await one.ask("GET", location)
    assert (standing.status, standing.headers["Range"], standing.body) == (204, "0-0", b"")
    first = await one.patch(standing.headers["Location"], data[:1000], at=0)
    assert (first.status, first.headers["Range"]) == (202, "0-999")
    location = first.headers["Location"]
    for start, end in ((0, 1000), (2000, 3000), (999, 1999)):
        if last == "put":
            wrong = await one.finish(location, digest, data[start:end], at=start)
        else:
            wrong = await one.patch(location, data[start:end], at=start)
        assert wrong.status == 416
        standing = await one.ask("GET", location)
        assert (standing.status, standing.headers["Range"]) == (204, "0-999")
        location = standing.headers["Location"]
    assert (await one.finish(location, digest, data[1000:], at=1000)).status == 201
    assert (await one.ask("GET", f"blobs/{digest}")).body == data


async def test_5_a_chunk_that_is_not_as_long_as_it_says_is_refused(one: Pusher) -> None:
    location = await one.begin()
    for size in (10, 2000):
        got = await one.patch(location, b"x" * 1000, at=0, size=size)
        assert got.status in {400, 416}
    assert (await one.ask("GET", location)).headers["Range"] == "0-0"
    for text in ("a-b", "5-1", "bytes=0-5", "-1-5", "0-" + "9" * 30):
        got = await one.ask("PATCH", location, headers={"Content-Range": text}, data=b"x" * 6)
        assert got.status in {400, 416}


async def test_14_a_cancelled_upload_is_gone(one: Pusher) -> None:
    location = await one.begin()
    await one.patch(location, b"x" * 1000)
    cancelled = await one.ask("DELETE", location)
    assert (cancelled.status, cancelled.body) == (204, b"")
    for got in (
        await one.ask("GET", location),
        await one.patch(location, b"y"),
        await one.finish(location, digest_of(b"x" * 1000)),
        await one.ask("DELETE", location),
    ):
        assert (got.status, got.code) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("identity", ["nothing", "0" * 32, "%2e%2e", "a%2fb", "x" * 500])
async def test_5_6_13_14_an_upload_that_never_was_is_404(one: Pusher, identity: str) -> None:
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        got = await one.ask(method, f"blobs/uploads/{identity}?digest={digest_of(b'')}")
        assert got.status in {400, 404}
        assert got.code in {"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "NAME_INVALID"}


# 8: tags


async def test_8_tags_are_listed_in_byte_order_after_last_and_in_pages_of_n(one: Pusher) -> None:
    assert (await one.ask("GET", "tags/list")).json() == {"name": one.name, "tags": []}
    tags = ["1.10", "1.9", "A", "_x", "a", "b", "latest"]
    image = contents.image(b"layer")
    for reference in reversed(tags):
        assert (await one.image(image, reference)).status == 201
    listed = await one.ask("GET", "tags/list")
    assert (listed.status, listed.json()) == (200, {"name": one.name, "tags": tags})
    assert (await one.ask("GET", "tags/list?last=A")).json()["tags"] == tags[3:]
    none = await one.ask("GET", "tags/list?n=0")
    assert (none.status, none.json()["tags"], "Link" in none.headers) == (200, [], False)
    seen: list[str] = []
    path = "tags/list?n=2"
    while path:
        page = await one.ask("GET", path)
        seen += page.json()["tags"]
        path, _, relation = page.headers.get("Link", "").removeprefix("<").partition(">")
        assert relation in {"", '; rel="next"'}
    assert seen == tags


# 9, 10: deleting


async def test_9_a_deleted_tag_is_gone_at_once_and_its_manifest_is_not(one: Pusher) -> None:
    image = contents.image(b"layer")
    for tag in ("a", "b"):
        await one.image(image, tag)
    assert (await one.ask("DELETE", "manifests/a")).status == 202
    assert await one.status("HEAD", "manifests/a") == 404
    assert (await one.ask("GET", "tags/list")).json()["tags"] == ["b"]
    assert await one.status("HEAD", f"manifests/{image.digest}") == 200
    again = await one.ask("DELETE", "manifests/a")
    assert (again.status, again.code) == (404, "MANIFEST_UNKNOWN")


async def test_9_a_deleted_manifest_is_gone_at_once_with_its_tags(one: Pusher) -> None:
    image = contents.image(b"layer")
    for tag in ("a", "b"):
        await one.image(image, tag)
    assert (await one.ask("DELETE", f"manifests/{image.digest}")).status == 202
    for reference in (image.digest, "a", "b"):
        assert await one.status("HEAD", f"manifests/{reference}") == 404
        assert await one.status("GET", f"manifests/{reference}") == 404
    assert (await one.ask("GET", "tags/list")).json()["tags"] == []
    assert (await one.ask("DELETE", f"manifests/{image.digest}")).code == "MANIFEST_UNKNOWN"
    # What was deleted can be pushed again.
    assert (await one.image(image, "a")).status == 201
    assert await one.status("HEAD", "manifests/a") == 200


async def test_10_a_deleted_blob_is_gone_at_once_and_only_here(one: Pusher, shared: Running) -> None:
    two = await pusher(shared, await new_place(shared))
    for data in (b"small", os.urandom(100_000)):
        path = f"blobs/{digest_of(data)}"
        await one.blob(data)
        await two.blob(data)
        assert (await one.ask("DELETE", path)).status == 202
        for method in ("HEAD", "GET"):
            assert await one.status(method, path) == 404
        assert (await two.ask("GET", path)).body == data
        again = await one.ask("DELETE", path)
        assert (again.status, again.code) == (404, "BLOB_UNKNOWN")
        assert (await one.blob(data)).status == 201
        assert (await one.ask("GET", path)).body == data


async def test_10_a_blob_that_an_image_needs_is_not_deleted(one: Pusher) -> None:
    image = contents.image(b"layer")
    await one.image(image, "v1")
    path = f"blobs/{contents.sha256(b'layer')}"
    refused = await one.ask("DELETE", path)
    assert (refused.status, refused.code) == (405, "UNSUPPORTED")
    assert (await one.ask("GET", path)).body == b"layer"
    await one.ask("DELETE", f"manifests/{image.digest}")
    assert (await one.ask("DELETE", path)).status in {202, 404}
    assert await one.status("HEAD", path) == 404


# 11: mounting


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [500, 100_000])
async def test_11_a_blob_is_mounted_from_where_the_client_may_pull(shared: Running, size: int, algorithm: str) -> None:
    name = await new_place(shared)
    source = await pusher(shared, name)
    client = await pusher(shared, await new_place(shared), "pull", "push", more={name: ("pull",)})
    data = os.urandom(size)
    digest = digest_of(data, algorithm)
    await source.blob(data, algorithm=algorithm)
    mounted = await client.ask("POST", f"blobs/uploads/?mount={digest}&from={name}")
    assert (mounted.status, mounted.headers["Docker-Content-Digest"]) == (201, digest)
    assert (await client.ask("GET", mounted.headers["Location"])).body == data


async def test_11_what_is_absent_is_not_mounted_but_can_be_uploaded_instead(shared: Running) -> None:
    name = await new_place(shared)
    client = await pusher(shared, await new_place(shared), "pull", "push", more={name: ("pull",)})
    data = b"not anywhere yet"
    got = await client.ask("POST", f"blobs/uploads/?mount={digest_of(data)}&from={name}")
    assert got.status == 202
    assert (await client.finish(got.headers["Location"], digest_of(data), data)).status == 201
    bad = await client.ask("POST", f"blobs/uploads/?mount=sha256:bad&from={name}")
    assert bad.status in {202, 400}


@pytest.mark.parametrize("access", ["Public", "Private"])
async def test_11_a_mount_that_names_no_source_finds_what_the_client_may_pull_and_nothing_else(
    shared: Running, access: str
) -> None:
    source = await pusher(shared, await new_place(shared, access=access))
    client = await pusher(shared, await new_place(shared), "pull", "push")
    data = os.urandom(600)
    await source.blob(data)
    got = await client.ask("POST", f"blobs/uploads/?mount={digest_of(data)}")
    assert got.status == (201 if access == "Public" else 202)
    assert await client.status("HEAD", f"blobs/{digest_of(data)}") == (200 if access == "Public" else 404)


async def test_11_a_token_that_does_not_speak_of_the_source_is_asked_for_anew_once(shared: Running) -> None:
    source, client = await pusher(shared, await new_place(shared)), await pusher(shared, await new_place(shared))
    data = os.urandom(600)
    await source.blob(data)
    path = f"blobs/uploads/?mount={digest_of(data)}&from={source.name}"
    asked = await client.ask("POST", path)
    assert (asked.status, asked.code) == (401, "UNAUTHORIZED")
    challenge = asked.headers["WWW-Authenticate"]
    assert f'scope="repository:{client.name}:pull,push repository:{source.name}:pull"' in challenge
    # The token service grants nothing there and says so: then the blob is uploaded instead.
    for rights, status in (((), 202), (("pull",), 201)):
        headers = await signed(shared.owner, shared.keys, {client.name: ("pull", "push"), source.name: rights})
        assert (await Pusher(shared.http, shared.url, client.name, headers).ask("POST", path)).status == status
