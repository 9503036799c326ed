"""The token service's pure parts: requests, credentials, rights, keys."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from entrepot.db.token import PlaceRow
from entrepot.errors import Failed, RegistryError
from entrepot_token.app import TokenMetrics
from entrepot_token.htpasswd import Htpasswd, Users, parse_users
from entrepot_token.identity import ANONYMOUS, MAX_PASSWORD, Credentials, Identities, Subject, read_credentials
from entrepot_token.keys import KeyInvalid, load_keys
from entrepot_token.requests import read_request
from entrepot_token.rights import Question, Rights, Wish
from entrepot_token.rules import RuleFile, Rules, parse_rules
from entrepot_token.settings import TokenSettings
from entrepot_token.tokens import Granted, make_claims, timestamp
from entrepot_token.watched import FileInvalid, WatchedFile
from tests.services import until, write_key


def read(query: str, *, max_scopes: int = 8) -> dict[str, frozenset[str]]:
    return read_request(query, service="entrepot", max_scopes=max_scopes).scopes


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("scope=repository:a/b:pull", {"a/b": {"pull"}}),
        ("scope=repository:a/b:pull&scope=repository:c:push,pull", {"a/b": {"pull"}, "c": {"push", "pull"}}),
        ("scope=repository:a/b:pull%20repository:c:push,pull", {"a/b": {"pull"}, "c": {"push", "pull"}}),
        ("scope=repository:a/b:pull+repository:a/b:push", {"a/b": {"pull", "push"}}),
        ("scope=repository(plugin):a:pull", {"a": {"pull"}}),
        ("scope=repository:a:*", {"a": {"*"}}),
        ("scope=registry:catalog:*", {}),
        ("scope=registry:catalog:*%20repository:a:pull", {"a": {"pull"}}),
        ("scope=repository:host.test:5000/a:pull", {}),
        ("scope=repository:A:pull", {}),
        ("scope=repository:a/../b:pull", {}),
        ("scope=repository:a%252fb:pull", {}),
        ("scope=repository:*:pull", {}),
        ("scope=repository:a:", {}),
        ("scope=repository:a", {}),
        ("scope=::", {}),
        ("scope=repository:a:pull&account=x&client_id=docker&offline_token=true", {"a": {"pull"}}),
    ],
)
def test_scopes(query: str, expected: dict[str, set[str]]) -> None:
    assert read(f"service=entrepot&{query}") == expected


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("registry:catalog:*", True),
        ("repository:a:pull registry:catalog:pull,*", True),
        ("registry:catalog:pull", False),
        ("registry:other:*", False),
        ("repository:catalog:*", False),
        ("", False),
    ],
)
def test_the_catalog_is_asked_for_by_its_own_scope(scope: str, expected: bool) -> None:
    request = read_request(f"service=entrepot&scope={scope}".replace(" ", "+"), service="entrepot", max_scopes=8)
    assert request.wants_catalog is expected


@pytest.mark.parametrize(
    "query", ["", "service=", "service=other", "service=entrepot&service=other", "service=entrepo", "service=ENTREPOT"]
)
def test_another_service_is_refused(query: str) -> None:
    with pytest.raises(RegistryError) as caught:
        read(query)
    assert caught.value.status == 400


def test_too_many_scopes_are_refused() -> None:
    read("service=entrepot" + "&scope=repository:a:pull" * 8)
    with pytest.raises(RegistryError) as caught:
        read("service=entrepot" + "&scope=repository:a:pull" * 9)
    assert caught.value.status == 400


@given(st.text(max_size=300))
def test_any_query_is_read_or_refused(query: str) -> None:
    try:
        scopes = read("service=entrepot&" + query.replace("#", "").encode("utf-8", "ignore").decode())
    except RegistryError as error:
        refused = error.status
    else:
        refused = 400
        assert len(scopes) <= 8
    assert refused == 400


def basic(text: bytes) -> str:
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        (basic(b":"), None),
        (basic(b"user:password"), Credentials("user", "password", is_token=False)),
        ("bAsIc " + base64.b64encode(b"user:pass:word").decode(), Credentials("user", "pass:word", is_token=False)),
        (basic(b":password"), Credentials("", "password", is_token=False)),
        (basic("ü:pässwörd".encode()), Credentials("ü", "pässwörd", is_token=False)),
        (basic(b"user:" + b"x" * MAX_PASSWORD), Credentials("user", "x" * MAX_PASSWORD, is_token=False)),
        (basic(b"user:" + b"x" * (MAX_PASSWORD + 1)), Credentials("", "x" * (MAX_PASSWORD + 1), is_token=True)),
        ("Bearer short", Credentials("", "short", is_token=True)),
    ],
)
def test_credentials_are_read(header: str | None, expected: Credentials | None) -> None:
    found = read_credentials(header)
    assert found == expected
    assert "passw" not in repr(found)


@pytest.mark.parametrize(
    "header",
    ["Basic ###", "Basic", "Bearer", "Bearer ", "Negotiate abc", "Digest x", basic(b"user"), basic(b"user:"), basic(b"\xff:x"), "Bearer \u00fc",
     "Bearer a\tb", "Bearer " + "x" * 7000],
)  # fmt: skip
def test_unreadable_credentials_are_refused_and_never_taken_for_nobody(header: str) -> None:
    with pytest.raises(RegistryError) as caught:
        read_credentials(header)
    assert (caught.value.status, caught.value.code) == (401, "UNAUTHORIZED")
    assert caught.value.headers["WWW-Authenticate"].startswith("Basic ")


@given(st.one_of(st.text(), st.binary().map(basic), st.text().map("Bearer {}".format)))
def test_any_header_is_credentials_nobody_or_refused(header: str) -> None:
    try:
        found = read_credentials(header)
    except RegistryError as error:
        status = error.status
    else:
        status = 401
        assert found is None or found.secret
    assert status == 401


def hashed(password: str) -> bytes:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4))


def test_only_lines_with_bcrypt_are_users_and_others_are_known_by_their_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, apache = hashed("a"), b"$2y$" + hashed("b")[4:]
    lines = [
        b"# people", b"alice:" + good, b"", b"bob.b@example.test:" + apache, b"alice:" + apache, b"canary:canary", b"canary:{SHA}canary",
        b"canary:$apr1$canary$canary", b"canary:$2y$31$" + good[7:], b"canary:" + good[:-1], b"system:canary:" + good, b" :" + good,
        b"can ary:" + good, b"canary", b"\xff\xfe:" + good, b":" + good, b"carol:" + good + b"\r",
    ]  # fmt: skip
    from entrepot import logs

    logs.configure("info")
    users = parse_users(b"\n".join(lines))
    assert users == {"alice": good, "bob.b@example.test": apache, "carol": good}
    said = capsys.readouterr()
    assert "canary" not in said.out + said.err
    for number in (5, *range(6, 17)):
        assert f'"line":{number}' in (said.out + said.err).replace(" ", ""), number


@given(st.binary(max_size=500))
def test_any_file_is_users_or_passed_over(data: bytes) -> None:
    assert isinstance(parse_users(data), dict)


@asynccontextmanager
async def htpasswd(path: Path, **settings: Any) -> AsyncIterator[tuple[Htpasswd, Callable[[str], float]]]:
    """The users of a file, and what was counted of an outcome."""
    chosen = TokenSettings(
        signing_key_dir=path.parent, htpasswd_file=path, files_interval=timedelta(milliseconds=20), **settings
    )
    metrics = TokenMetrics()
    async with WatchedFile[Users](path, parse_users, empty={}, interval=chosen.files_interval) as file:
        made = Htpasswd(file, chosen, checks=metrics.passwords)
        yield made, lambda outcome: metrics.passwords.labels(outcome)._value.get()


async def test_a_user_gets_its_own_name_and_groups_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_bytes(b"alice:" + hashed("secret") + b"\n")
    async with htpasswd(path) as (users, _):
        assert await users.check("alice", "secret") == Subject(
            "entrepot:htpasswd:alice", ("entrepot:htpasswd", "entrepot:authenticated")
        )
        for name, password in [
            ("alice", "Secret"),
            ("alice", ""),
            ("Alice", "secret"),
            ("bob", "secret"),
            ("", "secret"),
        ]:
            assert await users.check(name, password) is None


async def test_a_right_password_is_compared_once_and_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_bytes(b"alice:" + hashed("secret"))
    async with htpasswd(path) as (users, counted):
        for _ in range(5):
            assert await asyncio.gather(*(users.check("alice", "secret") for _ in range(5)))
        assert counted("right") == 1
        path.write_bytes(b"alice:" + hashed("another"))

        async def is_refused() -> bool:
            return await users.check("alice", "secret") is None

        await until(is_refused)
        assert await users.check("alice", "another") is not None
        path.write_bytes(b"broken")
        await until(lambda: _none(users, "alice", "another"))
        path.write_bytes(b"alice:" + hashed("third"))
        await until(lambda: _some(users, "alice", "third"))
        path.unlink()
        await until(lambda: _none(users, "alice", "third"))


async def _none(users: Htpasswd, name: str, password: str) -> bool:
    return await users.check(name, password) is None


async def _some(users: Htpasswd, name: str, password: str) -> bool:
    return await users.check(name, password) is not None


async def test_guessing_is_stopped_for_known_and_unknown_names_and_does_not_lock_out_who_is_in(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_bytes(b"alice:" + hashed("secret"))
    async with htpasswd(path, login_failures=3) as (users, counted):
        assert await users.check("alice", "secret") is not None
        for name in ("alice", "nobody"):
            for number in range(3):
                assert await users.check(name, f"wrong {number}") is None
            compared = counted("wrong") + counted("right")
            with pytest.raises(RegistryError) as caught:
                await users.check(name, "wrong again")
            assert (caught.value.status, caught.value.code) == (429, "TOOMANYREQUESTS")
            assert int(caught.value.headers["Retry-After"]) > 0
            assert counted("wrong") + counted("right") == compared, "nothing was compared"
        assert await users.check("alice", "secret") is not None


async def test_only_so_many_wait_for_a_comparison(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_bytes(b"alice:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(8)))
    async with htpasswd(path, login_concurrency=1, login_waiting=4, login_failures=100) as (users, counted):
        tries = (users.check(f"user-{number}", "wrong") for number in range(20))
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert [getattr(result, "status", None) for result in results] == [None] * 4 + [429] * 16
        assert counted("wrong") == 4


async def test_a_name_that_does_not_exist_costs_as_much_as_one_that_does(tmp_path: Path) -> None:
    import statistics
    import time

    path = tmp_path / "htpasswd"
    path.write_bytes(b"alice:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(9)))
    async with htpasswd(path, login_failures=100) as (users, _):
        took: dict[str, list[float]] = {"alice": [], "nobody": []}
        for number in range(7):
            for name, times in took.items():
                started = time.perf_counter()
                await users.check(name, f"wrong {number}")
                times.append(time.perf_counter() - started)
        known, unknown = (statistics.median(times) for times in took.values())
        assert 0.5 < known / unknown < 2


class NoUsers:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def check(self, name: str, password: str) -> Subject | None:
        del password
        self.asked.append(name)
        return None


async def test_whether_a_name_exists_never_decides_which_source_is_asked() -> None:
    tokens: list[str] = []

    class Known:
        async def identify(self, token: str) -> Subject | None:
            tokens.append(token)
            return Subject("system:serviceaccount:demo:robot") if token == "t" * 80 else None

    users = NoUsers()
    identities = Identities(users, Known())
    assert (await identities.authenticate(basic(b"admin:" + b"t" * 80))).name == "system:serviceaccount:demo:robot"
    assert (await identities.authenticate("Bearer " + "t" * 80)).name == "system:serviceaccount:demo:robot"
    assert users.asked == []
    for header in (basic(b"admin:wrong"), basic(b"token:" + b"x" * 80), "Bearer x"):
        with pytest.raises(RegistryError) as caught:
            await identities.authenticate(header)
        assert caught.value.status == 401
    assert (users.asked, tokens) == (["admin"], ["t" * 80, "t" * 80, "x" * 80, "x"])
    assert await identities.authenticate(None) is ANONYMOUS
    with pytest.raises(RegistryError) as caught:
        await Identities(users, None).authenticate("Bearer " + "t" * 80)
    assert caught.value.status == 401


def row(access: str, *, resource: str = "distributions", name: str = "a/b") -> PlaceRow:
    return PlaceRow(name, uuid.uuid4(), access, resource, "demo", "app")


class Holds:
    """A Reviewer that knows some rights, and is away for some verbs."""

    def __init__(self, *held: Question, away: str = "") -> None:
        self.held = held
        self.away = away
        self.asked: list[Question] = []

    async def allows(self, subject: Subject, question: Question) -> bool:
        assert not subject.is_anonymous
        self.asked.append(question)
        if question.verb == self.away:
            raise Failed("away")
        return question in self.held


SOMEBODY = Subject("somebody", ("entrepot:authenticated",))
ACCESS = ("Public", "Authenticated", "Private")
ASKED = (["pull"], ["pull", "push"], ["*"], ["push"], ["delete"], ["nonsense"])


async def test_nobody_pulls_what_is_public_and_nothing_else() -> None:
    reviewer = Holds()
    wishes = [Wish(row(access), frozenset(actions)) for access in ACCESS for actions in ASKED]
    granted = await Rights(reviewer).authorize(ANONYMOUS, wishes)
    assert [set(one) for one in granted] == [{"pull"}] * 3 + [set()] * 15
    assert await Rights(reviewer).catalog(ANONYMOUS, ["demo"]) == ()
    assert reviewer.asked == []


@pytest.mark.parametrize("resource", ["distributions", "repositories"])
@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("held", [set(), {"pull"}, {"push"}, {"delete"}, {"pull", "push"}, {"pull", "push", "delete"}])
@pytest.mark.parametrize("asked", ASKED, ids=",".join)
async def test_granted_is_what_is_asked_for_and_held_and_push_is_not_pull(
    resource: str, access: str, held: set[str], asked: list[str]
) -> None:
    reviewer = Holds(*(Question(verb, resource, "demo", "app") for verb in held))
    [granted] = await Rights(reviewer).authorize(SOMEBODY, [Wish(row(access, resource=resource), frozenset(asked))])
    all_actions = {"pull", "push", "delete"}
    wanted = all_actions if "*" in asked else set(asked) & all_actions
    free = {"pull"} if access != "Private" else set()
    assert granted == wanted & (held | free)
    assert {question.verb for question in reviewer.asked} == wanted - free, "what is free is not asked"


async def test_a_reviewer_that_is_away_is_no_no() -> None:
    reviewer = Holds(away="push")
    [granted] = await Rights(reviewer).authorize(SOMEBODY, [Wish(row("Public"), frozenset({"pull"}))])
    assert granted == {"pull"}
    with pytest.raises(Failed):
        await Rights(reviewer).authorize(SOMEBODY, [Wish(row("Public"), frozenset({"pull", "push"}))])


async def test_a_request_asks_each_question_once() -> None:
    reviewer = Holds()
    wishes = [Wish(row("Private", name=f"a/{n}"), frozenset({"*"})) for n in range(5)]
    await Rights(reviewer).authorize(SOMEBODY, wishes)
    assert len(reviewer.asked) == 3


async def test_the_catalog_names_what_is_held_without_names_of_resources() -> None:
    some = Holds(Question("pull", "distributions", "b"), Question("pull", "distributions", "c", "app"))
    assert await Rights(some).catalog(SOMEBODY, ["a", "b", "c"]) == ["b"]
    assert await Rights(Holds(Question("pull", "distributions"))).catalog(SOMEBODY, ["a"]) == "*"
    many = [f"namespace-{number:04}" for number in range(1000)]
    held = Holds(*(Question("pull", "distributions", name) for name in many))
    listed = await Rights(held).catalog(SOMEBODY, many)
    assert 100 < len(listed) < 300
    assert list(listed) == many[: len(listed)]


RULES = b"""
- {subjects: [alice], verbs: [pull, push], namespaces: [demo], names: [app]}
- {subjects: [group], verbs: [pull], namespaces: [demo], names: ["*"], resources: [distributions]}
- {subjects: [root], verbs: [pull, push, delete], namespaces: ["*"], names: ["*"]}
"""


async def test_rules_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_bytes(RULES)
    alice, member, root = Subject("alice"), Subject("bob", ("group",)), Subject("root")
    one, other = Question("pull", "distributions", "demo", "app"), Question("pull", "distributions", "demo", "other")
    space, everything = Question("pull", "distributions", "demo"), Question("pull", "distributions")
    raw = Question("pull", "repositories", "demo", "app")
    async with WatchedFile[Rules](path, parse_rules, empty=(), interval=timedelta(milliseconds=20)) as file:
        rules = RuleFile(file)
        expected = {"alice": [1, 0, 0, 0, 1], "bob": [1, 1, 1, 0, 0], "root": [1, 1, 1, 1, 1], "group": [1, 1, 1, 0, 0]}
        for subject in (alice, member, root, Subject("group")):
            found = [await rules.allows(subject, question) for question in (one, other, space, everything, raw)]
            assert found == expected[subject.name], subject
        assert not await rules.allows(alice, Question("delete", "distributions", "demo", "app"))
        path.write_text("[]")

        async def is_refused() -> bool:
            return not await rules.allows(alice, one)

        await until(is_refused)


@pytest.mark.parametrize(
    "text", ["{", "x: y", "- {subjects: a}", "- {subjects: [a], verbs: [fly], namespaces: [], names: []}",
             "- {subjects: [a], verbs: [], namespaces: [], names: [], also: 1}"],
)  # fmt: skip
def test_a_file_that_is_not_rules_is_refused(text: str) -> None:
    with pytest.raises(FileInvalid):
        parse_rules(text.encode())
    assert parse_rules(b"") == ()


async def test_a_broken_file_leaves_what_was_and_a_missing_one_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from entrepot import logs

    logs.configure("info")
    path = tmp_path / "rules.yaml"
    path.write_bytes(RULES)
    async with WatchedFile[Rules](path, parse_rules, empty=(), interval=timedelta(milliseconds=10)) as file:
        assert len(file.value) == 3
        path.write_text("- broken")

        async def is_logged() -> bool:
            return "a file is not valid" in capsys.readouterr().out

        await until(is_logged)
        assert len(file.value) == 3
        path.unlink()

        async def is_empty() -> bool:
            return not file.value

        await until(is_empty)


def test_claims() -> None:
    place = row("Public")
    granted = [Granted(place, frozenset({"pull", "push"}))]
    claims = make_claims(ANONYMOUS, granted, service="s", now=1000, lifetime=60)
    jti = claims.pop("jti")
    assert len(jti) >= 16
    assert claims == {
        "iss": "s", "aud": "s", "sub": "", "iat": 1000, "nbf": 1000, "exp": 1060,
        "access": [{"type": "repository", "name": "a/b", "actions": ["pull", "push"]}],
        "entrepot": {"distributions": {"a/b": str(place.uuid)}},
    }  # fmt: skip
    for catalog in ("*", ["a"], []):
        listed = make_claims(ANONYMOUS, granted, catalog=catalog, service="s", now=1000, lifetime=60)
        assert listed["access"][0] == {"type": "registry", "name": "catalog", "actions": ["*"]}
        assert listed["entrepot"]["catalog"] == {"namespaces": catalog}
    assert timestamp(0) == "1970-01-01T00:00:00Z"


def test_the_last_key_signs_and_hidden_files_are_none(tmp_path: Path) -> None:
    for name in ("2026-b", "2026-a"):
        write_key(tmp_path, name)
    write_key(tmp_path, "2025-rsa", kind="rsa")
    (tmp_path / "..data").mkdir()
    (tmp_path / ".hidden").write_text("no key")
    keys = load_keys(tmp_path, algorithm="ES256")
    assert [(key.id, key.algorithm) for key in keys] == [
        ("2025-rsa", "RS256"),
        ("2026-a", "ES256"),
        ("2026-b", "ES256"),
    ]
    for key in keys:
        assert not {"d", "p", "q", "dp", "dq", "qi"} & set(key.public)


def test_bad_directories_are_refused_without_showing_what_is_in_them(tmp_path: Path) -> None:
    with pytest.raises(KeyInvalid, match="cannot be read"):
        load_keys(tmp_path / "absent", algorithm="ES256")
    with pytest.raises(KeyInvalid, match="no key"):
        load_keys(tmp_path, algorithm="ES256")
    write_key(tmp_path, "a")
    with pytest.raises(KeyInvalid, match="not one for RS256"):
        load_keys(tmp_path, algorithm="RS256")
    key = ec.generate_private_key(ec.SECP256R1())
    bad = {
        "text": b"canary text",
        "public": b"-----BEGIN PUBLIC KEY-----\ncanary\n-----END PUBLIC KEY-----\n",
        "encrypted": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
        "curve": ec.generate_private_key(ec.SECP384R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "weak": rsa.generate_private_key(65537, 1024).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    for name, data in bad.items():
        path = tmp_path / f"{name}.pem"
        path.write_bytes(data)
        with pytest.raises(KeyInvalid, match=name) as caught:
            load_keys(tmp_path, algorithm="ES256")
        assert "canary" not in str(caught.value)
        path.unlink()
