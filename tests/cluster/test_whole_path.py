"""The whole path in a real cluster: `kubectl apply` three resources, and a pod runs from the mirrored image; whatever is killed meanwhile.

The release is installed as a user would; upstreams run on this host, on the bridge of the project's own node. Processes in the cluster are
killed by their host process id, so these tests need that node.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from uuid import uuid4

import pytest
import yaml

from tests.cluster.conftest import Kubectl
from tests.cluster.node import BRIDGE, REGISTRY, SYSTEM, condition, eventually, installed, main_process
from tests.cluster.release import Release
from tests.upstreams.server import Upstream

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def release(kubeconfig: Path, kubectl: Kubectl) -> Iterator[Release]:
    with installed(kubeconfig, kubectl) as release:
        yield release


@pytest.fixture(scope="module")
def demo_upstream() -> Iterator[str]:
    """The demo's upstream with its real images; gives its URL."""
    script = TOP / "hack" / "demo-upstream"
    subprocess.run([script, "stop"], check=True, timeout=60, stdin=subprocess.DEVNULL)  # somebody may have pushed to it
    subprocess.run([script, "start"], check=True, timeout=300, stdin=subprocess.DEVNULL)
    yield subprocess.run([script, "url"], check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    subprocess.run([script, "stop"], check=True, timeout=60, stdin=subprocess.DEVNULL)


@pytest.fixture
def namespace(release: Release, kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the test's own; its Repositories are deleted while the operator is there to let go of them."""
    name = f"path-{uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--timeout=55s")


@pytest.fixture
def slow_upstream() -> Iterator[Upstream]:
    """An upstream that takes its time, in a thread: 40 images, each request 0.2 s."""
    upstream = Upstream(host=BRIDGE)
    content = upstream.content("team/app")
    for number in range(40):
        content.add_image(f"v{number}")
    upstream.latency = 0.2
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(upstream.__aenter__(), loop).result(10)
    yield upstream
    asyncio.run_coroutine_threadsafe(upstream.__aexit__(None, None, None), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def mirror(kubectl: Kubectl, namespace: str, *, url: str, upstream_name: str, **remote: object) -> None:
    """Apply a Remote, a Repository and a Distribution, all named app."""
    kind = {"apiVersion": "entrepot.dev/v1alpha1", "metadata": {"name": "app", "namespace": namespace}}
    source = {"remoteRef": {"name": "app"}, "upstreamName": upstream_name}
    objects = [
        {**kind, "kind": "Remote", "spec": {"url": url, **remote}},
        {**kind, "kind": "Repository", "spec": {"mirror": {"sources": [source]}}},
        {**kind, "kind": "Distribution", "spec": {"repositoryRef": {"name": "app"}, "access": "Public"}},
    ]
    kubectl("apply", "--filename=-", input=yaml.safe_dump_all(objects))


def repository(kubectl: Kubectl, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        kubectl("get", "erepo", "app", f"--namespace={namespace}", "--output=json").stdout
    )
    return found


def ready(kubectl: Kubectl, namespace: str, *, seconds: float = 120) -> dict[str, Any]:
    """The Repository, once it is Ready."""

    def look() -> dict[str, Any] | None:
        found = repository(kubectl, namespace)
        return found if condition(found).get("status") == "True" and "latestVersion" in found["status"] else None

    return eventually(look, seconds=seconds, what=f"Repository {namespace}/app is Ready") or {}


class Client:
    """A small registry client without credentials, that verifies what it gets."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.token = ""

    def get(self, path: str) -> bytes:
        """GET /v2/<name>/<path>, with an anonymous token."""
        for _ in range(2):
            request = urllib.request.Request(f"http://{REGISTRY}/v2/{self.name}/{path}")
            if self.token:
                request.add_header("Authorization", f"Bearer {self.token}")
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    body: bytes = answer.read()
                    return body
            except HTTPError as error:
                if error.code != 401:
                    raise
                challenge = dict(re.findall(r'(\w+)="([^"]*)"', error.headers["WWW-Authenticate"]))
            with urllib.request.urlopen(
                f"{challenge['realm']}?service={challenge['service']}&scope={challenge['scope']}", timeout=20
            ) as answer:
                self.token = json.load(answer)["token"]
        raise AssertionError("no access with an anonymous token")

    def tags(self) -> list[str]:
        """The tags that are served; none while the registry does not know the name or does not answer."""
        try:
            found: list[str] = json.loads(self.get("tags/list"))["tags"]
        except (HTTPError, OSError, AssertionError):
            return []
        return found

    def verify(self, tag: str) -> str:
        """Fetch an image with all its blobs and compare digests; gives the manifest's digest."""
        body = self.get(f"manifests/{tag}")
        manifest = json.loads(body)
        for part in [manifest["config"], *manifest["layers"]]:
            data = self.get(f"blobs/{part['digest']}")
            assert part["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        return f"sha256:{hashlib.sha256(body).hexdigest()}"


def test_a_pod_runs_from_a_mirrored_image(kubectl: Kubectl, namespace: str, demo_upstream: str, tmp_path: Path) -> None:
    mirror(kubectl, namespace, url=demo_upstream, upstream_name="demo/app")
    found = ready(kubectl, namespace)
    latest = found["status"]["latestVersion"]
    assert (latest["number"], latest["tags"], latest["indexes"]) == (1, 6, 1)
    assert latest["size"] > 120 * 1024 * 1024

    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "app", "namespace": namespace},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": f"{REGISTRY}/{namespace}/app:latest", "imagePullPolicy": "Always"}],
        },
    }
    kubectl("apply", "--filename=-", input=json.dumps(pod))
    kubectl("wait", f"--namespace={namespace}", "pod/app", "--for=condition=Ready", "--timeout=55s")
    assert "entrepot demo, version 1.2 (amd64)" in kubectl("logs", f"--namespace={namespace}", "app").stdout

    def raw(reference: str) -> bytes:
        command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"]
        return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout

    assert raw(f"{REGISTRY}/{namespace}/app:latest") == raw(f"{demo_upstream.removeprefix('http://')}/demo/app:latest")
    command = [
        "skopeo",
        "copy",
        "--quiet",
        "--all",
        "--src-tls-verify=false",
        f"docker://{REGISTRY}/{namespace}/app:1.2-data",
    ]
    subprocess.run([*command, f"dir:{tmp_path}"], check=True, timeout=120)


