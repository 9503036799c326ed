"""The chart as `helm template` renders it, and what of it the tests look at."""

from __future__ import annotations

import functools
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.servers import find_tool

TOP = Path(__file__).parents[3]
CHART = TOP / "charts" / "entrepot"
KUBE_VERSION = "1.34.0"

Object = dict[str, Any]

# The same as SafeLoader, in C where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm, without a cluster."""
    return subprocess.run(
        [find_tool("helm"), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def template(values: Mapping[str, Any] | None = None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`helm template` with these values."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values or {}, file)
        file.flush()
        return helm(
            "template", "entrepot", str(CHART), "--namespace=entrepot", f"--kube-version={KUBE_VERSION}", f"--values={file.name}",
            *arguments,
        )  # fmt: skip


def rendered_text(values: Mapping[str, Any] | None = None, *arguments: str) -> str:
    """What `helm template` prints."""
    done = template(values, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def _rendered_once(values: str, *arguments: str) -> str:
    return rendered_text(json.loads(values), *arguments)


def render(values: Mapping[str, Any] | None = None, *arguments: str) -> list[Object]:
    """The objects of the release. Rendered once for all tests with the same values, and parsed for each."""
    text = _rendered_once(json.dumps(values or {}), *arguments)
    return [document for document in yaml.load_all(text, _LOADER) if document]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The object of that kind whose name begins so."""
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].startswith(name)]
    assert len(found) == 1, [item["metadata"]["name"] for item in found]
    return found[0]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """All pod templates: of Deployments, StatefulSets and Jobs, and the one that the operator makes sync runs from."""
    for item in objects:
        name = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] in {"Deployment", "StatefulSet", "Job", "DaemonSet"}:
            yield name, item["spec"]["template"]
        elif item["kind"] == "ConfigMap" and "pod.yaml" in item["data"]:
            yield name, yaml.safe_load(item["data"]["pod.yaml"])


def containers(pod: Object) -> list[Object]:
    """All containers of a pod template."""
    found: list[Object] = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    return found


def environment(container: Object) -> dict[str, str]:
    """The variables of a container that have a value in the manifest."""
    return {item["name"]: item["value"] for item in container.get("env", []) if "value" in item}


def default_values() -> dict[str, Any]:
    """values.yaml."""
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def schema() -> dict[str, Any]:
    """values.schema.json."""
    loaded: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return loaded
