"""Link: where the next page is.

A Link that is there but cannot be read must not look like the last page: a mirror that believes so removes the tags
of all pages that follow. So it is an error, and whoever lists a registry fails.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from entrepot.oci.errors import ErrorCode, GrammarError, excerpt
from entrepot.oci.scanner import MAX_HEADER, TOKEN, Scanner, join

if TYPE_CHECKING:
    from collections.abc import Iterable


class LinkInvalid(GrammarError):
    """A Link header that cannot be read."""

    code = ErrorCode.PAGINATION_NUMBER_INVALID


# RFC 8288 section 3:
# > Link       = #link-value
# > link-value = "<" URI-Reference ">" *( OWS ";" OWS link-param )
# > link-param = token BWS [ "=" BWS ( token / quoted-string ) ]
# RFC 3986 appendix A knows no white space, quotes, backslashes or characters beyond ASCII in a URI-Reference; a
# backslash in particular is a slash to some clients and none to others.
_TARGET = re.compile(r'<[^<>"\\\x00-\x20\x7f-\U0010ffff]*>')
_SEMICOLON = re.compile(r"[ \t]*;[ \t]*")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_COMMAS = re.compile(r"[ \t]*(?:,[ \t]*)+")
_BARE_VALUE = re.compile(r"[^\s\",;]+")
_MAX_LINKS: Final = 64


def next_url(values: str | Iterable[str]) -> str | None:
    """The target of the first link with relation `next`, as written: relative or absolute. None if there is none.

    A link about another resource (with `anchor`) is passed over. Raises LinkInvalid. The target is not yet trusted:
    resolve it against the page it came with, and compare origins (`hosts.origin`) before following it.
    """
    text = join(values)
    if text is None:
        raise LinkInvalid(f"the Link header has more than {MAX_HEADER} characters")
    scanner = Scanner(text)
    scanner.take(_COMMAS)
    scanner.skip_space()
    for _ in range(_MAX_LINKS):
        if scanner.at_end:
            return None
        target, parameters = _take_link(scanner)
        if "next" in parameters.get("rel", "").lower().split() and "anchor" not in parameters:
            return target
        if scanner.take(_COMMAS) is None:
            scanner.skip_space()
            if not scanner.at_end:
                raise _unreadable(scanner)
    raise LinkInvalid(f"the Link header holds more than {_MAX_LINKS} links")


def format_next(url: str) -> str:
    """The Link header of a page that another one follows. `url` is encoded already; ValueError if it is not."""
    link = f"<{url}>"
    if not _TARGET.fullmatch(link):
        raise ValueError(f"not an encoded URL: {url!r}")
    return f'{link}; rel="next"'


def _take_link(scanner: Scanner) -> tuple[str, dict[str, str]]:
    target = scanner.take(_TARGET)
    if target is None or target == "<>":
        raise _unreadable(scanner)
    parameters: dict[str, str] = {}
    while scanner.take(_SEMICOLON) is not None:
        name = scanner.take(TOKEN)
        if name is None:
            # An empty parameter, as in `<…>; ; rel=next` or at the end, is written by some and says nothing.
            continue
        value: str | None = ""
        if scanner.take(_EQUALS) is not None:
            value = scanner.take_quoted()
            if value is None:
                value = scanner.take(_BARE_VALUE)
            if value is None:
                raise _unreadable(scanner)
        # Section 3.3: of several rel parameters only the first counts.
        parameters.setdefault(name.lower(), value or "")
    return target[1:-1], parameters


def _unreadable(scanner: Scanner) -> LinkInvalid:
    return LinkInvalid(f"the Link header cannot be read from here on: {excerpt(scanner.rest)}")
