"""The error codes of the registry protocol, and the root of this package's own errors.

A code says what is wrong in words that every client knows; the HTTP status that goes with it is nearly always the
same, so both stand in one table here. Which exception leads to which code is decided by the exception: every error of
this package carries its code, and the services' own error tree (`entrepot.errors`) does likewise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final


class ErrorCode(StrEnum):
    """Codes of the OCI distribution specification 1.1, "Error Codes", and two of CNCF distribution's that fill gaps.

    The two are PAGINATION_NUMBER_INVALID and RANGE_INVALID: the specification has statuses for these cases but no
    code, and clients know these from the registry most of them grew up with.
    """

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
    BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    SIZE_INVALID = "SIZE_INVALID"
    UNAUTHORIZED = "UNAUTHORIZED"
    DENIED = "DENIED"
    UNSUPPORTED = "UNSUPPORTED"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    PAGINATION_NUMBER_INVALID = "PAGINATION_NUMBER_INVALID"
    RANGE_INVALID = "RANGE_INVALID"
    UNAVAILABLE = "UNAVAILABLE"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class ErrorDefault:
    """What a code means when the one who raises it says nothing more precise."""

    status: int
    """HTTP status."""
    message: str


ERROR_DEFAULTS: Final[dict[ErrorCode, ErrorDefault]] = {
    ErrorCode.BLOB_UNKNOWN: ErrorDefault(404, "this repository has no such blob"),
    ErrorCode.BLOB_UPLOAD_INVALID: ErrorDefault(400, "the upload cannot be continued like this"),
    ErrorCode.BLOB_UPLOAD_UNKNOWN: ErrorDefault(404, "no such upload in this repository"),
    ErrorCode.DIGEST_INVALID: ErrorDefault(400, "the digest is malformed, or is not that of the content"),
    ErrorCode.MANIFEST_BLOB_UNKNOWN: ErrorDefault(404, "the manifest names content this repository does not have"),
    ErrorCode.MANIFEST_INVALID: ErrorDefault(400, "the manifest is not valid"),
    ErrorCode.MANIFEST_UNKNOWN: ErrorDefault(404, "this repository has no such manifest"),
    ErrorCode.NAME_INVALID: ErrorDefault(400, "the repository name is not valid"),
    ErrorCode.NAME_UNKNOWN: ErrorDefault(404, "no such repository"),
    ErrorCode.SIZE_INVALID: ErrorDefault(400, "the length stated is not the length received"),
    ErrorCode.UNAUTHORIZED: ErrorDefault(401, "authentication is required"),
    ErrorCode.DENIED: ErrorDefault(403, "access to this resource is denied"),
    ErrorCode.UNSUPPORTED: ErrorDefault(405, "the operation is not supported"),
    ErrorCode.TOOMANYREQUESTS: ErrorDefault(429, "too many requests"),
    ErrorCode.PAGINATION_NUMBER_INVALID: ErrorDefault(400, "the page asked for is not valid"),
    ErrorCode.RANGE_INVALID: ErrorDefault(416, "the range lies outside the content"),
    ErrorCode.UNAVAILABLE: ErrorDefault(503, "the service is not available at the moment"),
    ErrorCode.UNKNOWN: ErrorDefault(500, "an unknown error occurred"),
}


def error_body(code: str, message: str | None = None, detail: object = None) -> bytes:
    """The JSON body of an error answer (OCI distribution specification 1.1, "Error Codes").

    `message` defaults to the code's own. `detail` is any JSON value and left out when None. Everything is escaped to
    ASCII, so that a stray surrogate out of a percent-decoded URL cannot spoil the answer that complains about it.
    """
    if message is None:
        known = ERROR_DEFAULTS.get(ErrorCode(code)) if code in ErrorCode.__members__ else None
        message = known.message if known is not None else ""
    error: dict[str, object] = {"code": str(code), "message": message}
    if detail is not None:
        error["detail"] = detail
    return json.dumps({"errors": [error]}, separators=(",", ":"), allow_nan=False).encode("ascii")


class GrammarError(ValueError):
    """A value from outside does not follow its grammar. Trying again with the same value never helps.

    The tree (each is defined beside the grammar it belongs to)::

        GrammarError
         ├ DigestInvalid             digest
         ├ NameInvalid, TagInvalid   reference
         ├ ManifestInvalid           manifest
         │  └ ManifestUnsupported
         ├ RangeNotSatisfiable       ranges
         ├ UploadRangeInvalid        ranges
         ├ ChallengeInvalid          challenge
         ├ LinkInvalid               link
         ├ ScopeInvalid              scope
         ├ PaginationInvalid         paging
         ├ UrlInvalid                hosts
         └ AuthConfigInvalid         hosts
    """

    code: ClassVar[ErrorCode] = ErrorCode.UNSUPPORTED
    status: ClassVar[int] = 400
    """HTTP status, where a client of ours sent the value."""


def excerpt(value: str | bytes, limit: int = 80) -> str:
    """`value` for an error message: quoted, escaped, and short, whatever it holds."""
    cut = value[: limit + 1]
    return repr(cut) if len(value) <= limit else f"{cut[:limit]!r}…"
