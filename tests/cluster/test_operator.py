"""The operator as a process against a real API server and a real PostgreSQL: what users see when they apply, change and break things.

There is no kubelet here: where a sync run ends, the test writes into its row what the syncer would have written, and says so in its name.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from entrepot.db.content import Cause
from entrepot.settings import S3Settings
from tests.cluster.operator_harness import (
    SYSTEM,
    TOP,
    ApiServer,
    Operator,
    condition,
    make_certificate,
    ours,
    running_api_server,
)
from tests.conftest import Database, Postgres, _execute
from tests.contents import image, push
from tests.servers import wait_until
from tests.unit.operator.kstatus import violations
from tests.upstreams.server import Upstream

pytestmark = pytest.mark.timeout(180)

API = "entrepot.dev/v1alpha1"
JOBS = f"/apis/batch/v1/namespaces/{SYSTEM}/jobs"
DOCKER = "kubernetes.io/dockerconfigjson"
CANARY = "canary-7f3a9c"
"""Part of every secret value in these tests; it must be in no log, status and event."""


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with running_api_server() as server:
        yield server


def make_operator(api: ApiServer, postgres: Postgres, template: str, directory: Path, **settings: str) -> Operator:
    name = f"operator_{uuid.uuid4().hex[:12]}"
    admin = postgres.dsn(user="postgres", database="postgres")
    asyncio.run(_execute(admin, f"create database {name} template {template}"))
    return Operator(
        api,
        postgres.dsn(user="entrepot_operator", database=name),
        postgres.dsn(user="postgres", database=name),
        directory,
        # The API server keeps what all tests before have left, unfinished runs among it.
        settings={"ENTREPOT_OPERATOR_MAXIMUM_RUNS": "1000", "ENTREPOT_OPERATOR_RETRY_INITIAL": "5s", **settings},
    )


@pytest.fixture(scope="module")
def operator(
    api: ApiServer, postgres: Postgres, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """One operator for all tests that leave it as it is."""
    made = make_operator(api, postgres, template_database, tmp_path_factory.mktemp("operator"))
    made.start()
    yield made
    assert made.stop() == 0
    text = made.log.read_text()
    assert CANARY not in text, "a secret is in the log"
    assert "unexpectedly" not in text, text[-5000:]


class Demo:
    """A namespace with shortcuts for what the tests do in it."""

    def __init__(self, operator: Operator, namespace: str) -> None:
        self.operator, self.api, self.namespace = operator, operator.api, namespace
        self.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

    def apply(self, kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> None:
        self.api.apply(
            {
                "apiVersion": API,
                "kind": kind,
                "metadata": {"name": name, "namespace": self.namespace, **metadata},
                "spec": spec,
            }
        )

    def remote(self, name: str = "up", **spec: Any) -> None:
        self.apply("Remote", name, {"url": "https://registry.example.com", **spec})

    def mirror(self, name: str = "app", *, upstream: str = "team/app", annotations: Any = None, **mirror: Any) -> None:
        source = {"remoteRef": {"name": "up"}, "upstreamName": upstream}
        more = {"annotations": annotations} if annotations else {}
        self.apply("Repository", name, {"mirror": {"sources": [source], **mirror}}, **more)

    def distribution(self, name: str = "app", *, repository: str = "app", **spec: Any) -> None:
        self.apply("Distribution", name, {"repositoryRef": {"name": repository}, "access": "Public", **spec})

    def secret(self, name: str, kind: str, data: Mapping[str, str]) -> None:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        self.api.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": self.namespace},
                "type": kind,
                "data": encoded,
            }
        )

    def get(self, plural: str, name: str) -> dict[str, Any] | None:
        return self.api.get(ours(plural, self.namespace, name))

    def status(self, plural: str, name: str) -> dict[str, Any]:
        status: dict[str, Any] = (self.get(plural, name) or {}).get("status") or {}
        return status

    def wait(
        self, plural: str, name: str, reason: str, *, status: str | None = None, seconds: float = 20
    ) -> dict[str, Any]:
        """Wait for a reason of Ready; gives the object, whose conditions obey the rules."""

        def there() -> bool:
            body = self.get(plural, name)
            ready = condition(body, "Ready")
            if body is None or ready.get("observedGeneration") != body["metadata"]["generation"]:
                return False
            return ready["reason"] == reason and (status is None or ready["status"] == status)

        try:
            wait_until(there, what=f"{plural}/{name} {reason}", seconds=seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {json.dumps(self.status(plural, name), indent=1)}") from error
        body = self.get(plural, name)
        assert body is not None
        assert violations(body) == []
        return body

    def jobs(self, repository: str = "app") -> list[dict[str, Any]]:
        owner = f"{self.namespace}/{repository}"
        return [j for j in self.api.items(JOBS) if j["metadata"]["annotations"]["entrepot.dev/owner"] == owner]

    def row(self, name: str = "app") -> dict[str, Any]:
        [row] = self.operator.sql(
            "select * from repository where namespace = $1 and name = $2 order by id desc limit 1", self.namespace, name
        )
        return dict(row)

    def runs(self, name: str = "app") -> list[dict[str, Any]]:
        rows = self.operator.sql(
            "select s.* from sync_run s join repository r on r.id = s.repository"
            " where r.namespace = $1 and r.name = $2 order by s.created_at",
            self.namespace,
            name,
        )
        return [dict(row) for row in rows]

    def active(self, name: str = "app") -> dict[str, Any]:
        """The run under way, once there is one."""
        wait_until(lambda: any(run["finished_at"] is None for run in self.runs(name)), what=f"a run of {name}")
        return next(run for run in self.runs(name) if run["finished_at"] is None)

    def finish(self, outcome: str = "Synced", *, name: str = "app", tag: str | None = None, **fields: Any) -> None:
        """What the syncer does at the end of a run: commit, and finish the row."""
        run = self.active(name)
        version = None
        if tag is not None:
            self.push(tag, name=name)
            version = self.row(name)["latest"]
        self.operator.sql(
            "update sync_run set started_at = coalesce(started_at, now()), finished_at = now(), phase = 'Finished', outcome = $2,"
            " reason = $3, message = $4, version = $5, added = $6, failed_tags = $7, failed_tag_count = $8, bytes_transferred = 2048"
            " where id = $1",
            run["id"],
            outcome,
            fields.get("reason"),
            fields.get("message"),
            version,
            1 if tag else 0,
            fields.get("failed_tags", []),
            len(fields.get("failed_tags", [])),
        )

    def push(self, tag: str, *, name: str = "app", cause: str = "Test") -> None:
        row = self.row(name)

        async def work(connection: Any) -> None:
            await push(
                connection, row["id"], tag, image(f"{self.namespace}-{name}-{tag}".encode()), cause=Cause(cause, tag)
            )

        self.operator.on_database(work)

    def synced(self, name: str = "app", *, tag: str = "1.0", **mirror: Any) -> None:
        """A mirror after its first sync."""
        self.remote()
        self.mirror(name, **mirror)
        self.finish(name=name, tag=tag)
        self.wait("repositories", name, "Synced")

    def events(self, name: str) -> list[tuple[str, str]]:
        events = self.api.items(f"/api/v1/namespaces/{self.namespace}/events")
        return [(e["type"], e["reason"]) for e in events if e["involvedObject"]["name"] == name]


@pytest.fixture
def demo(operator: Operator) -> Demo:
    return Demo(operator, f"ns-{uuid.uuid4().hex[:8]}")


def quiet(check: Callable[[], object], *, seconds: float = 1.5) -> None:
    """Nothing changes for a while, in which the operator looks several times."""
    before, deadline = check(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert check() == before
        time.sleep(0.1)


# The whole path


def test_a_mirror_goes_from_apply_to_served_when_the_run_is_finished_as_the_syncer_would(demo: Demo) -> None:
    demo.distribution()
    demo.wait("distributions", "app", "RepositoryNotFound")
    demo.remote()
    demo.wait("remotes", "up", "Accepted", status="True")
    demo.mirror(interval="10m")
    body = demo.wait("repositories", "app", "SyncPending", status="Unknown")
    assert condition(body, "Reconciling")["reason"] == "Progressing"
    [job] = demo.jobs()
    assert body["status"]["sync"] == {
        "phase": "Queued",
        "run": str(demo.active()["id"]),
        "job": job["metadata"]["name"],
    }
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["entrepot_syncer", "run", str(demo.active()["id"])]
    assert demo.active()["spec"] == {
        "sources": [
            {
                "remote": (demo.get("remotes", "up") or {})["metadata"]["uid"],
                "url": "https://registry.example.com",
                "upstreamName": "team/app",
                "includeTags": [],
                "excludeTags": [],
                "insecureSkipVerify": False,
                "downloadConcurrency": 20,
                "maxRetries": 3,
                "connectTimeout": "10s",
                "readTimeout": "1m",
            }
        ],
        "policy": "Immediate",
        "mode": "Additive",
    }

    run = demo.active()["id"]
    demo.operator.sql(
        "update sync_run set started_at = now(), phase = 'Downloading', tags_done = 3, tags_total = 7, bytes_done = 10,"
        " bytes_total = 99 where id = $1",
        run,
    )
    body = demo.wait("repositories", "app", "SyncRunning")
    assert body["status"]["sync"]["progress"] == {"tags": {"done": 3, "total": 7}, "bytes": {"done": 10, "total": 99}}

    demo.finish(tag="1.0")
    body = demo.wait("repositories", "app", "Synced", status="True")
    status = body["status"]
    assert "sync" not in status
    assert status["latestVersion"]["number"] == 1
    assert status["latestVersion"]["tags"] == 1
    assert status["lastSync"]["run"] == str(run)
    assert status["lastSync"]["outcome"] == "Synced"
    assert status["nextSyncTime"]
    assert status["uuid"] == str(demo.row()["uuid"])
    wait_until(lambda: demo.status("distributions", "app").get("servedVersion") == 1, what="version 1 is served")
    assert demo.status("distributions", "app")["registryPath"] == f"localhost:30500/{demo.namespace}/app"
    wait_until(
        lambda: demo.status("repositoryversions", "app-v1").get("servedBy") == ["app"],
        what="the view shows who serves it",
    )
    view = demo.get("repositoryversions", "app-v1")
    assert view is not None
    assert violations(view) == []
    assert view["status"]["contentSummary"]["present"] == {"tags": 1, "manifests": 1, "blobs": 2, "signatures": 0}
    assert view["metadata"]["ownerReferences"][0]["uid"] == body["metadata"]["uid"]
    assert demo.row()["projected"] == 1
    wait_until(lambda: ("Normal", "Synced") in demo.events("app"), what="the event")


def test_a_second_look_writes_nothing(demo: Demo) -> None:
    demo.synced()
    demo.distribution()
    demo.wait("distributions", "app", "Serving")
    wait_until(
        lambda: demo.status("repositoryversions", "app-v1").get("servedBy") == ["app"], what="the view is settled"
    )

    def versions() -> list[str]:
        found = [("remotes", "up"), ("repositories", "app"), ("distributions", "app"), ("repositoryversions", "app-v1")]
        return [(demo.get(plural, name) or {})["metadata"]["resourceVersion"] for plural, name in found]

    before = versions()
    # An annotation that nobody knows makes a watch event; one that is ours makes a look.
    for plural, name in (("remotes", "up"), ("repositories", "app"), ("distributions", "app")):
        demo.api.merge(ours(plural, demo.namespace, name), {"metadata": {"annotations": {"entrepot.dev/adopt": ""}}})
    after = versions()
    quiet(versions)
    assert versions() == after
    assert before[3] == after[3]
    assert len(demo.runs()) == 1


def test_a_sync_that_finds_nothing_says_so_and_makes_no_event(demo: Demo) -> None:
    demo.synced()
    demo.mirror(annotations={"entrepot.dev/sync-requested-at": "1"})
    demo.finish("NoChange")
    demo.wait("repositories", "app", "NoChange", status="True")
    assert ("Normal", "NoChange") not in demo.events("app")


def test_a_push_from_anywhere_becomes_visible_without_any_change_of_a_resource(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    body = demo.wait("repositories", "app", "Available", status="True")
    assert "latestVersion" not in body["status"]
    demo.push("1.0")
    wait_until(lambda: demo.status("repositories", "app").get("latestVersion", {}).get("number") == 1, what="it shows")
    assert demo.get("repositoryversions", "app-v1") is not None


def test_pushes_become_versions_and_steps_lose_their_object(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    demo.wait("repositories", "app", "Available")

    def views() -> dict[str, Any]:
        found = demo.api.items(ours("repositoryversions", demo.namespace))
        return {v["metadata"]["name"]: v.get("status", {}).get("cause") for v in found}

    demo.push("1.0", cause="Push")
    wait_until(lambda: views() == {"app-v1": {"kind": "Push", "name": "1.0"}}, what="the first push is shown")
    demo.push("1.1", cause="Push")
    wait_until(lambda: views() == {"app-v2": {"kind": "Push", "name": "1.1"}}, what="the first is a step now")
    demo.operator.sql("update version set created_at = now() - interval '11 minutes'")
    demo.push("1.2", cause="Push")
    wait_until(lambda: set(views()) == {"app-v2", "app-v3"}, what="a push after a while follows no step")


def test_a_mirror_takes_no_writes_and_does_once_it_is_none(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    demo.wait("repositories", "app", "Available")
    assert not demo.row()["is_mirror"]
    demo.remote()
    demo.mirror(suspend=True)
    demo.wait("repositories", "app", "Suspended")
    assert demo.row()["is_mirror"]
    demo.mirror()
    run = demo.active()
    assert demo.row()["is_mirror"], "before a sync begins"
    wait_until(lambda: len(demo.jobs()) == 1, what="the Job is there")
    demo.push("1.0")
    demo.apply("Repository", "app", {"description": "mine now"})
    body = demo.wait("repositories", "app", "Available", status="True")
    assert body["status"]["latestVersion"]["number"] == 1, "the content stays"
    assert not demo.row()["is_mirror"]
    assert [r["id"] for r in demo.runs() if r["finished_at"] and r["reason"] == "MirrorRemoved"] == [run["id"]]
    assert "sync" not in body["status"]
    wait_until(lambda: demo.jobs() == [], what="the Job is gone")


def test_only_the_newest_versions_have_an_object(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    demo.wait("repositories", "app", "Available")
    for number in range(1, 13):
        demo.push(f"1.{number}")

    def names() -> set[str]:
        return {v["metadata"]["name"] for v in demo.api.items(ours("repositoryversions", demo.namespace))}

    wait_until(lambda: names() == {f"app-v{n}" for n in range(3, 13)}, what="the newest ten")


def test_a_deleted_repository_version_comes_back(demo: Demo) -> None:
    demo.synced()
    wait_until(lambda: demo.get("repositoryversions", "app-v1") is not None, what="the view is there")
    first = (demo.get("repositoryversions", "app-v1") or {})["metadata"]["uid"]
    demo.api.delete(ours("repositoryversions", demo.namespace, "app-v1"))

    def back() -> bool:
        view = demo.get("repositoryversions", "app-v1")
        return view is not None and view["metadata"]["uid"] != first and "createdAt" in view.get("status", {})

    wait_until(back, what="it is written again")
    assert demo.row()["latest"] == 1


# Scheduling


def test_the_annotation_makes_a_run_once_and_is_recorded(demo: Demo) -> None:
    demo.synced()
    demo.mirror(annotations={"entrepot.dev/sync-requested-at": "now-1"})
    wait_until(
        lambda: demo.status("repositories", "app").get("lastHandledSyncRequest") == "now-1", what="it is handled"
    )
    run = demo.active()
    assert (run["trigger"], run["request"]) == ("Requested", "now-1")
    # Scheduled work after the first success is no Reconciling.
    assert condition(demo.get("repositories", "app"), "Ready")["status"] == "True"
    demo.finish("NoChange")
    demo.wait("repositories", "app", "NoChange")
    quiet(lambda: len(demo.runs()))


def test_a_changed_spec_makes_a_run_and_a_changed_description_none(demo: Demo) -> None:
    demo.synced()
    source = {"remoteRef": {"name": "up"}, "upstreamName": "team/app"}
    demo.apply("Repository", "app", {"description": "new words", "mirror": {"sources": [source]}})
    wait_until(lambda: demo.status("repositories", "app")["observedGeneration"] == 2, what="the generation is seen")
    assert len(demo.runs()) == 1
    demo.apply("Repository", "app", {"mirror": {"sources": [{**source, "includeTags": ["1.*"]}]}})
    body = demo.wait("repositories", "app", "SyncPending", status="Unknown")
    assert body["status"]["observedGeneration"] == 2
    assert demo.active()["trigger"] == "SpecChanged"
    demo.finish("NoChange")
    body = demo.wait("repositories", "app", "NoChange")
    assert body["status"]["observedGeneration"] == 3


def test_suspend_stops_new_runs_and_nothing_else(demo: Demo) -> None:
    demo.remote()
    demo.mirror()
    demo.active()
    demo.mirror(suspend=True, annotations={"entrepot.dev/sync-requested-at": "2"})
    demo.wait("repositories", "app", "Suspended", status="True")
    demo.finish(tag="1.0")
    wait_until(lambda: demo.status("repositories", "app").get("latestVersion", {}).get("number") == 1, what="it shows")
    quiet(lambda: len(demo.runs()))
    demo.mirror(suspend=False, annotations={"entrepot.dev/sync-requested-at": "2"})
    assert demo.active()["trigger"] == "Requested"


@contextmanager
def no_place_left(operator: Operator) -> Iterator[None]:
    """As many runs under way as may be, of Repositories that are nobody's."""
    fill = (
        "with made as (insert into repository (namespace, name, resource_uid)"
        " select 'filler', 'app-' || n, gen_random_uuid() from generate_series(1, 1000) n returning id)"
        " insert into sync_run (repository, spec, spec_hash, trigger) select id, '{}', 'x', 'Created' from made"
    )
    operator.sql(fill)
    try:
        yield
    finally:
        operator.sql("delete from repository where namespace = 'filler'")


