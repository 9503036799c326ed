"""Passwords with requests, in place of tokens: what they open, what they cost, and which way they may come."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml

from entrepot.settings import S3Settings
from tests import contents, services
from tests.conftest import Database
from tests.integration.registry.conftest import Demo, fill
from tests.services import SERVICE, WEB, Running, until

NAMES = ("puller", "pusher", "admin", "nothing")
RULES = [
    {"subjects": ["entrepot:htpasswd:puller"], "verbs": ["pull"], "namespaces": ["demo"], "names": ["*"]},
    {"subjects": ["entrepot:htpasswd:pusher"], "verbs": ["pull", "push"], "namespaces": ["demo"], "names": ["*"]},
    {"subjects": ["entrepot:htpasswd:admin"], "verbs": ["pull", "push", "delete"], "namespaces": ["*"], "names": ["*"]},
]
PRIVATE = "/v2/demo/private/manifests/latest"
TOKENS = "entrepot_registry_token_requests_total"


def write_users(path: Path, *names: str) -> None:
    """An htpasswd file, in which everybody's password is the name and a dot."""
    lines = (f"{name}:{bcrypt.hashpw(f'{name}.'.encode(), bcrypt.gensalt(4)).decode()}\n" for name in names)
    path.write_text("".join(lines))


def basic(name: str, password: str | None = None) -> dict[str, str]:
    text = f"{name}:{name}." if password is None else f"{name}:{password}"
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def sources(directory: Path) -> dict[str, Any]:
    """Settings of the token service: users and rules in a directory."""
    return {
        "htpasswd_file": directory / "htpasswd",
        "rights_file": directory / "rules.yaml",
        "files_interval": timedelta(milliseconds=20),
        "login_failures": 1000,
    }


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    await asyncio.to_thread(write_users, tmp_path / "htpasswd", *NAMES)
    await asyncio.to_thread((tmp_path / "rules.yaml").write_text, yaml.safe_dump(RULES))
    return tmp_path


async def with_private(started: Running) -> Demo:
    """The public demo, and `demo/private` with the same image."""
    demo = await fill(started)
    repository = await contents.make_repository(started.owner, name="private")
    await contents.make_distribution(started.owner, repository, base_path="demo/private", access="Private")
    await contents.push(started.owner, repository, "latest", demo.image, s3=started.store)
    return demo


@pytest.fixture
async def demo(database: Database, s3: S3Settings, directory: Path) -> AsyncIterator[Demo]:
    async with services.running(database, s3, directory / "keys", token=sources(directory)) as started:
        yield await with_private(started)


async def test_a_login_is_judged_at_v2(demo: Demo) -> None:
    for credentials, status in [
        (basic("nothing"), 200), (basic("puller"), 200), (basic("puller", "wrong"), 401), (basic("nobody", "wrong"), 401),
        (basic("", ""), 200), ({"Authorization": "Basic #"}, 401), ({"Authorization": "Basic"}, 401), ({}, 401),
    ]:  # fmt: skip
        for method in ("GET", "HEAD"):
            got = await demo.running.request(method, "/v2/", headers=credentials)
            assert got.status == status, credentials
            if status == 401:
                assert got.headers["WWW-Authenticate"].startswith(f'Bearer realm="{demo.running.url}/token"')


async def test_a_password_opens_what_a_token_for_it_would(demo: Demo) -> None:
    private_blob = f"/v2/demo/private/blobs/{demo.large_digest}"
    for name, status in (("puller", 200), ("pusher", 200), ("admin", 200), ("nothing", 401)):
        for path in (PRIVATE, private_blob, "/v2/demo/private/tags/list"):
            assert (await demo.running.request("GET", path, headers=basic(name))).status == status, (name, path)
        public = await demo.running.request("GET", "/v2/demo/app/manifests/latest", headers=basic(name))
        assert public.status == 200
    got = await demo.running.request("GET", PRIVATE, headers=basic("nothing"))
    assert 'scope="repository:demo/private:pull",error="insufficient_scope"' in got.headers["WWW-Authenticate"]
    blank = await demo.running.request("GET", "/v2/demo/app/manifests/latest", headers=basic("", ""))
    assert blank.status == 200


