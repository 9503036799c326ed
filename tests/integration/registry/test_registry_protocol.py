"""The pull side of the distribution specification, row by row, over real PostgreSQL and S3."""

from __future__ import annotations

import json

import pytest

from entrepot.db.content import Change
from entrepot.oci import media_types
from entrepot.oci.manifest import parse
from tests import contents
from tests.integration.registry.conftest import Demo
from tests.services import Running, raw

COMMON = {"Docker-Distribution-Api-Version": "registry/2.0", "X-Content-Type-Options": "nosniff"}


async def test_the_base_asks_for_a_token_and_takes_one_of_nobody(running: Running) -> None:
    refused = await running.request("GET", "/v2/")
    assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
    assert refused.headers["WWW-Authenticate"] == f'Bearer realm="{running.url}/token",service="entrepot-test"'
    token = (await running.ask_token()).json()["token"]
    taken = await running.request("GET", "/v2/", headers={"Authorization": f"Bearer {token}"})
    assert (taken.status, taken.json()) == (200, {})
    for name, value in COMMON.items():
        assert refused.headers[name] == taken.headers[name] == value


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_a_manifest_comes_as_it_was_stored(demo: Demo, by: str) -> None:
    path = f"/v2/demo/app/manifests/{'latest' if by == 'tag' else demo.image.digest}"
    for _ in range(2):  # cold and out of the cache
        got = await demo.running.get(path)
        assert (got.status, got.body) == (200, demo.image.body)
        assert got.headers.getall("Content-Type") == [media_types.OCI_MANIFEST]
        assert got.headers["Content-Length"] == str(len(demo.image.body))
        assert got.headers["Docker-Content-Digest"] == demo.image.digest
        assert got.headers["ETag"] == f'"{demo.image.digest}"'
    head = await demo.running.head(path)
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Type", "Content-Length", "Docker-Content-Digest", "ETag"):
        assert head.headers[name] == got.headers[name]


async def test_each_media_type_is_sent_exactly(demo: Demo) -> None:
    config, layer = demo.image.config, demo.small
    bodies = {
        media_types.DOCKER_MANIFEST: {
            "schemaVersion": 2,
            "mediaType": media_types.DOCKER_MANIFEST,
            "config": contents.descriptor(config, media_types.DOCKER_CONFIG),
            "layers": [contents.descriptor(layer, media_types.DOCKER_LAYER_GZIP)],
        },
        media_types.OCI_INDEX: {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []},
        media_types.DOCKER_MANIFEST_LIST: {
            "schemaVersion": 2,
            "mediaType": media_types.DOCKER_MANIFEST_LIST,
            "manifests": [],
        },
        # Larger than aiohttp's own limits for bodies.
        media_types.OCI_MANIFEST: {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": contents.descriptor(config, media_types.OCI_CONFIG),
            "layers": [],
            "annotations": {f"key-{n}": "x" * 10_000 for n in range(390)},
        },
    }
    for media_type, document in bodies.items():
        body = json.dumps(document, indent=1).encode()
        [made] = await contents.put(demo.running.owner, parse(body, content_type=media_type))
        await contents.commit(demo.running.owner, demo.repository, Change(tags={"typed": made}, add_manifests=[made]))
        got = await demo.running.get("/v2/demo/app/manifests/typed")
        assert (got.status, got.headers["Content-Type"], got.body) == (200, media_type, body)


async def test_a_manifest_that_is_not_there(demo: Demo) -> None:
    for method in ("GET", "HEAD"):
        for reference in ("absent", f"sha256:{'0' * 64}", f"sha512:{'0' * 128}"):
            got = await demo.running.get(f"/v2/demo/app/manifests/{reference}", method=method)
            assert got.status == 404
            if method == "GET":
                assert got.code == "MANIFEST_UNKNOWN"
                assert got.json()["errors"][0]["detail"] == {"name": "demo/app", "reference": reference}


