"""Who is who, and who may do what: users of an htpasswd file and rules of a file, over a real database."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import bcrypt
import jwt
import pytest
import yaml

from entrepot.settings import S3Settings
from tests import contents, services
from tests.conftest import Database
from tests.services import Answer, Running, until

RULES = [
    {"subjects": ["entrepot:htpasswd:puller"], "verbs": ["pull"], "namespaces": ["demo"], "names": ["*"]},
    {"subjects": ["entrepot:htpasswd:pusher"], "verbs": ["pull", "push"], "namespaces": ["demo"], "names": ["*"]},
    {"subjects": ["entrepot:htpasswd:blind"], "verbs": ["push"], "namespaces": ["demo"], "names": ["*"]},
    {"subjects": ["entrepot:htpasswd:admin"], "verbs": ["pull", "push", "delete"], "namespaces": ["*"], "names": ["*"]},
    {"subjects": ["entrepot:htpasswd:named"], "verbs": ["pull"], "namespaces": ["demo"], "names": ["demo-private"]},
]
HELD = {
    "": set(),
    "nothing": set(),
    "puller": {"pull"},
    "pusher": {"pull", "push"},
    "blind": {"push"},
    "admin": {"pull", "push", "delete"},
}
FREE = {"demo/public": "all", "demo/authenticated": "somebody", "demo/private": "", "r/demo/private": ""}


def write_users(path: Path, *names: str, password: str = "{}'s password") -> None:
    """An htpasswd file."""
    path.write_bytes(
        b"".join(
            b"%s:%s\n" % (name.encode(), bcrypt.hashpw(password.format(name).encode(), bcrypt.gensalt(4)))
            for name in names
        )
    )


@pytest.fixture
async def running(database: Database, s3: S3Settings, tmp_path: Path) -> AsyncIterator[Running]:
    users, rules = tmp_path / "htpasswd", tmp_path / "rules.yaml"
    await asyncio.to_thread(write_users, users, "nothing", "puller", "pusher", "blind", "admin", "named")
    await asyncio.to_thread(rules.write_text, yaml.safe_dump(RULES))
    settings: dict[str, Any] = {
        "htpasswd_file": users, "rights_file": rules, "files_interval": timedelta(milliseconds=20), "login_failures": 3,
        "login_window": timedelta(seconds=2),
    }  # fmt: skip
    async with services.running(database, s3, tmp_path / "keys", token=settings) as started:
        for access in ("Public", "Authenticated", "Private"):
            repository = await contents.make_repository(started.owner, name=access.lower())
            await contents.make_distribution(
                started.owner, repository, base_path=f"demo/{access.lower()}", access=access
            )
        other = await contents.make_repository(started.owner, namespace="other", name="thing")
        await contents.make_distribution(
            started.owner, other, base_path="other/thing", access="Private", namespace="other"
        )
        yield started


def basic(name: str, password: str | None = None) -> dict[str, str]:
    """Credentials as a header; none for an empty name."""
    if not name:
        return {}
    text = f"{name}:{password if password is not None else name + chr(39) + 's password'}"
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


async def ask(running: Running, *scopes: str, name: str = "", password: str | None = None) -> Answer:
    return await running.ask_token(*scopes, through="token", **basic(name, password))


def claims_of(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    claims: dict[str, Any] = jwt.decode(answer.json()["token"], options={"verify_signature": False})
    return claims


def granted(answer: Answer) -> dict[str, set[str]]:
    claims = claims_of(answer)
    names = {entry["name"]: set(entry["actions"]) for entry in claims["access"]}
    assert set(claims["entrepot"]["distributions"]) == set(names)
    return names


@pytest.mark.parametrize("subject", HELD)
async def test_access_times_subject_times_action(running: Running, subject: str) -> None:
    for place, to_whom in FREE.items():
        free = {"pull"} if to_whom == "all" or (to_whom == "somebody" and subject) else set()
        for asked in ("pull", "push", "delete", "pull,push", "push,delete", "*", "nonsense"):
            wanted = {"pull", "push", "delete"} if asked == "*" else set(asked.split(",")) - {"nonsense"}
            expected = wanted & (HELD[subject] | free)
            got = granted(await ask(running, f"repository:{place}:{asked}", name=subject))
            assert got == ({place: expected} if expected else {}), (place, asked)


async def test_a_subject_is_named_as_rbac_names_it(running: Running) -> None:
    assert claims_of(await ask(running, name="puller"))["sub"] == "entrepot:htpasswd:puller"
    assert claims_of(await ask(running))["sub"] == ""


async def test_both_names_of_a_repository_are_told_apart_by_uuid(running: Running) -> None:
    claims = claims_of(
        await ask(running, "repository:demo/private:pull", "repository:r/demo/private:pull", name="puller")
    )
    rows = await running.owner.fetch("select name, uuid::text from place where name like '%demo/private'")
    assert claims["entrepot"]["distributions"] == {row["name"]: row["uuid"] for row in rows}
    assert len(set(claims["entrepot"]["distributions"].values())) == 2


async def test_rights_end_at_the_namespace_and_at_the_name(running: Running) -> None:
    scopes = ("repository:other/thing:pull", "repository:r/other/thing:pull", "repository:demo/private:pull,push")
    assert granted(await ask(running, *scopes, name="pusher")) == {"demo/private": {"pull", "push"}}
    assert granted(await ask(running, *scopes, name="named")) == {"demo/private": {"pull"}}
    assert granted(await ask(running, *scopes, name="admin")) == {
        "other/thing": {"pull"}, "r/other/thing": {"pull"}, "demo/private": {"pull", "push"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("subject", "namespaces"),
    [("", []), ("nothing", []), ("puller", ["demo"]), ("blind", []), ("named", []), ("admin", "*")],
)
async def test_the_catalog_lists_what_is_held_without_names(running: Running, subject: str, namespaces: Any) -> None:
    claims = claims_of(await ask(running, "registry:catalog:*", name=subject))
    assert claims["access"] == [{"type": "registry", "name": "catalog", "actions": ["*"]}]
    assert claims["entrepot"] == {"distributions": {}, "catalog": {"namespaces": namespaces}}


@pytest.mark.parametrize(("subject", "status"), [("pusher", 201), ("admin", 201), ("blind", 202)])
async def test_a_mount_without_a_source_finds_what_the_subject_may_read_in_the_namespace(
    running: Running, subject: str, status: int
) -> None:
    blob = b"in the private repository only" * 2
    private = await running.owner.fetchval("select repository from place where name = 'demo/private'")
    other = await running.owner.fetchval("select repository from place where name = 'other/thing'")
    await contents.store(running.owner, private, blob)
    await contents.store(running.owner, other, foreign := b"in another namespace only" * 2)
    claims = claims_of(await ask(running, "repository:demo/authenticated:push", name=subject))
    assert claims["entrepot"].get("readable", []) == ([] if subject == "blind" else ["demo"])
    for content, expected in ((blob, status), (foreign, 202)):
        path = f"/v2/demo/authenticated/blobs/uploads/?mount={contents.sha256(content)}"
        assert (await running.request("POST", path, headers=basic(subject))).status == expected


async def test_wrong_credentials_are_told_so_and_all_alike(running: Running, tmp_path: Path) -> None:
    answers = [
        await ask(running, "repository:demo/public:pull", name=name, password=password)
        for name, password in [("puller", "canary"), ("nobody", "canary"), ("admin", "canary")]
    ]
    assert {(a.status, a.body, a.headers["WWW-Authenticate"]) for a in answers} == {
        (401, answers[0].body, 'Basic realm="entrepot"')
    }
    assert answers[0].code == "UNAUTHORIZED"
    assert b"canary" not in answers[0].body
    system = await ask(running, name="system:masters", password="x")
    assert system.status == 401


async def test_guessing_is_stopped_for_a_while(running: Running) -> None:
    statuses = [(await ask(running, name="puller", password=f"guess {n}")).status for n in range(4)]
    assert statuses == [401, 401, 401, 429]
    refused = await ask(running, name="puller")
    assert (refused.status, refused.code, refused.headers["Retry-After"]) == (429, "TOOMANYREQUESTS", "2")
    assert (await ask(running, name="pusher")).status == 200

    async def is_in() -> bool:
        return (await ask(running, name="puller")).status == 200

    await until(is_in)


async def test_guesses_at_the_same_moment_are_counted_too(running: Running) -> None:
    answers = await asyncio.gather(*(ask(running, name="puller", password=f"guess {n}") for n in range(20)))
    assert sorted(answer.status for answer in answers) == [401] * 3 + [429] * 17


async def test_a_right_password_counts_for_nothing_however_often_it_comes(running: Running) -> None:
    assert [(await ask(running, name="puller", password=f"guess {n}")).status for n in range(2)] == [401, 401]
    answers = await asyncio.gather(*(ask(running, name="puller") for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    statuses = [(await ask(running, name="puller", password=f"more {n}")).status for n in range(2)]
    assert statuses == [401, 429]


async def test_a_right_taken_away_is_gone_with_the_next_token(running: Running, tmp_path: Path) -> None:
    scope = "repository:demo/private:pull"
    assert granted(await ask(running, scope, name="puller")) == {"demo/private": {"pull"}}
    await asyncio.to_thread((tmp_path / "rules.yaml").write_text, "[]")

    async def is_gone() -> bool:
        return granted(await ask(running, scope, name="puller")) == {}

    await until(is_gone)
    await asyncio.to_thread(write_users, tmp_path / "htpasswd", "pusher", "admin")

    async def is_unknown() -> bool:
        return (await ask(running, scope, name="puller")).status == 401

    await until(is_unknown)
    assert (await ask(running, scope, name="pusher")).status == 200


async def test_a_login_is_compared_once(running: Running) -> None:
    for _ in range(5):
        assert (await ask(running, name="puller")).status == 200
    assert await running.metric(r'entrepot_token_passwords_total\{outcome="right"\}', of=running.token) == 1
    issued = await running.metric(r'entrepot_token_issued_total\{subject="identified"\}', of=running.token)
    assert issued == 5


async def test_our_own_tokens_are_no_credentials(running: Running) -> None:
    token = (await ask(running, name="admin")).json()["token"]
    again = await running.ask_token(through="token", Authorization=f"Bearer {token}")
    assert (again.status, again.code) == (401, "UNAUTHORIZED")


async def test_nothing_secret_is_logged(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    for password in ("canary-password", None):
        await ask(running, "repository:demo/private:pull", name="puller", password=password)
        await running.request("GET", "/v2/", headers=basic("puller", password))
    await running.ask_token(through="token", Authorization="Bearer canary-token")
    text = ""

    async def is_written() -> bool:  # the access log is, now and then
        nonlocal text
        said = capsys.readouterr()
        text += said.out + said.err
        return text.count('"path":"/token"') >= 3 and text.count('"path":"/v2/"') >= 2

    await until(is_written)
    for secret in (
        "canary",
        "puller's password",
        base64.b64encode(b"puller:puller's password").decode(),
        "eyJ",
        "$2b$",
    ):
        assert secret not in text
