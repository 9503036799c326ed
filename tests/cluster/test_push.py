"""Pushing in a real cluster: users and robots log in at the node's port and push, and pods run it, pulled by the node's own runtime.

What is applied is examples/push, so that what users copy is what is tried. Processes are killed by their host process id, so these tests need
the project's own node.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from tests.cluster.conftest import Kubectl
from tests.cluster.node import REGISTRY, SYSTEM, condition, eventually, installed, processes
from tests.cluster.release import Release
from tests.tools import Tools, made_tools

pytestmark = [pytest.mark.allow_blocking, pytest.mark.timeout(240)]

TOP = Path(__file__).parents[2]
OURS = "entrepot-tests=push"
"""A label of the tests' namespaces."""
AUDIENCE = f"entrepot.{SYSTEM}"
PLAIN = "--tls-verify=false"


@pytest.fixture(scope="module")
def release(kubeconfig: Path, kubectl: Kubectl) -> Iterator[Release]:
    with installed(kubeconfig, kubectl, {"keeper": {"interval": "1s"}}) as release:
        yield release
        # While the operator is there to let go of what is in them; all together, since each takes ten seconds.
        kubectl("delete", "namespace", f"--selector={OURS}", "--timeout=55s")


@pytest.fixture
def tools() -> Iterator[Tools]:
    with made_tools(30500) as tools:
        yield tools


class Team:
    """A namespace with the objects of examples/push, and what its people do."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self.kubectl, self.namespace = kubectl, namespace

    def apply_examples(self) -> None:
        objects = []
        for file in sorted((TOP / "examples/push").glob("*.yaml")):
            for document in yaml.safe_load_all(file.read_text()):
                document["metadata"]["namespace"] = self.namespace
                for subject in document.get("subjects", ()):
                    subject["namespace"] = self.namespace
                if path := document.get("spec", {}).get("basePath"):
                    document["spec"]["basePath"] = path.replace("demo/", f"{self.namespace}/")
                objects.append(document)
        self.kubectl("apply", "--filename=-", input=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object, or nothing."""
        done = self.kubectl("get", kind, name, f"--namespace={self.namespace}", "--output=json", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def wait(self, kind: str, name: str, reason: str) -> dict[str, Any]:
        """The object, once Ready has that reason."""
        eventually(
            lambda: condition(self.get(kind, name)).get("reason") == reason, seconds=30, what=f"{kind}/{name} {reason}"
        )
        return self.get(kind, name)

    def versions(self) -> dict[int, tuple[str, str, list[str]]]:
        """What `kubectl get erv` shows: by number what made a version, and who serves it."""
        listed = self.kubectl("get", "erv", f"--namespace={self.namespace}", "--output=json").stdout
        return {
            item["spec"]["number"]: (status["cause"]["kind"], status["cause"]["name"], status.get("servedBy", []))
            for item in json.loads(listed)["items"]
            if "cause" in (status := item.get("status", {}))
        }

    def token(self, account: str) -> str:
        """The password of a ServiceAccount, as its owner gets it."""
        made = self.kubectl(
            "create", "token", account, f"--namespace={self.namespace}", f"--audience={AUDIENCE}", "--duration=1h"
        )
        return made.stdout.strip()

    def path(self, name: str = "service", tag: str = "1.0") -> str:
        return f"{REGISTRY}/{self.namespace}/{name}:{tag}"

    def run(self, name: str, image: str, *, secret: str | None = None) -> None:
        """A pod whose image the node has to ask for each time."""
        pod: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "main", "image": image, "imagePullPolicy": "Always"}],
                "imagePullSecrets": [{"name": secret}] if secret else [],
            },
        }
        self.kubectl("apply", "--filename=-", input=json.dumps(pod))

    def refusal(self, pod: str) -> str:
        """Why a pod's image is not pulled."""

        def look() -> str:
            for status in self.get("pod", pod).get("status", {}).get("containerStatuses", []):
                waiting = status["state"].get("waiting", {})
                if waiting.get("reason") == "ErrImagePull":
                    return str(waiting["message"])
            return ""

        return eventually(look, seconds=60, what=f"the image of {pod} is refused")


@pytest.fixture
def team(release: Release, kubectl: Kubectl) -> Iterator[Team]:
    name = f"push-{uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, OURS)
    team = Team(kubectl, name)
    team.apply_examples()
    team.wait("edist", "service", "Serving")
    yield team
    kubectl("delete", "namespace", name, "--wait=false")


async def build(tools: Tools, reference: str, words: str) -> None:
    """An image that says some words and stays."""
    context = Path(tempfile.mkdtemp(dir=tools.directory))
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: run `make setup`"
    shutil.copy(busybox, context / "busybox")
    (context / "words").write_text(f"{words}\n")
    (context / "Containerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/busybox\nCOPY words /words\nENTRYPOINT ["/bin/busybox"]\n'
        'CMD ["sh", "-c", "/bin/busybox cat /words; exec /bin/busybox sleep 3600"]\n'
    )
    await tools.buildah("build", "--isolation", "chroot", "-t", reference, str(context))


