"""The registry protocol as a reader speaks it: tags, manifests, blobs of one upstream repository.

Whatever is handed out was verified: manifests against the digest they were asked by, blobs against digest and size while they stream.
Sources: OCI distribution specification 1.1; CNCF distribution's "Token Authentication Specification".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec

from entrepot import __version__
from entrepot.credentials import Credentials
from entrepot.errors import UpstreamInvalid, UpstreamNotFound, UpstreamUnreachable
from entrepot.oci.digest import Digest, DigestInvalid, Hasher
from entrepot.oci.errors import excerpt
from entrepot.oci.hosts import Origin, UrlInvalid, api_origin, origin, upstream_repository
from entrepot.oci.link import next_url
from entrepot.oci.manifest import MAX_MANIFEST_SIZE
from entrepot.oci.media_types import ACCEPT
from entrepot.upstream.addresses import deny_hosts, socket_factory
from entrepot.upstream.settings import UpstreamSettings
from entrepot.upstream.transport import Limits, Transport, read_bounded

__all__ = ["FetchedManifest", "Remote", "Resolved", "UpstreamClient", "open_client"]

Sink = Callable[[bytes], Awaitable[None]]

_PAGE = 1000
_MAX_EMPTY_PAGES = 3
_PROGRESS = 1024 * 1024
"""Bytes after which a download that broke off has earned its full number of retries again."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(?:[0-9]{1,19}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A repository at another registry, and how to speak to it."""

    url: str
    name: str
    """As the user writes it; Docker Hub's `library/` is implied."""
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    insecure_skip_verify: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """The bytes of a manifest, verified, and the type that came with them."""

    body: bytes = field(repr=False)
    content_type: str | None
    digest: Digest


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a tag points at; the size in bytes as far as the upstream tells it."""

    digest: Digest
    size: int | None


class _TagsWire(msgspec.Struct, frozen=True):
    tags: list[str] | None = None


@contextlib.asynccontextmanager
async def open_client(remote: Remote, settings: UpstreamSettings | None = None) -> AsyncIterator[UpstreamClient]:
    """A client for one run, with connections, tokens and pauses of its own. Raises UpstreamInvalid if the URL or a certificate is unusable."""
    settings = await deny_hosts(settings or UpstreamSettings())
    try:
        place = api_origin(remote.url)
        # A path in front of the API is not in the specification, but some put their registry behind one.
        prefix = "" if place != origin(remote.url) else urlsplit(remote.url).path.rstrip("/")
    except UrlInvalid as error:
        raise UpstreamInvalid(f"the upstream's URL is unusable: {error}") from error
    name = upstream_repository(place.host, remote.name)
    own_tls: ssl.SSLContext | bool = True
    tls: ssl.SSLContext | bool = True
    if place.scheme == "https":
        own_tls = await asyncio.to_thread(_tls, remote.credentials, insecure=remote.insecure_skip_verify)
    if place.scheme == "https" or remote.credentials.ca:
        tls = await asyncio.to_thread(_tls, Credentials(ca=remote.credentials.ca), insecure=False)
    connector = aiohttp.TCPConnector(limit=0, ssl=tls, socket_factory=socket_factory(settings), ttl_dns_cache=30)
    timeout = aiohttp.ClientTimeout(
        total=None,
        sock_connect=remote.limits.connect_timeout.total_seconds(),
        sock_read=remote.limits.read_timeout.total_seconds(),
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"entrepot/{__version__}", "Accept-Encoding": "identity"},
        read_bufsize=256 * 1024,
        max_line_size=16 * 1024,
        max_field_size=32 * 1024,
    ) as session:
        transport = Transport(
            session,
            remote=place,
            scope=f"repository:{name}:pull",
            username=remote.credentials.username,
            password=remote.credentials.password,
            limits=remote.limits,
            settings=settings,
            own_tls=own_tls,
        )
        yield UpstreamClient(transport, base=f"{place}{prefix}/v2/{name}", name=name, settings=settings)


def _tls(credentials: Credentials, *, insecure: bool) -> ssl.SSLContext:
    """Reads the system's certificates from disk: to be called in a thread."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if credentials.ca:
            context.load_verify_locations(cadata=credentials.ca)
        if credentials.client_cert:
            # Python loads a key from a path only: one in memory, which nobody else sees and nothing has to clean up.
            handle = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
            with os.fdopen(handle, "wb") as file:
                file.write(f"{credentials.client_cert.rstrip()}\n{credentials.client_key}".encode())
                file.flush()
                context.load_cert_chain(f"/proc/self/fd/{handle}")
    except (ssl.SSLError, ValueError) as error:
        raise UpstreamInvalid(
            "the CA, the client certificate or its key cannot be used: PEM is needed", reason="InvalidTLS"
        ) from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class UpstreamClient:
    """Reads one repository. All methods raise subclasses of `UpstreamError`, after the retries that the Remote allows."""

    def __init__(self, transport: Transport, *, base: str, name: str, settings: UpstreamSettings) -> None:
        self._transport = transport
        self._base = base
        self._name = name
        self._settings = settings
        self._head_is_useless = False

    @property
    def origin(self) -> Origin:
        return self._transport.remote

    @property
    def name(self) -> str:
        """The repository's name there, `library/` included."""
        return self._name

    async def tags(self) -> AsyncIterator[list[str]]:
        """The pages of the tag list, as they come; names are not checked.

        Raises UpstreamInvalid where the list has no end: a page that leads back, too many pages, too many tags.
        """
        url: str | None = f"{self._base}/tags/list?n={_PAGE}"
        seen: set[str] = set()
        total = empty = 0
        what = f"the tag list of {self._name}"
        while url is not None:
            if url in seen or len(seen) == self._settings.max_pages:
                raise UpstreamInvalid(f"{what} has no end: page {len(seen) + 1} leads back or is one too many")
            seen.add(url)
            names, url = await self._page(url, what)
            total += len(names)
            empty = 0 if names else empty + 1
            if total > self._settings.max_tags or empty > _MAX_EMPTY_PAGES:
                raise UpstreamInvalid(
                    f"{what} has no end: {total} tags on {len(seen)} pages; at most {self._settings.max_tags} are taken"
                )
            if names:
                yield names

    async def _page(self, url: str, what: str) -> tuple[list[str], str | None]:
        async for attempt in self._transport.attempts():
            with attempt:
                async with self._transport.send("GET", url, what=what, may_refuse="?n=" in url) as response:
                    if response.status == 200:
                        body = await read_bounded(
                            response, self._settings.max_page_bytes, what, seconds=self._transport.body_timeout
                        )
                        return _names(body, what), self._next(url, response.headers.getall("Link", []), what)
        # Some registries refuse a page size; they all have one of their own.
        return await self._page(url.partition("?")[0], what)

    def _next(self, url: str, links: list[str], what: str) -> str | None:
        try:
            target = next_url(links)
            if target is None:
                return None
            following = urljoin(url, target)
            place = origin(following)
        except ValueError as error:  # LinkInvalid and UrlInvalid are, and urljoin raises plain ones
            raise UpstreamInvalid(f"{what}: the link to its next page is unusable: {excerpt(str(error))}") from error
        if place != self.origin:
            raise UpstreamInvalid(f"{what}: its next page is said to be at {place}, which is not the upstream")
        return following.partition("#")[0]

    async def resolve(self, reference: str) -> Resolved:
        """What a tag points at, by HEAD where the upstream answers that in full, otherwise by GET.

        Raises UpstreamNotFound with reason TagNotFound.
        """
        if not self._head_is_useless:
            found = await self._head(reference)
            if found is not None:
                return found
            self._head_is_useless = True
        fetched = await self._manifest(reference, expected=None, limit=MAX_MANIFEST_SIZE)
        return Resolved(fetched.digest, len(fetched.body))

    async def _head(self, reference: str) -> Resolved | None:
        what = f"tag {reference}"
        async for attempt in self._transport.attempts():
            with attempt, _not_found("TagNotFound"):
                async with self._transport.send(
                    "HEAD",
                    f"{self._base}/manifests/{reference}",
                    what=what,
                    headers={"Accept": ACCEPT},
                    may_refuse=True,
                ) as response:
                    if response.status != 200:
                        return None
                    stated = response.headers.get("Docker-Content-Digest", "")
                    length = response.content_length
        try:
            return Resolved(Digest.parse(stated), length)
        except DigestInvalid:
            return None

    async def manifest(self, digest: Digest, *, limit: int = MAX_MANIFEST_SIZE) -> FetchedManifest:
        """A manifest by its digest, of at most `limit` bytes. Raises UpstreamInvalid with reason DigestMismatch where it is another."""
        return await self._manifest(str(digest), expected=digest, limit=limit)

    async def _manifest(self, reference: str, *, expected: Digest | None, limit: int) -> FetchedManifest:
        what = f"manifest {reference}"
        async for attempt in self._transport.attempts():
            with attempt, _not_found("ManifestNotFound" if expected else "TagNotFound"):
                async with self._transport.send(
                    "GET", f"{self._base}/manifests/{reference}", what=what, headers={"Accept": ACCEPT}
                ) as response:
                    body = await read_bounded(response, limit, what, seconds=self._transport.body_timeout)
                    content_type = response.headers.get("Content-Type")
        actual = Digest.of(body, expected.algorithm if expected else "sha256")
        if expected is not None and actual != expected:
            raise UpstreamInvalid(
                f"{what}: the upstream's bytes have another digest, {actual}", reason="DigestMismatch"
            )
        return FetchedManifest(body, content_type, actual)

    async def blob(self, digest: Digest, size: int, *, sink: Sink) -> None:
        """Stream a blob into `sink`, chunk by chunk; it is verified when this returns, and not before.

        A connection that breaks off is taken up again where it broke off, by a range if the upstream knows them. The sink never gets more
        than `size` bytes and never gets any twice.

        Raises:
            UpstreamInvalid: more or fewer bytes (SizeMismatch) or other bytes (DigestMismatch) than were promised.
            UpstreamNotFound: with reason BlobNotFound.
        """
        what = f"blob {digest}"
        hasher = Hasher(digest.algorithm)
        milestone = 0

        def has_progressed() -> bool:
            nonlocal milestone
            if hasher.size - milestone < _PROGRESS:
                return False
            milestone = hasher.size
            return True

        async for attempt in self._transport.attempts(has_progressed=has_progressed):
            with attempt, _not_found("BlobNotFound"):
                await self._receive(f"{self._base}/blobs/{digest}", what=what, size=size, hasher=hasher, sink=sink)
        if hasher.size != size:
            raise UpstreamInvalid(f"{what}: the upstream sent {hasher.size} bytes, not {size}", reason="SizeMismatch")
        if (actual := hasher.digest()) != digest:
            raise UpstreamInvalid(
                f"{what}: the upstream's bytes have another digest, {actual}", reason="DigestMismatch"
            )

    async def _receive(self, url: str, *, what: str, size: int, hasher: Hasher, sink: Sink) -> None:
        """One attempt: from where the last one broke off to the end."""
        start = hasher.size
        headers = {"Range": f"bytes={start}-"} if 0 < start < size else {}
        async with self._transport.send("GET", url, what=what, headers=headers) as response:
            skip = 0
            if response.status == 206:
                found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if not headers or found is None or int(found[1]) != start:
                    raise UpstreamInvalid(f"{what}: the upstream answers with a range that was not asked for")
            else:
                skip = start
            left = size - start
            if response.content_length is not None and response.content_length != left + skip:
                raise UpstreamInvalid(
                    f"{what}: the upstream sends {response.content_length} bytes where {left + skip} were promised",
                    reason="SizeMismatch",
                )
            pace = _Pace(what, self._settings)
            while chunk := await pace.next(response.content):
                if skip:
                    skipped = min(skip, len(chunk))
                    skip -= skipped
                    chunk = chunk[skipped:]
                    if not chunk:
                        continue
                left -= len(chunk)
                if left < 0:
                    raise UpstreamInvalid(f"{what}: the upstream sends more than {size} bytes", reason="SizeMismatch")
                hasher.update(chunk)
                await sink(chunk)


