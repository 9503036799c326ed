"""All errors that cross a module's border, in one tree, because what matters about an error is what happens next.

    EntrepotError
    ├── Stalled            a human must act; nothing is attempted until something changes
    ├── Waiting            nothing is wrong; look again after a stated time
    ├── Failed             worth another attempt, with backoff
    │   ├── DatabaseUnavailable
    │   ├── StorageUnavailable
    │   └── UpstreamError  the registry that is mirrored; see its subclasses
    │       ├── UpstreamUnreachable, UpstreamUnauthorized, UpstreamNotFound, UpstreamRateLimited
    │       └── UpstreamInvalid    it answered, but not as the specification says (also: bytes that do not match their digest)
    ├── CommitRefused      the content model refuses a change
    │   └── RepositoryGone, RepositoryIsMirror, VersionMoved, ManifestNotInRepository, BlobNotInRepository, StillReferenced,
    │       ObjectGone, UploadEnded
    └── RegistryError      what a client of the registry is told: HTTP status, OCI error code, message

`reason` is a CamelCase word fit for a condition; the message is one line, says what to do, and never holds a secret.
"""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

__all__ = [
    "BlobNotInRepository",
    "CommitRefused",
    "DatabaseUnavailable",
    "EntrepotError",
    "Failed",
    "ManifestNotInRepository",
    "ObjectGone",
    "RegistryError",
    "RepositoryGone",
    "RepositoryIsMirror",
    "Stalled",
    "StillReferenced",
    "StorageUnavailable",
    "UploadEnded",
    "UpstreamError",
    "UpstreamInvalid",
    "UpstreamNotFound",
    "UpstreamRateLimited",
    "UpstreamUnauthorized",
    "UpstreamUnreachable",
    "VersionMoved",
    "Waiting",
]


class EntrepotError(Exception):
    """Base of all. `reason` is for machines, `message` for people."""

    default_reason: ClassVar[str] = "InternalError"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason


class Stalled(EntrepotError):
    """A human must act. Shown as condition Stalled with this reason."""


class Waiting(EntrepotError):
    """Nothing is wrong, something is not there yet: look again `after`."""

    def __init__(self, message: str, *, reason: str, after: timedelta) -> None:
        super().__init__(message, reason=reason)
        self.after = after


class Failed(EntrepotError):
    """It did not work and is worth another attempt, with backoff; `retry_after` when the other side said when."""

    def __init__(self, message: str, *, reason: str | None = None, retry_after: timedelta | None = None) -> None:
        super().__init__(message, reason=reason)
        self.retry_after = retry_after


class DatabaseUnavailable(Failed):
    """PostgreSQL does not answer."""

    default_reason = "DatabaseUnavailable"


class StorageUnavailable(Failed):
    """S3 does not answer, or refuses."""

    default_reason = "StorageUnavailable"


class UpstreamError(Failed):
    """A registry that is mirrored did not give what was asked. `status` is its HTTP status, if it came to one."""

    default_reason = "UpstreamFailed"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retry_after: timedelta | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message, reason=reason, retry_after=retry_after)
        self.status = status


class UpstreamUnreachable(UpstreamError):
    """No connection, a time-out, a reset, or 5xx after all retries."""

    default_reason = "UpstreamUnreachable"


class UpstreamUnauthorized(UpstreamError):
    """401 or 403 after authentication was tried."""

    default_reason = "Unauthorized"


class UpstreamNotFound(UpstreamError):
    """404: the repository, the tag or the blob."""

    default_reason = "RepositoryNotFound"


class UpstreamRateLimited(UpstreamError):
    """429 after all retries."""

    default_reason = "RateLimited"


class UpstreamInvalid(UpstreamError):
    """It answered with something that must not be stored: wrong bytes, wrong length, not a manifest, an endless listing."""

    default_reason = "UpstreamInvalid"


class CommitRefused(EntrepotError):
    """The content model refuses a change; nothing was written."""


class RepositoryGone(CommitRefused):
    """The repository does not exist or is deleted."""

    default_reason = "RepositoryGone"


class VersionMoved(CommitRefused):
    """The latest version is not the one the change was made for."""

    default_reason = "VersionMoved"


class ManifestNotInRepository(CommitRefused):
    """A tag would point at a manifest that is not in the repository."""

    default_reason = "ManifestUnknown"


class BlobNotInRepository(CommitRefused):
    """A manifest names a blob that is not linked to the repository."""

    default_reason = "BlobUnknown"


class StillReferenced(CommitRefused):
    """A manifest to remove is still tagged or listed."""

    default_reason = "StillReferenced"


class RepositoryIsMirror(CommitRefused):
    """The repository takes its content from its sources alone: no push, no delete."""

    default_reason = "RepositoryIsMirror"


class ObjectGone(CommitRefused):
    """The object that the bytes were written to was given up meanwhile: they have to be written again."""

    default_reason = "ObjectGone"


class UploadEnded(CommitRefused):
    """The upload session was finished, cancelled or expired meanwhile."""

    default_reason = "UploadEnded"


class RegistryError(EntrepotError):
    """What a client of the registry is told, in the form of the OCI distribution specification, "Error Codes"."""

    def __init__(
        self, status: int, code: str, message: str, *, detail: object = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message, reason=code)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or {}