def admin_password(kubectl: Kubectl) -> str:
    secret = json.loads(kubectl("get", "secret", "entrepot-users", f"--namespace={SYSTEM}", "--output=json").stdout)
    return base64.b64decode(secret["data"]["admin-password"]).decode()


async def test_a_pipeline_pushes_with_its_own_token_and_a_node_pulls_with_its_pods_secret(
    team: Team, tools: Tools, kubectl: Kubectl
) -> None:
    assert "empty" in condition(team.wait("edist", "service-stable", "VersionNotFound"), "Stalled")["message"]
    await build(tools, team.path(), "pushed by a pipeline")
    # Nobody; somebody without rights; and somebody who may pull only.
    _, refused = await tools.podman("push", PLAIN, team.path(), status=125)
    assert "access to the resource is denied" in refused
    for account in ("default", "puller"):
        await tools.login(account, team.token(account))
        _, refused = await tools.podman("push", PLAIN, team.path(), status=125)
        assert "access to the resource is denied" in refused
    assert team.versions() == {}

    await tools.login("pipeline", team.token("pipeline"))
    await tools.podman("push", PLAIN, team.path())
    eventually(
        lambda: team.versions() == {1: ("Push", "1.0", ["service", "service-stable"])},
        seconds=20,
        what="version 1 is shown",
    )
    stable = team.wait("edist", "service-stable", "Serving")
    assert stable["status"]["servedVersion"] == 1
    assert "Push" in kubectl("get", "erv", f"--namespace={team.namespace}").stdout

    team.run("stranger", team.path())
    assert any(word in team.refusal("stranger") for word in ("401", "unauthorized", "authorization failed"))
    kubectl(
        "create", "secret", "docker-registry", "registry", f"--namespace={team.namespace}", f"--docker-server={REGISTRY}",
        "--docker-username=puller", f"--docker-password={team.token('puller')}",
    )  # fmt: skip
    team.run("member", team.path(), secret="registry")
    kubectl("wait", f"--namespace={team.namespace}", "pod/member", "--for=condition=Ready", "--timeout=55s")
    eventually(
        lambda: kubectl("logs", f"--namespace={team.namespace}", "member").stdout == "pushed by a pipeline\n",
        seconds=20,
        what="the pod runs what was pushed",
    )
    # `Authenticated` is for everybody who is somebody, `Private` is not.
    await tools.login("default", team.token("default"))
    await tools.skopeo("inspect", PLAIN, f"docker://{team.path('service-stable')}")
    _, refused = await tools.skopeo("inspect", PLAIN, f"docker://{team.path('service')}", status=1)
    assert "denied" in refused or "unauthorized" in refused


async def test_the_admin_of_the_secret_pushes_where_no_distribution_is_and_deletes(
    team: Team, tools: Tools, kubectl: Kubectl
) -> None:
    await tools.login("admin", admin_password(kubectl))
    name = f"{REGISTRY}/r/{team.namespace}/service"
    await build(tools, f"{name}:old", "one")
    await tools.podman("push", PLAIN, f"{name}:old")
    await build(tools, f"{name}:new", "two")
    await tools.podman("push", PLAIN, f"{name}:new")
    await tools.skopeo("delete", PLAIN, f"docker://{name}:old")
    out, _ = await tools.skopeo("list-tags", PLAIN, f"docker://{REGISTRY}/{team.namespace}/service")
    assert json.loads(out)["Tags"] == ["new"]

    def shown() -> bool:
        versions = team.versions()
        return 3 in versions and versions[3][0] == "Delete" and versions[3][2] == ["service"]

    eventually(shown, seconds=20, what="the delete is shown as a version")
    # The first push was followed by another at once: it is a step, and shown only because it is pinned.
    assert sorted(team.versions()) == [1, 2, 3]


async def test_a_pinned_path_refuses_pushes_and_says_why_and_a_version_that_is_not_there_changes_nothing(
    team: Team, tools: Tools, kubectl: Kubectl
) -> None:
    await tools.login("admin", admin_password(kubectl))
    await build(tools, team.path(), "released")
    await tools.podman("push", PLAIN, team.path())
    team.wait("edist", "service-stable", "Serving")
    await build(tools, team.path("service-stable"), "not released")
    _, refused = await tools.podman("push", PLAIN, team.path("service-stable"), status=125)
    assert "pinned to version 1" in refused
    await tools.podman("push", PLAIN, team.path("service-stable"), team.path("service"))
    patch = ("patch", "edist", "service-stable", f"--namespace={team.namespace}", "--type=merge")
    kubectl(*patch, '--patch={"spec":{"version":7}}')
    stalled = team.wait("edist", "service-stable", "VersionNotFound")
    message = condition(stalled, "Stalled")["message"]
    assert "its newest are 2, 1;" in message
    assert "version 1 is served meanwhile" in message

    async def digest(name: str) -> str:
        out, _ = await tools.skopeo("inspect", PLAIN, "--format={{.Digest}}", f"docker://{team.path(name)}")
        return out.strip()

    first = await digest("service-stable")
    assert first != await digest("service")
    kubectl(*patch, '--patch={"spec":{"version":2}}')
    team.wait("edist", "service-stable", "Serving")
    assert await digest("service-stable") == await digest("service")
    kubectl(*patch, '--patch={"spec":{"version":1}}')
    eventually(lambda: team.get("edist", "service-stable")["status"].get("servedVersion") == 1, what="it goes back")
    assert await digest("service-stable") == first