@pytest.mark.parametrize(
    "reference",
    [
        "sha256:baddigeststring",
        "sha256:..",
        "md5:" + "0" * 32,
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 63,
        "sha256+b64:" + "0" * 64,
        "sha256:",
    ],
)
async def test_what_is_no_digest_is_400_for_manifests_and_blobs(demo: Demo, reference: str) -> None:
    for kind in ("manifests", "blobs"):
        got = await demo.running.get(f"/v2/demo/app/{kind}/{reference}")
        assert (got.status, got.code) == (400, "DIGEST_INVALID")


async def test_a_blob_whole_from_postgresql_and_from_s3(demo: Demo) -> None:
    for data in (demo.small, demo.large, demo.image.config):
        digest = contents.sha256(data)
        got = await demo.running.get(f"/v2/demo/app/blobs/{digest}")
        assert (got.status, got.body == data) == (200, True)
        head = await demo.running.head(f"/v2/demo/app/blobs/{digest}")
        assert (head.status, head.body) == (200, b"")
        for answer in (got, head):
            assert answer.headers["Content-Length"] == str(len(data))
            assert answer.headers["Docker-Content-Digest"] == digest
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Accept-Ranges"] == "bytes"


async def test_an_empty_blob_has_length_0(demo: Demo) -> None:
    await contents.store(demo.running.owner, demo.repository, b"")
    for method in ("GET", "HEAD"):
        got = await demo.running.get(f"/v2/demo/app/blobs/{contents.sha256(b'')}", method=method)
        assert (got.status, got.body, got.headers["Content-Length"]) == (200, b"", "0")


@pytest.mark.parametrize("which", ["small", "large"])
async def test_ranges_of_a_blob(demo: Demo, which: str) -> None:
    data = demo.small if which == "small" else demo.large
    size, path = len(data), f"/v2/demo/app/blobs/{contents.sha256(data)}"
    for header, start, end in [
        ("bytes=500-1499", 500, 1499),
        ("bytes=500-", 500, size - 1),
        ("bytes=-500", size - 500, size - 1),
        (f"bytes={size - 48}-{size + 3000}", size - 48, size - 1),
        ("bytes=0-0", 0, 0),
        (f"bytes=-{size * 2}", 0, size - 1),
    ]:
        got = await demo.running.get(path, headers={"Range": header})
        assert (got.status, got.headers["Content-Range"]) == (206, f"bytes {start}-{end}/{size}")
        assert got.body == data[start : end + 1]
        assert got.headers["Content-Length"] == str(end - start + 1)
    for header in ("bytes=500-0", f"bytes={size}-{size + 5}", "bytes=-0"):
        got = await demo.running.get(path, headers={"Range": header})
        assert (got.status, got.code, got.headers["Content-Range"]) == (416, "RANGE_INVALID", f"bytes */{size}")
    for ignored in ("bytes=0-1,5-6", "lines=1-2", "bytes=a-b"):
        got = await demo.running.get(path, headers={"Range": ignored})
        assert (got.status, got.body == data) == (200, True)
    other = await demo.running.get(path, headers={"Range": "bytes=0-1", "If-Range": '"another"'})
    assert other.status == 200
    same = await demo.running.get(path, headers={"Range": "bytes=0-1", "If-Range": f'"{contents.sha256(data)}"'})
    assert same.status == 206


async def test_a_blob_that_is_not_there(demo: Demo) -> None:
    got = await demo.running.get(f"/v2/demo/app/blobs/sha256:{'0' * 64}")
    assert (got.status, got.code) == (404, "BLOB_UNKNOWN")
    assert (await demo.running.head(f"/v2/demo/app/blobs/sha256:{'0' * 64}")).status == 404


async def test_what_a_client_has_already_is_304(demo: Demo) -> None:
    for path, digest in [
        ("manifests/latest", demo.image.digest),
        (f"manifests/{demo.image.digest}", demo.image.digest),
        (f"blobs/{demo.large_digest}", demo.large_digest),
    ]:
        for method in ("GET", "HEAD"):
            for value in (f'"{digest}"', f'"x", W/"{digest}"', "*"):
                got = await demo.running.get(f"/v2/demo/app/{path}", method=method, headers={"If-None-Match": value})
                assert (got.status, got.body, got.headers["ETag"]) == (304, b"", f'"{digest}"')
            got = await demo.running.get(f"/v2/demo/app/{path}", method=method, headers={"If-None-Match": '"other"'})
            assert got.status == 200