async def test_pull_and_push_do_not_delete_and_pull_does_not_push(demo: Demo) -> None:
    manifest = f"/v2/demo/private/manifests/{demo.image.digest}"
    for name in ("nothing", "puller", "pusher"):
        got = await demo.running.request("DELETE", manifest, headers=basic(name))
        assert got.status == 401
        assert 'scope="repository:demo/private:delete",error="insufficient_scope"' in got.headers["WWW-Authenticate"]
    token = await demo.running.granted("pull", "push", name="demo/private")
    got = await demo.running.request("DELETE", manifest, headers=token)
    assert (got.status, got.code) == (401, "UNAUTHORIZED")
    assert 'error="insufficient_scope"' in got.headers["WWW-Authenticate"]
    for name in ("nothing", "puller"):
        got = await demo.running.request("PUT", manifest, headers=basic(name), data=demo.image.body)
        assert got.status == 401
        assert 'scope="repository:demo/private:pull,push"' in got.headers["WWW-Authenticate"]
        got = await demo.running.request("POST", "/v2/demo/private/blobs/uploads/", headers=basic(name))
        assert got.status == 401
    assert (await demo.running.request("GET", PRIVATE, headers=basic("puller"))).status == 200


async def test_names_that_do_not_exist_and_names_one_may_not_read_are_the_same(demo: Demo) -> None:
    for credentials in ({}, basic("", ""), basic("nothing"), basic("nothing", "wrong")):
        answers = []
        for name in ("demo/private", "demo/absent", "r/demo/private", "r/demo/absent"):
            got = await demo.running.request("GET", f"/v2/{name}/manifests/latest", headers=credentials)
            answers.append((got.status, got.body, got.headers["WWW-Authenticate"].replace(name, "NAME")))
        assert len(set(answers)) == 1
        assert answers[0][0] == 401


async def test_a_repository_answers_under_its_own_name_to_who_holds_the_right(demo: Demo) -> None:
    for name, status in (("puller", 200), ("nothing", 401)):
        for path in ("/v2/r/demo/private/manifests/latest", "/v2/r/demo/app/tags/list"):
            assert (await demo.running.request("GET", path, headers=basic(name))).status == status
    assert (await demo.running.get("/v2/r/demo/app/manifests/latest", name="r/demo/app")).status == 401


async def test_many_requests_cost_one_login_for_each_scope(demo: Demo) -> None:
    before = await demo.running.metric(TOKENS)
    for _ in range(3):
        answers = await asyncio.gather(
            *(demo.running.request("GET", PRIVATE, headers=basic("puller")) for _ in range(10))
        )
        assert {answer.status for answer in answers} == {200}
    assert await demo.running.metric(TOKENS) == before + 1
    await demo.running.request("GET", "/v2/demo/app/manifests/latest", headers=basic("puller"))
    assert await demo.running.metric(TOKENS) == before + 2


async def test_a_wrong_password_is_not_remembered_and_says_what_is_wrong(demo: Demo, directory: Path) -> None:
    got = await demo.running.request("GET", PRIVATE, headers=basic("newcomer"))
    assert (got.status, got.code) == (401, "UNAUTHORIZED")
    assert got.json()["errors"][0]["message"] == "the user name or the password is wrong"
    rules = [*RULES, {**RULES[0], "subjects": ["entrepot:htpasswd:newcomer"]}]
    await asyncio.to_thread((directory / "rules.yaml").write_text, yaml.safe_dump(rules))
    await asyncio.to_thread(write_users, directory / "htpasswd", *NAMES, "newcomer")

    async def is_in() -> bool:
        return (await demo.running.request("GET", PRIVATE, headers=basic("newcomer"))).status == 200

    await until(is_in)


async def test_the_catalog_is_for_a_token_that_was_asked_for_it(demo: Demo) -> None:
    asked = {}
    for name in ("", "nothing", "puller", "admin"):
        token = await demo.running.ask_token("registry:catalog:*", **(basic(name) if name else {}))
        bearer = {"Authorization": f"Bearer {token.json()['token']}"}
        got = await demo.running.request("GET", "/v2/_catalog", headers=bearer)
        asked[name] = (got.status, got.json().get("repositories"))
        if name:
            with_password = await demo.running.request("GET", "/v2/_catalog", headers=basic(name))
            assert (with_password.status, with_password.body) == (got.status, got.body)
    assert asked == {
        "": (200, ["demo/app"]),
        "nothing": (200, ["demo/app"]),
        "puller": (200, ["demo/app", "demo/private"]),
        "admin": (200, ["demo/app", "demo/private"]),
    }
    for headers in ({}, await demo.running.bearer()):
        got = await demo.running.request("GET", "/v2/_catalog", headers=headers)
        assert got.status == 401
        assert 'scope="registry:catalog:*"' in got.headers["WWW-Authenticate"]