def test_while_no_place_is_left_what_failed_stays_failed_and_a_changed_spec_waits(demo: Demo) -> None:
    demo.synced()
    demo.mirror(annotations={"entrepot.dev/sync-requested-at": "again"})
    with no_place_left(demo.operator):
        demo.finish("Failed", reason="Unauthorized", message="401 UNAUTHORIZED")
        demo.wait("repositories", "app", "Unauthorized", status="False")
        # Its retry is due after five seconds.
        quiet(lambda: condition(demo.get("repositories", "app"), "Ready"), seconds=7)
        assert demo.runs()[-1]["finished_at"]
        demo.mirror(upstream="team/other", annotations={"entrepot.dev/sync-requested-at": "again"})
        body = demo.wait("repositories", "app", "SyncPending", status="Unknown")
        assert "waits until one of the 1000" in condition(body, "Ready")["message"]
    wait_until(lambda: any(run["trigger"] == "SpecChanged" for run in demo.runs()), what="the run", seconds=15)


# What goes wrong


def test_a_failed_run_shows_the_upstreams_error_and_is_retried(demo: Demo) -> None:
    demo.remote()
    demo.mirror()
    demo.finish(
        "Failed",
        reason="Unauthorized",
        message="GET https://registry.example.com/v2/team/app/tags/list: 401 UNAUTHORIZED",
    )
    body = demo.wait("repositories", "app", "Unauthorized", status="False")
    assert "401 UNAUTHORIZED" in condition(body, "Ready")["message"]
    assert condition(body, "Reconciling")["reason"] == "ProgressingWithRetry"
    assert body["status"]["lastSync"]["outcome"] == "Failed"
    # Where the machine is slow the retry, five seconds later, may have begun by now.
    assert "nextSyncTime" in body["status"] or "sync" in body["status"], body["status"]
    wait_until(lambda: ("Warning", "Unauthorized") in demo.events("app"), what="the event")

    assert demo.active()["trigger"] == "Retry"
    wait_until(lambda: "sync" in demo.status("repositories", "app"), what="the retry shows")
    # Until the retry has ended, Ready tells why the attempt before it failed.
    assert demo.wait("repositories", "app", "Unauthorized", status="False")["status"]["sync"]["phase"] == "Queued"
    demo.finish(tag="1.0")
    demo.wait("repositories", "app", "Synced", status="True")


