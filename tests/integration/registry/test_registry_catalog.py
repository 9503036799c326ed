"""The catalog shows what its reader may pull, and no more; and the pages of all listings."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests import contents
from tests.pushes import Pusher
from tests.services import SERVICE, Running

NAMES = {
    "Public": ("team-a/public", "team-b/public"),
    "Authenticated": ("team-a/known", "team-b/known"),
    "Private": ("team-a/secret", "team-b/secret"),
}


@pytest.fixture
async def filled(running: Running) -> Running:
    """Two namespaces, each with a distribution of every access."""
    for namespace in ("team-a", "team-b"):
        repository = await contents.make_repository(running.owner, namespace=namespace)
        for access, names in NAMES.items():
            for name in names:
                if name.startswith(namespace):
                    await contents.make_distribution(
                        running.owner, repository, base_path=name, access=access, namespace=namespace
                    )
    return running


def reader(running: Running, subject: str = "somebody", namespaces: list[str] | str = "") -> Pusher:
    """One whose token is for the catalog and names these namespaces."""
    key = load_pem_private_key((running.keys / "key-1.pem").read_bytes(), password=None)
    now = int(time.time())
    claims = {
        "iss": SERVICE, "aud": SERVICE, "sub": subject, "iat": now, "nbf": now, "exp": now + 300, "jti": "x",
        "access": [{"type": "registry", "name": "catalog", "actions": ["*"]}],
        "entrepot": {"distributions": {}, "catalog": {"namespaces": namespaces or []}},
    }  # fmt: skip
    token = jwt.encode(claims, key, algorithm="ES256", headers={"kid": "key-1"})  # type: ignore[arg-type]
    return Pusher(running.http, running.url, "", {"Authorization": f"Bearer {token}"})


async def listed(client: Pusher, query: str = "") -> list[str]:
    got = await client.ask("GET", f"/v2/_catalog{query}")
    assert (got.status, got.headers["Content-Type"], set(got.json())) == (200, "application/json", {"repositories"})
    names: list[str] = got.json()["repositories"]
    return names


async def test_everybody_sees_what_he_may_pull(filled: Running) -> None:
    public, known, secret = (list(NAMES[access]) for access in ("Public", "Authenticated", "Private"))
    assert await listed(reader(filled, subject="")) == sorted(public)
    assert await listed(reader(filled, subject="", namespaces=["team-a"])) == sorted(public), "nobody holds nothing"
    assert await listed(reader(filled)) == sorted(public + known)
    assert await listed(reader(filled, namespaces=["team-a"])) == sorted([*public, *known, secret[0]])
    assert await listed(reader(filled, namespaces=["team-a", "team-b"])) == sorted(public + known + secret)
    assert await listed(reader(filled, namespaces="*")) == sorted(public + known + secret)
    assert await listed(reader(filled, namespaces=["nowhere"])) == sorted(public + known)


async def test_what_is_public_is_read_at_the_request(filled: Running) -> None:
    client = reader(filled, subject="")
    await filled.owner.execute("update distribution set access = 'Private' where base_path = 'team-a/public'")
    assert await listed(client) == ["team-b/public"]
    await filled.owner.execute("update repository set deleted_at = now(), purge_after = now()")
    assert await listed(client) == []


async def test_pages_meet_without_gap(filled: Running) -> None:
    client = reader(filled, namespaces="*")
    seen: list[str] = []
    path: str | None = "/v2/_catalog?n=4"
    while path is not None:
        got = await client.ask("GET", path)
        seen += got.json()["repositories"]
        link = got.headers.get("Link")
        path = link.removeprefix("<").removesuffix('>; rel="next"') if link else None
    assert seen == sorted(name for names in NAMES.values() for name in names)
    assert await listed(client, "?last=team-a/public") == [name for name in seen if name > "team-a/public"]
    assert await listed(client, "?last=zzz") == []
    exact = await client.ask("GET", "/v2/_catalog?n=6")
    assert len(exact.json()["repositories"]) == 6
    assert "Link" not in exact.headers
    none = await client.ask("GET", "/v2/_catalog?n=0")
    assert none.json() == {"repositories": []}
    assert "Link" not in none.headers


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("n=-1", 400), ("n=abc", 400), ("n=1.5", 400), ("n=", 400), ("n=%2031", 400), ("n=1&n=2", 400), ("n=" + "9" * 65, 400),
        ("n=2147483648", 200), ("n=1000000000", 200), ("n=" + "9" * 64, 200), ("last=%00", 400), ("last=" + "a" * 256, 400),
        ("last=a%20b", 400), ("last=//evil.example.test", 200), ("last=%5c%5cevil", 200), ("last=a@b", 200),
    ],
)  # fmt: skip
async def test_numbers_are_bounded_and_links_stay_here(filled: Running, query: str, status: int) -> None:
    owner = filled.owner
    repository = await owner.fetchval("select min(id) from repository")
    await contents.push(owner, repository, "latest", contents.image(b"x"))
    tags = Pusher(filled.http, filled.url, "team-a/public", await filled.granted("pull", name="team-a/public"))
    for client, path in ((reader(filled), "/v2/_catalog"), (tags, "/v2/team-a/public/tags/list")):
        got = await client.ask("GET", f"{path}?{query}")
        assert got.status == status, got.body
        if status == 400:
            assert got.code == "PAGINATION_NUMBER_INVALID"
        linked = await client.ask("GET", f"{path}?n=1&{query}") if not query.startswith("n=") else got
        assert linked.headers.get("Link", f"<{path}?").startswith(f"<{path}?")


async def test_it_takes_a_token_of_its_own(filled: Running) -> None:
    got = await filled.request("GET", "/v2/_catalog")
    assert (got.status, got.code) == (401, "UNAUTHORIZED")
    assert 'scope="registry:catalog:*"' in got.headers["WWW-Authenticate"]
    other = await filled.request("GET", "/v2/_catalog", headers=await filled.granted("pull", name="team-a/public"))
    assert other.status == 401


async def test_it_costs_one_statement(filled: Running) -> None:
    client = reader(filled)
    before = await filled.statements()
    await listed(client)
    assert await filled.statements() - before == 1


async def test_a_tag_that_is_not_there_is_as_good_an_end_as_any(filled: Running) -> None:
    owner = filled.owner
    repository = await owner.fetchval("select min(id) from repository")
    image: Any = contents.image(b"x")
    for tag in ("A", "a", "b", "_", "b.1"):
        await contents.push(owner, repository, tag, image)
    tags = Pusher(filled.http, filled.url, "team-a/public", await filled.granted("pull", name="team-a/public"))
    for last, expected in (
        ("", ["A", "_", "a", "b", "b.1"]),
        ("B", ["_", "a", "b", "b.1"]),
        ("a", ["b", "b.1"]),
        ("b.0", ["b.1"]),
    ):
        assert (await tags.ask("GET", f"tags/list?last={last}")).json() == {"name": "team-a/public", "tags": expected}
    exact = await tags.ask("GET", "tags/list?n=5")
    assert "Link" not in exact.headers
    cut = await tags.ask("GET", "tags/list?n=4")
    assert cut.headers["Link"] == '</v2/team-a/public/tags/list?n=4&last=b>; rel="next"'
