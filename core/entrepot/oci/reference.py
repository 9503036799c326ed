"""Names: of repositories, of tags, and whole image references as people write them.

The registry meets a name in a path and a reference in `manifests/<reference>`; the operator meets names in resources.
Names and tags are plain strings at run time (`NewType`), so they go into SQL and JSON as they are; the types only say
that the grammar has been checked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NewType

from entrepot.oci.digest import Digest
from entrepot.oci.errors import ErrorCode, GrammarError, excerpt

RepositoryName = NewType("RepositoryName", str)
Tag = NewType("Tag", str)


class NameInvalid(GrammarError):
    """Not a repository name (or, in a whole reference, not a host)."""

    code = ErrorCode.NAME_INVALID


class TagInvalid(GrammarError):
    """Not a tag. The specification has no code of its own for it."""

    code = ErrorCode.MANIFEST_INVALID


# OCI distribution specification 1.1, "Pulling manifests":
# > <name>: [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*
# and, as what many clients can bear, 255 characters.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
MAX_NAME_LENGTH: Final = 255

# The same place:
# > <reference> as a tag: [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
MAX_TAG_LENGTH: Final = 128

# RFC 3986 section 3.2.2 and RFC 1123 section 2.1: a DNS name or an IPv4 address, or an IPv6 address in brackets;
# then, RFC 3986 section 3.2.3, port = *DIGIT (here one to five).
_HOST_COMPONENT = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_HOST_COMPONENT}(?:\.{_HOST_COMPONENT})*|\[[0-9a-fA-F:.]{{2,45}}\])(?::[0-9]{{1,5}})?")
MAX_HOST_LENGTH: Final = 261
"""253 for a DNS name, and a port."""
_MAX_REFERENCE_LENGTH: Final = MAX_HOST_LENGTH + MAX_NAME_LENGTH + MAX_TAG_LENGTH + 140


def parse_name(value: str) -> RepositoryName:
    """A repository name without a host. Raises NameInvalid."""
    if len(value) > MAX_NAME_LENGTH:
        raise NameInvalid(f"a repository name has at most {MAX_NAME_LENGTH} characters: {excerpt(value)}")
    if not _NAME.fullmatch(value):
        raise NameInvalid(
            f"{excerpt(value)} is not a repository name: lower-case letters and digits, joined by '.', '_', '__' or"
            " dashes, in parts separated by '/'"
        )
    return RepositoryName(value)


def parse_tag(value: str) -> Tag:
    """Raises TagInvalid."""
    if len(value) > MAX_TAG_LENGTH:
        raise TagInvalid(f"a tag has at most {MAX_TAG_LENGTH} characters: {excerpt(value)}")
    if not _TAG.fullmatch(value):
        raise TagInvalid(
            f"{excerpt(value)} is not a tag: letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
        )
    return Tag(value)


def parse_host(value: str) -> str:
    """`host[:port]`, in lower case. Raises NameInvalid."""
    if len(value) > MAX_HOST_LENGTH or not _HOST.fullmatch(value):
        raise NameInvalid(f"{excerpt(value)} is not a host, with or without a port")
    return value.lower()


def parse_reference(value: str) -> Digest | Tag:
    """The last part of `manifests/<reference>`: with a colon it is a digest, since no tag has one.

    Raises DigestInvalid or TagInvalid.
    """
    if ":" in value:
        return Digest.parse(value)
    return parse_tag(value)


@dataclass(frozen=True, slots=True)
class Reference:
    """`[host[:port]/]name[:tag][@digest]`, as people write it."""

    host: str | None
    """In lower case; None where none was written, and then it is for the reader to say which registry is meant."""
    name: RepositoryName
    tag: Tag | None
    digest: Digest | None

    @classmethod
    def parse(cls, value: str) -> Reference:
        """The first part is a host if it could not be part of a name otherwise used: it has a dot, a colon or a capital
        letter, or is `localhost`. This is Docker's rule, which all clients follow.

        Raises NameInvalid, TagInvalid or DigestInvalid.
        """
        if len(value) > _MAX_REFERENCE_LENGTH:
            raise NameInvalid(f"an image reference has at most {_MAX_REFERENCE_LENGTH} characters: {excerpt(value)}")
        rest, at, digest_text = value.partition("@")
        digest = Digest.parse(digest_text) if at else None
        host: str | None = None
        first, slash, after = rest.partition("/")
        if slash and (first == "localhost" or any(c in ".:[" or c.isupper() for c in first)):
            host, rest = parse_host(first), after
        name, colon, tag_text = rest.partition(":")
        tag = parse_tag(tag_text) if colon else None
        return cls(host, parse_name(name), tag, digest)

    def __str__(self) -> str:
        host = f"{self.host}/" if self.host is not None else ""
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{host}{self.name}{tag}{digest}"