def test_an_unknown_reason_shows_as_sync_failed(demo: Demo) -> None:
    demo.remote()
    demo.mirror()
    demo.finish("Failed", reason="InternalError", message="something odd")
    demo.wait("repositories", "app", "SyncFailed", status="False")


def test_a_partial_run_is_ready_and_names_a_tag_that_failed(demo: Demo) -> None:
    demo.remote()
    demo.mirror()
    failed = [{"tag": "2.0", "reason": "UpstreamInvalid", "message": "bytes do not match"}]
    demo.finish("Partial", tag="1.0", failed_tags=failed)
    body = demo.wait("repositories", "app", "Partial", status="True")
    assert body["status"]["lastSync"]["failedTags"] == failed
    assert "2.0: bytes do not match" in condition(body, "Ready")["message"]


def set_job_failed(demo: Demo, *, exit_code: int = 137, reason: str = "OOMKilled", message: str = "") -> str:
    """What the Job controller and a kubelet would write."""
    [job] = demo.jobs()
    name = str(job["metadata"]["name"])
    pod = job["spec"]["template"] | {"apiVersion": "v1", "kind": "Pod"}
    pod["metadata"] = {
        "name": f"{name}-abcde",
        "namespace": SYSTEM,
        "labels": {**pod["metadata"]["labels"], "batch.kubernetes.io/job-name": name},
    }
    demo.api.apply(pod)
    ended = {"exitCode": exit_code, "reason": reason, **({"message": message} if message else {})}
    statuses = [
        {
            "name": "syncer",
            "image": "x",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": ended},
        }
    ]
    demo.api.merge(
        f"/api/v1/namespaces/{SYSTEM}/pods/{name}-abcde/status",
        {"status": {"phase": "Failed", "containerStatuses": statuses}},
    )
    now = "2026-01-01T00:00:00Z"
    why = {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": now, "lastProbeTime": now, **why}
        for kind in ("FailureTarget", "Failed")
    ]
    demo.api.merge(f"{JOBS}/{name}/status", {"status": {"conditions": conditions, "failed": 1, "startTime": now}})
    return name


