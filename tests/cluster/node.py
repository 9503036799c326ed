"""The release on the project's own node, as the tests see it that go the whole way: from kubectl to processes that they kill."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster.conftest import OWN_NODE, Kubectl
from tests.cluster.release import Release, clear

__all__ = ["BRIDGE", "REGISTRY", "SYSTEM", "condition", "eventually", "installed", "main_process", "processes"]

T = TypeVar("T")

SYSTEM = "entrepot"
"""The release's name and namespace."""
BRIDGE = "10.88.0.1"
"""This host, as pods see it."""
REGISTRY = "localhost:30500"
SOCKET = "/run/entrepot-containerd.sock"


def eventually(look: Callable[[], T], *, seconds: float = 90, what: str) -> T:
    """What `look` gives as soon as that is true; AssertionError with its last answer after a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s; last: {found!r}"
        time.sleep(0.1)
    return found


@contextmanager
def installed(kubeconfig: Path, kubectl: Kubectl, values: Mapping[str, Any] | None = None) -> Iterator[Release]:
    """A release as a user installs it, in a namespace that enforces the restricted profile."""
    assert kubeconfig == OWN_NODE, (
        "these tests need the project's own node: they look into it, and it reaches this host"
    )
    clear(kubeconfig, own=True)
    kubectl("create", "namespace", SYSTEM, check=False)
    kubectl("label", "namespace", SYSTEM, "--overwrite", "pod-security.kubernetes.io/enforce=restricted")
    release = Release(kubeconfig, namespace=SYSTEM)
    release.install(values)
    yield release
    release.uninstall()
    kubectl("delete", "namespace", SYSTEM, "--timeout=55s")


def condition(resource: dict[str, Any], kind: str = "Ready") -> dict[str, Any]:
    """A condition of a resource, empty if there is none."""
    found = [c for c in resource.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {}


def main_process(kubectl: Kubectl, namespace: str, selector: str, container: str) -> int | None:
    """The host's id of the main process of a running container, if there is one."""
    return next(iter(processes(kubectl, namespace, selector, container)), None)


def processes(kubectl: Kubectl, namespace: str, selector: str, container: str) -> list[int]:
    """The host's ids of the main processes of all such containers that run."""
    tasks = subprocess.run(
        ["ctr", "--address", SOCKET, "--namespace", "k8s.io", "tasks", "ls"], capture_output=True, text=True, check=True
    ).stdout
    ids = []
    pods = json.loads(
        kubectl("get", "pods", f"--namespace={namespace}", f"--selector={selector}", "--output=json").stdout
    )
    for pod in pods["items"]:
        for status in pod["status"].get("containerStatuses", []):
            if status["name"] == container and "running" in status["state"]:
                identity = status["containerID"].removeprefix("containerd://")
                found = re.search(rf"^{identity}\s+(\d+)\s+RUNNING", tasks, re.MULTILINE)
                if found:
                    ids.append(int(found[1]))
    return ids
