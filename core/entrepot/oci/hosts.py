"""Hosts: Docker Hub under all its names, origins, and the credentials that belong to a host.

Credentials are tied to an origin: they are looked up by it, encrypted for it, and never sent to another. That only
holds if an origin has one spelling, so all of it is here.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from entrepot.oci.errors import ErrorCode, GrammarError, excerpt
from entrepot.oci.reference import NameInvalid, parse_host

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCKER_HUB: Final = "registry-1.docker.io"
"""Where Docker Hub's registry API answers."""
DOCKER_HUB_ALIASES: Final = frozenset({"docker.io", "index.docker.io", DOCKER_HUB, "registry.hub.docker.com"})

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_URL: Final = 2048
# White space, controls and backslashes: what URL parsers disagree about, and what attacks on them are made of.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")


class UrlInvalid(GrammarError):
    """Not the URL of a registry."""

    code = ErrorCode.UNSUPPORTED


class AuthConfigInvalid(GrammarError):
    """A Docker configuration that cannot be read. The message never holds any of its values."""

    code = ErrorCode.UNAUTHORIZED


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port (RFC 6454): who gets to see what is sent."""

    scheme: str
    """`http` or `https`."""
    host: str
    """In lower case; an IPv6 address without its brackets."""
    port: int

    @property
    def authority(self) -> str:
        """`host[:port]`, without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def origin(url: str) -> Origin:
    """The origin of an absolute http or https URL. Raises UrlInvalid, also for a URL that holds credentials."""
    if len(url) > _MAX_URL or _AMBIGUOUS.search(url):
        raise UrlInvalid(f"{excerpt(url)} is not a URL")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UrlInvalid(f"{excerpt(url)} is not a URL") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise UrlInvalid("the URL of a registry begins with https:// or http://")
    if "@" in parts.netloc:
        raise UrlInvalid("the URL of a registry holds no user name and no password")
    try:
        parse_host(parts.netloc.removesuffix(":"))
    except NameInvalid as error:
        raise UrlInvalid(f"{excerpt(parts.netloc)} is not a host, with or without a port") from error
    if port == 0:
        raise UrlInvalid("there is no port 0")
    return Origin(parts.scheme, (parts.hostname or "").lower(), port or _DEFAULT_PORTS[parts.scheme])


def api_origin(url: str) -> Origin:
    """The origin to speak to: that of the URL, or Docker Hub's API for any of its names. Raises UrlInvalid."""
    found = origin(url)
    return Origin("https", DOCKER_HUB, 443) if found.host in DOCKER_HUB_ALIASES else found


def is_docker_hub(host: str) -> bool:
    """Whether `host` (or `host:443`) is one of Docker Hub's names."""
    return _same_host(host) == DOCKER_HUB


def api_host(host: str) -> str:
    """The host to speak to: Docker Hub's API host for any of its names, otherwise `host` itself, in lower case."""
    return _same_host(host)


def upstream_repository(host: str, name: str) -> str:
    """The repository's name there: on Docker Hub, a name of one part lives under `library/`."""
    return f"library/{name}" if is_docker_hub(host) and "/" not in name else name


def find_auth(config: Mapping[str, Any], host: str, path: str = "") -> tuple[str, str] | None:
    """User name and password for `host` and a repository `path` there, out of a Docker `config.json`.

    Entries are named `host`, `host/path`, or by a URL such as `https://host/v1/`; all of Docker Hub's names are one.
    The longest path that holds the repository wins, and on a tie the entry that names the host as it was asked for.
    An entry without a password (left behind by a credential helper) is as good as none. Raises AuthConfigInvalid.
    """
    wanted = _same_host(host)
    matches: list[tuple[int, bool, str]] = []
    entries = _auths(config)
    for key in entries:
        entry_host, entry_path = _split_key(key)
        if _same_host(entry_host) != wanted:
            continue
        if entry_path and path != entry_path and not path.startswith(entry_path + "/"):
            continue
        matches.append((-len(entry_path), entry_host != host.lower(), key))
    for _, _, key in sorted(matches):
        found = _credentials(key, entries[key])
        if found is not None:
            return found
    return None


def auths_of(config: Mapping[str, Any], host: str) -> dict[str, tuple[str, str]]:
    """User name and password of every entry for `host` or a part of it that has them, under the entries' own names.

    Whoever has these and the host can ask `find_auth` for any repository there. Raises AuthConfigInvalid.
    """
    wanted = _same_host(host)
    entries = _auths(config)
    own = (key for key in entries if _same_host(_split_key(key)[0]) == wanted)
    return {key: found for key in own if (found := _credentials(key, entries[key])) is not None}


def hosts_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The hosts (with paths) that a Docker `config.json` has entries for. Raises AuthConfigInvalid."""
    return tuple(sorted({"/".join(filter(None, _split_key(key))) for key in _auths(config)}))


def _same_host(host: str) -> str:
    lower = host.lower().removesuffix(":443")
    return DOCKER_HUB if lower in DOCKER_HUB_ALIASES else lower


def _split_key(key: str) -> tuple[str, str]:
    """Host and path of an entry's name. `/v1` and `/v2` are versions of the API in old names, not repositories."""
    bare = re.sub(r"\A(?i:https?)://", "", key)
    host, _, path = bare.partition("/")
    path = path.strip("/")
    return host.lower(), "" if path in {"v1", "v2"} else path


def _auths(config: Mapping[str, Any]) -> dict[str, Any]:
    auths = config.get("auths")
    if not isinstance(auths, dict) or not all(isinstance(key, str) for key in auths):
        raise AuthConfigInvalid('a Docker configuration is a JSON object with an object "auths" in it')
    return auths


def _credentials(key: str, entry: object) -> tuple[str, str] | None:
    if not isinstance(entry, dict):
        raise AuthConfigInvalid(f"the entry {excerpt(key)} is not an object")
    encoded = entry.get("auth")
    if encoded:
        return _decode_auth(key, encoded)
    username, password = entry.get("username"), entry.get("password")
    if not username or not password:
        return None
    if not isinstance(username, str) or not isinstance(password, str):
        raise AuthConfigInvalid(f"user name or password in the entry {excerpt(key)} is not a string")
    return username, password


def _decode_auth(key: str, encoded: object) -> tuple[str, str]:
    # `from None`: the decoding errors carry the very bytes that must not reach a log.
    if not isinstance(encoded, str):
        raise AuthConfigInvalid(f'"auth" in the entry {excerpt(key)} is not a string')
    try:
        decoded = base64.b64decode("".join(encoded.split()), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise AuthConfigInvalid(f'"auth" in the entry {excerpt(key)} is not base64 of UTF-8 text') from None
    # RFC 7617 section 2: a user name holds no colon, a password may. Docker pads with NUL characters.
    username, colon, password = decoded.rstrip("\0").partition(":")
    if not colon or not username:
        raise AuthConfigInvalid(f'"auth" in the entry {excerpt(key)} is not <user name>:<password> in base64')
    return username, password