def test_a_job_that_failed_without_a_result_ends_the_run_with_what_the_pod_says(demo: Demo) -> None:
    demo.remote()
    demo.mirror()
    demo.active()
    name = set_job_failed(demo)
    body = demo.wait("repositories", "app", "JobFailed", status="False")
    message = condition(body, "Ready")["message"]
    assert "OOMKilled" in message
    assert "137" in message
    assert f"kubectl -n {SYSTEM} logs job/{name}" in message
    [run] = demo.runs()
    assert (run["outcome"], run["reason"]) == ("Failed", "JobFailed")


def test_a_job_that_vanished_under_a_running_sync_ends_the_run(demo: Demo) -> None:
    demo.remote()
    demo.mirror()
    run = demo.active()
    demo.operator.sql("update sync_run set started_at = now(), phase = 'Listing' where id = $1", run["id"])
    demo.wait("repositories", "app", "SyncRunning")
    [job] = demo.jobs()
    demo.api.delete(f"{JOBS}/{job['metadata']['name']}?propagationPolicy=Background")
    body = demo.wait("repositories", "app", "JobFailed")
    assert "was deleted" in condition(body, "Ready")["message"]


def test_a_run_without_a_sign_of_life_ends_and_loses_its_job(demo: Demo) -> None:
    demo.remote()
    demo.mirror()
    run = demo.active()
    sign = (
        "update sync_run set started_at = now() - interval '2 hours', heartbeat_at = now() - $2::interval where id = $1"
    )
    demo.operator.sql(sign, run["id"], timedelta(minutes=14))
    demo.wait("repositories", "app", "SyncRunning")
    demo.operator.sql(sign, run["id"], timedelta(minutes=16))
    body = demo.wait("repositories", "app", "JobFailed", status="False")
    assert "gave no sign of life since" in condition(body, "Ready")["message"]
    job = next((job for job in demo.jobs() if job["metadata"]["labels"]["entrepot.dev/run"] == str(run["id"])), None)
    assert job is None or job["metadata"].get("deletionTimestamp")


def test_a_job_that_vanished_before_its_run_began_is_made_again(demo: Demo) -> None:
    demo.remote()
    demo.mirror()
    demo.active()
    [job] = demo.jobs()
    demo.api.delete(f"{JOBS}/{job['metadata']['name']}?propagationPolicy=Background")
    wait_until(
        lambda: [j["metadata"]["uid"] for j in demo.jobs()] not in ([], [job["metadata"]["uid"]]),
        what="it is there again",
    )
    assert [j["metadata"]["name"] for j in demo.jobs()] == [job["metadata"]["name"]]
    assert len(demo.runs()) == 1


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("spec.mirror.policy", {"policy": "OnDemand"}),
        ("spec.mirror.mode", {"mode": "Mirror"}),
        ("spec.mirror.schedule", {"schedule": "@daily"}),
        ("spec.mirror.maxRemovedPercent", {"maxRemovedPercent": 10}),
        ("spec.mirror.companions", {"companions": False}),
    ],
)
def test_fields_that_are_to_come_are_refused_by_name_and_value(demo: Demo, field: str, spec: dict[str, Any]) -> None:
    demo.remote()
    demo.mirror(**spec)
    body = demo.wait("repositories", "app", "NotYetSupported", status="False")
    message = condition(body, "Stalled")["message"]
    assert field in message
    assert json.dumps(next(iter(spec.values()))) in message
    assert demo.jobs() == []


def test_a_remote_that_does_not_exist_stalls_until_it_does(demo: Demo) -> None:
    demo.mirror()
    demo.wait("repositories", "app", "RemoteNotFound", status="False")
    demo.remote()
    demo.wait("repositories", "app", "SyncPending")


def test_a_stalled_remote_stalls_its_repositories_until_it_is_mended(demo: Demo) -> None:
    demo.remote(rateLimit=5)
    demo.wait("remotes", "up", "NotYetSupported", status="False")
    demo.mirror()
    body = demo.wait("repositories", "app", "RemoteNotReady", status="False")
    assert "rateLimit: 5" in condition(body, "Ready")["message"]
    demo.remote()
    demo.wait("repositories", "app", "SyncPending")


def test_a_missing_secret_is_found_when_it_appears(demo: Demo) -> None:
    demo.remote(credentialsSecretRef={"name": "login"})
    body = demo.wait("remotes", "up", "SecretNotFound", status="False")
    assert "'login'" in condition(body, "Stalled")["message"]
    demo.mirror()
    demo.wait("repositories", "app", "RemoteNotReady")
    demo.secret("login", "kubernetes.io/basic-auth", {"username": "me", "password": f"{CANARY}-1"})
    demo.wait("remotes", "up", "Accepted")
    demo.wait("repositories", "app", "SyncPending")
    [sealed] = demo.operator.sql(
        "select c.ciphertext from remote_credential c join remote r on r.uuid = c.remote where r.namespace = $1",
        demo.namespace,
    )
    assert CANARY.encode() not in sealed["ciphertext"]


def test_credentials_are_sealed_for_the_remote_and_its_origin(demo: Demo) -> None:
    from entrepot.credentials import Keys, unseal

    config = {"auths": {"registry.example.com": {"username": "me", "password": f"{CANARY}-2"}}}
    demo.secret("login", DOCKER, {".dockerconfigjson": json.dumps(config)})
    authority = make_certificate(demo.operator.directory, f"ca-{demo.namespace}")[0].read_text()
    demo.secret("ca", "Opaque", {"ca.crt": authority})
    demo.remote(credentialsSecretRef={"name": "login"}, tls={"caSecretRef": {"name": "ca"}})
    demo.wait("remotes", "up", "Accepted")
    [row] = demo.operator.sql(
        "select r.uuid, c.key_id, c.ciphertext from remote_credential c join remote r on r.uuid = c.remote where r.namespace = $1",
        demo.namespace,
    )
    keys = Keys.load(demo.operator.directory / "keys")
    opened = unseal(
        keys, row["uuid"], origin="https://registry.example.com", key_id=row["key_id"], ciphertext=row["ciphertext"]
    )
    assert opened.auths == {"registry.example.com": ("me", f"{CANARY}-2")}
    assert opened.ca == authority


