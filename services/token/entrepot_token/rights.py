"""What a subject may do.

What is public, or for everybody who is somebody, is decided here without asking. All else is a right in the sense of Kubernetes RBAC: a verb
(pull, push, delete) on the virtual subresource `content` of a Distribution, or of a Repository where the name is `r/<namespace>/<name>`.
Whether a subject holds it, Rights asks a Reviewer: the cluster (`reviews`), or a file (`rules`) where there is none. Nobody never holds one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import structlog

from entrepot.db.token import PlaceRow
from entrepot_token.identity import Subject

__all__ = ["ACTIONS", "Authorizer", "Catalog", "NoRights", "Question", "Reviewer", "Rights", "Wish"]

ACTIONS: Final = frozenset({"pull", "push", "delete"})

_MAX_CATALOG: Final = 3000
"""Bytes of namespaces in a token: it travels in a header."""

_log = structlog.get_logger("rights")

Catalog = Sequence[str] | Literal["*"]
"""Namespaces whose distributions a subject may list all of; "*": every one."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Actions (pull, push, delete, or * for all of them) asked for on a place."""

    place: PlaceRow
    actions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a subject holds a verb on a resource's content; an empty namespace or name: on all of them."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""


class Reviewer(Protocol):
    """Who knows the rights."""

    async def allows(self, subject: Subject, question: Question) -> bool:
        """Whether the subject holds the right. Raises Failed."""
        ...


class NoRights:
    """Neither a cluster nor a file: nobody holds a right."""

    async def allows(self, subject: Subject, question: Question) -> bool:
        """See Reviewer."""
        del subject, question
        return False


class Authorizer(Protocol):
    """Subject and wishes -> what is granted."""

    async def authorize(self, subject: Subject, wishes: Sequence[Wish]) -> Sequence[frozenset[str]]:
        """For each wish the actions granted, a subset of those asked for; not granting is no error. Raises Failed."""
        ...

    async def catalog(self, subject: Subject, namespaces: Sequence[str]) -> Catalog:
        """Of these namespaces, those whose distributions the subject may list all of. Raises Failed."""
        ...

    async def readable(self, subject: Subject, namespaces: Sequence[str]) -> Sequence[str]:
        """Of these namespaces, those whose distributions the subject may pull from, all of them. Raises Failed."""
        ...


class Rights:
    """The Authorizer there is: `access` decides, and where that does not, the Reviewer."""

    def __init__(self, reviewer: Reviewer) -> None:
        self._reviewer = reviewer

    async def authorize(self, subject: Subject, wishes: Sequence[Wish]) -> Sequence[frozenset[str]]:
        """See Authorizer. All that has to be asked is asked at once."""
        granted = [_free(subject, wish.place) & _wanted(wish) for wish in wishes]
        if subject.is_anonymous:
            return granted
        open_questions = [
            (index, Question(verb, wish.place.resource, wish.place.namespace, wish.place.resource_name))
            for index, wish in enumerate(wishes)
            for verb in sorted(_wanted(wish) - granted[index])
        ]
        answers = await self._ask(subject, [question for _, question in open_questions])
        for index, question in open_questions:
            if answers[question]:
                granted[index] |= {question.verb}
        return granted

    async def catalog(self, subject: Subject, namespaces: Sequence[str]) -> Catalog:
        """See Authorizer."""
        if subject.is_anonymous:
            return ()
        if await self._reviewer.allows(subject, Question("pull", "distributions")):
            return "*"
        return _fitting(await self.readable(subject, namespaces), subject)

    async def readable(self, subject: Subject, namespaces: Sequence[str]) -> Sequence[str]:
        """See Authorizer."""
        if subject.is_anonymous:
            return ()
        questions = [Question("pull", "distributions", namespace) for namespace in namespaces]
        answers = await self._ask(subject, questions)
        return [question.namespace for question in questions if answers[question]]

    async def _ask(self, subject: Subject, questions: Sequence[Question]) -> Mapping[Question, bool]:
        distinct = list(dict.fromkeys(questions))
        answers = await asyncio.gather(*(self._reviewer.allows(subject, question) for question in distinct))
        return dict(zip(distinct, answers, strict=True))


def _wanted(wish: Wish) -> frozenset[str]:
    return ACTIONS if "*" in wish.actions else wish.actions & ACTIONS


def _free(subject: Subject, place: PlaceRow) -> frozenset[str]:
    """What needs no right."""
    is_open = place.access == "Public" or (place.access == "Authenticated" and not subject.is_anonymous)
    return frozenset({"pull"}) if is_open else frozenset()


def _fitting(namespaces: Sequence[str], subject: Subject) -> Sequence[str]:
    size = 0
    for count, namespace in enumerate(namespaces):
        size += len(namespace) + 3
        if size > _MAX_CATALOG:
            _log.warning("a catalog is cut short: too many namespaces for a token", subject=subject.name, kept=count)
            return namespaces[:count]
    return namespaces
