"""Which base paths a namespace may use. A path is a name that clients trust, so nobody may take one that looks like another's."""

from __future__ import annotations

from entrepot.errors import Stalled
from entrepot.oci.reference import NameInvalid, parse_name

__all__ = ["check_path", "default_path"]


def default_path(namespace: str, repository: str) -> str:
    """Where a Repository is served if nothing else is said.

    A resource's name may hold dots in ways that an image's name may not ("a.-b"), so the result still has to be checked.
    """
    return f"{namespace}/{repository}"


def check_path(path: str, *, namespace: str, prefixes: str | None) -> None:
    """Raise Stalled unless the namespace may use the path.

    `prefixes` is the Namespace's annotation: paths separated by commas, each of which allows itself and what is below it; `*` allows all.
    """
    try:
        parse_name(path)
    except NameInvalid as error:
        raise Stalled(f"spec.basePath: {error}", reason="BasePathNotAllowed") from None
    if path == "r" or path.startswith("r/"):
        raise Stalled(
            "spec.basePath: paths that begin with r/ are those of the Repositories themselves, r/<namespace>/<name>; choose another",
            reason="BasePathNotAllowed",
        )
    allowed = [namespace, *(prefix.strip().strip("/") for prefix in (prefixes or "").split(","))]
    if "*" in allowed or any(prefix and (path == prefix or path.startswith(prefix + "/")) for prefix in allowed):
        return
    raise Stalled(
        f"the namespace {namespace} may not use the path {path!r}: begin it with {namespace}/, or have the Namespace annotated with"
        " entrepot.dev/path-prefixes",
        reason="BasePathNotAllowed",
    )
