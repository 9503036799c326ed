"""A real cluster for the tests: the one that ENTREPOT_TEST_KUBECONFIG names, otherwise the project's own node.

A missing cluster is a failure, not a skip: `make cluster-up` starts one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

OWN_NODE = Path("/var/lib/entrepot-cluster/admin.kubeconfig")
CRDS = Path(__file__).parents[2] / "crds"


class Kubectl(Protocol):
    """`kubectl(*arguments, input=…)`: runs it against the cluster and gives what it printed; `check=False` takes failures too."""

    def __call__(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """The kubeconfig of a running cluster, as an administrator."""
    path = Path(os.environ.get("ENTREPOT_TEST_KUBECONFIG", OWN_NODE))
    assert path.is_file(), f"there is no cluster to test with, {path} does not exist: run `make cluster-up`"
    return path


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Kubectl:
    """kubectl on that cluster."""

    def run(
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={kubeconfig}", *arguments],
            input="" if input is None else input,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def crds(kubectl: Kubectl) -> Path:
    """The four kinds are there, as crds/ has them now."""
    kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=entrepot-tests", f"--filename={CRDS}")
    kubectl("wait", "--for=condition=Established", "--timeout=30s", f"--filename={CRDS}")
    return CRDS


@pytest.fixture(scope="module")
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the test module's own, deleted at its end with all that is in it."""
    name = f"test-{uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
