"""Requests that nobody would write, against the running service: never a 5xx, always the form of an error, never memory without a bound."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrepot.db.pool import connect
from entrepot.oci import media_types
from entrepot.settings import S3Settings
from tests import contents
from tests.conftest import Database
from tests.processes import Processes, peak_memory
from tests.pushes import Pusher, digest_of
from tests.services import Answer, signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
FUZZ = settings(
    max_examples=int(os.environ.get("ENTREPOT_TEST_FUZZ_EXAMPLES", "100")), deadline=None,
    # The service is the same for all examples, on purpose: what one leaves behind must not harm the next.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
# What a client can put into a request line without breaking it, raw and escaped.
raw_text = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#?"), max_size=60)
escaped = st.text(max_size=40).map(lambda text: quote(text.encode("utf-8", "surrogatepass"), safe=""))
segments = st.one_of(
    raw_text, escaped,
    st.sampled_from(["demo/app", "demo/app/", "..", ".", "", "a" * 300, "%00", "%2f", "sha256:" + "0" * 64, "sha512:" + "f" * 128, "latest", "uploads", "_catalog"]),
)  # fmt: skip
header_values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=200
).map(str.strip)


def sane(answer: Answer, method: str = "GET") -> None:
    """An answer that is no fault of ours, in the form that answers have."""
    assert answer.status < 500, (answer.status, answer.body)
    if answer.status >= 400 and method != "HEAD":
        assert answer.code


@FUZZ
@given(
    method=st.sampled_from(METHODS),
    path=st.one_of(
        st.builds("/v2/{}/{}/{}".format, segments, st.sampled_from(["manifests", "blobs", "tags", "referrers", "blobs/uploads"]), segments),
        st.builds("/extensions/{}/{}/{}".format, st.sampled_from(["v2", "entrepot/v1"]), segments, segments),
        st.builds("/extensions/entrepot/v1/demo/app/versions/{}/{}".format, segments, segments),
        st.builds("/v2/{}".format, segments),
    ),
    query=st.one_of(st.just(""), raw_text, st.builds("{}={}".format, st.sampled_from(["n", "last", "digest", "mount", "from", "tag", "artifactType", "ns", "digest-algorithm", "limit", "after", "name", "change"]), segments)),
    body=st.binary(max_size=300),
)  # fmt: skip
async def test_any_path_and_query_with_any_method(one: Pusher, method: str, path: str, query: str, body: bytes) -> None:
    path = path.replace("demo/app", one.name)
    sane(
        await one.ask(
            method, f"{path}?{query}" if query else path, data=body if method in {"POST", "PUT", "PATCH"} else None
        ),
        method,
    )


@FUZZ
@given(
    headers=st.dictionaries(
        st.sampled_from(["Range", "If-Range", "If-None-Match", "Accept", "Content-Type", "Content-Range", "X-Request-Id", "Content-Encoding", "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto"]),
        st.one_of(header_values, st.from_regex(r"bytes=[0-9]{0,25}-[0-9]{0,25}(,[0-9]{0,3}-)?", fullmatch=True), st.from_regex(r"[0-9]{0,25}-[0-9]{0,25}", fullmatch=True),
                  st.sampled_from(["*/*", f"{media_types.OCI_INDEX};q=0.5, */*;q=0", "gzip", '"sha256:00"', "," * 100, ";" * 100, "bytes=" + "0-1," * 40])),
        max_size=4,
    ),
    method=st.sampled_from(["GET", "HEAD", "PUT", "PATCH"]),
)  # fmt: skip
async def test_any_headers(one: Pusher, headers: dict[str, str], method: str) -> None:
    image = contents.image(b"layer " * 100)
    await one.image(image, "v1")
    paths = [f"blobs/{contents.sha256(image.layers[0])}", "manifests/v1", "tags/list"]
    if method in {"PUT", "PATCH"}:
        paths = [await one.begin() if method == "PATCH" else "manifests/v2"]
    for path in paths:
        sane(
            await one.ask(method, path, headers=headers, data=image.body if method in {"PUT", "PATCH"} else None),
            method,
        )


@FUZZ
@given(authorization=st.one_of(header_values, st.builds("Bearer {}".format, raw_text), st.builds("Basic {}".format, raw_text), st.builds("Bearer {}.{}.{}".format, raw_text, raw_text, raw_text)))  # fmt: skip
async def test_any_authorization_opens_nothing(one: Pusher, authorization: str) -> None:
    for method, path in (
        ("GET", "tags/list"),
        ("POST", "blobs/uploads/"),
        ("GET", "/v2/"),
        ("GET", "/token?service=entrepot-test"),
    ):
        got = await one.ask(method, path, headers={"Authorization": authorization})
        sane(got)
        assert got.status in {400, 401, 429} or path.startswith("/token")


# Manifests

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip
digests = st.one_of(
    st.sampled_from([contents.sha256(b"{}"), "sha256:" + "0" * 64, "sha256:bad", "md5:" + "0" * 32, ""]),
    st.text(max_size=20),
)
descriptors = st.fixed_dictionaries(
    {"mediaType": st.one_of(st.sampled_from([*sorted(media_types.MANIFEST_TYPES), media_types.OCI_CONFIG, media_types.OCI_LAYER_GZIP, media_types.OCI_NONDISTRIBUTABLE_LAYER]), json_values),
     "digest": digests, "size": st.one_of(st.integers(-1, 1 << 65), json_values)},
    optional={"urls": json_values, "annotations": json_values, "data": st.one_of(st.just("e30="), json_values), "platform": json_values, "artifactType": json_values},
)  # fmt: skip
good = st.just(contents.descriptor(b"{}", media_types.OCI_CONFIG))
documents = st.fixed_dictionaries(
    {"schemaVersion": st.one_of(st.just(2), json_values)},
    optional={
        "mediaType": st.one_of(st.sampled_from(sorted(media_types.MANIFEST_TYPES)), json_values), "config": st.one_of(good, descriptors, json_values),
        "layers": st.one_of(st.just([]), st.lists(descriptors, max_size=3), json_values), "manifests": st.one_of(st.lists(descriptors, max_size=3), json_values),
        "subject": st.one_of(descriptors, json_values), "annotations": st.one_of(st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=3), json_values),
        "artifactType": st.one_of(st.text(max_size=20), json_values), "fsLayers": json_values,
    },
)  # fmt: skip


@FUZZ
@given(
    document=st.one_of(documents, json_values),
    content_type=st.one_of(st.sampled_from([*sorted(media_types.MANIFEST_TYPES), "", "application/json"]), header_values),
    reference=st.sampled_from(["tag", "digest", "digest?tag=a&tag=b"]),
    cut=st.one_of(st.none(), st.integers(0, 400)),
)  # fmt: skip
async def test_any_manifest_is_taken_as_it_is_or_refused(
    one: Pusher, document: Any, content_type: str, reference: str, cut: int | None
) -> None:
    await one.blob(b"{}")
    body = json.dumps(document, ensure_ascii=cut is None).encode("utf-8", "surrogatepass")[:cut]
    path = f"manifests/{reference.replace('digest', digest_of(body))}"
    got = await one.ask("PUT", path, headers={"Content-Type": content_type}, data=body)
    sane(got)
    if got.status == 201:
        stored = await one.ask("GET", f"manifests/{digest_of(body)}")
        assert (stored.status, stored.body) == (200, body)
        if "OCI-Subject" in got.headers:
            assert (await one.ask("GET", f"referrers/{got.headers['OCI-Subject']}")).status == 200
    else:
        assert 400 <= got.status < 500
        assert await one.status("GET", f"manifests/{digest_of(body)}") == 404


@FUZZ
@given(body=st.one_of(json_values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=200)))
async def test_any_signature_is_taken_or_refused(one: Pusher, body: bytes) -> None:
    image = contents.image(b"layer")
    await one.image(image, "v1")
    path = f"/extensions/v2/{one.name}/signatures/{image.digest}"
    sane(await one.ask("PUT", path, data=body))
    assert (await one.ask("GET", path)).status == 200


# Uploads


@FUZZ
@given(
    size=st.integers(0, 5000),
    steps=st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 3000), st.booleans()), max_size=8),
    algorithm=st.sampled_from(["sha256", "sha512"]),
)  # fmt: skip
async def test_chunks_in_any_order_make_the_blob_or_are_refused(
    one: Pusher, size: int, steps: list[tuple[int, int, bool]], algorithm: str
) -> None:
    """A model of a session is one number: what has arrived. A chunk is taken if and only if it begins there."""
    data = hashlib.shake_128(str((size, algorithm)).encode()).digest(size)
    location, arrived = await one.begin(), 0
    for start, length, told in steps:
        start = arrived if start % 3 == 0 else start
        chunk = data[start : start + length]
        if not chunk or (not told and start != arrived):
            continue
        got = await one.patch(location, chunk, at=start if told else None)
        if start == arrived:
            assert got.status == 202
            arrived += len(chunk)
            location = got.headers["Location"]
        else:
            assert got.status == 416
        standing = await one.ask("GET", location)
        assert (standing.status, standing.headers["Range"]) == (204, f"0-{max(0, arrived - 1)}")
    done = await one.finish(location, digest_of(data, algorithm), data[arrived:])
    assert done.status == 201, done.body
    assert (await one.ask("GET", f"blobs/{digest_of(data, algorithm)}")).body == data


# Memory


async def _noise(count: int) -> AsyncIterator[bytes]:
    chunk = os.urandom(MIB)
    for _ in range(count):
        yield chunk


@pytest.mark.allow_blocking
async def test_memory_stays_small_whatever_is_sent(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    both = Processes(database, s3, tmp_path)
    owner = await connect(database.settings(), application="test")
    await contents.make_distribution(owner, await contents.make_repository(owner), access="Private")
    headers = await signed(owner, tmp_path / "keys", {"demo/app": ("pull", "push", "delete")})
    await owner.close()
    deep, wide = b"[" * 2_000_000, b'{"schemaVersion":2,"layers":[' + b"{}," * 1_300_000
    keys = b'{"schemaVersion":2,"annotations":{' + b",".join(b'"%d":""' % n for n in range(300_000)) + b"}}"
    async with aiohttp.ClientSession() as http:
        client = Pusher(http, both.url, "demo/app", headers)
        with both.started() as registry:
            await both.ready(http)
            for n in ("1000000000", str(2**31), "9" * 60):
                for path in ("tags/list", f"referrers/{digest_of(b'')}", "/v2/_catalog"):
                    assert await client.status("GET", f"{path}?n={n}") < 500
            for body in (deep, wide, keys, b'"' + b"x" * 4_000_000, b"9" * 4_000_000, b"\xff" * 4_000_000):
                got = await client.ask(
                    "PUT", "manifests/x", headers={"Content-Type": media_types.OCI_MANIFEST}, data=body
                )
                assert 400 <= got.status < 500
            # Longer than any manifest, without saying how long.
            for path in ("manifests/x", f"/extensions/v2/demo/app/signatures/{digest_of(b'')}"):
                # Or hung up on in the middle, which is a bound too.
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    assert 400 <= (await client.ask("PUT", path, data=_noise(300))).status < 500
            location = await client.begin()
            assert (await client.patch(location, _noise(300))).status == 202
            assert peak_memory(registry) < 256 * MIB
