"""One request to an upstream: authentication, redirects, pauses, and what its failure means.

Retrying belongs to the caller's whole operation (a body can break off as well), so `Transport.attempts` is separate from `send`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec
import tenacity
from yarl import URL

from entrepot.errors import (
    UpstreamError,
    UpstreamInvalid,
    UpstreamNotFound,
    UpstreamRateLimited,
    UpstreamUnauthorized,
    UpstreamUnreachable,
)
from entrepot.oci.errors import excerpt
from entrepot.oci.hosts import Origin, UrlInvalid, origin
from entrepot.upstream.addresses import AddressDenied
from entrepot.upstream.auth import Authenticator
from entrepot.upstream.settings import UpstreamSettings

__all__ = ["Limits", "TooLarge", "Transport", "read_bounded"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_ERROR_BODY = 16 * 1024
_MAX_TOKEN_BODY = 64 * 1024
_MAX_URL = 16 * 1024
"""Characters; presigned URLs of object stores are long."""
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f-\U0010ffff\\]")
"""What no URL holds (RFC 3986): parsers differ in what they make of it. Undecodable bytes of a header come as surrogates, and are among it."""
_READS = 5
"""A body may take as long as this many reads."""
_NOT_SUPPORTED = frozenset({405, 501})


class _ErrorWire(msgspec.Struct, frozen=True):
    code: str | None = None


class _ErrorsWire(msgspec.Struct, frozen=True):
    errors: list[_ErrorWire] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a Remote says about how it wants to be spoken to."""

    concurrency: int = 20
    max_retries: int = 3
    connect_timeout: timedelta = timedelta(seconds=10)
    read_timeout: timedelta = timedelta(seconds=60)


class TooLarge(UpstreamInvalid):
    """An answer has more bytes than are taken."""