def test_repositories_of_one_remote_have_each_their_own_entry_of_the_secret(demo: Demo) -> None:
    from entrepot.credentials import Keys, unseal

    host = "registry.example.com"
    entries = {f"{host}/{team}": {"username": team, "password": CANARY} for team in ("red", "blue")}
    demo.secret("login", DOCKER, {".dockerconfigjson": json.dumps({"auths": entries})})
    demo.remote(credentialsSecretRef={"name": "login"})
    demo.wait("remotes", "up", "Accepted")
    for team in ("red", "blue"):
        demo.mirror(team, upstream=f"{team}/app")
        demo.wait("repositories", team, "SyncPending")
    [row] = demo.operator.sql(
        "select r.uuid, c.key_id, c.ciphertext from remote_credential c join remote r on r.uuid = c.remote where r.namespace = $1",
        demo.namespace,
    )
    keys = Keys.load(demo.operator.directory / "keys")
    opened = unseal(keys, row["uuid"], origin=f"https://{host}", key_id=row["key_id"], ciphertext=row["ciphertext"])
    assert [opened.for_repository(host, f"{team}/app").username for team in ("red", "blue")] == ["red", "blue"]


def test_a_secret_that_lacks_only_this_repositorys_entry_is_looked_at_again(demo: Demo) -> None:
    host = "registry.example.com"
    login = {"username": "me", "password": CANARY}
    demo.secret("login", DOCKER, {".dockerconfigjson": json.dumps({"auths": {f"{host}/other": login}})})
    demo.remote(credentialsSecretRef={"name": "login"})
    demo.wait("remotes", "up", "Accepted")
    demo.mirror()
    body = demo.wait("repositories", "app", "RemoteNotReady", status="False")
    assert f"no entry for {host}/team/app" in condition(body, "Ready")["message"]
    demo.secret("login", DOCKER, {".dockerconfigjson": json.dumps({"auths": {f"{host}/team": login}})})
    demo.wait("repositories", "app", "SyncPending")


@pytest.mark.parametrize(
    ("kind", "data", "reason", "says"),
    [
        (
            DOCKER,
            {".dockerconfigjson": json.dumps({"auths": {"other.example.com": {"auth": "bWU6Y2FuYXJ5LTdmM2E5Yw=="}}})},
            "NoCredentialsForHost",
            "other.example.com",
        ),
        (DOCKER, {".dockerconfigjson": '{"auths": []}'}, "SecretInvalid", "login"),
        ("Opaque", {"password": CANARY}, "SecretInvalid", "Opaque"),
        ("kubernetes.io/basic-auth", {"username": "me"}, "SecretInvalid", "'password'"),
    ],
)
def test_a_secret_that_does_not_serve_is_named_and_not_quoted(
    demo: Demo, kind: str, data: dict[str, str], reason: str, says: str
) -> None:
    demo.secret("login", kind, data)
    demo.remote(credentialsSecretRef={"name": "login"})
    body = demo.wait("remotes", "up", reason, status="False")
    message = condition(body, "Stalled")["message"]
    assert says in message
    assert CANARY not in json.dumps(body["status"])


def test_a_remote_shows_what_runs_found_and_forgets_it_with_its_url(demo: Demo) -> None:
    demo.remote()
    demo.wait("remotes", "up", "Accepted")
    contact = "update remote set contact_at = now(), contact_outcome = $2, contact_message = $3 where namespace = $1"
    demo.operator.sql(contact, demo.namespace, "UpstreamUnreachable", "no such host")
    body = demo.wait("remotes", "up", "Unreachable", status="False")
    assert condition(body, "Ready")["message"] == "no such host"
    demo.operator.sql(contact, demo.namespace, "Reachable", None)
    body = demo.wait("remotes", "up", "Reachable", status="True")
    assert body["status"]["lastContactTime"]
    demo.remote(url="https://other.example.com")
    body = demo.wait("remotes", "up", "Accepted")
    assert "lastContactTime" not in body["status"]


def test_a_deleted_remote_takes_its_credentials_along(demo: Demo) -> None:
    demo.secret("login", "kubernetes.io/basic-auth", {"username": "me", "password": CANARY})
    demo.remote(credentialsSecretRef={"name": "login"})
    demo.wait("remotes", "up", "Accepted")
    demo.api.delete(ours("remotes", demo.namespace, "up"))
    count = "select count(*) as n from remote where namespace = $1"
    wait_until(lambda: demo.operator.sql(count, demo.namespace)[0]["n"] == 0, what="the row is gone")


# Deleting, and getting back


def test_deleting_a_repository_keeps_its_content_and_stops_its_run(demo: Demo) -> None:
    demo.synced()
    demo.mirror(annotations={"entrepot.dev/sync-requested-at": "again"})
    demo.active()
    demo.api.delete(ours("repositories", demo.namespace, "app"))
    wait_until(lambda: demo.get("repositories", "app") is None, what="the resource is gone")
    row = demo.row()
    assert row["deleted_at"] is not None
    assert (row["purge_after"] - row["deleted_at"]).days == 7
    assert row["latest"] == 1
    assert all(run["finished_at"] for run in demo.runs())
    done = {str(run["id"]) for run in demo.runs()}
    # Its Job is gone or going; there is no garbage collector here to finish the deletion.
    assert all(
        j["metadata"].get("deletionTimestamp") or j["metadata"]["labels"]["entrepot.dev/run"] in done
        for j in demo.jobs()
    )


def test_a_new_repository_of_a_deleted_ones_name_is_empty_and_its_numbers_go_on(demo: Demo) -> None:
    demo.synced()
    old = demo.row()
    demo.api.delete(ours("repositories", demo.namespace, "app"))
    wait_until(lambda: demo.get("repositories", "app") is None, what="the resource is gone")
    demo.mirror()
    demo.wait("repositories", "app", "SyncPending")
    new = demo.row()
    assert new["id"] != old["id"]
    assert new["latest"] == 0
    # app-v1 is still shown, its garbage not being collected here.
    assert new["last_number"] == 1


def test_a_new_repository_adopts_deleted_content_by_its_uuid(demo: Demo) -> None:
    demo.synced()
    old = demo.row()
    demo.api.delete(ours("repositories", demo.namespace, "app"))
    wait_until(lambda: demo.get("repositories", "app") is None, what="the resource is gone")
    demo.apply("Repository", "revived", {}, annotations={"entrepot.dev/adopt": str(old["uuid"])})
    body = demo.wait("repositories", "revived", "Available")
    assert body["status"]["latestVersion"]["number"] == 1
    assert demo.row("revived")["id"] == old["id"]
    assert demo.row("revived")["deleted_at"] is None


def test_content_of_another_namespace_cannot_be_adopted(demo: Demo) -> None:
    demo.synced()
    demo.api.delete(ours("repositories", demo.namespace, "app"))
    wait_until(lambda: demo.get("repositories", "app") is None, what="the resource is gone")
    other = Demo(demo.operator, f"{demo.namespace}-other")
    other.apply("Repository", "thief", {}, annotations={"entrepot.dev/adopt": str(demo.row()["uuid"])})
    other.wait("repositories", "thief", "IdentityConflict", status="False")


def test_a_live_name_with_another_uid_stalls_until_it_is_adopted(demo: Demo) -> None:
    demo.synced()
    content = demo.row()["uuid"]
    demo.operator.sql("update repository set resource_uid = gen_random_uuid() where uuid = $1", content)
    demo.mirror(annotations={"entrepot.dev/sync-requested-at": "look"})
    body = demo.wait("repositories", "app", "IdentityConflict", status="False")
    assert f"entrepot.dev/adopt={content}" in condition(body, "Stalled")["message"]
    demo.mirror(annotations={"entrepot.dev/adopt": str(content)})
    body = demo.wait("repositories", "app", "Synced", status="True")
    assert body["status"]["uuid"] == str(content)