def test_kubectl_answers_what_happened_when_and_what_is_next(
    kubectl: Kubectl, namespace: str, demo_upstream: str
) -> None:
    mirror(kubectl, namespace, url=demo_upstream, upstream_name="demo/app")
    ready(kubectl, namespace)
    eventually(
        lambda: (
            kubectl("get", "erv", f"--namespace={namespace}", "--output=name").stdout.split()
            == ["repositoryversion.entrepot.dev/app-v1"]
        ),
        what="the version is shown",
    )
    for kind, columns in (
        ("erepo", ("MIRROR", "VERSION", "TAGS", "SIZE", "LAST SYNC", "READY", "STATUS", "AGE")),
        ("eremote", ("URL", "READY", "STATUS", "AGE")),
        ("edist", ("PATH", "REPOSITORY", "ACCESS", "READY", "STATUS", "AGE")),
        ("erv", ("REPOSITORY", "NUMBER", "TAGS", "AGE")),
    ):
        table = kubectl("get", kind, f"--namespace={namespace}").stdout
        assert all(column in table.splitlines()[0] for column in columns), table
        assert "True" in table, table
    described = kubectl("describe", "erepo", "app", f"--namespace={namespace}").stdout
    assert re.search(r"Normal\s+Synced", described), described
    assert f"{REGISTRY}/{namespace}/app" in kubectl("get", "edist", "app", f"--namespace={namespace}").stdout


