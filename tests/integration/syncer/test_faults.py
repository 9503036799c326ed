"""An upstream that does wrong: what each wrong ends in, that nothing of it is stored, and that a run after its cure is whole again."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator

import asyncpg
import pytest
from aiohttp import web

from entrepot.credentials import Credentials
from entrepot.upstream.settings import UpstreamSettings
from tests.integration.syncer.conftest import Mirror
from tests.servers import free_port
from tests.upstreams.images import Content, Generated
from tests.upstreams.server import Handler, Upstream, answers, breaks_off, sends, streams

MIB = 1024 * 1024


def failed_tags(row: asyncpg.Record) -> dict[str, str]:
    return {entry["tag"]: entry["reason"] for entry in json.loads(row["failed_tags"])}


async def recovers(mirror: Mirror, upstream: Upstream) -> None:
    """When the cause is gone the next run mirrors everything, and nothing wrong is or was stored."""
    upstream.heal()
    row = await mirror.sync(upstream)
    assert row["outcome"] == "Synced", dict(row)
    assert await mirror.tags() == upstream.content().tags
    await mirror.check_everything_stored()
    assert await mirror.leftovers() == 0


@pytest.fixture
def content(upstream: Upstream) -> Content:
    content = upstream.content()
    content.add_image("bad")
    content.add_image("good")
    return content


def blob(content: Content) -> tuple[str, bytes]:
    """The larger layer of the image that goes wrong."""
    digest = content.layers_of("bad")[1]
    data = content.blobs[digest]
    assert isinstance(data, bytes)
    return digest, data


# What goes wrong for one tag.


def wrong_manifest(content: Content) -> tuple[str, str, Handler]:
    digest = content.tags["bad"]
    media_type, body = content.manifests[digest]
    return "GET", f"manifests/{digest}", sends(body + b" ", headers={"Content-Type": media_type})


def not_json(content: Content) -> tuple[str, str, Handler]:
    content.manifests["sha256:" + "0" * 64] = ("application/vnd.oci.image.manifest.v1+json", b"")
    return "GET", f"manifests/{content.tags['bad']}", sends(b"<html>BODY-CANARY</html>")


def gone_manifest(content: Content) -> tuple[str, str, Handler]:
    return "GET", f"manifests/{content.tags['bad']}", answers(404, "MANIFEST_UNKNOWN")


def gone_tag(content: Content) -> tuple[str, str, Handler]:
    return "HEAD", "manifests/bad", answers(404)


def gone_blob(content: Content) -> tuple[str, str, Handler]:
    return "GET", f"blobs/{blob(content)[0]}", answers(404, "BLOB_UNKNOWN")


def wrong_bytes(content: Content) -> tuple[str, str, Handler]:
    digest, data = blob(content)
    return "GET", f"blobs/{digest}", sends(bytes(reversed(data)))


def short_blob(content: Content) -> tuple[str, str, Handler]:
    digest, data = blob(content)
    return "GET", f"blobs/{digest}", sends(data[:-1])


def short_blob_without_length(content: Content) -> tuple[str, str, Handler]:
    digest, data = blob(content)
    return "GET", f"blobs/{digest}", streams(lambda: iter([data[:-1]]))


def long_blob(content: Content) -> tuple[str, str, Handler]:
    digest, data = blob(content)
    return "GET", f"blobs/{digest}", sends(data + b"x")


def endless_blob(content: Content) -> tuple[str, str, Handler]:
    digest, data = blob(content)

    def forever() -> Iterator[bytes]:
        while True:
            yield data

    return "GET", f"blobs/{digest}", streams(forever)


def huge_manifest(content: Content) -> tuple[str, str, Handler]:
    return "GET", f"manifests/{content.tags['bad']}", sends(b" " * (5 * MIB))


def breaking_blob(content: Content) -> tuple[str, str, Handler]:
    digest, data = blob(content)
    return "GET", f"blobs/{digest}", breaks_off(data, after=1000)


def erring_blob(content: Content) -> tuple[str, str, Handler]:
    return "GET", f"blobs/{blob(content)[0]}", answers(500, "UNKNOWN")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (wrong_manifest, "DigestMismatch"),
        (not_json, "DigestMismatch"),
        (gone_manifest, "ManifestNotFound"),
        (gone_tag, "TagNotFound"),
        (gone_blob, "BlobNotFound"),
        (wrong_bytes, "DigestMismatch"),
        (short_blob, "SizeMismatch"),
        (short_blob_without_length, "SizeMismatch"),
        (long_blob, "SizeMismatch"),
        (endless_blob, "SizeMismatch"),
        (huge_manifest, "UpstreamInvalid"),
        (breaking_blob, "UpstreamUnreachable"),
        (erring_blob, "UpstreamUnreachable"),
    ],
)
async def test_one_bad_tag_does_not_spoil_the_rest(
    mirror: Mirror,
    upstream: Upstream,
    content: Content,
    make: Callable[[Content], tuple[str, str, Handler]],
    reason: str,
) -> None:
    method, pattern, handler = make(content)
    content.manifests.pop("sha256:" + "0" * 64, None)
    upstream.fault(method, pattern, handler)
    row = await mirror.sync(upstream, maxRetries=1)
    assert (row["outcome"], row["version"], row["failed_tag_count"]) == ("Partial", 1, 1), dict(row)
    assert row["reason"] in {reason, "UpstreamInvalid"}
    if reason != "SizeMismatch":
        assert row["reason"] == reason
    assert failed_tags(row) == {"bad": row["reason"]}
    assert "bad" in row["message"]
    assert "BODY-CANARY" not in str(dict(row))
    assert await mirror.tags() == {"good": content.tags["good"]}
    await mirror.check_everything_stored()
    assert await mirror.owner.fetchval("select contact_outcome from remote") == "Reachable"
    await recovers(mirror, upstream)


async def test_a_child_that_fails_fails_its_index(mirror: Mirror, upstream: Upstream, content: Content) -> None:
    child = content.add_image(None, architecture="arm64")
    content.add_index("multi", [child, content.add_image(None)])
    upstream.fault("GET", f"manifests/{child['digest']}", answers(404, "MANIFEST_UNKNOWN"))
    row = await mirror.sync(upstream)
    assert (row["outcome"], failed_tags(row)) == ("Partial", {"multi": "ManifestNotFound"})
    assert child["digest"] in row["message"]
    assert set(await mirror.tags()) == {"bad", "good"}
    assert await mirror.owner.fetchval("select count(*) from repository_manifest") == 2, "no part of the index is there"
    await recovers(mirror, upstream)


async def test_a_manifest_that_lies_about_a_layers_size_does_not_spoil_the_one_that_does_not(
    mirror: Mirror, upstream: Upstream, content: Content
) -> None:
    body = json.loads(content.manifests[content.tags["good"]][1])
    body["layers"][0]["size"] += 1
    content.add_manifest(body, tag="liar")
    for _ in range(2):
        row = await mirror.sync(upstream)
        assert failed_tags(row) == {"liar": "SizeMismatch"}
        assert set(await mirror.tags()) == {"bad", "good"}


async def test_all_tags_failing_fails_the_run_and_keeps_what_was_there(
    mirror: Mirror, upstream: Upstream, content: Content
) -> None:
    await mirror.sync(upstream)
    before = await mirror.tags()
    for tag in ("bad", "good"):
        content.add_image(tag, layers=[f"changed {tag}".encode() * 10000])
    upstream.fault("GET", "blobs", answers(404, "BLOB_UNKNOWN"))
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["reason"], row["failed_tag_count"], row["version"]) == (
        "Failed",
        "BlobNotFound",
        2,
        None,
    )
    assert await mirror.tags() == before
    await recovers(mirror, upstream)


# What goes wrong for all.


async def test_an_unreachable_upstream_fails_the_run(mirror: Mirror) -> None:
    row = await mirror.sync(f"http://127.0.0.1:{free_port()}", maxRetries=1)
    assert (row["outcome"], row["reason"]) == ("Failed", "UpstreamUnreachable")
    assert "no connection to 127.0.0.1" in row["message"]
    assert await mirror.owner.fetchval("select contact_outcome from remote") == "UpstreamUnreachable"
    assert await mirror.latest() == 0


async def test_a_silent_upstream_fails_the_run_in_time(mirror: Mirror, upstream: Upstream) -> None:
    upstream.content().add_image("v1")
    upstream.latency = 5
    row = await mirror.sync(upstream, maxRetries=1, readTimeout="200ms")
    assert (row["outcome"], row["reason"]) == ("Failed", "UpstreamUnreachable")
    assert "timed out" in row["message"]


async def test_an_unknown_repository_fails_the_run(mirror: Mirror, upstream: Upstream) -> None:
    for spec in ({}, {"includeTags": ["v1"]}):
        row = await mirror.sync(upstream, name="no/such", **spec)
        assert (row["outcome"], row["reason"]) == ("Failed", "RepositoryNotFound")
        assert "404 NAME_UNKNOWN" in row["message"]


@pytest.mark.parametrize("body", [b'{"name":"app/web","tags":null}', b'{"tags":[]}', b"{}"])
async def test_a_repository_without_tags_is_no_failure(mirror: Mirror, upstream: Upstream, body: bytes) -> None:
    upstream.content()
    upstream.fault("GET", "tags/list", sends(body))
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["version"]) == ("NoChange", None)


@pytest.mark.parametrize(
    "body",
    [b"<html>BODY-CANARY</html>", b'{"tags":"x"}', b'{"tags":[1]}', b"[]", b"\xff", b'{"tags":["a"]}' + b" " * 70_000],
)
async def test_a_list_that_cannot_be_read_fails_the_run(mirror: Mirror, upstream: Upstream, body: bytes) -> None:
    mirror.upstream_settings = dataclasses.replace(mirror.upstream_settings, max_page_bytes=65536)
    upstream.fault("GET", "tags/list", sends(body))
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["reason"]) == ("Failed", "UpstreamInvalid")
    assert "BODY-CANARY" not in row["message"]


async def test_a_page_size_that_is_refused_is_left_out(mirror: Mirror, upstream: Upstream, content: Content) -> None:
    upstream.fault("GET", r"tags/list\?n=", answers(400, "PAGINATION_NUMBER_INVALID"))
    assert (await mirror.sync(upstream))["outcome"] == "Synced"


def page(names: Callable[[int], list[str]], link: Callable[[int, Upstream], str], upstream: Upstream) -> Handler:
    served = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal served
        served += 1
        return web.json_response({"tags": names(served)}, headers={"Link": f'<{link(served, upstream)}>; rel="next"'})

    return handler


@pytest.mark.parametrize(
    ("names", "link"),
    [
        (lambda n: [f"t{n}"], lambda n, u: f"/v2/app/web/tags/list?last=t{n}"),
        (lambda n: [f"t{n}"], lambda n, u: "/v2/app/web/tags/list?last=same"),
        (lambda n: [], lambda n, u: f"/v2/app/web/tags/list?last={n}"),
        (lambda n: [f"t{n}"], lambda n, u: "http://[broken"),
    ],
    ids=["endless", "circle", "empty", "broken"],
)
async def test_a_list_without_end_ends(
    mirror: Mirror, upstream: Upstream, names: Callable[[int], list[str]], link: Callable[[int, Upstream], str]
) -> None:
    mirror.upstream_settings = dataclasses.replace(mirror.upstream_settings, max_tags=50)
    upstream.fault("GET", "tags/list", page(names, link, upstream))
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["reason"]) == ("Failed", "UpstreamInvalid")
    assert len(upstream.seen) <= 52


async def test_a_list_is_never_followed_to_another_host(mirror: Mirror, upstream: Upstream) -> None:
    async with Upstream() as elsewhere:
        upstream.fault(
            "GET", "tags/list", page(lambda n: ["a"], lambda n, u: f"{elsewhere.url}/v2/x/tags/list", upstream)
        )
        row = await mirror.sync(upstream)
        assert (row["outcome"], row["reason"]) == ("Failed", "UpstreamInvalid")
        assert elsewhere.seen == []


async def test_resets_and_errors_that_pass_are_survived_and_a_layer_goes_on_where_it_broke_off(
    mirror: Mirror, upstream: Upstream
) -> None:
    content = upstream.content()
    layer = bytes(range(256)) * 16 * 1024
    content.add_image("v1", layers=[layer])
    digest = content.layers_of("v1")[0]
    upstream.fault("GET", "tags/list", answers(503), times=2)
    upstream.fault("HEAD", "manifests", answers(500), times=1)
    upstream.fault("GET", "manifests", breaks_off(b"x" * 100, after=10), times=1)
    upstream.fault("GET", f"blobs/{digest}", breaks_off(layer, after=3 * MIB), times=2)
    row = await mirror.sync(upstream)
    assert row["outcome"] == "Synced", dict(row)
    ranges = [r.headers.get("Range") for r in upstream.seen if r.method == "GET" and digest in r.path]
    assert ranges[0] is None
    assert all(r is not None and r.startswith("bytes=") for r in ranges[1:])
    await mirror.check_everything_stored()


async def test_a_layer_is_resumed_where_ranges_are_unknown_too(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    layer = bytes(range(256)) * 8 * 1024
    content.add_image("v1", layers=[layer])
    digest = content.layers_of("v1")[0]
    upstream.fault("GET", f"blobs/{digest}", breaks_off(layer, after=MIB), times=1)
    upstream.fault("GET", f"blobs/{digest}", sends(layer))
    assert (await mirror.sync(upstream))["outcome"] == "Synced"
    await mirror.check_everything_stored()


async def test_an_upstream_that_goes_away_is_not_asked_for_every_tag(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    for number in range(200):
        content.add_image(f"v{number:03}")
    upstream.fault("HEAD", "manifests", answers(503))
    row = await mirror.sync(upstream, maxRetries=1, downloadConcurrency=5)
    assert (row["outcome"], row["reason"], row["failed_tag_count"]) == ("Failed", "UpstreamUnreachable", 200)
    assert len(json.loads(row["failed_tags"])) == 10
    assert upstream.counts()["HEAD manifests"] < 60
    await recovers(mirror, upstream)


# 429.


async def test_a_quota_pauses_the_whole_run_as_long_as_it_says(
    mirror: Mirror, upstream: Upstream, content: Content
) -> None:
    upstream.fault("GET", "manifests", answers(429, "TOOMANYREQUESTS", headers={"Retry-After": "1"}), times=1)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    row = await mirror.sync(upstream)
    assert row["outcome"] == "Synced"
    assert loop.time() - begun >= 1


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "86400"}, {"Retry-After": "Sat, 21 Nov 2099 07:28:00 GMT"}])
async def test_a_quota_that_lasts_fails_what_is_left_without_asking_on(
    mirror: Mirror, upstream: Upstream, headers: dict[str, str]
) -> None:
    content = upstream.content()
    for number in range(50):
        content.add_image(f"v{number:02}")
    upstream.fault("HEAD", "manifests", answers(429, "TOOMANYREQUESTS", headers=headers))
    row = await mirror.sync(upstream, maxRetries=2, downloadConcurrency=4)
    assert (row["outcome"], row["reason"]) == ("Failed", "RateLimited")
    assert "answered 429" in row["message"]
    assert upstream.counts()["HEAD manifests"] <= 12
    await recovers(mirror, upstream)


# Authentication.


@pytest.mark.parametrize("kind", ["basic", "token"])
async def test_credentials_are_used_and_wrong_ones_fail_the_run(
    mirror: Mirror, upstream: Upstream, content: Content, kind: str
) -> None:
    upstream.auth = kind
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["reason"]) == ("Failed", "Unauthorized"), dict(row)
    await mirror.use_credentials(upstream, Credentials(username="user", password="PASSWORD-CANARY"))
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["reason"]) == ("Failed", "Unauthorized")
    assert "401 UNAUTHORIZED" in row["message"]
    assert "CANARY" not in str(dict(row))
    await mirror.use_credentials(upstream, Credentials(username="user", password="secret"))
    upstream.seen.clear()
    await recovers(mirror, upstream)
    assert upstream.counts()["GET token"] == (1 if kind == "token" else 0)


async def test_exact_names_ask_for_one_token_too(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    for number in range(30):
        content.add_image(f"v{number}")
    upstream.auth = "token"
    await mirror.use_credentials(upstream, Credentials(username="user", password="secret"))
    row = await mirror.sync(upstream, includeTags=[f"v{n}" for n in range(30)])
    assert row["outcome"] == "Synced"
    assert upstream.counts()["GET token"] == 1
    assert upstream.counts()["HEAD manifests"] == 31


async def test_tokens_that_expire_are_replaced(mirror: Mirror, upstream: Upstream, content: Content) -> None:
    upstream.auth = "token"
    await mirror.use_credentials(upstream, Credentials(username="user", password="secret"))

    async def expire(_: web.Request) -> web.Response:
        upstream.tokens.clear()
        upstream.tokens.add("other")
        return web.Response(
            status=401, headers={"WWW-Authenticate": f'Bearer realm="{upstream.url}/token",service="test"'}
        )

    upstream.fault("GET", "blobs", expire, times=1)
    row = await mirror.sync(upstream)
    assert row["outcome"] == "Synced", dict(row)
    assert upstream.counts()["GET token"] == 2


async def test_credentials_never_go_to_a_realm_elsewhere(mirror: Mirror, upstream: Upstream, content: Content) -> None:
    async with Upstream() as elsewhere:
        upstream.auth, upstream.realm = "token", f"http://localhost:{elsewhere.port}/token"
        await mirror.use_credentials(upstream, Credentials(username="user", password="secret"))
        row = await mirror.sync(upstream)
        assert (row["outcome"], row["reason"]) == ("Failed", "Unauthorized")
        assert "localhost" in row["message"]
        assert elsewhere.seen == []


async def test_authorization_does_not_follow_a_redirect_elsewhere(
    mirror: Mirror, upstream: Upstream, content: Content
) -> None:
    upstream.auth = "token"
    await mirror.use_credentials(upstream, Credentials(username="user", password="secret"))
    async with Upstream(repositories=upstream.repositories) as storage:

        async def redirect(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{storage.url}{request.path}?X-Signature=a%2Fb%3D"})

        upstream.fault("GET", "/blobs/", redirect)
        row = await mirror.sync(upstream)
    assert row["outcome"] == "Synced"
    assert storage.counts() == {"GET blobs": len(content.blobs)}
    assert all("Authorization" not in request.headers for request in storage.seen)
    assert {request.query for request in storage.seen} == {"X-Signature=a%2Fb%3D"}
    await mirror.check_everything_stored()


@pytest.mark.parametrize(
    "location", ["", "ftp://x/", "http://u:p@127.0.0.1/", "http://[broken", "/v2/\\evil", "/v2/ä", "/loop"]
)
async def test_redirects_that_lead_nowhere_fail(mirror: Mirror, upstream: Upstream, location: str) -> None:
    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": location})

    upstream.fault("GET", "tags|loop", redirect)
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["reason"]) == ("Failed", "UpstreamInvalid")
    assert len(upstream.seen) <= 6


async def test_an_upstream_at_a_denied_address_is_never_connected_to(mirror: Mirror, upstream: Upstream) -> None:
    mirror.upstream_settings = UpstreamSettings()
    for url in (
        upstream.url,
        f"http://localhost:{upstream.port}",
        f"http://[::ffff:127.0.0.1]:{upstream.port}",
        "http://169.254.169.254",
    ):
        row = await mirror.sync(url)
        assert (row["outcome"], row["reason"]) == ("Failed", "AddressDenied"), url
    assert upstream.seen == []


async def test_a_redirect_and_a_realm_at_a_denied_address_are_never_connected_to(
    mirror: Mirror, upstream: Upstream, content: Content
) -> None:
    async with Upstream() as internal:
        mirror.upstream_settings = dataclasses.replace(mirror.upstream_settings, denied_cidrs=("127.0.0.2/32",))
        target = f"http://127.0.0.2:{internal.port}/x"

        async def redirect(_: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": target})

        upstream.fault("GET", "/blobs/", redirect)
        row = await mirror.sync(upstream)
        assert (row["outcome"], row["reason"]) == ("Failed", "AddressDenied")
        upstream.heal()
        upstream.auth, upstream.realm = "token", target
        row = await mirror.sync(upstream)
        assert (row["outcome"], row["reason"]) == ("Failed", "AddressDenied")
        assert internal.seen == []


async def test_credentials_of_another_origin_do_not_open(mirror: Mirror, upstream: Upstream, content: Content) -> None:
    await mirror.use_credentials("https://registry.example.com", Credentials(username="user", password="secret"))
    row = await mirror.sync(upstream)
    assert (row["outcome"], row["reason"]) == ("Failed", "CredentialsUnreadable")
    assert upstream.seen == []


async def test_a_spec_that_is_not_understood_fails_the_run(mirror: Mirror, upstream: Upstream) -> None:
    row = await mirror.sync(upstream, fieldOfTheFuture=True)
    assert (row["outcome"], row["reason"]) == ("Failed", "SpecInvalid")
    assert "fieldOfTheFuture" in row["message"]
    row = await mirror.sync(upstream, readTimeout="soon")
    assert (row["outcome"], row["reason"]) == ("Failed", "SpecInvalid")


async def test_a_deleted_repository_is_not_synced(mirror: Mirror, upstream: Upstream, content: Content) -> None:
    run = await mirror.new_run(upstream)
    await mirror.owner.execute("update repository set deleted_at = now(), purge_after = now()")
    await mirror.perform(run)
    row = await mirror.row(run)
    assert (row["outcome"], row["reason"]) == ("Failed", "RepositoryGone")
    assert upstream.seen == []


async def test_a_large_layer_that_turns_out_wrong_leaves_no_object(mirror: Mirror, upstream: Upstream) -> None:
    content = upstream.content()
    content.add_image("good")
    layer = Generated(3, 20)
    content.add_image("bad", layers=[layer])
    digest = content.layers_of("bad")[0]

    def wrong() -> Iterator[bytes]:
        yield from Generated(4, 20).chunks()

    upstream.fault("GET", f"blobs/{digest}", streams(wrong))
    row = await mirror.sync(upstream)
    assert failed_tags(row) == {"bad": "DigestMismatch"}
    stored = await mirror.owner.fetchval(
        "select count(*) from blob where digest = $1 and stored_at is not null", digest
    )
    assert stored == 0
    await recovers(mirror, upstream)