class _Pace:
    """Breaks off a download that drips. Only the time that the upstream is waited for counts, not what our own storage takes."""

    def __init__(self, what: str, settings: UpstreamSettings) -> None:
        self._what = what
        self._rate = settings.min_rate
        self._window = settings.min_rate_window.total_seconds()
        self._waited = 0.0
        self._received = 0

    async def next(self, content: Any) -> bytes:
        """The next chunk. Raises UpstreamUnreachable."""
        begun = time.monotonic()
        chunk: bytes = await content.readany()
        self._waited += time.monotonic() - begun
        self._received += len(chunk)
        if chunk and self._waited >= self._window:
            if self._received < self._rate * self._waited:
                raise UpstreamUnreachable(
                    f"{self._what}: the upstream sent {self._received} bytes in {self._waited:.0f} s; that is too slow"
                )
            self._waited, self._received = 0.0, 0
        return chunk


def _names(body: bytes, what: str) -> list[str]:
    try:
        return msgspec.json.decode(body, type=_TagsWire).tags or []
    except (msgspec.MsgspecError, ValueError) as error:
        raise UpstreamInvalid(f"{what} cannot be read: {excerpt(str(error))}") from None


@contextlib.contextmanager
def _not_found(reason: str) -> Iterator[None]:
    """Say what it is that was not found; by default it is the repository."""
    try:
        yield
    except UpstreamNotFound as error:
        raise UpstreamNotFound(error.message, reason=reason, status=error.status) from error