def layout(directory: Path, size: int) -> str:
    """An OCI image with one layer of random bytes, as a directory; gives the layer's digest."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    layer = add(os.urandom(size), "layer.v1.tar+gzip")
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    made = add(json.dumps(config).encode(), "config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": made,
        "layers": [layer],
    }
    described = add(json.dumps(manifest).encode(), "manifest.v1+json")
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(layer["digest"])


def received(process: int) -> int:
    """Bytes that a process has read so far, from sockets as well."""
    lines = Path(f"/proc/{process}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


async def test_a_push_whose_registry_is_killed_succeeds_when_it_is_tried_again(
    team: Team, tools: Tools, kubectl: Kubectl
) -> None:
    await tools.login("pipeline", team.token("pipeline"))
    source = tools.directory / "layout"
    digest = layout(source, 200 * 1024 * 1024)
    selector = "app.kubernetes.io/component=registry"
    before = {process: received(process) for process in processes(kubectl, SYSTEM, selector, "registry")}
    assert len(before) == 2
    copy = (
        "copy", "--retry-times=6", "--preserve-digests", "--dest-tls-verify=false",
        f"oci:{source}", f"docker://{team.path(tag='large')}",
    )  # fmt: skip
    push = asyncio.create_task(tools.skopeo(*copy))

    def taker() -> int | None:
        return next((process for process, count in before.items() if received(process) > count + 60_000_000), None)

    killed = await asyncio.to_thread(eventually, taker, seconds=60, what="a registry takes the layer")
    assert killed
    assert not push.done()
    os.kill(killed, signal.SIGKILL)
    try:
        await push
    except AssertionError as failed:
        # Where it was reading when the connection broke this client tries again by itself; where it was writing its user has to.
        if "write tcp" not in str(failed):
            raise
        await tools.skopeo(*copy)
    await tools.login("puller", team.token("puller"))
    await tools.skopeo(
        "copy", "--src-tls-verify=false", f"docker://{team.path(tag='large')}", f"dir:{tools.directory}/pulled"
    )
    pulled = tools.directory / "pulled" / digest.removeprefix("sha256:")
    with pulled.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == pulled.name
    eventually(
        lambda: team.versions() == {1: ("Push", "large", ["service", "service-stable"])}, seconds=20, what="one version"
    )
    eventually(
        lambda: len(set(processes(kubectl, SYSTEM, selector, "registry")) - {killed}) == 2, what="the registry is back"
    )


def test_the_keeper_ends_an_upload_that_was_left_alone(team: Team, kubectl: Kubectl) -> None:
    login = base64.b64encode(f"admin:{admin_password(kubectl)}".encode()).decode()
    scope = f"repository:{team.namespace}/service:pull,push"
    asked = urllib.request.Request(f"http://{REGISTRY}/token?service={AUDIENCE}&scope={scope}")
    asked.add_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(asked, timeout=20) as answer:
        token = json.load(answer)["token"]

    def call(method: str, path: str, data: bytes | None = None) -> str:
        request = urllib.request.Request(f"http://{REGISTRY}{path}", method=method, data=data)
        request.add_header("Authorization", f"Bearer {token}")
        request.add_header("Content-Type", "application/octet-stream")
        with urllib.request.urlopen(request, timeout=60) as answer:
            location: str = answer.headers["Location"]
        return location[location.index("/v2/") :]

    # So much that a part of it is in S3.
    left = call("PATCH", call("POST", f"/v2/{team.namespace}/service/blobs/uploads/"), os.urandom(12 * 1024 * 1024))
    identity = left.partition("?")[0].rpartition("/")[2]

    def sql(statement: str) -> str:
        psql = ["psql", "--host=/var/run/postgresql", "--username=postgres", "--dbname=entrepot", "-tAc", statement]
        return kubectl("exec", f"--namespace={SYSTEM}", "entrepot-database-0", "--", *psql).stdout.strip()

    assert sql(f"select count(*) from upload where id = '{identity}'") == "1"
    assert sql(f"select count(*) from object where owner = 'upload/{identity}'") != "0"
    sql(f"update upload set touched_at = now() - interval '25 hours', writer_until = null where id = '{identity}'")
    eventually(lambda: sql(f"select count(*) from upload where id = '{identity}'") == "0", what="the upload is ended")
    sql("update object set delete_after = now() where delete_after is not null")
    eventually(
        lambda: sql(f"select count(*) from object where owner = 'upload/{identity}'") == "0", what="its bytes go"
    )
    with pytest.raises(urllib.error.HTTPError, match="404"):
        call("PATCH", left, b"more")
