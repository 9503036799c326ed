"""The token service over a real database."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
import pytest

from entrepot.settings import S3Settings
from tests import contents, services
from tests.conftest import Database
from tests.services import SERVICE, Answer, Running, until, wait_ready, write_key


@pytest.fixture
async def running(database: Database, s3: S3Settings, tmp_path: Path) -> AsyncIterator[Running]:
    async with services.running(database, s3, tmp_path / "keys") as started:
        for access in ("Public", "Authenticated", "Private"):
            repository = await contents.make_repository(started.owner, name=access.lower())
            await contents.make_distribution(
                started.owner, repository, base_path=f"demo/{access.lower()}", access=access
            )
        yield started


async def ask(running: Running, *scopes: str, **headers: str) -> Answer:
    return await running.ask_token(*scopes, through="token", **headers)


async def verified(running: Running, answer: Answer) -> dict[str, Any]:
    """The claims, checked as an outsider would: with the published keys."""
    token = answer.json()["token"]
    published = await running.http.get(f"http://localhost:{running.token.port}/jwks")
    keys = {key["kid"]: key for key in (await published.json(content_type=None))["keys"]}
    header = jwt.get_unverified_header(token)
    assert set(header) == {"alg", "kid", "typ"}
    key = jwt.PyJWK(keys[header["kid"]])
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["ES256"], audience=SERVICE, issuer=SERVICE)
    return claims


async def test_an_answer_has_the_specified_form(running: Running) -> None:
    answer = await ask(running, "repository:demo/public:pull")
    body = answer.json()
    assert (answer.status, answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (
        200,
        "application/json",
        "no-store",
    )
    assert body["token"] == body["access_token"]
    assert body["expires_in"] == 300
    assert abs(datetime.fromisoformat(body["issued_at"]).timestamp() - time.time()) < 10
    assert body["issued_at"].endswith("Z")
    claims = await verified(running, answer)
    assert claims["exp"] - claims["iat"] == 300
    assert claims["nbf"] == claims["iat"]
    assert claims["sub"] == ""
    assert claims["jti"] != (await verified(running, await ask(running)))["jti"]


async def test_nobody_gets_pull_on_what_is_public_and_silently_nothing_else(running: Running) -> None:
    scopes = [f"repository:demo/{name}:pull,push,delete" for name in ("public", "authenticated", "private", "absent")]
    for asked in (
        scopes,
        [" ".join(scopes)],
        [*scopes, "registry:catalog:pull", "nonsense", "repository:demo/public:pull"],
    ):
        claims = await verified(running, await ask(running, *asked))
        assert claims["access"] == [{"type": "repository", "name": "demo/public", "actions": ["pull"]}]
        uuid = await running.owner.fetchval("select uuid::text from distribution where base_path = 'demo/public'")
        refused = ["demo/authenticated", "demo/private", "demo/absent"]
        assert claims["entrepot"] == {"distributions": {"demo/public": uuid}, "refused": refused}
    assert (await verified(running, await ask(running)))["access"] == []


async def test_a_request_costs_one_statement_however_many_scopes(running: Running) -> None:
    async def statements() -> float:
        return await running.metric("entrepot_token_database_statements_total", of=running.token)

    before = await statements()
    await ask(running, *(f"repository:demo/{n}:pull" for n in range(30)))
    assert await statements() == before + 1
    await ask(running)
    assert await statements() == before + 1


async def test_refusals(running: Running) -> None:
    for query in ("", "?service=other", f"?service={SERVICE}&service=other"):
        async with running.http.get(f"http://localhost:{running.token.port}/token{query}") as raw:
            answer = Answer(raw.status, raw.headers, await raw.read())
        assert (answer.status, answer.code) == (400, "UNSUPPORTED")
    many = await ask(running, *(f"repository:demo/{n}:pull" for n in range(33)))
    assert (many.status, many.code) == (400, "UNSUPPORTED")
    credentials = "Basic " + base64.b64encode(b"user:canary-password").decode()
    refused = await ask(running, "repository:demo/public:pull", Authorization=credentials)
    assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
    assert refused.headers["WWW-Authenticate"] == 'Basic realm="entrepot"'
    assert "wrong" in refused.json()["errors"][0]["message"]
    assert b"canary" not in refused.body
    blank = await ask(running, Authorization="Basic Og==")
    assert blank.status == 200
    async with running.http.post(
        f"http://localhost:{running.token.port}/token", data={"grant_type": "password", "service": SERVICE}
    ) as raw:
        assert raw.status == 404
    async with running.http.get(f"http://localhost:{running.token.port}/elsewhere") as raw:
        assert raw.status == 404


async def test_the_published_keys_hold_no_private_half(running: Running) -> None:
    async with running.http.get(f"http://localhost:{running.token.port}/jwks") as answer:
        [key] = (await answer.json(content_type=None))["keys"]
    assert {name: key[name] for name in ("kty", "crv", "kid", "alg", "use")} == {
        "kty": "EC", "crv": "P-256", "kid": "key-1", "alg": "ES256", "use": "sig",
    }  # fmt: skip
    assert "d" not in key


async def test_keys_are_rotated_without_a_restart_and_a_broken_file_changes_nothing(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    async def signer() -> str:
        return str(jwt.get_unverified_header((await ask(running)).json()["token"])["kid"])

    async def published() -> set[str]:
        async with running.http.get(f"http://localhost:{running.token.port}/jwks") as answer:
            return {key["kid"] for key in (await answer.json(content_type=None))["keys"]}

    async def become(ids: set[str], signs: str) -> None:
        async def has_become() -> bool:
            return (await published(), await signer()) == (ids, signs)

        await until(has_become)

    async def is_logged() -> bool:
        return "the signing keys were not read" in caplog.text

    await become({"key-1"}, "key-1")
    write_key(running.keys, "key-2")
    await become({"key-1", "key-2"}, "key-1")
    await become({"key-1", "key-2"}, "key-2")
    write_key(running.keys, "key-0")
    await become({"key-0", "key-1", "key-2"}, "key-2")
    (running.keys / "key-9.pem").write_text("not a key")
    await until(is_logged)
    await become({"key-0", "key-1", "key-2"}, "key-2")
    await wait_ready(running.http, running.token)
    (running.keys / "key-9.pem").unlink()
    (running.keys / "key-2.pem").unlink()
    await become({"key-0", "key-1"}, "key-1")


async def test_without_keys_it_is_unready_and_says_so(database: Database, tmp_path: Path) -> None:
    import aiohttp

    from entrepot_token.app import open_token_service
    from entrepot_token.settings import TokenSettings

    settings = TokenSettings(port=0, metrics_port=0, signing_key_dir=tmp_path / "later", service_id=SERVICE)
    settings = dataclasses.replace(settings, keys_interval=services.WEB.readiness_interval)
    async with (
        open_token_service(settings, web_settings=services.WEB, database=database.settings("token")) as service,
        aiohttp.ClientSession() as http,
    ):
        unready = await wait_ready(http, service, status=503)
        assert set(unready["problems"]) == {"keys"}
        async with http.get(f"http://localhost:{service.port}/token", params={"service": SERVICE}) as answer:
            assert answer.status == 503
        await asyncio.to_thread(write_key, tmp_path / "later")
        await wait_ready(http, service)
        async with http.get(f"http://localhost:{service.port}/token", params={"service": SERVICE}) as answer:
            assert answer.status == 200
