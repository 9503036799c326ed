"""The chart in a real cluster, as a platform team meets it: install, upgrade, a second release, uninstall, and install again.

Each test leaves the release installed and ready, so they may run in any order.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from tests.cluster.conftest import OWN_NODE, Kubectl
from tests.cluster.release import Release, clear, merged
from tests.unit.chart.test_chart_objects import VARIATIONS

NAMESPACE = "entrepot-chart"
SECRETS = ("entrepot-database", "entrepot-storage", "entrepot-signing-keys", "entrepot-credentials-key")


@pytest.fixture(scope="module")
def release(kubeconfig: Path, kubectl: Kubectl) -> Iterator[Release]:
    """Installed without any value but the images, in a namespace that enforces the restricted profile."""
    clear(kubeconfig, own=kubeconfig == OWN_NODE)
    _remove(kubectl)
    kubectl("create", "namespace", NAMESPACE)
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    release = Release(kubeconfig, namespace=NAMESPACE)
    try:
        release.install()
        yield release
    finally:
        release.uninstall()
        _remove(kubectl)


def _remove(kubectl: Kubectl) -> None:
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout=55s")


def _get(kubectl: Kubectl, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", f"--namespace={NAMESPACE}", "--output=json", *arguments).stdout)
    return found


def _secrets(kubectl: Kubectl) -> dict[str, Any]:
    return {name: _get(kubectl, "secret", name)["data"] for name in SECRETS}


def _database_id(kubectl: Kubectl) -> str:
    """Tells this database from any that would be made anew."""
    query = "select oid || '/' || (select system_identifier from pg_control_system()) from pg_database where datname = 'entrepot'"
    command = [
        "psql",
        "--host=/var/run/postgresql",
        "--username=postgres",
        "--tuples-only",
        "--no-align",
        f"--command={query}",
    ]
    return kubectl("exec", f"--namespace={NAMESPACE}", "entrepot-database-0", "--", *command).stdout.strip()


def _assert_ready(kubectl: Kubectl) -> None:
    for item in _get(kubectl, "deployments,statefulsets")["items"]:
        assert item["status"].get("readyReplicas") == item["spec"]["replicas"], item["metadata"]["name"]
    (job,) = _get(kubectl, "jobs", "--selector=app.kubernetes.io/component=setup")["items"]
    assert job["status"].get("succeeded") == 1, job["status"]


def test_it_installs_without_values_and_everything_gets_ready(release: Release, kubectl: Kubectl) -> None:
    _assert_ready(kubectl)
    for claim in _get(kubectl, "persistentvolumeclaims")["items"]:
        assert claim["status"]["phase"] == "Bound"
    restarts = {
        f"{pod['metadata']['name']}/{status['name']}": status["restartCount"]
        for pod in _get(kubectl, "pods")["items"]
        for status in [*pod["status"]["containerStatuses"], *pod["status"].get("initContainerStatuses", [])]
    }
    assert not {name: count for name, count in restarts.items() if count}


def test_the_registry_answers_on_every_nodes_own_port(release: Release) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen("http://localhost:30500/v2/", timeout=10)
    with refused.value as answer:
        assert answer.code == 401
        challenge = answer.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="http://localhost:30500/token"'), challenge
    assert f'service="entrepot.{NAMESPACE}"' in challenge
    with urllib.request.urlopen(f"http://localhost:30500/token?service=entrepot.{NAMESPACE}", timeout=10) as answer:
        assert json.load(answer)["token"]


def test_the_notes_print_the_image_reference(release: Release) -> None:
    notes = release.helm("get", "notes", release.name).stdout
    assert "localhost:30500/<namespace>/<repository>:<tag>" in notes
    job = re.search(r"logs job/(\S+)", notes)
    assert job is not None
    assert f"name: {job[1]}\n" in release.helm("get", "manifest", release.name).stdout


def test_an_upgrade_and_a_rollback_keep_the_secrets_and_run_the_set_up_where_it_changed(
    release: Release, kubectl: Kubectl
) -> None:
    secrets, database = _secrets(kubectl), _database_id(kubectl)
    before = _set_up_job(kubectl)
    release.install({"logLevel": "debug"})
    assert _set_up_job(kubectl) != before
    _wait_for_set_up(kubectl)
    release.helm("rollback", release.name, "--wait", "--timeout=3m")
    assert _set_up_job(kubectl) == before
    _wait_for_set_up(kubectl)
    _assert_ready(kubectl)
    assert _secrets(kubectl) == secrets
    assert _database_id(kubectl) == database


def _set_up_job(kubectl: Kubectl) -> str:
    (job,) = _get(kubectl, "jobs", "--selector=app.kubernetes.io/component=setup")["items"]
    return str(job["metadata"]["name"])


def _wait_for_set_up(kubectl: Kubectl) -> None:
    kubectl(
        "wait",
        f"--namespace={NAMESPACE}",
        "job",
        "--selector=app.kubernetes.io/component=setup",
        "--for=condition=Complete",
        "--timeout=50s",
    )


def test_applying_what_helm_template_renders_changes_nothing(release: Release, kubectl: Kubectl) -> None:
    done = kubectl(
        "diff",
        "--server-side",
        "--force-conflicts",
        "--field-manager=helm",
        "--filename=-",
        input=release.manifest(),
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", VARIATIONS)
def test_the_api_server_accepts_every_variation(release: Release, kubectl: Kubectl, name: str) -> None:
    """Unknown fields and wrong values are refused; the release's own ports and volumes are not in the way of a dry run."""
    values = merged(VARIATIONS[name], {"registry": {"service": {"nodePort": 30999}}})
    elsewhere = Release(release.kubeconfig, "entrepot-other", NAMESPACE, release.images)
    kubectl("create", "--dry-run=server", "--validate=strict", "--filename=-", input=elsewhere.manifest(values))