def test_a_remade_postgresql_does_not_give_numbers_that_were_shown(demo: Demo) -> None:
    demo.synced()
    wait_until(lambda: demo.get("repositoryversions", "app-v1") is not None, what="the view is there")
    demo.operator.sql("delete from repository where uuid = $1", demo.row()["uuid"])
    demo.mirror(annotations={"entrepot.dev/sync-requested-at": "x"})
    wait_until(
        lambda: (
            demo.operator.sql("select 1 from repository where namespace = $1 and last_number = 1", demo.namespace) != []
        ),
        what="the counter is raised",
    )


# Distributions


def test_a_path_belongs_to_the_first_and_passes_on_when_it_is_free(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    path = f"{demo.namespace}/shared"
    demo.distribution("one", basePath=path)
    demo.wait("distributions", "one", "Serving")
    demo.distribution("two", basePath=path)
    body = demo.wait("distributions", "two", "BasePathConflict", status="False")
    assert "'one'" in condition(body, "Stalled")["message"]
    assert "registryPath" not in body["status"]
    demo.api.delete(ours("distributions", demo.namespace, "one"))
    demo.wait("distributions", "two", "Serving")
    assert demo.get("repositories", "app") is not None


def test_a_released_path_is_reserved_to_its_namespace_and_its_holder_is_not_told_to_others(demo: Demo) -> None:
    other = Demo(demo.operator, f"{demo.namespace}-b")
    for one in (demo, other):
        one.api.merge(
            f"/api/v1/namespaces/{one.namespace}", {"metadata": {"annotations": {"entrepot.dev/path-prefixes": "shop"}}}
        )
        one.apply("Repository", "app", {})
    path = f"shop/{demo.namespace}"
    demo.distribution("secretname", basePath=path)
    demo.wait("distributions", "secretname", "Serving")
    other.distribution("app", basePath=path)
    body = other.wait("distributions", "app", "BasePathConflict")
    assert "secretname" not in json.dumps(body["status"])
    demo.api.delete(ours("distributions", demo.namespace, "secretname"))
    wait_until(lambda: demo.get("distributions", "secretname") is None, what="the Distribution is gone")
    wait_until(
        lambda: "reserved" in condition(other.get("distributions", "app"), "Ready").get("message", ""),
        what="it is reserved",
    )
    demo.distribution("again", basePath=path)
    demo.wait("distributions", "again", "Serving")


@pytest.mark.parametrize("path", ["elsewhere/app", "elsewhere", "{namespace}x/app"])
def test_a_path_outside_the_namespace_is_not_allowed(demo: Demo, path: str) -> None:
    demo.apply("Repository", "app", {})
    demo.distribution(basePath=path.format(namespace=demo.namespace))
    demo.wait("distributions", "app", "BasePathNotAllowed", status="False")


def test_a_changed_path_releases_the_old_one_and_a_refused_one_keeps_it(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    demo.distribution()
    demo.wait("distributions", "app", "Serving")
    new = f"{demo.namespace}/new"
    demo.distribution(basePath=new)
    wait_until(
        lambda: demo.status("distributions", "app").get("registryPath") == f"localhost:30500/{new}", what="the new path"
    )
    claims = "select path from base_path_claim where namespace = $1 and distribution is not null"
    assert [row["path"] for row in demo.operator.sql(claims, demo.namespace)] == [new]
    demo.distribution(basePath="elsewhere/x")
    demo.wait("distributions", "app", "BasePathNotAllowed")
    assert [row["path"] for row in demo.operator.sql(claims, demo.namespace)] == [new]
    served = demo.operator.sql("select base_path from distribution where namespace = $1", demo.namespace)
    assert [row["base_path"] for row in served] == [new]


def test_a_path_that_was_wanted_while_there_was_nothing_to_serve_is_given_back(demo: Demo) -> None:
    demo.distribution(basePath=f"{demo.namespace}/first")
    demo.wait("distributions", "app", "RepositoryNotFound")
    demo.distribution(basePath=f"{demo.namespace}/second")
    claims = "select path from base_path_claim where namespace = $1 and distribution is not null"
    wait_until(
        lambda: [r["path"] for r in demo.operator.sql(claims, demo.namespace)] == [f"{demo.namespace}/second"],
        what="the first path is given back",
    )


def served(demo: Demo, name: str = "app") -> dict[str, Any] | None:
    """The row that says what a Distribution serves."""
    rows = demo.operator.sql(
        "select base_path, access, pinned, redirect from distribution where namespace = $1 and name = $2",
        demo.namespace,
        name,
    )
    return dict(rows[0]) if rows else None


def test_who_may_pull_and_where_bytes_come_from_is_as_the_spec_says_now(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    row = {"base_path": f"{demo.namespace}/app", "access": "Public", "pinned": None, "redirect": None}
    for spec in (
        {"access": "Public"},
        {"access": "Authenticated"},
        {"access": "Private", "redirect": False},
        {"access": "Private", "redirect": True},
        {"access": "Public"},
    ):
        demo.distribution(**spec)
        demo.wait("distributions", "app", "Serving")
        assert served(demo) == row | spec


def test_a_pinned_version_is_served_whatever_is_pushed_and_is_always_shown(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    demo.wait("repositories", "app", "Available")
    demo.push("1.0")
    demo.distribution("latest", basePath=f"{demo.namespace}/latest")
    demo.distribution(version=1, redirect=True)
    body = demo.wait("distributions", "app", "Serving")
    assert body["status"]["servedVersion"] == 1
    assert served(demo) == {"base_path": f"{demo.namespace}/app", "access": "Public", "pinned": 1, "redirect": True}
    for number in range(2, 14):
        demo.push(f"1.{number}")

    def shown() -> dict[str, Any]:
        views = demo.api.items(ours("repositoryversions", demo.namespace))
        return {v["metadata"]["name"]: v.get("status", {}).get("servedBy") for v in views}

    wanted = {f"app-v{n}": None for n in range(4, 13)} | {"app-v1": ["app"], "app-v13": ["latest"]}
    wait_until(lambda: shown() == wanted, what="the newest ten and the pinned one, with who serves them")
    wait_until(lambda: demo.status("distributions", "latest").get("servedVersion") == 13, what="the latest is served")
    assert demo.status("distributions", "app")["servedVersion"] == 1
    # Without the pin it follows, and the old version has no object any more.
    demo.distribution()
    wait_until(lambda: demo.status("distributions", "app").get("servedVersion") == 13, what="it follows the latest")
    assert (served(demo) or {})["pinned"] is None
    wait_until(lambda: "app-v1" not in shown() and shown()["app-v13"] == ["app", "latest"], what="the view goes")


def test_a_version_that_does_not_exist_stalls_names_what_there_is_and_is_served_once_it_exists(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    demo.distribution(version=3)
    body = demo.wait("distributions", "app", "VersionNotFound", status="False")
    assert "no version 3" in condition(body, "Stalled")["message"]
    assert "empty" in condition(body, "Stalled")["message"]
    assert "registryPath" not in body["status"]
    assert served(demo) is None
    demo.push("1.0")
    demo.push("1.1")
    wait_until(
        lambda: "newest are 2, 1;" in condition(demo.get("distributions", "app"), "Ready")["message"],
        what="it names the versions that there are",
    )
    demo.push("1.2")
    body = demo.wait("distributions", "app", "Serving")
    assert body["status"]["servedVersion"] == 3
    wait_until(
        lambda: demo.status("repositoryversions", "app-v3").get("servedBy") == ["app"], what="the view shows who serves"
    )


def test_while_the_version_is_wanting_what_was_served_is_served_on_to_those_whom_the_spec_names(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    demo.wait("repositories", "app", "Available")
    demo.push("1.0")
    demo.push("1.1")
    demo.distribution(version=1)
    demo.wait("distributions", "app", "Serving")
    demo.distribution(version=9, access="Private", basePath=f"{demo.namespace}/new")
    body = demo.wait("distributions", "app", "VersionNotFound")
    assert "version 1 is served meanwhile" in condition(body, "Stalled")["message"]
    assert body["status"]["servedVersion"] == 1
    assert body["status"]["registryPath"] == f"localhost:30500/{demo.namespace}/new"
    assert served(demo) == {"base_path": f"{demo.namespace}/new", "access": "Private", "pinned": 1, "redirect": None}
    # A path that cannot be had is no way to stay open to all either.
    demo.distribution(version=1, access="Public")
    demo.wait("distributions", "app", "Serving")
    demo.distribution(version=1, access="Authenticated", basePath="elsewhere/app")
    demo.wait("distributions", "app", "BasePathNotAllowed")
    row = {"base_path": f"{demo.namespace}/app", "access": "Authenticated", "pinned": 1, "redirect": None}
    assert served(demo) == row
    # What another Repository had is not served in place of what this one lacks.
    demo.apply("Repository", "other", {})
    demo.distribution(repository="other", version=1)
    demo.wait("distributions", "app", "VersionNotFound")
    assert served(demo) is None


def test_a_deleted_repository_is_not_served_and_a_new_one_is(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    demo.distribution()
    demo.wait("distributions", "app", "Serving")
    demo.api.delete(ours("repositories", demo.namespace, "app"))
    demo.wait("distributions", "app", "RepositoryNotFound", status="False")
    demo.apply("Repository", "app", {})
    demo.wait("distributions", "app", "Serving")


def test_a_distribution_remade_by_force_gets_its_path_back(demo: Demo) -> None:
    demo.apply("Repository", "app", {})
    demo.distribution()
    demo.wait("distributions", "app", "Serving")
    # As after an etcd that went back in time: the row's resource never existed.
    demo.operator.sql(
        "update base_path_claim set distribution = gen_random_uuid() where namespace = $1", demo.namespace
    )
    demo.operator.sql("delete from distribution where namespace = $1", demo.namespace)
    demo.distribution(description="look again")
    demo.wait("distributions", "app", "Serving")
    wait_until(
        lambda: demo.operator.sql("select 1 from distribution where namespace = $1", demo.namespace) != [],
        what="it is served",
    )


# The operator itself


def test_health_readiness_and_metrics(demo: Demo) -> None:
    demo.synced()
    assert demo.operator.http("/healthz") == (200, "ok")
    assert demo.operator.http("/readyz")[0] == 200
    status, text = demo.operator.http("/metrics")
    assert status == 200
    assert 'entrepot_operator_sync_runs_total{outcome="Synced"}' in text
    assert 'entrepot_operator_reconcile_seconds_count{kind="Repository",outcome="ready"}' in text
    assert 'entrepot_operator_watch_alive{kind="Remote"} 1.0' in text


@pytest.fixture
def own_operator(
    api: ApiServer, operator: Operator, postgres: Postgres, template_database: str, tmp_path: Path
) -> Iterator[Operator]:
    """An operator of the test's own, in place of the shared one, which rests meanwhile."""
    operator.stop()
    made = make_operator(
        api,
        postgres,
        template_database,
        tmp_path,
        ENTREPOT_OPERATOR_COMPARISON_INTERVAL="1s",
        ENTREPOT_OPERATOR_WATCH_GRACE="1s",
    )
    made.start()
    yield made
    made.stop(signal.SIGKILL)
    operator.start()


def test_killed_and_started_again_it_goes_on_with_the_one_job(own_operator: Operator) -> None:
    demo = Demo(own_operator, f"ns-{uuid.uuid4().hex[:8]}")
    demo.remote()
    demo.mirror()
    run = demo.active()
    wait_until(lambda: len(demo.jobs()) == 1, what="the Job is there")
    own_operator.stop(signal.SIGKILL)
    own_operator.sql("update sync_run set started_at = now(), phase = 'Listing' where id = $1", run["id"])
    own_operator.start()
    demo.wait("repositories", "app", "SyncRunning")
    assert [job["metadata"]["labels"]["entrepot.dev/run"] for job in demo.jobs()] == [str(run["id"])]
    assert len(demo.runs()) == 1
    own_operator.stop(signal.SIGKILL)
    demo.finish(tag="1.0")
    own_operator.start()
    demo.wait("repositories", "app", "Synced")
    assert len(demo.runs()) == 1


def test_killed_between_the_row_and_the_job_it_makes_the_job(own_operator: Operator) -> None:
    demo = Demo(own_operator, f"ns-{uuid.uuid4().hex[:8]}")
    demo.remote()
    demo.mirror(suspend=True)
    demo.wait("repositories", "app", "Suspended")
    own_operator.stop(signal.SIGKILL)
    own_operator.sql(
        "insert into sync_run (repository, spec, spec_hash, trigger) values ($1, '{}', 'x', 'Created')",
        demo.row()["id"],
    )
    own_operator.start()
    wait_until(lambda: len(demo.jobs()) == 1, what="the Job is there")


def test_what_was_deleted_while_it_was_down_is_cleaned_up(own_operator: Operator) -> None:
    demo = Demo(own_operator, f"ns-{uuid.uuid4().hex[:8]}")
    demo.synced()
    demo.distribution()
    demo.wait("distributions", "app", "Serving")
    own_operator.stop(signal.SIGKILL)
    for plural, name in (
        ("remotes", "up"),
        ("repositories", "app"),
        ("distributions", "app"),
        ("repositoryversions", "app-v1"),
    ):
        demo.api.delete(ours(plural, demo.namespace, name))
    own_operator.start()
    wait_until(lambda: demo.get("repositories", "app") is None, what="the Repository is gone")
    wait_until(lambda: demo.get("distributions", "app") is None, what="the Distribution is gone")
    assert demo.row()["deleted_at"] is not None
    rows = "select (select count(*) from remote where namespace = $1) + (select count(*) from distribution where namespace = $1) as n"
    wait_until(lambda: own_operator.sql(rows, demo.namespace)[0]["n"] == 0, what="the rows are gone")


def test_with_postgresql_away_it_says_so_and_recovers_by_itself(own_operator: Operator, postgres: Postgres) -> None:
    demo = Demo(own_operator, f"ns-{uuid.uuid4().hex[:8]}")
    demo.synced()
    postgres.stop()
    try:
        demo.mirror(annotations={"entrepot.dev/sync-requested-at": "while-away"})
        body = demo.wait("repositories", "app", "DatabaseUnavailable", status="False")
        assert body["status"]["latestVersion"]["number"] == 1
        assert own_operator.http("/healthz") == (200, "ok")
    finally:
        postgres.start()
    wait_until(
        lambda: demo.status("repositories", "app").get("lastHandledSyncRequest") == "while-away", what="it goes on"
    )
    demo.finish("NoChange")
    demo.wait("repositories", "app", "NoChange", status="True")


def test_a_vanished_distribution_is_served_on_and_counted(own_operator: Operator) -> None:
    demo = Demo(own_operator, f"ns-{uuid.uuid4().hex[:8]}")
    demo.apply("Repository", "app", {})
    demo.wait("repositories", "app", "Available")
    other = uuid.uuid4()
    own_operator.sql(
        "insert into base_path_claim (path, namespace, distribution) values ('lost/app', $1, $2)", demo.namespace, other
    )
    own_operator.sql(
        "insert into distribution (uuid, namespace, name, base_path, repository, access) values ($1, $2, 'lost', 'lost/app', $3, 'Public')",
        other,
        demo.namespace,
        demo.row()["id"],
    )
    wait_until(
        lambda: "entrepot_operator_vanished_distributions 1.0" in own_operator.http("/metrics")[1], what="it is counted"
    )
    assert own_operator.sql("select 1 from distribution where uuid = $1", other) != []


@pytest.mark.allow_blocking  # the official client reads its kubeconfig once, when it is opened
async def test_a_watch_that_tells_nothing_is_noticed_by_the_comparison(
    api: ApiServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no watch at all, as one that is dead: the comparison sees changes that nobody told, and the process is not alive."""
    from datetime import timedelta

    from entrepot.credentials import Keys
    from entrepot.db.operator import OperatorDatabase
    from entrepot.db.pool import open_pool
    from entrepot_operator.api import open_api
    from entrepot_operator.comparison import Comparison
    from entrepot_operator.context import Context
    from entrepot_operator.health import Health
    from entrepot_operator.index import Index
    from entrepot_operator.poller import Poller
    from entrepot_operator.queue import WorkQueue
    from entrepot_operator.settings import JobSettings, OperatorSettings, RemoteDefaults, TuningSettings

    monkeypatch.setenv("KUBECONFIG", str(await asyncio.to_thread(api.kubeconfig, "operator")))
    namespace = f"ns-{uuid.uuid4().hex[:8]}"

    def put_remote(url: str) -> None:
        api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        metadata = {"name": "up", "namespace": namespace}
        api.apply({"apiVersion": API, "kind": "Remote", "metadata": metadata, "spec": {"url": url}})

    await asyncio.to_thread(put_remote, "https://one.example.com")
    settings = OperatorSettings(
        namespace=SYSTEM,
        release="x",
        external_urls=("http://x",),
        syncer_job_template=Path("x"),
        credentials_key_dir=Path("x"),
    )
    async with open_pool(database.settings("operator"), application="test") as pool, open_api() as client:
        context = Context(
            api=client,
            db=OperatorDatabase(pool),
            queue=WorkQueue(initial=timedelta(seconds=1), maximum=timedelta(seconds=2)),
            index=Index(),
            settings=settings,
            tuning=TuningSettings(watch_grace=timedelta(seconds=0)),
            jobs=JobSettings(),
            remote_defaults=RemoteDefaults(),
            keys=Keys({}),
            pod_template={},
        )
        comparison = Comparison(context)
        assert await comparison.once(first=True)
        assert await comparison.once()
        health = Health(context, comparison, Poller(context), time.monotonic())
        assert health.illness() == ""
        await asyncio.to_thread(put_remote, "https://two.example.com")
        await comparison.once()
        assert comparison.dead == frozenset()
        await comparison.once()
        assert comparison.dead == {"Remote"}
        assert "Remote" in health.illness()
        health.watching_since = time.monotonic() - 3600
        comparison.dead = frozenset()
        assert "kopf does not watch remotes" in health.illness()


def run_job(demo: Demo, s3: S3Settings, directory: Path) -> int:
    """The command of the active run's Job as a process here, in place of the kubelet; gives its exit code."""
    run = str(demo.active()["id"])
    job = next(job for job in demo.jobs() if job["metadata"]["labels"]["entrepot.dev/run"] == run)
    [container] = job["spec"]["template"]["spec"]["containers"]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(str(TOP / part) for part in ("core", "services/syncer")),
        "ENTREPOT_DATABASE_DSN": demo.operator.dsn.replace("entrepot_operator@", "entrepot_syncer@"),
        "ENTREPOT_S3_ENDPOINT": s3.endpoint,
        "ENTREPOT_S3_BUCKET": s3.bucket,
        "ENTREPOT_S3_ACCESS_KEY_ID": s3.access_key_id,
        "ENTREPOT_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
        "ENTREPOT_CREDENTIALS_KEY_DIR": str(demo.operator.directory / "keys"),
        "ENTREPOT_UPSTREAM_ALLOW_LOOPBACK": "true",
        "ENTREPOT_TERMINATION_LOG": str(directory / "termination"),
    }
    done = subprocess.run(
        [sys.executable, "-m", *container["args"]],
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    return done.returncode


@pytest.mark.allow_blocking  # the steps are made in threads, and the upstream answers in this loop
async def test_with_the_jobs_command_run_here_a_private_upstream_is_mirrored_and_served(
    demo: Demo, s3: S3Settings, tmp_path: Path
) -> None:
    async with Upstream(auth="basic", username="me", password=f"{CANARY}-3") as upstream:
        upstream.content("team/app").add_image("1.0")
        upstream.content("team/app").add_image("2.0")

        def steps() -> None:
            host = upstream.url.removeprefix("http://")
            config = {"auths": {host: {"username": "me", "password": "wrong"}}}
            demo.secret("login", DOCKER, {".dockerconfigjson": json.dumps(config)})
            demo.remote(url=upstream.url, credentialsSecretRef={"name": "login"})
            demo.mirror()
            demo.distribution()
            demo.active()
            wait_until(lambda: len(demo.jobs()) == 1, what="the Job is there")
            assert run_job(demo, s3, tmp_path) == 0
            body = demo.wait("repositories", "app", "Unauthorized", status="False")
            assert "401" in condition(body, "Ready")["message"]

            # The cause goes, and it recovers by itself: the retry has the credentials as they are by then.
            config["auths"][host]["password"] = f"{CANARY}-3"
            demo.secret("login", DOCKER, {".dockerconfigjson": json.dumps(config)})
            run = demo.active()["id"]
            wait_until(lambda: len(demo.jobs()) == 2, what="the second Job is there")
            assert run_job(demo, s3, tmp_path) == 0
            body = demo.wait("repositories", "app", "Synced", status="True")
            assert body["status"]["latestVersion"]["tags"] == 2
            assert body["status"]["lastSync"]["added"] == 2
            demo.wait("remotes", "up", "Reachable", status="True")
            wait_until(lambda: demo.status("distributions", "app").get("servedVersion") == 1, what="it is served")
            view = demo.get("repositoryversions", "app-v1") or {}
            assert view["status"]["cause"] == {"kind": "Sync", "name": str(run)}

        await asyncio.to_thread(steps)
