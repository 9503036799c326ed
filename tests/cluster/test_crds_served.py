"""The custom resource definitions as an API server takes them: what it fills in, what it refuses, and in which words.

The rules of the schema exist only there: CEL, its cost limits, and defaulting cannot be tried without it. Objects are sent as
a dry run wherever that is enough, so that an operator that happens to run in the cluster has nothing to do.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from tests.cluster.conftest import Kubectl

pytestmark = pytest.mark.usefixtures("crds")

SOURCE = {"remoteRef": {"name": "upstream"}, "upstreamName": "library/nginx"}
DIGEST = "sha256:" + "0" * 64


def manifest(kind: str, spec: object, *, name: str = "x") -> str:
    return yaml.safe_dump(
        {"apiVersion": "entrepot.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    )


def mirror(**fields: object) -> dict[str, object]:
    return {"mirror": {"sources": [SOURCE], **fields}}


def source(**fields: object) -> dict[str, object]:
    return {"mirror": {"sources": [{**SOURCE, **fields}]}}


def remote(**fields: object) -> dict[str, object]:
    return {"url": "https://registry.example.com", **fields}


def distribution(**fields: object) -> dict[str, object]:
    return {"repositoryRef": {"name": "app"}, "access": "Public", **fields}


VALID: list[tuple[str, dict[str, Any]]] = [
    ("Remote", remote()),
    ("Remote", remote(url="https://docker.io/")),
    ("Remote", remote(url="http://10.88.0.1:5055")),
    ("Remote", remote(url="http://[::1]:5000")),
    (
        "Remote",
        remote(
            credentialsSecretRef={"name": "pull"},
            tls={"caSecretRef": {"name": "ca"}, "clientCertSecretRef": {"name": "client"}},
            proxy={"url": "http://proxy.example.com:3128", "credentialsSecretRef": {"name": "proxy"}},
            downloadConcurrency=1,
            rateLimit=10,
            maxRetries=0,
            timeouts={"connect": "1.5s", "read": "1m30s"},
            sigstoreURL="https://example.com/sigstore",
        ),
    ),
    ("Remote", remote(tls={"insecureSkipVerify": True})),
    ("Repository", {}),
    ("Repository", {"description": "what we run"}),
    ("Repository", mirror()),
    ("Repository", mirror(interval="10s")),
    ("Repository", mirror(interval="8760h")),
    ("Repository", mirror(schedule="*/5 3 * * mon-fri", timeZone="Europe/Paris")),
    ("Repository", mirror(schedule="@daily", timeZone="UTC")),
    (
        "Repository",
        mirror(
            policy="Streamed",
            mode="Mirror",
            missingChildren="Fetch",
            companions=False,
            signedOnly=True,
            foreignLayers=True,
            suspend=True,
            maxRemovedPercent=0,
        ),
    ),
    (
        "Repository",
        source(
            includeTags=["1.*", "[!a]?", "[]x]", "_odd", DIGEST],
            excludeTags=["*-rc*"],
            platforms=["linux/amd64", "linux/arm64/v8"],
        ),
    ),
    ("Repository", {"mirror": {"sources": [SOURCE, {**SOURCE, "upstreamName": "nginx"}]}}),
    (
        "Repository",
        {
            "retention": {
                "versions": {"policy": "All"},
                "tags": [{"match": "v.*", "newest": 5}, {"semver": ">=1"}, {"youngerThan": "24h"}],
                "untaggedAfter": "0s",
            }
        },
    ),
    ("Repository", {"accessFrom": {"namespaceSelectors": [{"matchLabels": {}}, {"matchLabels": {"team": "a"}}]}}),
    ("Distribution", distribution()),
    (
        "Distribution",
        distribution(basePath="a/b__c---d.e/f_g", version=3, access="Private", redirect=False, description="x"),
    ),
    ("Distribution", distribution(basePath="a" * 255)),
]


@pytest.mark.parametrize(("kind", "spec"), VALID)
def test_a_valid_object_is_accepted(kubectl: Kubectl, namespace: str, kind: str, spec: dict[str, Any]) -> None:
    kubectl("create", "--dry-run=server", "--namespace", namespace, "-f", "-", input=manifest(kind, spec))


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("Remote", {}, "spec.url: Required value"),
    ("Remote", remote(url=""), "url must begin with https:// or http://"),
    ("Remote", remote(url="docker.io"), "url must begin with https:// or http://, such as https://docker.io"),
    ("Remote", remote(url="ftp://example.com"), "url must begin with https:// or http://"),
    ("Remote", remote(url="https://me:secret@example.com"), "url must not contain credentials; put them into a Secret"),
    ("Remote", remote(url="https://"), "url must name a host"),
    ("Remote", remote(url="https://a b"), "url must name a host"),
    ("Remote", remote(url="https://example.com/v2/"), "url must end after host and port"),
    ("Remote", remote(url="https://example.com?a=b"), "url must end after host and port"),
    ("Remote", remote(url="https://" + "a" * 1024), "spec.url: Too long"),
    (
        "Remote",
        remote(url="http://example.com", tls={"insecureSkipVerify": True}),
        "tls applies to an https:// url only",
    ),
    (
        "Remote",
        remote(tls={"insecureSkipVerify": True, "caSecretRef": {"name": "ca"}}),
        "set caSecretRef or insecureSkipVerify, not both",
    ),
    ("Remote", remote(credentialsSecretRef={}), "spec.credentialsSecretRef.name: Required value"),
    ("Remote", remote(proxy={"url": "socks5://proxy"}), "the proxy's url must begin with http:// or https://"),
    ("Remote", remote(proxy={"url": "http://me:secret@proxy"}), "the proxy's url must not contain credentials"),
    ("Remote", remote(proxy={"url": "http://"}), "the proxy's url must name a host"),
    ("Remote", remote(downloadConcurrency=0), "spec.downloadConcurrency in body should be greater than or equal to 1"),
    ("Remote", remote(rateLimit=0), "spec.rateLimit in body should be greater than or equal to 1"),
    ("Remote", remote(maxRetries=11), "spec.maxRetries in body should be less than or equal to 10"),
    ("Remote", remote(timeouts={"connect": "banana"}), "connect must be a duration from 100ms to 10m"),
    ("Remote", remote(timeouts={"read": "2h"}), "read must be a duration from 100ms to 1h"),
    ("Remote", remote(timeouts={"read": "-1s"}), "read must be a duration from 100ms to 1h"),
    ("Remote", remote(sigstoreURL="file:///x"), "sigstoreURL must begin with https:// or http://"),
    ("Remote", remote(sigstoreURL="https://me:secret@example.com"), "sigstoreURL must not contain credentials"),
    ("Remote", remote(sigstoreURL="https://"), "sigstoreURL must name a host"),
    ("Remote", remote(user="me"), 'unknown field "spec.user"'),
    ("Repository", {"mirror": {}}, "spec.mirror.sources: Required value"),
    ("Repository", {"mirror": {"sources": []}}, "spec.mirror.sources in body should have at least 1 items"),
    (
        "Repository",
        {"mirror": {"sources": [{**SOURCE, "upstreamName": f"a{i}"} for i in range(17)]}},
        "Too many: 17: must have at most 16 items",
    ),
    ("Repository", {"mirror": {"sources": [SOURCE, SOURCE]}}, "two sources name the same remoteRef and upstreamName"),
    (
        "Repository",
        {"mirror": {"sources": [{"remoteRef": {"name": "a"}}]}},
        "spec.mirror.sources[0].upstreamName: Required value",
    ),
    (
        "Repository",
        source(upstreamName="Nginx"),
        "upstreamName must be a repository's name without host, tag and digest",
    ),
    (
        "Repository",
        source(upstreamName="nginx:1.27"),
        "upstreamName must be a repository's name without host, tag and digest",
    ),
    (
        "Repository",
        source(upstreamName="/nginx"),
        "upstreamName must be a repository's name without host, tag and digest",
    ),
    ("Repository", source(includeTags=["nginx:1.27"]), "includeTags takes tags and wildcards such as 1.27 or 1.*"),
    ("Repository", source(includeTags=["sha256:abc"]), "digests sha256:<64 hex digits>"),
    ("Repository", source(includeTags=["a", "a"]), 'spec.mirror.sources[0].includeTags[1]: Duplicate value: "a"'),
    ("Repository", source(includeTags=[""]), "includeTags takes tags and wildcards"),
    ("Repository", source(excludeTags=[DIGEST]), "excludeTags takes tags and wildcards"),
    ("Repository", source(platforms=["linux"]), "a platform is written os/arch or os/arch/variant"),
    (
        "Repository",
        mirror(policy="Lazy"),
        'Unsupported value: "Lazy": supported values: "Immediate", "OnDemand", "Streamed"',
    ),
    ("Repository", mirror(mode="Exact"), 'Unsupported value: "Exact": supported values: "Additive", "Mirror"'),
    ("Repository", mirror(missingChildren="Ignore"), 'supported values: "NotFound", "Fetch"'),
    (
        "Repository",
        mirror(interval="banana"),
        "interval must be a duration from 10s to 8760h in h, m, s and ms, such as 30m or 6h",
    ),
    ("Repository", mirror(interval="30"), "interval must be a duration from 10s to 8760h"),
    ("Repository", mirror(interval="1d"), "interval must be a duration from 10s to 8760h"),
    ("Repository", mirror(interval="9.999s"), "interval must be a duration from 10s to 8760h"),
    ("Repository", mirror(interval="9000h"), "interval must be a duration from 10s to 8760h"),
    ("Repository", mirror(interval="99999999999999h"), "interval must be a duration from 10s to 8760h"),
    ("Repository", mirror(interval=30), "must be of type string"),
    (
        "Repository",
        mirror(interval="30m", schedule="@daily"),
        'spec.mirror.schedule: Invalid value: "object": set schedule or interval, not both',
    ),
    ("Repository", mirror(schedule="3 * * *"), "schedule must be a cron expression of five fields"),
    ("Repository", mirror(timeZone="Europe/Paris"), "timeZone applies to schedule; set schedule or remove timeZone"),
    ("Repository", mirror(schedule="@daily", timeZone="../etc/passwd"), "timeZone must be a name of the IANA database"),
    (
        "Repository",
        mirror(maxRemovedPercent=101),
        "spec.mirror.maxRemovedPercent in body should be less than or equal to 100",
    ),
    (
        "Repository",
        {"retention": {"versions": {"count": 0}}},
        "spec.retention.versions.count in body should be greater than or equal to 1",
    ),
    ("Repository", {"retention": {"versions": {"minAge": "7d"}}}, "minAge must be a duration up to 87600h"),
    ("Repository", {"retention": {"tags": [{"match": "v.*"}]}}, "set at least one of newest, semver and youngerThan"),
    ("Repository", {"retention": {"tags": [{"youngerThan": "soon"}]}}, "youngerThan must be a duration up to 87600h"),
    ("Repository", {"retention": {"untaggedAfter": "soon"}}, "untaggedAfter must be a duration up to 87600h"),
    ("Repository", {"accessFrom": {"namespaceSelectors": []}}, "should have at least 1 items"),
    ("Distribution", {"repositoryRef": {"name": "app"}}, "spec.access: Required value"),
    ("Distribution", {"access": "Public"}, "spec.repositoryRef: Required value"),
    ("Distribution", distribution(access="public"), 'supported values: "Public", "Authenticated", "Private"'),
    (
        "Distribution",
        distribution(basePath="Demo/app"),
        "basePath must be an image name without host and tag, such as demo/app",
    ),
    ("Distribution", distribution(basePath="demo/app:1"), "basePath must be an image name without host and tag"),
    ("Distribution", distribution(basePath="demo//app"), "basePath must be an image name without host and tag"),
    ("Distribution", distribution(basePath="demo/app/"), "basePath must be an image name without host and tag"),
    (
        "Distribution",
        distribution(basePath="r/demo/app"),
        "basePath must not begin with r/; every Repository is served there already",
    ),
    ("Distribution", distribution(basePath="a" * 256), "spec.basePath: Too long: may not be more than 255"),
    ("Distribution", distribution(version=0), "spec.version in body should be greater than or equal to 1"),
    (
        "RepositoryVersion",
        {"repositoryRef": {"name": "app"}, "number": 3},
        "a RepositoryVersion is named <repository>-v<number>",
    ),
    (
        "RepositoryVersion",
        {"repositoryRef": {"name": "app"}, "number": 0},
        "spec.number in body should be greater than or equal to 1",
    ),
]


@pytest.mark.parametrize(("kind", "spec", "fragment"), INVALID)
def test_an_invalid_object_is_refused_with_the_cause(
    kubectl: Kubectl, namespace: str, kind: str, spec: dict[str, Any], fragment: str
) -> None:
    sent = manifest(kind, spec)
    done = kubectl("create", "--dry-run=server", "--namespace", namespace, "-f", "-", input=sent, check=False)
    assert done.returncode != 0, "it was accepted"
    assert fragment in done.stderr
    assert "secret@" not in done.stderr, "the refusal repeats a password"


@pytest.mark.parametrize(("kind", "spec"), [("Remote", remote()), ("Repository", {}), ("Distribution", distribution())])
def test_a_name_has_at_most_52_characters(kubectl: Kubectl, namespace: str, kind: str, spec: dict[str, Any]) -> None:
    create = ("create", "--dry-run=server", "--namespace", namespace, "-f", "-")
    kubectl(*create, input=manifest(kind, spec, name="n" * 52))
    done = kubectl(*create, input=manifest(kind, spec, name="n" * 53), check=False)
    assert f"a {kind}'s name has at most 52 characters" in done.stderr


@pytest.mark.parametrize("name", ["app-v03", "app-v4", "ap-v3", "app-v3x", "xapp-v3", "app"])
def test_a_version_is_named_after_its_repository_and_number(kubectl: Kubectl, namespace: str, name: str) -> None:
    spec = {"repositoryRef": {"name": "app"}, "number": 3}
    done = kubectl(
        "create",
        "--dry-run=server",
        "--namespace",
        namespace,
        "-f",
        "-",
        input=manifest("RepositoryVersion", spec, name=name),
        check=False,
    )
    assert "a RepositoryVersion is named <repository>-v<number>" in done.stderr


def test_the_largest_mirror_stays_within_the_cost_limits(kubectl: Kubectl, namespace: str) -> None:
    """The API server stops rules that cost too much while they run, whatever it estimated; etcd takes 1.5 MiB."""
    sources = [
        {
            "remoteRef": {"name": "r" * 52},
            "upstreamName": f"{'n' * 250}{i:03}",
            "includeTags": [f"*{'t' * 60}{j:03}" for j in range(256)],
            "excludeTags": [f"*{'x' * 60}{j:03}" for j in range(256)],
            "platforms": [f"linux/{'p' * 20}{j:03}" for j in range(32)],
        }
        for i in range(16)
    ]
    kubectl(
        "create",
        "--dry-run=server",
        "--namespace",
        namespace,
        "-f",
        "-",
        input=manifest("Repository", {"mirror": {"sources": sources}}),
    )


def test_defaults_are_filled_in_and_no_others(kubectl: Kubectl, namespace: str) -> None:
    def filled(kind: str, spec: dict[str, Any]) -> Any:
        done = kubectl(
            "create", "--dry-run=server", "--namespace", namespace, "-o", "json", "-f", "-", input=manifest(kind, spec)
        )
        return json.loads(done.stdout)

    retention = {"versions": {"policy": "Count", "count": 20, "minAge": "168h"}}
    assert filled("Repository", {})["spec"] == {"retention": retention}
    assert filled("Repository", mirror())["spec"] == {
        "retention": retention,
        "mirror": {
            "sources": [SOURCE],
            "policy": "Immediate",
            "mode": "Additive",
            "missingChildren": "NotFound",
            "companions": True,
            "foreignLayers": False,
            "maxRemovedPercent": 50,
        },
    }
    assert filled("Remote", remote(tls={}, timeouts={}))["spec"] == remote(tls={}, timeouts={})
    assert filled("Distribution", distribution())["spec"] == distribution()
    for kind, spec in (("Repository", {}), ("Remote", remote()), ("Distribution", distribution())):
        assert filled(kind, spec)["status"] == {"observedGeneration": -1}


def test_a_version_cannot_be_changed_and_is_found_by_its_fields(kubectl: Kubectl, namespace: str) -> None:
    # A finalizer of the test's own keeps the object while an operator, if one runs, clears away what it does not know.
    made = {
        "apiVersion": "entrepot.dev/v1alpha1",
        "kind": "RepositoryVersion",
        "metadata": {"name": "app-v3", "finalizers": ["entrepot.dev/test"]},
        "spec": {"repositoryRef": {"name": "app"}, "number": 3},
    }
    kubectl("create", "--namespace", namespace, "-f", "-", input=yaml.safe_dump(made))
    try:
        for change in ({"number": 4}, {"repositoryRef": {"name": "other"}}):
            patch = json.dumps({"spec": change})
            done = kubectl(
                "patch", "erv", "app-v3", "--namespace", namespace, "--type=merge", f"--patch={patch}", check=False
            )
            assert "spec is immutable" in done.stderr
        for selector, found in (
            ("number=3", True),
            ("number=4", False),
            ("repositoryRef.name=app", True),
            ("repositoryRef.name=x", False),
        ):
            listed = kubectl(
                "get", "erv", "--namespace", namespace, "-o", "name", f"--field-selector=spec.{selector}"
            ).stdout
            assert ("app-v3" in listed) == found, selector
    finally:
        kubectl(
            "patch", "erv", "app-v3", "--namespace", namespace, "--type=merge", '--patch={"metadata":{"finalizers":[]}}'
        )


STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "uuid": "5d8a8f0e-4b63-4c39-9f7a-3a1d3a3f3b11",
    "conditions": [
        {"type": "Ready", "status": "True", "reason": "Synced", "message": "in step with the upstream", "observedGeneration": 1,
         "lastTransitionTime": "2026-11-21T07:00:00Z"},
    ],
    "latestVersion": {"number": 1, "createdAt": "2026-11-21T07:00:00Z", "tags": 4, "manifests": 6, "indexes": 1, "blobs": 12,
                      "size": 117440512, "sizeText": "112 MiB"},
    "lastSync": {"run": "0c6a9f5e-0f5a-4f5f-8a53-61f4ff1a2b11", "startedAt": "2026-11-21T06:59:00Z", "finishedAt": "2026-11-21T07:00:00Z",
                 "outcome": "Partial", "version": 1, "added": 4, "removed": 0, "bytesTransferred": 117440512,
                 "failedTags": [{"tag": "broken", "reason": "UpstreamInvalid", "message": "wrong bytes"}], "failedTagCount": 1},
    "sync": {"phase": "Downloading", "run": "0c6a9f5e-0f5a-4f5f-8a53-61f4ff1a2b12", "job": "sync-app-1", "startedAt": "2026-11-21T07:00:01Z",
             "progress": {kind: {"done": 1, "total": 2} for kind in ("tags", "manifests", "blobs", "bytes")}},
    "nextSyncTime": "2026-11-21T08:00:00Z",
    "lastHandledSyncRequest": "now",
}  # fmt: skip


def test_a_whole_status_is_kept_and_shown(kubectl: Kubectl, namespace: str) -> None:
    kubectl(
        "create", "--namespace", namespace, "-f", "-", input=manifest("Repository", mirror(suspend=True), name="shown")
    )
    applied = {
        "apiVersion": "entrepot.dev/v1alpha1",
        "kind": "Repository",
        "metadata": {"name": "shown"},
        "status": STATUS,
    }
    done = kubectl(
        "apply",
        "--server-side",
        "--subresource=status",
        "--force-conflicts",
        "--field-manager=entrepot-tests",
        "--namespace",
        namespace,
        "-o",
        "json",
        "-f",
        "-",
        input=yaml.safe_dump(applied),
    )
    assert json.loads(done.stdout)["status"] == STATUS
    table = kubectl("get", "erepo", "--namespace", namespace).stdout.splitlines()
    assert table[0].split("  ")[0] == "NAME"
    assert table[0].split() == ["NAME", "MIRROR", "VERSION", "TAGS", "SIZE", "LAST", "SYNC", "READY", "STATUS", "AGE"]
    assert any("library/nginx" in line and "112 MiB" in line for line in table[1:])


@pytest.mark.parametrize(
    ("path", "fragment"),
    [
        ("erepo.spec.mirror.sources", "One upstream repository, and which part of it is mirrored."),
        ("erepo.spec.mirror.sources.includeTags", "Absent or empty means every tag."),
        ("eremote.spec.url", "without path and without credentials"),
        ("edist.spec.access", "There is no default"),
        ("erv.status.contentSummary", "a moved tag counts as one added and one removed"),
    ],
)
def test_kubectl_explain_describes_the_fields(kubectl: Kubectl, path: str, fragment: str) -> None:
    # The published schema follows a change of the CRD after a moment.
    deadline = time.monotonic() + 30
    while True:
        shown = " ".join(kubectl("explain", path, check=False).stdout.split())
        if fragment.lower() in shown.lower() or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert fragment.lower() in shown.lower()


def test_the_kinds_share_a_category(kubectl: Kubectl) -> None:
    listed = kubectl("api-resources", "--categories=entrepot", "-o", "name").stdout.split()
    assert listed == [
        f"{kind}.entrepot.dev" for kind in ("distributions", "remotes", "repositories", "repositoryversions")
    ]


def test_the_examples_are_accepted(kubectl: Kubectl, namespace: str) -> None:
    files = sorted((Path(__file__).parents[2] / "examples").glob("**/*.yaml"))
    assert files
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            document["metadata"].pop("namespace", None)
            for subject in document.get("subjects", []):
                subject["namespace"] = namespace
            create = ("create", "--dry-run=server", "-f", "-")
            scope = () if document["kind"] == "Namespace" else ("--namespace", namespace)
            done = kubectl(*create, *scope, input=yaml.safe_dump(document), check=False)
            assert done.returncode == 0 or "AlreadyExists" in done.stderr, f"{file}: {done.stderr}"
