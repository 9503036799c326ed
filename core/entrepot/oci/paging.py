"""Pages of a listing: `n` and `last`.

A client may ask for any number; how much one answer holds is for the server to say. So a large number is cut, and
only what is no number at all is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from entrepot.oci.errors import ErrorCode, GrammarError, excerpt


class PaginationInvalid(GrammarError):
    """`n` is not a number, or `last` is nothing a listing could have ended with."""

    code = ErrorCode.PAGINATION_NUMBER_INVALID


# OCI distribution specification 1.1, "Listing Tags": n is the number of results, an integer from zero; last is a tag.
_NUMBER = re.compile(r"[0-9]{1,64}")
# Tags and names are ASCII without white space. The limit is the longer one, that of names.
_LAST = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Page:
    """What to list: at most `limit` entries (0: none at all), those after `last` in byte order."""

    limit: int
    last: str | None


def parse_page(n: str | None, last: str | None, *, default: int, maximum: int) -> Page:
    """Both as they stand in the query, None where absent. Raises PaginationInvalid."""
    limit: Final = default if n is None else _parse_number(n)
    if last and not _LAST.fullmatch(last):
        raise PaginationInvalid(f"'last' is not the name of anything listed here: {excerpt(last)}")
    return Page(min(limit, maximum), last or None)


def _parse_number(n: str) -> int:
    if not _NUMBER.fullmatch(n):
        raise PaginationInvalid(f"'n' is a whole number, zero or more: {excerpt(n)}")
    return int(n)
