"""The chart as a user installs it: `helm` against the test cluster, with the images that the tree was built into.

The tests of the whole path use these functions as well; each test module that needs a release installs it, and a cluster holds one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import find_tool

__all__ = ["CHART", "Release", "clear", "image_values", "installed_releases"]

TOP = Path(__file__).parents[2]
CHART = TOP / "charts" / "entrepot"


def image_values() -> dict[str, Any]:
    """Values that name the images of this tree.

    ENTREPOT_TEST_IMAGES names them where they were put into a cluster by other means (`entrepot=REFERENCE postgres=… versitygw=…`); otherwise
    `hack/images` says what it builds and loads.
    """
    given = os.environ.get("ENTREPOT_TEST_IMAGES", "").split()
    references = dict(item.split("=", 1) for item in given) or _loaded_images()
    return {
        "image": _image(references["entrepot"]),
        "database": {"embedded": {"image": _image(references["postgres"])}},
        "storage": {"embedded": {"image": _image(references["versitygw"])}},
    }


def _loaded_images() -> dict[str, str]:
    done = subprocess.run([TOP / "hack" / "images", "--print"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"the images are not there, run `make images`: {done.stderr}"
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _image(reference: str) -> dict[str, str]:
    name, _, tag = reference.rpartition(":")
    registry, _, repository = name.partition("/")
    return {"registry": registry, "repository": repository, "tag": tag}


@dataclass(frozen=True)
class Release:
    """A release of the chart. Methods raise AssertionError with helm's own words."""

    kubeconfig: Path
    name: str = "entrepot"
    namespace: str = "entrepot"
    images: Mapping[str, Any] = field(default_factory=image_values)

    def helm(
        self, *arguments: str, values: Mapping[str, Any] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run helm in the release's namespace."""
        if values is not None:
            arguments = (*arguments, "--values=-")
        done = subprocess.run(
            [find_tool("helm"), f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments],
            input="" if values is None else json.dumps(values),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert not check or done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
        return done

    def install(
        self, values: Mapping[str, Any] | None = None, *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Install or upgrade, and wait until everything is ready."""
        return self.helm(
            "upgrade", "--install", self.name, str(CHART), "--create-namespace", "--wait", "--timeout=5m",
            values=merged(self.images, values or {}), check=check,
        )  # fmt: skip

    def uninstall(self) -> None:
        """Uninstall, and wait until its objects are gone; what the documentation says stays, stays."""
        self.helm("uninstall", self.name, "--wait", "--ignore-not-found", "--timeout=3m")

    def manifest(self, values: Mapping[str, Any] | None = None, *arguments: str) -> str:
        """The objects as `helm template` renders them, for `kubectl apply`."""
        done = self.helm(
            "template",
            self.name,
            str(CHART),
            "--kube-version=1.34.0",
            *arguments,
            values=merged(self.images, values or {}),
        )
        return done.stdout


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two sets of values as helm merges them: maps are merged, anything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return result


def clear(kubeconfig: Path, *, own: bool) -> None:
    """Make room for the tests' release, since a cluster takes one: on the project's own node by removing what is there."""
    for other in installed_releases(kubeconfig):
        assert own, (
            f"release {other.name} is installed in namespace {other.namespace}: the tests do not remove what is not theirs"
        )
        print(f"removing release {other.name} from namespace {other.namespace}: a cluster takes one")
        other.uninstall()


def installed_releases(kubeconfig: Path) -> list[Release]:
    """All releases of the chart in the cluster, such as the demo's."""
    done = Release(kubeconfig, images={}).helm("list", "--all-namespaces", "--all", "--output=json")
    return [
        Release(kubeconfig, item["name"], item["namespace"])
        for item in json.loads(done.stdout)
        if item["chart"].rpartition("-")[0] == "entrepot"
    ]
