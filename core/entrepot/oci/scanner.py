"""A cursor over a header value, for the list-shaped headers of HTTP.

WWW-Authenticate and Link separate their elements by commas, and may have commas, semicolons and equals signs inside
quotes. Splitting on any of these is the mistake that every hand-made parser makes first; this cursor reads from left
to right instead, one token at a time, and never looks back.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# RFC 9110 section 5.6.2:
# > token          = 1*tchar
TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 9110 section 5.6.3:
# > OWS            = *( SP / HTAB )
OWS: Final = re.compile(r"[ \t]*")
# RFC 9110 section 5.6.4:
# > quoted-string  = DQUOTE *( qdtext / quoted-pair ) DQUOTE
# > quoted-pair    = "\" ( HTAB / SP / VCHAR / obs-text )
# obs-text reaches us as latin-1 or as surrogates, so everything but controls is let through.
QUOTED_STRING: Final = re.compile(r'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*+"')
_QUOTED_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

MAX_HEADER: Final = 16 * 1024
"""Characters of one kind of header, all its lines together. HTTP servers refuse more than half of it in one line."""


class Scanner:
    """`take` moves past what matches here, or stays where it is and gives None."""

    __slots__ = ("_text", "position")

    def __init__(self, text: str) -> None:
        self._text = text
        self.position = 0

    @property
    def at_end(self) -> bool:
        return self.position >= len(self._text)

    @property
    def rest(self) -> str:
        """What has not been read, for an error message."""
        return self._text[self.position :]

    def take(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self._text, self.position)
        if match is None:
            return None
        self.position = match.end()
        return match.group()

    def take_quoted(self) -> str | None:
        """A quoted string, without its quotes and escapes."""
        quoted = self.take(QUOTED_STRING)
        return None if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted[1:-1])

    def skip_space(self) -> None:
        self.take(OWS)


def join(values: str | Iterable[str], limit: int = MAX_HEADER) -> str | None:
    """Several lines of one header as one (RFC 9110 section 5.3); None if that is longer than `limit`."""
    text = values if isinstance(values, str) else ", ".join(values)
    return text if len(text) <= limit else None


def quote(value: str) -> str:
    """`value` as a quoted string. A control character in it is a mistake of the caller: ValueError."""
    if _CONTROL.search(value):
        raise ValueError(f"a header value cannot hold control characters: {value!r}")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
