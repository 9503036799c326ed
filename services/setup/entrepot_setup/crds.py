"""The CustomResourceDefinitions, and the claim that only one release makes on a cluster.

They are applied from the image, so a schema and the operator that relies on it always arrive together, and an upgrade changes them, which
Helm's own `crds/` directory never does. `kubectl apply -f crds/` beforehand is fine: server-side apply then takes the fields over.

Custom resources are cluster-wide, so two releases would fight over the same objects. The claim is an annotation on the
definitions. It outlives `helm uninstall` as they do; what tells a living release from a dead one is the operator's
ClusterRoleBinding, which goes with the release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import structlog
import yaml
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed

from entrepot_setup.api import Api
from entrepot_setup.errors import ReleaseRefused, SetupFailed

__all__ = ["CLAIM", "apply_crds", "binding_name", "check_claim", "read_crds"]

CLAIM: Final = "entrepot.dev/release"
"""Annotation on each definition: `<namespace>/<name>` of the release that owns them."""

_CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_BINDINGS: Final = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
_MANAGER: Final = "entrepot-setup"
_ESTABLISHED_WITHIN: Final = 60.0  # seconds

_log = structlog.get_logger(__name__)


def read_crds(directory: Path) -> list[dict[str, Any]]:
    """All definitions of a directory, in the order of its file names.

    Raises:
        SetupFailed: there is none, or a file holds something else.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(directory.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if not isinstance(document, dict) or document.get("kind") != "CustomResourceDefinition":
                raise SetupFailed(f"{path} holds something that is not a CustomResourceDefinition")
            found.append(document)
    if not found:
        raise SetupFailed(f"there are no CustomResourceDefinitions in {directory}")
    return found


def binding_name(namespace: str, release: str) -> str:
    """The operator's ClusterRoleBinding of a release; the chart's templates have the same rule."""
    return f"entrepot:{namespace}:{release}:operator"


async def check_claim(api: Api, crds: Sequence[Mapping[str, Any]], *, namespace: str, release: str) -> None:
    """Refuse to go on where another living release has claimed the definitions.

    Raises:
        ReleaseRefused: naming the other release, and what to do.
    """
    claims: set[str] = set()
    for crd in crds:
        found = await api.get(f"{_CRDS}/{crd['metadata']['name']}")
        claims.add(((found or {}).get("metadata", {}).get("annotations") or {}).get(CLAIM) or "")
    for claim in sorted(claims - {"", f"{namespace}/{release}"}):
        other_namespace, _, other = claim.partition("/")
        if await api.get(f"{_BINDINGS}/{quote(binding_name(other_namespace, other), safe='')}") is None:
            _log.info("taking over from a release that was uninstalled", namespace=other_namespace, release=other)
            continue
        raise ReleaseRefused(
            f"Entrepot is already installed in this cluster, as release {other!r} in namespace {other_namespace!r}, and a cluster takes"
            f" one release: upgrade that one, or remove it first with `helm uninstall {other} --namespace {other_namespace}`"
        )


async def apply_crds(api: Api, crds: Sequence[Mapping[str, Any]], *, namespace: str, release: str) -> None:
    """Create or update the definitions, claim them, and wait until the API server serves them."""
    for crd in crds:
        metadata = {**crd["metadata"]}
        metadata["annotations"] = {**(metadata.get("annotations") or {}), CLAIM: f"{namespace}/{release}"}
        await api.apply(f"{_CRDS}/{metadata['name']}", {**crd, "metadata": metadata}, manager=_MANAGER)
    names = [crd["metadata"]["name"] for crd in crds]
    for name in names:
        attempts = AsyncRetrying(
            stop=stop_after_delay(_ESTABLISHED_WITHIN), wait=wait_fixed(0.1), retry=retry_if_result(_is_pending)
        )
        try:
            await attempts(api.get, f"{_CRDS}/{name}")
        except RetryError as error:
            raise SetupFailed(f"the API server does not serve {name} after {_ESTABLISHED_WITHIN:.0f} s") from error
    _log.info("custom resource definitions applied", names=names)


def _is_pending(crd: Mapping[str, Any] | None) -> bool:
    conditions = ((crd or {}).get("status") or {}).get("conditions") or []
    return not any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)
