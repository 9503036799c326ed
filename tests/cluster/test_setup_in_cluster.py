"""The set-up's part in Kubernetes, with the rights that the chart gives it and no others."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from entrepot_setup.api import Api, open_api
from entrepot_setup.crds import CLAIM, apply_crds, check_claim, read_crds
from entrepot_setup.errors import ApiFailed, ReleaseRefused
from entrepot_setup.generate import wanted_secrets
from entrepot_setup.secret_objects import ensure_secret
from entrepot_setup.settings import InstallSettings
from tests.cluster.conftest import Kubectl
from tests.servers import find_tool

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def release() -> str:
    """A name of this module's own, so that its ClusterRoles meet no installed release's."""
    return f"entrepot-{uuid4().hex[:6]}"


@pytest.fixture(scope="module")
def rights(kubectl: Kubectl, namespace: str, release: str) -> Iterator[None]:
    """The set-up's ServiceAccount and roles, as the chart has them."""
    done = subprocess.run(
        [find_tool("helm"), "template", release, str(TOP / "charts" / "entrepot"), f"--namespace={namespace}", "--kube-version=1.34.0",
         "--show-only=templates/setup/rbac.yaml"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    kubectl("apply", "--filename=-", input=done.stdout)
    yield
    kubectl("delete", "--filename=-", "--wait=false", input=done.stdout)


@pytest.fixture
async def api(
    kubectl: Kubectl, rights: None, namespace: str, release: str, kubeconfig: Path, tmp_path: Path
) -> AsyncIterator[Api]:
    """The API as the set-up's ServiceAccount."""
    token = kubectl("create", "token", f"{release}-setup", f"--namespace={namespace}").stdout.strip()
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    mine = tmp_path / "kubeconfig"
    mine.write_text(json.dumps(config))
    async with open_api(kubeconfig=mine) as api:
        yield api


@pytest.fixture
def settings(namespace: str, release: str) -> InstallSettings:
    return InstallSettings(
        namespace=namespace,
        release=release,
        database_secret=f"{release}-database",
        storage_secret=f"{release}-storage",
        signing_keys_secret=f"{release}-signing-keys",
        credentials_key_secret=f"{release}-credentials-key",
        users_secret=f"{release}-users",
    )


async def test_secrets_are_made_once_even_by_several_at_a_time(
    api: Api, settings: InstallSettings, namespace: str, release: str
) -> None:
    async def make() -> list[dict[str, bytes]]:
        return [
            await ensure_secret(api, wanted, namespace=namespace, release=release)
            for wanted in wanted_secrets(settings)
        ]

    several = await asyncio.gather(*(make() for _ in range(5)))
    assert all(found == several[0] for found in several)
    assert await make() == several[0]


async def test_a_secret_made_by_hand_is_completed_and_otherwise_kept(
    api: Api, kubectl: Kubectl, settings: InstallSettings, namespace: str
) -> None:
    own = wanted_secrets(settings)[1]
    kubectl("delete", "secret", own.name, f"--namespace={namespace}", "--ignore-not-found")
    kubectl("create", "secret", "generic", own.name, f"--namespace={namespace}", "--from-literal=access-key-id=mine")
    made = await ensure_secret(api, own, namespace=namespace, release=settings.release)
    assert made["access-key-id"] == b"mine"
    assert len(made["secret-access-key"]) > 30
    held = json.loads(kubectl("get", "secret", own.name, f"--namespace={namespace}", "--output=json").stdout)["data"]
    assert {key: base64.b64decode(value) for key, value in held.items()} == made


async def test_it_may_read_no_other_secret(api: Api, kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "secret", "generic", "others", f"--namespace={namespace}", "--from-literal=a=b")
    for path in (
        f"/api/v1/namespaces/{namespace}/secrets/others",
        f"/api/v1/namespaces/{namespace}/secrets",
        "/api/v1/secrets",
    ):
        with pytest.raises(ApiFailed) as refused:
            await api.get(path)
        assert refused.value.status == 403


async def test_the_definitions_are_applied_and_served(
    api: Api, kubectl: Kubectl, crds: Path, namespace: str, release: str
) -> None:
    """Over those that `kubectl apply` has put there, and again over its own."""
    claim = _claim(kubectl)
    try:
        for _ in range(2):
            await apply_crds(api, read_crds(crds), namespace=namespace, release=release)
        assert _claim(kubectl) == f"{namespace}/{release}"
        assert kubectl("get", "repositories.entrepot.dev", f"--namespace={namespace}").returncode == 0
    finally:
        _set_claim(kubectl, claim)


async def test_a_cluster_takes_one_release(
    api: Api, kubectl: Kubectl, crds: Path, namespace: str, release: str
) -> None:
    claim, other = _claim(kubectl), f"other-{uuid4().hex[:6]}"
    binding = f"entrepot:elsewhere:{other}:operator"
    definitions = read_crds(crds)
    try:
        _set_claim(kubectl, f"elsewhere/{other}")
        await check_claim(api, definitions, namespace="elsewhere", release=other)
        await check_claim(
            api, definitions, namespace=namespace, release=release
        )  # the other one is gone: it has no binding
        kubectl("create", "clusterrolebinding", binding, "--clusterrole=view", "--user=nobody")
        with pytest.raises(
            ReleaseRefused,
            match=f"as release '{other}' in namespace 'elsewhere'.*helm uninstall {other} --namespace elsewhere",
        ):
            await check_claim(api, definitions, namespace=namespace, release=release)
    finally:
        kubectl("delete", "clusterrolebinding", binding, "--ignore-not-found")
        _set_claim(kubectl, claim)


def _claim(kubectl: Kubectl) -> str:
    found = kubectl("get", "crd", "repositories.entrepot.dev", "--output=json", "--ignore-not-found").stdout
    annotations: dict[str, str] = json.loads(found)["metadata"].get("annotations", {}) if found else {}
    return annotations.get(CLAIM, "")


def _set_claim(kubectl: Kubectl, claim: str) -> None:
    names = [path.stem.partition("_")[2] + ".entrepot.dev" for path in (TOP / "crds").glob("*.yaml")]
    kubectl("annotate", "--overwrite", "crd", *names, f"{CLAIM}={claim}" if claim else f"{CLAIM}-")
