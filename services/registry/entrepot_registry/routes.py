"""Which endpoint a request line means.

Names hold slashes, and any of their parts may be called `manifests` or `tags`. What tells an endpoint is therefore its end: the last
segment is the reference and the one before it the kind, because neither tags nor digests hold a slash. The path is judged as it was sent,
without decoding: a name, tag or digest never needs an escape, so a path with one is not a name's, and two spellings never mean the same.
The one exception is `%3A` in the last segment: some clients escape the colon of a digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from entrepot.errors import RegistryError
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag, parse_name, parse_reference

__all__ = ["Endpoint", "Route", "parse_route"]


class Endpoint(StrEnum):
    """An endpoint, by the template that stands for it in metrics and logs."""

    BASE = "/v2/"
    MANIFEST = "/v2/{name}/manifests/{reference}"
    BLOB = "/v2/{name}/blobs/{digest}"
    TAGS = "/v2/{name}/tags/list"
    UPLOADS = "/v2/{name}/blobs/uploads/"
    UPLOAD = "/v2/{name}/blobs/uploads/{id}"
    REFERRERS = "/v2/{name}/referrers/{digest}"
    CATALOG = "/v2/_catalog"
    SIGNATURES = "/extensions/v2/{name}/signatures/{digest}"
    VERSIONS = "/extensions/entrepot/v1/{name}/versions"
    VERSION = "/extensions/entrepot/v1/{name}/versions/{number}"
    COMPARISON = "/extensions/entrepot/v1/{name}/versions/{a}...{b}"
    VERSION_CONTENT = "/extensions/entrepot/v1/{name}/versions/{number}/{kind}"
    RUNS = "/extensions/entrepot/v1/{name}/runs"
    TOKEN = "/token"  # noqa: S105 - a path
    HEALTH = "/healthz"
    READY = "/readyz"


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint and what it is asked about; `reference` (tag, digest, upload or version) as written, its grammar unchecked."""

    endpoint: Endpoint
    name: RepositoryName | None = None
    reference: str = ""
    kind: str = ""
    """What of a version is listed: tags, manifests, blobs or signatures."""

    @property
    def tag_or_digest(self) -> Tag | Digest:
        """Raises TagInvalid or DigestInvalid."""
        return parse_reference(self.reference)

    @property
    def digest(self) -> Digest:
        """Raises DigestInvalid."""
        return Digest.parse(self.reference)


_FIXED = {
    "/v2/": Endpoint.BASE,
    "/v2": Endpoint.BASE,
    "/v2/_catalog": Endpoint.CATALOG,
    "/token": Endpoint.TOKEN,
    "/healthz": Endpoint.HEALTH,
    "/readyz": Endpoint.READY,
}
_CONTENT = frozenset({"tags", "manifests", "blobs", "signatures"})
_KINDS = {"manifests": Endpoint.MANIFEST, "blobs": Endpoint.BLOB, "referrers": Endpoint.REFERRERS}


def parse_route(path: str) -> Route:
    """The endpoint of a path as it stood in the request line, without its query.

    Raises:
        NameInvalid: it is an endpoint's, but the name is none.
        RegistryError: 404, it is no endpoint's.
    """
    fixed = _FIXED.get(path)
    if fixed is not None:
        return Route(fixed)
    if path.startswith("/extensions/"):
        return _parse_extension(path)
    if not path.startswith("/v2/"):
        raise _no_such_endpoint()
    head, _, last = path[4:].rpartition("/")
    name, _, kind = head.rpartition("/")
    if not name:
        raise _no_such_endpoint()
    if kind == "uploads" and name.endswith("/blobs"):
        return Route(Endpoint.UPLOAD if last else Endpoint.UPLOADS, parse_name(name.removesuffix("/blobs")), last)
    if kind == "tags" and last == "list":
        return Route(Endpoint.TAGS, parse_name(name))
    if kind == "blobs" and last == "uploads":
        return Route(Endpoint.UPLOADS, parse_name(name))
    endpoint = _KINDS.get(kind)
    if endpoint is None or not last:
        raise _no_such_endpoint()
    return Route(endpoint, parse_name(name), _unescape_colon(last))


def _parse_extension(path: str) -> Route:
    if path.startswith("/extensions/v2/"):
        name, _, last = path.removeprefix("/extensions/v2/").rpartition("/signatures/")
        if not name or not last:
            raise _no_such_endpoint()
        return Route(Endpoint.SIGNATURES, parse_name(name), _unescape_colon(last))
    if not path.startswith("/extensions/entrepot/v1/"):
        raise _no_such_endpoint()
    parts = path.removeprefix("/extensions/entrepot/v1/").split("/")
    if len(parts) > 1 and parts[-1] in {"versions", "runs"}:
        endpoint = Endpoint.VERSIONS if parts[-1] == "versions" else Endpoint.RUNS
        return Route(endpoint, parse_name("/".join(parts[:-1])))
    if len(parts) > 3 and parts[-3] == "versions" and parts[-1] in _CONTENT:
        return Route(Endpoint.VERSION_CONTENT, parse_name("/".join(parts[:-3])), parts[-2], parts[-1])
    if len(parts) > 2 and parts[-2] == "versions":
        endpoint = Endpoint.COMPARISON if "..." in parts[-1] else Endpoint.VERSION
        return Route(endpoint, parse_name("/".join(parts[:-2])), parts[-1])
    raise _no_such_endpoint()


def _unescape_colon(segment: str) -> str:
    return segment.replace("%3A", ":", 1).replace("%3a", ":", 1)


def _no_such_endpoint() -> RegistryError:
    return RegistryError(404, "UNSUPPORTED", "this registry has no such endpoint")