class Transport:
    """Requests to one upstream repository."""

    def __init__(
        self, session: aiohttp.ClientSession, *, remote: Origin, scope: str, username: str, password: str, limits: Limits,
        settings: UpstreamSettings, own_tls: ssl.SSLContext | bool = True,
    ) -> None:  # fmt: skip
        """`own_tls` holds for the remote's own origin; elsewhere, where redirects and realms lead, what the session has by default does."""
        self._session = session
        self._own_tls = own_tls
        self._remote = remote
        self._limits = limits
        self._settings = settings
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._auth = Authenticator(
            remote, default_scope=scope, username=username, password=password, trusted_realms=settings.trusted_realms,
            fetch=self._fetch_token,
        )  # fmt: skip
        self._contact = asyncio.Lock()
        self._contacted = False
        self._paused_until = 0.0
        self._failures = 0
        self._away: UpstreamError | None = None

    @property
    def remote(self) -> Origin:
        return self._remote

    @property
    def body_timeout(self) -> float:
        """Seconds that a whole body may take, blobs excepted."""
        return _READS * self._limits.read_timeout.total_seconds()

    def attempts(self, *, has_progressed: Callable[[], bool] = lambda: False) -> tenacity.AsyncRetrying:
        """For `async for attempt in …: with attempt: …`: repeats what a later attempt may cure, with growing, random pauses.

        `has_progressed` is asked after each failure; where it says so, the count of attempts starts anew.
        """
        base = 0

        def stop(state: tenacity.RetryCallState) -> bool:
            nonlocal base
            error = state.outcome.exception() if state.outcome else None
            if has_progressed():
                base = state.attempt_number
            if (
                isinstance(error, UpstreamError)
                and error.retry_after
                and error.retry_after > self._settings.max_retry_after
            ):
                return True
            return self._away is not None or state.attempt_number - base > self._limits.max_retries

        exponential = tenacity.wait_random_exponential(multiplier=0.5, max=self._settings.max_backoff.total_seconds())

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            pause = exponential(state)
            if isinstance(error, UpstreamError) and error.retry_after:
                pause += error.retry_after.total_seconds()
            if isinstance(error, UpstreamRateLimited):
                # All requests of the run wait, not only the one that was told to.
                self._paused_until = max(self._paused_until, time.monotonic() + pause)
            return pause

        def give_up(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            self._count_failure(error)
            assert error is not None  # noqa: S101 # tenacity calls this after a failure only
            raise error

        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((UpstreamUnreachable, UpstreamRateLimited)),
            stop=stop,
            wait=wait,
            retry_error_callback=give_up,
            reraise=True,
        )

    def _count_failure(self, error: BaseException | None) -> None:
        """An upstream that is away must not be asked for every one of a thousand tags, with retries for each."""
        self._failures += 1
        if isinstance(error, UpstreamRateLimited) or self._failures >= self._settings.give_up_after:
            self._away = _fresh(error) if isinstance(error, UpstreamError) else None

    @contextlib.asynccontextmanager
    async def send(
        self, method: str, url: str, *, what: str, headers: Mapping[str, str] | None = None, may_refuse: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request to the remote's origin and give its answer, 200 or 206, after authentication and redirects.

        `what` names the thing asked for, in messages. With `may_refuse` an answer that says "not like this" (400, 405, 416, 501) is given
        to the caller as well.

        Raises:
            UpstreamError: one of its subclasses, also when the body breaks off within the block.
        """
        async with self._slots:
            if self._away is not None:
                raise _fresh(self._away)
            await self._pause()
            with self._translated(what):
                response = await self._first_or_later(method, url, what=what, headers=dict(headers or {}))
                try:
                    accepted = response.status in {200, 206}
                    if not accepted and not (
                        may_refuse and (response.status in {400, 416} or response.status in _NOT_SUPPORTED)
                    ):
                        raise await self._failure(response, what)
                    self._failures = 0
                    yield response
                finally:
                    # A body that was read to its end has given its connection back already.
                    response.close()

    async def _pause(self) -> None:
        while (left := self._paused_until - time.monotonic()) > 0:  # noqa: ASYNC110 # a time is waited for, no event
            await asyncio.sleep(left)

    async def _first_or_later(
        self, method: str, url: str, *, what: str, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """The first request goes alone, so that its challenge is answered once and not by every request of the first moment."""
        if not self._contacted:
            async with self._contact:
                if not self._contacted:
                    try:
                        return await self._authenticated(method, url, what=what, headers=headers)
                    finally:
                        self._contacted = True
        return await self._authenticated(method, url, what=what, headers=headers)

    async def _authenticated(
        self, method: str, url: str, *, what: str, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        sent = await self._auth.header()
        response = await self._follow(method, url, what=what, headers=headers, authorization=sent)
        if response.status != 401:
            return response
        try:
            if self._origin_of(str(response.url), what) != self._remote:
                return response
            better = await self._auth.challenged(response.headers.getall("WWW-Authenticate", []), sent=sent)
        except BaseException:
            response.close()
            raise
        if better is None:
            return response
        await self._drain(response)
        return await self._follow(method, url, what=what, headers=headers, authorization=better)

    async def _follow(
        self, method: str, url: str, *, what: str, headers: dict[str, str], authorization: str | None
    ) -> aiohttp.ClientResponse:
        for _ in range(self._settings.max_redirects + 1):
            place = self._origin_of(url, what)
            if self._remote.scheme == "https" and place.scheme != "https":
                raise UpstreamInvalid(f"{what}: the upstream redirects from https to {place}")
            own = {"Authorization": authorization} if authorization and place == self._remote else {}
            async with asyncio.timeout(self._limits.connect_timeout.total_seconds() + self.body_timeout):
                response = await self._session.request(
                    method,
                    URL(url, encoded=True),
                    headers={**headers, **own},
                    allow_redirects=False,
                    ssl=self._tls_for(place),
                )
            if response.status not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            await self._drain(response)
            if not location or len(location) > _MAX_URL or _AMBIGUOUS.search(location):
                raise UpstreamInvalid(f"{what}: the upstream redirects to {excerpt(location)}")
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise UpstreamInvalid(f"{what}: the upstream redirects to {excerpt(location)}") from error
        raise UpstreamInvalid(f"{what}: the upstream redirects more than {self._settings.max_redirects} times")

    def _tls_for(self, place: Origin) -> ssl.SSLContext | bool:
        """A client certificate and leave to skip verification are for the Remote alone. (True: the session's default.)"""
        return self._own_tls if place == self._remote else True

    def _origin_of(self, url: str, what: str) -> Origin:
        try:
            parts = urlsplit(url)
            return origin(f"{parts.scheme}://{parts.netloc}")
        except (UrlInvalid, ValueError) as error:
            raise UpstreamInvalid(f"{what}: the upstream refers to an unusable URL") from error

    async def _fetch_token(self, url: str, authorization: str | None) -> bytes:
        """A token service is asked once, without redirects: what it is sent must not travel on."""
        place = self._origin_of(url, "the realm")
        what = f"the token service at {place}"
        headers = {"Authorization": authorization} if authorization else {}
        with self._translated(what):
            async with (
                asyncio.timeout(self._limits.connect_timeout.total_seconds() + self.body_timeout),
                self._session.get(
                    URL(url, encoded=True), headers=headers, allow_redirects=False, ssl=self._tls_for(place)
                ) as response,
            ):
                if response.status == 200:
                    return await read_bounded(response, _MAX_TOKEN_BODY, what, seconds=self.body_timeout)
                failure = await self._failure(response, what)
        if response.status == 404:
            raise UpstreamInvalid(failure.message, status=404)
        raise failure

    async def _drain(self, response: aiohttp.ClientResponse) -> None:
        """Read what little a refusal says, so that its connection can be used again."""
        length = response.content_length
        if length is not None and length <= _MAX_ERROR_BODY:
            async with asyncio.timeout(self.body_timeout):
                await response.read()
        else:
            response.close()

    async def _failure(self, response: aiohttp.ClientResponse, what: str) -> UpstreamError:
        status, code = response.status, await self._error_code(response)
        message = f"{what}: the upstream answered {status}{' ' + code if code else ''}"
        retry_after = _retry_after(response.headers.get("Retry-After"))
        if status in {401, 403}:
            return UpstreamUnauthorized(message, status=status)
        if status == 404:
            return UpstreamNotFound(message, status=status)
        if status == 429:
            return UpstreamRateLimited(message, status=status, retry_after=retry_after)
        if status >= 500 or status == 408:
            return UpstreamUnreachable(message, status=status, retry_after=retry_after)
        return UpstreamInvalid(message, status=status)

    async def _error_code(self, response: aiohttp.ClientResponse) -> str:
        body = await response.content.read(_MAX_ERROR_BODY)
        try:
            errors = msgspec.json.decode(body, type=_ErrorsWire).errors or []
        except (msgspec.MsgspecError, ValueError):
            return ""
        code = errors[0].code if errors else None
        return code if code and _CODE.fullmatch(code) else ""

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressDenied):
                raise UpstreamInvalid(
                    f"{what}: no upstream may be at this address: {error.os_error}", reason="AddressDenied"
                ) from error
            raise UpstreamUnreachable(f"{what}: no connection to {error.host}:{error.port}: {_short(error)}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamUnreachable(f"{what}: {_short(error)}") from error


async def read_bounded(response: aiohttp.ClientResponse, limit: int, what: str, *, seconds: float) -> bytes:
    """A body of at most `limit` bytes, within a time in all: one byte now and then would never meet the time-out of a single read.

    Raises TooLarge as soon as it is longer, without reading on, and TimeoutError.
    """
    if response.content_length is not None and response.content_length > limit:
        raise TooLarge(f"{what}: the upstream answers with {response.content_length} bytes; at most {limit} are taken")
    chunks: list[bytes] = []
    size = 0
    async with asyncio.timeout(seconds):
        while chunk := await response.content.readany():
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"{what}: the upstream answers with more than {limit} bytes")
            chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _fresh(error: UpstreamError) -> UpstreamError:
    """The same error without its past: one that is raised again and again gathers the frames, and all that they hold, of each time."""
    return type(error)(error.message, reason=error.reason, retry_after=error.retry_after, status=error.status)


def _retry_after(value: str | None) -> timedelta | None:
    """RFC 9110 section 10.2.3: seconds, or a date."""
    if not value or len(value) > 64:
        return None
    if value.strip().isdigit():
        return timedelta(seconds=min(int(value), 10**9))
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(date - datetime.now(UTC), timedelta())


def _short(error: BaseException) -> str:
    """What went wrong on the wire, without anything that the other side wrote."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientSSLError):
        return "TLS failed"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name does not resolve"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | ConnectionResetError):
        return "the connection broke off"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    return type(error).__name__