def test_a_failing_sync_shows_the_upstreams_own_error_and_mends_itself(
    kubectl: Kubectl, namespace: str, slow_upstream: Upstream
) -> None:
    slow_upstream.latency = 0
    slow_upstream.auth = "basic"
    mirror(kubectl, namespace, url=slow_upstream.url, upstream_name="team/app")
    failed = eventually(
        lambda: (
            condition(repository(kubectl, namespace))
            if condition(repository(kubectl, namespace)).get("status") == "False"
            else None
        ),
        what="the failure is shown",
    )
    assert failed is not None
    assert failed["reason"] == "Unauthorized", failed
    assert "401" in failed["message"], failed
    assert Client(f"{namespace}/app").tags() == []
    slow_upstream.auth = ""
    kubectl("annotate", "erepo", "app", f"--namespace={namespace}", "entrepot.dev/sync-requested-at=again")
    ready(kubectl, namespace)
    assert len(Client(f"{namespace}/app").tags()) == 40


@pytest.mark.parametrize(
    ("where", "selector", "container"),
    [
        ("job", "app.kubernetes.io/component=syncer", "syncer"),
        ("system", "app.kubernetes.io/component=operator", "operator"),
        ("system", "app.kubernetes.io/component=registry", "registry"),
    ],
    ids=["syncer", "operator", "registry"],
)
def test_a_sync_completes_although_a_main_process_is_killed(
    kubectl: Kubectl, namespace: str, slow_upstream: Upstream, where: str, selector: str, container: str
) -> None:
    client = Client(f"{namespace}/app")
    seen: set[int] = set()
    mirror(kubectl, namespace, url=slow_upstream.url, upstream_name="team/app", downloadConcurrency=2)
    eventually(lambda: slow_upstream.counts()["GET blobs"] >= 5, what="the sync is in the middle")
    process = eventually(lambda: main_process(kubectl, SYSTEM, selector, container), what=f"a {container} runs")
    assert process is not None
    os.kill(process, signal.SIGKILL)

    def look() -> bool:
        seen.add(len(client.tags()))
        found = repository(kubectl, namespace)
        return condition(found).get("status") == "True" and "latestVersion" in found["status"]

    eventually(look, seconds=180, what="the sync completes")
    eventually(lambda: len(client.tags()) == 40, what="the registry serves all of it")
    assert seen <= {0, 40}, f"something half-stored was visible: {sorted(seen)} tags"
    expected = slow_upstream.content("team/app").tags
    for tag in ("v0", "v19", "v39"):
        assert client.verify(tag) == expected[tag]
    versions = json.loads(kubectl("get", "erv", f"--namespace={namespace}", "--output=json").stdout)["items"]
    assert [item["spec"]["number"] for item in versions] == [1]
    fetched = slow_upstream.counts()["GET blobs"]
    assert fetched <= 120 + 10, f"{fetched} blobs were fetched for 120: what was stored was fetched again"


def test_deleting_the_repository_stops_the_serving_and_keeps_the_content(
    kubectl: Kubectl, namespace: str, slow_upstream: Upstream
) -> None:
    slow_upstream.latency = 0
    mirror(kubectl, namespace, url=slow_upstream.url, upstream_name="team/app")
    identity = ready(kubectl, namespace)["status"]["uuid"]
    eventually(lambda: len(Client(f"{namespace}/app").tags()) == 40, what="the tags are served")
    kubectl("delete", "erepo", "app", f"--namespace={namespace}", "--timeout=55s")
    eventually(lambda: Client(f"{namespace}/app").tags() == [], what="nothing is served any more")
    query = f"select count(*) from tag t join repository r on r.id = t.repository where r.uuid = '{identity}' and r.deleted_at is not null"
    pod = f"--namespace={SYSTEM}"
    counted = kubectl(
        "exec",
        pod,
        "entrepot-database-0",
        "--",
        "psql",
        "-U",
        "postgres",
        "-d",
        "entrepot",
        "-h",
        "/var/run/postgresql",
        "-tAc",
        query,
    )
    assert counted.stdout.strip() == "40"
