"""The Job of a sync run: its name, its body, and what became of it. Pure; who sends it is `repositories`.

The name follows from the Repository's UID and the run, so starting a run twice makes one Job. The Job holds no more than the run's id: what to
do stands in PostgreSQL, the rest in the pod template of the chart.

restartPolicy is Never: a pod that died (killed, evicted, out of memory) is replaced by a new one, up to `backoffLimit` times, which goes on with
the same run, and its log and last words stay to be read. On a failed drain the count is not touched; a bad invocation is never repeated.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from entrepot_operator.conditions import one_line
from entrepot_operator.kinds import Object
from entrepot_operator.settings import JobSettings

__all__ = [
    "JobState",
    "TemplateInvalid",
    "check_template",
    "diagnose",
    "job_body",
    "job_name",
    "job_state",
    "pod_trouble",
]

RUN_LABEL: Final = "entrepot.dev/run"
_MAX_SAID: Final = 300
_BAD_INVOCATION: Final = 64  # EX_USAGE of sysexits.h, as the syncer exits


class TemplateInvalid(Exception):
    """The file with the pod template does not hold one."""


@dataclass(frozen=True, slots=True)
class JobState:
    """`phase` is Active, Complete or Failed; reason and message are the Job's own, for Failed."""

    phase: str
    reason: str = ""
    message: str = ""


def job_name(repository: str, *, uid: UUID, run: UUID) -> str:
    """At most 63 characters, which a label can hold."""
    readable = repository[:52].replace(".", "-").strip("-")
    return f"{readable}-{hashlib.sha256(f'{uid}/{run}'.encode()).hexdigest()[:10]}"


def check_template(template: Any) -> Object:
    """The pod template as an object. Raises TemplateInvalid."""
    containers = template.get("spec", {}).get("containers") if isinstance(template, dict) else None
    if not isinstance(containers, list) or not containers or not all(isinstance(c, dict) for c in containers):
        raise TemplateInvalid("it is not a pod template: an object with spec.containers")
    checked: Object = template
    return checked


def job_body(
    template: Object, *, name: str, namespace: str, release: str, owner: Object, run: UUID, settings: JobSettings
) -> Object:
    """The Job of a run; `owner` is the Repository."""
    metadata = owner["metadata"]
    labels = {
        "app.kubernetes.io/name": "entrepot",
        "app.kubernetes.io/instance": release,
        "app.kubernetes.io/component": "syncer",
        "app.kubernetes.io/managed-by": "entrepot-operator",
        "entrepot.dev/owner-kind": "Repository",
        "entrepot.dev/owner-uid": metadata["uid"],
        RUN_LABEL: str(run),
    }
    # Names of objects may be longer than a label's value, and are for people anyway.
    annotations = {"entrepot.dev/owner": f"{metadata['namespace']}/{metadata['name']}"}
    pod = copy.deepcopy(template)
    pod_metadata = pod.setdefault("metadata", {})
    pod_metadata["labels"] = {**(pod_metadata.get("labels") or {}), **labels}
    pod_metadata["annotations"] = {**(pod_metadata.get("annotations") or {}), **annotations}
    pod["spec"]["restartPolicy"] = "Never"
    containers = pod["spec"]["containers"]
    container = next((c for c in containers if c.get("name") == "syncer"), containers[0])
    container["args"] = ["entrepot_syncer", "run", str(run)]
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations},
        "spec": {
            "backoffLimit": settings.backoff_limit,
            "activeDeadlineSeconds": int(settings.active_deadline.total_seconds()),
            "ttlSecondsAfterFinished": int(settings.ttl_after_finished.total_seconds()),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": container["name"],
                            "operator": "In",
                            "values": [_BAD_INVOCATION],
                        },
                    },
                ]
            },
            "template": pod,
        },
    }


def job_state(job: Mapping[str, Any]) -> JobState:
    """How far a Job is. Only its final conditions count; the others come before its pods are gone."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in {"Complete", "Failed"}:
            return JobState(condition["type"], condition.get("reason") or "", condition.get("message") or "")
    return JobState("Active")


def pod_trouble(pods: Sequence[Mapping[str, Any]]) -> str:
    """Why the newest pod does not start, in one line; empty if nothing is known to be wrong."""
    for pod in _newest_first(pods):
        status = pod.get("status") or {}
        for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason = waiting.get("reason") or ""
            if reason and reason not in {"ContainerCreating", "PodInitializing"}:
                return one_line(f"the pod does not start: {reason}: {waiting.get('message') or ''}").rstrip(": ")
        for condition in status.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return one_line(
                    f"the pod is not scheduled: {condition.get('message') or condition.get('reason') or ''}"
                )
        return ""
    return ""


def diagnose(job: JobState, pods: Sequence[Mapping[str, Any]], *, name: str, namespace: str) -> str:
    """Why a Job ended without finishing its run, in one line with the command that shows its log."""
    said = ""
    for pod in _newest_first(pods):
        said = _last_words(pod.get("status") or {})
        if said:
            break
    said = said or pod_trouble(pods)
    how = ", ".join(filter(None, [job.reason, job.message]))
    if job.phase == "Complete":
        how = "it ended well, but never wrote its result"
    return one_line(
        f"the sync's Job {name} did not finish the run{f' ({how})' if how else ''}"
        f"{f': {said}' if said else ''}; see: kubectl -n {namespace} logs job/{name}"
    )


def _newest_first(pods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)


def _last_words(status: Mapping[str, Any]) -> str:
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode") != 0:
            message = _said(ended.get("message") or "")
            return (
                f"container {container['name']} ended with {ended.get('reason') or 'Error'}, exit code {ended.get('exitCode')}"
                + (f": {message}" if message else "")
            )
    if status.get("phase") == "Failed" and status.get("reason"):
        return f"the pod failed: {status['reason']}: {status.get('message') or ''}"
    return ""


def _said(message: str) -> str:
    """The sentence in a termination message: of its last line, which is our JSON, a line of our log, or somebody's plain words."""
    lines = message.strip().splitlines()
    if not lines:
        return ""
    try:
        entry = json.loads(lines[-1])
    except ValueError:
        return lines[-1][-_MAX_SAID:]
    if not isinstance(entry, dict):
        return ""
    return str(entry.get("message") or entry.get("event") or "")[:_MAX_SAID]
