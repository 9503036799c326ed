"""What a subject may do.

An Authorizer answers for all the distributions of a request at once. A further one asks the cluster (SubjectAccessReview on
`distributions/content`); what is public is decided here without asking anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from entrepot.db.token import DistributionRow
from entrepot_token.identity import Subject

__all__ = ["Authorizer", "PublicPull", "Wish"]


@dataclass(frozen=True, slots=True)
class Wish:
    """Actions (pull, push, delete, *) asked for on a distribution."""

    distribution: DistributionRow
    actions: frozenset[str]


class Authorizer(Protocol):
    """Subject and wishes -> what is granted."""

    async def authorize(self, subject: Subject, wishes: Sequence[Wish]) -> Sequence[frozenset[str]]:
        """For each wish the actions granted, a subset of those asked for; not granting is no error."""
        ...


class PublicPull:
    """Everybody pulls what is public; that is all."""

    async def authorize(self, subject: Subject, wishes: Sequence[Wish]) -> Sequence[frozenset[str]]:
        """See Authorizer."""
        del subject  # whoever it is
        granted = frozenset({"pull"})
        return [
            granted if wish.distribution.access == "Public" and wish.actions & {"pull", "*"} else frozenset()
            for wish in wishes
        ]