async def test_accept_by_tag_refuses_and_never_converts_and_by_digest_does_not_matter(demo: Demo) -> None:
    tag, digest = "/v2/demo/app/manifests/latest", f"/v2/demo/app/manifests/{demo.image.digest}"
    for accept in (
        media_types.OCI_MANIFEST,
        "*/*",
        f"{media_types.DOCKER_MANIFEST}, */*;q=0.1",
        media_types.ACCEPT,
        "",
    ):
        assert (await demo.running.get(tag, headers={"Accept": accept})).status == 200
    for accept in (media_types.DOCKER_MANIFEST, f"{media_types.OCI_MANIFEST};q=0, */*", media_types.OCI_INDEX):
        got = await demo.running.get(tag, headers={"Accept": accept})
        assert (got.status, got.code) == (404, "MANIFEST_UNKNOWN")
        assert media_types.OCI_MANIFEST in got.json()["errors"][0]["message"]
        assert (await demo.running.get(digest, headers={"Accept": accept})).status == 200


async def test_tags_come_in_byte_order_and_in_pages(demo: Demo) -> None:
    names = ["1.10", "1.9", "A", "_x", "a", "a.b", "latest", "z-1"]
    [manifest] = await contents.put(demo.running.owner, demo.image)
    await contents.commit(demo.running.owner, demo.repository, Change(tags=dict.fromkeys(names, manifest)))
    expected = sorted(names, key=str.encode)
    got = await demo.running.get("/v2/demo/app/tags/list")
    assert (got.status, got.headers["Content-Type"]) == (200, "application/json")
    assert got.json() == {"name": "demo/app", "tags": expected}
    assert "Link" not in got.headers
    seen: list[str] = []
    path = "/v2/demo/app/tags/list?n=3"
    while path:
        page = await demo.running.get(path)
        assert len(page.json()["tags"]) <= 3
        seen += page.json()["tags"]
        link = page.headers.get("Link", "")
        assert link == "" or link.endswith('>; rel="next"')
        path = link.partition(">")[0].removeprefix("<")
    assert seen == expected
    after = await demo.running.get("/v2/demo/app/tags/list?last=a")
    assert after.json()["tags"] == [name for name in expected if name > "a"]
    absent = await demo.running.get("/v2/demo/app/tags/list?last=aa&n=1")
    assert absent.json()["tags"] == ["latest"]


async def test_odd_numbers_of_tags(demo: Demo) -> None:
    for n, status in [
        ("0", 200),
        (str(2**31), 200),
        ("1000000000", 200),
        ("9" * 64, 200),
        ("-1", 400),
        ("abc", 400),
        ("", 400),
        ("1.5", 400),
    ]:
        got = await demo.running.get(f"/v2/demo/app/tags/list?n={n}")
        assert got.status == status, n
        if status == 400:
            assert got.code == "PAGINATION_NUMBER_INVALID"
        else:
            assert got.json()["tags"] == ([] if n == "0" else ["latest"])
            assert "Link" not in got.headers
    for last in ("%00", "a%20b", "x" * 300):
        assert (await demo.running.get(f"/v2/demo/app/tags/list?last={last}")).status == 400


async def test_an_empty_repository_has_no_tags(running: Running) -> None:
    repository = await contents.make_repository(running.owner, name="empty")
    await contents.make_distribution(running.owner, repository, base_path="demo/empty")
    got = await running.get("/v2/demo/empty/tags/list", name="demo/empty")
    assert (got.status, got.json()) == (200, {"name": "demo/empty", "tags": []})


