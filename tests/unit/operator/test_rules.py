"""The small pure rules: base paths, fields that are to come, names and bodies of Jobs, what pods say, sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import Stalled
from entrepot_operator.index import Index
from entrepot_operator.jobs import (
    JobState,
    TemplateInvalid,
    check_template,
    diagnose,
    job_body,
    job_name,
    job_state,
    pod_trouble,
)
from entrepot_operator.kinds import REMOTE, REPOSITORY, Key
from entrepot_operator.paths import check_path
from entrepot_operator.runs import run_spec, spec_hash
from entrepot_operator.settings import JobSettings
from entrepot_operator.supported import NOT_YET, check_supported
from entrepot_operator.views import size_text

UID, RUN = UUID(int=7), UUID(int=8)
TOP = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("path", "prefixes", "allowed"),
    [
        ("demo", None, True),
        ("demo/app", None, True),
        ("demo/a/b", None, True),
        ("demos/app", None, False),
        ("shop/app", None, False),
        ("shop/app", "shop", True),
        ("shop", "shop", True),
        ("shopping", "shop", False),
        ("shop/app", " other , shop/ ", True),
        ("shop/app", "shop/app/x", False),
        ("anything", "*", True),
        ("anything", ",", False),
        ("r/demo/app", "*", False),
        ("r", "*", False),
        ("Demo/app", "*", False),
        ("demo//app", "*", False),
        ("a.-b/app", "*", False),
    ],
)
def test_a_path_is_the_namespaces_own_or_under_an_allowed_prefix(
    path: str, prefixes: str | None, allowed: bool
) -> None:
    if allowed:
        check_path(path, namespace="demo", prefixes=prefixes)
    else:
        with pytest.raises(Stalled) as caught:
            check_path(path, namespace="demo", prefixes=prefixes)
        assert caught.value.reason == "BasePathNotAllowed"


@pytest.mark.parametrize(
    ("kind", "spec", "says"),
    [
        (REMOTE, {"proxy": {"url": "http://p:1"}}, 'spec.proxy: {"url": "http://p:1"}'),
        (REMOTE, {"rateLimit": 5}, "spec.rateLimit: 5"),
        (REPOSITORY, {"mirror": {"foreignLayers": True}}, "spec.mirror.foreignLayers: true"),
        (REPOSITORY, {"mirror": {"sources": [{"platforms": ["linux/amd64"]}]}}, "spec.mirror.sources[0].platforms"),
        (REPOSITORY, {"mirror": {"sources": [{}, {}]}}, "spec.mirror.sources: 2 entries"),
        (REPOSITORY, {"mirror": {"maxRemovedPercent": 49}}, "spec.mirror.maxRemovedPercent: 49"),
        (REPOSITORY, {"retention": {"versions": {"count": 5}}}, "spec.retention.versions.count: 5"),
        (REPOSITORY, {"accessFrom": {"namespaceSelectors": []}}, "spec.accessFrom"),
    ],
)
def test_a_field_that_is_to_come_is_refused_with_its_value(kind: Any, spec: dict[str, Any], says: str) -> None:
    with pytest.raises(Stalled) as caught:
        check_supported(kind, spec)
    assert caught.value.reason == "NotYetSupported"
    assert says in caught.value.message


def schema(plural: str) -> dict[str, Any]:
    definition = yaml.safe_load((TOP / f"crds/entrepot.dev_{plural}.yaml").read_text())
    found: dict[str, Any] = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def defaults(part: dict[str, Any]) -> dict[str, Any]:
    """What the API server fills in, required objects of one entry included."""
    made: dict[str, Any] = {}
    for name, field in part.get("properties", {}).items():
        if field.get("type") == "object" and ("default" in field or name == "mirror"):
            made[name] = defaults(field)
        elif "default" in field:
            made[name] = field["default"]
    return made


@pytest.mark.parametrize("kind", [REMOTE, REPOSITORY])
def test_the_schemas_defaults_are_supported_and_every_field_of_the_table_exists(kind: Any) -> None:
    spec = schema(kind.plural)
    filled = defaults(spec)
    check_supported(kind, filled)
    for path in NOT_YET[kind.name]:
        part = spec
        for name in path.split("."):
            part = part["properties"][name.removesuffix("[]")]
            part = part["items"] if name.endswith("[]") else part


def test_what_the_documentation_of_the_schema_calls_not_supported_is_in_the_table() -> None:
    for kind in (REMOTE, REPOSITORY):
        text = (TOP / f"docs/resources/{kind.name.lower()}.md").read_text()
        table = text.split("## Not supported yet")[1].split("##")[0]
        documented = set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) - {"mirror.sources"}
        assert documented == set(NOT_YET[kind.name])


@given(st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,50}[a-z0-9])?", fullmatch=True), st.uuids(), st.uuids())
def test_a_jobs_name_is_a_label_and_follows_from_repository_and_run(name: str, uid: UUID, run: UUID) -> None:
    made = job_name(name, uid=uid, run=run)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", made)
    assert made == job_name(name, uid=uid, run=run)
    assert made != job_name(name, uid=uid, run=uuid4())
    assert made != job_name(name, uid=uuid4(), run=run)


def body(template: dict[str, Any]) -> dict[str, Any]:
    owner = {"metadata": {"name": "app", "namespace": "demo", "uid": str(UID)}}
    return job_body(
        template, name="app-1", namespace="sys", release="entrepot", owner=owner, run=RUN, settings=JobSettings()
    )


def test_a_job_holds_the_runs_id_and_leaves_the_template_as_it_was() -> None:
    template = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "sidecar"}, {"name": "syncer", "args": ["x"]}]},
    }
    job = body(template)
    pod = job["spec"]["template"]
    assert pod["spec"]["containers"][0] == {"name": "sidecar"}
    assert pod["spec"]["containers"][1]["args"] == ["entrepot_syncer", "run", str(RUN)]
    assert pod["metadata"]["labels"]["a"] == "b"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert template["spec"]["containers"][1]["args"] == ["x"]  # type: ignore[index]
    assert job == body(template)


@pytest.mark.parametrize(
    "template", [None, [], {}, {"spec": {}}, {"spec": {"containers": []}}, {"spec": {"containers": ["x"]}}]
)
def test_what_is_no_pod_template_is_refused(template: Any) -> None:
    with pytest.raises(TemplateInvalid):
        check_template(template)


def conditioned(*conditions: tuple[str, str]) -> dict[str, Any]:
    return {
        "status": {"conditions": [{"type": kind, "status": status, "reason": "Why"} for kind, status in conditions]}
    }


@pytest.mark.parametrize(
    ("job", "phase"),
    [
        ({}, "Active"),
        (conditioned(("Suspended", "True")), "Active"),
        (conditioned(("FailureTarget", "True")), "Active"),
        (conditioned(("FailureTarget", "True"), ("Failed", "True")), "Failed"),
        (conditioned(("SuccessCriteriaMet", "True"), ("Complete", "True")), "Complete"),
        (conditioned(("Failed", "False")), "Active"),
    ],
)
def test_only_a_jobs_final_conditions_count(job: dict[str, Any], phase: str) -> None:
    assert job_state(job).phase == phase


def pod(created: str = "2026-01-01T00:00:00Z", **status: Any) -> dict[str, Any]:
    return {"metadata": {"creationTimestamp": created}, "status": status}


def ended(code: int, reason: str, message: str = "") -> dict[str, Any]:
    return {
        "containerStatuses": [
            {"name": "syncer", "state": {"terminated": {"exitCode": code, "reason": reason, "message": message}}}
        ]
    }


@pytest.mark.parametrize(
    ("pods", "says"),
    [
        ([pod(**ended(137, "OOMKilled"))], "container syncer ended with OOMKilled, exit code 137"),
        ([pod(**ended(64, "Error", '{"reason": "Usage", "message": "no such run"}'))], "exit code 64: no such run"),
        ([pod(**ended(1, "Error", 'x\n{"event": "database is away", "level": "error"}\n'))], ": database is away"),
        ([pod(**ended(1, "Error", "Traceback\nKeyError: 'x'"))], ": KeyError: 'x'"),
        ([pod(phase="Failed", reason="Evicted", message="low on memory")], "the pod failed: Evicted: low on memory"),
        ([pod("2026-01-01T00:00:00Z", **ended(1, "Old")), pod("2026-01-02T00:00:00Z", **ended(2, "New"))], "New"),
    ],
)
def test_a_pods_last_words_are_told_with_the_command_for_its_log(pods: list[dict[str, Any]], says: str) -> None:
    told = diagnose(JobState("Failed", "BackoffLimitExceeded", "too often"), pods, name="app-1", namespace="sys")
    assert says in told
    assert "BackoffLimitExceeded" in told
    assert "kubectl -n sys logs job/app-1" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("pods", "says"),
    [
        ([], ""),
        ([pod()], ""),
        ([pod(containerStatuses=[{"state": {"waiting": {"reason": "ContainerCreating"}}}])], ""),
        (
            [
                pod(
                    containerStatuses=[
                        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
                    ]
                )
            ],
            "the pod does not start: ImagePullBackOff: no such image",
        ),
        (
            [pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}])],
            "the pod is not scheduled: 0/1 nodes are available",
        ),
    ],
)
def test_why_a_pod_does_not_start(pods: list[dict[str, Any]], says: str) -> None:
    assert pod_trouble(pods) == says


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (112 * 2**20, "112 MiB"),
        (5 * 2**40, "5.0 TiB"),
        (2**60, "1048576 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


def test_the_hash_of_a_spec_is_that_of_its_canonical_json() -> None:
    assert spec_hash({"b": 1, "a": [True, "ü"]}) == spec_hash({"a": [True, "ü"], "b": 1})
    assert spec_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_the_order_of_defaults_does_not_matter_to_a_runs_spec() -> None:
    from entrepot.oci.hosts import origin
    from entrepot_operator.remotes import Upstream

    upstream = Upstream("https://x", origin("https://x"), False, 20, 3, "10s", "1m")
    source = {"upstreamName": "a"}
    assert run_spec(source, UID, upstream, mirror={}) == run_spec(
        {**source, "includeTags": []}, UID, upstream, mirror={"policy": "Immediate", "mode": "Additive"}
    )


def thing(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "namespace": "demo", "uid": name, **metadata}, "spec": spec}


def test_the_index_knows_who_refers_to_whom_and_what_is_news() -> None:
    index = Index()
    remote, repository = Key("Remote", "demo", "up"), Key("Repository", "demo", "app")
    mirror = {"mirror": {"sources": [{"remoteRef": {"name": "up"}}]}}
    assert index.put(REPOSITORY, thing("Repository", "app", mirror, generation=1))
    assert list(index.dependants(remote)) == [repository]
    same = thing("Repository", "app", mirror, generation=1, resourceVersion="99", annotations={"unknown": "x"})
    assert not index.put(REPOSITORY, same)
    assert index.put(REPOSITORY, thing("Repository", "app", {}, generation=2))
    assert list(index.dependants(remote)) == []
    annotated = thing("Repository", "app", {}, generation=2, annotations={"entrepot.dev/sync-requested-at": "1"})
    assert index.put(REPOSITORY, annotated)
    assert index.remove(repository)
    assert not index.remove(repository)
    assert len(index) == 0
