"""The token: what the registry will read.

Claims: iss and aud are the service id; sub is the subject, empty for nobody; access is the list of CNCF distribution's token specification;
`entrepot.distributions` gives the uuid of the distribution that each of its names stood for.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from entrepot.db.token import DistributionRow
from entrepot_token.identity import Subject

__all__ = ["Granted", "make_claims", "timestamp"]


@dataclass(frozen=True, slots=True)
class Granted:
    """Actions granted on a distribution; at least one."""

    distribution: DistributionRow
    actions: frozenset[str]


def make_claims(
    subject: Subject, granted: Sequence[Granted], *, service: str, now: int, lifetime: int
) -> dict[str, Any]:
    """The claims of a token that is valid from `now` (seconds since 1970) for `lifetime` seconds."""
    return {
        "iss": service,
        "aud": service,
        "sub": subject.name,
        "iat": now,
        "nbf": now,
        "exp": now + lifetime,
        "jti": secrets.token_urlsafe(16),
        "access": [
            {"type": "repository", "name": grant.distribution.base_path, "actions": sorted(grant.actions)}
            for grant in granted
        ],
        "entrepot": {
            "distributions": {grant.distribution.base_path: str(grant.distribution.uuid) for grant in granted}
        },
    }


def timestamp(seconds: int) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
