"""A token request, read.

Source: CNCF distribution, "Docker Registry v2 authentication via central service". Scopes that are malformed, or about something other than
repositories and the catalog, grant nothing and are no error: asking for more than there is to have is allowed. `account`, `client_id` and
`offline_token` change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from yarl import URL

from entrepot.errors import RegistryError
from entrepot.oci.reference import NameInvalid, parse_name
from entrepot.oci.scope import ScopeInvalid, parse_scope

__all__ = ["TokenRequest", "read_request"]


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """Actions asked for, by repository name, and whether the catalog was."""

    scopes: dict[str, frozenset[str]]
    wants_catalog: bool


def read_request(query_string: str, *, service: str, max_scopes: int) -> TokenRequest:
    """The request in a raw query string. Raises RegistryError 400."""
    query = URL.build(query_string=query_string, encoded=True).query
    given = query.getall("service", ())
    if list(given) != [service]:
        said = "none" if not given else "another one"
        raise RegistryError(
            400,
            "UNSUPPORTED",
            f"the parameter 'service' must be {service!r} here, as the challenge says; the request names {said}",
        )
    words = [word for value in query.getall("scope", ()) for word in value.split(" ") if word]
    if len(words) > max_scopes:
        raise RegistryError(400, "UNSUPPORTED", f"a request names at most {max_scopes} scopes, this one {len(words)}")
    scopes: dict[str, frozenset[str]] = {}
    wants_catalog = False
    for word in words:
        try:
            scope = parse_scope(word)
            if (scope.type, scope.name) == ("registry", "catalog"):
                wants_catalog = wants_catalog or "*" in scope.actions
                continue
            name = parse_name(scope.name)
        except (ScopeInvalid, NameInvalid):
            continue
        if scope.type == "repository":
            scopes[name] = scopes.get(name, frozenset()) | scope.actions
    return TokenRequest(scopes, wants_catalog)