async def test_without_the_token_service_a_new_login_is_told_to_try_again(demo: Demo) -> None:
    assert (await demo.running.request("GET", PRIVATE, headers=basic("puller"))).status == 200
    await demo.running.token.__aexit__(None, None, None)
    assert (await demo.running.request("GET", PRIVATE, headers=basic("puller"))).status == 200
    got = await demo.running.request("GET", PRIVATE, headers=basic("pusher"))
    assert (got.status, got.code) == (503, "UNAVAILABLE")
    assert got.headers["Retry-After"]


LISTED = {"Host": "registry.example.test"}
ELSEWHERE = {"Host": "192.0.2.7:5000"}


async def statuses(running: Running, headers: dict[str, str]) -> tuple[int, int]:
    """At /v2/ and at /token."""
    both = {**headers, **basic("puller")}
    first = await running.request("GET", "/v2/", headers=both)
    second = await running.request("GET", f"/token?service={SERVICE}", headers=both)
    if 403 in (first.status, second.status):
        assert (first.code, second.code) == ("DENIED", "DENIED")
        assert "plain HTTP" in first.json()["errors"][0]["message"]
    return first.status, second.status


async def test_passwords_come_by_tls_or_from_the_same_machine(demo: Demo) -> None:
    port = demo.running.registry.port
    for host in (f"localhost:{port}", "localhost", f"127.0.0.1:{port}", "127.8.8.8", f"[::1]:{port}", "LocalHost"):
        assert await statuses(demo.running, {"Host": host}) == (200, 200), host
    assert await statuses(demo.running, LISTED) == (200, 200), "listed as an https address"
    for host in ("192.0.2.7:5000", "registry.test", "localhost.evil.test", "127.0.0.1.evil.test", "evil.test:80", "x"):
        assert await statuses(demo.running, {"Host": host}) == (403, 403), host
        said = {"Host": host, "X-Forwarded-Proto": "https", "X-Forwarded-Host": "localhost"}
        assert await statuses(demo.running, said) == (403, 403), "nobody's word counts"
    for name, password in (("puller", "wrong"), ("nobody", "x")):
        got = await demo.running.request("GET", "/v2/", headers={**ELSEWHERE, **basic(name, password)})
        assert got.status == 403, "it is not even tried"


async def test_nobody_needs_no_tls(demo: Demo) -> None:
    for credentials in ({}, basic("", "")):
        headers = {**ELSEWHERE, **credentials}
        got = await demo.running.request("GET", f"/token?service={SERVICE}", headers=headers)
        assert got.status == 200
    bearer = await demo.running.bearer()
    got = await demo.running.request("GET", "/v2/demo/app/manifests/latest", headers={**ELSEWHERE, **bearer})
    assert got.status == 200


async def test_a_trusted_proxy_says_how_a_password_came(database: Database, s3: S3Settings, directory: Path) -> None:
    web = dataclasses.replace(WEB, trusted_proxies=("127.0.0.0/8", "::1/128"))
    async with services.running(database, s3, directory / "keys", token=sources(directory), web=web) as running:
        assert await statuses(running, {**ELSEWHERE, "X-Forwarded-Proto": "https"}) == (200, 200)
        assert await statuses(running, {**ELSEWHERE, "X-Forwarded-Proto": "http"}) == (403, 403)
        assert await statuses(running, {**LISTED, "X-Forwarded-Proto": "http"}) == (403, 403)
        assert await statuses(running, ELSEWHERE) == (403, 403)


async def test_a_setting_takes_passwords_from_everywhere(database: Database, s3: S3Settings, directory: Path) -> None:
    async with services.running(
        database, s3, directory / "keys", token=sources(directory), insecure_login=True
    ) as running:
        assert await statuses(running, ELSEWHERE) == (200, 200)


async def test_a_refused_password_is_in_no_log(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    for headers in (basic("puller", "canary-one"), {**ELSEWHERE, **basic("puller", "canary-two")}):
        await demo.running.request("GET", PRIVATE, headers=headers)
    text = ""

    async def is_written() -> bool:
        nonlocal text
        said = capsys.readouterr()
        text += said.out + said.err
        return text.count(f'"path":"{PRIVATE}"') >= 2

    await until(is_written)
    assert "canary" not in text
    assert base64.b64encode(b"puller:canary-two").decode() not in text
