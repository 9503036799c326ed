"""Rights out of a file, where there is no cluster to ask: for tests, and for trying things out.

    - subjects: ["entrepot:htpasswd:alice", "entrepot:htpasswd"]   # names or groups
      verbs: [pull, push]
      namespaces: [demo]        # "*": all
      names: ["*"]              # of Distributions and Repositories; "*": all
      resources: [distributions, repositories]   # both, where it is left out

A rule for some names only answers no question about all of them, as in Kubernetes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from entrepot_token.identity import Subject
from entrepot_token.rights import Question
from entrepot_token.watched import FileInvalid, WatchedFile

__all__ = ["Rule", "RuleFile", "Rules", "parse_rules"]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Verbs that subjects hold on resources."""

    subjects: list[str]
    verbs: list[Literal["pull", "push", "delete"]]
    namespaces: list[str]
    names: list[str]
    resources: tuple[Literal["distributions", "repositories"], ...] = ("distributions", "repositories")

    def allows(self, subject: Subject, question: Question) -> bool:
        """Whether this rule is enough."""
        return (
            question.verb in self.verbs
            and question.resource in self.resources
            and bool({subject.name, *subject.groups} & set(self.subjects))
            and ("*" in self.namespaces or question.namespace in self.namespaces)
            and ("*" in self.names or question.name in self.names)
        )


Rules = Sequence[Rule]


def parse_rules(data: bytes) -> Rules:
    """The rules of a YAML file. Raises FileInvalid."""
    try:
        return msgspec.yaml.decode(data, type=list[Rule]) if data.strip() else ()
    except msgspec.ValidationError as error:
        raise FileInvalid(f"not a list of rules: {error}") from error
    except msgspec.DecodeError as error:
        raise FileInvalid("not YAML") from error


class RuleFile:
    """The rules of a file, as a Reviewer."""

    def __init__(self, file: WatchedFile[Rules]) -> None:
        self._file = file

    async def allows(self, subject: Subject, question: Question) -> bool:
        """See Reviewer."""
        return any(rule.allows(subject, question) for rule in self._file.value)