@pytest.mark.parametrize(
    "name", ["a/manifests/b", "x/tags", "x/blobs/uploads", "manifests/blobs", "a/tags/list", "v2/v2", "a__b/c-d.e"]
)
async def test_names_made_of_the_routes_own_words(running: Running, name: str) -> None:
    repository = await contents.make_repository(running.owner)
    await contents.make_distribution(running.owner, repository, base_path=name)
    one = contents.image(b"layer of " + name.encode())
    await contents.push(running.owner, repository, "list", one)
    got = await running.get(f"/v2/{name}/manifests/list", name=name)
    assert (got.status, got.body) == (200, one.body)
    assert (await running.get(f"/v2/{name}/tags/list", name=name)).json() == {"name": name, "tags": ["list"]}
    assert (await running.get(f"/v2/{name}/blobs/{contents.sha256(one.config)}", name=name)).body == one.config


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/demo%2fapp/manifests/latest", 400),
        ("/v2/demo/app%00/manifests/latest", 400),
        ("/v2/demo/app/manifests/%6catest", 404),
        ("/v2/demo/../demo/app/manifests/latest", 400),
        ("/v2/./demo/app/manifests/latest", 400),
        ("/v2//demo/app/manifests/latest", 400),
        ("/v2/demo/app//manifests/latest", 400),
        ("/v2/Demo/app/manifests/latest", 400),
        ("/v2/demo/app/manifests/.latest", 404),
        ("/v2/demo/app/manifests/" + "x" * 129, 404),
        ("/v2/" + "a/" * 200 + "b/manifests/latest", 400),
        ("/v2/demo/app/manifests/", 404),
        ("/v2/demo/app/manifests", 404),
        ("/v2/manifests/latest", 404),
        ("/v2/tags/list", 404),
        ("/v1/", 404),
        ("/", 404),
        ("/v2/demo/app/nothing/here", 404),
    ],
)
async def test_crooked_and_unknown_paths(demo: Demo, path: str, status: int) -> None:
    got = await demo.running.get(path)
    assert got.status == status
    assert got.code in {"NAME_INVALID", "MANIFEST_UNKNOWN", "DIGEST_INVALID", "UNSUPPORTED"}


async def test_an_escaped_colon_of_a_digest_is_borne(demo: Demo) -> None:
    got = await demo.running.get(f"/v2/demo/app/manifests/{demo.image.digest.replace(':', '%3A')}")
    assert (got.status, got.body) == (200, demo.image.body)


async def test_every_pushing_request_is_told_that_this_is_a_mirror(demo: Demo) -> None:
    digest = demo.image.digest
    await demo.running.owner.execute("update repository set is_mirror = true")
    headers = await demo.running.granted()
    for method, path in [
        ("POST", "/v2/demo/app/blobs/uploads/"),
        ("POST", f"/v2/demo/app/blobs/uploads/?mount={digest}&from=demo/app"),
        ("PATCH", "/v2/demo/app/blobs/uploads/123"),
        ("PUT", f"/v2/demo/app/blobs/uploads/123?digest={digest}"),
        ("DELETE", "/v2/demo/app/blobs/uploads/123"),
        ("PUT", "/v2/demo/app/manifests/latest"),
        ("DELETE", "/v2/demo/app/manifests/latest"),
        ("DELETE", f"/v2/demo/app/manifests/{digest}"),
        ("DELETE", f"/v2/demo/app/blobs/{digest}"),
    ]:
        got = await demo.running.request(method, path, headers=headers, data=b"x" * 100_000)
        assert (got.status, got.code, got.headers.get("Allow")) == (405, "UNSUPPORTED", "GET, HEAD"), (method, path)
        assert "mirror" in got.json()["errors"][0]["message"]
    assert (await demo.running.get("/v2/demo/app/manifests/latest")).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX-A: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v2/\xff\xfe/manifests/x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\x00T /v2/ HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_not_http_or_too_large_gets_an_error_of_the_right_form(
    running: Running, request_bytes: bytes
) -> None:
    answer = await raw(running.registry.port, request_bytes, seconds=2)
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    assert 400 <= status < 500
    assert json.loads(body)["errors"][0]["code"]
    assert b"Traceback" not in answer
    assert (await running.request("GET", "/v2/")).status == 401
