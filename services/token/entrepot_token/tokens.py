"""The token: what the registry will read.

Claims: iss and aud are the service id; sub is the subject, empty for nobody; access is the list of CNCF distribution's token specification.
`entrepot.distributions` gives the uuid of what each of its names stood for: of the Distribution, or of the Repository where the name is
`r/<namespace>/<name>`. `entrepot.catalog.namespaces`, only where the catalog was asked for, lists the namespaces whose Distributions the
subject may see listed though they are Private, or is "*". `entrepot.refused`, only where there are any, lists names that were asked for and
on which nothing was granted: so the registry asks a client once and not for ever for a token that also reads where a blob is mounted from.
`entrepot.readable`, only with a right to push, lists those namespaces pushed to whose Distributions the subject may all pull from: a blob that is
mounted without saying where from may come from there.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from entrepot.db.token import PlaceRow
from entrepot_token.identity import Subject
from entrepot_token.rights import Catalog

__all__ = ["Granted", "make_claims", "timestamp"]


_MAX_REFUSED: Final = 32
"""A token travels in a header."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Actions granted on a place; at least one."""

    place: PlaceRow
    actions: frozenset[str]


def make_claims(
    subject: Subject,
    granted: Sequence[Granted],
    *,
    refused: Sequence[str] = (),
    readable: Sequence[str] = (),
    catalog: Catalog | None = None,
    service: str,
    now: int,
    lifetime: int,
) -> dict[str, Any]:
    """The claims of a token that is valid from `now` (seconds since 1970) for `lifetime` seconds."""
    access = [{"type": "repository", "name": grant.place.name, "actions": sorted(grant.actions)} for grant in granted]
    ours: dict[str, Any] = {"distributions": {grant.place.name: str(grant.place.uuid) for grant in granted}}
    if refused:
        ours["refused"] = list(refused[:_MAX_REFUSED])
    if readable:
        ours["readable"] = list(readable)
    if catalog is not None:
        # First: the registry reads a bounded number of entries.
        access.insert(0, {"type": "registry", "name": "catalog", "actions": ["*"]})
        ours["catalog"] = {"namespaces": catalog if catalog == "*" else list(catalog)}
    return {
        "iss": service,
        "aud": service,
        "sub": subject.name,
        "iat": now,
        "nbf": now,
        "exp": now + lifetime,
        "jti": secrets.token_urlsafe(16),
        "access": access,
        "entrepot": ours,
    }


def timestamp(seconds: int) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