def test_a_second_release_is_refused_by_helm_before_it_makes_anything(release: Release, kubectl: Kubectl) -> None:
    second = Release(release.kubeconfig, "second", f"second-{uuid4().hex[:6]}", release.images)
    done = second.install(check=False)
    assert done.returncode != 0
    assert f'already installed in this cluster, as release "entrepot" in namespace "{NAMESPACE}"' in done.stderr
    assert f"helm uninstall entrepot --namespace {NAMESPACE}" in done.stderr
    left = kubectl(
        "get", "clusterroles,clusterrolebindings", "--selector=app.kubernetes.io/instance=second", "--output=name"
    ).stdout
    assert left == ""
    kubectl("delete", "namespace", second.namespace, "--ignore-not-found", "--wait=false")


def test_a_second_release_by_other_means_is_refused_by_its_set_up(release: Release, kubectl: Kubectl) -> None:
    second = Release(release.kubeconfig, "second", f"second-{uuid4().hex[:6]}", release.images)
    shown = (f"--show-only=templates/setup/{name}.yaml" for name in ("rbac", "job"))
    manifest = second.manifest(None, *shown)
    kubectl("create", "namespace", second.namespace)
    try:
        kubectl("apply", "--filename=-", input=manifest)
        message = _termination_message(kubectl, second.namespace)
        assert f"already installed in this cluster, as release 'entrepot' in namespace '{NAMESPACE}'" in message
        secrets = kubectl("get", "secrets", f"--namespace={second.namespace}", "--output=name").stdout
        assert secrets == ""
    finally:
        kubectl("delete", "--filename=-", "--wait=false", input=manifest)
        kubectl("delete", "namespace", second.namespace, "--wait=false")


def _termination_message(kubectl: Kubectl, namespace: str) -> str:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        pods = json.loads(kubectl("get", "pods", f"--namespace={namespace}", "--output=json").stdout)["items"]
        for pod in pods:
            for status in pod["status"].get("containerStatuses", []):
                # It is started again in its place, so that the attempt before is where it ended.
                for state in (status["state"], status.get("lastState", {})):
                    with contextlib.suppress(KeyError):
                        return str(state["terminated"]["message"])
        time.sleep(0.2)
    raise AssertionError(f"the set-up in {namespace} did not end")


def test_uninstalling_keeps_content_and_definitions_and_installing_again_goes_on(
    release: Release, kubectl: Kubectl
) -> None:
    secrets, database = _secrets(kubectl), _database_id(kubectl)
    claims = {item["metadata"]["uid"] for item in _get(kubectl, "persistentvolumeclaims")["items"]}
    release.uninstall()
    left = _get(kubectl, "deployments,statefulsets,services,jobs,configmaps,roles,rolebindings")["items"]
    assert [item["metadata"]["name"] for item in left if item["metadata"]["name"] != "kube-root-ca.crt"] == []
    cluster_wide = kubectl(
        "get", "clusterroles,clusterrolebindings", "--selector=app.kubernetes.io/instance=entrepot", "--output=name"
    )
    assert cluster_wide.stdout == ""
    assert {item["metadata"]["uid"] for item in _get(kubectl, "persistentvolumeclaims")["items"]} == claims
    assert _secrets(kubectl) == secrets
    for definition in yaml.safe_load(kubectl("get", "crds", "--output=yaml").stdout)["items"]:
        if definition["spec"]["group"] == "entrepot.dev":
            assert definition["metadata"]["annotations"]["entrepot.dev/release"] == f"{NAMESPACE}/entrepot"
    release.install()
    assert _secrets(kubectl) == secrets
    assert _database_id(kubectl) == database
    _wait_for_set_up(kubectl)
    _assert_ready(kubectl)
