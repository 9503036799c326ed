"""Scopes: what a token is asked for, and what it grants.

Source: CNCF distribution, "Docker Registry v2 authentication", token scope documentation. Its grammar lets the name
of a resource hold a host with a port, so the first and the last colon divide a scope, not the first two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from entrepot.oci.errors import ErrorCode, GrammarError, excerpt

if TYPE_CHECKING:
    from collections.abc import Iterable


class ScopeInvalid(GrammarError):
    """Not a scope, or more of them than one request may name."""

    code = ErrorCode.UNSUPPORTED


# resourcescope := resourcetype ":" resourcename ":" action [ ',' action ]*
# resourcetype  := resourcetypevalue [ '(' resourcetypevalue ')' ]       resourcetypevalue := /[a-z0-9]+/
# resourcename  := [ hostname '/' ] component [ '/' component ]*
# hostname      := hostcomponent ['.' hostcomponent]* [':' port-number]
# action        := /[a-z]*/       and, in use though not in the grammar, "*"
# The class, in parentheses, is deprecated there and dropped here.
_TYPE = re.compile(r"([a-z0-9]{1,32})(?:\([a-z0-9]{1,32}\))?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST_COMPONENT = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_NAME = re.compile(rf"(?:{_HOST_COMPONENT}(?:\.{_HOST_COMPONENT})*(?::[0-9]{{1,5}})?/)?{_COMPONENT}(?:/{_COMPONENT})*")
_ACTION = re.compile(r"[a-z]{1,32}|\*")
_MAX_NAME: Final = 512
_MAX_ACTIONS: Final = 16
MAX_SCOPES: Final = 64
_MAX_TEXT: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Scope:
    """Actions on one resource: `repository:<name>:pull,push`, `registry:catalog:*`."""

    type: str
    name: str
    actions: frozenset[str]

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(sorted(self.actions))}"


def parse_scope(value: str) -> Scope:
    """One scope. Raises ScopeInvalid."""
    first, last = value.find(":"), value.rfind(":")
    if first == last or len(value) > _MAX_TEXT:
        raise ScopeInvalid(f"a scope is written <type>:<name>:<action>[,<action>]: {excerpt(value)}")
    type_match = _TYPE.fullmatch(value[:first])
    name = value[first + 1 : last]
    actions = value[last + 1 :].split(",", _MAX_ACTIONS)
    if type_match is None:
        raise ScopeInvalid(f"{excerpt(value[:first])} is not a type of resource")
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise ScopeInvalid(f"{excerpt(name)} is not the name of a resource")
    if len(actions) > _MAX_ACTIONS or not all(_ACTION.fullmatch(action) for action in actions):
        raise ScopeInvalid(f"{excerpt(value[last + 1 :])} are not actions")
    return Scope(type_match[1], name, frozenset(actions))


def parse_scopes(values: str | Iterable[str]) -> tuple[Scope, ...]:
    """All scopes of a request: the parameter may be repeated, and each may hold several, separated by spaces.

    What is asked for one resource in several places is joined; the order is that of first mention. Raises
    ScopeInvalid.
    """
    text = values if isinstance(values, str) else " ".join(values)
    if len(text) > _MAX_TEXT:
        raise ScopeInvalid(f"the scopes of a request have at most {_MAX_TEXT} characters")
    words = [word for word in text.split(" ") if word]
    if len(words) > MAX_SCOPES:
        raise ScopeInvalid(f"a request names at most {MAX_SCOPES} scopes")
    joined: dict[tuple[str, str], frozenset[str]] = {}
    for scope in map(parse_scope, words):
        key = (scope.type, scope.name)
        joined[key] = joined.get(key, frozenset()) | scope.actions
    return tuple(Scope(kind, name, actions) for (kind, name), actions in joined.items())


def format_scopes(scopes: Iterable[Scope]) -> str:
    """Several scopes as one parameter."""
    return " ".join(map(str, scopes))
