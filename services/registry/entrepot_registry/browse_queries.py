"""The parameters of the content API, read: what is not known is refused, so that a misspelt filter never looks like an answer to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from multidict import MultiMapping

from entrepot.errors import RegistryError
from entrepot.oci.digest import Digest
from entrepot.oci.errors import excerpt

__all__ = [
    "PageQuery",
    "parse_change",
    "parse_filter",
    "parse_numbers",
    "parse_page",
    "parse_position",
    "parse_run",
    "refuse_unknown",
]

# Numbers fit a bigint.
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_LATEST = "latest"
_CHANGES = frozenset({"added", "removed"})
# A filter's value is compared and nothing else; names of signatures are the widest.
_VALUE = re.compile(r"[\x20-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class PageQuery:
    """At most `limit` entries, those behind `after`, which the page before gave as `next`; empty: the first page."""

    limit: int
    after: str


def refuse_unknown(query: MultiMapping[str], *, known: Sequence[str], repeatable: Sequence[str] = ()) -> None:
    """Raises RegistryError 400."""
    for name in query:
        if name not in known and name not in repeatable:
            names = ", ".join([*known, *repeatable]) or "none"
            raise _invalid("UNSUPPORTED", f"there is no parameter {excerpt(name)} here; known are: {names}")
        if name not in repeatable and len(query.getall(name)) > 1:
            raise _invalid("UNSUPPORTED", f"the parameter '{name}' is given once at most")


def parse_page(query: MultiMapping[str], *, default: int, maximum: int) -> PageQuery:
    """A larger limit than the maximum is cut. Raises RegistryError 400."""
    text = query.get("limit")
    if text is not None and not _NUMBER.fullmatch(text):
        raise _invalid("PAGINATION_NUMBER_INVALID", f"'limit' is a whole number, one or more: {excerpt(text)}")
    after = query.get("after", "")
    if after and not _VALUE.fullmatch(after):
        raise _no_page(after)
    return PageQuery(min(int(text) if text is not None else default, maximum), after)


def parse_position(after: str) -> int:
    """`after` of a listing whose pages are found by number; 0 on the first page. Raises RegistryError 400."""
    if after and not _NUMBER.fullmatch(after):
        raise _no_page(after)
    return int(after or 0)


def parse_run(after: str) -> UUID | None:
    """`after` of the listing of runs. Raises RegistryError 400."""
    try:
        return UUID(after) if after else None
    except ValueError:
        raise _no_page(after) from None


def parse_numbers(reference: str) -> list[int | None]:
    """Version numbers as they stand in a path, joined by three dots if there are several; None for `latest`. Raises RegistryError 400."""
    numbers: list[int | None] = []
    for text in reference.split("..."):
        if text != _LATEST and not _NUMBER.fullmatch(text):
            raise _invalid("VERSION_INVALID", f"a version is a whole number, one or more, or 'latest': {excerpt(text)}")
        numbers.append(None if text == _LATEST else int(text))
    return numbers


def parse_change(query: MultiMapping[str]) -> str | None:
    """Raises RegistryError 400."""
    change = query.get("change")
    if change is not None and change not in _CHANGES:
        raise _invalid("UNSUPPORTED", f"'change' is added or removed: {excerpt(change)}")
    return change


def parse_filter(query: MultiMapping[str], name: str, *, maximum: int) -> list[str] | None:
    """All values of a filter; None if it is not given. Raises RegistryError 400 and DigestInvalid."""
    values = query.getall(name, None)
    if values is None:
        return None
    if len(values) > maximum:
        raise _invalid("UNSUPPORTED", f"the filter '{name}' takes at most {maximum} values, not {len(values)}")
    for value in values:
        if name == "digest":
            Digest.parse(value)
        elif not _VALUE.fullmatch(value):
            raise _invalid("UNSUPPORTED", f"the filter '{name}' cannot match {excerpt(value)}")
    return list(values)


def _no_page(after: str) -> RegistryError:
    return _invalid("PAGINATION_NUMBER_INVALID", f"'after' is what the page before gave as 'next': {excerpt(after)}")


def _invalid(code: str, message: str) -> RegistryError:
    return RegistryError(400, code, message)
