"""The signature extension: form, history, rights; and podman, which signs with it."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

import pytest

from tests import contents
from tests.contents import sha256
from tests.integration.registry.conftest import Demo
from tests.pushes import Pusher, pusher
from tests.services import Answer


@pytest.fixture
async def client(demo: Demo) -> Pusher:
    return await pusher(demo.running)


def path(demo: Demo, digest: str | None = None, name: str = "demo/app") -> str:
    return f"/extensions/v2/{name}/signatures/{digest or demo.image.digest}"


def signature(demo: Demo, content: bytes = b"signed", **more: Any) -> dict[str, Any]:
    encoded = base64.b64encode(content).decode()
    name = f"{demo.image.digest}@{secrets.token_hex(16)}"
    return {"schemaVersion": 2, "type": "atomic", "name": name, "content": encoded, **more}


async def sign(client: Pusher, where: str, given: Any) -> Answer:
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    return await client.ask("PUT", where, data=body)


async def signatures(client: Pusher, where: str) -> list[dict[str, Any]]:
    got = await client.ask("GET", where)
    assert (got.status, got.headers["Content-Type"], set(got.json())) == (200, "application/json", {"signatures"})
    found: list[dict[str, Any]] = got.json()["signatures"]
    return found


async def latest(demo: Demo) -> int:
    return int(await demo.running.owner.fetchval("select latest from repository"))


async def test_what_was_put_is_got_and_is_a_version(demo: Demo, client: Pusher) -> None:
    for got in (await client.ask("GET", "/v2/"), await demo.running.request("GET", "/v2/")):
        assert got.headers["X-Registry-Supports-Signatures"] == "1", "clients look at the first answer, which is 401"
    assert await signatures(client, path(demo)) == []
    one, two = signature(demo), signature(demo, bytes(range(256)))
    for number, given in enumerate((one, two), start=2):
        got = await sign(client, path(demo), given)
        assert (got.status, got.headers["Entrepot-Version"]) == (201, str(number))
    assert await signatures(client, path(demo)) == [one, two]
    rows = await demo.running.owner.fetch(
        "select cause_kind, cause_name, signatures, added_signatures from version where number > 1 order by number"
    )
    assert [tuple(row) for row in rows] == [("Push", demo.image.digest, n, 1) for n in (1, 2)]


async def test_the_same_signature_again_makes_no_version(demo: Demo, client: Pusher) -> None:
    one = signature(demo)
    for given in (one, one, signature(demo)):
        got = await sign(client, path(demo), given)
        assert (got.status, got.headers["Entrepot-Version"]) == (201, "2")
    assert await signatures(client, path(demo)) == [one]


async def test_a_signature_goes_with_its_manifest_and_a_pinned_version_keeps_it(demo: Demo, client: Pusher) -> None:
    await contents.make_distribution(demo.running.owner, demo.repository, base_path="demo/pinned")
    assert (await sign(client, path(demo), given := signature(demo))).status == 201
    await demo.running.owner.execute("update distribution set pinned = 2 where base_path = 'demo/pinned'")
    pinned = await pusher(demo.running, "demo/pinned")
    assert (await client.ask("DELETE", f"manifests/{demo.image.digest}")).status == 202
    assert await signatures(client, path(demo)) == []
    assert await signatures(pinned, path(demo, name="demo/pinned")) == [given]
    row = await demo.running.owner.fetchrow("select signatures, removed_signatures from version where number = 3")
    assert row is not None
    assert tuple(row) == (0, 1)
    assert (await client.manifest(demo.image.body, "latest")).status == 201
    assert await signatures(client, path(demo)) == [], "a push does not bring signatures back"


async def test_signatures_are_each_repositorys_own(demo: Demo, client: Pusher) -> None:
    """The same bytes, said elsewhere to sign something else and by another name, are not what is found here."""
    owner = demo.running.owner
    other = await contents.make_repository(owner, name="other")
    image = contents.image(b"another")
    await contents.push(owner, other, "latest", image)
    elsewhere = await pusher(demo.running, "r/demo/other")
    foreign = signature(demo, name=f"{image.digest}@{'0' * 32}")
    assert (await sign(elsewhere, path(demo, image.digest, "r/demo/other"), foreign)).status == 201
    assert await signatures(client, path(demo)) == []
    mine = signature(demo)
    assert (await sign(client, path(demo), mine)).status == 201
    assert await signatures(client, path(demo)) == [mine]
    assert await signatures(elsewhere, path(demo, image.digest, "r/demo/other")) == [foreign]


async def test_an_unknown_manifest_has_none_and_takes_none(demo: Demo, client: Pusher) -> None:
    absent = sha256(b"absent")
    assert await signatures(client, path(demo, absent)) == []
    got = await sign(client, path(demo, absent), signature(demo, name=f"{absent}@{'0' * 32}"))
    assert (got.status, got.code) == (404, "MANIFEST_UNKNOWN")
    assert await client.status("GET", path(demo, "latest")) == 400
    assert await latest(demo) == 1


async def test_what_is_no_signature_is_refused(demo: Demo, client: Pusher) -> None:
    digest = demo.image.digest
    refused: list[Any] = [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000,
        *({**signature(demo), **change} for change in (
            {"schemaVersion": 1}, {"schemaVersion": "2"}, {"type": "sigstore"}, {"type": None}, {"content": ""}, {"content": "???"},
            {"content": 7}, {"name": digest}, {"name": f"{digest}@"}, {"name": f"{digest}@{'g' * 32}"}, {"name": f"{digest}@{'0' * 32}\n"},
            {"name": f"{sha256(b'else')}@{'0' * 32}"}, {"name": f"{digest}@{'0' * 3200}"}, {"name": f"sha512:{'0' * 128}@{'0' * 32}"},
        )),
    ]  # fmt: skip
    for given in refused:
        got = await sign(client, path(demo), given)
        assert (got.status, got.code) == (400, "MANIFEST_INVALID"), given
    large = await sign(client, path(demo), signature(demo, b"x" * 300_000))
    assert (large.status, large.code) == (413, "SIZE_INVALID")
    assert await latest(demo) == 1


async def test_there_are_only_so_many(demo: Demo, client: Pusher) -> None:
    for n in range(32):
        assert (await sign(client, path(demo), signature(demo, b"%d" % n))).status == 201
    got = await sign(client, path(demo), signature(demo, b"one more"))
    assert (got.status, got.code) == (400, "UNSUPPORTED")
    assert (await sign(client, path(demo), signature(demo, b"7"))).status == 201, "it is there already"
    assert len(await signatures(client, path(demo))) == 32


async def test_rights_mirrors_and_pinned_distributions(demo: Demo, client: Pusher) -> None:
    reader = await pusher(demo.running, "demo/app", "pull")
    assert (await sign(reader, path(demo), signature(demo))).status == 401
    assert await signatures(reader, path(demo)) == []
    assert (await demo.running.request("GET", path(demo))).status == 401
    owner = demo.running.owner
    for change in ("repository set is_mirror = true", "distribution set pinned = 1"):
        await owner.execute(f"update {change}")
        got = await sign(client, path(demo), signature(demo))
        assert (got.status, got.code) == (405, "UNSUPPORTED")
    assert await client.status("DELETE", path(demo)) == 405
    assert await latest(demo) == 1


async def test_what_it_costs(demo: Demo, client: Pusher) -> None:
    before = await demo.running.statements()
    assert (await sign(client, path(demo), signature(demo))).status == 201
    assert await demo.running.statements() - before == 2
    before = await demo.running.statements()
    assert len(await signatures(client, path(demo))) == 1
    assert await demo.running.statements() - before == 1
