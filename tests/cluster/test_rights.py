"""Identities and rights as a real API server knows them: TokenReview and SubjectAccessReview, with the rights the chart gives and no others."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import bcrypt
import jwt
import pytest
import yaml

from entrepot.settings import S3Settings
from entrepot_setup.api import open_api
from entrepot_setup.generate import wanted_secrets
from entrepot_setup.secret_objects import ensure_secret
from entrepot_setup.settings import InstallSettings
from tests import contents, services
from tests.cluster.operator_harness import SYSTEM, TOP, ApiServer, running_api_server
from tests.conftest import Database
from tests.servers import find_tool, free_port
from tests.services import Answer, Running, until

AUDIENCE = "entrepot"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
CACHE = timedelta(milliseconds=300)
SCOPES = {
    "app": "repository:demo/app:pull,push,delete",
    "raw": "repository:r/demo/app:pull,push,delete",
    "other": "repository:other/app:pull,push,delete",
}


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    """An API server with the roles that the chart makes, two namespaces, and ServiceAccounts in them."""
    with running_api_server() as server:
        for namespace in ("demo", "other"):
            server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for namespace, name in (
            ("demo", "robot"),
            ("demo", "second"),
            (SYSTEM, "entrepot-token"),
            (SYSTEM, "idle"),
            (SYSTEM, "entrepot-setup"),
        ):
            make_account(server, namespace, name)
        for template in ("templates/token/rbac.yaml", "templates/setup/rbac.yaml", "templates/clusterroles.yaml"):
            done = subprocess.run(
                [find_tool("helm"), "template", "entrepot", str(TOP / "charts" / "entrepot"), f"--namespace={SYSTEM}",
                 "--kube-version=1.34.0", f"--show-only={template}"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            for body in yaml.safe_load_all(done.stdout):
                if body["kind"] != "ServiceAccount":
                    server.apply(body)
        yield server


def make_account(api: ApiServer, namespace: str, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
    api.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", body)


def token_of(api: ApiServer, namespace: str, name: str, *audiences: str) -> str:
    """What `kubectl create token` gives."""
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": list(audiences), "expirationSeconds": 3600},
    }
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    return str(api.request("POST", path, body)["status"]["token"])


def kubeconfig(api: ApiServer, directory: Path, *, account: str = "entrepot-token", port: int | None = None) -> Path:
    """A kubeconfig of a ServiceAccount of the release."""
    config = json.loads(api.kubeconfig("admin").read_text())
    config["users"][0]["user"] = {"token": token_of(api, SYSTEM, account)}
    if port is not None:
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    path = directory / f"{account}.kubeconfig"
    path.write_text(json.dumps(config))
    return path


def bind(
    api: ApiServer,
    role: str,
    *subjects: tuple[str, str],
    namespace: str = "",
    name: str = "test",
    kind: str = "ClusterRole",
) -> str:
    """A RoleBinding, or a ClusterRoleBinding without namespace; gives its address."""
    made = [
        {"kind": what, "name": who, "apiGroup": "rbac.authorization.k8s.io"}
        if what != "ServiceAccount"
        else {"kind": what, "name": who, "namespace": "demo"}
        for what, who in subjects
    ]
    body = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": made,
    }
    api.apply(body)
    return f"{RBAC}/namespaces/{namespace}/rolebindings/{name}" if namespace else f"{RBAC}/clusterrolebindings/{name}"


ROBOT = ("ServiceAccount", "robot")


@asynccontextmanager
async def opened(
    database: Database, s3: S3Settings, directory: Path, config: Path, **settings: Any
) -> AsyncIterator[Running]:
    """Both services, with a private app in each of two namespaces."""
    line = (
        b"alice:"
        + bcrypt.hashpw(b"alice.", bcrypt.gensalt(4))
        + b"\nadmin:"
        + bcrypt.hashpw(b"admin.", bcrypt.gensalt(4))
    )
    await asyncio.to_thread((directory / "htpasswd").write_bytes, line)
    chosen = {
        "kubeconfig": config, "cluster_audience": AUDIENCE, "review_cache": CACHE, "htpasswd_file": directory / "htpasswd",
        "files_interval": timedelta(milliseconds=50), "login_failures": 100, **settings,
    }  # fmt: skip
    async with services.running(database, s3, directory / "keys", token=chosen) as started:
        for namespace in ("demo", "other"):
            repository = await contents.make_repository(started.owner, namespace=namespace)
            await contents.make_distribution(
                started.owner, repository, base_path=f"{namespace}/app", namespace=namespace, access="Private"
            )
            await started.owner.execute("update distribution set name = 'app'")
        await contents.make_distribution(started.owner, repository, base_path="demo/public")
        await contents.push(started.owner, repository, "latest", contents.image(b"layer"), s3=started.store)
        yield started


@pytest.fixture
async def running(api: ApiServer, database: Database, s3: S3Settings, tmp_path: Path) -> AsyncIterator[Running]:
    config = await asyncio.to_thread(kubeconfig, api, tmp_path)
    async with opened(database, s3, tmp_path, config) as started:
        yield started


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def claims(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    read: dict[str, Any] = jwt.decode(answer.json()["token"], options={"verify_signature": False})
    return read


async def granted(running: Running, headers: dict[str, str], *scopes: str) -> dict[str, set[str]]:
    access = claims(await running.ask_token(*(scopes or SCOPES.values()), **headers))["access"]
    return {entry["name"]: set(entry["actions"]) for entry in access}


async def becomes(running: Running, headers: dict[str, str], expected: dict[str, set[str]]) -> None:
    """Wait until the rights are these: an answer of the API server stands for a while, and its own view of RBAC lags a little."""

    async def are() -> bool:
        return await granted(running, headers) == expected

    await until(are)


async def test_a_token_of_the_cluster_counts_if_it_was_made_for_us(api: ApiServer, running: Running) -> None:
    async def answer(*audiences: str, through: str = "bearer") -> Answer:
        token = await asyncio.to_thread(token_of, api, "demo", "robot", *audiences)
        headers = bearer(token) if through == "bearer" else basic(through, token)
        return await running.ask_token(**headers)

    for through in ("bearer", "token", "anybody", "admin"):
        taken = await answer(AUDIENCE, through=through)
        assert claims(taken)["sub"] == "system:serviceaccount:demo:robot", "the user name says nothing"
        assert claims(await answer("another", AUDIENCE, through=through))["sub"] == "system:serviceaccount:demo:robot"
        for audiences in ((), ("another",), (AUDIENCE + "x",), ("https://kubernetes.default.svc",)):
            refused = await answer(*audiences, through=through)
            assert (refused.status, refused.code) == (401, "UNAUTHORIZED"), (through, audiences)
            assert "--audience" in refused.json()["errors"][0]["message"]
    good = await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE)
    for forged in (good[:-8] + "AAAAAAAA", good.rpartition(".")[0] + ".", "x" * 100):
        assert (await running.ask_token(**bearer(forged))).status == 401


async def test_tokens_of_the_cluster_and_of_the_registry_are_not_taken_for_one_another(
    api: ApiServer, running: Running
) -> None:
    token = await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE, services.SERVICE)
    assert (await running.request("GET", "/v2/", headers=bearer(token))).status == 401
    ours = (await running.ask_token(**bearer(token))).json()["token"]
    assert (await running.request("GET", "/v2/", headers=bearer(ours))).status == 200
    assert (await running.ask_token(**bearer(ours))).status == 401


async def test_a_role_binding_gives_rights_in_its_namespace_until_it_is_taken_away(
    api: ApiServer, running: Running
) -> None:
    robot = bearer(await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE))
    assert await granted(running, robot) == {}
    for role, actions in (
        ("puller", {"pull"}),
        ("pusher", {"pull", "push"}),
        ("registry-admin", {"pull", "push", "delete"}),
    ):
        binding = await asyncio.to_thread(bind, api, f"entrepot-{role}", ROBOT, namespace="demo")
        await becomes(running, robot, {"demo/app": actions, "r/demo/app": actions})
        assert await granted(running, robot, "repository:demo/app:*") == {"demo/app": actions}
        second = bearer(await asyncio.to_thread(token_of, api, "demo", "second", AUDIENCE))
        assert await granted(running, second) == {}
        await asyncio.to_thread(api.delete, binding)
        await becomes(running, robot, {})


async def test_groups_count(api: ApiServer, running: Running) -> None:
    robot = bearer(await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE))
    alice = basic("alice", "alice.")
    pull = {"demo/app": {"pull"}, "r/demo/app": {"pull"}}
    for group, for_robot, for_alice in [
        ("entrepot:authenticated", pull, pull),
        ("entrepot:htpasswd", {}, pull),
        ("system:serviceaccounts:demo", pull, {}),
        ("system:serviceaccounts:other", {}, {}),
        ("system:authenticated", pull, {}),
    ]:
        binding = await asyncio.to_thread(bind, api, "entrepot-puller", ("Group", group), namespace="demo")
        await becomes(running, robot, for_robot)
        await becomes(running, alice, for_alice)
        assert await granted(running, {}) == {}
        await asyncio.to_thread(api.delete, binding)
        await becomes(running, robot, {})
        await becomes(running, alice, {})


async def test_users_are_bound_by_their_whole_name_and_admin_is_bound_by_the_chart(
    api: ApiServer, running: Running
) -> None:
    everything = {"pull", "push", "delete"}
    expected = {"demo/app": everything, "r/demo/app": everything, "other/app": everything}
    assert await granted(running, basic("admin", "admin.")) == expected
    binding = await asyncio.to_thread(
        bind, api, "entrepot-pusher", ("User", "alice"), ("User", "entrepot:htpasswd:bob"), namespace="demo"
    )
    assert await granted(running, basic("alice", "alice.")) == {}
    await asyncio.to_thread(bind, api, "entrepot-pusher", ("User", "entrepot:htpasswd:alice"), namespace="demo")
    await becomes(running, basic("alice", "alice."), {name: {"pull", "push"} for name in ("demo/app", "r/demo/app")})
    await asyncio.to_thread(api.delete, binding)


async def test_rights_on_a_resource_are_not_rights_on_its_content(api: ApiServer, running: Running) -> None:
    robot = bearer(await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE))
    roles = {
        "resources": [{"apiGroups": ["entrepot.dev"], "resources": ["distributions", "repositories"], "verbs": ["*"]}],
        "one-kind": [{"apiGroups": ["entrepot.dev"], "resources": ["repositories/content"], "verbs": ["pull"]}],
        "one-name": [
            {"apiGroups": ["entrepot.dev"], "resources": ["distributions/content"], "resourceNames": ["app"], "verbs": ["pull"]}
        ],
        "other-name": [
            {"apiGroups": ["entrepot.dev"], "resources": ["distributions/content"], "resourceNames": ["ap"], "verbs": ["pull"]}
        ],
    }  # fmt: skip
    expected: dict[str, dict[str, set[str]]] = {
        "resources": {}, "one-kind": {"r/demo/app": {"pull"}}, "one-name": {"demo/app": {"pull"}}, "other-name": {},
    }  # fmt: skip
    for name, rules in roles.items():
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name, "namespace": "demo"}, "rules": rules,
        }  # fmt: skip
        await asyncio.to_thread(api.apply, role)
        binding = await asyncio.to_thread(bind, api, name, ROBOT, namespace="demo", name=name, kind="Role")
        await becomes(running, robot, expected[name])
        await asyncio.to_thread(api.delete, binding)
        await becomes(running, robot, {})


async def test_the_catalog_is_what_may_be_pulled_without_names(api: ApiServer, running: Running) -> None:
    robot = bearer(await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE))

    async def listed(headers: dict[str, str]) -> Any:
        return claims(await running.ask_token("registry:catalog:*", **headers))["entrepot"]["catalog"]["namespaces"]

    async def lists(expected: Any) -> None:
        async def does() -> bool:
            return bool(await listed(robot) == expected)

        await until(does)

    assert await listed({}) == []
    assert await listed(robot) == []
    binding = await asyncio.to_thread(bind, api, "entrepot-puller", ROBOT, namespace="demo")
    await lists(["demo"])
    everywhere = await asyncio.to_thread(bind, api, "entrepot-puller", ROBOT)
    await lists("*")
    await asyncio.to_thread(api.delete, everywhere)
    await asyncio.to_thread(api.delete, binding)
    await lists([])


async def test_an_account_that_is_deleted_is_nobody(api: ApiServer, running: Running) -> None:
    await asyncio.to_thread(make_account, api, "demo", "leaver")
    leaver = bearer(await asyncio.to_thread(token_of, api, "demo", "leaver", AUDIENCE))
    assert (await running.ask_token(**leaver)).status == 200
    await asyncio.to_thread(api.delete, "/api/v1/namespaces/demo/serviceaccounts/leaver")

    async def is_refused() -> bool:
        return (await running.ask_token(**leaver)).status == 401

    await until(is_refused)


async def test_answers_stand_for_a_while_and_questions_are_asked_once(
    api: ApiServer, database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    config = await asyncio.to_thread(kubeconfig, api, tmp_path)
    robot = bearer(await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE))
    async with opened(database, s3, tmp_path, config, review_cache=timedelta(seconds=60)) as running:
        for _ in range(3):
            await asyncio.gather(*(granted(running, robot) for _ in range(10)))

        async def asked(kind: str) -> float:
            return await running.metric(rf'entrepot_token_reviews_total\{{kind="{kind}"', of=running.token)

        assert (await asked("token"), await asked("access")) == (1, 9)


async def test_an_api_server_that_is_away_is_no_no(
    api: ApiServer, database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    robot = bearer(await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE))
    away = await asyncio.to_thread(kubeconfig, api, tmp_path, port=free_port())
    async with opened(database, s3, tmp_path, away) as running:
        alice = basic("alice", "alice.")
        for answer in (await running.ask_token(**robot), await running.ask_token(SCOPES["app"], **alice)):
            assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, "UNAVAILABLE", "2")
        public = "repository:demo/public:pull"
        assert await granted(running, alice, public) == {"demo/public": {"pull"}}
        assert await granted(running, {}, public) == {"demo/public": {"pull"}}
        got = await running.request("GET", "/v2/demo/public/manifests/latest", headers=alice)
        assert got.status == 200
        got = await running.request("GET", "/v2/demo/app/manifests/latest", headers=alice)
        assert got.status == 503


async def test_a_token_service_without_rights_says_no_to_nobody(
    api: ApiServer, database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    robot = bearer(await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE))
    idle = await asyncio.to_thread(kubeconfig, api, tmp_path, account="idle")
    async with opened(database, s3, tmp_path, idle) as running:
        for answer in (
            await running.ask_token(**robot),
            await running.ask_token(SCOPES["app"], **basic("alice", "alice.")),
        ):
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")


async def test_a_robot_pulls_with_its_token_as_password(api: ApiServer, running: Running) -> None:
    robot = basic("token", await asyncio.to_thread(token_of, api, "demo", "robot", AUDIENCE))
    manifest = "/v2/other/app/manifests/latest"
    assert (await running.request("GET", manifest, headers=robot)).status == 401
    binding = await asyncio.to_thread(bind, api, "entrepot-puller", ROBOT, namespace="other")
    scopes = {"other/app": {"pull"}}
    await becomes(running, robot, scopes)
    token = (await running.ask_token("repository:other/app:pull", **robot)).json()["token"]
    assert (await running.request("GET", manifest, headers=bearer(token))).status == 200
    await asyncio.to_thread(api.delete, binding)
    await becomes(running, robot, {})


@pytest.mark.allow_blocking
async def test_the_first_user_has_a_password_of_its_own_and_may_do_everything(
    api: ApiServer, database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    settings = InstallSettings(
        namespace=SYSTEM, release="entrepot", database_secret="entrepot-database", storage_secret="entrepot-storage",
        signing_keys_secret="entrepot-signing-keys", credentials_key_secret="entrepot-credentials-key", users_secret="entrepot-users",
    )  # fmt: skip
    async with open_api(kubeconfig(api, tmp_path, account="entrepot-setup")) as set_up:
        made = [
            await ensure_secret(set_up, wanted_secrets(settings)[-1], namespace=SYSTEM, release="entrepot")
            for _ in range(2)
        ]
    assert made[0] == made[1], "an upgrade keeps it"
    password = made[0]["admin-password"].decode()
    async with opened(database, s3, tmp_path, kubeconfig(api, tmp_path)) as running:
        (tmp_path / "htpasswd").write_bytes(made[0]["htpasswd"])
        everything = {"pull", "push", "delete"}
        expected = {"demo/app": everything, "r/demo/app": everything, "other/app": everything}

        async def is_in() -> bool:
            return (await running.ask_token(**basic("admin", password))).status == 200

        await until(is_in)
        assert await granted(running, basic("admin", password)) == expected
        for guess in ("admin", "password", "entrepot", "admin."):
            assert (await running.ask_token(**basic("admin", guess))).status == 401
