"""WWW-Authenticate: what an upstream asks for, and what the registry asks for.

An upstream's challenge names the place its password is sent to (the realm), so it is read exactly or not at all; to
whom it is then sent is the upstream client's decision, not this module's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from entrepot.oci.errors import ErrorCode, GrammarError, excerpt
from entrepot.oci.scanner import MAX_HEADER, TOKEN, Scanner, join, quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class ChallengeInvalid(GrammarError):
    """A WWW-Authenticate header that cannot be read."""

    code = ErrorCode.UNAUTHORIZED
    status = 401


# RFC 9110 section 11.2 and 11.3:
# > challenge   = auth-scheme [ 1*SP ( token68 / #auth-param ) ]
# > auth-scheme = token
# > token68     = 1*( ALPHA / DIGIT / "-" / "." / "_" / "~" / "+" / "/" ) *"="
# > auth-param  = token BWS "=" BWS ( token / quoted-string )
# A token68 looks like the beginning of a parameter; it is one only if nothing but a comma or the end follows.
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_SPACES = re.compile(r"[ \t]+")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_COMMAS = re.compile(r"[ \t]*(?:,[ \t]*)+")
# A parameter, told from the next challenge by its equals sign.
_PARAMETER_AHEAD = re.compile(rf"(?={TOKEN.pattern}[ \t]*=)")
# Some registries leave out the quotes around a URL. What such a value can end with is clear enough to bear it.
_BARE_VALUE = re.compile(r"[^\s\",]+")
_MAX_CHALLENGES: Final = 16
_MAX_PARAMETERS: Final = 32


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate."""

    scheme: str
    """In lower case: `bearer`, `basic`, …"""
    token68: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Names in lower case, values without quotes and escapes."""


def parse_challenges(values: str | Iterable[str]) -> tuple[Challenge, ...]:
    """All challenges of one or several WWW-Authenticate headers, in order.

    Raises ChallengeInvalid if any part cannot be read, and if a parameter is named twice.
    """
    text = join(values)
    if text is None:
        raise ChallengeInvalid(f"the WWW-Authenticate header has more than {MAX_HEADER} characters")
    scanner = Scanner(text)
    challenges: list[Challenge] = []
    scanner.take(_COMMAS)
    scanner.skip_space()
    while not scanner.at_end:
        if len(challenges) == _MAX_CHALLENGES:
            raise ChallengeInvalid(f"the WWW-Authenticate header holds more than {_MAX_CHALLENGES} challenges")
        challenges.append(_take_challenge(scanner))
        if scanner.take(_COMMAS) is None:
            scanner.skip_space()
            if not scanner.at_end:
                raise _unreadable(scanner)
    return tuple(challenges)


def format_bearer(*, realm: str, service: str, scope: str | None = None, error: str | None = None) -> str:
    """The challenge of a registry (CNCF distribution, "Token Authentication Specification"; RFC 6750 section 3).

    `error` is `invalid_token` or `insufficient_scope`. Values are always quoted: some clients read nothing else.
    """
    parameters = {"realm": realm, "service": service, "scope": scope, "error": error}
    return "Bearer " + ",".join(f"{name}={quote(value)}" for name, value in parameters.items() if value is not None)


def _take_challenge(scanner: Scanner) -> Challenge:
    scheme = scanner.take(TOKEN)
    if scheme is None:
        raise _unreadable(scanner)
    if scanner.take(_SPACES) is None:
        return Challenge(scheme.lower())
    token68 = scanner.take(_TOKEN68)
    if token68 is not None:
        return Challenge(scheme.lower(), token68)
    return Challenge(scheme.lower(), None, _take_parameters(scanner))


def _take_parameters(scanner: Scanner) -> dict[str, str]:
    parameters: dict[str, str] = {}
    while scanner.take(_PARAMETER_AHEAD) is not None:
        name = (scanner.take(TOKEN) or "").lower()
        scanner.take(_EQUALS)
        value = scanner.take_quoted()
        if value is None:
            value = scanner.take(_BARE_VALUE)
        if value is None:
            raise _unreadable(scanner)
        if name in parameters or len(parameters) == _MAX_PARAMETERS:
            raise ChallengeInvalid(f"the WWW-Authenticate header names {excerpt(name)} twice, or too many parameters")
        parameters[name] = value
        before = scanner.position
        if scanner.take(_COMMAS) is None or scanner.take(_PARAMETER_AHEAD) is None:
            # The comma, if there was one, belongs to the list of challenges.
            scanner.position = before
            break
    return parameters


def _unreadable(scanner: Scanner) -> ChallengeInvalid:
    return ChallengeInvalid(f"the WWW-Authenticate header cannot be read from here on: {excerpt(scanner.rest)}")
