"""Which tags a mirror takes.

Includes first, then excludes. Wildcards are those of fnmatch, and upper and lower case differ, as they do in tags. An
include that is a digest takes that manifest without a tag. A filter is compiled once and then asked for every tag of
a listing, which may be tens of thousands.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from entrepot.oci.digest import ALGORITHMS, Digest, DigestInvalid
from entrepot.oci.errors import excerpt
from entrepot.oci.reference import TagInvalid, parse_tag

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PATTERNS: Final = 1000
MAX_PATTERN_LENGTH: Final = 255
_WILDCARDS: Final = frozenset("*?[")
_DIGEST_PREFIXES: Final = tuple(f"{algorithm}:" for algorithm in ALGORITHMS)


class FilterInvalid(ValueError):
    """An entry that cannot be used. The message names it."""


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Names and wildcards apart: a name costs one look-up, however many there are."""

    names: frozenset[str]
    wildcards: tuple[re.Pattern[str], ...]

    @classmethod
    def compile(cls, entries: Iterable[str]) -> _Patterns:
        names: set[str] = set()
        wildcards: list[re.Pattern[str]] = []
        for entry in dict.fromkeys(entries):
            if _WILDCARDS.isdisjoint(entry):
                names.add(entry)
            else:
                wildcards.append(re.compile(fnmatch.translate(entry)))
        return cls(frozenset(names), tuple(wildcards))

    def match(self, name: str) -> bool:
        return name in self.names or any(pattern.fullmatch(name) for pattern in self.wildcards)


@dataclass(frozen=True, slots=True)
class TagFilter:
    """`TagFilter(include, exclude)`; without includes, everything is included. Raises FilterInvalid."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    digests: tuple[Digest, ...] = field(init=False)
    """The manifests that are taken by digest, untagged, in the order of the includes."""
    _included: _Patterns = field(init=False, repr=False, compare=False)
    _excluded: _Patterns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A frozen dataclass is filled this way; lists are accepted and kept as tuples, so that a filter is hashable.
        put = object.__setattr__
        put(self, "include", _checked(self.include))
        put(self, "exclude", _checked(self.exclude))
        digests = dict.fromkeys(_digest(entry) for entry in self.include if entry.startswith(_DIGEST_PREFIXES))
        put(self, "digests", tuple(digests))
        tags = (entry for entry in self.include if not entry.startswith(_DIGEST_PREFIXES))
        put(self, "_included", _Patterns.compile(tags))
        put(self, "_excluded", _Patterns.compile(self.exclude))

    def selects(self, name: str) -> bool:
        """Whether the tag of this name is taken."""
        return (not self.include or self._included.match(name)) and not self._excluded.match(name)

    @property
    def exact_names(self) -> frozenset[str] | None:
        """All tags that can be selected, if the includes name them without wildcards; None if only a listing can tell.

        Empty if the includes are digests alone. What is not a tag by its grammar is left out: no registry has it.
        """
        if not self.include or self._included.wildcards:
            return None
        return frozenset(name for name in self._included.names if _is_tag(name) and not self._excluded.match(name))


def _checked(entries: Iterable[str]) -> tuple[str, ...]:
    if isinstance(entries, str):
        raise TypeError("a list of patterns, not one string")
    patterns = tuple(entries)
    if len(patterns) > MAX_PATTERNS:
        raise FilterInvalid(f"a filter has at most {MAX_PATTERNS} entries, not {len(patterns)}")
    for pattern in patterns:
        if not pattern or len(pattern) > MAX_PATTERN_LENGTH:
            raise FilterInvalid(f"an entry has 1 to {MAX_PATTERN_LENGTH} characters: {excerpt(pattern)}")
    return patterns


def _digest(entry: str) -> Digest:
    try:
        return Digest.parse(entry)
    except DigestInvalid as error:
        raise FilterInvalid(str(error)) from error


def _is_tag(name: str) -> bool:
    try:
        parse_tag(name)
    except TagInvalid:
        return False
    return True
